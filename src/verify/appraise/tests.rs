//! What is accepted, what each check refuses, and that nothing signed or hashed can be altered.

use super::scene::{BOOT, Scene, executed};
use super::*;
use crate::binding::{Kind, LogEntry};
use crate::digest::*;
use crate::event::{
    Enforce, Enter, EnterMode, EnterVerdict, Event, Exec, Fault, HostLink, How, Ids, Policy,
};
use crate::evidence::Root;
use crate::imalog::{EncodedPath, Entry};
use crate::pcr::PcrIndex;
use crate::profile::{DeviceNode, How as Namespace, MountUse, NamespaceUse, Relaxation};
use crate::testkit::NOW;
use crate::tpm2::softkey::SoftKey;
use crate::tpm2::{TpmName, alg};

/// The checks with that outcome, as `subject check`.
fn with(appraisal: &Appraisal, word: &str) -> Vec<String> {
    let those = appraisal
        .findings
        .iter()
        .filter(|f| f.outcome.word() == word);
    those
        .map(|f| format!("{} {}", f.subject, f.check))
        .collect()
}

/// Exactly `expected` refuse, and the verdict does.
#[track_caller]
fn assert_refused(scene: &Scene, expected: &[&str]) -> Appraisal {
    let appraisal = scene.appraise();
    assert_eq!(
        with(&appraisal, "refused"),
        expected,
        "{:#?}",
        appraisal.findings
    );
    assert_eq!(appraisal.verdict, Verdict::Refused);
    appraisal
}

#[test]
fn accept_with_named_waivers() {
    let scene = Scene::new();
    let appraisal = scene.appraise();
    assert_eq!(
        with(&appraisal, "refused"),
        [""; 0],
        "{:#?}",
        appraisal.findings
    );
    assert_eq!(
        with(&appraisal, "waived"),
        ["host H-ROOT", "host P-HOST", "container T-TIER"]
    );
    let Verdict::Accepted(trusted) = &appraisal.verdict else {
        panic!("{:#?}", appraisal.findings);
    };
    assert_eq!(trusted.container().as_str(), "web-1");
    assert_eq!(trusted.host(), "node-1");
    assert_eq!(trusted.image(), scene.claim.image);
    assert_eq!(trusted.record(), scene.record().digest().unwrap());
    assert_eq!(
        trusted.waived(),
        [Waiver::SoftwareRoot, Waiver::NoIma, Waiver::TierNone]
    );
    let measured = appraisal.container.measured.unwrap();
    assert!(measured.started);
    assert_eq!(measured.executed.len(), 1);
}

#[test]
fn every_check_appears_once_per_subject() {
    let appraisal = Scene::new().appraise();
    let demanded: Vec<(Check, Subject)> = Check::ALL
        .iter()
        .flat_map(|c| c.subjects().iter().map(|s| (*c, *s)))
        .collect();
    let found: Vec<(Check, Subject)> = appraisal
        .findings
        .iter()
        .map(|f| (f.check, f.subject))
        .collect();
    assert_eq!(found, demanded);
}

#[test]
fn refuse_each_waiver_that_is_not_named() {
    for (missing, check, word) in [
        (Waiver::SoftwareRoot, "host H-ROOT", "refused"),
        (Waiver::NoIma, "host P-HOST", "unknown"),
        (Waiver::TierNone, "container T-TIER", "refused"),
    ] {
        let mut scene = Scene::new();
        scene.expect.waive.retain(|w| *w != missing);
        let appraisal = scene.appraise();
        assert_eq!(with(&appraisal, word), [check]);
        assert_eq!(appraisal.verdict.word(), word);
    }
}

#[test]
fn refuse_quote_over_another_nonce() {
    let mut scene = Scene::new();
    let evidence = scene.evidence();
    scene.nonce = Nonce::new(vec![43; 20]).unwrap();
    let appraisal = scene.appraise_evidence(&evidence);
    let expected = [
        "host Q-QD",
        "container Q-QD",
        "container B-HASH",
        "container B-ORDER",
    ];
    assert_eq!(with(&appraisal, "refused"), expected);
}

