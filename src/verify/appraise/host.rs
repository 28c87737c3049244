//! The host's programs: its kernel's IMA list against the quoted PCR and the challenger's host policy.

use super::facts::Facts;
use super::rolling::ImaState;
use super::{Answer, Problem, all_of, refused, unknown, waivable};
use crate::check::Waiver;
use crate::digest::FileDigest;
use crate::growing::Growing;
use crate::hostlist::HostPolicy;
use crate::imalog::encode_path;
use crate::imalog::kernel::{HostEntry, Seen, explained};
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
    let (earlier, left_out) = (facts.earlier.ima, facts.evidence.log_from.ima);
    if left_out != earlier.map_or(0, |earlier| earlier.read.bytes()) {
        return refused(format!(
            "the first {left_out} bytes of the host's IMA list are left out"
        ));
    }
    if facts.evidence.host_ima.is_empty() && earlier.is_none() {
        return unseen("the host shows no IMA list: which programs it ran is not known");
    }
    // a list that is shown must be the TPM's, whether anybody judges what it says or not
    let entries = match &facts.ima {
        Ok(entries) => entries,
        Err(why) => return refused(format!("the host's IMA list: {why}")),
    };
    let Some(values) = facts.host.values() else {
        return unknown("the host's PCR values are not proved");
    };
    let Some(state) = state(facts) else {
        return refused(format!("the host's IMA list does not explain PCR {FILES}"));
    };
    if let Some(earlier) = earlier.filter(|earlier| earlier.shown > state.read.bytes()) {
        return refused(format!(
            "PCR {FILES} covers {} bytes of the host's IMA list, {} were shown before",
            state.read.bytes(),
            earlier.shown
        ));
    }
    let Some(policy) = facts.host_policy else {
        return unseen("the expectations name no host_policy: what the host may run is not known");
    };
    if facts.challenge.now >= policy.expires_at() {
        let (title, end) = (policy.title(), policy.expires_at());
        return refused(format!("the {title} ran out at {end}"));
    }
    let mut problems = booted(state.boot, values).err().into_iter().collect();
    // the first one of all has been judged
    let rest = entries
        .get(usize::from(earlier.is_none())..)
        .unwrap_or_default();
    unlisted(rest, policy, &mut problems);
    problems.extend(unmeasured(facts)?);
    let more = problems.len().saturating_sub(MAX_TOLD);
    problems.truncate(MAX_TOLD);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    all_of(
        problems,
        format!(
            "{} entries, all in {}",
            earlier.map_or(0, |earlier| earlier.entries) + entries.len(),
            policy.title()
        ),
    )
}

/// What is known of the list as far as the quoted PCR explains it. None: it does not.
pub(super) fn state(facts: &Facts<'_>) -> Option<ImaState> {
    let (earlier, list) = (facts.earlier.ima, &facts.evidence.host_ima);
    let entries = facts.ima.as_ref().ok()?;
    let start = earlier.map_or([0; 32], |earlier| *earlier.pcr.as_bytes());
    let quoted = facts.host.values()?.get(FILES)?;
    let proved = entries.get(..explained(start, entries, quoted)?)?;
    let mut read = earlier.map_or_else(Growing::default, |earlier| earlier.read.clone());
    let shown = read.bytes() + list.len() as u64;
    read.add(list.get(..proved.last().map_or(0, |entry| entry.end))?);
    let boot = match (earlier, proved.first().map(|entry| &entry.seen)) {
        (Some(earlier), _) => earlier.boot,
        (None, Some(Seen::File { digest, path })) if path == BOOT_AGGREGATE => Some(*digest),
        (None, _) => None,
    };
    Some(ImaState {
        read,
        pcr: FileDigest::from_bytes(*quoted),
        entries: earlier.map_or(0, |earlier| earlier.entries) + proved.len(),
        shown,
        boot,
        vouching: vouching(facts, proved),
    })
}

/// The programs that vouch for the container, by their digests in the record.
fn vouchers(facts: &Facts<'_>) -> Result<[(&'static str, FileDigest); 2], Problem> {
    let claim = &facts.record()?.claim;
    Ok([("attestrun", claim.runtime), ("swtpm", claim.swtpm)])
}

/// Those of them that the list has by now.
fn vouching(facts: &Facts<'_>, entries: &[HostEntry]) -> Vec<FileDigest> {
    let earlier = facts.earlier.ima;
    let known = |digest: &FileDigest| {
        earlier.is_some_and(|earlier| earlier.vouching.contains(digest))
            || entries.iter().any(
                |entry| matches!(&entry.seen, Seen::File { digest: seen, .. } if seen == digest),
            )
    };
    let all = vouchers(facts).into_iter().flatten();
    all.map(|(_, digest)| digest).filter(known).collect()
}

/// The list begins with this boot.
fn booted(first: Option<FileDigest>, values: &QuotedPcrs) -> Result<(), String> {
    let Some(first) = first else {
        return Err("the host's IMA list does not begin with a SHA-256 boot_aggregate".to_owned());
    };
    let mut hash = Sha256::new();
    for pcr in BOOT_PCRS.filter_map(|pcr| PcrIndex::new(pcr).ok()) {
        hash.update(values.get(pcr).ok_or("the quoted PCRs are incomplete")?);
    }
    let expected = FileDigest::from_bytes(hash.finalize().into());
    match first == expected {
        true => Ok(()),
        false => Err(format!(
            "the host's IMA list begins with boot_aggregate {first}, PCRs 0 to 9 give {expected}"
        )),
    }
}

/// What was measured and is not listed.
fn unlisted(entries: &[HostEntry], policy: &HostPolicy, problems: &mut Vec<String>) {
    let programs = policy.programs();
    let mut seen = BTreeSet::new();
    for entry in entries {
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
}

/// As the list says; the TPM has extended no name.
fn named(path: Option<&[u8]>) -> String {
    path.map_or_else(String::new, |path| {
        format!(", says the list of {}", encode_path(path))
    })
}

/// A kernel that did not see the runtime run does not measure programs, or another one ran.
fn unmeasured(facts: &Facts<'_>) -> Result<Vec<String>, Problem> {
    let entries = facts.ima.as_deref().unwrap_or_default();
    let seen = vouching(facts, entries);
    let missing = vouchers(facts)?;
    let missing = missing.iter().filter(|(_, digest)| !seen.contains(digest));
    let said = |(name, digest): &(&str, FileDigest)| {
        format!("{name} {digest} is not in the host's IMA list: does its policy measure programs?")
    };
    Ok(missing.map(said).collect())
}
