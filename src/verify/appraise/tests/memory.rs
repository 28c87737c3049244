//! What is compared with earlier answers (Q-CLOCK, Q-SIGNER, L-CONT, T-SKEW, P-SIGLIST), and batches.

use super::super::expect::FirmwareRule;
use super::super::scene::executed;
use super::*;
use crate::digest::FileDigest;
use crate::event::How;
use crate::evidence::LogFrom;

/// What is remembered of a good answer of `scene`.
fn remember(scene: &Scene) -> Memory {
    let seen = scene.appraise().seen.expect("all of it was proved");
    Memory::Fresh {
        host: Before::Seen(seen.host.1),
        container: Before::Seen(seen.container.1),
        list_serial: seen.list_serial,
        rolling: None,
        siglist: None,
    }
}

fn edit(memory: &mut Memory, change: impl Fn(&mut TpmState)) {
    let Memory::Fresh {
        host: Before::Seen(host),
        container: Before::Seen(container),
        ..
    } = memory
    else {
        panic!("nothing is remembered");
    };
    change(host);
    change(container);
}

#[test]
fn accept_the_next_answer_of_the_same_tpms() {
    let mut scene = Scene::new();
    scene.memory = remember(&scene);
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    // time goes on, and the container executes more
    scene.edit_vtpm_quote = Box::new(|quote| quote.clock += 1000);
    scene.edit_host_quote = Box::new(|quote| quote.clock += 1000);
    let more = executed(b"/usr/bin/app", b"app", How::Entrypoint);
    scene.log.extend(more.into_iter().skip(1));
    let next = scene.appraise();
    assert_eq!(with(&next, "refused"), [""; 0], "{:#?}", next.findings);
    // a host that was booted again begins a new log
    edit(&mut scene.memory, |state| {
        state.reset = 0;
        state.log_digest = FileDigest::of(b"other");
    });
    assert_eq!(scene.appraise().verdict.word(), "accepted");
}

#[test]
fn refuse_tpms_that_went_back() {
    for change in [
        (|state| state.clock += 1) as fn(&mut TpmState),
        |state| state.restart += 1,
        |state| state.reset += 1,
    ] {
        let mut scene = Scene::new();
        scene.memory = remember(&scene);
        edit(&mut scene.memory, change);
        let appraisal = assert_refused(&scene, &["host Q-CLOCK", "container Q-CLOCK"]);
        assert_eq!(appraisal.seen, None, "an old state is not remembered");
    }
}

#[test]
fn refuse_logs_that_lost_or_changed_entries() {
    for change in [
        (|state| state.log_bytes += 1) as fn(&mut TpmState),
        |state| state.log_digest = FileDigest::of(b"other"),
    ] {
        let mut scene = Scene::new();
        scene.memory = remember(&scene);
        edit(&mut scene.memory, change);
        assert_refused(&scene, &["host L-CONT", "container L-CONT"]);
    }
}

/// The PCRs explain the shorter log as well: only memory knows that there was more.
#[test]
fn refuse_a_vtpm_that_is_started_anew_under_the_same_record() {
    let mut scene = Scene::new();
    let short = scene.log.clone();
    let more = executed(b"/usr/bin/app", b"app", How::Entrypoint);
    scene.log.extend(more.into_iter().skip(1));
    scene.memory = remember(&scene);
    scene.log = short;
    assert_refused(&scene, &["container L-CONT"]);
    scene.memory = Memory::none();
    assert_eq!(scene.appraise().verdict.word(), "accepted");
}

#[test]
fn refuse_logs_that_leave_out_their_beginning() {
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| {
        evidence.log_from = LogFrom {
            container: 1,
            ..LogFrom::default()
        }
    });
    assert_refused(&scene, &["container L-CONT"]);
}

#[test]
fn refuse_signers_elsewhere_in_the_hierarchy() {
    let mut scene = Scene::new();
    scene.edit_vtpm_quote = Box::new(|quote| quote.signer = [&[0, 0x0B][..], &[9; 32]].concat());
    assert_refused(&scene, &["container Q-SIGNER"]);
    let mut scene = Scene::new();
    scene.memory = remember(&scene);
    scene.edit_host_quote = Box::new(|quote| quote.signer = [&[0, 0x0B][..], &[9; 32]].concat());
    assert_refused(&scene, &["host Q-SIGNER"]);
}

#[test]
fn refuse_a_challenger_whose_clock_went_back() {
    let mut scene = Scene::new();
    scene.memory = remember(&scene);
    edit(&mut scene.memory, |state| {
        state.asked_at = UnixTime::from_secs(NOW.secs() + 1);
    });
    assert_refused(&scene, &["host T-SKEW", "container T-SKEW"]);
}

#[test]
fn refuse_lists_older_than_one_seen() {
    let mut scene = Scene::new();
    let serial = scene.list.serial;
    let remembered = |list_serial| Memory::Fresh {
        host: Before::Never,
        container: Before::Never,
        list_serial,
        rolling: None,
        siglist: None,
    };
    scene.memory = remembered(serial);
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    scene.memory = remembered(serial + 1);
    let refused = with(&scene.appraise(), "refused");
    assert_eq!(refused, ["container P-SIGLIST"]);
}

#[test]
fn what_is_refused_for_its_content_is_remembered_all_the_same() {
    let mut scene = Scene::new();
    scene
        .log
        .extend(executed(b"/tmp/evil", b"evil", How::Entrypoint));
    let appraisal = scene.appraise();
    assert_eq!(appraisal.verdict, Verdict::Refused);
    let seen = appraisal.seen.unwrap();
    assert_eq!(seen.list_serial, 0);
    // but not what no quote proves
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| evidence.container_log.clear());
    assert_eq!(scene.appraise().seen, None);
}

#[test]
fn accept_quotes_for_many_and_refuse_them_where_one_was_asked_for() {
    let mut scene = Scene::new();
    scene.others = vec![[1; 32], [2; 32], [3; 32]];
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    scene.batch = false;
    assert_refused(&scene, &["container B-ORDER"]);
    scene.others.clear();
    assert_eq!(scene.appraise().verdict.word(), "accepted");
}

/// Another challenge's place in the same batch.
#[test]
fn refuse_paths_of_other_leaves() {
    let mut scene = Scene::new();
    scene.others = vec![[1; 32]];
    scene.edit_evidence = Box::new(|evidence| {
        let text = String::from_utf8(evidence.batch.encode()).unwrap();
        let other = text.replace("\"index\":1", "\"index\":0");
        evidence.batch = crate::batch::Path::parse(other.as_bytes()).unwrap();
    });
    let refused = with(&scene.appraise(), "refused");
    assert_eq!(
        refused,
        ["host Q-QD", "container B-HASH", "container B-ORDER"]
    );
}

#[test]
fn refuse_other_firmware_and_what_did_not_run() {
    let mut scene = Scene::new();
    let version = || FirmwareRule::OneOf(vec!["0x2019102300163636".into()]);
    (scene.expect.firmware.host, scene.expect.firmware.vtpm) = (version(), version());
    scene.expect.must_run = vec!["/usr/bin/app".into()];
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    scene.edit_vtpm_quote = Box::new(|quote| quote.firmware += 1);
    scene.expect.must_run.push("/usr/bin/agent".into());
    assert_refused(&scene, &["container Q-FW", "container P-MISSING"]);
}