#[test]
fn refuse_other_channel_binding() {
    let scene = Scene::new();
    let trust = Trust {
        user_roots: scene.ca.roots(),
        crls: vec![],
    };
    let evidence = scene.evidence();
    let appraisal = appraise(
        &evidence,
        &scene.nonce,
        &scene.asked,
        b"tls",
        &scene.expect,
        &trust,
        NOW,
        NOW,
    );
    assert_eq!(
        with(&appraisal, "refused")[..2],
        ["host Q-QD", "container Q-QD"]
    );
}

/// A good quote of this host over another container's good vTPM quote.
#[test]
fn refuse_mix_of_quotes() {
    let (one, mut two) = (Scene::new().evidence(), Scene::new());
    two.edit_evidence = Box::new(move |evidence| {
        evidence.container_attest.clone_from(&one.container_attest);
        evidence.container_sig.clone_from(&one.container_sig);
    });
    let appraisal = two.appraise();
    let refused = with(&appraisal, "refused");
    for check in [
        "host Q-QD",
        "container Q-SIG",
        "container B-ORDER",
        "container B-HASH",
    ] {
        assert!(refused.contains(&check.to_owned()), "{check}: {refused:?}");
    }
}

#[test]
fn refuse_forged_attestation_structures() {
    let mut scene = Scene::new();
    scene.edit_vtpm_quote = Box::new(|quote| quote.magic = 0);
    assert_refused(&scene, &["container Q-MAGIC"]);

    let mut scene = Scene::new();
    scene.edit_host_quote = Box::new(|quote| quote.kind = 0x8017);
    assert_refused(&scene, &["host Q-TYPE"]);

    let mut scene = Scene::new();
    scene.edit_host_quote = Box::new(|quote| quote.selection[0].1 &= !(1 << 13));
    assert_refused(&scene, &["host Q-SEL"]);

    let mut scene = Scene::new();
    scene.edit_vtpm_quote = Box::new(|quote| quote.selection[0] = (alg::SHA1, 0xFFF));
    assert_refused(&scene, &["container Q-SEL"]);

    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| evidence.container_sig.push(0));
    let appraisal = scene.appraise();
    assert!(with(&appraisal, "refused").contains(&"container Q-PARSE".to_owned()));
}

#[test]
fn refuse_restarted_tpms() {
    let mut scene = Scene::new();
    scene.edit_vtpm_quote = Box::new(|quote| quote.reset = 2);
    assert_refused(&scene, &["container Q-CLOCK"]);

    let mut scene = Scene::new();
    scene.edit_vtpm_quote = Box::new(|quote| quote.restart = 1);
    assert_refused(&scene, &["container Q-CLOCK"]);

    let mut scene = Scene::new();
    scene.edit_host_quote = Box::new(|quote| quote.reset = 8);
    assert_refused(&scene, &["host Q-CLOCK", "container B-EPOCH"]);
}

#[test]
fn an_unsafe_clock_is_unknown() {
    let mut scene = Scene::new();
    scene.edit_vtpm_quote = Box::new(|quote| quote.safe = 0);
    let appraisal = scene.appraise();
    assert_eq!(with(&appraisal, "unknown"), ["container Q-CLOCK"]);
    assert_eq!(appraisal.verdict, Verdict::Unknown);
}

#[test]
fn refuse_key_that_signs_anything() {
    let mut head = crate::tpm2::aik_template();
    head.truncate(head.len() - 4);
    head[5] &= !1; // restricted
    let mut scene = Scene::new();
    scene.vtpm_ak = SoftKey::with_head(&head);
    scene.claim.vtpm_ak_name = scene.vtpm_ak.public().name();
    assert_refused(&scene, &["container Q-AKATTR"]);
}

#[test]
fn refuse_host_that_is_not_pinned() {
    let mut scene = Scene::new();
    scene.expect.hosts[0].ak_name = TpmName::of_public(b"other");
    assert_refused(&scene, &["host K-HAK"]);
}

#[test]
fn refuse_other_root_than_pinned() {
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| evidence.host_root = Root::Hardware);
    assert_refused(&scene, &["host H-ROOT"]);
    scene.expect.hosts[0].root = Root::Hardware;
    assert_eq!(
        with(&scene.appraise(), "waived"),
        ["host P-HOST", "container T-TIER"]
    );
}

