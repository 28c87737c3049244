//! The filter's decisions: each kind of refusal beside the same done right, and whatever bytes come.

use super::table::{Row, Rule, TABLE, row_of};
use super::*;
use crate::wire::{RH_LOCKOUT, RH_PLATFORM, Writer};
use verify::tpm2::{aik_template, ek_template};

const OBJECT: u32 = 0x8000_0001;
const SESSION: u32 = 0x0300_0000;

fn own() -> Own {
    Own {
        objects: [OBJECT].into(),
        sessions: [SESSION].into(),
        saved: [0x0200_0007].into(),
    }
}

/// A command as a client writes it, each handle of `passwords` with an empty password.
fn command(code: u32, handles: &[u32], sessions: &[u32], parameters: &[u8]) -> Vec<u8> {
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
    let tag = if sessions.is_empty() {
        ST_NO_SESSIONS
    } else {
        ST_SESSIONS
    };
    let header = Writer::default().u16(tag).u32((HEADER + body.len()) as u32);
    header.u32(code).bytes(&body).finish()
}

fn verdict(code: u32, handles: &[u32], sessions: &[u32], parameters: &[u8]) -> Result<(), Refusal> {
    judge(&command(code, handles, sessions, parameters), &own()).map(drop)
}

/// TPM 2.0 Library Part 2 (revision 1.84), table of TPM_CC; gaps are not assigned.
#[test]
fn every_command_has_a_row() {
    let gaps = [0x123, 0x15A, 0x15F, 0x166, 0x175];
    let assigned = (0x11F..=0x1A1).filter(|code| !gaps.contains(code));
    let mine: Vec<u32> = TABLE.iter().map(|row| row.code).collect();
    assert_eq!(mine, assigned.chain([0x2000_0000]).collect::<Vec<_>>());
    for row in TABLE {
        assert_eq!(row_of(row.code), Some(row));
    }
    let mut names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TABLE.len());
    assert_eq!(row_of(0x123), None);
}

#[test]
fn refuse_every_denied_command_whatever_it_says() {
    let denied = TABLE.iter().filter(|row| row.rule == Rule::Deny);
    let denied: Vec<_> = denied.collect();
    assert!(denied.len() > 30);
    let name = |name: &str| denied.iter().any(|row| row.name == name);
    for must in [
        "Clear",
        "PCR_Reset",
        "HierarchyControl",
        "HierarchyChangeAuth",
        "ChangeEPS",
        "Rewrap",
    ] {
        assert!(name(must), "{must}");
    }
    for row in denied {
        for handles in [&[][..], &[16], &[RH_OWNER], &[RH_LOCKOUT, RH_PLATFORM]] {
            let said = verdict(row.code, handles, &[RS_PW], &[]);
            assert_eq!(said, Err(Refusal::COMMAND), "{}", row.name);
        }
    }
    assert_eq!(verdict(0x123, &[], &[], &[]), Err(Refusal::COMMAND));
    assert_eq!(verdict(0x2000_1001, &[], &[], &[]), Err(Refusal::COMMAND));
}

#[test]
fn only_the_workloads_pcrs_are_extended() {
    let digests = [0, 0, 0, 0];
    for code in [0x182, 0x13C] {
        for pcr in 0..40 {
            let said = verdict(code, &[pcr], &[RS_PW], &digests);
            match pcr {
                12..=16 | 23 => assert_eq!(said, Ok(()), "{pcr}"),
                _ => assert_eq!(said, Err(Refusal::PCR), "{pcr}"),
            }
        }
    }
    assert_eq!(
        verdict(0x185, &[12, OBJECT], &[RS_PW, RS_PW], &[0, 0]),
        Ok(())
    );
    assert_eq!(
        verdict(0x185, &[10, OBJECT], &[RS_PW, RS_PW], &[0, 0]),
        Err(Refusal::PCR)
    );
}

#[test]
fn handles_are_the_clients_own() {
    let quote = |handle| verdict(0x158, &[handle], &[RS_PW], &[0, 0, 0, 16, 0, 0, 0, 0]);
    assert_eq!(quote(OBJECT), Ok(()));
    assert_eq!(quote(0x8100_0001), Ok(()));
    // the guard's attestation key has the handle 0x80000000 or near it
    for other in [
        0x8000_0000,
        0x8000_0002,
        0x8101_0001,
        RH_OWNER,
        0,
        0x0180_0000,
    ] {
        assert_eq!(quote(other), Err(Refusal::HANDLE), "{other:#x}");
    }
    let policy = |session| verdict(0x16B, &[session], &[], &[]);
    assert_eq!(policy(SESSION), Ok(()));
    assert_eq!(policy(0x0300_0001), Err(Refusal::HANDLE));
    let authorized = |session| verdict(0x15E, &[OBJECT], &[session], &[]);
    assert_eq!(authorized(SESSION), Ok(()));
    assert_eq!(authorized(0x0200_0000), Err(Refusal::HANDLE));
    let flush = |handle: u32| verdict(0x165, &[], &[], &handle.to_be_bytes());
    for mine in [OBJECT, SESSION, 0x0200_0007] {
        assert_eq!(flush(mine), Ok(()));
    }
    for other in [0x8000_0000, 0x0300_0009, RH_OWNER] {
        assert_eq!(flush(other), Err(Refusal::HANDLE));
    }
}

