//! The host TPM through tss-esapi. An swtpm plays it: always a software root.

use crate::spawn::{Swtpm, TempDir, tool};
use crate::{checkquote, pcr};
use std::time::Instant;
use tpm::host::{AikBlob, HostError, HostTpm, HostTpmConfig, Root};
use verify::pcr::{HOST_BINDING_PCR, HOST_QUOTED, extend_sha256};
use verify::tpm2::{
    AttestationKey, EndorsementKey, Public, TpmName, aik_template, make_credential, verify_quote,
};

fn tcti(port: u16) -> String {
    format!("swtpm:host=127.0.0.1,port={port}")
}

fn open(port: u16) -> Result<HostTpm, HostError> {
    HostTpm::open(&HostTpmConfig { tcti: tcti(port) })
}

/// The blob with another authorization value; the file's last 32 bytes.
fn with_auth(blob: &AikBlob, auth: [u8; 32]) -> AikBlob {
    let mut bytes = blob.encode();
    let at = bytes.len() - auth.len();
    bytes[at..].copy_from_slice(&auth);
    AikBlob::parse(&bytes).unwrap()
}

#[test]
fn accept_a_quote_of_the_host() {
    let (_swtpm, port) = Swtpm::host();
    let start = Instant::now();
    let mut host = open(port).unwrap();
    let opened = start.elapsed();
    assert_eq!(host.kind(), Root::Software);
    let blob = host.create_aik().unwrap();
    let created = start.elapsed();
    host.load_aik(&blob).unwrap();
    let loaded = start.elapsed();

    assert_eq!(host.pcr_read(HOST_BINDING_PCR).unwrap(), [0; 32]);
    host.pcr_extend(HOST_BINDING_PCR, [7; 32]).unwrap();
    let extended = start.elapsed();
    let quote = host.quote(&[9; 32], &HOST_QUOTED).unwrap();
    let quoted = start.elapsed();
    println!(
        "host TPM: opened {opened:?}, AIK made {created:?}, loaded {loaded:?}, extended {extended:?}, \
         quote {quoted:?}"
    );

    let mut values = [[0; 32]; HOST_QUOTED.len()];
    values[13] = extend_sha256(&[0; 32], &[7; 32]);
    assert_eq!(host.pcr_read(HOST_BINDING_PCR).unwrap(), values[13]);
    let public = host.aik_public().unwrap().to_vec();
    assert_eq!(public, blob.public());
    let key = AttestationKey::check(&Public::parse(&public).unwrap()).unwrap();
    assert_eq!(key.name(), host.aik_name().unwrap());
    assert_eq!(key.name(), blob.name());
    let verified = verify_quote(
        &key,
        &quote.attest,
        &quote.signature,
        &[9; 32],
        &HOST_QUOTED,
    )
    .unwrap();
    verified.explains(&values).unwrap();

    // A child of the endorsement key shows the counters in clear.
    let clock = host.read_clock().unwrap();
    assert_eq!(
        (verified.reset(), verified.restart()),
        (clock.reset_count, clock.restart_count)
    );
    assert_eq!(host.reset_count().unwrap(), clock.reset_count);

    let values: Vec<_> = HOST_QUOTED.into_iter().zip(values).collect();
    assert!(checkquote::accepts(&public, &quote, &[9; 32], &values));
    assert!(!checkquote::accepts(&public, &quote, &[8; 32], &values));
}

/// SHA-1 of the value, in the other bank, as tpm2-tools see it.
#[test]
fn both_banks_are_extended() {
    use sha1::{Digest as _, Sha1};
    let (_swtpm, port) = Swtpm::host();
    let mut host = open(port).unwrap();
    host.pcr_extend(HOST_BINDING_PCR, [7; 32]).unwrap();
    drop(host);
    let directory = TempDir::new();
    let arguments = ["-T", &tcti(port), "-Q", "-o", "values", "sha1:13+sha256:13"];
    assert!(
        tool("tpm2_pcrread", &arguments, directory.path())
            .status
            .success()
    );
    let values = std::fs::read(directory.path().join("values")).unwrap();
    let sha1 = Sha1::new_with_prefix([0; 20])
        .chain_update(Sha1::digest([7; 32]))
        .finalize();
    assert_eq!(values[..20], *sha1);
    assert_eq!(values[20..], extend_sha256(&[0; 32], &[7; 32]));
}

