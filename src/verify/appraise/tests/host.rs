//! The host's IMA list: what is accepted, and what each entry that is not as it should be comes to.

use super::*;
use crate::digest::FileDigest;
use crate::hostlist::HostPolicy;
use crate::imalog::kernel::testkit::{file, pcr, raw, violation};
use sha2::{Digest as _, Sha256};

/// PCRs 0 to 9 of the scene's host.
fn boot_aggregate() -> Vec<u8> {
    let digest: [u8; 32] = Sha256::digest([3; 320]).into();
    let digest = [b"sha256:\0", &digest[..]].concat();
    raw("ima-ng", &[digest, b"boot_aggregate\0".to_vec()])
}

/// A host that ran attestrun and swtpm, then these.
pub(super) fn host(further: &[Vec<u8>]) -> Scene {
    list(&boot_aggregate(), further)
}

fn list(first: &[u8], further: &[Vec<u8>]) -> Scene {
    let mut scene = Scene::new();
    let known = |path: &str, digest: FileDigest| {
        let digest = [b"sha256:\0", &digest.as_bytes()[..]].concat();
        raw("ima-ng", &[digest, format!("{path}\0").into_bytes()])
    };
    let (runtime, swtpm) = (scene.claim.runtime, scene.claim.swtpm);
    let mut ima = first.to_vec();
    ima.extend(known("/usr/sbin/attestrun", runtime));
    ima.extend(known("/usr/bin/swtpm", swtpm));
    further.iter().for_each(|entry| ima.extend(entry));
    scene.host_ima = ima;
    scene.expect.waive.retain(|waiver| *waiver != Waiver::NoIma);
    let digest = FileDigest::of(b"ls");
    let text = format!(
        "version = 1\nlist = \"{digest}\"\nname = \"hosts\"\nserial = 1\nclass = \"web\"\n\
         expires_at = \"2100-01-01T00:00:00Z\"\n[files]\n\"/usr/sbin/attestrun\" = [\"{runtime}\"]\n\
         \"/usr/bin/swtpm\" = [\"{swtpm}\"]\n\"/usr/bin/l%20s\" = [\"{digest}\"]\n"
    );
    scene.host_policy = Some(HostPolicy::parse(&text).unwrap());
    scene
}

/// Why P-HOST refuses.
fn refusal(scene: &Scene) -> String {
    let appraisal = scene.appraise();
    let found = appraisal.findings.iter().find(|f| f.check == Check::PHost);
    match &found.unwrap().outcome {
        Outcome::Refused { why } => why.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn accept_listed_programs() {
    for further in [
        vec![],
        vec![file("ima-sig", b"/usr/bin/l_s", b"ls")],
        vec![
            file("ima-ngv2", b"/tmp/copy", b"ls"),
            file("ima-ng", b"/usr/bin/l_s", b"ls"),
        ],
    ] {
        let scene = host(&further);
        let appraisal = scene.appraise();
        assert_eq!(
            with(&appraisal, "refused"),
            [""; 0],
            "{:#?}",
            appraisal.findings
        );
        assert_eq!(
            with(&appraisal, "waived"),
            ["host H-ROOT", "container T-TIER"]
        );
        assert!(matches!(appraisal.verdict, Verdict::Accepted(_)));
    }
}

#[test]
fn refuse_what_is_not_listed() {
    for (further, words) in [
        (file("ima-ng", b"/usr/bin/nc", b"nc"), "/usr/bin/nc"),
        (file("ima-ng", b"/usr/bin/l_s", b"other"), "has content"),
        (violation(b"/usr/bin/l_s"), "violation"),
        (
            raw(
                "ima-buf",
                &[b"sha256:\0".to_vec(), b"kexec-cmdline\0".to_vec(), vec![]],
            ),
            "kexec-cmdline",
        ),
        (
            raw(
                "ima-ng",
                &[
                    b"sha1:\0aaaaaaaaaaaaaaaaaaaa".to_vec(),
                    b"/usr/bin/l_s\0".to_vec(),
                ],
            ),
            "sha1",
        ),
    ] {
        let why = refusal(&host(&[further]));
        assert!(why.contains(words), "{why}");
    }
    let many: Vec<_> = (0..50).map(|n: u8| file("ima-ng", b"/x", &[n])).collect();
    assert!(refusal(&host(&many)).ends_with("and 42 more"));
}

#[test]
fn refuse_lists_that_explain_nothing() {
    let mut short = host(&[file("ima-ng", b"/usr/bin/l_s", b"ls")]);
    short.edit_evidence = Box::new(|evidence| {
        let length = evidence.host_ima.len();
        evidence
            .host_ima
            .truncate(length - file("ima-ng", b"/usr/bin/l_s", b"ls").len());
    });
    assert!(refusal(&short).contains("does not explain"));
    let mut torn = host(&[]);
    torn.edit_evidence = Box::new(|evidence| evidence.host_ima.truncate(100));
    assert!(refusal(&torn).contains("IMA list"));
    // entries that are newer than the quote are judged too
    let mut newer = host(&[]);
    newer.edit_evidence = Box::new(|evidence| {
        evidence
            .host_ima
            .extend(file("ima-ng", b"/usr/bin/nc", b"nc"));
    });
    assert!(refusal(&newer).contains("/usr/bin/nc"));
    let other_boot = file("ima-ng", b"boot_aggregate", b"another boot");
    assert!(refusal(&list(&other_boot, &[])).contains("boot_aggregate"));
    assert!(refusal(&list(b"", &[])).contains("does not begin with"));
}

#[test]
fn refuse_a_host_that_does_not_measure_programs() {
    let mut scene = host(&[]);
    scene.host_ima = boot_aggregate();
    let why = refusal(&scene);
    assert!(why.contains("attestrun") && why.contains("swtpm"), "{why}");
    let mut late = host(&[]);
    let text = late.host_policy.as_ref().unwrap().to_toml().unwrap();
    late.host_policy = HostPolicy::parse(&text.replace("2100", "2001")).ok();
    assert!(refusal(&late).contains("ran out"));
}

/// What is absent is unknown, and a waiver lets it pass by name; what is wrong is not waived.
#[test]
fn absent_is_not_wrong() {
    let mut none = host(&[]);
    none.host_ima.clear();
    assert_eq!(with(&none.appraise(), "unknown"), ["host P-HOST"]);
    let mut unnamed = host(&[]);
    unnamed.host_policy = None;
    assert_eq!(with(&unnamed.appraise(), "unknown"), ["host P-HOST"]);
    let mut wrong = host(&[violation(b"/x")]);
    wrong.expect.waive.push(Waiver::NoIma);
    assert!(refusal(&wrong).contains("violation"));
    assert_eq!(pcr(b""), [0; 32]);
}
