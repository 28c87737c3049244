//! Who may run what: `/etc/attestrun/policy.toml`, and the one decision that everything else serves.
//!
//! ```text
//! Policy ─rule for the image's name▶ key: signature over the image ┐
//!                                    user CA, tenant: signed list  ├▶ Admission | Refusal(reasons)
//!                                    launch rules: the profile     ┘
//! ```
//! Proves: an [`Admission`] says what the container is made of and which programs it may run, each as a
//! variant that holds its witness or says that there is none. Under `mode = "audit"` it also holds every
//! reason for which it should have been a refusal; these are measured.

use crate::digest::{ImageDigest, PolicyDigest};
pub use crate::event::{
    Enforce, EnterMode, ExecLog, Measure, MountsRule, RootfsCheck, Source, TierName, UpperRule,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod admission;
mod authority;
mod containers;
mod decide;
mod file;
mod programs;
mod refusal;
mod scan;
mod scope;
mod statements;
mod terms;

pub use crate::signature::StoredSignature;
pub use admission::{Admission, Listed, Made, NotAllowed, Programs, VerifiedImage};
pub use authority::{Authority, KeySource, LogRule, SignedWith};
pub use containers::{CONTAINERS_POLICY, ContainersPolicy, NotAContainersPolicy, Requirement};
pub use decide::{Asked, Explanation, Material, Subject, decide, explain};
pub use programs::{CheckedPrograms, NotStartable};
pub use refusal::{NotAdmitted, Refusal, Undecided, plain_text};
pub use scope::{ImageName, NotAScope, Scope};
pub use statements::{AttestationDemand, ScanDemand, Severity};
pub use terms::{
    BaseRule, BuildRule, BundleRule, BundleScope, ContentRule, ListDemand, NamedPrograms, Rule,
    RulePrograms, SandboxRule, Terms,
};

/// Where the policy is; no option relocates it.
pub const PATH: &str = "/etc/attestrun/policy.toml";
/// A thousand rules have some 300 KiB.
pub const MAX_POLICY: usize = 4 * 1024 * 1024;

/// A policy file that cannot be used; nothing runs under it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("it has {0} bytes, more than {MAX_POLICY}")]
    TooLong(usize),
    #[error("it is malformed: {0}")]
    Malformed(String),
    #[error("version {0} is not known; this is version 1")]
    Version(u64),
    #[error("two entries are named `{0}`")]
    DuplicateName(String),
    #[error("`{0}` cannot be an entry's name (letters, digits, `.`, `_`, `-`; at most 128)")]
    Name(String),
    #[error("rule {rule}: {source}")]
    Scope { rule: String, source: NotAScope },
    #[error("{first} and {second} have the same scope `{scope}`")]
    DuplicateScope {
        first: String,
        second: String,
        scope: String,
    },
    #[error("{rule}: `{field}` is empty: that would admit nothing")]
    Empty { rule: String, field: &'static str },
    #[error("{rule}: `{field}` is missing; {why}")]
    Missing {
        rule: String,
        field: &'static str,
        why: &'static str,
    },
    #[error("{rule}: `{field}` does not go with {other}")]
    Conflict {
        rule: String,
        field: &'static str,
        other: &'static str,
    },
    #[error("{rule}: `{path}` is not an absolute path without `..`")]
    NotAbsolute { rule: String, path: String },
    #[error("{rule}: `{field}`: {why}")]
    Wrong {
        rule: String,
        field: &'static str,
        why: String,
    },
    #[error("rule {rule}: `{tenant}` is not of the form spiffe://<domain>/tenant/<name>")]
    Tenant { rule: String, tenant: String },
    #[error("rule {rule}: `{list}` cannot be a list's name")]
    List { rule: String, list: String },
    #[error(
        "rule {rule}: revocation = \"{found}\" does not go with crls; say \"unchecked\" without, or \"crl\" with crls"
    )]
    Revocation { rule: String, found: String },
}

