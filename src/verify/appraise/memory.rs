//! What a challenger remembers of the TPMs that it has asked before, and the checks that compare: a clock
//! that went back, a log that lost entries, a list that became older.
//!
//! The first answer of a TPM has nothing to be compared with, and says so. What is remembered is only what
//! an appraisal proved ([`Seen`] comes out of one, for the caller to keep).

use super::facts::Facts;
use super::{Answer, Problem, Verdict, ok, refused};
use crate::check::{Check, Finding, Subject};
use crate::id::UnixTime;
use crate::tpm2::{TpmName, VerifiedQuote};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

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
    },
}

impl Memory {
    /// Of somebody who never asked before.
    pub const fn none() -> Self {
        Self::Fresh {
            host: Before::Never,
            container: Before::Never,
            list_serial: 0,
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
    /// Bytes of its log, and their SHA-256 in hex.
    pub log_bytes: u64,
    pub log_digest: String,
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
        let list_serial = match (verdict, &facts.list) {
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
        let log = log(facts, subject);
        Self {
            reset: quote.reset(),
            restart: quote.restart(),
            clock: quote.clock(),
            signer: hex::encode(quote.signer()),
            log_bytes: log.len() as u64,
            log_digest: hex::encode(Sha256::digest(log)),
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

fn log<'a>(facts: &'a Facts<'_>, subject: Subject) -> &'a [u8] {
    match subject {
        Subject::Host => &facts.evidence.binding_log,
        Subject::Container => &facts.evidence.container_log,
    }
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
    if missing != 0 {
        return refused(format!("the log's first {missing} bytes are left out"));
    }
    let log = log(facts, subject);
    let before = match before(facts, subject) {
        Ok(before) => before,
        Err(why) => return ok(why),
    };
    if quote(facts, subject)?.reset() > before.reset {
        return ok("the TPM was reset since, and the log began anew");
    }
    let kept = usize::try_from(before.log_bytes)
        .ok()
        .and_then(|n| log.get(..n));
    match kept.map(|kept| hex::encode(Sha256::digest(kept))) {
        None => refused(format!(
            "the log has {} bytes, at {} it had {}: entries were taken away",
            log.len(),
            before.asked_at,
            before.log_bytes
        )),
        Some(digest) if digest == before.log_digest => ok(format!(
            "{} bytes, {} since {}",
            log.len(),
            log.len() as u64 - before.log_bytes,
            before.asked_at
        )),
        Some(_) => refused(format!(
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
