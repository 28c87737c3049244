//! What is accepted, what each check refuses, and that nothing can be altered.

use super::scene::Scene;
use super::*;
use crate::testkit::NOW;

mod alterations;
mod files;
mod host;
mod launches;
mod lists;
mod logs;
mod memory;
mod modes;
mod quotes;
mod records;
mod released;
mod rolling;

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

#[test]
fn refuse_stale_and_future_answers() {
    for seconds in [61, -1] {
        let mut scene = Scene::new();
        scene.now = UnixTime::from_secs(NOW.secs() + seconds);
        assert_refused(&scene, &["host T-AGE", "container T-AGE"]);
    }
}