/// A policy file, understood in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    digest: PolicyDigest,
    mode: Enforce,
    rules: Vec<Rule>,
    bundles: Vec<BundleRule>,
    sandboxes: Vec<SandboxRule>,
    builds: Vec<BuildRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevocationRule {
    Unchecked,
    Crls(Vec<PathBuf>),
}

/// Which name a signature must be about (containers-policy.json(5), "signedIdentity").
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignedIdentity {
    /// The repository of the rule's scope; with the scope `*`, any.
    Scope,
    /// Any: the key speaks for every repository.
    Any,
}

/// A signature list as the store keeps it: the statement and its detached signature, CMS or a Sigstore
/// bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredList {
    /// Shared: it may be long.
    pub statement: Arc<Vec<u8>>,
    pub signature: Vec<u8>,
}

/// The contents of the files that a policy names, or why they could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustFiles(BTreeMap<PathBuf, (&'static str, Result<Vec<u8>, String>)>);

impl TrustFiles {
    /// `kind`: what the file is to whoever names it.
    pub fn insert(&mut self, kind: &'static str, path: &Path, content: Result<Vec<u8>, String>) {
        self.0.insert(path.to_owned(), (kind, content));
    }
    /// Those that could be read, by path.
    fn used(&self) -> impl Iterator<Item = (&Path, &'static str, &[u8])> {
        self.0.iter().filter_map(|(path, (kind, content))| {
            let content = content.as_deref().ok()?;
            Some((path.as_path(), *kind, content))
        })
    }
    fn get(&self, path: &Path) -> Result<&[u8], String> {
        match self.0.get(path) {
            Some((_, Ok(bytes))) => Ok(bytes),
            Some((_, Err(why))) => Err(why.clone()),
            None => Err("it was not read".to_owned()),
        }
    }
}

impl Policy {
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        file::parse(bytes)
    }
    /// SHA-256 of the file's bytes.
    pub fn digest(&self) -> PolicyDigest {
        self.digest
    }
    pub fn mode(&self) -> Enforce {
        self.mode
    }
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
    /// The rule for an image's name, or for one of its digests (its manifest's, those of indexes that
    /// contain it): the most specific scope that fits. Scopes differ; of several digests' rules the one
    /// that comes first in the file counts.
    pub fn rule_for(&self, image_name: &str, digests: &[ImageDigest]) -> Option<&Rule> {
        let name = ImageName::of(image_name);
        self.rules
            .iter()
            .rev()
            .filter_map(|rule| Some((rule.scope.fits(name.as_ref(), digests)?, rule)))
            .max_by_key(|(closeness, _)| *closeness)
            .map(|(_, rule)| rule)
    }
    /// The entry for a directory without an image: the deepest one that it lies in.
    pub fn bundle_for(&self, rootfs: &Path) -> Option<&BundleRule> {
        self.bundles
            .iter()
            .filter_map(|entry| Some((entry.rootfs.fits(rootfs)?, entry)))
            .max_by_key(|(closeness, _)| *closeness)
            .map(|(_, entry)| entry)
    }
    /// The entries that name this image as a pod's sandbox.
    pub fn sandboxes_of(&self, image: &ImageDigest) -> impl Iterator<Item = &SandboxRule> {
        self.sandboxes
            .iter()
            .filter(|entry| entry.images.contains(image))
    }
    pub fn bundles(&self) -> &[BundleRule] {
        &self.bundles
    }
    pub fn sandboxes(&self) -> &[SandboxRule] {
        &self.sandboxes
    }
    pub fn builds(&self) -> &[BuildRule] {
        &self.builds
    }
    /// Every key, CA and CRL that any rule names.
    pub fn files(&self) -> BTreeSet<&Path> {
        self.rules
            .iter()
            .flat_map(|rule| rule.files().map(|(_, path)| path))
            .collect()
    }
}

#[cfg(test)]
mod tests;
