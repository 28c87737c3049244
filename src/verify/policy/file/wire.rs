//! The policy file's keys, as they are spelt. Whatever admits has no default; a default is the strict
//! choice.

use super::super::{
    Enforce, EnterMode, ExecLog, Measure, MountsRule, RootfsCheck, Severity, SignedIdentity,
    TierName, UpperRule,
};
use crate::digest::{FileDigest, ImageDigest, RootfsDigest};
use crate::profile::LaunchRules;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyWire {
    pub version: u64,
    pub mode: Enforce,
    /// No entries at all is a policy that admits nothing.
    #[serde(default)]
    pub rule: Vec<RuleWire>,
    #[serde(default)]
    pub bundle: Vec<BundleWire>,
    #[serde(default)]
    pub sandbox: Vec<SandboxWire>,
    #[serde(default)]
    pub build: Vec<BuildWire>,
}

/// What every entry may say.
pub struct TermsWire {
    pub name: String,
    pub enter: EnterMode,
    pub min_tier: TierName,
    pub mounts: MountsRule,
    pub measure: Measure,
    pub exec_log: ExecLog,
    pub launch: LaunchRules,
}

/// The word `any`.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnyWord {
    Any,
}

/// `"any"`, or the digests one of which it must be.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum WordOr<D> {
    Any(AnyWord),
    OneOf(Vec<D>),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgramsWire {
    Listed,
    Any,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevocationWire {
    Unchecked,
    Crl,
}

/// How an image's files may be checked; there is no way to ask for none.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckWire {
    Full,
    Boot,
    Watched,
    Stat,
}

impl CheckWire {
    pub fn check(&self) -> RootfsCheck {
        match self {
            Self::Full => RootfsCheck::Full,
            Self::Boot => RootfsCheck::Boot,
            Self::Watched => RootfsCheck::Watched,
            Self::Stat => RootfsCheck::Stat,
        }
    }
}

/// A signer, in ClusterImagePolicy's words.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorityWire {
    pub name: String,
    pub key: Option<KeyWire>,
    pub keyless: Option<KeylessWire>,
    pub trusted_root: Option<PathBuf>,
    /// Left out: by key not asked for, keyless demanded.
    pub ctlog: Option<bool>,
    pub rfc3161timestamp: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyWire {
    pub path: Option<PathBuf>,
    pub data: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeylessWire {
    pub identities: Vec<IdentityWire>,
    #[serde(default, rename = "insecureIgnoreSCT")]
    pub ignore_sct: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityWire {
    pub issuer: Option<String>,
    #[serde(rename = "issuerRegExp")]
    pub issuer_regexp: Option<String>,
    pub subject: Option<String>,
    #[serde(rename = "subjectRegExp")]
    pub subject_regexp: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestationWire {
    pub name: String,
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    pub authority: AuthorityWire,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanWire {
    pub authority: AuthorityWire,
    pub max_age_days: u32,
    pub max_severity: Severity,
    #[serde(default)]
    pub except: Vec<String>,
}

fn full() -> CheckWire {
    CheckWire::Full
}
fn pristine() -> UpperRule {
    UpperRule::Pristine
}
fn strict_identity() -> SignedIdentity {
    SignedIdentity::Scope
}
fn listed() -> ProgramsWire {
    ProgramsWire::Listed
}
fn programs() -> MountsRule {
    MountsRule::Programs
}
fn manifest() -> Measure {
    Measure::Manifest
}
fn first() -> ExecLog {
    ExecLog::First
}

/// An entry: its own keys, and those that all have. (serde's `flatten` does not go with
/// `deny_unknown_fields`.)
macro_rules! entry {
    ($wire:ident, $own:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        pub struct $own {
            $(pub $field: $type,)*
        }
        pub struct $wire {
            pub terms: TermsWire,
            pub own: $own,
        }
        impl<'de> Deserialize<'de> for $wire {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Flat {
                    name: String,
                    enter: EnterMode,
                    min_tier: TierName,
                    #[serde(default = "programs")]
                    mounts: MountsRule,
                    #[serde(default = "manifest")]
                    measure: Measure,
                    #[serde(default = "first")]
                    exec_log: ExecLog,
                    /// Left out, nothing is relaxed.
                    #[serde(default)]
                    launch: LaunchRules,
                    $($(#[$attribute])* $field: $type,)*
                }
                let flat = Flat::deserialize(from)?;
                Ok(Self {
                    terms: TermsWire {
                        name: flat.name,
                        enter: flat.enter,
                        min_tier: flat.min_tier,
                        mounts: flat.mounts,
                        measure: flat.measure,
                        exec_log: flat.exec_log,
                        launch: flat.launch,
                    },
                    own: $own {
                        $($field: flat.$field,)*
                    },
                })
            }
        }
    };
}

entry! { RuleWire, RuleOwn {
    scope: String,
    /// In short, one authority by key.
    #[serde(default)]
    keys: Vec<PathBuf>,
    #[serde(default)]
    authorities: Vec<AuthorityWire>,
    #[serde(default)]
    containers_policy: bool,
    #[serde(default)]
    attestations: Vec<AttestationWire>,
    vulnerabilities: Option<ScanWire>,
    #[serde(default = "strict_identity")]
    signed_identity: SignedIdentity,
    #[serde(default = "listed")]
    programs: ProgramsWire,
    /// Which list: all of these, or none with `programs = "any"`.
    user_ca: Option<Vec<PathBuf>>,
    tenant: Option<String>,
    list: Option<String>,
    min_serial: Option<u64>,
    revocation: Option<RevocationWire>,
    #[serde(default)]
    crls: Vec<PathBuf>,
    #[serde(default = "full")]
    rootfs: CheckWire,
    #[serde(default = "pristine")]
    upper: UpperRule,
} }

entry! { BundleWire, BundleOwn {
    rootfs: PathBuf,
    content: WordOr<RootfsDigest>,
    programs: WordOr<FileDigest>,
} }

entry! { SandboxWire, SandboxOwn {
    images: Vec<ImageDigest>,
    args: Vec<String>,
    #[serde(default = "full")]
    rootfs: CheckWire,
} }

entry! { BuildWire, BuildOwn {
    base: WordOr<ImageDigest>,
    programs: WordOr<FileDigest>,
} }
