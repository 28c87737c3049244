//! Reading a scan: cosign's `vuln` predicate with SARIF 2.1.0 inside, or CycloneDX with VEX states.
//! What has no severity that is understood counts as critical.

use super::Severity;
use crate::id::UnixTime;
use serde_json::Value;
use std::collections::BTreeMap;

/// sigstore/cosign `specs/COSIGN_VULN_ATTESTATION_SPEC.md`.
pub const COSIGN_VULN: &str = "https://cosign.sigstore.dev/attestation/vuln/v1";
/// `cosign attest --type cyclonedx`.
pub const CYCLONEDX: &str = "https://cyclonedx.org/bom";

/// What a scan found, the gravest per id, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    pub finished: UnixTime,
    pub findings: BTreeMap<String, Severity>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    #[error("it has no `{0}`")]
    Missing(&'static str),
    #[error("`{0}` is not a time (RFC 3339)")]
    Time(String),
    #[error("its result is neither SARIF nor CycloneDX")]
    Format,
}

impl Scan {
    pub fn read(predicate_type: &str, predicate: &Value) -> Result<Self, ScanError> {
        match predicate_type {
            COSIGN_VULN => {
                let result = at(predicate, "/scanner/result", "scanner.result")?;
                let finished = time(
                    predicate,
                    "/metadata/scanFinishedOn",
                    "metadata.scanFinishedOn",
                )?;
                let findings = match (result.get("runs"), is_cyclonedx(result)) {
                    (Some(_), _) => sarif(result)?,
                    (None, true) => cyclonedx(result)?,
                    (None, false) => return Err(ScanError::Format),
                };
                Ok(Self { finished, findings })
            }
            _ if is_cyclonedx(predicate) => Ok(Self {
                finished: time(predicate, "/metadata/timestamp", "metadata.timestamp")?,
                findings: cyclonedx(predicate)?,
            }),
            _ => Err(ScanError::Format),
        }
    }
}

fn at<'v>(value: &'v Value, pointer: &str, name: &'static str) -> Result<&'v Value, ScanError> {
    value.pointer(pointer).ok_or(ScanError::Missing(name))
}

fn time(value: &Value, pointer: &str, name: &'static str) -> Result<UnixTime, ScanError> {
    let text = at(value, pointer, name)?.as_str().unwrap_or_default();
    chrono::DateTime::parse_from_rfc3339(text)
        .map(|time| UnixTime::from_secs(time.timestamp()))
        .map_err(|_| ScanError::Time(text.chars().take(80).collect()))
}

fn is_cyclonedx(value: &Value) -> bool {
    value.get("bomFormat").and_then(Value::as_str) == Some("CycloneDX")
}

fn note(findings: &mut BTreeMap<String, Severity>, id: &str, severity: Severity) {
    let known = findings.entry(id.to_owned()).or_insert(severity);
    *known = severity.max(*known);
}

/// SARIF 2.1.0, sections 3.14 and 3.27. Suppressed results count: whom to believe about them is the
/// policy's to say.
fn sarif(log: &Value) -> Result<BTreeMap<String, Severity>, ScanError> {
    let runs = log.get("runs").and_then(Value::as_array);
    let runs = runs.ok_or(ScanError::Missing("runs"))?;
    if runs.is_empty() {
        return Err(ScanError::Missing("run"));
    }
    let mut findings = BTreeMap::new();
    for run in runs {
        let rules = run.pointer("/tool/driver/rules").and_then(Value::as_array);
        // Null results say that the run did not get as far as having any (section 3.14.23).
        let results = run.get("results").and_then(Value::as_array);
        for result in results.ok_or(ScanError::Missing("runs[].results"))? {
            let id = result
                .get("ruleId")
                .or_else(|| result.pointer("/rule/id"))
                .and_then(Value::as_str)
                .ok_or(ScanError::Missing("results[].ruleId"))?;
            let rule = rules
                .into_iter()
                .flatten()
                .find(|rule| rule.get("id").and_then(Value::as_str) == Some(id));
            note(&mut findings, id, sarif_severity(result, rule));
        }
    }
    Ok(findings)
}

fn sarif_severity(result: &Value, rule: Option<&Value>) -> Severity {
    let score = |value: &Value| {
        let score = value.pointer("/properties/security-severity")?;
        let number = score.as_f64().or_else(|| score.as_str()?.parse().ok())?;
        Some(match number {
            n if n >= 9.0 => Severity::Critical,
            n if n >= 7.0 => Severity::High,
            n if n >= 4.0 => Severity::Medium,
            n if n > 0.0 => Severity::Low,
            0.0 => Severity::None,
            _ => Severity::Critical,
        })
    };
    if let Some(severity) = score(result).or_else(|| score(rule?)) {
        return severity;
    }
    let level = result
        .get("level")
        .or_else(|| rule?.pointer("/defaultConfiguration/level"));
    match level.and_then(Value::as_str) {
        Some("none") => Severity::None,
        Some("note") => Severity::Low,
        Some("warning") => Severity::Medium,
        Some("error") => Severity::High,
        _ => Severity::Critical,
    }
}