/// The key outlives the machine's boots, and the boots are counted.
#[test]
fn accept_the_key_after_a_reboot() {
    let (swtpm, port) = Swtpm::host();
    let mut host = open(port).unwrap();
    let blob = host.create_aik().unwrap();
    let before = host.reset_count().unwrap();
    drop(host);
    let (_swtpm, port) = swtpm.reboot_host();
    let mut host = open(port).unwrap();
    host.load_aik(&AikBlob::parse(&blob.encode()).unwrap())
        .unwrap();
    host.quote(&[0; 32], &HOST_QUOTED).unwrap();
    assert_eq!(host.reset_count().unwrap(), before + 1);
}

/// Whoever may open the TPM but not the key's file cannot sign with the key, and trying does not
/// lock out those who can (noDA).
#[test]
fn refuse_a_wrong_authorization_value() {
    let (_swtpm, port) = Swtpm::host();
    let mut host = open(port).unwrap();
    let blob = host.create_aik().unwrap();
    for guess in [[0; 32], [1; 32]] {
        host.load_aik(&with_auth(&blob, guess)).unwrap();
        for _ in 0..5 {
            let error = host.quote(&[0; 32], &HOST_QUOTED).unwrap_err();
            assert!(matches!(error, HostError::KeyAuth { .. }), "{error}");
        }
    }
    host.load_aik(&blob).unwrap();
    host.quote(&[0; 32], &HOST_QUOTED).unwrap();
}

