//! What somebody can do who has a vTPM's data channel and knows that its authorization values are
//! empty. The first half of each test shows that the attack is real, the second that it fails.

use crate::spawn::Swtpm;
use crate::{Raw, pcr};
use tpm::vtpm::Vtpm;
use tpm::wire::{
    Code, Command, RH_ENDORSEMENT, RH_LOCKOUT, RH_OWNER, RH_PLATFORM, Reader, Writer, pcr_selection,
};
use verify::pcr::QUOTED;
use verify::tpm2::{AttestationKey, Public, TpmName, aik_template, alg, verify_quote};

/// Creates a primary key from the attestation key's template: handle and name.
fn primary(raw: &mut Raw, hierarchy: u32) -> (u32, Vec<u8>, TpmName) {
    let no_secret = Writer::default().sized(b"").sized(b"").finish();
    let parameters = Writer::default()
        .sized(&no_secret)
        .sized(&aik_template())
        .sized(b"")
        .u32(0);
    let made = raw
        .on(Code::CREATE_PRIMARY, hierarchy, parameters)
        .expect("a key");
    let public = Reader::new(&made.parameters)
        .sized()
        .expect("a public area")
        .to_vec();
    let name = TpmName::of_public(&public);
    (made.handle.expect("a handle"), public, name)
}

/// Allocating the PCR banks anew: takes effect at the next start.
fn allocate(raw: &mut Raw) -> Result<(), tpm::rc::Rc> {
    let banks = pcr_selection(&[alg::SHA1], 0x00FF_FFFF);
    raw.on(Code::PCR_ALLOCATE, RH_PLATFORM, banks).map(drop)
}

#[test]
fn without_lock_down_the_identity_can_be_destroyed() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut raw = Raw(stream);
    let (_, _, before) = primary(&mut raw, RH_ENDORSEMENT);
    raw.on(Code::CLEAR, RH_LOCKOUT, Writer::default())
        .expect("TPM2_Clear works");
    let (_, _, after_clear) = primary(&mut raw, RH_ENDORSEMENT);
    assert_eq!(before, after_clear, "TPM2_Clear keeps the endorsement seed");
    allocate(&mut raw).expect("TPM2_PCR_Allocate works");
    raw.on(Code::CHANGE_EPS, RH_PLATFORM, Writer::default())
        .expect("TPM2_ChangeEPS works");
    let (_, _, after) = primary(&mut raw, RH_ENDORSEMENT);
    assert_ne!(before, after, "the endorsement seed is another one");
}

#[test]
fn refuse_to_rewrite_the_past_after_lock_down() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut raw = Raw(stream.try_clone().unwrap());
    let mut vtpm = Vtpm::new(stream);
    vtpm.lock_down().unwrap();
    let aik = vtpm.create_aik(&[0; 32]).unwrap();
    vtpm.extend(pcr(10), &[1; 20], &[1; 32]).unwrap();
    let before = vtpm.pcr_read(pcr(10)).unwrap();

    let empty = Writer::default;
    let name = |result: Result<_, tpm::rc::Rc>| {
        result
            .map(drop)
            .expect_err("refused")
            .name()
            .expect("a known code")
    };
    // A wrong lockout authorization locks the lockout hierarchy itself.
    assert_eq!(name(raw.on(Code::CLEAR, RH_LOCKOUT, empty())), "AUTH_FAIL");
    assert_eq!(name(raw.on(Code::CLEAR, RH_LOCKOUT, empty())), "LOCKOUT");
    assert_eq!(name(raw.on(Code::CLEAR, RH_PLATFORM, empty())), "HIERARCHY");
    assert_eq!(
        name(raw.on(Code::CHANGE_EPS, RH_PLATFORM, empty())),
        "HIERARCHY"
    );
    assert_eq!(allocate(&mut raw).unwrap_err().name(), Some("HIERARCHY"));
    let reopen = || Writer::default().u32(RH_PLATFORM).u8(1);
    assert_eq!(
        name(raw.on(Code::HIERARCHY_CONTROL, RH_PLATFORM, reopen())),
        "HIERARCHY"
    );
    let startup = Command::new(Code::STARTUP).parameters(Writer::default().u16(0));
    assert_eq!(name(raw.send(&startup)), "INITIALIZE");
    for index in QUOTED {
        assert_eq!(
            name(raw.on(Code::PCR_RESET, index.into(), empty())),
            "LOCALITY"
        );
    }
    // These two are everybody's: nothing is ever read from them.
    for index in [16, 23] {
        raw.on(Code::PCR_RESET, index, empty())
            .expect("a resettable PCR");
    }

    // The key works on, and the PCR holds what it held.
    assert_eq!(vtpm.pcr_read(pcr(10)).unwrap(), before);
    let quote = vtpm.quote(&aik, &[3; 32], &QUOTED).unwrap();
    let key = AttestationKey::check(&Public::parse(&aik.public).unwrap()).unwrap();
    verify_quote(&key, &quote.attest, &quote.signature, &[3; 32], &QUOTED).unwrap();
}

/// Locking ourselves out: with the endorsement authorization changed no new key can be made, but
/// the attestation key that is loaded already goes on quoting.
#[test]
fn a_changed_endorsement_auth_does_not_stop_quotes() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut raw = Raw(stream.try_clone().unwrap());
    let mut vtpm = Vtpm::new(stream);
    vtpm.lock_down().unwrap();
    let aik = vtpm.create_aik(&[0; 32]).unwrap();
    let auth = Writer::default().sized(b"not yours any more");
    raw.on(Code::HIERARCHY_CHANGE_AUTH, RH_ENDORSEMENT, auth)
        .expect("changed");
    assert!(vtpm.create_ek().is_err());
    vtpm.quote(&aik, &[0; 32], &QUOTED).unwrap();
}

/// The clock fields of a quote are obfuscated unless the key is of the endorsement (or platform)
/// hierarchy: why the attestation key is where it is.
#[test]
fn only_the_endorsement_hierarchy_shows_the_reset_count() {
    let (_swtpm, stream) = Swtpm::vtpm();
    let mut raw = Raw(stream.try_clone().unwrap());
    let mut vtpm = Vtpm::new(stream);
    let clock = vtpm.read_clock().unwrap();
    let mut counters = |hierarchy| {
        let (handle, public, name) = primary(&mut raw, hierarchy);
        let key = AttestationKey::check(&Public::parse(&public).unwrap()).unwrap();
        let aik = tpm::Key {
            handle,
            public,
            name,
        };
        let quote = vtpm.quote(&aik, &[0; 32], &QUOTED).unwrap();
        let verified =
            verify_quote(&key, &quote.attest, &quote.signature, &[0; 32], &QUOTED).unwrap();
        (verified.reset(), verified.restart())
    };
    assert_eq!(
        counters(RH_ENDORSEMENT),
        (clock.reset_count, clock.restart_count)
    );
    assert_ne!(counters(RH_OWNER), (clock.reset_count, clock.restart_count));
}
