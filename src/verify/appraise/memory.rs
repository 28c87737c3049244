//! What a challenger remembers of the TPMs that it has asked before, and the checks that compare: a clock
//! that went back, a log that lost entries, a list that became older.
//!
//! The first answer of a TPM has nothing to be compared with, and says so. What is remembered is only what
//! an appraisal proved ([`Seen`] comes out of one, for the caller to keep).

use super::facts::Facts;
use super::known::KeptList;
use super::rolling::Rolling;
use super::{Answer, Problem, Verdict, ok, refused, unknown};
use crate::check::{Check, Finding, Subject};
use crate::digest::FileDigest;
use crate::growing::Growing;
use crate::id::UnixTime;
use crate::tpm2::{TpmName, VerifiedQuote};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What is known of earlier challenges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// Evidence that was kept: it was compared when it was given, and later answers may have come since.
    Kept,
    /// Fresh evidence, and what its TPMs said before.
    Fresh {
        host: Before,
        container: Before,
        /// The highest serial seen of the expected list; 0: none yet.
        list_serial: u64,
        /// What the last accepted answer left, for an answer that goes on from there.
        rolling: Option<Arc<Rolling>>,
        /// The list that the challenger said it has.
        siglist: Option<Arc<KeptList>>,
    },
}

impl Memory {
    /// Of somebody who never asked before.
    pub const fn none() -> Self {
        Self::Fresh {
            host: Before::Never,
            container: Before::Never,
            list_serial: 0,
            rolling: None,
            siglist: None,
        }
    }

    pub(super) fn rolling(&self) -> Option<&Rolling> {
        match self {
            Self::Kept => None,
            Self::Fresh { rolling, .. } => rolling.as_deref(),
        }
    }
    pub(super) fn siglist(&self) -> Option<&KeptList> {
        match self {
            Self::Kept => None,
            Self::Fresh { siglist, .. } => siglist.as_deref(),
        }
    }

    pub(super) fn list_serial(&self) -> u64 {
        match self {
            Self::Kept => 0,
            Self::Fresh { list_serial, .. } => *list_serial,
        }
    }
}

/// Whether this TPM has answered before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    Never,
    Seen(TpmState),
}

/// What one TPM, and the log behind its PCRs, had come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmState {
    pub reset: u32,
    pub restart: u32,
    /// Milliseconds.
    pub clock: u64,
    /// Qualified name of the attestation key, in hex.
    pub signer: String,
    /// Bytes of its log, and their digest ([`Growing`]).
    pub log_bytes: u64,
    pub log_digest: FileDigest,
    /// The challenger's own time.
    pub asked_at: UnixTime,
}

/// What an appraisal proved of both TPMs and the list: to be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub host: (TpmName, TpmState),
    pub container: (TpmName, TpmState),
    /// 0: no list was verified.
    pub list_serial: u64,
}

/// The checks without which nothing about the TPMs is proved.
const PROVING: [Check; 11] = [
    Check::QQd,
    Check::QPcrdig,
    Check::QClock,
    Check::QSigner,
    Check::KHak,
    Check::KVak,
    Check::BHash,
    Check::BOrder,
    Check::LReplay,
    Check::LCont,
    Check::TSkew,
];

impl Seen {
    /// None: too little was proved. A refused container is remembered all the same, if its quotes hold.
    pub(super) fn of(facts: &Facts<'_>, findings: &[Finding], verdict: &Verdict) -> Option<Self> {
        let proved = |f: &Finding| f.outcome.passes() || !PROVING.contains(&f.check);
        if !findings.iter().all(proved) {
            return None;
        }
        let host = TpmState::of(facts, Subject::Host, facts.host_quote().ok()?);
        let container = TpmState::of(facts, Subject::Container, facts.vtpm_quote().ok()?);
        // A serial counts once everything about its list is right.
        let list_serial = match (verdict, &facts.signed.list) {
            (Verdict::Accepted(_), Some(Ok(list))) => list.serial(),
            _ => 0,
        };
        Some(Self {
            host: (facts.host_public().ok()?.name(), host),
            container: (facts.vtpm_public().ok()?.name(), container),
            list_serial,
        })
    }
}

impl TpmState {
    fn of(facts: &Facts<'_>, subject: Subject, quote: &VerifiedQuote) -> Self {
        let log = facts.read(subject);
        Self {
            reset: quote.reset(),
            restart: quote.restart(),
            clock: quote.clock(),
            signer: hex::encode(quote.signer()),
            log_bytes: log.bytes(),
            log_digest: log.digest(),
            asked_at: facts.challenge.asked_at,
        }
    }

    /// Of two states of one TPM the later one.
    pub fn later(self, other: Self) -> Self {
        let order = |state: &Self| (state.reset, state.restart, state.clock);
        match order(&self) >= order(&other) {
            true => self,
            false => other,
        }
    }
}

