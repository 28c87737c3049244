//! The host's programs: its kernel's IMA list against the quoted PCR and the challenger's host policy.

use super::facts::Facts;
use super::{Answer, Problem, all_of, refused, unknown, waivable};
use crate::check::Waiver;
use crate::digest::FileDigest;
use crate::hostlist::HostPolicy;
use crate::imalog::encode_path;
use crate::imalog::kernel::{HostEntry, Seen, explained, parse_host};
use crate::pcr::{FILES, PcrIndex};
use crate::tpm2::QuotedPcrs;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;

/// The kernel's name for the first entry of its list.
const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";
/// What it is the hash of, in their order, since Linux 5.8 (`ima_calc_boot_aggregate_tfm`).
const BOOT_PCRS: std::ops::Range<u32> = 0..10;
/// A host that measures what it should not would fill pages.
const MAX_TOLD: usize = 8;

/// The host ran listed programs only, and among them the very programs that vouch for the container.
pub(super) fn programs(facts: &Facts<'_>) -> Answer {
    let unseen = |what: &str| waivable(facts, Waiver::NoIma, Problem::Unknown(what.to_owned()));
    if facts.evidence.host_ima.is_empty() {
        return unseen("the host shows no IMA list: which programs it ran is not known");
    }
    // a list that is shown must be the TPM's, whether anybody judges what it says or not
    let entries = match parse_host(&facts.evidence.host_ima) {
        Ok(entries) => entries,
        Err(why) => return refused(format!("the host's IMA list: {why}")),
    };
    let Some(values) = facts.host.values() else {
        return unknown("the host's PCR values are not proved");
    };
    let quoted = values.get(FILES);
    if quoted.and_then(|pcr| explained(&entries, pcr)).is_none() {
        return refused(format!("the host's IMA list does not explain PCR {FILES}"));
    }
    let Some(policy) = facts.host_policy else {
        return unseen("the expectations name no host_policy: what the host may run is not known");
    };
    if facts.challenge.now >= policy.expires_at() {
        let (title, end) = (policy.title(), policy.expires_at());
        return refused(format!("the {title} ran out at {end}"));
    }
    let mut problems = booted(&entries, values).err().into_iter().collect();
    let seen = unlisted(&entries, policy, &mut problems);
    problems.extend(unmeasured(facts, &seen)?);
    let more = problems.len().saturating_sub(MAX_TOLD);
    problems.truncate(MAX_TOLD);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    all_of(
        problems,
        format!("{} entries, all in {}", entries.len(), policy.title()),
    )
}

/// The list begins with this boot.
fn booted(entries: &[HostEntry], values: &QuotedPcrs) -> Result<(), String> {
    let Some(Seen::File { digest, path }) = entries.first().map(|entry| &entry.seen) else {
        return Err("the host's IMA list does not begin with a SHA-256 boot_aggregate".to_owned());
    };
    let mut hash = Sha256::new();
    for pcr in BOOT_PCRS.filter_map(|pcr| PcrIndex::new(pcr).ok()) {
        hash.update(values.get(pcr).ok_or("the quoted PCRs are incomplete")?);
    }
    let expected = FileDigest::from_bytes(hash.finalize().into());
    match path == BOOT_AGGREGATE && *digest == expected {
        true => Ok(()),
        false => Err(format!(
            "the host's IMA list begins with {} {digest}, PCRs 0 to 9 give boot_aggregate {expected}",
            encode_path(path)
        )),
    }
}

/// What was measured and is not listed; returns all contents that were seen.
fn unlisted(
    entries: &[HostEntry],
    policy: &HostPolicy,
    problems: &mut Vec<String>,
) -> BTreeSet<FileDigest> {
    let programs = policy.programs();
    let mut seen = BTreeSet::new();
    // the first one has been judged
    for entry in entries.iter().skip(1) {
        problems.extend(match &entry.seen {
            // the same program once more
            Seen::File { digest, .. } if seen.contains(digest) => None,
            Seen::File { digest, path } => {
                seen.insert(*digest);
                programs.judge(path, digest).err()
            }
            Seen::OtherDigest { algorithm, path } => Some(format!(
                "{} was measured as {algorithm}, not by its SHA-256",
                encode_path(path)
            )),
            Seen::Buffer { name } => Some(format!("the kernel measured the buffer `{name}`")),
            Seen::Violation { path } => Some(format!(
                "a file changed while it was in use (violation){}",
                named(path.as_deref())
            )),
        });
    }
    seen
}

/// As the list says; the TPM has extended no name.
fn named(path: Option<&[u8]>) -> String {
    path.map_or_else(String::new, |path| {
        format!(", says the list of {}", encode_path(path))
    })
}

/// A kernel that did not see the runtime run does not measure programs, or another one ran.
fn unmeasured(facts: &Facts<'_>, seen: &BTreeSet<FileDigest>) -> Result<Vec<String>, Problem> {
    let claim = &facts.record()?.claim;
    let both = [("attestrun", claim.runtime), ("swtpm", claim.swtpm)];
    let missing = both.iter().filter(|(_, digest)| !seen.contains(digest));
    let said = |(name, digest): &(&str, FileDigest)| {
        format!("{name} {digest} is not in the host's IMA list: does its policy measure programs?")
    };
    Ok(missing.map(said).collect())
}
