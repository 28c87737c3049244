//! What a container may say to its vTPM. The guard stands between them: it owns the connection, judges
//! each command, and is itself never kept waiting by more than one of them.
//!
//! * [`judge`] decides about one command's bytes. It is pure: no I/O, no state, time linear in the command.
//! * [`Broker`] carries out what was permitted: it lends each client the few places that a TPM has for
//!   objects and sessions, so that no client sees another's and the guard's keys keep theirs.
//!
//! Guarantees: PCRs of the measurement, the guard's keys, hierarchies and their authorization values
//! are out of a container's reach. Does not judge what a workload does with what is its own.

mod broker;
mod parameters;
pub mod table;
#[cfg(test)]
mod tests;

pub use broker::{Broker, ClientId};

use crate::wire::{
    HEADER, MAX_MESSAGE, Malformed, RH_ENDORSEMENT, RH_NULL, RH_OWNER, RS_PW, Reader,
    ST_NO_SESSIONS, ST_SESSIONS,
};
use std::collections::BTreeSet;
use std::fmt;
use table::{Row, Rule, Slot};

/// PCRs that a container may extend: 12 to 16, and 23.
pub const PCRS: u32 = 0b1000_0001_1111 << 12;
/// NV indices that a container may define (Part 2, "TCG registry of reserved handles": the owner's).
pub const NV: std::ops::RangeInclusive<u32> = 0x0180_0000..=0x0180_FFFF;
/// Where the certificate of the endorsement key lies (TCG EK Credential Profile, 2.2.1.4, ECC P-256).
pub const EK_CERTIFICATE: u32 = 0x01C0_000A;
/// Persistent handles that a container may use.
pub const PERSISTENT: std::ops::RangeInclusive<u32> = 0x8100_0000..=0x8100_FFFF;
/// Sessions that authorize one command, at most (Part 1, 18.5).
const MAX_SESSIONS: usize = 3;

/// A response code of the layer above the TPM (TSS 2.0 Overview, "resource manager"): a reader can tell
/// it from the TPM's own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Refusal(u32);

/// TSS2_RESMGR_TPM_RC_LAYER.
const LAYER: u32 = 11 << 16;

impl Refusal {
    /// No such command for a container (TPM_RC_COMMAND_CODE).
    pub const COMMAND: Self = Self(LAYER | 0x143);
    /// The size field or what it covers is wrong (TPM_RC_COMMAND_SIZE).
    pub const SIZE: Self = Self(LAYER | 0x142);
    /// Neither of the two tags (TPM_RC_BAD_TAG).
    pub const TAG: Self = Self(LAYER | 0x1E);
    /// Not the client's own, or not in its range (TPM_RC_HANDLE).
    pub const HANDLE: Self = Self(LAYER | 0x8B);
    /// Not for a container (TPM_RC_HIERARCHY).
    pub const HIERARCHY: Self = Self(LAYER | 0x85);
    /// A PCR of the measurement (TPM_RC_LOCALITY: what a TPM says of a PCR that only others may extend).
    pub const PCR: Self = Self(LAYER | 0x907);
    /// Not in the workload's range (TPM_RC_NV_RANGE).
    pub const NV_RANGE: Self = Self(LAYER | 0x146);
    /// Parameters are not such as are allowed (TPM_RC_VALUE).
    pub const VALUE: Self = Self(LAYER | 0x84);
    /// A key that takes too long to make (TPM_RC_KEY_SIZE).
    pub const KEY_SIZE: Self = Self(LAYER | 0x87);
    /// Sessions where there may be none (TPM_RC_AUTH_CONTEXT).
    pub const AUTH_CONTEXT: Self = Self(LAYER | 0x145);
    /// The client has its share of objects (TPM_RC_OBJECT_MEMORY).
    pub const OBJECTS: Self = Self(LAYER | 0x902);
    /// The container has its share of sessions (TPM_RC_SESSION_HANDLES).
    pub const SESSIONS: Self = Self(LAYER | 0x905);

    pub const fn code(self) -> u32 {
        self.0
    }

    /// The response that says so.
    pub fn response(self) -> Vec<u8> {
        response(self.0)
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refusal({:#x})", self.0)
    }
}

impl From<Malformed> for Refusal {
    fn from(_: Malformed) -> Self {
        Self::SIZE
    }
}

/// A response without parameters.
fn response(code: u32) -> Vec<u8> {
    let mut bytes = ST_NO_SESSIONS.to_be_bytes().to_vec();
    bytes.extend((HEADER as u32).to_be_bytes());
    bytes.extend(code.to_be_bytes());
    bytes
}

/// What is a client's own.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// Transient objects, by the handles that the client knows.
    pub objects: BTreeSet<u32>,
    pub sessions: BTreeSet<u32>,
    /// Sessions that some client of the container has saved: whoever has the context may load it, and
    /// each may flush it.
    pub saved: BTreeSet<u32>,
}

/// A command that may be carried out. Only [`judge`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit<'a> {
    row: &'static Row,
    command: &'a [u8],
    handles: Vec<u32>,
    sessions: Vec<u32>,
    then: Then,
}

