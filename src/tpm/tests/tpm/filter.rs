//! The filter and the broker behind it on a real swtpm: what a workload does works, what belongs to
//! others is out of reach, and the guard is not kept waiting.

use crate::pcr;
use crate::spawn::Swtpm;
use std::time::{Duration, Instant};
use tpm::filter::table::{Returns, Rule, row_of};
use tpm::filter::{Broker, Refusal};
use tpm::vtpm::Vtpm;
use tpm::wire::{RH_ENDORSEMENT, RH_NULL, RH_OWNER, Reader, Writer};
use verify::pcr::QUOTED;
use verify::tpm2::{AttestationKey, Public, aik_template, alg, ek_template, verify_quote};

pub const PASSWORD: u32 = 0x4000_0009;

/// A vTPM as the guard has it, and the container's side of it.
pub struct Scene {
    pub _swtpm: Swtpm,
    pub vtpm: Vtpm,
    aik: tpm::Key,
    pub broker: Broker,
}

pub fn scene() -> Scene {
    let (swtpm, stream) = Swtpm::vtpm();
    let mut vtpm = Vtpm::new(stream);
    vtpm.lock_down().unwrap();
    let ek = vtpm.create_ek().unwrap();
    let aik = vtpm.create_aik(&[0; 32]).unwrap();
    vtpm.flush(ek).unwrap();
    let broker = vtpm.lend();
    Scene {
        _swtpm: swtpm,
        vtpm,
        aik,
        broker,
    }
}

/// Response code, and what follows the header.
pub type Said = (u32, Vec<u8>);

impl Scene {
    pub fn say(
        &mut self,
        client: u64,
        code: u32,
        handles: &[u32],
        sessions: &[u32],
        parameters: &[u8],
    ) -> Said {
        let mut body = Writer::default();
        for handle in handles {
            body = body.u32(*handle);
        }
        if !sessions.is_empty() {
            body = body.u32(9 * sessions.len() as u32);
            for session in sessions {
                body = body.u32(*session).sized(b"").u8(1).sized(b"");
            }
        }
        let body = body.bytes(parameters).finish();
        let tag = if sessions.is_empty() { 0x8001 } else { 0x8002 };
        let size = 10 + body.len() as u32;
        let command = Writer::default().u16(tag).u32(size).u32(code).bytes(&body);
        let answer = self.broker.answer(client, &command.finish()).unwrap();
        let mut reader = Reader::new(&answer);
        reader.u16().unwrap();
        assert_eq!(reader.u32().unwrap() as usize, answer.len());
        (reader.u32().unwrap(), reader.rest().to_vec())
    }

    pub fn done(
        &mut self,
        client: u64,
        code: u32,
        handles: &[u32],
        sessions: &[u32],
        parameters: &[u8],
    ) -> Vec<u8> {
        let (rc, body) = self.say(client, code, handles, sessions, parameters);
        assert_eq!(rc, 0, "{:?}", row_of(code).map(|row| row.name));
        body
    }

    /// A primary key from the attestation key's template: the client's handle for it, and its public area.
    fn primary(&mut self, client: u64, hierarchy: u32) -> (u32, Vec<u8>) {
        let parameters = creation(&aik_template());
        let body = self.done(client, 0x131, &[hierarchy], &[PASSWORD], &parameters);
        let mut reader = Reader::new(&body);
        let handle = reader.u32().unwrap();
        reader.u32().unwrap(); // parameterSize
        (handle, reader.sized().unwrap().to_vec())
    }

    fn guard_works(&mut self) {
        let quote = self.vtpm.quote(&self.aik, &[3; 32], &QUOTED).unwrap();
        let key = AttestationKey::check(&Public::parse(&self.aik.public).unwrap()).unwrap();
        verify_quote(&key, &quote.attest, &quote.signature, &[3; 32], &QUOTED).unwrap();
        self.vtpm.extend(pcr(10), &[1; 20], &[1; 32]).unwrap();
    }
}

pub fn creation(template: &[u8]) -> Vec<u8> {
    let no_secret = Writer::default().sized(b"").sized(b"").finish();
    let parameters = Writer::default().sized(&no_secret).sized(template);
    parameters.sized(b"").u32(0).finish()
}

pub fn session() -> Vec<u8> {
    let parameters = Writer::default().sized(&[7; 16]).sized(b"").u8(1);
    parameters.u16(alg::NULL).u16(alg::SHA256).finish()
}

