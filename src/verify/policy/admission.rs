//! What a positive decision hands on: the witnesses of every check, and the questions that can only be
//! asked once the rootfs is known.

use super::programs::{CheckedPrograms, covering};
use super::{
    ContentRule, Enforce, EnterMode, MountsRule, Policy, Refusal, Source, StoredList, Terms,
    TierName,
};
use crate::cms::VerifiedSigner;
use crate::digest::{
    ConfigDigest, FileDigest, ImageDigest, ListDigest, PolicyDigest, ProfileDigest, RootfsDigest,
};
use crate::event::{How, Origin, ProgramsRule};
use crate::id::UnixTime;
use crate::image::Image;
use crate::imalog::encode_path;
use crate::profile::{LaunchProfile, LaunchRules, Relaxation};
use crate::rootfs::{Expected, RootfsPath};
use crate::siglist::VerifiedList;
use crate::signature::Signed;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

/// An image that a key of the rule signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedImage {
    image: Image,
    signed: Signed,
}

impl VerifiedImage {
    pub(super) fn new(image: Image, signed: Signed) -> Self {
        Self { image, signed }
    }
    pub fn image(&self) -> &Image {
        &self.image
    }
    pub fn name(&self) -> &str {
        self.image.name()
    }
    /// The manifest's digest, also where the signature is on an index that contains it.
    pub fn manifest_digest(&self) -> ImageDigest {
        self.image.manifest_digest()
    }
    pub fn config_digest(&self) -> ConfigDigest {
        self.image.config_digest()
    }
    pub fn signed_by(&self) -> &Signed {
        &self.signed
    }
}

/// What the container is made of, and who vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// An image that a key of the rule signed.
    Signed(VerifiedImage),
    /// An image that a `[[sandbox]]` names by its digest.
    Sandbox(Image),
    /// What a build makes on top of this image, or of nothing.
    Build(Option<Image>),
    /// A directory on the host, and what it must hold; no image is known of it.
    Bundle(PathBuf, ContentRule),
    /// An image that nobody vouches for: mode `audit` lets it be, or containers-policy.json(5) does with
    /// `insecureAcceptAnything`.
    Unsigned(Image),
}

impl Made {
    /// The image, whoever vouches for it.
    pub fn image(&self) -> Option<&Image> {
        match self {
            Self::Signed(verified) => Some(verified.image()),
            Self::Sandbox(image) | Self::Unsigned(image) => Some(image),
            Self::Build(image) => image.as_ref(),
            Self::Bundle(..) => None,
        }
    }
    pub fn origin(&self) -> Origin {
        match self {
            Self::Signed(_) | Self::Unsigned(_) => Origin::Image,
            Self::Sandbox(_) => Origin::Sandbox,
            Self::Build(_) => Origin::Build,
            Self::Bundle(..) => Origin::Bundle,
        }
    }
    /// The root file system must hold what the image's layers say; else nothing says what it must hold.
    pub fn is_image(&self) -> bool {
        match self {
            Self::Signed(_) | Self::Sandbox(_) | Self::Unsigned(_) => true,
            Self::Build(_) | Self::Bundle(..) => false,
        }
    }
}

/// As refusals call it.
impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.image()) {
            (Self::Build(_), Some(image)) => write!(
                f,
                "a build on image {} ({})",
                image.name(),
                image.manifest_digest()
            ),
            (Self::Build(_), None) => f.write_str("a build on no image"),
            (Self::Bundle(rootfs, _), _) => write!(f, "rootfs {} (no image)", rootfs.display()),
            (_, Some(image)) => write!(f, "image {} ({})", image.name(), image.manifest_digest()),
            (_, None) => f.write_str("no image"),
        }
    }
}

/// Which programs the container may start, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Programs {
    /// A signature list.
    Listed(Box<Listed>),
    /// The policy, by their digests.
    Named(BTreeSet<FileDigest>),
    /// The policy, by one argument list (a [`super::SandboxRule`]'s).
    Args(Vec<String>),
    /// Nobody: any.
    Any,
}

/// A verified list, and until somebody takes them its bytes for evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    list: VerifiedList,
    stored: Option<StoredList>,
}

impl Listed {
    pub(super) fn new(list: VerifiedList, stored: StoredList) -> Self {
        let stored = Some(stored);
        Self { list, stored }
    }
    pub fn list(&self) -> &VerifiedList {
        &self.list
    }
    pub fn signer(&self) -> &VerifiedSigner {
        self.list.signer()
    }
}

impl Programs {
    pub fn rule(&self) -> ProgramsRule {
        match self {
            Self::Listed(_) => ProgramsRule::Listed,
            Self::Named(_) => ProgramsRule::Named,
            Self::Args(_) => ProgramsRule::Args,
            Self::Any => ProgramsRule::Any,
        }
    }
}

