//! What a challenger seals to a vTPM in a state: that vTPM opens it in that state, through the filter, as a
//! workload does; no other one, in no other state, and by no other way.

use crate::filter::{PASSWORD, Scene, creation, scene, session};
use crate::pcr;
use crate::spawn::Swtpm;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use tpm::filter::{Broker, Refusal};
use tpm::vtpm::{UnsealError, Vtpm};
use tpm::wire::{MAX_MESSAGE, RH_ENDORSEMENT, RH_NULL, Reader, Writer};
use verify::pcr::{Pcr, PcrIndex, SEALED};
use verify::tpm2::{
    EndorsementKey, Public, SealedObject, SealingRandom, alg, ek_template, pcr_policy,
    pcr_selection, seal,
};

const SECRET: &[u8] = b"a secret of the challenger's";

const IMPORT: u32 = 0x156;
const LOAD: u32 = 0x157;
const REWRAP: u32 = 0x152;
const UNSEAL: u32 = 0x15E;
const POLICY_PCR: u32 = 0x17F;
const POLICY_SECRET: u32 = 0x151;

/// The container's side of `broker`: a client's commands go through its filter.
fn through(mut broker: Broker) -> Vtpm {
    let (client, mut served) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let mut command = [0; MAX_MESSAGE];
        while let Ok(count @ 1..) = served.read(&mut command) {
            let answer = broker.answer(1, &command[..count]).unwrap();
            served.write_all(&answer).unwrap();
        }
    });
    Vtpm::new(client)
}

fn values(vtpm: &mut Vtpm) -> Vec<(PcrIndex, [u8; 32])> {
    let value = |pcr: PcrIndex, vtpm: &mut Vtpm| (pcr, vtpm.pcr_read(pcr).unwrap().sha256);
    SEALED.iter().map(|pcr| value(*pcr, vtpm)).collect()
}

fn sealed_to(vtpm: &mut Vtpm, values: &[(PcrIndex, [u8; 32])]) -> SealedObject {
    let key = vtpm.create_ek().unwrap();
    let ek = EndorsementKey::check(&Public::parse(&key.public).unwrap()).unwrap();
    vtpm.flush(key).unwrap();
    let random = SealingRandom {
        obfuscation: [5; 32],
        ephemeral: [6; 32],
    };
    seal(&ek, &pcr_policy(values), SECRET, &random).unwrap()
}

/// A vTPM with something in its PCRs, and what was sealed to it.
fn measured() -> (Scene, SealedObject) {
    let mut scene = scene();
    for index in SEALED {
        if index != pcr(8) {
            scene.vtpm.extend(index, &[1; 20], &[1; 32]).unwrap();
        }
    }
    let values = values(&mut scene.vtpm);
    let object = sealed_to(&mut scene.vtpm, &values);
    (scene, object)
}

#[test]
fn accept_in_the_state_that_was_seen() {
    let (mut scene, object) = measured();
    let mut workload = through(scene.broker);
    assert_eq!(workload.unseal(&object, &SEALED).unwrap(), SECRET);
    // programs that run, and what the workload extends, change nothing
    for index in [10, 11, 12] {
        scene.vtpm.extend(pcr(index), &[2; 20], &[2; 32]).unwrap();
    }
    for _ in 0..20 {
        assert_eq!(workload.unseal(&object, &SEALED).unwrap(), SECRET);
    }
}

/// The guard extends between the look at the PCRs and the unsealing, as often as it can.
#[test]
fn accept_while_programs_start() {
    let (mut scene, object) = measured();
    let mut workload = through(scene.broker);
    let busy = thread::spawn(move || {
        for _ in 0..300 {
            scene.vtpm.extend(pcr(10), &[2; 20], &[2; 32]).unwrap();
            thread::sleep(std::time::Duration::from_micros(200));
        }
        scene.vtpm
    });
    while !busy.is_finished() {
        assert_eq!(workload.unseal(&object, &SEALED).unwrap(), SECRET);
    }
    busy.join().unwrap();
}

