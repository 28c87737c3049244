//! What must have been stated about an image, besides that it is somebody's: attestations, and scans
//! for known vulnerabilities.

use super::Authority;
use std::collections::BTreeSet;

/// An attestation of this type by this authority must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationDemand {
    pub name: String,
    pub predicate_type: String,
    pub authority: Authority,
}

/// A signed scan must be there, young enough, and find nothing graver than this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanDemand {
    pub authority: Authority,
    pub max_age_days: u32,
    pub max_severity: Severity,
    /// Ids of findings that are known and accepted.
    pub except: BTreeSet<String>,
}

/// CVSS 4.0, "Qualitative Severity Rating Scale"; ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    None,
    Low,
    Medium,
    High,
    Critical,
}

impl Severity {
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}