/// The template alone gives other keys: neither a primary nor another child is this one.
#[test]
fn refuse_to_make_the_key_again() {
    let (_swtpm, port) = Swtpm::host();
    let mut host = open(port).unwrap();
    let blob = host.create_aik().unwrap();
    assert_ne!(host.create_aik().unwrap().name(), blob.name());
    drop(host);

    let directory = TempDir::new();
    let path = directory.path();
    let tcti = tcti(port);
    let run = |name: &str, arguments: &str| {
        let arguments: Vec<_> = ["-T", &tcti]
            .into_iter()
            .chain(arguments.split_whitespace())
            .collect();
        let output = tool(name, &arguments, path);
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let primary = || {
        run(
            "tpm2_createprimary",
            "-Q -C e -g sha256 -G ecc256:ecdsa-sha256:null -c key \
             -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign",
        );
        run("tpm2_flushcontext", "-t");
        run("tpm2_readpublic", "-Q -c key -n name");
        run("tpm2_flushcontext", "-t");
        std::fs::read(path.join("name")).unwrap()
    };
    // A primary is the same each time, whoever asks; so an AIK must not be one.
    let first = primary();
    assert_eq!(first, primary());
    assert_ne!(first, blob.name().as_bytes());
}

#[test]
fn refuse_a_key_of_another_tpm() {
    let (_one, port_one) = Swtpm::host();
    let (_two, port_two) = Swtpm::host();
    let blob = open(port_one).unwrap().create_aik().unwrap();
    let error = open(port_two).unwrap().load_aik(&blob).unwrap_err();
    assert!(matches!(error, HostError::ForeignKey { .. }), "{error}");
}

#[test]
fn refuse_a_changed_key_file() {
    let (_swtpm, port) = Swtpm::host();
    let mut host = open(port).unwrap();
    let bytes = host.create_aik().unwrap().encode();
    // Every byte but those of the authorization value, which only the quote tells.
    for index in (0..bytes.len() - 32).step_by(3) {
        let mut changed = bytes.clone();
        changed[index] ^= 0x10;
        if let Ok(blob) = AikBlob::parse(&changed) {
            assert!(host.load_aik(&blob).is_err(), "byte {index}");
            assert!(matches!(
                host.quote(&[0; 32], &HOST_QUOTED),
                Err(HostError::NoAik)
            ));
        }
    }
}

#[test]
fn refuse_to_quote_without_a_key_or_over_nothing() {
    let (_swtpm, port) = Swtpm::host();
    let mut host = open(port).unwrap();
    assert!(matches!(
        host.quote(&[0; 32], &HOST_QUOTED),
        Err(HostError::NoAik)
    ));
    assert!(matches!(host.aik_name(), Err(HostError::NoAik)));
    assert!(host.quote(&[0; 32], &[]).is_err());
}

/// PCR 13 can be reset by nobody, which is why it and not 16 or 23 holds the binding log.
#[test]
fn the_binding_pcr_cannot_be_reset() {
    let (_swtpm, port) = Swtpm::host();
    let mut host = open(port).unwrap();
    host.pcr_extend(HOST_BINDING_PCR, [1; 32]).unwrap();
    let before = host.pcr_read(HOST_BINDING_PCR).unwrap();
    drop(host);
    let directory = TempDir::new();
    let reset = |index| {
        tool(
            "tpm2_pcrreset",
            &["-T", &tcti(port), index],
            directory.path(),
        )
    };
    assert!(!reset("13").status.success());
    assert!(reset("16").status.success());
    assert_eq!(
        open(port).unwrap().pcr_read(HOST_BINDING_PCR).unwrap(),
        before
    );
}

/// A predecessor that was killed leaves its keys loaded where no resource manager is.
#[test]
fn accept_a_tpm_full_of_left_over_keys() {
    let (_swtpm, port) = Swtpm::host();
    let blob = open(port).unwrap().create_aik().unwrap();
    for _ in 0..6 {
        let mut host = open(port).unwrap();
        host.load_aik(&blob).unwrap();
        std::mem::forget(host);
    }
    let mut host = open(port).unwrap();
    host.load_aik(&blob).unwrap();
    host.quote(&[0; 32], &[pcr(13)]).unwrap();
}

#[test]
fn sessions_and_keys_are_not_used_up() {
    let (_swtpm, port) = Swtpm::host();
    let mut host = open(port).unwrap();
    let blob = host.create_aik().unwrap();
    for _ in 0..20 {
        host.load_aik(&blob).unwrap();
        host.quote(&[0; 32], &HOST_QUOTED).unwrap();
        assert!(host.load_aik(&with_auth(&blob, [0; 32])).is_ok());
        assert!(host.quote(&[0; 32], &HOST_QUOTED).is_err());
    }
}

#[test]
fn refuse_an_endorsement_hierarchy_with_authorization() {
    let (_swtpm, port) = Swtpm::host();
    let directory = TempDir::new();
    let change = ["-T", &tcti(port), "-c", "endorsement", "secret"];
    assert!(
        tool("tpm2_changeauth", &change, directory.path())
            .status
            .success()
    );
    let mut host = open(port).unwrap();
    let error = host.create_aik().unwrap_err();
    assert!(
        matches!(error, HostError::EndorsementAuth { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("tpm2_changeauth -c endorsement"),
        "{error}"
    );
}

#[test]
fn refuse_a_tpm_without_sha256_bank() {
    let (swtpm, port) = Swtpm::host();
    let directory = TempDir::new();
    let allocate = ["-T", &tcti(port), "sha1:all+sha256:none"];
    assert!(
        tool("tpm2_pcrallocate", &allocate, directory.path())
            .status
            .success()
    );
    let (_swtpm, port) = swtpm.reboot_host();
    assert!(matches!(open(port), Err(HostError::NoSha256Bank)));
}

#[test]
fn accept_a_tpm_without_sha1_bank() {
    let (swtpm, port) = Swtpm::host();
    let directory = TempDir::new();
    let allocate = ["-T", &tcti(port), "sha1:none+sha256:all"];
    assert!(
        tool("tpm2_pcrallocate", &allocate, directory.path())
            .status
            .success()
    );
    let (_swtpm, port) = swtpm.reboot_host();
    let mut host = open(port).unwrap();
    host.pcr_extend(HOST_BINDING_PCR, [1; 32]).unwrap();
    assert_eq!(
        host.pcr_read(HOST_BINDING_PCR).unwrap(),
        extend_sha256(&[0; 32], &[1; 32])
    );
}

#[test]
fn refuse_a_tpm_that_is_not_there() {
    let device = HostTpmConfig {
        tcti: "device:/nonexistent/tpmrm0".to_owned(),
    };
    let error = HostTpm::open(&device).unwrap_err();
    assert!(matches!(error, HostError::NoDevice(_)), "{error}");
    let (mut swtpm, port) = Swtpm::host();
    swtpm.kill();
    let error = open(port).unwrap_err();
    assert!(matches!(error, HostError::Open { .. }), "{error}");
    println!("{error}");
}

/// The host service hands its TPM to one thread.
#[test]
fn a_host_tpm_can_change_threads() {
    fn sendable<T: Send>() {}
    sendable::<HostTpm>();
}

/// A credential for the two keys is opened by the TPM that has them, and by no other; not for another name.
#[test]
fn a_credential_is_opened_by_its_two_keys_alone() {
    let (_swtpm, port) = Swtpm::host();
    let mut host = open(port).unwrap();
    let blob = host.create_aik().unwrap();
    host.load_aik(&blob).unwrap();
    let ek = host.ek_public().unwrap();
    let ek = EndorsementKey::check(&Public::parse(&ek).unwrap()).unwrap();
    let secret = [0x5A; 32];
    let made = |name: &TpmName| make_credential(&ek, name, &secret, &[7; 32]).unwrap();
    let good = made(&host.aik_name().unwrap());
    assert_eq!(host.activate(&good).unwrap(), secret);
    assert_eq!(
        host.activate(&good).unwrap(),
        secret,
        "keys and sessions are not used up"
    );
    assert!(
        host.activate(&made(&TpmName::of_public(&aik_template())))
            .is_err()
    );
    for at in 0..good.blob.len() {
        let mut changed = good.clone();
        changed.blob[at] ^= 1;
        assert!(host.activate(&changed).is_err(), "byte {at}");
    }
    host.quote(&[9; 32], &HOST_QUOTED).unwrap();
    assert_eq!(host.ek_certificate().unwrap(), None);

    let (_other, port) = Swtpm::host();
    let mut other = open(port).unwrap();
    let blob = other.create_aik().unwrap();
    other.load_aik(&blob).unwrap();
    assert!(other.activate(&good).is_err());
    let for_its_key = made(&other.aik_name().unwrap());
    assert!(
        other.activate(&for_its_key).is_err(),
        "another TPM's endorsement key"
    );
}

/// Longer than what a TPM reads at once.
#[test]
fn the_certificate_is_read_whole() {
    let (_swtpm, port) = Swtpm::host();
    let dir = TempDir::new();
    let certificate: Vec<u8> = (0..1300u32).map(|n| n as u8).collect();
    std::fs::write(dir.path().join("certificate"), &certificate).unwrap();
    let tcti = format!("--tcti=swtpm:host=127.0.0.1,port={port}");
    for arguments in [
        &[
            "0x1c0000a",
            "-C",
            "o",
            "-s",
            "1300",
            "-a",
            "ownerread|ownerwrite|authread",
        ][..],
        &["0x1c0000a", "-C", "o", "-i", "certificate"][..],
    ] {
        let name = if arguments.len() > 5 {
            "tpm2_nvdefine"
        } else {
            "tpm2_nvwrite"
        };
        let arguments = [&[tcti.as_str()], arguments].concat();
        assert!(tool(name, &arguments, dir.path()).status.success());
    }
    let mut host = open(port).unwrap();
    assert_eq!(host.ek_certificate().unwrap(), Some(certificate));
}