/// A program that may not be started here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    #[error("not in the signature list {name} serial {serial} ({digest})")]
    NotListed {
        name: String,
        serial: u64,
        digest: ListDigest,
    },
    #[error("not among the programs that the policy names")]
    NotNamed,
    #[error("not the program that the sandbox is for")]
    NotTheSandbox,
}

/// This container may run with this profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    policy: PolicyDigest,
    mode: Enforce,
    terms: Terms,
    made: Made,
    programs: Programs,
    profile: LaunchProfile,
    profile_digest: ProfileDigest,
    relaxations: Vec<Relaxation>,
    sources: Vec<Source>,
    audited: Vec<String>,
    decided_at: UnixTime,
}

/// What a decision found, one part each; only [`super::decide`] puts them together.
pub(super) struct Parts {
    pub terms: Terms,
    pub made: Made,
    pub programs: Programs,
    pub launch: Launchable,
    pub sources: Vec<Source>,
    /// Reasons to refuse that mode `audit` lets pass; always empty in mode `enforce`.
    pub audited: Vec<String>,
}

/// A profile, and what the rules had to relax for it.
pub(super) struct Launchable {
    pub profile: LaunchProfile,
    pub digest: ProfileDigest,
    pub used: Vec<Relaxation>,
}

impl Admission {
    pub(super) fn new(policy: &Policy, parts: Parts, decided_at: UnixTime) -> Self {
        Self {
            policy: policy.digest(),
            mode: policy.mode(),
            terms: parts.terms,
            made: parts.made,
            programs: parts.programs,
            profile: parts.launch.profile,
            profile_digest: parts.launch.digest,
            relaxations: parts.launch.used,
            sources: parts.sources,
            audited: parts.audited,
            decided_at,
        }
    }
    pub fn policy_digest(&self) -> PolicyDigest {
        self.policy
    }
    pub fn mode(&self) -> Enforce {
        self.mode
    }
    /// The name of the policy's entry.
    pub fn rule(&self) -> &str {
        &self.terms.name
    }
    pub fn terms(&self) -> &Terms {
        &self.terms
    }
    pub fn enter(&self) -> EnterMode {
        self.terms.enter
    }
    pub fn min_tier(&self) -> TierName {
        self.terms.min_tier
    }
    /// The rules for processes that enter later ([`crate::profile::judge_process`]).
    pub fn launch_rules(&self) -> &LaunchRules {
        &self.terms.launch
    }
    pub fn made(&self) -> &Made {
        &self.made
    }
    pub fn programs(&self) -> &Programs {
        &self.programs
    }
    /// The bytes of the list and of its signature, once: nothing here needs them any more.
    pub fn take_list(&mut self) -> Option<StoredList> {
        match &mut self.programs {
            Programs::Listed(listed) => listed.stored.take(),
            Programs::Named(_) | Programs::Args(_) | Programs::Any => None,
        }
    }
    pub fn profile(&self) -> &LaunchProfile {
        &self.profile
    }
    pub fn profile_digest(&self) -> ProfileDigest {
        self.profile_digest
    }
    /// The relaxations without which the launch would have been refused.
    pub fn relaxations(&self) -> &[Relaxation] {
        &self.relaxations
    }
    /// What was decided by, besides the policy file.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }
    /// Why this should have been a refusal; only mode `audit` has such reasons.
    pub fn audited(&self) -> &[String] {
        &self.audited
    }
    pub fn decided_at(&self) -> UnixTime {
        self.decided_at
    }

    /// May a program with this content be started, as entry point, by `exec`, as a hook, or by a process
    /// of the container?
    pub fn may_start(&self, how: How, program: FileDigest) -> Result<(), NotAllowed> {
        match (&self.programs, how) {
            (Programs::Listed(listed), _) => {
                let list = &listed.list;
                list.allows_digest(&program)
                    .map(drop)
                    .map_err(|_| NotAllowed::NotListed {
                        name: list.name().to_owned(),
                        serial: list.serial(),
                        digest: list.digest(),
                    })
            }
            (Programs::Named(named), _) if named.contains(&program) => Ok(()),
            (Programs::Named(_), _) => Err(NotAllowed::NotNamed),
            // The arguments were compared, and the file is the named image's.
            (Programs::Args(_), How::Entrypoint) => Ok(()),
            (Programs::Args(_), How::Behind | How::Enter | How::Hook | How::Inside) => {
                Err(NotAllowed::NotTheSandbox)
            }
            (Programs::Any, _) => Ok(()),
        }
    }

    /// What watches executions inside is at least what the policy's entry demands.
    pub fn check_tier(&self, tier: TierName, lacks: &str) -> Result<(), Refusal> {
        if tier >= self.terms.min_tier {
            return Ok(());
        }
        Err(self.refusal(
            vec![format!(
                "executions inside the container would be watched by tier `{tier}`, and min_tier is `{}`: {lacks}",
                self.terms.min_tier
            )],
            "run it where the kernel and the root file system allow for that tier".to_owned(),
        ))
    }