#[test]
fn refuse_in_any_other_state() {
    for index in SEALED {
        let (mut scene, object) = measured();
        scene.vtpm.extend(index, &[2; 20], &[2; 32]).unwrap();
        let refusal = through(scene.broker).unseal(&object, &SEALED).unwrap_err();
        assert!(
            matches!(refusal, UnsealError::OtherState),
            "PCR {index}: {refusal}"
        );
    }
    // without one of the PCRs, or with another beside them, it is another policy
    let (scene, object) = measured();
    let mut workload = through(scene.broker);
    let more = [&SEALED[..], &[pcr(9)]].concat();
    for pcrs in [&SEALED[..7], &more] {
        let refusal = workload.unseal(&object, pcrs).unwrap_err();
        assert!(matches!(refusal, UnsealError::OtherState), "{refusal}");
    }
    assert_eq!(workload.unseal(&object, &SEALED).unwrap(), SECRET);
}

#[test]
fn refuse_in_another_vtpm() {
    let (_one, object) = measured();
    let (other, _) = measured(); // its PCRs have the same values
    let refusal = through(other.broker).unseal(&object, &SEALED).unwrap_err();
    assert!(matches!(refusal, UnsealError::OtherTpm), "{refusal}");
}

#[test]
fn refuse_whatever_was_changed() {
    let (scene, object) = measured();
    let mut workload = through(scene.broker);
    for part in 0..3 {
        let mut changed = object.clone();
        let bytes = match part {
            0 => &mut changed.public,
            1 => &mut changed.duplicate,
            _ => &mut changed.seed,
        };
        let length = bytes.len();
        for at in [0, 5, length / 2, length - 1] {
            let mut changed = object.clone();
            let bytes = match part {
                0 => &mut changed.public,
                1 => &mut changed.duplicate,
                _ => &mut changed.seed,
            };
            bytes[at] ^= 1;
            assert!(
                workload.unseal(&changed, &SEALED).is_err(),
                "part {part}, byte {at}"
            );
        }
    }
}

/// The handles of the endorsement key, of a policy session, and of the loaded object.
fn loaded(scene: &mut Scene, object: &SealedObject) -> (u32, u32, u32) {
    let ek = scene.done(
        1,
        0x131,
        &[RH_ENDORSEMENT],
        &[PASSWORD],
        &creation(&ek_template()),
    );
    let ek = Reader::new(&ek).u32().unwrap();
    let opened = scene.done(1, 0x176, &[RH_NULL, RH_NULL], &[], &session());
    let session = Reader::new(&opened).u32().unwrap();
    scene.done(
        1,
        POLICY_SECRET,
        &[RH_ENDORSEMENT, session],
        &[PASSWORD],
        &[0; 10],
    );
    let parameters = Writer::default()
        .sized(b"")
        .sized(&object.public)
        .sized(&object.duplicate)
        .sized(&object.seed)
        .u16(alg::NULL);
    let body = scene.done(1, IMPORT, &[ek], &[session], &parameters.finish());
    let mut reader = Reader::new(&body);
    reader.u32().unwrap();
    let private = reader.sized().unwrap();
    scene.done(
        1,
        POLICY_SECRET,
        &[RH_ENDORSEMENT, session],
        &[PASSWORD],
        &[0; 10],
    );
    let parameters = Writer::default().sized(private).sized(&object.public);
    let body = scene.done(1, LOAD, &[ek], &[session], &parameters.finish());
    (ek, session, Reader::new(&body).u32().unwrap())
}

/// A policy that was met before the guard recorded a fault.
#[test]
fn refuse_a_policy_that_was_met_before() {
    let (mut scene, object) = measured();
    let (_, session, object) = loaded(&mut scene, &object);
    let parameters = Writer::default()
        .sized(b"")
        .bytes(&pcr_selection(&SEALED))
        .finish();
    scene.done(1, POLICY_PCR, &[session], &[], &parameters);
    scene.vtpm.extend(pcr(8), &[2; 20], &[2; 32]).unwrap();
    const PCR_CHANGED: u32 = 0x128;
    assert_eq!(
        scene.say(1, UNSEAL, &[object], &[session], &[]).0,
        PCR_CHANGED
    );
}

