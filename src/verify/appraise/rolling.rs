//! What an accepted answer leaves for the next one: how far each log was read and what it came to there, so
//! that only what is new has to be sent and judged.
//!
//! It stands for entries that were judged and let pass, by one challenger's expectations, of one binding
//! record. For other expectations or another record it does not count ([`applicable`]), and a log without
//! its beginning is refused (L-CONT). What later entries are judged by is kept whole, not its verdict:
//! every check is made again on what is kept and what is new.

use super::facts::Facts;
use super::known::Known;
use super::log::{ContainerLog, Earlier};
use super::{Expectations, RevocationCheck, Trust, Verdict};
use crate::binding::{self, Live, LogEntry, NotLive};
use crate::check::Subject;
use crate::cms::Revocation;
use crate::digest::{FileDigest, RecordDigest};
use crate::evidence::Evidence;
use crate::growing::Growing;
use crate::imalog::{self, EncodedPath, Values};
use crate::pcr::QUOTED;
use crate::tpm2::TpmName;
use crate::wire::{Has, Prefix};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

/// What evidence is judged by, and its name: a challenger's expectations and the files behind them.
#[derive(Debug)]
pub struct Standard {
    expect: Expectations,
    trust: Trust,
    revocation: Revocation,
    digest: FileDigest,
    known: Known,
}

impl Standard {
    pub fn new(expect: Expectations, trust: Trust) -> Self {
        // strings, numbers and lists of them: there always is JSON for these
        let text = serde_json::to_vec(&(&expect, &trust.host_policy)).unwrap_or_default();
        let mut all = Growing::default();
        for parts in [&vec![text], &trust.user_roots, &trust.crls] {
            all.add(&(parts.len() as u64).to_be_bytes());
            for part in parts {
                all.add(&(part.len() as u64).to_be_bytes());
                all.add(part);
            }
        }
        let digest = all.digest();
        let revocation = match expect.revocation {
            RevocationCheck::Unchecked => Revocation::Unchecked,
            RevocationCheck::Crl => Revocation::Crls(trust.crls.clone()),
        };
        Self {
            expect,
            trust,
            revocation,
            digest,
            known: Known::default(),
        }
    }
    pub fn expect(&self) -> &Expectations {
        &self.expect
    }
    pub fn trust(&self) -> &Trust {
        &self.trust
    }
    pub(super) fn revocation(&self) -> &Revocation {
        &self.revocation
    }
    pub(super) fn known(&self) -> &Known {
        &self.known
    }
}

/// See the module's comment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rolling {
    standard: FileDigest,
    host_ak: TpmName,
    vtpm_ak: TpmName,
    record: RecordDigest,
    log: LogState,
    binding: BindingState,
    ima: Option<ImaState>,
}

/// A container's log, as far as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LogText", into = "LogText")]
pub(super) struct LogState {
    pub read: Growing,
    pub log: ContainerLog,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogText {
    read: Growing,
    /// Of the quoted PCRs.
    pcrs: Vec<FileDigest>,
    /// Encoded entries, in base64.
    events: String,
    files: Vec<(String, FileDigest)>,
    measured_files: usize,
    entered: usize,
}

impl From<LogState> for LogText {
    fn from(state: LogState) -> Self {
        let LogState { read, log } = state;
        let pcrs = log.replay.of(&QUOTED);
        // They came out of entries.
        let entries = log.events.iter().filter_map(|event| event.to_entry().ok());
        let events: Vec<u8> = entries.flat_map(|entry| entry.encode()).collect();
        let files = log.earlier.files.into_iter();
        Self {
            read,
            pcrs: pcrs.into_iter().map(FileDigest::from_bytes).collect(),
            events: BASE64.encode(events),
            files: files.map(|(path, of)| (path.to_string(), of)).collect(),
            measured_files: log.earlier.measured_files,
            entered: log.earlier.entered,
        }
    }
}

impl TryFrom<LogText> for LogState {
    type Error = String;
    fn try_from(text: LogText) -> Result<Self, String> {
        let events = BASE64.decode(&text.events).map_err(|e| e.to_string())?;
        let mut log = ContainerLog::parse(&events).map_err(|e| e.to_string())?;
        if text.pcrs.len() != QUOTED.len() {
            return Err(format!("{} PCRs", text.pcrs.len()));
        }
        log.replay = Values::ZERO;
        for (pcr, value) in QUOTED.iter().zip(&text.pcrs) {
            log.replay.set(*pcr, *value.as_bytes());
        }
        let files = text.files.iter();
        let files = files.map(|(path, of)| Ok((EncodedPath::parse(path)?, *of)));
        log.earlier = Earlier {
            files: files
                .collect::<Result<_, imalog::PathError>>()
                .map_err(|e| e.to_string())?,
            measured_files: text.measured_files,
            entered: text.entered,
        };
        Ok(Self {
            read: text.read,
            log,
        })
    }
}

/// The host's binding log, as far as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BindingState {
    pub read: Growing,
    /// Value of host PCR 13.
    pcr: FileDigest,
    entries: usize,
    /// Which entry binds the record.
    position: usize,
}