fn digest(value: u8) -> Vec<u8> {
    Writer::default()
        .u32(1)
        .u16(alg::SHA256)
        .bytes(&[value; 32])
        .finish()
}

/// The TPM's own word on how many handles each command has (TPMA_CC, Part 2, 8.9), and on which
/// commands there are.
#[test]
fn the_table_agrees_with_the_tpm() {
    let mut scene = scene();
    let all = Writer::default().u32(2).u32(0).u32(256).finish();
    let body = scene.done(1, 0x17A, &[], &[], &all);
    let mut reader = Reader::new(&body);
    reader.u8().unwrap();
    assert_eq!(reader.u32().unwrap(), 2);
    let count = reader.u32().unwrap();
    assert!(count > 90, "{count}");
    for _ in 0..count {
        let attributes = reader.u32().unwrap();
        let vendors = attributes & 1 << 29 != 0;
        let code = (attributes & 0xFFFF) | if vendors { 0x2000_0000 } else { 0 };
        let row = row_of(code).unwrap_or_else(|| panic!("no row for {code:#x}"));
        if row.rule != Rule::Deny {
            assert_eq!(
                row.slots.len(),
                (attributes >> 25 & 7) as usize,
                "{}",
                row.name
            );
            let returns = row.returns != Returns::Nothing;
            assert_eq!(returns, attributes & 1 << 28 != 0, "{}", row.name);
        }
    }
}

#[test]
fn a_workload_works() {
    let mut scene = scene();
    let random = scene.done(1, 0x17B, &[], &[], &[0, 16]);
    assert_eq!(random.len(), 18);
    let (key, public) = scene.primary(1, RH_OWNER);
    scene.done(1, 0x182, &[12], &[PASSWORD], &digest(5));
    let selection = tpm::wire::pcr_selection(&[alg::SHA256], 1 << 12).finish();
    let data = Writer::default()
        .sized(&[9; 32])
        .u16(alg::NULL)
        .bytes(&selection);
    let body = scene.done(1, 0x158, &[key], &[PASSWORD], &data.finish());
    let mut reader = Reader::new(&body);
    reader.u32().unwrap();
    let attest = reader.sized().unwrap().to_vec();
    let signature = reader.rest();
    let signature = &signature[..signature.len() - 5]; // the password's answer
    let key = AttestationKey::check(&Public::parse(&public).unwrap()).unwrap();
    let pcr12 = [pcr(12)];
    let quote = verify_quote(&key, &attest, signature, &[9; 32], &pcr12).unwrap();
    let mut value = verify::pcr::Pcr::ZERO;
    value.extend(&[0; 20], &[5; 32]);
    quote.explains(&[value.sha256]).unwrap();
    // a hash over two commands
    let start = Writer::default().sized(b"").u16(alg::SHA256).finish();
    let sequence = scene.done(1, 0x186, &[], &[], &start);
    let sequence = u32::from_be_bytes(sequence.try_into().unwrap());
    scene.done(
        1,
        0x15C,
        &[sequence],
        &[PASSWORD],
        &Writer::default().sized(b"ab").finish(),
    );
    let end = Writer::default().sized(b"c").u32(RH_NULL).finish();
    let body = scene.done(1, 0x13E, &[sequence], &[PASSWORD], &end);
    let mut reader = Reader::new(&body);
    reader.u32().unwrap();
    assert_eq!(
        reader.sized().unwrap(),
        <sha2::Sha256 as sha2::Digest>::digest(b"abc").as_slice()
    );
    let gone = scene.say(1, 0x15C, &[sequence], &[PASSWORD], &[0, 0]).0;
    assert_eq!(gone, Refusal::HANDLE.code());
    scene.guard_works();
}

