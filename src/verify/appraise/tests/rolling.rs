//! Answers that go on where an accepted one ended: what is new is judged as if all of it had been sent, and
//! what is left out counts for nobody else.

use super::super::scene::executed;
use super::host::host;
use super::*;
use crate::binding::{Kind, LogEntry};
use crate::digest::{FileDigest, RecordDigest};
use crate::event::{Enter, Event, Fault, How, Ids};
use crate::imalog::Entry;
use crate::imalog::kernel::testkit::{file, violation};
use crate::tpm2::TpmName;
use crate::wire::Has;
use std::sync::Arc;

fn standard(scene: &Scene) -> Standard {
    let trust = Trust {
        user_roots: scene.ca.roots(),
        crls: vec![],
        host_policy: scene.host_policy.clone(),
    };
    Standard::new(scene.expect.clone(), trust)
}

/// What is remembered of `scene` as it is now, having been in a file.
fn remember(scene: &Scene) -> Memory {
    let appraisal = scene.appraise();
    let seen = appraisal.seen.expect("all of it was proved");
    let rolling = appraisal.rolling;
    let rolling = rolling.unwrap_or_else(|| panic!("{:#?}", appraisal.findings));
    let text = serde_json::to_string(&rolling).unwrap();
    let read: Rolling = serde_json::from_str(&text).unwrap();
    assert_eq!(read, rolling);
    Memory::Fresh {
        host: Before::Seen(seen.host.1),
        container: Before::Seen(seen.container.1),
        list_serial: seen.list_serial,
        rolling: Some(Arc::new(read)),
        siglist: Some(Arc::new(list(scene))),
    }
}

fn list(scene: &Scene) -> KeptList {
    let evidence = scene.evidence();
    KeptList::new(evidence.siglist, evidence.siglist_sig)
}

/// What comes for what the challenger has.
fn rest(scene: &Scene) -> Evidence {
    let (memory, standard) = (&scene.memory, standard(scene));
    let has = Has {
        siglist: memory.siglist().map(KeptList::digest),
        ..memory.rolling().unwrap().has(&standard)
    };
    scene.evidence().without(&has)
}

/// The answer without what is known, judged; it must come to the same as the whole answer.
#[track_caller]
fn next(scene: &Scene) -> Appraisal {
    let evidence = rest(scene);
    assert_ne!(evidence.log_from.container, 0);
    let part = scene.appraise_evidence(&evidence);
    let whole = scene.appraise();
    for word in ["ok", "waived", "refused", "unknown"] {
        assert_eq!(
            with(&part, word),
            with(&whole, word),
            "{:#?}",
            part.findings
        );
    }
    assert_eq!(part.verdict, whole.verdict);
    assert_eq!(
        (&part.host, &part.container),
        (&whole.host, &whole.container)
    );
    assert_eq!((&part.seen, &part.rolling), (&whole.seen, &whole.rolling));
    part
}

fn exec(path: &str, content: &[u8], how: How) -> Entry {
    executed(path.as_bytes(), content, how).remove(1)
}

#[test]
fn accept_what_goes_on() {
    let mut scene = Scene::new();
    scene.expect.must_run = vec!["/usr/bin/app".into()];
    scene.memory = remember(&scene);
    assert_eq!(rest(&scene).container_log, b"");
    assert_eq!(next(&scene).verdict.word(), "accepted");
    // the program once more: its file was measured then
    scene.log.push(exec("/usr/bin/app", b"app", How::Enter));
    assert_eq!(next(&scene).verdict.word(), "accepted");
    scene.memory = remember(&scene);
    // a copy of it, a host where others come and go, and a further round
    scene.log.extend(executed(b"/tmp/copy", b"app", How::Enter));
    let other = TpmName::of_public(&[9]);
    let entry = |kind| LogEntry::new(kind, &other, RecordDigest::of(b"other"));
    scene.after.extend([entry(Kind::Bind), entry(Kind::Unbind)]);
    let said = next(&scene);
    assert_eq!(said.verdict.word(), "accepted");
    let ran: Vec<_> = said.container.measured.unwrap().executed;
    let ran: Vec<_> = ran.iter().map(|ran| ran.path.as_str()).collect();
    assert_eq!(ran, ["/usr/bin/app", "/tmp/copy"]);
}