/// What is here of a log, and how far it was read before.
fn log<'a>(facts: &'a Facts<'_>, subject: Subject) -> (&'a [u8], Growing) {
    let (evidence, earlier) = (facts.evidence, &facts.earlier);
    let (log, read) = match subject {
        Subject::Host => (
            &evidence.binding_log,
            earlier.binding.map(|log| log.read.clone()),
        ),
        Subject::Container => (
            &evidence.container_log,
            earlier.log.map(|log| log.read.clone()),
        ),
    };
    (log, read.unwrap_or_default())
}

/// What there is to compare with; or why there is nothing.
fn before<'a>(facts: &'a Facts<'_>, subject: Subject) -> Result<&'a TpmState, &'static str> {
    let before = match (facts.challenge.memory, subject) {
        (Memory::Kept, _) => return Err("kept evidence: compared when it was given"),
        (Memory::Fresh { host, .. }, Subject::Host) => host,
        (Memory::Fresh { container, .. }, Subject::Container) => container,
    };
    match before {
        Before::Seen(state) => Ok(state),
        Before::Never => Err("its first answer: nothing to compare with"),
    }
}

fn quote<'a>(facts: &'a Facts<'_>, subject: Subject) -> Result<&'a VerifiedQuote, Problem> {
    match subject {
        Subject::Host => facts.host_quote(),
        Subject::Container => facts.vtpm_quote(),
    }
}

/// A TPM's counters and clock never go back; if they do, an old state was put in its place.
pub(super) fn not_rolled_back(facts: &Facts<'_>, subject: Subject) -> Result<(), Problem> {
    let (quote, Ok(before)) = (quote(facts, subject)?, before(facts, subject)) else {
        return Ok(());
    };
    let found = (quote.reset(), quote.restart(), quote.clock());
    let seen = (before.reset, before.restart, before.clock);
    match found >= seen {
        true => Ok(()),
        false => Err(Problem::Refused(format!(
            "the TPM went back: resetCount, restartCount and clock are {found:?}, at {} they were {seen:?}",
            before.asked_at
        ))),
    }
}

/// The signing key's qualified name: of a primary key of the endorsement hierarchy it is known, of a
/// host's key it must stay what it was.
pub(super) fn signer(facts: &Facts<'_>, subject: Subject) -> Answer {
    let found = hex::encode(quote(facts, subject)?.signer());
    if subject == Subject::Container {
        let expected = facts.vtpm_public()?.name().qualified_in_endorsement();
        return match found == expected.to_string() {
            true => ok("a primary key of the vTPM's endorsement hierarchy"),
            false => refused(format!(
                "the signer's qualified name is {found}, a primary key of the endorsement hierarchy has {expected}"
            )),
        };
    }
    match before(facts, subject) {
        Err(why) => ok(format!("{found}; {why}")),
        Ok(before) if before.signer == found => ok("the same as before"),
        Ok(before) => refused(format!(
            "the signer's qualified name is {found}, at {} it was {}",
            before.asked_at, before.signer
        )),
    }
}

/// A log only grows, as long as the TPM is not reset.
pub(super) fn continued(facts: &Facts<'_>, subject: Subject) -> Answer {
    let missing = facts.evidence.log_from;
    let missing = match subject {
        Subject::Host => missing.host,
        Subject::Container => missing.container,
    };
    let (log, mut read) = log(facts, subject);
    if missing != read.bytes() {
        return refused(format!("the log's first {missing} bytes are left out"));
    }
    let before = match before(facts, subject) {
        Ok(before) => before,
        Err(why) => return ok(why),
    };
    if missing == 0 && quote(facts, subject)?.reset() > before.reset {
        return ok("the TPM was reset since, and the log began anew");
    }
    let total = facts.read(subject).bytes();
    if total < before.log_bytes {
        return refused(format!(
            "the log has {total} bytes, at {} it had {}: entries were taken away",
            before.asked_at, before.log_bytes
        ));
    }
    let known = before.log_bytes.checked_sub(missing);
    let known = known.and_then(|known| log.get(..usize::try_from(known).ok()?));
    let Some(known) = known else {
        return unknown(format!(
            "whether the log is that of {}: it had {} bytes then, and {missing} are remembered",
            before.asked_at, before.log_bytes
        ));
    };
    read.add(known);
    match read.digest() == before.log_digest {
        true => ok(format!(
            "{total} bytes, {} since {}",
            total - before.log_bytes,
            before.asked_at
        )),
        false => refused(format!(
            "the log's first {} bytes are not those of {}",
            before.log_bytes, before.asked_at
        )),
    }
}

/// Expiry, revocation and age are judged by the challenger's own clock, which must not go back either.
pub(super) fn skew(facts: &Facts<'_>, subject: Subject) -> Answer {
    let asked = facts.challenge.asked_at;
    match before(facts, subject) {
        Err(why) => ok(why),
        Ok(before) if before.asked_at <= asked => ok(format!("last asked at {}", before.asked_at)),
        Ok(before) => refused(format!(
            "asked at {asked}, but it was asked before at {}: the challenger's clock went back",
            before.asked_at
        )),
    }
}
