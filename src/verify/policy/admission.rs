//! What a positive decision hands on: the witnesses of every check, and the questions that can only be
//! asked once the rootfs is known.

use super::{Enforce, EnterMode, Policy, Refusal, Rule, StoredList, TierName};
use crate::cms::VerifiedSigner;
use crate::digest::{ConfigDigest, FileDigest, ImageDigest, PolicyDigest};
use crate::id::UnixTime;
use crate::image::Image;
use crate::imalog::encode_path;
use crate::profile::{JudgedProfile, LaunchRules};
use crate::rootfs::{Kind, RootfsManifest, RootfsPath};
use crate::siglist::{Programs, VerifiedList};
use crate::signature::Signed;

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

/// This image may run with this profile under this list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    policy: PolicyDigest,
    mode: Enforce,
    rule: String,
    enter: EnterMode,
    min_tier: TierName,
    launch_rules: LaunchRules,
    image: VerifiedImage,
    list: VerifiedList,
    stored_list: StoredList,
    profile: JudgedProfile,
    decided_at: UnixTime,
}

impl Admission {
    pub(super) fn new(
        policy: &Policy,
        rule: &Rule,
        image: VerifiedImage,
        list: VerifiedList,
        stored_list: StoredList,
        profile: JudgedProfile,
        decided_at: UnixTime,
    ) -> Self {
        Self {
            policy: policy.digest(),
            mode: policy.mode(),
            rule: rule.name.clone(),
            enter: rule.enter,
            min_tier: rule.min_tier,
            launch_rules: rule.launch.clone(),
            image,
            list,
            stored_list,
            profile,
            decided_at,
        }
    }
    pub fn policy_digest(&self) -> PolicyDigest {
        self.policy
    }
    /// What the policy calls itself; an admission in `audit` went through every check as well.
    pub fn mode(&self) -> Enforce {
        self.mode
    }
    /// The name of the rule.
    pub fn rule(&self) -> &str {
        &self.rule
    }
    pub fn enter(&self) -> EnterMode {
        self.enter
    }
    pub fn min_tier(&self) -> TierName {
        self.min_tier
    }
    /// The rules for processes that enter later ([`crate::profile::judge_process`]).
    pub fn launch_rules(&self) -> &LaunchRules {
        &self.launch_rules
    }
    pub fn image(&self) -> &VerifiedImage {
        &self.image
    }
    pub fn signed_by(&self) -> &Signed {
        &self.image.signed
    }
    pub fn list(&self) -> &VerifiedList {
        &self.list
    }
    /// The bytes of that list and of its signature, for evidence.
    pub fn stored_list(&self) -> &StoredList {
        &self.stored_list
    }
    pub fn signer(&self) -> &VerifiedSigner {
        self.list.signer()
    }
    pub fn profile(&self) -> &JudgedProfile {
        &self.profile
    }
    pub fn decided_at(&self) -> UnixTime {
        self.decided_at
    }

    /// The rootfs agrees with the list: each listed file is there with a content that the list names,
    /// and no mount hides a listed program. All disagreements are reported.
    pub fn check_rootfs(&self, rootfs: &RootfsManifest) -> Result<CheckedPrograms, Refusal> {
        let mut reasons = Vec::new();
        for (path, digests) in self.list.list().files() {
            match rootfs.file(path) {
                Some(digest) if digests.contains(&digest) => {}
                Some(digest) => reasons.push(format!(
                    "{} has content {digest} in the image, which the list does not name",
                    encode_path(path)
                )),
                None => reasons.push(format!(
                    "{} is in the list, but no regular file of the image",
                    encode_path(path)
                )),
            }
        }
        let mut mounts = Vec::new();
        for mount in &self.profile.profile().mounts {
            match rootfs.resolve(mount.destination.as_bytes()) {
                Some(place) => mounts.push(place),
                None => reasons.push(format!(
                    "the mount at {} leads into a loop of symbolic links",
                    mount.destination
                )),
            }
        }
        for path in self.programs() {
            let hidden = RootfsPath::parse(path)
                .ok()
                .and_then(|place| covering(&mounts, &place).cloned());
            if let Some(mount) = hidden {
                reasons.push(format!(
                    "the mount at {} hides the listed program {}",
                    encode_path(&mount.absolute()),
                    encode_path(path)
                ));
            }
        }
        match reasons.is_empty() {
            true => Ok(CheckedPrograms { mounts }),
            false => Err(Refusal {
                image: self.image.name().to_owned(),
                digest: self.image.manifest_digest(),
                rule: Some(self.rule.as_str().into()),
                hint: format!(
                    "make a list from this very image (`attestctl list create`), or start it without the mount; the list is {} serial {} ({})",
                    self.list.name(),
                    self.list.serial(),
                    self.list.digest()
                ),
                reasons: shortened(reasons),
            }),
        }
    }

