//! The signature list, its signer, and what was executed (P-…).

use super::super::scene::executed;
use super::modes::edit_policy;
use super::*;
use crate::digest::FileDigest;
use crate::event::{
    Enter, EnterMode, EnterVerdict, Event, Fault, How, Ids, KernelCheck, KernelKeys,
};

#[test]
fn accept_copy_of_a_listed_program() {
    let mut scene = Scene::new();
    scene.log.extend(executed(b"/tmp/copy", b"app", How::Enter));
    assert_eq!(scene.appraise().verdict.word(), "accepted");
}

#[test]
fn refuse_programs_that_are_not_listed() {
    let mut scene = Scene::new();
    scene
        .log
        .extend(executed(b"/usr/bin/other", b"other", How::Enter));
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

/// A kernel that could not check is waived by name; what is missing or contradicts itself is not.
#[test]
fn the_kernels_check_is_whole_or_waived() {
    const EVENT: &str = "attestrun.kernel-keys";
    let keys = |checked, why: &str| KernelKeys {
        checked,
        why: why.to_owned(),
    };
    for (checked, why, waivable) in [
        (KernelCheck::Chain, "no signatures", true),
        (KernelCheck::None, "no P-256", true),
        (KernelCheck::Signature, "but not really", false),
    ] {
        let mut scene = Scene::new();
        scene.edit_event(EVENT, |event| {
            *event = Event::KernelKeys(keys(checked, why));
        });
        let appraisal = assert_refused(&scene, &["container P-KEYS"]);
        let found = appraisal.findings.iter().find(|f| f.check == Check::PKeys);
        assert!(found.unwrap().detail.contains(why));
        scene.expect.waive.push(Waiver::KernelKeys);
        assert_eq!(scene.appraise().verdict.word() == "accepted", waivable);
    }
    let event = Event::KernelKeys(keys(KernelCheck::Signature, "")).to_entry();
    let event = event.unwrap();
    let mut missing = Scene::new();
    missing.log.retain(|entry| *entry != event);
    missing.expect.waive.push(Waiver::KernelKeys);
    assert_eq!(with(&missing.appraise(), "unknown"), ["container P-KEYS"]);
    let mut twice = Scene::new();
    let at = twice.log.iter().position(|entry| *entry == event).unwrap();
    twice.log.insert(at, event.clone());
    assert_refused(&twice, &["container P-KEYS"]);
    let mut late = Scene::new();
    late.log.retain(|entry| *entry != event);
    late.log.push(event);
    assert_refused(&late, &["container L-FIRST"]);
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
