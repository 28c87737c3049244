//! The fields of each event, and the words that they are spelt with.

use crate::canon::safe_int;
use crate::digest::{
    BundleDigest, ConfigDigest, FileDigest, ImageDigest, KeyDigest, ListDigest, PolicyDigest,
    RootfsDigest,
};
use crate::id::UnixTime;
use crate::profile::LaunchProfile;
use crate::tpm2::TpmName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// PCR 0, the first event of every log: the host that made this vTPM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostLink {
    pub host_ak_name: TpmName,
    pub host_reset: u32,
    pub host_boot: String,
}

/// An executable: what it calls itself, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Executable {
    pub version: String,
    pub sha256: FileDigest,
}

/// PCR 0: the programs that make the measurements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    pub attestrun: Executable,
    pub swtpm: Executable,
}

/// The OCI runtime that starts the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    pub name: String,
    pub version: String,
    /// None: embedded in attestrun, whose digest is in PCR 0.
    pub sha256: Option<FileDigest>,
}

/// PCR 1: how the container is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    pub bundle_config: BundleDigest,
    pub backend: Backend,
    pub profile: LaunchProfile,
}

/// Who vouches for the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Verdict {
    /// A signature by a public key.
    Key {
        fingerprint: KeyDigest,
        /// The name that was signed; bundles have none.
        docker_reference: Option<String>,
    },
    /// A signature by a short-lived certificate.
    Keyless {
        subject: String,
        issuer: String,
        certificate: KeyDigest,
        docker_reference: Option<String>,
    },
    /// Nobody signed it; the policy names its digest.
    Named {},
    /// Nobody that counts vouches for it.
    Unsigned {},
}

/// PCR 2: the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    pub manifest: ImageDigest,
    pub config: ConfigDigest,
    pub name: String,
    pub verdict: Verdict,
    /// The policy's rule that admitted it.
    pub rule: String,
}

/// PCR 2, in place of the image: the root file system is a directory that no image is known of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoImage {
    /// The directory on the host.
    pub rootfs: String,
    /// The policy's entry that let it be.
    pub rule: String,
}

/// How the root file system was compared with the image's layers; ordered from strict to lax.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsCheck {
    /// Every file was read and hashed at this create.
    Full,
    /// Files that were hashed in this boot and have the same inode stamps since were not read again.
    Boot,
    /// A process of the host vouched that nothing changed since then: not even the stamps were looked at.
    Watched,
    /// Sizes and other attributes were compared, contents were not.
    Stat,
    /// Measured, and compared with nothing: no image says what it should be, or it is not that.
    Measured,
}

/// PCR 4: the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    pub manifest: RootfsDigest,
    pub check: RootfsCheck,
    #[serde(with = "safe_int")]
    pub entries: u64,
    #[serde(with = "safe_int")]
    pub bytes: u64,
    /// Differences that a named rule explains (empty files and directories which engines put in).
    pub stubs: Vec<String>,
}

/// PCR 4: nothing more is measured of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootfsDone {
    pub manifest: RootfsDigest,
}

/// PCR 10: the files before it are those of the root file system as it was measured; those after it
/// were executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesDone {
    pub measure: Measure,
    #[serde(with = "safe_int")]
    pub files: u64,
}

/// PCR 11, before the start: what stood where config.json binds something of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountContent {
    /// As in the launch profile.
    pub destination: String,
    /// mtree(5) `type` of what is mounted.
    #[serde(rename = "type")]
    pub kind: String,
    /// The container cannot write through this mount; whoever has the source may.
    pub read_only: bool,
    /// Of the mounted tree; other mounts of config.json below it are left out.
    pub manifest: RootfsDigest,
    #[serde(with = "safe_int")]
    pub entries: u64,
    #[serde(with = "safe_int")]
    pub bytes: u64,
}

/// Whether the policy was enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforce {
    Enforce,
    /// Recorded only: what should have been refused was let through.
    Audit,
}

