//! What kept states of vTPMs rest on: the host TPM's sealed secret and its counter; and the state itself.

use crate::spawn::{Swtpm, TempDir, tool};
use tpm::host::{AikBlob, HostError, HostTpm, HostTpmConfig, MasterBlob};

fn open(port: u16) -> HostTpm {
    let tcti = format!("swtpm:host=127.0.0.1,port={port}");
    HostTpm::open(&HostTpmConfig { tcti }).unwrap()
}

#[test]
fn the_secret_is_this_tpms_and_the_counter_counts() {
    let (swtpm, port) = Swtpm::host();
    let mut host = open(port);
    let blob = host.create_master().unwrap();
    let secret = host.unseal_master(&blob).unwrap();
    assert_ne!(secret, [0; 32]);
    for _ in 0..5 {
        assert_eq!(host.unseal_master(&blob).unwrap(), secret, "used up");
    }
    assert!(matches!(host.counter(&blob), Err(HostError::NoCounter(_))));
    host.define_counter(&blob).unwrap();
    let first = host.counter(&blob).unwrap();
    assert_eq!(host.count(&blob).unwrap(), first + 1);
    assert_eq!(host.counter(&blob).unwrap(), first + 1);
    drop(host);
    // over a boot of the machine
    let (_swtpm, port) = swtpm.reboot_host();
    let mut host = open(port);
    let blob = MasterBlob::parse(&blob.encode()).unwrap();
    assert_eq!(host.unseal_master(&blob).unwrap(), secret);
    assert_eq!(host.counter(&blob).unwrap(), first + 1);
    // a guess at the authorization value reaches neither
    let mut guess = blob.encode();
    let at = guess.len() - 32;
    guess[at..].copy_from_slice(&[0; 32]);
    let guess = MasterBlob::parse(&guess).unwrap();
    for error in [
        host.unseal_master(&guess).map(drop).unwrap_err(),
        host.count(&guess).map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, HostError::KeyAuth { .. }), "{error}");
    }
    // a counter that was taken away and made again is ahead of what it was
    let blob = host.create_master().unwrap();
    host.define_counter(&blob).unwrap();
    assert!(host.counter(&blob).unwrap() > first + 1);
}

#[test]
fn another_tpm_does_not_unseal_it() {
    let (_one, port) = Swtpm::host();
    let blob = open(port).create_master().unwrap();
    let (_two, port) = Swtpm::host();
    let error = open(port).unseal_master(&blob).unwrap_err();
    assert!(matches!(error, HostError::ForeignKey { .. }), "{error}");
    assert!(AikBlob::parse(&blob.encode()).is_err());
}

#[test]
fn an_owner_with_authorization_is_told_apart() {
    let (_swtpm, port) = Swtpm::host();
    let dir = TempDir::new();
    let tcti = format!("swtpm:host=127.0.0.1,port={port}");
    let change = ["-T", &tcti, "-c", "owner", "secret"];
    assert!(
        tool("tpm2_changeauth", &change, dir.path())
            .status
            .success()
    );
    let mut host = open(port);
    let blob = host.create_master().unwrap();
    let error = host.define_counter(&blob).unwrap_err();
    assert!(matches!(error, HostError::OwnerAuth { .. }), "{error}");
    assert!(error.to_string().contains("tpm2_changeauth -c owner"));
}
