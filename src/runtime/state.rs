//! What attestrun remembers of a container: its run directory, its record, and the index that finds
//! both by the engine's state root and the container's id.
//!
//! Only root can write below [`BASE`]; the record tells humans and later verbs where things are. Who
//! may start or enter the container is asked of the guard, not of this file.

mod index;
mod run_dir;

pub use index::{Index, Lock};
pub use run_dir::RunDir;

use run_dir::write_new;

use crate::{
    backend::{Backend, cgroup::Cgroup},
    ending::{self, Extent},
};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};
use verify::id::{ContainerId, RunId};

/// Everything of a boot; gone with it.
pub const BASE: &str = "/run/attestrun";

/// No such container. Engines look for these words (runtime contract, section 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("container does not exist")]
pub struct NotFound;

/// The id is taken under this state root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("container with given ID already exists")]
pub struct Exists;

/// OCI runtime-spec, "State": with runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// The container's first process; the start time tells it from a later process with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Init {
    pub pid: i32,
    /// Clock ticks since boot: field 22 of /proc/<pid>/stat (proc_pid_stat(5)).
    pub start_time: u64,
}

impl Init {
    pub fn of(pid: i32) -> Result<Self> {
        let stat = Stat::read(pid)?.with_context(|| format!("process {pid} has ended"))?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
        })
    }

    /// Neither gone, nor a zombie, nor another process with the same number.
    pub fn is_alive(&self) -> Result<bool> {
        Ok(Stat::read(self.pid)?
            .is_some_and(|s| s.start_time == self.start_time && !matches!(s.state, 'Z' | 'X')))
    }

    /// A descriptor of exactly this process: opened first, then compared.
    pub fn pidfd(&self) -> Result<Option<OwnedFd>> {
        let pid = Pid::from_raw(self.pid).context("the record's pid is 0")?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) if self.is_alive()? => Ok(Some(fd)),
            Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot open process {}", self.pid)),
        }
    }
}

impl Init {
    /// Its descriptor also when it has ended, or its first thread alone has, as long as nobody took note.
    fn remains(&self) -> Result<Option<OwnedFd>> {
        let pid = Pid::from_raw(self.pid).context("the record's pid is 0")?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => {
                let is_it = |s: Stat| s.start_time == self.start_time;
                Ok(Stat::read(self.pid)?.is_some_and(is_it).then_some(fd))
            }
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot open process {}", self.pid)),
        }
    }
}

struct Stat {
    state: char,
    start_time: u64,
}

impl Stat {
    fn read(pid: i32) -> Result<Option<Self>> {
        let path = format!("/proc/{pid}/stat");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
                return Ok(None);
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {path}")),
        };
        Self::parse(&text)
            .map(Some)
            .with_context(|| format!("cannot understand {path}"))
    }

    /// The command name, in parentheses, may hold anything: the last `)` ends it.
    fn parse(text: &str) -> Option<Self> {
        let rest = &text[text.rfind(')')? + 1..];
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        Some(Self {
            state,
            start_time: fields.nth(18)?.parse().ok()?,
        })
    }
}

/// How far the container's life has come, as far as verbs of ours moved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Creating,
    Created,
    /// The guard agreed, and init is being told: it may already run, so it cannot be started again.
    Starting,
    Started,
}

/// The record of one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    pub id: ContainerId,
    pub run_id: RunId,
    /// The engine's `--root`: together with the id it names the container.
    pub state_root: PathBuf,
    pub phase: Phase,
    /// The `create` or `run` that makes the container: gone without an init, it was killed.
    creator: Init,
    pub init: Option<Init>,
    /// The caller's bundle, which `state` reports; what was built from lies in [`RunDir::bundle`].
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub backend: Backend,
    pub systemd_cgroup: bool,
    pub no_new_keyring: bool,
    /// `linux.cgroupsPath` of the sealed configuration.
    pub cgroups_path: PathBuf,
    /// Its directories, once they are the container's: whatever its extent is, they go with it unless
    /// others are in them.
    pub cgroup: Cgroup,
    pub extent: Extent,
    /// RFC 3339 with nanoseconds.
    pub created: String,
    pub annotations: BTreeMap<String, String>,
    /// Whether the container has its TPM's socket; and what was made in the rootfs for that.
    pub lent: bool,
    pub stubs: Vec<PathBuf>,
    pub owner: u32,
}