/// What watches executions inside the running container; ordered from lax to strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierName {
    /// Nothing: only what attestrun itself starts is judged.
    None,
    /// fanotify(7): each file that execve(2) opens in the container's own file systems and in what is
    /// mounted at its start waits for the guard's word. Not seen: memory files, file systems mounted
    /// later, libraries and other code that is only mapped or read.
    Fanotify,
}

/// How the root file system is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// One digest over the rootfs manifest.
    Manifest,
    /// And each regular file by itself, in PCR 10.
    Files,
    /// And each file whose content is a listed program's by itself, in PCR 10.
    Listed,
}

/// Whether something that no list can name may happen inside the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Latitude {
    /// Not prevented.
    Any,
    Deny,
}

/// What may be executed into the running container; ordered from strict to lax.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnterMode {
    Deny,
    /// Programs of the signature list.
    Listed,
    Any,
}

/// When an execution is recorded in PCR 11.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecLog {
    /// At a program's first use, and at its first after it changed.
    First,
    /// Each execution that is seen.
    Every,
}

/// PCR 5: the policy, and the modes that applied; frozen at create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub digest: PolicyDigest,
    pub enforce: Enforce,
    pub tier: TierName,
    pub rootfs: RootfsCheck,
    pub measure: Measure,
    /// Interpreters reading unlisted scripts.
    pub scripts: Latitude,
    /// ptrace, /proc/pid/mem and the like.
    pub inject: Latitude,
    /// Executable memory without a file.
    pub anonymous_exec: Latitude,
    pub enter: EnterMode,
    pub exec_log: ExecLog,
    pub rule: String,
    pub decided_at: UnixTime,
}

/// What the policy judged: which of its entries can apply, and who vouches for the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// An image, under a `[[rule]]`.
    Image,
    /// An image that holds a pod's namespaces, under a `[[sandbox]]`.
    Sandbox,
    /// A step of an image's build, under a `[[build]]`.
    Build,
    /// A directory without an image, under a `[[bundle]]`.
    Bundle,
}

/// Which programs may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgramsRule {
    /// Those of a signature list.
    Listed,
    /// Those whose digests the policy names.
    Named,
    /// The one that the policy spells out with its arguments.
    Args,
    /// Any: nothing vouches for them.
    Any,
}

/// What mounts may do to the files of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountsRule {
    /// None may hide a listed program.
    Programs,
    /// As `programs`; and what bind mounts bring in place of the image's files is measured.
    Measure,
    /// Anything.
    Any,
}

/// What the container's own layer may hold before its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpperRule {
    /// Nothing but what engines put there.
    Pristine,
    /// Anything: it is measured.
    Any,
}

/// A file that took part in the decision, by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// What it is: `policy.json`, `key`, `user-ca`, `crl`, `trusted-root`, `scan`…
    pub kind: String,
    pub path: String,
    pub sha256: FileDigest,
}

/// PCR 5, after the policy: why the container was let through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grounds {
    pub origin: Origin,
    pub programs: ProgramsRule,
    pub mounts: MountsRule,
    pub upper: UpperRule,
    /// Names of the relaxations without which the launch would have been refused.
    pub relaxations: Vec<String>,
    /// What was decided by, besides the policy file.
    pub sources: Vec<Source>,
    /// What should have been refused, and was let through because the mode is `audit`.
    pub audited: Vec<String>,
}

/// PCR 7, in place of user and list: no signature list says which programs may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoList {
    pub programs: ProgramsRule,
    pub rule: String,
}

/// PCR 7: whose list it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub certificate: KeyDigest,
    pub subject: String,
    pub tenant: String,
}

/// PCR 7: the signature list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    pub digest: ListDigest,
    pub name: String,
    #[serde(with = "safe_int")]
    pub serial: u64,
}

/// Kind of the faults that mode `audit` let pass.
pub const AUDITED: &str = "audited";

/// PCR 8: something that must not happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub kind: String,
    pub detail: String,
}

/// PCR 11, its first event: the tier that took effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    pub tier: TierName,
    /// `uname -r` of the host.
    pub kernel: String,
    /// `deny`: the kernel executes no memory file (memfd_create(2)) in the container's pid namespace.
    #[serde(default = "any", skip_serializing_if = "is_any")]
    pub memory_files: Latitude,
}