#[test]
fn refuse_keys_that_the_record_does_not_name() {
    let mut scene = Scene::new();
    scene.vtpm_ak = SoftKey::attestation();
    let appraisal = scene.appraise();
    assert!(with(&appraisal, "refused").contains(&"container K-VAK".to_owned()));

    let mut scene = Scene::new();
    scene.vtpm_ek = SoftKey::endorsement();
    assert_refused(&scene, &["container K-VAK"]);

    let mut scene = Scene::new();
    scene.vtpm_ek = SoftKey::attestation();
    scene.claim.vtpm_ek_name = scene.vtpm_ek.public().name();
    assert_refused(&scene, &["container K-VAK"]);
}

#[test]
fn refuse_key_in_two_roles_or_records() {
    let mut scene = Scene::new();
    scene.after = vec![LogEntry::new(
        Kind::Bind,
        &scene.claim.vtpm_ak_name,
        RecordDigest::of(b"other"),
    )];
    assert_refused(&scene, &["container K-DISTINCT", "container B-LIVE"]);
}

#[test]
fn refuse_record_that_is_not_in_the_log() {
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| evidence.binding_log.clear());
    assert_refused(
        &scene,
        &["container B-HASH", "container B-LIVE", "host L-REPLAY"],
    );
}

#[test]
fn refuse_ended_containers() {
    for kind in [Kind::Unbind, Kind::Void] {
        let mut scene = Scene::new();
        let r = scene.record().digest().unwrap();
        scene.after = vec![LogEntry::new(kind, &scene.claim.vtpm_ak_name, r)];
        assert_refused(&scene, &["container B-LIVE"]);
    }
}

#[test]
fn accept_among_other_containers() {
    let mut scene = Scene::new();
    let other = |kind, n: &[u8]| LogEntry::new(kind, &TpmName::of_public(n), RecordDigest::of(n));
    scene.before = vec![other(Kind::Bind, b"1"), other(Kind::Bind, b"2")];
    scene.after = vec![other(Kind::Unbind, b"1")];
    scene.host.prev = hex::encode(scene.before[1].value());
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    scene.host.prev = hex::encode(scene.before[0].value());
    assert_refused(&scene, &["container B-HASH"]);
}

#[test]
fn refuse_other_container() {
    let mut scene = Scene::new();
    scene.asked = ContainerId::parse("web-2").unwrap();
    assert_refused(&scene, &["container B-ID"]);
}

#[test]
fn refuse_other_image() {
    let mut scene = Scene::new();
    scene.expect.images = vec![ImageDigest::of(b"other")];
    assert_refused(&scene, &["container B-IMG"]);

    let mut scene = Scene::new();
    scene.edit_event("attestrun.image", |event| {
        if let Event::Image(image) = event {
            image.config = ConfigDigest::of(b"other");
        }
    });
    assert_refused(&scene, &["container B-IMG"]);
}

#[test]
fn refuse_other_host_link() {
    type Change = fn(&mut HostLink);
    let changes: [Change; 3] = [
        |link| link.host_reset = 8,
        |link| link.host_boot = BOOT.replace('0', "1"),
        |link| link.host_ak_name = TpmName::of_public(b"other"),
    ];
    for change in changes {
        let mut scene = Scene::new();
        scene.edit_event("attestrun.host-link", |event| {
            if let Event::HostLink(link) = event {
                change(link);
            }
        });
        assert_refused(&scene, &["container B-EPOCH"]);
    }
}

#[test]
fn refuse_records_that_do_not_parse() {
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| evidence.binding.push(b' '));
    let appraisal = scene.appraise();
    assert_eq!(
        with(&appraisal, "refused"),
        ["host Q-QD", "container B-ORDER", "host L-PARSE"],
        "{:#?}",
        appraisal.findings
    );
    assert!(with(&appraisal, "unknown").contains(&"container B-ID".to_owned()));
}

fn separator(n: u32) -> Entry {
    Event::Separator(PcrIndex::new(n).unwrap())
        .to_entry()
        .unwrap()
}

