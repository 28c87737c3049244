//! Nothing that is signed or hashed can be altered.

use super::*;
use crate::imalog::{self, Entry};

/// Flipping any bit of evidence, all of which is signed or hashed, never ends in acceptance.
#[test]
fn refuse_flipped_bits() {
    let mut scene = Scene::new();
    // shown, and not judged: it must be the TPM's all the same
    scene.host_ima = imalog::kernel::testkit::file("ima-ng", b"/usr/bin/a", b"a");
    let evidence = scene.evidence();
    type Item = fn(&mut Evidence) -> &mut [u8];
    // Every `step`-th bit; the modules of the structures flip every bit of theirs.
    let items: [(&str, usize, Item); 13] = [
        ("host/ima", 3, |e| &mut e.host_ima),
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
