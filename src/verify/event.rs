//! What the events of a container's log say: one type per event, its PCR, its name, its schema.
//!
//! Each event is an `ima-buf` entry (see [`crate::imalog`]) whose buffer is canonical JSON in clear
//! text: appraisal reads contents, never only digests. Names and schemas are a contract with every
//! log ever written ([`crate::golden`] pins them): add events, do not change them.
//!
//! | PCR | its events, in order |
//! |---|---|
//! | 0 | `attestrun.host-link` (the log's first entry), `attestrun.runtime`, separator |
//! | 1 | `attestrun.launch`, separator |
//! | 2 | `attestrun.image`, separator |
//! | 3, 6 | separator |
//! | 4 | `attestrun.rootfs`, `attestrun.rootfs-done`, separator |
//! | 5 | `attestrun.policy`, separator |
//! | 7 | `attestrun.user`, `attestrun.list`, separator |
//! | 8 | `attestrun.fault`, any number; none in a healthy container |
//! | 10 | executed files (`ima-ng`), no events |
//! | 11 | `attestrun.tier`, then at most one `attestrun.start`; after it `attestrun.exec`, `attestrun.enter` |
//!
//! The TPM proves the order within a PCR. The order between PCRs is what the log says.

use crate::canon::{canonical, safe_int};
use crate::digest::{
    BundleDigest, ConfigDigest, FileDigest, ImageDigest, KeyDigest, ListDigest, PolicyDigest,
    RootfsDigest,
};
use crate::id::UnixTime;
use crate::imalog::{Entry, EntryError, Template};
use crate::pcr::{self, PcrIndex};
use crate::profile::LaunchProfile;
use crate::tpm2::TpmName;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt;

/// Name of the events that close PCRs 0 to 7.
pub const SEPARATOR: &str = "separator";
/// A separator's buffer (TCG PC Client Platform Firmware Profile, EV_SEPARATOR).
const SEPARATOR_BUFFER: [u8; 4] = [0; 4];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("an executed file is not an event")]
    File,
    #[error("`{name}` in PCR {pcr} is not a known event")]
    Unknown { pcr: PcrIndex, name: String },
    #[error("event `{name}`: {problem}")]
    Schema { name: &'static str, problem: String },
    #[error("event `{0}` is not in canonical form")]
    NotCanonical(String),
    #[error(transparent)]
    Entry(#[from] EntryError),
}

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
    /// A cosign simple-signing signature by a public key.
    Key {
        fingerprint: KeyDigest,
        docker_reference: String,
    },
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

/// How the root file system was compared with the image's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsCheck {
    /// Every file was read and hashed at this create.
    Full,
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

/// Whether the policy was enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforce {
    Enforce,
    /// Recorded only: what should have been refused was let through.
    Audit,
}

/// What watches executions inside the running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierName {
    /// Nothing: only what attestrun itself starts is judged.
    None,
}

/// How the root file system is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// One digest over the rootfs manifest.
    Manifest,
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
    /// At a program's first use.
    First,
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
    Enter,
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

/// What was decided about an `exec` into the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnterVerdict {
    Allowed,
    Denied,
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
    pub path: String,
    /// None: denied before there was a file to hash.
    pub digest: Option<FileDigest>,
    pub user: Ids,
    /// Effective capabilities, sorted (`CAP_…`).
    pub capabilities: Vec<String>,
    pub tty: bool,
    pub reason: String,
}

/// An event of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    HostLink(HostLink),
    Runtime(Runtime),
    Launch(Box<Launch>),
    Image(Image),
    Rootfs(Rootfs),
    RootfsDone(RootfsDone),
    Policy(Policy),
    User(User),
    List(List),
    /// Closes one of PCRs 0 to 7.
    Separator(PcrIndex),
    Fault(Fault),
    Tier(Tier),
    Start,
    Exec(Exec),
    Enter(Enter),
}

impl Event {
    pub fn pcr(&self) -> PcrIndex {
        match self {
            Self::HostLink(_) | Self::Runtime(_) => pcr::RUNTIME,
            Self::Launch(_) => pcr::LAUNCH,
            Self::Image(_) => pcr::IMAGE,
            Self::Rootfs(_) | Self::RootfsDone(_) => pcr::ROOTFS,
            Self::Policy(_) => pcr::POLICY,
            Self::User(_) | Self::List(_) => pcr::LIST,
            Self::Separator(pcr) => *pcr,
            Self::Fault(_) => pcr::FAULTS,
            Self::Tier(_) | Self::Start | Self::Exec(_) | Self::Enter(_) => pcr::LIFE,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::HostLink(_) => "attestrun.host-link",
            Self::Runtime(_) => "attestrun.runtime",
            Self::Launch(_) => "attestrun.launch",
            Self::Image(_) => "attestrun.image",
            Self::Rootfs(_) => "attestrun.rootfs",
            Self::RootfsDone(_) => "attestrun.rootfs-done",
            Self::Policy(_) => "attestrun.policy",
            Self::User(_) => "attestrun.user",
            Self::List(_) => "attestrun.list",
            Self::Separator(_) => SEPARATOR,
            Self::Fault(_) => "attestrun.fault",
            Self::Tier(_) => "attestrun.tier",
            Self::Start => "attestrun.start",
            Self::Exec(_) => "attestrun.exec",
            Self::Enter(_) => "attestrun.enter",
        }
    }

