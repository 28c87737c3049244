//! Quotes, their keys and the root (Q-…, K-…, H-ROOT).

use super::*;
use crate::binding::{Kind, LogEntry};
use crate::digest::RecordDigest;
use crate::evidence::Root;
use crate::tpm2::softkey::SoftKey;
use crate::tpm2::{TpmName, alg};

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
        host_policy: None,
    };
    let evidence = scene.evidence();
    let question = Question {
        nonce: &scene.nonce,
        container: &scene.asked,
        channel_binding: b"tls",
        batch: true,
        asked_at: NOW,
    };
    let memory = Memory::none();
    let appraisal = appraise(
        &evidence,
        &question,
        &Standard::new(scene.expect.clone(), trust),
        NOW,
        &[],
        &memory,
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
fn refuse_other_host_pcrs() {
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| evidence.host_pcrs.0[0] = [4; 32]);
    assert_refused(&scene, &["host Q-PCRDIG"]);
}