/// The empty authorization value opens nothing, and gives nobody a copy or another value.
#[test]
fn refuse_every_way_but_the_policy() {
    let (mut scene, object) = measured();
    let (ek, session, object) = loaded(&mut scene, &object);
    type Sent<'a> = (u32, &'a [u32], &'a [u32], &'a [u8]);
    let commands: [Sent<'_>; 5] = [
        (UNSEAL, &[object], &[PASSWORD], &[]),
        (UNSEAL, &[object], &[session], &[]),
        (0x14B, &[object, ek], &[PASSWORD], &[0, 0, 0, 16]), // Duplicate
        (0x14B, &[object, RH_NULL], &[session], &[0, 0, 0, 16]),
        (0x150, &[object, ek], &[PASSWORD], &[0, 1, 7]), // ObjectChangeAuth
    ];
    for (code, handles, sessions, parameters) in commands {
        let said = scene.say(1, code, handles, sessions, parameters).0;
        assert_ne!(said, 0, "{code:#x}");
        assert_ne!(said >> 16, 0xB, "{code:#x}: the TPM itself was not asked");
    }
}

/// Says one command to a bare TPM.
fn say(
    stream: &mut UnixStream,
    code: u32,
    handles: &[u32],
    session: u32,
    parameters: &[u8],
) -> Vec<u8> {
    let mut body = handles
        .iter()
        .fold(Writer::default(), |body, handle| body.u32(*handle));
    if session != 0 {
        body = body.u32(9).u32(session).sized(b"").u8(1).sized(b"");
    }
    let body = body.bytes(parameters).finish();
    let tag = if session == 0 { 0x8001 } else { 0x8002 };
    let command = Writer::default().u16(tag).u32(10 + body.len() as u32);
    stream
        .write_all(&command.u32(code).bytes(&body).finish())
        .unwrap();
    let mut answer = [0; MAX_MESSAGE];
    let count = stream.read(&mut answer).unwrap();
    assert_eq!(answer[6..10], [0; 4], "{code:#x}: {:x?}", &answer[..count]);
    answer[10..count].to_vec()
}

/// Why the filter has no TPM2_Rewrap: a TPM gives the secret out in clear, whatever its policy says.
#[test]
fn refuse_to_rewrap() {
    let (swtpm, stream) = Swtpm::vtpm();
    let mut bare = stream.try_clone().unwrap();
    let mut vtpm = Vtpm::new(stream);
    // to a state that this TPM is not in
    let values = SEALED.map(|index| (index, [9; 32]));
    let object = sealed_to(&mut vtpm, &values);
    assert_ne!(values[0].1, Pcr::ZERO.sha256);
    let ek = vtpm.create_ek().unwrap();
    let opened = say(&mut bare, 0x176, &[RH_NULL, RH_NULL], 0, &session());
    let policy = Reader::new(&opened).u32().unwrap();
    let handles = [RH_ENDORSEMENT, policy];
    say(&mut bare, POLICY_SECRET, &handles, PASSWORD, &[0; 10]);
    let parameters = Writer::default()
        .sized(&object.duplicate)
        .sized(object.name().as_bytes())
        .sized(&object.seed)
        .finish();
    let clear = say(
        &mut bare,
        REWRAP,
        &[ek.handle, RH_NULL],
        policy,
        &parameters,
    );
    let shows = clear.windows(SECRET.len()).any(|part| part == SECRET);
    assert!(shows, "this TPM keeps the secret: {clear:x?}");
    drop(swtpm);

    let (mut scene, object) = measured();
    let (ek, session, _) = loaded(&mut scene, &object);
    let said = scene.say(1, REWRAP, &[ek, RH_NULL], &[session], &parameters);
    assert_eq!(said.0, Refusal::COMMAND.code());
}