#[test]
fn refuse_logs_in_other_order() {
    let base = Scene::new().log;
    let position = |name: &str| {
        base.iter()
            .position(|e| Event::from_entry(e).is_ok_and(|e| e.name() == name))
    };
    let (runtime, launch) = (
        position("attestrun.runtime").unwrap(),
        position("attestrun.launch").unwrap(),
    );
    let (tier, start) = (
        position("attestrun.tier").unwrap(),
        position("attestrun.start").unwrap(),
    );
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("host link not first", {
            let mut log = base.clone();
            log.swap(0, launch);
            log
        }),
        ("events swapped within a PCR", {
            let mut log = base.clone();
            log.swap(0, runtime);
            log
        }),
        (
            "event twice",
            [base.clone(), vec![base[launch].clone()]].concat(),
        ),
        (
            "separator twice",
            [base.clone(), vec![separator(3)]].concat(),
        ),
        (
            "separator missing",
            base.iter()
                .filter(|e| **e != separator(6))
                .cloned()
                .collect(),
        ),
        (
            "tier twice",
            [base.clone(), vec![base[tier].clone()]].concat(),
        ),
        (
            "start twice",
            [base.clone(), vec![base[start].clone()]].concat(),
        ),
        (
            "no tier",
            base.iter().filter(|e| **e != base[tier]).cloned().collect(),
        ),
        ("exec before start", {
            let mut log = base.clone();
            let last = log.pop().unwrap();
            log.insert(start, last);
            log
        }),
    ];
    for (name, log) in cases {
        let mut scene = Scene::new();
        // Same keys are not needed: what is refused is the order.
        scene.log = log.iter().map(|e| rehost(&scene, e)).collect();
        let appraisal = scene.appraise();
        assert!(
            with(&appraisal, "refused").contains(&"container L-FIRST".to_owned()),
            "{name}"
        );
    }
}

/// The same entry, with this scene's host link.
fn rehost(scene: &Scene, entry: &Entry) -> Entry {
    match Event::from_entry(entry) {
        Ok(Event::HostLink(_)) => scene.log[0].clone(),
        _ => entry.clone(),
    }
}

#[test]
fn refuse_unknown_events() {
    for (pcr, name, buf) in [
        (9, "attestrun.more", &b"{}"[..]),
        (11, "attestrun.more", b"{}"),
        (8, "separator", &[0; 4]),
        (11, "attestrun.host-link", b"{}"),
        (11, "attestrun.start", b"{\"x\":1}"),
        (11, "attestrun.start", b" {}"),
    ] {
        let mut scene = Scene::new();
        scene
            .log
            .push(Entry::buffer(PcrIndex::new(pcr).unwrap(), name, buf.to_vec()).unwrap());
        let appraisal = scene.appraise();
        assert!(
            with(&appraisal, "refused").contains(&"container L-PARSE".to_owned()),
            "{pcr} {name}"
        );
    }
}

#[test]
fn refuse_log_that_lags_or_leads() {
    let mut scene = Scene::new();
    let last = scene.log.last().unwrap().encode().len();
    scene.edit_evidence = Box::new(move |evidence| {
        let length = evidence.container_log.len();
        evidence.container_log.truncate(length - last);
    });
    assert_refused(&scene, &["container Q-PCRDIG", "container L-REPLAY"]);

    let mut scene = Scene::new();
    let more: Vec<u8> = scene.entrypoint().iter().flat_map(Entry::encode).collect();
    scene.edit_evidence = Box::new(move |evidence| evidence.container_log.extend(&more));
    assert_refused(&scene, &["container Q-PCRDIG", "container L-REPLAY"]);
}

#[test]
fn refuse_other_host_pcrs() {
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| evidence.host_pcrs.0[0] = [4; 32]);
    assert_refused(&scene, &["host Q-PCRDIG"]);
}

#[test]
fn refuse_violation_and_path() {
    let mut scene = Scene::new();
    let at: usize = scene
        .log
        .iter()
        .rev()
        .skip(2)
        .map(|e| e.encode().len())
        .sum();
    scene.edit_evidence = Box::new(move |evidence| evidence.container_log[at + 4..at + 24].fill(0));
    let appraisal = scene.appraise();
    assert_eq!(
        with(&appraisal, "refused"),
        ["container L-PARSE", "container L-VIOL"]
    );

    let mut scene = Scene::new();
    scene.log.push(
        Event::Exec(Exec {
            path: "/usr/bin/../app".into(),
            digest: FileDigest::of(b"app"),
            args_digest: String::new(),
            uid: 0,
            gid: 0,
            how: How::Enter,
        })
        .to_entry()
        .unwrap(),
    );
    assert_refused(&scene, &["container L-PATH", "container P-UNLISTED"]);
}

