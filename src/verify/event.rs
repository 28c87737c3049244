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
//! | 2 | `attestrun.image` or `attestrun.no-image`, separator |
//! | 3, 6 | separator |
//! | 4 | `attestrun.rootfs`, `attestrun.rootfs-done`, separator |
//! | 5 | `attestrun.policy`, `attestrun.grounds`, separator |
//! | 7 | `attestrun.user`, `attestrun.list`, or `attestrun.no-list`; separator |
//! | 8 | `attestrun.fault`, any number; none in a healthy container |
//! | 10 | executed files (`ima-ng`); before them, where the policy wants files measured by themselves, those of the rootfs in the order of their paths, and `attestrun.files-done` |
//! | 11 | `attestrun.tier`, then at most one `attestrun.start`; before it `attestrun.kernel-keys`, if there is a list, and `attestrun.mount` for each bind mount, where the policy wants mounts measured; after it at most one `attestrun.hooked`, and `attestrun.exec`, `attestrun.enter`, `attestrun.inside` |
//!
//! The TPM proves the order within a PCR. The order between PCRs is what the log says.

use crate::canon::canonical;
use crate::imalog::{Entry, EntryError, FILES_DONE, Template};
use crate::pcr::{self, PcrIndex};
use crate::profile::HookAdditions;
use serde::de::DeserializeOwned;

mod schema;
pub use schema::*;

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

/// An event of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    HostLink(HostLink),
    Runtime(Runtime),
    Launch(Box<Launch>),
    Image(Image),
    NoImage(NoImage),
    Rootfs(Rootfs),
    RootfsDone(RootfsDone),
    FilesDone(FilesDone),
    Policy(Policy),
    Grounds(Grounds),
    User(User),
    List(List),
    NoList(NoList),
    /// Closes one of PCRs 0 to 7.
    Separator(PcrIndex),
    Fault(Fault),
    Tier(Tier),
    KernelKeys(KernelKeys),
    Mount(MountContent),
    Start,
    /// What hooks added to the container before it started; left out when they added nothing.
    Hooked(HookAdditions),
    Exec(Exec),
    Enter(Enter),
    Inside(Inside),
}

impl Event {
    pub fn pcr(&self) -> PcrIndex {
        match self {
            Self::HostLink(_) | Self::Runtime(_) => pcr::RUNTIME,
            Self::Launch(_) => pcr::LAUNCH,
            Self::Image(_) | Self::NoImage(_) => pcr::IMAGE,
            Self::Rootfs(_) | Self::RootfsDone(_) => pcr::ROOTFS,
            Self::Policy(_) | Self::Grounds(_) => pcr::POLICY,
            Self::User(_) | Self::List(_) | Self::NoList(_) => pcr::LIST,
            Self::Separator(pcr) => *pcr,
            Self::Fault(_) => pcr::FAULTS,
            Self::FilesDone(_) => pcr::FILES,
            Self::Tier(_)
            | Self::KernelKeys(_)
            | Self::Mount(_)
            | Self::Start
            | Self::Hooked(_)
            | Self::Exec(_)
            | Self::Enter(_)
            | Self::Inside(_) => pcr::LIFE,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::HostLink(_) => "attestrun.host-link",
            Self::Runtime(_) => "attestrun.runtime",
            Self::Launch(_) => "attestrun.launch",
            Self::Image(_) => "attestrun.image",
            Self::NoImage(_) => "attestrun.no-image",
            Self::Rootfs(_) => "attestrun.rootfs",
            Self::RootfsDone(_) => "attestrun.rootfs-done",
            Self::FilesDone(_) => FILES_DONE,
            Self::Policy(_) => "attestrun.policy",
            Self::Grounds(_) => "attestrun.grounds",
            Self::User(_) => "attestrun.user",
            Self::List(_) => "attestrun.list",
            Self::NoList(_) => "attestrun.no-list",
            Self::Separator(_) => SEPARATOR,
            Self::Fault(_) => "attestrun.fault",
            Self::Tier(_) => "attestrun.tier",
            Self::KernelKeys(_) => "attestrun.kernel-keys",
            Self::Mount(_) => "attestrun.mount",
            Self::Start => "attestrun.start",
            Self::Hooked(_) => "attestrun.hooked",
            Self::Exec(_) => "attestrun.exec",
            Self::Enter(_) => "attestrun.enter",
            Self::Inside(_) => "attestrun.inside",
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
            Self::NoImage(e) => canonical(e),
            Self::Rootfs(e) => canonical(e),
            Self::RootfsDone(e) => canonical(e),
            Self::FilesDone(e) => canonical(e),
            Self::Policy(e) => canonical(e),
            Self::Grounds(e) => canonical(e),
            Self::User(e) => canonical(e),
            Self::List(e) => canonical(e),
            Self::NoList(e) => canonical(e),
            Self::Separator(_) => Ok(SEPARATOR_BUFFER.to_vec()),
            Self::Fault(e) => canonical(e),
            Self::Tier(e) => canonical(e),
            Self::KernelKeys(e) => canonical(e),
            Self::Mount(e) => canonical(e),
            Self::Start => canonical(&Start {}),
            Self::Hooked(e) => canonical(e),
            Self::Exec(e) => canonical(e),
            Self::Enter(e) => canonical(e),
            Self::Inside(e) => canonical(e),
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
            (2, "attestrun.no-image") => Self::NoImage(read("attestrun.no-image", buf)?),
            (4, "attestrun.rootfs") => Self::Rootfs(read("attestrun.rootfs", buf)?),
            (4, "attestrun.rootfs-done") => Self::RootfsDone(read("attestrun.rootfs-done", buf)?),
            (5, "attestrun.policy") => Self::Policy(read("attestrun.policy", buf)?),
            (5, "attestrun.grounds") => Self::Grounds(read("attestrun.grounds", buf)?),
            (7, "attestrun.user") => Self::User(read("attestrun.user", buf)?),
            (7, "attestrun.list") => Self::List(read("attestrun.list", buf)?),
            (7, "attestrun.no-list") => Self::NoList(read("attestrun.no-list", buf)?),
            (0..=7, SEPARATOR) => Self::Separator(entry.pcr()),
            (8, "attestrun.fault") => Self::Fault(read("attestrun.fault", buf)?),
            (10, FILES_DONE) => Self::FilesDone(read(FILES_DONE, buf)?),
            (11, "attestrun.kernel-keys") => Self::KernelKeys(read("attestrun.kernel-keys", buf)?),
            (11, "attestrun.mount") => Self::Mount(read("attestrun.mount", buf)?),
            (11, "attestrun.tier") => Self::Tier(read("attestrun.tier", buf)?),
            (11, "attestrun.start") => {
                let Start {} = read("attestrun.start", buf)?;
                Self::Start
            }
            (11, "attestrun.hooked") => Self::Hooked(read("attestrun.hooked", buf)?),
            (11, "attestrun.exec") => Self::Exec(read("attestrun.exec", buf)?),
            (11, "attestrun.enter") => Self::Enter(read("attestrun.enter", buf)?),
            (11, "attestrun.inside") => Self::Inside(read("attestrun.inside", buf)?),
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