#[test]
fn in_the_endorsement_hierarchy_there_is_its_key_alone() {
    let primary = |hierarchy, template: &[u8]| {
        let parameters = Writer::default()
            .sized(&[0; 4])
            .sized(template)
            .sized(b"")
            .u32(0);
        verdict(0x131, &[hierarchy], &[RS_PW], &parameters.finish())
    };
    assert_eq!(primary(RH_OWNER, &aik_template()), Ok(()));
    assert_eq!(primary(RH_NULL, &aik_template()), Ok(()));
    assert_eq!(primary(RH_ENDORSEMENT, &ek_template()), Ok(()));
    assert_eq!(
        primary(RH_ENDORSEMENT, &aik_template()),
        Err(Refusal::HIERARCHY)
    );
    for hierarchy in [RH_PLATFORM, RH_LOCKOUT, OBJECT] {
        assert_eq!(primary(hierarchy, &aik_template()), Err(Refusal::HIERARCHY));
    }
    let loaded = |parent| {
        let parameters = Writer::default().sized(&[0; 4]).sized(&aik_template());
        verdict(0x191, &[parent], &[RS_PW], &parameters.finish())
    };
    assert_eq!(loaded(RH_OWNER), Ok(()));
    assert_eq!(loaded(RH_ENDORSEMENT), Err(Refusal::HANDLE));
    let secret = |handle| verdict(0x151, &[handle, SESSION], &[RS_PW], &[0; 10]);
    assert_eq!(secret(RH_ENDORSEMENT), Ok(()));
    assert_eq!(secret(RH_LOCKOUT), Err(Refusal::HANDLE));
    assert_eq!(secret(RH_PLATFORM), Err(Refusal::HANDLE));
}

#[test]
fn no_key_takes_seconds() {
    let rsa = |bits: u16| {
        let storage = Writer::default().u16(1).u16(11).u32(0x0003_0072).sized(b"");
        let storage = storage
            .u16(6)
            .u16(128)
            .u16(0x43)
            .u16(alg_null())
            .u16(bits)
            .u32(0);
        let public = storage.sized(b"").finish();
        let parameters = Writer::default()
            .sized(&[0; 4])
            .sized(&public)
            .sized(b"")
            .u32(0);
        verdict(0x153, &[OBJECT], &[RS_PW], &parameters.finish())
    };
    assert_eq!(rsa(1024), Ok(()));
    assert_eq!(rsa(2048), Ok(()));
    assert_eq!(rsa(3072), Err(Refusal::KEY_SIZE));
    assert_eq!(rsa(u16::MAX), Err(Refusal::KEY_SIZE));
}

fn alg_null() -> u16 {
    verify::tpm2::alg::NULL
}

#[test]
fn nv_and_persistent_objects_have_a_range() {
    let define = |index: u32| {
        let public = Writer::default()
            .u32(index)
            .u16(11)
            .u32(0x0004_0004)
            .sized(b"")
            .u16(8);
        let parameters = Writer::default().sized(b"").sized(&public.finish());
        verdict(0x12A, &[RH_OWNER], &[RS_PW], &parameters.finish())
    };
    assert_eq!(define(0x0180_0001), Ok(()));
    for index in [0x0100_0000, 0x0181_0000, 0x01C0_000A, 0x0140_0000] {
        assert_eq!(define(index), Err(Refusal::NV_RANGE), "{index:#x}");
    }
    let read = |index| verdict(0x14E, &[RH_OWNER, index], &[RS_PW], &[0, 8, 0, 0]);
    assert_eq!(read(0x0180_0001), Ok(()));
    assert_eq!(read(EK_CERTIFICATE), Ok(()));
    assert_eq!(read(0x01C0_0002), Err(Refusal::NV_RANGE));
    let write = |index| verdict(0x137, &[RH_OWNER, index], &[RS_PW], &[0, 0, 0, 0]);
    assert_eq!(write(0x0180_0001), Ok(()));
    assert_eq!(write(EK_CERTIFICATE), Err(Refusal::NV_RANGE));
    let undefine = |index| verdict(0x122, &[RH_OWNER, index], &[RS_PW], &[]);
    assert_eq!(undefine(EK_CERTIFICATE), Err(Refusal::NV_RANGE));
    let persist = |to: u32| verdict(0x120, &[RH_OWNER, OBJECT], &[RS_PW], &to.to_be_bytes());
    assert_eq!(persist(0x8100_0000), Ok(()));
    assert_eq!(persist(0x8101_0001), Err(Refusal::HANDLE));
    assert_eq!(persist(0x8180_0000), Err(Refusal::HANDLE));
}

