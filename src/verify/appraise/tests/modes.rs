//! Policies, modes, tiers, and the expectations that are read for them.

use super::*;
use crate::digest::{FileDigest, PolicyDigest, RootfsDigest};
use crate::event::{
    Enforce, EnterMode, EnterVerdict, Event, Inside, Policy, RootfsCheck, TierName,
};
use crate::imalog::{EncodedPath, Entry};
use crate::tpm2::TpmName;

pub(super) fn edit_policy(scene: &mut Scene, edit: impl Fn(&mut Policy)) {
    scene.edit_event("attestrun.policy", |event| {
        if let Event::Policy(policy) = event {
            edit(policy);
        }
    });
}

#[test]
fn refuse_weaker_modes() {
    let mut scene = Scene::new();
    edit_policy(&mut scene, |policy| policy.enforce = Enforce::Audit);
    assert_refused(&scene, &["container P-MODE"]);
    scene.claim.mode = "audit".into();
    assert_refused(&scene, &["container P-MODE"]);
    scene.expect.waive.push(Waiver::Audit);
    assert_eq!(scene.appraise().verdict.word(), "accepted");

    let mut scene = Scene::new();
    edit_policy(&mut scene, |policy| policy.enter = EnterMode::Any);
    assert_refused(&scene, &["container P-MODE"]);

    let mut scene = Scene::new();
    scene.claim.tier = "bpf".into();
    assert_refused(&scene, &["container T-TIER"]);
}

/// Each way of not reading everything is named, and counts where the policy let it be and the challenger
/// waives that name.
#[test]
fn refuse_laxer_checks_of_files() {
    for (check, waiver) in [
        (RootfsCheck::Boot, Waiver::RootfsBoot),
        (RootfsCheck::Watched, Waiver::RootfsWatched),
        (RootfsCheck::Stat, Waiver::RootfsStat),
    ] {
        let mut scene = Scene::new();
        scene.edit_event("attestrun.rootfs", |event| {
            if let Event::Rootfs(rootfs) = event {
                rootfs.check = check;
            }
        });
        scene.expect.waive.push(waiver);
        assert_refused(&scene, &["container P-ROOTFS"]); // the policy demands `full`
        edit_policy(&mut scene, |policy| policy.rootfs = check);
        assert_eq!(scene.appraise().verdict.word(), "accepted", "{check}");
        scene.expect.waive.pop();
        assert_refused(&scene, &["container P-ROOTFS"]);
    }
}

fn watched() -> Scene {
    let mut scene = Scene::new();
    scene.claim.tier = "fanotify".into();
    edit_policy(&mut scene, |policy| policy.tier = TierName::Fanotify);
    scene.edit_event("attestrun.tier", |event| {
        if let Event::Tier(tier) = event {
            tier.tier = TierName::Fanotify;
        }
    });
    scene.expect.waive.push(Waiver::TierFanotify);
    scene
}

/// Each tier has a waiver of its own.
#[test]
fn refuse_tiers_that_are_not_waived() {
    let scene = watched();
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    let mut scene = watched();
    scene.expect.waive.retain(|w| *w != Waiver::TierFanotify);
    assert_refused(&scene, &["container T-TIER"]);
    let mut scene = watched();
    edit_policy(&mut scene, |policy| policy.tier = TierName::None);
    assert_refused(&scene, &["container T-TIER"]);
}

fn inside(verdict: EnterVerdict, content: &[u8]) -> Entry {
    let event = Event::Inside(Inside {
        verdict,
        path: "/usr/bin/app".into(),
        digest: FileDigest::of(content),
        caller: None,
    });
    event.to_entry().unwrap()
}

#[test]
fn executions_inside_are_judged() {
    let file = |content: &[u8]| {
        Entry::file(
            FileDigest::of(content),
            EncodedPath::of(b"/usr/bin/app").unwrap(),
        )
    };
    let with = |entries: Vec<Entry>| {
        let mut scene = watched();
        scene.log.extend(entries);
        scene
    };
    let listed = with(vec![inside(EnterVerdict::Allowed, b"app")]);
    assert_eq!(listed.appraise().verdict.word(), "accepted");
    for (verdict, content, measured, check) in [
        (
            EnterVerdict::Denied,
            &b"evil"[..],
            false,
            "container P-FAULT",
        ),
        (EnterVerdict::Audited, b"app", true, "container P-FAULT"),
        (
            EnterVerdict::Allowed,
            b"evil",
            false,
            "container P-UNLISTED",
        ),
        (EnterVerdict::Allowed, b"evil", true, "container P-HASH"),
    ] {
        let files = measured.then(|| file(content));
        let entries = files.into_iter().chain([inside(verdict, content)]);
        assert_refused(&with(entries.collect()), &[check]);
    }
}