    fn programs(&self) -> Vec<&Vec<u8>> {
        match self.list.list().programs() {
            Programs::AllFiles => self.list.list().files().keys().collect(),
            Programs::Only(paths) => paths.iter().collect(),
        }
    }
}

/// A list of another image would fill pages.
fn shortened(mut reasons: Vec<String>) -> Vec<String> {
    const MAX_REASONS: usize = 8;
    let more = reasons.len().saturating_sub(MAX_REASONS);
    reasons.truncate(MAX_REASONS);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    reasons
}

/// The mount that a path lies in.
fn covering<'m>(mounts: &'m [RootfsPath], path: &RootfsPath) -> Option<&'m RootfsPath> {
    mounts
        .iter()
        .find(|mount| path == *mount || path.is_below(mount))
}

/// The list's programs are in the rootfs as the list says, and no mount hides one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedPrograms {
    mounts: Vec<RootfsPath>,
}

/// Why it cannot be said which file a path would execute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStartable {
    #[error("{0} is not in the image")]
    Missing(String),
    #[error("{0} is no regular file of the image")]
    NotAFile(String),
    #[error("{path} leads through the mount at {mount}, whose content is not the image's")]
    Mounted { path: String, mount: String },
    #[error("{0} leads through too many symbolic links")]
    Loop(String),
}

impl CheckedPrograms {
    /// The file of the image that executing `path` (absolute) would start: symbolic links are followed
    /// step by step, and no step may lie in a mount, since what is there is not what was measured.
    pub fn resolve(
        &self,
        rootfs: &RootfsManifest,
        path: &[u8],
    ) -> Result<(RootfsPath, FileDigest), NotStartable> {
        const MAX_LINKS: usize = 40; // as the kernel, MAXSYMLINKS
        let shown = || encode_path(path);
        let names = |text: &[u8]| -> Vec<Vec<u8>> {
            text.split(|b| *b == b'/')
                .rev()
                .map(<[u8]>::to_vec)
                .collect()
        };
        let (mut here, mut rest, mut links) = (RootfsPath::root(), names(path), 0);
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here = here.parent().unwrap_or(here);
                    continue;
                }
                _ => {}
            }
            let next = here
                .join(&name)
                .map_err(|_| NotStartable::Missing(shown()))?;
            if let Some(mount) = covering(&self.mounts, &next) {
                return Err(NotStartable::Mounted {
                    path: shown(),
                    mount: encode_path(&mount.absolute()),
                });
            }
            match rootfs.tree().get(&next).map(|entry| &entry.kind) {
                None => return Err(NotStartable::Missing(shown())),
                Some(Kind::Symlink { target }) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(NotStartable::Loop(shown()));
                    }
                    if target.starts_with(b"/") {
                        here = RootfsPath::root();
                    }
                    rest.extend(names(target));
                }
                Some(_) => here = next,
            }
        }
        match rootfs.tree().get(&here).map(|entry| &entry.kind) {
            Some(Kind::File { digest, .. }) => Ok((here, *digest)),
            _ => Err(NotStartable::NotAFile(shown())),
        }
    }
}