/// What a record needs at birth.
pub struct Birth {
    pub id: ContainerId,
    pub state_root: PathBuf,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub backend: Backend,
    pub systemd_cgroup: bool,
    pub no_new_keyring: bool,
    pub annotations: BTreeMap<String, String>,
}

impl State {
    const VERSION: u32 = 1;

    pub fn new(run_id: RunId, birth: Birth) -> Result<Self> {
        let now = chrono::Utc::now();
        Ok(Self {
            version: Self::VERSION,
            id: birth.id,
            run_id,
            state_root: birth.state_root,
            phase: Phase::Creating,
            creator: Init::of(std::process::id().try_into()?)?,
            init: None,
            bundle: birth.bundle,
            rootfs: birth.rootfs,
            backend: birth.backend,
            systemd_cgroup: birth.systemd_cgroup,
            no_new_keyring: birth.no_new_keyring,
            cgroups_path: PathBuf::new(),
            cgroup: Cgroup::default(),
            extent: Extent::Cgroup,
            created: now.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true),
            annotations: birth.annotations,
            lent: false,
            stubs: Vec::new(),
            owner: rustix::process::geteuid().as_raw(),
        })
    }

    pub fn run_dir(&self) -> RunDir {
        RunDir::of(&self.run_id)
    }

    pub fn status(&self) -> Result<Status> {
        let Some(init) = self.init else {
            return Ok(if self.creator.is_alive()? {
                Status::Creating
            } else {
                Status::Stopped
            });
        };
        if !init.is_alive()? {
            return Ok(Status::Stopped);
        }
        if self.cgroup.is_frozen() {
            return Ok(Status::Paused);
        }
        Ok(match self.phase {
            Phase::Creating => Status::Creating,
            Phase::Created | Phase::Starting => Status::Created,
            Phase::Started => Status::Running,
        })
    }

    /// Ends a `create` that is under way, and what it forked, so that nothing goes on with what is
    /// being removed.
    pub fn end_creator(&self) -> Result<()> {
        if let Some(creator) = self.creator.pidfd()? {
            rustix::process::pidfd_send_signal(&creator, rustix::process::Signal::KILL).ok();
            let mut ended = [PollFd::new(&creator, PollFlags::IN)];
            let patience = Timespec {
                tv_sec: 5,
                tv_nsec: 0,
            };
            poll(&mut ended, Some(&patience)).context("cannot wait for the creator's end")?;
        }
        self.run_dir().end_makers()
    }

    /// Ends every process of the container, and no other: see [`Extent`].
    pub fn end_all(&self) -> Result<()> {
        let (Extent::PidNamespace, Some(init)) = (self.extent, self.init) else {
            return self.cgroup.kill_all();
        };
        if let Some(init) = init.remains()? {
            ending::end_namespace(&init, || {
                if self.cgroup.is_frozen() {
                    self.cgroup.freeze(false).ok();
                }
            })?;
        }
        // an `exec` that was killed on its way into the namespace
        self.run_dir().end_makers_among(&self.cgroup.anybody()?)
    }

    /// Once everything has ended: the directories go, unless others are in them.
    pub fn remove_cgroup(&self) -> Result<()> {
        match self.extent {
            Extent::PidNamespace => self.cgroup.leave(),
            Extent::Cgroup => self.cgroup.remove(),
        }
    }

    pub fn to_oci(&self, owner: &str) -> Result<OciState<'_>> {
        let status = self.status()?;
        let pid = match (status, self.init) {
            (Status::Stopped | Status::Creating, _) | (_, None) => 0,
            (_, Some(init)) => init.pid,
        };
        Ok(OciState {
            oci_version: oci_spec::runtime::VERSION,
            id: &self.id,
            pid,
            status,
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
            owner: owner.to_owned(),
        })
    }

    pub fn save(&self) -> Result<()> {
        let dir = self.run_dir();
        let path = dir.record();
        let bytes = serde_json::to_vec(self)?;
        write_new(&path, &bytes)
            .with_context(|| format!("cannot write the record {}", path.display()))
    }

    /// The record of the container `id` under `state_root`.
    pub fn find(state_root: &Path, id: &ContainerId) -> Result<Self> {
        let entry = Index::entry(state_root, id);
        let run_id = match fs::read_to_string(&entry) {
            Ok(text) => {
                RunId::parse(&text).with_context(|| format!("index entry {}", entry.display()))?
            }
            Err(e) if e.kind() == ErrorKind::NotFound => bail!(NotFound),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", entry.display())),
        };
        let state = Self::load(&RunDir::of(&run_id))?;
        if state.id != *id || state.state_root != state_root || state.run_id != run_id {
            bail!(
                "the index entry {} and the record of run {run_id} disagree",
                entry.display()
            );
        }
        Ok(state)
    }

    pub fn load(dir: &RunDir) -> Result<Self> {
        let path = dir.record();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => bail!(NotFound),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let state: Self =
            serde_json::from_slice(&bytes).with_context(|| format!("record {}", path.display()))?;
        if state.version != Self::VERSION {
            bail!(
                "record {} has version {}, this attestrun knows {}",
                path.display(),
                state.version,
                Self::VERSION
            );
        }
        Ok(state)
    }

    /// Every container under `state_root`, oldest first.
    pub fn all(state_root: &Path) -> Result<Vec<Self>> {
        let mut all = Self::every()?;
        all.retain(|state| state.state_root == state_root);
        Ok(all)
    }

    /// Every container of this host, oldest first.
    pub fn every() -> Result<Vec<Self>> {
        let containers = Path::new(BASE).join("containers");
        let entries = match fs::read_dir(&containers) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => {
                return Err(e).with_context(|| format!("cannot read {}", containers.display()));
            }
        };
        let mut states = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(run_id) = name.to_str().and_then(|n| RunId::parse(n).ok()) else {
                continue;
            };
            match Self::load(&RunDir::of(&run_id)) {
                Ok(state) => states.push(state),
                // made or removed at this moment
                Err(e) if e.is::<NotFound>() => {}
                Err(e) => return Err(e),
            }
        }
        states.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
        Ok(states)
    }
}