#[test]
fn refuse_programs_that_are_not_listed() {
    let mut scene = Scene::new();
    scene
        .log
        .extend(executed(b"/usr/bin/other", b"app", How::Enter));
    let appraisal = assert_refused(&scene, &["container P-UNLISTED"]);
    let finding = appraisal
        .findings
        .iter()
        .find(|f| f.check == Check::PUnlisted)
        .unwrap();
    assert!(
        finding.outcome.to_string().contains("/usr/bin/other"),
        "{finding}"
    );

    let mut scene = Scene::new();
    scene
        .log
        .extend(executed(b"/usr/bin/app", b"trojan", How::Enter));
    assert_refused(&scene, &["container P-HASH"]);

    // A record whose file was never measured.
    let mut scene = Scene::new();
    scene.log.push(
        executed(b"/usr/bin/other", b"app", How::Enter)
            .pop()
            .unwrap(),
    );
    assert_refused(&scene, &["container P-UNLISTED"]);
}

fn enter(verdict: EnterVerdict, capabilities: &[&str]) -> Event {
    Event::Enter(Enter {
        verdict,
        path: "/usr/bin/app".into(),
        digest: Some(FileDigest::of(b"app")),
        user: Ids { uid: 0, gid: 0 },
        capabilities: capabilities.iter().map(|c| (*c).to_owned()).collect(),
        tty: false,
        reason: "listed".into(),
    })
}

#[test]
fn enters_are_judged() {
    let case = |event: &Event| {
        let mut scene = Scene::new();
        scene.log.push(event.to_entry().unwrap());
        scene
    };
    assert_eq!(
        case(&enter(EnterVerdict::Allowed, &["CAP_KILL"]))
            .appraise()
            .verdict
            .word(),
        "accepted"
    );
    assert_refused(
        &case(&enter(EnterVerdict::Allowed, &["CAP_SYS_ADMIN"])),
        &["container C-CAPS"],
    );
    assert_refused(
        &case(&enter(EnterVerdict::Denied, &[])),
        &["container P-FAULT"],
    );

    let mut closed = case(&enter(EnterVerdict::Allowed, &[]));
    edit_policy(&mut closed, |policy| policy.enter = EnterMode::Deny);
    assert_refused(&closed, &["container P-FAULT"]);
}

#[test]
fn refuse_faults() {
    let mut scene = Scene::new();
    let fault = Event::Fault(Fault {
        kind: "exec-denied".into(),
        detail: "/bin/evil".into(),
    });
    scene.log.push(fault.to_entry().unwrap());
    assert_refused(&scene, &["container P-FAULT"]);
}

#[test]
fn refuse_other_lists() {
    let mut scene = Scene::new();
    scene.list.serial = 8;
    assert_refused(&scene, &["container P-SIGLIST"]);
    scene.relist();
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    scene.expect.list.min_serial = 9;
    assert_eq!(with(&scene.appraise(), "refused"), ["container P-SIGLIST"]);

    let mut scene = Scene::new();
    scene.now = UnixTime::from_secs(NOW.secs() + 7200);
    scene.expect.max_age_secs = 86_400;
    assert_eq!(with(&scene.appraise(), "refused"), ["container P-SIGLIST"]);

    let mut scene = Scene::new();
    scene.list.images = vec![("other".into(), ImageDigest::of(b"other"))];
    scene.relist();
    assert_eq!(with(&scene.appraise(), "refused"), ["container P-SIGLIST"]);
}

#[test]
fn refuse_other_signers() {
    let mut scene = Scene::new();
    scene.signer = scene.ca.user();
    assert_refused(&scene, &["container P-CERT"]);

    let mut scene = Scene::new();
    scene.signer = crate::testkit::user_ca().user();
    scene.relist();
    assert_eq!(
        with(&scene.appraise(), "refused"),
        ["container P-CERT", "container P-SIGLIST"]
    );

    let mut scene = Scene::new();
    scene.expect.tenant = "spiffe://demo.example/tenant/other".into();
    assert_eq!(
        with(&scene.appraise(), "refused"),
        ["container P-CERT", "container P-SIGLIST"]
    );
}