impl BindingState {
    pub fn position(&self) -> usize {
        self.position
    }
}

/// The host's IMA list, as far as a quoted PCR has proved it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImaState {
    pub read: Growing,
    /// Value of host PCR 10.
    pub pcr: FileDigest,
    pub entries: usize,
    /// Bytes that were shown: later quotes cover them.
    pub shown: u64,
    /// The digest in the first entry, if it is a boot_aggregate.
    pub boot: Option<FileDigest>,
    /// Which of the programs that vouch for the container the list has.
    pub vouching: Vec<FileDigest>,
}

/// The host's binding log: what is here of it, and what an earlier answer showed.
pub(super) struct BindingLog<'a> {
    pub earlier: Option<&'a BindingState>,
    pub entries: Vec<LogEntry>,
}

impl BindingLog<'_> {
    pub fn len(&self) -> usize {
        self.earlier.map_or(0, |earlier| earlier.entries) + self.entries.len()
    }
    /// PCR 13, which was `start` before the first entry of all.
    pub fn replay(&self, start: [u8; 32]) -> [u8; 32] {
        let start = self
            .earlier
            .map_or(start, |earlier| *earlier.pcr.as_bytes());
        binding::replay(start, &self.entries)
    }
    pub fn live(&self, r: &RecordDigest, vtpm_ak: &TpmName) -> Result<Live, Vec<NotLive>> {
        match self.earlier {
            None => binding::live(&self.entries, r, vtpm_ak),
            Some(earlier) => binding::still_live(earlier.position, &self.entries, r, vtpm_ak),
        }
    }
}

/// The parts of what is remembered with which the logs of this answer go on.
#[derive(Default)]
pub(super) struct Continued<'a> {
    pub log: Option<&'a LogState>,
    pub binding: Option<&'a BindingState>,
    pub ima: Option<&'a ImaState>,
}

/// Of `rolling` what stands for the beginnings that `evidence` leaves out.
pub(super) fn applicable<'a>(
    rolling: Option<&'a Rolling>,
    standard: &Standard,
    evidence: &Evidence,
    keys: [Option<TpmName>; 2],
) -> Continued<'a> {
    let counts = |rolling: &&Rolling| {
        rolling.standard == standard.digest
            && rolling.record == evidence.record_digest()
            && keys == [Some(rolling.host_ak), Some(rolling.vtpm_ak)]
    };
    let Some(rolling) = rolling.filter(counts) else {
        return Continued::default();
    };
    let from = evidence.log_from;
    let ima = rolling.ima.as_ref();
    Continued {
        log: Some(&rolling.log).filter(|log| log.read.bytes() == from.container),
        binding: Some(&rolling.binding).filter(|log| log.read.bytes() == from.host),
        ima: ima.filter(|list| list.entries > 0 && list.read.bytes() == from.ima),
    }
}

impl Rolling {
    /// Of an answer that was accepted, if it can be gone on with.
    pub(super) fn of(facts: &Facts<'_>, verdict: &Verdict) -> Option<Self> {
        if !matches!(verdict, Verdict::Accepted(_)) {
            return None;
        }
        let log = facts.log.as_ref().ok()?;
        let binding = facts.binding_log.as_ref().ok()?;
        let start = facts.pin().ok()?.start()?;
        let vtpm_ak = facts.vtpm_public().ok()?.name();
        Some(Self {
            standard: facts.standard.digest,
            host_ak: facts.host_public().ok()?.name(),
            vtpm_ak,
            record: facts.r,
            log: LogState {
                read: facts.read(Subject::Container).clone(),
                log: log.settled()?,
            },
            binding: BindingState {
                read: facts.read(Subject::Host).clone(),
                pcr: FileDigest::from_bytes(binding.replay(start)),
                entries: binding.len(),
                position: binding.live(&facts.r, &vtpm_ak).ok()?.position(),
            },
            ima: super::host::state(facts),
        })
    }

    /// What need not be sent again to who judges by `standard`.
    pub fn has(&self, standard: &Standard) -> Has {
        if self.standard != standard.digest {
            return Has::default();
        }
        Has {
            container: Prefix::of(&self.log.read),
            host: Prefix::of(&self.binding.read),
            ima: self.ima.as_ref().and_then(|ima| Prefix::of(&ima.read)),
            siglist: None,
        }
    }
}
