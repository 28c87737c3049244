//! The host's binding log: which records stand. Each entry is extended into host PCR 13.

use super::BindingError;
use crate::canon::canonical;
use crate::digest::RecordDigest;
use crate::pcr::extend_sha256;
use crate::tpm2::TpmName;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Longest log that is read (one line has about 180 bytes).
pub const MAX_LOG: usize = 64 << 20;

const LOG_DOMAIN: &[u8] = b"attestrun-log-v1";

/// What a log entry does to the record that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The container is about to start.
    Bind = 1,
    /// The container has ended.
    Unbind = 2,
    /// The record never became effective (the host service died in between).
    Void = 3,
}

/// One entry of the binding log: what everybody may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEntry {
    pub kind: Kind,
    /// SHA-256 of the vTPM attestation key's name.
    pub ak: [u8; 32],
    pub r: RecordDigest,
}

/// An entry as its line has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    kind: Kind,
    ak: String,
    r: RecordDigest,
}

impl LogEntry {
    pub fn new(kind: Kind, vtpm_ak: &TpmName, r: RecordDigest) -> Self {
        Self {
            kind,
            ak: ak_digest(vtpm_ak),
            r,
        }
    }

    /// What PCR 13 is extended with: SHA-256("attestrun-log-v1" ‖ kind ‖ ak ‖ r).
    pub fn value(&self) -> [u8; 32] {
        let hash = Sha256::new_with_prefix(LOG_DOMAIN).chain_update([self.kind as u8]);
        hash.chain_update(self.ak)
            .chain_update(self.r.as_bytes())
            .finalize()
            .into()
    }

    /// One canonical-JSON line, with its newline.
    pub fn line(&self) -> Result<Vec<u8>, BindingError> {
        let line = Line {
            kind: self.kind,
            ak: hex::encode(self.ak),
            r: self.r,
        };
        let mut bytes = canonical(&line).map_err(|e| BindingError::Malformed(e.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// How a log entry names a vTPM's attestation key.
pub fn ak_digest(vtpm_ak: &TpmName) -> [u8; 32] {
    Sha256::digest(vtpm_ak.as_bytes()).into()
}

/// The entries of a log; every line must be in its one spelling and end with a newline.
pub fn parse_log(bytes: &[u8]) -> Result<Vec<LogEntry>, BindingError> {
    if bytes.len() > MAX_LOG {
        return Err(BindingError::LogTooLong(bytes.len()));
    }
    let lines = bytes.split_inclusive(|b| *b == b'\n').zip(1..);
    lines
        .map(|(text, line)| {
            parse_line(text).map_err(|problem| BindingError::Line { line, problem })
        })
        .collect()
}

fn parse_line(text: &[u8]) -> Result<LogEntry, String> {
    let line: Line = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let mut ak = [0; 32];
    hex::decode_to_slice(&line.ak, &mut ak)
        .map_err(|_| format!("ak `{}` is malformed", line.ak))?;
    let entry = LogEntry {
        kind: line.kind,
        ak,
        r: line.r,
    };
    match entry.line() {
        Ok(canonical) if canonical == text => Ok(entry),
        _ => Err("not in canonical form".to_owned()),
    }
}

/// PCR 13 (SHA-256 bank) after all entries.
pub fn replay(start: [u8; 32], entries: &[LogEntry]) -> [u8; 32] {
    entries
        .iter()
        .fold(start, |pcr, entry| extend_sha256(&pcr, &entry.value()))
}

/// Why a record does not stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotLive {
    #[error("the log does not bind this record")]
    NeverBound,
    #[error("the log binds this record more than once")]
    BoundAgain,
    #[error("the log binds the same vTPM key to another record")]
    KeyReused,
    #[error("the log names this record with another vTPM key")]
    OtherKey,
    #[error("the record was unbound: the container has ended")]
    Unbound,
    #[error("the record was voided: the container never started")]
    Void,
}

/// Witness: bound exactly once, under this vTPM key alone, and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    r: RecordDigest,
    position: usize,
}

impl Live {
    pub fn record(&self) -> &RecordDigest {
        &self.r
    }
    /// Which entry of the log binds it, from 0.
    pub fn position(&self) -> usize {
        self.position
    }
}

/// Whether `r` is bound under `vtpm_ak`, once, with no later end; all reasons why not.
pub fn live(
    entries: &[LogEntry],
    r: &RecordDigest,
    vtpm_ak: &TpmName,
) -> Result<Live, Vec<NotLive>> {
    judge(None, entries, r, vtpm_ak)
}

/// As [`live`], where entries before these have bound it, at `position`, and had not ended it.
pub fn still_live(
    position: usize,
    entries: &[LogEntry],
    r: &RecordDigest,
    vtpm_ak: &TpmName,
) -> Result<Live, Vec<NotLive>> {
    judge(Some(position), entries, r, vtpm_ak)
}

/// `bound`: where entries that are not here have bound it.
fn judge(
    mut bound: Option<usize>,
    entries: &[LogEntry],
    r: &RecordDigest,
    vtpm_ak: &TpmName,
) -> Result<Live, Vec<NotLive>> {
    let ak = ak_digest(vtpm_ak);
    let mut problems = Vec::new();
    for (position, entry) in entries.iter().enumerate() {
        let (this_record, this_key) = (entry.r == *r, entry.ak == ak);
        match entry.kind {
            _ if this_record && !this_key => problems.push(NotLive::OtherKey),
            Kind::Bind if this_record && bound.is_some() => problems.push(NotLive::BoundAgain),
            Kind::Bind if this_record => bound = Some(position),
            Kind::Bind if this_key => problems.push(NotLive::KeyReused),
            Kind::Unbind if this_record => problems.push(NotLive::Unbound),
            Kind::Void if this_record => problems.push(NotLive::Void),
            Kind::Bind | Kind::Unbind | Kind::Void => {}
        }
    }
    match bound {
        Some(position) if problems.is_empty() => Ok(Live { r: *r, position }),
        Some(_) => Err(problems),
        None => Err([vec![NotLive::NeverBound], problems].concat()),
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bind => "bind",
            Self::Unbind => "unbind",
            Self::Void => "void",
        })
    }
}