/// How a permitted command is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// By the vTPM.
    Forward,
    /// This handle of the client's is given up.
    Flush(u32),
    /// Handles of this kind (Part 2, 7.2), from this one on, so many.
    List { from: u32, count: u32 },
}

impl Permit<'_> {
    pub fn row(&self) -> &'static Row {
        self.row
    }
}

/// Decides about one command, which a client sent that has `own`.
pub fn judge<'a>(command: &'a [u8], own: &Own) -> Result<Permit<'a>, Refusal> {
    let mut reader = Reader::new(command);
    let tag = reader.u16()?;
    let size = reader.u32()? as usize;
    let code = reader.u32()?;
    if size != command.len() || size > MAX_MESSAGE {
        return Err(Refusal::SIZE);
    }
    if ![ST_NO_SESSIONS, ST_SESSIONS].contains(&tag) {
        return Err(Refusal::TAG);
    }
    let row = table::row_of(code).ok_or(Refusal::COMMAND)?;
    let check = match row.rule {
        Rule::Deny => return Err(Refusal::COMMAND),
        Rule::Allow => None,
        Rule::With(check) => Some(check),
    };
    let mut handles = Vec::with_capacity(row.slots.len());
    for slot in row.slots {
        let handle = reader.u32()?;
        admit(*slot, handle, own)?;
        handles.push(handle);
    }
    let sessions = match tag == ST_SESSIONS {
        true => authorizations(&mut reader, own)?,
        false => Vec::new(),
    };
    let then = match check {
        None => Then::Forward,
        Some(check) => parameters::check(check, &handles, tag == ST_SESSIONS, &mut reader, own)?,
    };
    Ok(Permit {
        row,
        command,
        handles,
        sessions,
        then,
    })
}

/// The sessions of an authorization area, passwords left out.
fn authorizations(reader: &mut Reader<'_>, own: &Own) -> Result<Vec<u32>, Refusal> {
    let size = reader.u32()? as usize;
    let mut area = Reader::new(reader.take(size)?);
    let (mut sessions, mut count) = (Vec::new(), 0);
    while !area.is_empty() {
        let handle = area.u32()?;
        area.sized()?; // nonce
        area.u8()?; // attributes
        area.sized()?; // HMAC or password
        count += 1;
        if count > MAX_SESSIONS {
            return Err(Refusal::SIZE);
        }
        match handle {
            RS_PW => {}
            _ if own.sessions.contains(&handle) => sessions.push(handle),
            _ => return Err(Refusal::HANDLE),
        }
    }
    match count {
        0 => Err(Refusal::SIZE),
        _ => Ok(sessions),
    }
}

/// Whether `handle` may stand in `slot`.
fn admit(slot: Slot, handle: u32, own: &Own) -> Result<(), Refusal> {
    let object = || own.objects.contains(&handle) || PERSISTENT.contains(&handle);
    let key = || object() || handle == RH_NULL;
    let session = || own.sessions.contains(&handle);
    let readable = || NV.contains(&handle) || handle == EK_CERTIFICATE;
    let fits = match slot {
        Slot::Key => key(),
        Slot::Parent => key() || handle == RH_OWNER,
        Slot::PrimaryOf => [RH_OWNER, RH_NULL, RH_ENDORSEMENT].contains(&handle),
        Slot::Privacy => handle == RH_ENDORSEMENT,
        Slot::Owner => handle == RH_OWNER,
        Slot::Entity => {
            key() || NV.contains(&handle) || [RH_OWNER, RH_ENDORSEMENT].contains(&handle)
        }
        Slot::Nv => NV.contains(&handle),
        Slot::NvRead => readable(),
        Slot::NvAuth => NV.contains(&handle) || handle == RH_OWNER,
        Slot::NvReadAuth => readable() || handle == RH_OWNER,
        Slot::Session => session(),
        Slot::Pcr => handle == RH_NULL || (handle < 32 && PCRS & 1 << handle != 0),
        Slot::Saved => own.objects.contains(&handle) || session(),
    };
    match (fits, slot) {
        (true, _) => Ok(()),
        (false, Slot::Pcr) => Err(Refusal::PCR),
        (false, Slot::Nv | Slot::NvRead | Slot::NvAuth | Slot::NvReadAuth) => {
            Err(Refusal::NV_RANGE)
        }
        (false, Slot::PrimaryOf | Slot::Privacy | Slot::Owner) => Err(Refusal::HIERARCHY),
        (false, _) => Err(Refusal::HANDLE),
    }
}

/// A transient object's handle, as a client knows it.
const fn is_transient(handle: u32) -> bool {
    handle >> 24 == 0x80
}

/// An HMAC session's handle, or a policy session's.
const fn is_session(handle: u32) -> bool {
    matches!(handle >> 24, 0x02 | 0x03)
}
