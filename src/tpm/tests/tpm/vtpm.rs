//! A container's vTPM, from the start of its process to a quote.

use crate::spawn::Swtpm;
use crate::{Raw, checkquote, pcr};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tpm::vtpm::{Error, Vtpm};
use verify::pcr::{Pcr, QUOTED};
use verify::tpm2::{AttestationKey, EndorsementKey, Public, verify_quote};

/// The uid range that the packaged configuration reserves.
const SOME_UID: u32 = 2_100_000_000;

#[test]
fn accept_a_quote_of_a_fresh_vtpm() {
    let start = Instant::now();
    let (_swtpm, stream) = Swtpm::vtpm();
    let spawned = start.elapsed();
    let mut vtpm = Vtpm::new(stream);
    vtpm.lock_down().unwrap();
    let locked = start.elapsed();
    let ek = vtpm.create_ek().unwrap();
    let ek_made = start.elapsed();
    let aik = vtpm.create_aik(&[5; 32]).unwrap();
    let aik_made = start.elapsed();

    let mut expected = [Pcr::ZERO; 12];
    for (index, value) in expected.iter_mut().enumerate() {
        let (sha1, sha256) = ([index as u8; 20], [index as u8 + 1; 32]);
        vtpm.extend(QUOTED[index], &sha1, &sha256).unwrap();
        value.extend(&sha1, &sha256);
    }
    let extended = start.elapsed();
    let qualifying_data = [0x5A; 32];
    let quote = vtpm.quote(&aik, &qualifying_data, &QUOTED).unwrap();
    let quoted = start.elapsed();
    println!(
        "vTPM: spawned {spawned:?}, locked down {locked:?}, EK {ek_made:?}, AIK {aik_made:?}, \
         12 PCRs {extended:?}, quote {quoted:?}"
    );

    for (index, value) in expected.iter().enumerate() {
        assert_eq!(vtpm.pcr_read(QUOTED[index]).unwrap(), *value);
    }
    let ek_public = Public::parse(&ek.public).unwrap();
    assert_eq!(EndorsementKey::check(&ek_public).unwrap().name(), ek.name);
    let key = AttestationKey::check(&Public::parse(&aik.public).unwrap()).unwrap();
    assert_eq!(key.name(), aik.name);
    let verified = verify_quote(
        &key,
        &quote.attest,
        &quote.signature,
        &qualifying_data,
        &QUOTED,
    )
    .unwrap();
    let sha256 = expected.map(|value| value.sha256);
    verified.explains(&sha256).unwrap();
    assert!(verified.safe());

    let clock = vtpm.read_clock().unwrap();
    assert_eq!(
        (verified.reset(), verified.restart()),
        (clock.reset_count, clock.restart_count)
    );

    let mut values: Vec<_> = QUOTED.into_iter().zip(sha256).collect();
    assert!(checkquote::accepts(
        &aik.public,
        &quote,
        &qualifying_data,
        &values
    ));
    // The other judge does judge.
    assert!(!checkquote::accepts(
        &aik.public,
        &quote,
        &[0x5B; 32],
        &values
    ));
    values[3].1[0] ^= 1;
    assert!(!checkquote::accepts(
        &aik.public,
        &quote,
        &qualifying_data,
        &values
    ));
    assert!(!checkquote::accepts(
        &ek.public,
        &quote,
        &qualifying_data,
        &values
    ));
}

#[test]
fn refuse_a_changed_quote() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut vtpm = Vtpm::new(stream);
    let aik = vtpm.create_aik(&[0; 32]).unwrap();
    let other = vtpm.create_ek().unwrap();
    let quote = vtpm.quote(&aik, &[1; 32], &QUOTED).unwrap();
    let key = AttestationKey::check(&Public::parse(&aik.public).unwrap()).unwrap();
    let verify = |attest: &[u8], signature: &[u8], data| {
        verify_quote(&key, attest, signature, data, &QUOTED)
    };
    assert!(verify(&quote.attest, &quote.signature, &[1; 32]).is_ok());
    assert!(verify(&quote.attest, &quote.signature, &[2; 32]).is_err());
    for index in 0..quote.attest.len() {
        let mut attest = quote.attest.clone();
        attest[index] ^= 1;
        assert!(
            verify(&attest, &quote.signature, &[1; 32]).is_err(),
            "byte {index}"
        );
    }
    let eleven = &QUOTED[..11];
    assert!(verify_quote(&key, &quote.attest, &quote.signature, &[1; 32], eleven).is_err());
    assert!(AttestationKey::check(&Public::parse(&other.public).unwrap()).is_err());
}