fn edit_policy(scene: &mut Scene, edit: impl Fn(&mut Policy)) {
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

#[test]
fn refuse_stale_and_future_answers() {
    for seconds in [61, -1] {
        let mut scene = Scene::new();
        scene.now = UnixTime::from_secs(NOW.secs() + seconds);
        assert_refused(&scene, &["host T-AGE", "container T-AGE"]);
    }
}

#[test]
fn refuse_launch_that_the_record_does_not_name() {
    let mut scene = Scene::new();
    scene.claim.profile = ProfileDigest::of(b"other");
    let all = [
        "C-ARGS", "C-ENV", "C-CAPS", "C-NS", "C-MOUNT", "C-DEV", "C-HOOK", "C-PEER",
    ];
    let all = all.map(|check| format!("container {check}"));
    assert_refused(&scene, &all.each_ref().map(String::as_str));
    let mut scene = Scene::new();
    scene.claim.bundle_config = BundleDigest::of(b"other");
    assert_refused(&scene, &all.each_ref().map(String::as_str));
}

#[test]
fn refuse_launches_by_their_check() {
    let mut scene = Scene::new();
    scene.relaunch(|profile| profile.process.args_digest = ProfileDigest::of(b"[]").to_string());
    assert_refused(&scene, &["container C-ARGS"]);
    scene.expect.launch.args = ArgsRule::Any(Any::Any);
    assert_eq!(scene.appraise().verdict.word(), "accepted");

    let mut scene = Scene::new();
    scene.relaunch(|profile| profile.process.env_names = vec!["LD_PRELOAD".into(), "PATH".into()]);
    assert_refused(&scene, &["container C-ENV"]);
    scene.expect.launch.env = EnvRule::OneOf(vec!["LD_PRELOAD".into()]);
    assert_refused(&scene, &["container C-ENV"]);
    scene.expect.launch.env = EnvRule::OneOf(vec!["LD_PRELOAD".into(), "PATH".into()]);
    assert_eq!(scene.appraise().verdict.word(), "accepted");

    let mut scene = Scene::new();
    scene.relaunch(|profile| profile.process.capabilities.bounding.push("CAP_BPF".into()));
    assert_refused(&scene, &["container C-CAPS"]);
    scene.expect.launch.allow = vec![Relaxation::parse("cap:CAP_BPF").unwrap()];
    assert_eq!(scene.appraise().verdict.word(), "accepted");

    let mut scene = Scene::new();
    scene.relaunch(|profile| profile.namespaces.retain(|n| n.kind != "mount"));
    assert_refused(&scene, &["container C-NS"]);

    let mut scene = Scene::new();
    scene.relaunch(|profile| {
        profile.mounts.push(MountUse {
            destination: "/run/docker.sock".into(),
            kind: "bind".into(),
            source: "/run/docker.sock".into(),
            real_source: "/run/docker.sock".into(),
            options: vec![],
        });
    });
    assert_refused(&scene, &["container C-MOUNT"]);

    let mut scene = Scene::new();
    scene.relaunch(|profile| {
        let (path, kind) = ("/dev/tpm0".into(), "c".into());
        profile.devices.push(DeviceNode {
            path,
            kind,
            major: 10,
            minor: 224,
            host_tpm: true,
        });
    });
    assert_refused(&scene, &["container C-DEV"]);
}

#[test]
fn joined_namespaces_need_peers() {
    let join = |kind: &str, path: &str| {
        let mut scene = Scene::new();
        let (kind, path) = (kind.to_owned(), path.to_owned());
        scene.relaunch(|profile| {
            profile.namespaces.retain(|n| n.kind != kind);
            let (kind, path) = (kind.clone(), path.clone());
            profile.namespaces.push(NamespaceUse {
                kind,
                how: Namespace::Joined,
                path,
            });
        });
        scene
    };
    assert_eq!(
        join("network", "/run/netns/cni-1")
            .appraise()
            .verdict
            .word(),
        "accepted"
    );
    assert_refused(&join("network", "/proc/1234/ns/net"), &["container C-PEER"]);
    assert_refused(
        &join("network", "/run/netns/../../proc/1/ns/net"),
        &["container C-PEER"],
    );
    assert_refused(&join("ipc", "/run/netns/cni-1"), &["container C-PEER"]);

    let mut scene = join("pid", "/proc/1234/ns/pid");
    scene.claim.peers = vec!["0".repeat(64)];
    assert_eq!(with(&scene.appraise(), "unknown"), ["container C-PEER"]);
}

#[test]
fn unreachable_checks_are_unknown() {
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| {
        evidence.host_ak.clear();
        evidence.container_ak.clear();
        evidence.container_log.push(0);
        evidence.siglist_sig.clear();
    });
    let appraisal = scene.appraise();
    let refused = [
        "host Q-PARSE",
        "container Q-PARSE",
        "container L-PARSE",
        "container P-CERT",
        "container P-SIGLIST",
    ];
    assert_eq!(with(&appraisal, "refused"), refused);
    for check in [
        "host Q-SIG",
        "container Q-SIG",
        "host K-HAK",
        "container P-UNLISTED",
        "container C-ARGS",
    ] {
        assert!(
            with(&appraisal, "unknown").contains(&check.to_owned()),
            "{check}"
        );
    }
}