/// CycloneDX 1.4 and later, "vulnerabilities"; those that VEX calls no threat do not count.
fn cyclonedx(bom: &Value) -> Result<BTreeMap<String, Severity>, ScanError> {
    const HARMLESS: [&str; 4] = [
        "not_affected",
        "false_positive",
        "resolved",
        "resolved_with_pedigree",
    ];
    let list = bom.get("vulnerabilities").and_then(Value::as_array);
    let mut findings = BTreeMap::new();
    for found in list.ok_or(ScanError::Missing("vulnerabilities"))? {
        let id = found.get("id").and_then(Value::as_str);
        let id = id.ok_or(ScanError::Missing("vulnerabilities[].id"))?;
        let state = found.pointer("/analysis/state").and_then(Value::as_str);
        if state.is_some_and(|state| HARMLESS.contains(&state)) {
            continue;
        }
        let ratings = found.get("ratings").and_then(Value::as_array);
        let gravest = ratings.into_iter().flatten().map(rating).max();
        note(&mut findings, id, gravest.unwrap_or(Severity::Critical));
    }
    Ok(findings)
}

fn rating(rating: &Value) -> Severity {
    match rating.get("severity").and_then(Value::as_str) {
        Some("none" | "info") => Severity::None,
        Some("low") => Severity::Low,
        Some("medium") => Severity::Medium,
        Some("high") => Severity::High,
        _ => Severity::Critical,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn vuln(result: Value) -> Value {
        json!({"scanner": {"uri": "x", "result": result}, "metadata": {"scanFinishedOn": "2026-11-20T10:00:00.5+01:00"}})
    }
    fn found(result: Value) -> Result<Vec<(String, Severity)>, ScanError> {
        let scan = Scan::read(COSIGN_VULN, &vuln(result))?;
        Ok(scan.findings.into_iter().collect())
    }

    #[test]
    fn accept_sarif_by_score_then_level() {
        let rules = json!([
            {"id": "CVE-1", "properties": {"security-severity": "9.8"}},
            {"id": "CVE-2", "properties": {"security-severity": 4.0}},
            {"id": "CVE-3", "defaultConfiguration": {"level": "note"}},
        ]);
        let results = json!([
            {"ruleId": "CVE-1", "level": "note"}, {"ruleId": "CVE-2"}, {"ruleId": "CVE-3"},
            {"ruleId": "CVE-4", "level": "error"}, {"ruleId": "CVE-5"},
        ]);
        let severities =
            found(json!({"runs": [{"tool": {"driver": {"rules": rules}}, "results": results}]}))
                .unwrap();
        let severities: Vec<_> = severities.iter().map(|(_, s)| *s).collect();
        use Severity::*;
        assert_eq!(severities, [Critical, Medium, Low, High, Critical]);
    }

    #[test]
    fn accept_cyclonedx_with_vex() {
        let bom = json!({"bomFormat": "CycloneDX", "metadata": {"timestamp": "2026-11-20T10:00:00Z"}, "vulnerabilities": [
            {"id": "CVE-1", "ratings": [{"severity": "low"}, {"severity": "high"}]},
            {"id": "CVE-2", "ratings": [{"severity": "critical"}], "analysis": {"state": "not_affected"}},
            {"id": "CVE-3"},
        ]});
        let wanted = [
            ("CVE-1".to_owned(), Severity::High),
            ("CVE-3".to_owned(), Severity::Critical),
        ];
        assert_eq!(found(bom.clone()).unwrap(), wanted);
        let scan = Scan::read(CYCLONEDX, &bom).unwrap();
        assert_eq!(scan.findings.into_iter().collect::<Vec<_>>(), wanted);
        assert_eq!(
            scan.finished,
            UnixTime::parse("2026-11-20T10:00:00Z").unwrap()
        );
    }

    #[test]
    fn refuse_scans_that_say_nothing() {
        for result in [
            json!({}),
            json!({"runs": []}),
            json!({"runs": [{}]}),
            json!({"runs": [{"results": null}]}),
            json!({"runs": [{"results": [{"level": "error"}]}]}),
            json!({"Results": []}),
            json!({"bomFormat": "CycloneDX"}),
            json!({"bomFormat": "CycloneDX", "vulnerabilities": [{"ratings": []}]}),
        ] {
            assert!(found(result.clone()).is_err(), "{result}");
        }
        let mut undated = vuln(json!({"runs": [{"results": []}]}));
        assert!(Scan::read(COSIGN_VULN, &undated).is_ok());
        undated["metadata"]["scanFinishedOn"] = json!("yesterday");
        assert!(Scan::read(COSIGN_VULN, &undated).is_err());
        assert!(
            Scan::read(
                "https://example.com/scan",
                &vuln(json!({"runs": [{"results": []}]}))
            )
            .is_err()
        );
    }
}
