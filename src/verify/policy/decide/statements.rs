//! Whether everything was stated about the image that the rule wants stated, by whom it wants it from.

use super::super::scan::{COSIGN_VULN, CYCLONEDX, Scan};
use super::super::{Authority, Rule, ScanDemand, Source};
use super::Material;
use super::no::{No, no, told};
use super::signature::demand;
use crate::digest::FileDigest;
use crate::id::UnixTime;
use crate::signature::{Attested, verify_attestation};

const DAY_SECS: i64 = 24 * 60 * 60;
/// The scanner's clock and ours.
const SKEW_SECS: i64 = 5 * 60;

/// Every statement that the rule asks for; what was found is named by its digest.
pub(super) fn statements(
    rule: &Rule,
    material: &Material<'_>,
    now: UnixTime,
) -> (Vec<Source>, Vec<No>) {
    let (mut sources, mut against) = (Vec::new(), Vec::new());
    for wanted in &rule.attestations {
        match attestations(&wanted.authority, &wanted.predicate_type, material, now) {
            Ok(found) => sources.extend(
                found
                    .iter()
                    .map(|found| source("attestation", &wanted.predicate_type, found)),
            ),
            Err(Absent::Unusable(no)) => against.push(no),
            Err(Absent::Failures(failures)) => against.push(no(
                format!(
                    "attestation {} ({}) by {} is not there{}",
                    wanted.name,
                    wanted.predicate_type,
                    wanted.authority.name,
                    because(&failures)
                ),
                "make it with `cosign attest`, then `attestctl import`",
            )),
        }
    }
    if let Some(wanted) = &rule.vulnerabilities {
        match scan(wanted, material, now) {
            Ok(source) => sources.push(source),
            Err(no) => against.push(no),
        }
    }
    (sources, against)
}

fn because(failures: &[String]) -> String {
    match failures {
        [] => String::new(),
        failures => format!(": {}", told(failures)),
    }
}

fn source(kind: &str, predicate_type: &str, found: &Attested) -> Source {
    Source {
        kind: kind.to_owned(),
        path: predicate_type.to_owned(),
        sha256: FileDigest::of(found.statement()),
    }
}

enum Absent {
    /// A key or root that the rule names.
    Unusable(No),
    Failures(Vec<String>),
}

/// All attestations of this type by this authority; at least one.
fn attestations(
    authority: &Authority,
    predicate_type: &str,
    material: &Material<'_>,
    now: UnixTime,
) -> Result<Vec<Attested>, Absent> {
    let demand = demand(authority, material).map_err(Absent::Unusable)?;
    let digests = material.image.digests();
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for stored in &material.signatures {
        match verify_attestation(&demand, stored, &digests, predicate_type, now) {
            Ok(attested) => found.push(attested),
            Err(why) => failures.push(why.to_string()),
        }
    }
    match found.is_empty() {
        true => Err(Absent::Failures(failures)),
        false => Ok(found),
    }
}

/// The newest scan counts, whatever older ones say.
fn scan(wanted: &ScanDemand, material: &Material<'_>, now: UnixTime) -> Result<Source, No> {
    const SCAN_IT: &str =
        "scan the image, sign the result with `cosign attest --type vuln`, then `attestctl import`";
    let by = &wanted.authority.name;
    let (mut scans, mut failures) = (Vec::new(), Vec::new());
    for predicate_type in [COSIGN_VULN, CYCLONEDX] {
        match attestations(&wanted.authority, predicate_type, material, now) {
            Err(Absent::Unusable(no)) => return Err(no),
            Err(Absent::Failures(why)) => failures.extend(why),
            Ok(found) => {
                for attested in found {
                    match Scan::read(predicate_type, attested.predicate()) {
                        Ok(scan) => scans.push((scan, source("scan", predicate_type, &attested))),
                        // It may be the newest one: whether it is cannot be told.
                        Err(why) => {
                            return Err(no(format!("a scan by {by} is malformed: {why}"), SCAN_IT));
                        }
                    }
                }
            }
        }
    }
    let newest = scans
        .into_iter()
        .max_by_key(|(scan, source)| (scan.finished, source.sha256));
    let Some((scan, source)) = newest else {
        return Err(no(
            format!("no scan for vulnerabilities by {by}{}", because(&failures)),
            SCAN_IT,
        ));
    };
    let age = now.secs().saturating_sub(scan.finished.secs());
    if age < -SKEW_SECS {
        let finished = scan.finished;
        return Err(no(
            format!("the scan by {by} is of the future ({finished})"),
            SCAN_IT,
        ));
    }
    if age > i64::from(wanted.max_age_days) * DAY_SECS {
        return Err(no(
            format!(
                "the newest scan by {by} is {} days old ({}), {} are allowed",
                age / DAY_SECS,
                scan.finished,
                wanted.max_age_days
            ),
            SCAN_IT,
        ));
    }
    let grave: Vec<String> = scan
        .findings
        .iter()
        .filter(|(id, severity)| **severity > wanted.max_severity && !wanted.except.contains(*id))
        .map(|(id, severity)| format!("{id} ({})", severity.name()))
        .collect();
    match grave.is_empty() {
        true => Ok(source),
        false => Err(no(
            format!(
                "the scan by {by} finds more than severity {}: {}",
                wanted.max_severity.name(),
                told(&grave)
            ),
            "repair the image and scan it again, or name the findings under `except`",
        )),
    }
}
