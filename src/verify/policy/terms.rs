//! What the entries of a policy say: how a container may run, whatever it is made of, and what each
//! kind of entry demands of its origin.

use super::{
    AttestationDemand, Authority, CONTAINERS_POLICY, EnterMode, ExecLog, Measure, MountsRule,
    RevocationRule, RootfsCheck, ScanDemand, Scope, SignedIdentity, TierName, UpperRule,
};
use crate::digest::{FileDigest, ImageDigest, RootfsDigest};
use crate::profile::LaunchRules;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How a container of this entry may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Shows in the event log and in every refusal; no two entries have the same.
    pub name: String,
    pub enter: EnterMode,
    pub min_tier: TierName,
    /// The weakest check of the root file system that will do.
    pub rootfs: RootfsCheck,
    pub upper: UpperRule,
    pub mounts: MountsRule,
    pub measure: Measure,
    pub exec_log: ExecLog,
    pub launch: LaunchRules,
}

/// `[[rule]]`: what an image under this scope needs in order to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub terms: Terms,
    pub scope: Scope,
    /// Any one of these signed the image; empty: `containers_policy` decides.
    pub authorities: Vec<Authority>,
    /// containers-policy.json(5) must admit the image as well.
    pub containers_policy: bool,
    /// All of these must have been stated.
    pub attestations: Vec<AttestationDemand>,
    pub vulnerabilities: Option<ScanDemand>,
    pub signed_identity: SignedIdentity,
    pub programs: RulePrograms,
}

/// Which programs an image may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulePrograms {
    /// Those of this signature list.
    Listed(ListDemand),
    /// Any that the signed image holds: said by name.
    Any,
}

/// Which signature list counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListDemand {
    /// The list's signer chains to one of the certificates in these files.
    pub user_ca: Vec<PathBuf>,
    pub tenant: String,
    pub name: String,
    pub min_serial: u64,
    pub revocation: RevocationRule,
}

/// `[[bundle]]`: a root file system that no image is known of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleRule {
    pub terms: Terms,
    pub rootfs: BundleScope,
    pub content: ContentRule,
    pub programs: NamedPrograms,
}

/// Which directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleScope {
    /// `*`
    Everywhere,
    /// This directory, or one below it.
    Below(PathBuf),
}

impl BundleScope {
    /// How close it fits: the deepest directory wins.
    pub(super) fn fits(&self, rootfs: &Path) -> Option<usize> {
        match self {
            Self::Everywhere => Some(0),
            Self::Below(directory) => rootfs
                .starts_with(directory)
                .then(|| directory.components().count()),
        }
    }
}

/// What the directory must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentRule {
    Any,
    /// One of these rootfs manifests.
    OneOf(BTreeSet<RootfsDigest>),
}

/// Which programs may be started where there is no signature list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedPrograms {
    Any,
    OneOf(BTreeSet<FileDigest>),
}

/// `[[sandbox]]`: the container that holds a pod's namespaces. Exact in both, so that it needs neither
/// signature nor list; what annotations say is no matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRule {
    pub terms: Terms,
    pub images: BTreeSet<ImageDigest>,
    /// The whole argument list; the first is an absolute path.
    pub args: Vec<String>,
}

/// `[[build]]`: a step of building an image, whose files are nobody's yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRule {
    pub terms: Terms,
    pub base: BaseRule,
    pub programs: NamedPrograms,
}

/// Which image a build may start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseRule {
    /// Any, or none.
    Any,
    OneOf(BTreeSet<ImageDigest>),
}

impl Rule {
    /// Every key, CA and CRL that the rule names, and what it is.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let authorities = self.authorities.iter();
        let attestors = self.attestations.iter().map(|wanted| &wanted.authority);
        let scanner = self.vulnerabilities.iter().map(|wanted| &wanted.authority);
        let signers = authorities.chain(attestors).chain(scanner);
        let keys = signers.flat_map(Authority::files);
        let containers = self
            .containers_policy
            .then_some(("policy.json", Path::new(CONTAINERS_POLICY)));
        let list = match &self.programs {
            RulePrograms::Listed(list) => Some(list),
            RulePrograms::Any => None,
        };
        keys.chain(containers)
            .chain(list.into_iter().flat_map(ListDemand::files))
    }
}

impl ListDemand {
    fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let crls: &[PathBuf] = match &self.revocation {
            RevocationRule::Unchecked => &[],
            RevocationRule::Crls(paths) => paths,
        };
        let user_ca = self.user_ca.iter().map(|path| ("user-ca", path.as_path()));
        user_ca.chain(crls.iter().map(|path| ("crl", path.as_path())))
    }
}