#[test]
fn refuse_other_policies_programs_and_roots() {
    let mut scene = Scene::new();
    scene.expect.policies = vec![PolicyDigest::of(b"other")];
    scene.expect.runtimes = vec![FileDigest::of(b"other")];
    scene.expect.rootfs = vec![RootfsDigest::of(b"other")];
    assert_refused(
        &scene,
        &[
            "container P-POLICY",
            "container P-RUNTIME",
            "container P-ROOTFS",
        ],
    );

    let mut scene = Scene::new();
    edit_policy(&mut scene, |policy| {
        policy.digest = PolicyDigest::of(b"other")
    });
    assert_refused(&scene, &["container P-POLICY"]);
    let mut scene = Scene::new();
    edit_policy(&mut scene, |policy| policy.rule = "other".into());
    assert_refused(&scene, &["container P-POLICY"]);

    let mut scene = Scene::new();
    scene.edit_event("attestrun.runtime", |event| {
        if let Event::Runtime(runtime) = event {
            runtime.swtpm.sha256 = FileDigest::of(b"other");
        }
    });
    assert_refused(&scene, &["container P-RUNTIME"]);

    let mut scene = Scene::new();
    scene.edit_event("attestrun.rootfs-done", |event| {
        if let Event::RootfsDone(done) = event {
            done.manifest = RootfsDigest::of(b"other");
        }
    });
    assert_refused(&scene, &["container P-ROOTFS"]);
}

fn expectations() -> String {
    let digest = FileDigest::of(b"x");
    let name = TpmName::of_public(b"x");
    format!(
        r#"
images = ["{digest}"]
user_ca = ["/etc/demo/ca.pem"]
revocation = "unchecked"
tenant = "spiffe://demo.example/tenant/demo"
list = {{ name = "demo", min_serial = 1 }}
policies = ["{digest}"]
runtimes = ["{digest}"]
swtpms = ["{digest}"]
rootfs = ["{digest}"]
enter = "listed"
waive = ["software-root", "no-ima", "tier-none"]
max_age_secs = 60
firmware = {{ host = "any", vtpm = "any" }}

[[hosts]]
name = "node-1"
ak_name = "{name}"
root = "software"
binding_pcr_start = "{zeros}"

[launch]
args = [["/usr/bin/app", "-v"]]
env = "any"
allow = ["cap:CAP_BPF"]
"#,
        zeros = "0".repeat(64)
    )
}

#[test]
fn accept_expectations() {
    let expect = Expectations::parse(&expectations()).unwrap();
    assert!(expect.waives(Waiver::NoIma) && !expect.waives(Waiver::Audit));
    assert_eq!(expect.hosts[0].start(), Some([0; 32]));
    assert_eq!(expect.launch.env, EnvRule::Any(Any::Any));
}

#[test]
fn refuse_expectations_that_leave_something_open() {
    let good = expectations();
    // No key may be left out, except relaxations.
    for line in good
        .lines()
        .filter(|l| l.contains(" = ") && !l.starts_with("allow"))
    {
        assert!(
            Expectations::parse(&good.replace(line, "")).is_err(),
            "without {line}"
        );
    }
    for (from, to) in [
        ("revocation = \"unchecked\"", "revocation = \"crl\""),
        (
            "revocation = \"unchecked\"",
            "revocation = \"unchecked\"\ncrls = [\"/x\"]",
        ),
        ("[\"software-root\"", "[\"everything\""),
        ("max_age_secs = 60", "max_age_secs = 0"),
        ("max_age_secs = 60", "max_age_secs = 86401"),
        ("env = \"any\"", "env = \"all\""),
        ("cap:CAP_BPF", "CAP_BPF"),
        ("enter = \"listed\"", "enter = \"all\""),
        ("binding_pcr_start = \"00", "binding_pcr_start = \""),
        ("name = \"node-1\"", "name = \"node-1\"\nextra = 1"),
        ("images = [", "more = 1\nimages = ["),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        assert!(Expectations::parse(&bad).is_err(), "{to}");
    }
    for key in [
        "images", "user_ca", "policies", "runtimes", "swtpms", "rootfs",
    ] {
        let start = good.find(&format!("{key} = [")).unwrap();
        let end = start + good[start..].find('\n').unwrap();
        let bad = good.replace(&good[start..end], &format!("{key} = []"));
        assert_eq!(Expectations::parse(&bad), Err(ExpectError::Empty(key)));
    }
    let host = good[good.find("[[hosts]]").unwrap()..good.find("[launch]").unwrap()].to_owned();
    let twice = good.replace(&host, &format!("{host}{host}"));
    assert!(matches!(
        Expectations::parse(&twice),
        Err(ExpectError::Value { key: "hosts", .. })
    ));
}