/// Wherever the log was cut, the rest is judged as the whole is.
#[test]
fn each_cut_comes_to_the_same() {
    let mut scene = Scene::new();
    let start = scene.log.len() - 2;
    for (path, how) in [("/tmp/a", How::Enter), ("/usr/bin/app", How::Entrypoint)] {
        scene.log.extend(executed(path.as_bytes(), b"app", how));
    }
    scene.log.push(exec("/tmp/a", b"app", How::Enter));
    let full = scene.log.clone();
    for cut in start..=full.len() {
        scene.memory = Memory::none();
        scene.log = full[..cut].to_vec();
        scene.memory = remember(&scene);
        scene.log.clone_from(&full);
        assert_eq!(next(&scene).verdict.word(), "accepted", "after {cut}");
    }
    // before the start nothing is settled
    scene.memory = Memory::none();
    scene.log.truncate(start - 1);
    let appraisal = scene.appraise();
    assert_eq!(appraisal.verdict.word(), "accepted");
    assert_eq!(appraisal.rolling, None);
}

/// Each thing that only what is new shows.
#[test]
fn refuse_what_is_new_and_wrong() {
    let enter = |capabilities: &[&str], verdict| {
        Event::Enter(Enter {
            path: "/usr/bin/app".into(),
            digest: Some(FileDigest::of(b"app")),
            capabilities: capabilities.iter().map(ToString::to_string).collect(),
            verdict,
            user: Ids { uid: 0, gid: 0 },
            tty: false,
            reason: String::new(),
        })
    };
    let fault = Event::Fault(Fault {
        kind: "denied".into(),
        detail: "x".into(),
    });
    use crate::event::EnterVerdict::{Allowed, Denied};
    for (events, expected) in [
        (vec![Event::Start], vec!["container L-FIRST"]),
        (vec![fault], vec!["container P-FAULT"]),
        (vec![enter(&[], Denied)], vec!["container P-FAULT"]),
        (
            vec![enter(&["CAP_SYS_ADMIN"], Allowed)],
            vec!["container C-CAPS"],
        ),
    ] {
        let mut scene = Scene::new();
        scene.memory = remember(&scene);
        let entries = events.iter().map(|event| event.to_entry().unwrap());
        scene.log.extend(entries);
        assert_eq!(with(&next(&scene), "refused"), expected);
    }
    for (path, content, expected) in [
        ("/tmp/evil", "evil", "container P-UNLISTED"),
        ("/usr/bin/app", "other", "container P-HASH"),
    ] {
        let mut scene = Scene::new();
        scene.memory = remember(&scene);
        let entries = executed(path.as_bytes(), content.as_bytes(), How::Enter);
        scene.log.extend(entries);
        let appraisal = next(&scene);
        assert!(with(&appraisal, "refused").contains(&expected.to_owned()));
        assert_eq!(
            appraisal.rolling, None,
            "refused, so all of it is read again"
        );
        // a record of a program whose file nobody measured, now or then
        scene.log.truncate(Scene::new().log.len());
        let entry = exec("/usr/bin/none", content.as_bytes(), How::Enter);
        scene.log.push(entry);
        assert_eq!(with(&next(&scene), "refused"), ["container P-UNLISTED"]);
    }
}

#[test]
fn refuse_containers_that_ended_meanwhile() {
    let mut scene = Scene::new();
    scene.memory = remember(&scene);
    let r = scene.record().digest().unwrap();
    let ak = scene.claim.vtpm_ak_name;
    scene.after.push(LogEntry::new(Kind::Unbind, &ak, r));
    assert_eq!(with(&next(&scene), "refused"), ["container B-LIVE"]);
    scene.after = vec![LogEntry::new(Kind::Bind, &ak, r)];
    assert_eq!(with(&next(&scene), "refused"), ["container B-LIVE"]);
    scene.after = vec![LogEntry::new(Kind::Bind, &ak, RecordDigest::of(b"other"))];
    assert_eq!(
        with(&next(&scene), "refused"),
        ["container K-DISTINCT", "container B-LIVE"]
    );
}