/// OCI runtime-spec, "State", with runc's additions and in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciState<'a> {
    oci_version: &'static str,
    pub id: &'a ContainerId,
    pub pid: i32,
    pub status: Status,
    pub bundle: &'a Path,
    rootfs: &'a Path,
    pub created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    pub owner: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new(
            RunId::from_random([7; 16]),
            Birth {
                id: ContainerId::parse("web-1").unwrap(),
                state_root: "/run/engine".into(),
                bundle: "/b".into(),
                rootfs: "/b/rootfs".into(),
                backend: Backend::Libcontainer,
                systemd_cgroup: false,
                no_new_keyring: false,
                annotations: BTreeMap::new(),
            },
        )
        .unwrap()
    }

    #[test]
    fn a_record_survives_its_json() {
        let mut state = state();
        state.init = Some(Init {
            pid: 7,
            start_time: 9,
        });
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        let with_more = text.replacen("{", "{\"more\":1,", 1);
        assert!(serde_json::from_str::<State>(&with_more).is_err());
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let me = Init::of(std::process::id() as i32).unwrap();
        assert!(me.is_alive().unwrap());
        assert!(me.pidfd().unwrap().is_some());
        let stranger = Init {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!stranger.is_alive().unwrap());
        assert!(stranger.pidfd().unwrap().is_none());
        let mut state = state();
        state.phase = Phase::Started;
        state.init = Some(stranger);
        assert_eq!(state.status().unwrap(), Status::Stopped);
        assert_eq!(state.to_oci("").unwrap().pid, 0);
    }

    #[test]
    fn a_command_name_cannot_forge_the_start_time() {
        let text = "42 (a) Z 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.start_time), ('S', 777));
        assert!(Stat::parse("42 (a").is_none());
    }

    #[test]
    fn one_index_entry_per_root_and_id() {
        let id = |t| ContainerId::parse(t).unwrap();
        let entry = |root: &str, t| Index::entry(Path::new(root), &id(t));
        assert_ne!(entry("/run/a", "b"), entry("/run/b", "b"));
        assert_ne!(entry("/run/a", "b"), entry("/run/a", "c"));
        assert_ne!(entry("/run", "ab"), entry("/runa", "b"));
        assert_eq!(entry("/run/a", "b"), entry("/run/a", "b"));
    }

    #[test]
    fn the_oci_state_has_runcs_fields() {
        let state = state();
        let json = serde_json::to_value(state.to_oci("").unwrap()).unwrap();
        for key in [
            "ociVersion",
            "id",
            "pid",
            "status",
            "bundle",
            "rootfs",
            "created",
            "owner",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["status"], "creating");
    }
}