#[test]
fn the_measurement_is_out_of_reach() {
    let mut scene = scene();
    scene.vtpm.extend(pcr(10), &[1; 20], &[1; 32]).unwrap();
    let before: Vec<_> = QUOTED
        .iter()
        .map(|p| scene.vtpm.pcr_read(*p).unwrap())
        .collect();
    for index in 0..12 {
        let refused = scene.say(1, 0x182, &[index], &[PASSWORD], &digest(1)).0;
        assert_eq!(refused, Refusal::PCR.code());
    }
    for (code, handle) in [
        (0x126, 0x4000_000A), // Clear
        (0x13D, 16),          // PCR_Reset
        (0x121, RH_OWNER),
        (0x129, RH_OWNER),
        (0x129, RH_ENDORSEMENT),
        (0x139, 0x4000_000A),
    ] {
        let refused = scene.say(1, code, &[handle], &[PASSWORD], &[]).0;
        assert_eq!(refused, Refusal::COMMAND.code(), "{code:#x}");
    }
    for shutdown in [0x144, 0x145] {
        assert_eq!(
            scene.say(1, shutdown, &[], &[], &[0, 0]).0,
            Refusal::COMMAND.code()
        );
    }
    // the attestation key: neither by its handle nor made again
    let handle = scene.aik.handle;
    let refused = scene.say(1, 0x158, &[handle], &[PASSWORD], &[0; 8]).0;
    assert_eq!(refused, Refusal::HANDLE.code());
    assert_eq!(
        scene.say(1, 0x165, &[], &[], &handle.to_be_bytes()).0,
        Refusal::HANDLE.code()
    );
    let again = scene
        .say(
            1,
            0x131,
            &[RH_ENDORSEMENT],
            &[PASSWORD],
            &creation(&aik_template()),
        )
        .0;
    assert_eq!(again, Refusal::HIERARCHY.code());
    let (_, public) = scene.primary(1, RH_OWNER);
    assert_ne!(public, scene.aik.public);
    // the endorsement key is the workload's to use
    scene.done(
        1,
        0x131,
        &[RH_ENDORSEMENT],
        &[PASSWORD],
        &creation(&ek_template()),
    );
    let after: Vec<_> = QUOTED
        .iter()
        .map(|p| scene.vtpm.pcr_read(*p).unwrap())
        .collect();
    assert_eq!(before, after);
    scene.guard_works();
}

#[test]
fn clients_do_not_see_each_other() {
    let mut scene = scene();
    let (mine, _) = scene.primary(1, RH_OWNER);
    let opened = scene.done(1, 0x176, &[RH_NULL, RH_NULL], &[], &session());
    let opened = u32::from_be_bytes(opened[..4].try_into().unwrap());
    scene.done(1, 0x173, &[mine], &[], &[]);
    scene.done(1, 0x16B, &[opened], &[], &[]);
    for (code, handles) in [
        (0x173, [mine]),
        (0x16B, [opened]),
        (0x162, [mine]),
        (0x162, [opened]),
    ] {
        let refused = scene.say(2, code, &handles, &[], &[]).0;
        assert_eq!(refused, Refusal::HANDLE.code(), "{code:#x}");
    }
    let list = |from: u32| Writer::default().u32(1).u32(from).u32(64).finish();
    let nothing = Writer::default().u8(0).u32(1).u32(0).finish();
    assert_eq!(scene.done(2, 0x17A, &[], &[], &list(0x8000_0000)), nothing);
    assert_eq!(scene.done(2, 0x17A, &[], &[], &list(0x0200_0000)), nothing);
    let one = Writer::default().u8(0).u32(1).u32(1).u32(mine).finish();
    assert_eq!(scene.done(1, 0x17A, &[], &[], &list(0x8000_0000)), one);
    // each has its own handles, all at once, more than the TPM has room for
    let mut all = Vec::new();
    for client in 1..=6 {
        let of = (0..3)
            .map(|_| scene.primary(client, RH_NULL))
            .collect::<Vec<_>>();
        all.push((client, of));
    }
    for (client, keys) in &all {
        for (handle, public) in keys {
            let body = scene.done(*client, 0x173, &[*handle], &[], &[]);
            assert_eq!(Reader::new(&body).sized().unwrap(), public);
        }
    }
    // what has ended has nothing
    scene.broker.forget(1).unwrap();
    assert!(!scene.broker.has(1));
    assert_eq!(
        scene.say(1, 0x173, &[mine], &[], &[]).0,
        Refusal::HANDLE.code()
    );
    scene.guard_works();
}