    /// The log entry. Fails only for contents that no log may hold: too long, or a number that
    /// JSON cannot spell exactly, or a separator of a PCR that is not closed.
    pub fn to_entry(&self) -> Result<Entry, EventError> {
        if let Self::Separator(pcr) = self
            && *pcr > pcr::LAST_CLOSED
        {
            return Err(EventError::Unknown {
                pcr: *pcr,
                name: SEPARATOR.to_owned(),
            });
        }
        Ok(Entry::buffer(self.pcr(), self.name(), self.buffer()?)?)
    }

    fn buffer(&self) -> Result<Vec<u8>, EventError> {
        let bytes = match self {
            Self::HostLink(e) => canonical(e),
            Self::Runtime(e) => canonical(e),
            Self::Launch(e) => canonical(e),
            Self::Image(e) => canonical(e),
            Self::Rootfs(e) => canonical(e),
            Self::RootfsDone(e) => canonical(e),
            Self::Policy(e) => canonical(e),
            Self::User(e) => canonical(e),
            Self::List(e) => canonical(e),
            Self::Separator(_) => Ok(SEPARATOR_BUFFER.to_vec()),
            Self::Fault(e) => canonical(e),
            Self::Tier(e) => canonical(e),
            Self::Start => canonical(&Start {}),
            Self::Exec(e) => canonical(e),
            Self::Enter(e) => canonical(e),
        };
        bytes.map_err(|e| EventError::Schema {
            name: self.name(),
            problem: e.to_string(),
        })
    }

    /// The event that `entry` is; refuses unknown names, fields and spellings.
    pub fn from_entry(entry: &Entry) -> Result<Self, EventError> {
        let Template::ImaBuf { name, buf } = entry.template() else {
            return Err(EventError::File);
        };
        let event = match (entry.pcr().get(), name.as_str()) {
            (0, "attestrun.host-link") => Self::HostLink(read("attestrun.host-link", buf)?),
            (0, "attestrun.runtime") => Self::Runtime(read("attestrun.runtime", buf)?),
            (1, "attestrun.launch") => Self::Launch(Box::new(read("attestrun.launch", buf)?)),
            (2, "attestrun.image") => Self::Image(read("attestrun.image", buf)?),
            (4, "attestrun.rootfs") => Self::Rootfs(read("attestrun.rootfs", buf)?),
            (4, "attestrun.rootfs-done") => Self::RootfsDone(read("attestrun.rootfs-done", buf)?),
            (5, "attestrun.policy") => Self::Policy(read("attestrun.policy", buf)?),
            (7, "attestrun.user") => Self::User(read("attestrun.user", buf)?),
            (7, "attestrun.list") => Self::List(read("attestrun.list", buf)?),
            (0..=7, SEPARATOR) => Self::Separator(entry.pcr()),
            (8, "attestrun.fault") => Self::Fault(read("attestrun.fault", buf)?),
            (11, "attestrun.tier") => Self::Tier(read("attestrun.tier", buf)?),
            (11, "attestrun.start") => {
                let Start {} = read("attestrun.start", buf)?;
                Self::Start
            }
            (11, "attestrun.exec") => Self::Exec(read("attestrun.exec", buf)?),
            (11, "attestrun.enter") => Self::Enter(read("attestrun.enter", buf)?),
            _ => {
                return Err(EventError::Unknown {
                    pcr: entry.pcr(),
                    name: name.clone(),
                });
            }
        };
        match event.to_entry() {
            Ok(same) if same == *entry => Ok(event),
            _ => Err(EventError::NotCanonical(name.clone())),
        }
    }
}

fn read<T: DeserializeOwned>(name: &'static str, buf: &[u8]) -> Result<T, EventError> {
    serde_json::from_slice(buf).map_err(|e| EventError::Schema {
        name,
        problem: e.to_string(),
    })
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
    RootfsCheck { Full "full" }
    Enforce { Enforce "enforce", Audit "audit" }
    TierName { None "none" }
    Measure { Manifest "manifest" }
    Latitude { Any "any", Deny "deny" }
    EnterMode { Deny "deny", Listed "listed", Any "any" }
    ExecLog { First "first" }
    How { Entrypoint "entrypoint", Enter "enter" }
    EnterVerdict { Allowed "allowed", Denied "denied" }
}
