//! Appraisal: evidence and expectations in, every check's answer by name and the verdict out.
//!
//! Trusts: what [`Expectations`] and [`Trust`] hold, the nonce and the clock of the challenger.
//! Proves, when all checks pass or are waived by name: this container, started from that image
//! under that list, has executed only listed programs until now, on that host.
//!
//! No check stops another one: all failures are reported. What a failure keeps out of reach is
//! unknown, never ok. A check is a function of [`Facts`]; the match in `answer` has no default, so
//! that a new check does not compile without one.

mod binding;
mod expect;
mod facts;
mod files;
mod grounds;
mod host;
mod known;
mod launch;
mod list;
mod log;
mod memory;
mod modes;
mod quote;
mod report;
mod rolling;

pub use expect::{
    Any, ArgsRule, EnvRule, ExpectError, Expectations, ExpectedFirmware, ExpectedLaunch,
    ExpectedList, PinnedHost, RevocationCheck,
};
pub use known::KeptList;
pub use log::{ContainerLog, Order};
pub use memory::{Before, Memory, Seen, TpmState};
pub use report::{ContainerReport, Executed, HostReport, Measured};
pub use rolling::{Rolling, Standard};

use crate::check::{Check, Finding, Outcome, Subject, Waiver};
use crate::digest::{ImageDigest, OrNone, RecordDigest};
use crate::evidence::Evidence;
use crate::hostlist::HostPolicy;
use crate::id::{ContainerId, Nonce, UnixTime};
use crate::release::Recipient;
use facts::Facts;

/// The bytes behind the paths that expectations name, read by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// User CA certificates (DER).
    pub user_roots: Vec<Vec<u8>>,
    /// CRLs (DER).
    pub crls: Vec<Vec<u8>>,
    /// The expectations' `host_policy`; without it nothing is known of the host's programs (P-HOST).
    pub host_policy: Option<HostPolicy>,
}

/// Witness: every check passed or was waived by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    container: ContainerId,
    image: OrNone<ImageDigest>,
    host: String,
    record: RecordDigest,
    waived: Vec<Waiver>,
    recipient: Box<Recipient>,
}

impl Trusted {
    pub fn container(&self) -> &ContainerId {
        &self.container
    }
    /// None: a directory without an image, which the expectations waive by name.
    pub fn image(&self) -> OrNone<ImageDigest> {
        self.image
    }
    /// The pinned host's name.
    pub fn host(&self) -> &str {
        &self.host
    }
    pub fn record(&self) -> RecordDigest {
        self.record
    }
    /// What was let through because the expectations name it.
    pub fn waived(&self) -> &[Waiver] {
        &self.waived
    }
    /// Its vTPM, for what is meant for it alone.
    pub fn recipient(&self) -> &Recipient {
        &self.recipient
    }
}

/// The result of an appraisal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // one for each appraisal
pub enum Verdict {
    Accepted(Trusted),
    /// Some check found something wrong.
    Refused,
    /// Nothing was found wrong, but some check could not be made.
    Unknown,
}

impl Verdict {
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// Every check once per subject, the verdict, and what evidence says about host and container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appraisal {
    pub findings: Vec<Finding>,
    pub verdict: Verdict,
    /// Claims, unless the verdict is `Accepted`.
    pub host: HostReport,
    /// Claims, unless the verdict is `Accepted`.
    pub container: ContainerReport,
    /// What to remember for the next challenge; None: too little was proved.
    pub seen: Option<Seen>,
    /// From where the next answer may go on; None: it must be whole.
    pub rolling: Option<Rolling>,
}

/// What was asked, and when.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub nonce: &'a Nonce,
    pub container: &'a ContainerId,
    pub channel_binding: &'a [u8],
    /// Whether the host's quote may cover other challenges as well.
    pub batch: bool,
    pub asked_at: UnixTime,
}

/// Judges `evidence`, which answers `question`. `peers`: containers that were accepted just before.
pub fn appraise(
    evidence: &Evidence,
    question: &Question<'_>,
    standard: &Standard,
    now: UnixTime,
    peers: &[Trusted],
    memory: &Memory,
) -> Appraisal {
    let challenge = facts::Challenge {
        nonce: question.nonce,
        container: question.container,
        channel_binding: question.channel_binding,
        batch: question.batch,
        now,
        asked_at: question.asked_at,
        peers,
        memory,
    };
    let facts = Facts::gather(evidence, &challenge, standard);
    let findings: Vec<Finding> = Check::ALL
        .iter()
        .flat_map(|check| {
            check
                .subjects()
                .iter()
                .map(|subject| finding(*check, *subject, &facts))
        })
        .collect();
    let verdict = judge(&findings, &facts);
    let (host, container) = (HostReport::of(&facts), ContainerReport::of(&facts));
    let seen = Seen::of(&facts, &findings, &verdict);
    let rolling = Rolling::of(&facts, &verdict);
    Appraisal {
        findings,
        verdict,
        host,
        container,
        seen,
        rolling,
    }
}