/// Flipping any bit of evidence, all of which is signed or hashed, never ends in acceptance.
#[test]
fn refuse_flipped_bits() {
    let scene = Scene::new();
    let evidence = scene.evidence();
    type Item = fn(&mut Evidence) -> &mut [u8];
    // Every `step`-th bit; the modules of the structures flip every bit of theirs.
    let items: [(&str, usize, Item); 12] = [
        ("host/attest", 2, |e| &mut e.host_attest),
        ("host/sig", 7, |e| &mut e.host_sig),
        ("host/ak", 5, |e| &mut e.host_ak),
        ("container/attest", 2, |e| &mut e.container_attest),
        ("container/sig", 7, |e| &mut e.container_sig),
        ("container/ak", 5, |e| &mut e.container_ak),
        ("container/ek", 5, |e| &mut e.container_ek),
        ("binding", 5, |e| &mut e.binding),
        ("binding-log", 5, |e| &mut e.binding_log),
        ("container/log", 17, |e| &mut e.container_log),
        ("siglist", 7, |e| &mut e.siglist),
        ("host/pcrs", 7, |e| e.host_pcrs.0.as_flattened_mut()),
    ];
    for (name, step, item) in items {
        let bits = item(&mut evidence.clone()).len() * 8;
        for bit in (0..bits).step_by(step) {
            let mut flipped = evidence.clone();
            item(&mut flipped)[bit / 8] ^= 1 << (bit % 8);
            let verdict = scene.appraise_evidence(&flipped).verdict;
            assert!(!matches!(verdict, Verdict::Accepted(_)), "{name} bit {bit}");
        }
    }
}

/// Removing, repeating or swapping entries of one PCR never ends in acceptance.
#[test]
fn refuse_other_sequences_of_entries() {
    let scene = Scene::new();
    let evidence = scene.evidence();
    let refused = |log: &[Entry], what: &str| {
        let mut evidence = evidence.clone();
        evidence.container_log = log.iter().flat_map(Entry::encode).collect();
        let verdict = scene.appraise_evidence(&evidence).verdict;
        assert!(!matches!(verdict, Verdict::Accepted(_)), "{what}");
    };
    for at in 0..scene.log.len() {
        let mut log = scene.log.clone();
        let entry = log.remove(at);
        refused(&log, &format!("without entry {at}"));
        log.insert(at, entry.clone());
        log.insert(at, entry);
        refused(&log, &format!("entry {at} twice"));
    }
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

#[test]
fn paths_of_reports_are_encoded() {
    let mut scene = Scene::new();
    scene
        .log
        .extend(executed(b"/usr/bin/a b\n", b"app", How::Enter));
    let measured = scene.appraise().container.measured.unwrap();
    assert_eq!(
        measured.executed[1].path,
        EncodedPath::of(b"/usr/bin/a b\n").unwrap().as_str()
    );
}