/// What is left out counts by these expectations, of this record and these keys, and as it was.
#[test]
fn refuse_beginnings_that_are_not_remembered() {
    let mut scene = Scene::new();
    scene.memory = remember(&scene);
    let evidence = rest(&scene);
    let left_out = ["container B-HASH", "host L-CONT", "container L-CONT"];
    let refuses = |scene: &Scene, evidence: &Evidence| {
        let refused = with(&scene.appraise_evidence(evidence), "refused");
        for check in left_out {
            assert!(refused.contains(&check.to_owned()), "{check}: {refused:?}");
        }
    };
    // other expectations: nothing is said to be known, and nothing is taken as known
    let mut other = Scene::new();
    other.memory = remember(&scene);
    other.expect.max_age_secs += 1;
    assert!(
        other
            .memory
            .rolling()
            .unwrap()
            .has(&standard(&other))
            .is_nothing()
    );
    refuses(&other, &evidence);
    // nobody who was never asked, and nobody who kept evidence
    for memory in [Memory::none(), Memory::Kept] {
        scene.memory = memory;
        refuses(&scene, &evidence);
    }
    // another record under the same key
    scene.memory = remember(&scene);
    scene.claim.created = UnixTime::from_secs(NOW.secs() - 1);
    let evidence = rest(&scene);
    assert_eq!(evidence.log_from.host, 0);
    let refused = with(&scene.appraise_evidence(&evidence), "refused");
    assert!(
        refused.contains(&"container L-CONT".to_owned()),
        "{refused:?}"
    );
}

/// A list that was left out counts only for who kept it, and expires all the same.
#[test]
fn a_list_is_left_out() {
    let mut scene = Scene::new();
    // made anew each time, a signature is another one
    let (statement, signature) = (list(&scene).statement().to_vec(), list(&scene));
    let signature = signature.signature().to_vec();
    let signed = signature.clone();
    scene.edit_evidence = Box::new(move |evidence| evidence.siglist_sig.clone_from(&signed));
    scene.expect.max_age_secs = 7200;
    scene.memory = remember(&scene);
    let evidence = rest(&scene);
    assert!(evidence.log_from.siglist && evidence.siglist.is_empty());
    assert_eq!(next(&scene).verdict.word(), "accepted");
    scene.now = UnixTime::from_secs(NOW.secs() + 3600);
    let refused = with(&scene.appraise_evidence(&evidence), "refused");
    assert_eq!(refused, ["container P-SIGLIST"]);
    scene.now = NOW;
    let Memory::Fresh { siglist, .. } = &mut scene.memory else {
        panic!("fresh");
    };
    *siglist = Some(Arc::new(KeptList::new(statement, vec![0; signature.len()])));
    let refused = with(&scene.appraise_evidence(&evidence), "refused");
    assert!(
        refused.contains(&"container P-SIGLIST".to_owned()),
        "{refused:?}"
    );
    let Memory::Fresh { siglist, .. } = &mut scene.memory else {
        panic!("fresh");
    };
    *siglist = None;
    let refused = with(&scene.appraise_evidence(&evidence), "refused");
    assert!(
        refused.contains(&"container P-SIGLIST".to_owned()),
        "{refused:?}"
    );
}

#[test]
fn refuse_rests_that_do_not_fit() {
    let mut scene = Scene::new();
    scene.memory = remember(&scene);
    scene.log.push(exec("/usr/bin/app", b"app", How::Enter));
    let good = rest(&scene);
    // an entry is held back, or one that was known comes again
    for log in [vec![], good.container_log.repeat(2)] {
        let mut evidence = good.clone();
        evidence.container_log = log;
        let refused = with(&scene.appraise_evidence(&evidence), "refused");
        assert_eq!(refused, ["container Q-PCRDIG", "container L-REPLAY"]);
    }
    // another beginning is said to be left out
    for (container, host) in [(-1, 0), (1, 0), (0, -1), (0, 1)] {
        let mut evidence = good.clone();
        let from = &mut evidence.log_from;
        from.container = from.container.checked_add_signed(container).unwrap();
        from.host = from.host.checked_add_signed(host).unwrap();
        let refused = with(&scene.appraise_evidence(&evidence), "refused");
        let whose = if host == 0 { "container" } else { "host" };
        assert!(refused.contains(&format!("{whose} L-CONT")), "{refused:?}");
    }
}