/// A saved session outlives its client, as tpm2-tools need it; so many, and no more.
#[test]
fn sessions_have_limits() {
    let mut scene = scene();
    let open = |scene: &mut Scene, client| {
        let (rc, body) = scene.say(client, 0x176, &[RH_NULL, RH_NULL], &[], &session());
        (rc, Reader::new(&body).u32().unwrap_or_default())
    };
    let (_, handle) = open(&mut scene, 1);
    let context = scene.done(1, 0x162, &[handle], &[], &[]);
    scene.broker.forget(1).unwrap();
    let loaded = scene.done(2, 0x161, &[], &[], &context);
    assert_eq!(loaded, handle.to_be_bytes());
    scene.done(2, 0x16B, &[handle], &[], &[]);
    // a session's old context is worth nothing
    assert_ne!(scene.say(3, 0x161, &[], &[], &context).0, 0);
    let mut opened = 1;
    loop {
        match open(&mut scene, 3).0 {
            0 => opened += 1,
            full => {
                assert_eq!(full, Refusal::SESSIONS.code());
                break;
            }
        }
    }
    assert_eq!(opened, 48);
    scene.broker.forget(3).unwrap();
    // of the saved ones the oldest goes
    for _ in 0..100 {
        let (rc, handle) = open(&mut scene, 4);
        assert_eq!(rc, 0);
        scene.done(4, 0x162, &[handle], &[], &[]);
    }
    scene.done(2, 0x16B, &[handle], &[], &[]);
    scene.guard_works();
}

#[test]
fn objects_have_limits() {
    let mut scene = scene();
    for client in 1..=8 {
        for _ in 0..16 {
            scene.primary(client, RH_NULL);
        }
        let full = scene
            .say(
                client,
                0x131,
                &[RH_NULL],
                &[PASSWORD],
                &creation(&aik_template()),
            )
            .0;
        assert_eq!(full, Refusal::OBJECTS.code());
    }
    let full = scene
        .say(
            9,
            0x131,
            &[RH_NULL],
            &[PASSWORD],
            &creation(&aik_template()),
        )
        .0;
    assert_eq!(full, Refusal::OBJECTS.code());
    scene.broker.forget(1).unwrap();
    scene.primary(9, RH_NULL);
    scene.guard_works();
}

/// Wrong passwords lock the workload's own objects, and nothing of the guard's.
#[test]
fn a_lockout_is_the_workloads_own() {
    let mut scene = scene();
    let secret = Writer::default().sized(b"secret").sized(b"").finish();
    // the attestation key's template without noDA
    let mut template = aik_template();
    template[6] &= !0x04;
    let parameters = Writer::default()
        .sized(&secret)
        .sized(&template)
        .sized(b"")
        .u32(0);
    let body = scene.done(1, 0x131, &[RH_OWNER], &[PASSWORD], &parameters.finish());
    let key = Reader::new(&body).u32().unwrap();
    let last = (0..8)
        .map(|_| scene.say(1, 0x158, &[key], &[PASSWORD], &[0; 8]).0)
        .last();
    assert_eq!(last, Some(0x921), "not locked out");
    scene.guard_works();
}

/// While clients keep the vTPM busy, the guard waits for one of their commands at most.
#[test]
fn the_guard_comes_first() {
    let Scene {
        _swtpm,
        mut vtpm,
        aik,
        mut broker,
    } = scene();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let done = std::thread::scope(|threads| {
        let busy = threads.spawn(|| {
            // a key under NULL: nothing stays, and it takes its time
            let parameters = creation(&aik_template());
            let mut command = vec![0x80, 2, 0, 0, 0, 0, 0, 0, 1, 0x31, 0x40, 0, 0, 7];
            command.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 1, 0, 0]);
            command.extend(&parameters);
            command[5] = command.len() as u8;
            let (mut client, mut done) = (1, 0);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let answer = broker.answer(client, &command).unwrap();
                assert_eq!(answer[6..10], [0; 4]);
                broker.forget(client).unwrap();
                client += 1;
                done += 1;
            }
            done
        });
        let mut waits = Vec::new();
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(500) {
            let asked = Instant::now();
            vtpm.extend(pcr(10), &[1; 20], &[1; 32]).unwrap();
            vtpm.quote(&aik, &[0; 32], &QUOTED).unwrap();
            waits.push(asked.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        waits.sort_unstable();
        println!(
            "the guard's extend and quote beside a busy client: median {:?}, last {:?}",
            waits[waits.len() / 2],
            waits[waits.len() - 1]
        );
        busy.join().unwrap()
    });
    assert!(done > 10, "the client came {done} times only");
}
