//! Secrets for a container that was accepted ([`crate::release`]).

use super::*;
use crate::event::{AUDITED, Enforce, Event, Fault};
use crate::imalog::Replay;
use crate::pcr::{FAULTS, PcrIndex, SEALED};
use crate::release::{MAX_SECRET, Release, ReleaseError, ReleaseRandom, release};
use crate::tpm2::{MAX_SEALED, SealingRandom, pcr_policy};

const RANDOM: ReleaseRandom = ReleaseRandom {
    sealing: SealingRandom {
        obfuscation: [1; 32],
        ephemeral: [2; 32],
    },
    key: [3; 32],
};

fn trusted(scene: &Scene) -> Trusted {
    match scene.appraise().verdict {
        Verdict::Accepted(trusted) => trusted,
        other => panic!("{other:?}"),
    }
}

fn released(secret: &[u8]) -> Result<Release, ReleaseError> {
    release(&trusted(&Scene::new()), secret, NOW, &RANDOM)
}

/// The policy is at a fixed place of the public area.
fn policy(release: &Release) -> &[u8] {
    &release.object.public[10..42]
}

#[test]
fn accept_the_record_s_key_and_the_log_s_pcrs() {
    let scene = Scene::new();
    let trusted = trusted(&scene);
    assert_eq!(trusted.recipient().ek_name(), scene.claim.vtpm_ek_name);
    let release = release(&trusted, b"secret", NOW, &RANDOM).unwrap();
    assert_eq!(release.container, scene.claim.container);
    assert_eq!(release.record, trusted.record());
    let values = Replay::of(&scene.log).sha256(&SEALED);
    let pcrs: Vec<(PcrIndex, _)> = SEALED.into_iter().zip(values).collect();
    assert!(pcrs.contains(&(FAULTS, [0; 32])));
    assert_eq!(policy(&release), pcr_policy(&pcrs));
}

#[test]
fn accept_its_file_again() {
    for length in [1, MAX_SEALED, MAX_SEALED + 1, MAX_SECRET] {
        let release = released(&vec![7; length]).unwrap();
        assert_eq!(release.payload.is_some(), length > MAX_SEALED);
        let bytes = release.encode().unwrap();
        assert_eq!(Release::parse(&bytes), Ok(release));
    }
}

#[test]
fn accept_a_long_secret_by_its_key_alone() {
    let secret: Vec<u8> = (0..500).map(|n| n as u8).collect();
    let release = released(&secret).unwrap();
    assert_eq!(release.open(RANDOM.key.to_vec()), Ok(secret));
    assert_eq!(release.open(vec![4; 32]), Err(ReleaseError::Changed));
    assert_eq!(release.open(vec![3; 31]), Err(ReleaseError::Changed));
    let payload = release.payload.as_ref().unwrap();
    for at in [0, payload.len() / 2, payload.len() - 1] {
        let mut changed = release.clone();
        changed.payload.as_mut().unwrap()[at] ^= 1;
        let opened = changed.open(RANDOM.key.to_vec());
        assert_eq!(opened, Err(ReleaseError::Changed), "{at}");
    }
    // another object's payload
    let mut other = release.clone();
    other.object.public[20] ^= 1;
    assert_eq!(other.open(RANDOM.key.to_vec()), Err(ReleaseError::Changed));
    let short = released(b"short").unwrap();
    assert_eq!(short.open(b"short".to_vec()), Ok(b"short".to_vec()));
}

#[test]
fn refuse_lengths() {
    assert_eq!(released(b""), Err(ReleaseError::Length(0)));
    let long = vec![0; MAX_SECRET + 1];
    assert_eq!(released(&long), Err(ReleaseError::Length(MAX_SECRET + 1)));
}

#[test]
fn refuse_a_container_with_faults() {
    let mut scene = Scene::new();
    modes::edit_policy(&mut scene, |policy| policy.enforce = Enforce::Audit);
    scene.claim.mode = "audit".into();
    scene.expect.waive.push(Waiver::Audit);
    assert!(release(&trusted(&scene), b"secret", NOW, &RANDOM).is_ok());
    let fault = Event::Fault(Fault {
        kind: AUDITED.to_owned(),
        detail: "an unlisted program".to_owned(),
    });
    scene.log.push(fault.to_entry().unwrap());
    assert_eq!(
        release(&trusted(&scene), b"secret", NOW, &RANDOM),
        Err(ReleaseError::Faults)
    );
}

#[test]
fn refuse_other_files() {
    let bytes = released(b"secret").unwrap().encode().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let with = |old: &str, new: &str| {
        assert!(text.contains(old), "{old} in {text}");
        Release::parse(text.replace(old, new).as_bytes())
    };
    assert!(with("\"v\":1", "\"v\": 1").is_ok());
    for (old, new) in [
        ("\"v\":1", "\"v\":2"),
        ("\"v\":1", "\"v\":1,\"more\":1"),
        ("[0,1,2,3,4,5,7,8]", "[0,1,2,3,4,5,7]"),
        ("\"seed\":\"", "\"seed\":\"!"),
        ("\"public\":\"AE4", "\"public\":\"AE8"),
        ("\"duplicate\"", "\"other\""),
        ("web-1", "web/1"),
    ] {
        assert!(with(old, new).is_err(), "{old} -> {new}");
    }
    for end in 0..text.len() - 1 {
        assert!(Release::parse(&text.as_bytes()[..end]).is_err(), "{end}");
    }
    let long = vec![b' '; 3 << 20];
    assert!(Release::parse(&long).is_err());
}