#[test]
fn handles_of_others_are_not_listed() {
    let list = |capability: u32, from: u32| {
        let parameters = Writer::default().u32(capability).u32(from).u32(64).finish();
        judge(&command(0x17A, &[], &[], &parameters), &own()).map(|permit| permit.then)
    };
    for from in [0x8000_0000, 0x0200_0000, 0x0300_0000] {
        assert_eq!(list(1, from), Ok(Then::List { from, count: 64 }));
    }
    assert_eq!(list(1, 0x8100_0000), Ok(Then::Forward));
    assert_eq!(list(6, 0x100), Ok(Then::Forward));
}

#[test]
fn refuse_what_is_no_command() {
    let good = command(0x182, &[12], &[RS_PW], &[0, 0, 0, 0]);
    assert!(judge(&good, &own()).is_ok());
    for end in 0..good.len() {
        assert_eq!(
            judge(&good[..end], &own()).map(drop),
            Err(Refusal::SIZE),
            "{end}"
        );
        // cut with a size field that agrees: down to the authorization area nothing is missing
        let mut cut = good[..end].to_vec();
        if cut.len() >= HEADER {
            cut[5] = end as u8;
            let said = judge(&cut, &own()).map(drop);
            assert_eq!(said.is_ok(), end >= good.len() - 4, "{end}");
        }
    }
    let with = |at: usize, value: u8| {
        let mut changed = good.clone();
        changed[at] = value;
        judge(&changed, &own()).map(drop)
    };
    assert_eq!(with(1, 3), Err(Refusal::TAG));
    assert_eq!(with(2, 0xFF), Err(Refusal::SIZE));
    assert_eq!(with(17, 0), Err(Refusal::SIZE)); // an empty authorization area
    assert_eq!(with(14, 0xFF), Err(Refusal::SIZE));
    let four = command(0x182, &[12], &[RS_PW; 4], &[0, 0, 0, 0]);
    assert_eq!(judge(&four, &own()).map(drop), Err(Refusal::SIZE));
    let mut long = command(0x17B, &[], &[], &[0; MAX_MESSAGE]);
    assert_eq!(judge(&long, &own()).map(drop), Err(Refusal::SIZE));
    long.truncate(0);
    assert_eq!(judge(&long, &own()).map(drop), Err(Refusal::SIZE));
}

/// Numbers that look random and are the same each time (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Whatever the bytes are: no panic, and what is permitted names nothing that is not the client's.
#[test]
fn whatever_comes() {
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let interesting = [
        0,
        7,
        10,
        12,
        16,
        23,
        24,
        OBJECT,
        OBJECT - 1,
        SESSION,
        RH_OWNER,
        RH_NULL,
        RH_PLATFORM,
        RH_LOCKOUT,
        RH_ENDORSEMENT,
        RS_PW,
        0x0180_0000,
        EK_CERTIFICATE,
        0x8100_0000,
        u32::MAX,
    ];
    let mut permitted = 0;
    for _ in 0..300_000 {
        let row: &Row = &TABLE[numbers.below(TABLE.len())];
        let handles: Vec<u32> = (0..numbers.below(4))
            .map(|_| interesting[numbers.below(interesting.len())])
            .collect();
        let sessions = [RS_PW, SESSION, 0x0200_0001, RS_PW];
        let sessions = &sessions[..numbers.below(5)];
        let parameters: Vec<u8> = (0..numbers.below(60))
            .map(|_| numbers.next() as u8)
            .collect();
        let mut bytes = command(row.code, &handles, sessions, &parameters);
        for _ in 0..numbers.below(3) {
            let at = numbers.below(bytes.len());
            bytes[at] = numbers.next() as u8;
        }
        if let Ok(permit) = judge(&bytes, &own()) {
            permitted += 1;
            check(&bytes, &permit);
        }
    }
    assert!(permitted > 1000, "only {permitted} were permitted");
}

/// Says it again, from the bytes alone.
fn check(bytes: &[u8], permit: &Permit<'_>) {
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(2) as usize, bytes.len());
    let code = word(6);
    let row = row_of(code).unwrap();
    assert_ne!(row.rule, Rule::Deny, "{}", row.name);
    for at in 0..row.slots.len() {
        let handle = word(HEADER + 4 * at);
        let mine = match handle >> 24 {
            0x00 => matches!(handle, 12..=16 | 23),
            0x01 => (handle & 0x00FF_0000) == 0x0080_0000 || handle == EK_CERTIFICATE,
            0x02 | 0x03 => handle == SESSION,
            0x40 => [RH_OWNER, RH_NULL, RH_ENDORSEMENT].contains(&handle),
            0x80 => handle == OBJECT,
            0x81 => handle >> 16 == 0x8100,
            _ => false,
        };
        assert!(mine, "{} {handle:#x}", row.name);
    }
    assert!(permit.sessions.iter().all(|session| *session == SESSION));
}
