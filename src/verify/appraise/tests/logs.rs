//! The container's log (L-…).

use super::super::scene::executed;
use super::*;
use crate::digest::FileDigest;
use crate::event::{Event, Exec, How};
use crate::imalog::{EncodedPath, Entry};
use crate::pcr::PcrIndex;

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
        ("the entry point before the start", {
            let mut log = base.clone();
            let last = log.pop().unwrap();
            log.insert(start, last);
            log
        }),
        ("a process entered before the registers were closed", {
            let mut log = base.clone();
            log.splice(
                tier + 1..tier + 1,
                executed(b"/usr/bin/app", b"app", How::Enter),
            );
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
fn accept_a_listed_process_that_entered_before_the_start() {
    let mut scene = Scene::new();
    let start = scene
        .log
        .iter()
        .position(|e| Event::from_entry(e).is_ok_and(|e| e == Event::Start))
        .unwrap();
    scene
        .log
        .splice(start..start, executed(b"/usr/bin/app", b"app", How::Enter));
    assert_eq!(with(&scene.appraise(), "refused"), Vec::<String>::new());
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

/// What an outsider gets proves that the container is bound and quotes, and nothing of what it is.
#[test]
fn refuse_opaque_evidence_and_only_for_what_it_hides() {
    let scene = Scene::new();
    let clear = scene.evidence();
    assert_eq!(
        clear.tenant().as_deref(),
        Some(scene.expect.tenant.as_str())
    );
    let opaque = clear.opaque().unwrap();
    assert_eq!(opaque.record_digest(), clear.record_digest());
    assert_eq!(opaque.tenant(), None);
    let appraisal = scene.appraise_evidence(&opaque);
    let expected = ["host L-PARSE", "container P-OPAQUE", "container P-CERT"];
    let refused = with(&appraisal, "refused");
    for check in expected {
        assert!(refused.contains(&check.to_owned()), "{check}: {refused:?}");
    }
    let ok = with(&appraisal, "ok");
    for check in [
        "host Q-SIG",
        "host Q-QD",
        "container Q-SIG",
        "container Q-PCRDIG",
        "container L-REPLAY",
        "container B-ORDER",
    ] {
        assert!(ok.contains(&check.to_owned()), "{check}: {ok:?}");
    }
    assert_eq!(appraisal.verdict, Verdict::Refused);
}