/// The only place that makes a [`Trusted`].
fn judge(findings: &[Finding], facts: &Facts<'_>) -> Verdict {
    if findings
        .iter()
        .any(|f| matches!(f.outcome, Outcome::Refused { .. }))
    {
        return Verdict::Refused;
    }
    // Exactly the full set: no check is missing, none counts twice.
    let demanded = Check::ALL
        .iter()
        .flat_map(|c| c.subjects().iter().map(|s| (*c, *s)));
    let complete = findings.iter().map(|f| (f.check, f.subject)).eq(demanded);
    let passed = findings.iter().all(|f| f.outcome.passes());
    match (&facts.record, facts.pin(), facts.recipient()) {
        (Ok(record), Ok(pin), Some(recipient)) if complete && passed => {
            Verdict::Accepted(Trusted {
                container: record.claim.container.clone(),
                image: record.claim.image,
                host: pin.name.clone(),
                record: facts.r,
                waived: findings
                    .iter()
                    .filter_map(|f| match f.outcome {
                        Outcome::Waived { by, .. } => Some(by),
                        _ => None,
                    })
                    .collect(),
                recipient: Box::new(recipient),
            })
        }
        _ => Verdict::Unknown,
    }
}

/// A check that passes: what was looked at, or which waiver let it through.
enum Pass {
    Ok(String),
    Waived { by: Waiver, what: String },
}

/// A check that does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Problem {
    Refused(String),
    Unknown(String),
}

type Answer = Result<Pass, Problem>;

fn ok(detail: impl Into<String>) -> Answer {
    Ok(Pass::Ok(detail.into()))
}
fn refused(why: impl Into<String>) -> Answer {
    Err(Problem::Refused(why.into()))
}
fn unknown(why: impl Into<String>) -> Answer {
    Err(Problem::Unknown(why.into()))
}
/// Refused with all of `problems`, or ok without any.
fn all_of(problems: Vec<String>, detail: impl Into<String>) -> Answer {
    match problems.is_empty() {
        true => ok(detail),
        false => refused(problems.join("; ")),
    }
}
/// `found`, unless it is missing and `problems` already refuse, whatever it might say.
fn or_refuse<T>(found: Result<T, Problem>, problems: &[String]) -> Result<T, Problem> {
    match problems {
        [] => found,
        some => found.map_err(|_| Problem::Refused(some.join("; "))),
    }
}
/// `problem`, unless the expectations name the waiver.
fn waivable(facts: &Facts<'_>, by: Waiver, problem: Problem) -> Answer {
    match (&problem, facts.expect.waives(by)) {
        (Problem::Refused(what) | Problem::Unknown(what), true) => Ok(Pass::Waived {
            by,
            what: what.clone(),
        }),
        (_, false) => Err(problem),
    }
}

fn finding(check: Check, subject: Subject, facts: &Facts<'_>) -> Finding {
    let (outcome, detail) = match answer(check, subject, facts) {
        Ok(Pass::Ok(detail)) => (Outcome::Ok, detail),
        Ok(Pass::Waived { by, what }) => (
            Outcome::Waived {
                by,
                what: what.clone(),
            },
            what,
        ),
        Err(Problem::Refused(why)) => (Outcome::Refused { why: why.clone() }, why),
        Err(Problem::Unknown(why)) => (Outcome::Unknown { why: why.clone() }, why),
    };
    Finding {
        check,
        subject,
        outcome,
        detail,
    }
}

fn answer(check: Check, subject: Subject, facts: &Facts<'_>) -> Answer {
    match check {
        Check::QParse
        | Check::QMagic
        | Check::QType
        | Check::QSig
        | Check::QQd
        | Check::QAkattr
        | Check::QSel
        | Check::QPcrdig => quote::answer(check, subject, facts),
        Check::QClock => match subject {
            Subject::Host => quote::host_clock(facts),
            Subject::Container => quote::vtpm_clock(facts),
        },
        Check::QSigner => memory::signer(facts, subject),
        Check::QFw => quote::firmware(facts, subject),
        Check::LTmpl => log::template_hashes(facts),
        Check::LCont => memory::continued(facts, subject),
        Check::PMissing => list::missing(facts),
        Check::TSkew => memory::skew(facts, subject),
        Check::KHak => binding::host_key(facts),
        Check::KVak => binding::vtpm_keys(facts),
        Check::KDistinct => binding::distinct(facts),
        Check::HRoot => binding::root(facts),
        Check::BHash => binding::covered(facts),
        Check::BId => binding::container(facts),
        Check::BImg => binding::image(facts),
        Check::BEpoch => binding::epoch(facts),
        Check::BLive => binding::live(facts),
        Check::BOrder => binding::order(facts),
        Check::LParse => match subject {
            Subject::Host => log::host_parse(facts),
            Subject::Container => log::parse(facts),
        },
        Check::LReplay => match subject {
            Subject::Host => log::host_replay(facts),
            Subject::Container => log::replay(facts),
        },
        Check::LFirst => log::order(facts),
        Check::LPath => log::paths(facts),
        Check::LViol => log::violations(facts),
        Check::POpaque => log::opaque(facts),
        Check::PUnlisted => list::unlisted(facts),
        Check::PHash => list::contents(facts),
        Check::PFault => modes::faults(facts),
        Check::PHost => host::programs(facts),
        Check::PCert => list::certificate(facts),
        Check::PSiglist => list::list(facts),
        Check::PKeys => list::kernel(facts),
        Check::PMode => modes::mode(facts),
        Check::PPolicy => modes::policy(facts),
        Check::PRuntime => modes::runtime(facts),
        Check::PRootfs => modes::rootfs(facts),
        Check::POrigin => grounds::origin(facts),
        Check::PPrograms => grounds::programs(facts),
        Check::PMounts => grounds::mounts(facts),
        Check::TAge => modes::age(facts),
        Check::TTier => modes::tier(facts),
        Check::CArgs
        | Check::CEnv
        | Check::CCaps
        | Check::CNs
        | Check::CMount
        | Check::CDev
        | Check::CHook
        | Check::CPeer => launch::answer(check, facts),
    }
}

#[cfg(test)]
mod scene;
#[cfg(test)]
mod tests;