fn any() -> Latitude {
    Latitude::Any
}
fn is_any(latitude: &Latitude) -> bool {
    *latitude == Latitude::Any
}

/// How far the kernel itself has checked the list's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelCheck {
    /// The chain to the user CA, and the signature.
    Signature,
    /// The chain alone.
    Chain,
    /// Nothing.
    None,
}

/// PCR 11, before the start: what the kernel's keyrings did with the certificates behind the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelKeys {
    pub checked: KernelCheck,
    /// Why it went no further; empty if it went all the way.
    pub why: String,
}

/// PCR 11: the container starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {}

/// Who started a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    Entrypoint,
    /// What the entry point, an engine's init, is told to execute (`docker-init -- <program>`). It was
    /// judged before the start; that the init executes it and nothing else is the init's word.
    Behind,
    Enter,
    /// By a startContainer hook, before the entry point.
    Hook,
    /// By a process of the container itself.
    Inside,
}

/// PCR 11: a program was executed; its file is in PCR 10.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// As in PCR 10 ([`crate::imalog::EncodedPath`]).
    pub path: String,
    pub digest: FileDigest,
    /// Salted per container: arguments may hold secrets. 64 hex digits.
    pub args_digest: String,
    pub uid: u32,
    pub gid: u32,
    pub how: How,
}

/// What was decided about an execution, by `exec` from outside or by a process of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnterVerdict {
    Allowed,
    Denied,
    /// Should have been denied, and was let in because the mode is `audit`.
    Audited,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

/// PCR 11: somebody asked to run a program inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enter {
    pub verdict: EnterVerdict,
    /// As in PCR 10; if denied, percent-encoded as it was asked for.
    pub path: String,
    /// None: denied before there was a file to hash.
    pub digest: Option<FileDigest>,
    pub user: Ids,
    /// Effective capabilities, sorted (`CAP_…`).
    pub capabilities: Vec<String>,
    pub tty: bool,
    pub reason: String,
}

/// Who called execve(2), as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caller {
    pub pid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub gid: u32,
    /// Inode numbers of the namespaces (`/proc/<pid>/ns`).
    #[serde(with = "safe_int")]
    pub mount_namespace: u64,
    #[serde(with = "safe_int")]
    pub pid_namespace: u64,
}

/// PCR 11: a process of the container executes a file for the first time, or, with [`ExecLog::Every`], again;
/// allowed, its file is in PCR 10. A denial is news once. Arguments are not known when the kernel asks: they
/// are in the caller's memory, which it may still change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inside {
    pub verdict: EnterVerdict,
    /// As in PCR 10: where the file was when it was opened. Scripts, interpreters and the dynamic loader
    /// have records of their own.
    pub path: String,
    pub digest: FileDigest,
    /// Absent if it ended while it was judged.
    pub caller: Option<Caller>,
}

macro_rules! words {
    ($($type:ident { $($variant:ident $word:literal),* })*) => {$(
        impl $type {
            /// As the event spells it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    )*};
}
words! {
    RootfsCheck { Full "full", Boot "boot", Watched "watched", Stat "stat", Measured "measured" }
    Origin { Image "image", Sandbox "sandbox", Build "build", Bundle "bundle" }
    ProgramsRule { Listed "listed", Named "named", Args "args", Any "any" }
    MountsRule { Programs "programs", Measure "measure", Any "any" }
    UpperRule { Pristine "pristine", Any "any" }
    Enforce { Enforce "enforce", Audit "audit" }
    KernelCheck { Signature "signature", Chain "chain", None "none" }
    TierName { None "none", Fanotify "fanotify" }
    Measure { Manifest "manifest", Files "files", Listed "listed" }
    Latitude { Any "any", Deny "deny" }
    EnterMode { Deny "deny", Listed "listed", Any "any" }
    ExecLog { First "first", Every "every" }
    How { Entrypoint "entrypoint", Behind "behind", Enter "enter", Hook "hook", Inside "inside" }
    EnterVerdict { Allowed "allowed", Denied "denied", Audited "audited" }
}