/// Another challenger's answer came in between: this one's state is older than what the TPM was seen to be.
#[test]
fn accept_and_refuse_against_later_states() {
    let mut scene = Scene::new();
    let Memory::Fresh { rolling, .. } = remember(&scene) else {
        panic!("fresh");
    };
    scene.log.push(exec("/usr/bin/app", b"app", How::Enter));
    let Memory::Fresh {
        host, container, ..
    } = remember(&scene)
    else {
        panic!("fresh");
    };
    scene.memory = Memory::Fresh {
        host,
        container,
        list_serial: 1,
        rolling,
        siglist: None,
    };
    assert_eq!(next(&scene).verdict.word(), "accepted");
    // and what was seen in between is gone
    scene.log.pop();
    assert_eq!(with(&next(&scene), "refused"), ["container L-CONT"]);
    scene
        .log
        .push(exec("/usr/bin/app", b"app", How::Entrypoint));
    assert_eq!(with(&next(&scene), "refused"), ["container L-CONT"]);
}

#[test]
fn the_hosts_list_goes_on() {
    let listed = file("ima-ng", b"/usr/bin/l_s", b"ls");
    let mut scene = host(&[]);
    scene.memory = remember(&scene);
    assert_eq!(rest(&scene).host_ima, b"");
    assert_eq!(next(&scene).verdict.word(), "accepted");
    scene.host_ima.extend(&listed);
    assert_eq!(rest(&scene).host_ima, listed);
    assert_eq!(next(&scene).verdict.word(), "accepted");
    scene.memory = remember(&scene);
    for (entry, word) in [
        (file("ima-ng", b"/usr/bin/nc", b"nc"), "refused"),
        (violation(b"/usr/bin/l_s"), "refused"),
        (listed.clone(), "accepted"),
    ] {
        let known = scene.host_ima.len();
        scene.host_ima.extend(entry);
        let appraisal = next(&scene);
        assert_eq!(appraisal.verdict.word(), word);
        scene.host_ima.truncate(known);
    }
    // a host that shows none any more, and a rest of another list
    let mut evidence = rest(&scene);
    evidence.log_from.ima += 1;
    let refused = with(&scene.appraise_evidence(&evidence), "refused");
    assert_eq!(refused, ["host P-HOST"]);
    // PCRs 0 to 9 are compared each time
    edit(&mut scene, "\"boot\":\"sha256:", "\"boot\":\"sha256:0");
    assert_eq!(
        with(&scene.appraise_evidence(&rest(&scene)), "refused"),
        ["host P-HOST"]
    );
}

/// What is remembered, with another beginning of a digest.
fn edit(scene: &mut Scene, from: &str, to: &str) {
    let Memory::Fresh { rolling, .. } = &mut scene.memory else {
        panic!("fresh");
    };
    let mut text = serde_json::to_string(rolling.as_deref().unwrap()).unwrap();
    let end = text.find(from).unwrap() + from.len();
    text.replace_range(end - from.len()..=end, to);
    *rolling = Some(Arc::new(serde_json::from_str(&text).unwrap()));
}

/// What was shown ahead of a quote is in the next one.
#[test]
fn refuse_entries_that_stay_ahead_of_the_quote() {
    let ahead = file("ima-ng", b"/usr/bin/l_s", b"ls");
    let mut scene = host(&[]);
    let (list, more) = (scene.host_ima.clone(), ahead.clone());
    scene.edit_evidence = Box::new(move |evidence| evidence.host_ima.extend(&more));
    scene.memory = remember(&scene);
    assert_eq!(rest(&scene).host_ima, ahead);
    assert_eq!(
        with(&scene.appraise_evidence(&rest(&scene)), "refused"),
        ["host P-HOST"]
    );
    scene.host_ima = [list, ahead].concat();
    scene.edit_evidence = Box::new(|_| ());
    assert_eq!(next(&scene).verdict.word(), "accepted");
}