#[test]
fn refuse_a_quote_over_nothing() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut vtpm = Vtpm::new(stream);
    let aik = vtpm.create_aik(&[0; 32]).unwrap();
    assert!(matches!(
        vtpm.quote(&aik, &[0; 32], &[]),
        Err(Error::EmptySelection)
    ));
}

#[test]
fn no_two_vtpms_have_the_same_keys() {
    let keys = || {
        let (_swtpm, stream) = Swtpm::vtpm();
        let mut vtpm = Vtpm::new(stream);
        (
            vtpm.create_ek().unwrap().name,
            vtpm.create_aik(&[0; 32]).unwrap().name,
        )
    };
    let (first, second) = (keys(), keys());
    assert_ne!(first.0, second.0);
    assert_ne!(first.1, second.1);
}

#[test]
fn keys_are_flushed() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut vtpm = Vtpm::new(stream);
    for _ in 0..8 {
        let key = vtpm.create_ek().unwrap();
        vtpm.flush(key).unwrap();
    }
}

#[test]
fn random_bytes_differ() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut vtpm = Vtpm::new(stream);
    assert_ne!(vtpm.get_random().unwrap(), vtpm.get_random().unwrap());
}

/// Without privileges, under a system call filter, and nothing to connect to.
#[test]
fn swtpm_needs_no_privilege() {
    let uid = rustix::process::geteuid().is_root().then_some(SOME_UID);
    let (swtpm, stream) = Swtpm::vtpm_as(uid);
    let mut vtpm = Vtpm::new(stream);
    let aik = vtpm.create_aik(&[0; 32]).unwrap();
    vtpm.quote(&aik, &[0; 32], &QUOTED).unwrap();

    let status = fs::read_to_string(format!("/proc/{}/status", swtpm.pid())).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a field");
        line.split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    if let Some(uid) = uid {
        assert_eq!(field("Uid:"), vec![uid.to_string(); 4]);
        assert_eq!(field("Gid:"), vec![uid.to_string(); 4]);
        assert!(field("Groups:").is_empty());
    }
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!(field("CapPrm:"), ["0000000000000000"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Seccomp:"), ["2"]);
    // Three standard descriptors, the data channel, the lock file, an internal pipe: no listener.
    for descriptor in fs::read_dir(format!("/proc/{}/fd", swtpm.pid())).unwrap() {
        let descriptor = descriptor.unwrap();
        let target = fs::read_link(descriptor.path()).unwrap();
        // what whoever runs the tests left open (a lock that they run under) is not the point
        let ours = Path::new("/proc/self/fd").join(descriptor.file_name());
        if fs::read_link(ours).is_ok_and(|ours| ours == target) {
            continue;
        }
        let target = target.to_string_lossy();
        assert!(
            ["/dev/null", "socket:", "pipe:"]
                .iter()
                .any(|kind| target.starts_with(kind))
                || target.ends_with("/.lock"),
            "{target}"
        );
    }
}

#[test]
fn swtpm_ends_with_its_client() {
    let (mut swtpm, stream) = Swtpm::vtpm();
    let mut vtpm = Vtpm::new(stream);
    vtpm.get_random().unwrap();
    drop(vtpm);
    let status = swtpm
        .ended(Duration::from_secs(5))
        .expect("swtpm has ended");
    assert!(status.success());
}

#[test]
fn a_dead_vtpm_stays_dead() {
    let (mut swtpm, stream) = Swtpm::vtpm();
    let mut vtpm = Vtpm::new(stream);
    vtpm.get_random().unwrap();
    swtpm.kill();
    let text = vtpm.get_random().unwrap_err().to_string();
    assert_eq!(
        text,
        "TPM2_GetRandom: the vTPM's process has closed the connection"
    );
    assert!(matches!(
        vtpm.extend(pcr(0), &[0; 20], &[0; 32]),
        Err(Error::Broken { .. })
    ));
}

/// The guard's own filter aside, PCRs 0 to 15 cannot be reset.
#[test]
fn refusals_name_command_and_reason() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut raw = Raw(stream.try_clone().unwrap());
    let mut vtpm = Vtpm::new(stream);
    vtpm.lock_down().unwrap();
    let text = vtpm.lock_down().unwrap_err().to_string();
    assert!(
        text.starts_with("TPM2_HierarchyControl: the vTPM refused: "),
        "{text}"
    );
    // A refusal does not break the connection.
    vtpm.get_random().unwrap();
    drop(vtpm);
    let reset = raw.on(tpm::wire::Code::PCR_RESET, 10, Default::default());
    assert_eq!(reset.unwrap_err().name(), Some("LOCALITY"));
}