    /// Whether `digest` is a program that the list, or the policy itself, names.
    pub fn is_listed(&self, digest: &FileDigest) -> bool {
        match &self.programs {
            Programs::Listed(listed) => listed.list.allows_digest(digest).is_ok(),
            Programs::Named(named) => named.contains(digest),
            Programs::Args(_) | Programs::Any => false,
        }
    }

    /// A refusal of this container for what came out later.
    pub fn refusal(&self, reasons: Vec<String>, hint: String) -> Refusal {
        let mut some = Reasons::default();
        reasons.into_iter().for_each(|reason| some.add(|| reason));
        self.refused(some, hint)
    }

    fn refused(&self, reasons: Reasons, hint: String) -> Refusal {
        Refusal {
            subject: self.made.to_string(),
            rule: Some(self.terms.name.as_str().into()),
            reasons: reasons.told(),
            hint,
        }
    }

    /// The rootfs agrees with the list: each listed file is there with a content that the list names,
    /// and no mount hides a listed program. All disagreements are reported.
    pub fn check_rootfs<E: Expected>(
        &self,
        rootfs: &E,
    ) -> Result<Result<CheckedPrograms, Refusal>, E::Error> {
        let mut reasons = Reasons::default();
        if let Programs::Listed(listed) = &self.programs {
            for (path, digests) in listed.list.list().files().iter() {
                match rootfs.file(path)? {
                    Some(digest) if digests.contains(&digest) => {}
                    Some(digest) => reasons.add(|| {
                        format!(
                            "{} has content {digest} in the image, which the list does not name",
                            encode_path(path)
                        )
                    }),
                    None => reasons.add(|| {
                        format!(
                            "{} is in the list, but no regular file of the image",
                            encode_path(path)
                        )
                    }),
                }
            }
        }
        let mut mounts = Vec::new();
        for mount in &self.profile.mounts {
            match rootfs.resolve(mount.destination.as_bytes())? {
                Some(place) => mounts.push(place),
                None => reasons.add(|| {
                    format!(
                        "the mount at {} leads into a loop of symbolic links",
                        mount.destination
                    )
                }),
            }
        }
        for path in self.protected() {
            let hidden = RootfsPath::parse(path)
                .ok()
                .and_then(|place| covering(&mounts, &place).cloned());
            if let Some(mount) = hidden {
                reasons.add(|| {
                    format!(
                        "the mount at {} hides the listed program {}",
                        encode_path(&mount.absolute()),
                        encode_path(path)
                    )
                });
            }
        }
        Ok(match reasons.is_empty() {
            true => Ok(CheckedPrograms { mounts }),
            false => Err(self.refused(
                reasons,
                match &self.programs {
                    Programs::Listed(listed) => format!(
                        "make a list from this very image (`attestctl list create`), or start it without the mount; the list is {} serial {} ({})",
                        listed.list.name(),
                        listed.list.serial(),
                        listed.list.digest()
                    ),
                    _ => "start it without the mount".to_owned(),
                },
            )),
        })
    }

    /// A directory without an image holds what the policy's entry demands.
    pub fn check_content(&self, found: RootfsDigest) -> Result<(), Refusal> {
        match &self.made {
            Made::Bundle(_, ContentRule::OneOf(digests)) if !digests.contains(&found) => Err(self
                .refusal(
                    vec![format!(
                        "its content is {found}, which the entry does not name"
                    )],
                    "restore the directory, or name this digest under `content` of the entry"
                        .to_owned(),
                )),
            _ => Ok(()),
        }
    }

    /// The programs that no mount may hide.
    fn protected(&self) -> Vec<&[u8]> {
        if self.terms.mounts == MountsRule::Any {
            return Vec::new();
        }
        match &self.programs {
            Programs::Listed(listed) => listed.list.list().programs().collect(),
            Programs::Args(args) => args.first().map(String::as_bytes).into_iter().collect(),
            Programs::Named(_) | Programs::Any => Vec::new(),
        }
    }
}

/// What speaks against it. A list of another image would fill pages, so most of it is only counted.
#[derive(Default)]
struct Reasons {
    some: Vec<String>,
    more: usize,
}

impl Reasons {
    fn add(&mut self, reason: impl FnOnce() -> String) {
        const MAX_REASONS: usize = 8;
        match self.some.len() < MAX_REASONS {
            true => self.some.push(reason()),
            false => self.more += 1,
        }
    }
    fn is_empty(&self) -> bool {
        self.some.is_empty()
    }
    fn told(mut self) -> Vec<String> {
        if self.more > 0 {
            self.some.push(format!("and {} more", self.more));
        }
        self.some
    }
}
