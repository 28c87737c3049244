//! What attestrun remembers of a container: its run directory, its record, and the index that finds
//! both by the engine's state root and the container's id.
//!
//! Only root can write below [`BASE`]; the record tells humans and later verbs where things are. Who
//! may start or enter the container is asked of the guard, not of this file.

use crate::backend::{Backend, cgroup::Cgroup};
use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    ffi::CStr,
    fs::{self, File},
    io::{ErrorKind, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
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
    pub cgroup: Cgroup,
    /// RFC 3339 with nanoseconds.
    pub created: String,
    pub annotations: BTreeMap<String, String>,
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
            created: now.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true),
            annotations: birth.annotations,
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
            Phase::Created => Status::Created,
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
                Ok(state) if state.state_root == state_root => states.push(state),
                Ok(_) => {}
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

/// The private directory of one run, root's alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// Room for an event log at its cap (`vtpm.log_max_bytes`) and a vTPM's state.
    const TMPFS: &CStr = c"mode=0700,size=96m,nr_inodes=1k";

    pub fn of(run_id: &RunId) -> Self {
        Self(Path::new(BASE).join("containers").join(run_id.as_str()))
    }

    /// A new, empty directory. The index entry of `run_id` stands already, so that whatever becomes of
    /// this process, the directory is found and removed by the container's id.
    pub fn create(run_id: &RunId) -> Result<Self> {
        let dir = Self::of(run_id);
        make_private(dir.0.parent().unwrap_or(Path::new(BASE)))?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir.0)
            .with_context(|| format!("cannot make the run directory {}", dir.0.display()))?;
        // of its own, with a size: a container that fills its event log or its vTPM fills nothing else
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("attestrun", &dir.0, "tmpfs", flags, Self::TMPFS)
            .with_context(|| format!("cannot mount a tmpfs at {}", dir.0.display()))
            .inspect_err(|_| drop(fs::remove_dir(&dir.0)))?;
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
    /// The sealed bundle: config.json as it was judged, measured and built.
    pub fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }
    /// The backend's own state.
    pub fn backend(&self) -> PathBuf {
        self.0.join("backend")
    }
    fn record(&self) -> PathBuf {
        self.0.join("state.json")
    }

    fn making(&self) -> PathBuf {
        self.0.join("making")
    }

    /// Open in this process and in all that it forks, until they execute another program: by this file
    /// the backend's half-made init is found when its creator was killed.
    pub fn hold_making(&self) -> Result<File> {
        let path = self.making();
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        rustix::fs::flock(&file, FlockOperation::LockShared)?;
        Ok(file)
    }

    /// Kills whoever still holds that file; a fork may fork once more while it is looked for.
    fn end_makers(&self) -> Result<()> {
        let path = self.making();
        let Ok(file) = File::open(&path) else {
            return Ok(());
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            ensure!(
                Instant::now() < deadline,
                "processes of a killed create do not end (they hold {})",
                path.display()
            );
            for pid in holders(&path)? {
                if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).ok();
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Removes the directory and all it holds; one that is gone already is no error.
    pub fn remove(&self) -> Result<()> {
        match unmount(&self.0, UnmountFlags::DETACH) {
            // not mounted: a run directory whose making was interrupted, or whose removal
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(e) => {
                return Err(e).with_context(|| format!("cannot unmount {}", self.0.display()));
            }
        }
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e)
                .with_context(|| format!("cannot remove the run directory {}", self.0.display())),
            _ => Ok(()),
        }
    }
}

fn random_run_id() -> Result<RunId> {
    let mut random = [0u8; 16];
    File::open("/dev/urandom")
        .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut random))
        .context("cannot read /dev/urandom")?;
    Ok(RunId::from_random(random))
}

/// Processes with an open descriptor of `path`, this one excepted.
fn holders(path: &Path) -> Result<Vec<Pid>> {
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let entry = entry?;
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|pid| *pid != rustix::process::getpid()) else {
            continue;
        };
        // a process that ends meanwhile has no descriptors any more
        let Ok(fds) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        if fds
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))
        {
            holders.push(pid);
        }
    }
    Ok(holders)
}

/// Finds a run by state root and container id. An entry appears and vanishes whole.
pub struct Index;

impl Index {
    /// SHA-256 of `state_root ‖ 0 ‖ id`: a path component for any pair, and one for each.
    fn entry(state_root: &Path, id: &ContainerId) -> PathBuf {
        let mut hasher = Sha256::new();
        hasher.update(state_root.as_os_str().as_bytes());
        hasher.update([0]);
        hasher.update(id.as_str().as_bytes());
        Path::new(BASE)
            .join("index")
            .join(hex::encode(hasher.finalize()))
    }

    /// Claims the id for a new run: a file without a name gets its content first and its name then, so
    /// an entry is never seen half-written and never left under another name.
    pub fn claim(state_root: &Path, id: &ContainerId) -> Result<RunId> {
        let run_id = random_run_id()?;
        let entry = Self::entry(state_root, id);
        let directory = Path::new(BASE).join("index");
        make_private(&directory)?;
        let doing = || format!("cannot write the index entry {}", entry.display());
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = File::from(rustix::fs::open(&directory, flags, mode).with_context(doing)?);
        file.write_all(run_id.as_str().as_bytes())
            .with_context(doing)?;
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        match rustix::fs::linkat(rustix::fs::CWD, &nameless, rustix::fs::CWD, &entry, follow) {
            Ok(()) => Ok(run_id),
            Err(rustix::io::Errno::EXIST) => bail!(Exists),
            Err(error) => Err(error).with_context(doing),
        }
    }

    /// Gives the id back; another run's entry stays.
    pub fn release(state_root: &Path, id: &ContainerId, run_id: &RunId) -> Result<()> {
        let entry = Self::entry(state_root, id);
        match fs::read_to_string(&entry) {
            Ok(text) if text == run_id.as_str() => fs::remove_file(&entry)
                .with_context(|| format!("cannot remove {}", entry.display())),
            _ => Ok(()),
        }
    }

    /// Removes an entry that leads to no record: what a killed `create` or `delete` can leave.
    pub fn forget(state_root: &Path, id: &ContainerId) -> Result<()> {
        let entry = Self::entry(state_root, id);
        if let Ok(text) = fs::read_to_string(&entry) {
            if let Ok(run_id) = RunId::parse(&text) {
                RunDir::of(&run_id).remove()?;
            }
            fs::remove_file(&entry)
                .with_context(|| format!("cannot remove {}", entry.display()))?;
        }
        Ok(())
    }
}

/// Verbs that change a container's life exclude each other.
pub struct Lock(#[allow(dead_code)] OwnedFd);

impl Lock {
    const PATIENCE: Duration = Duration::from_secs(10);

    pub fn of(state: &State) -> Result<Self> {
        let entry = Index::entry(&state.state_root, &state.id);
        let fd = match rustix::fs::open(&entry, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => bail!(NotFound),
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", entry.display())),
        };
        let deadline = Instant::now() + Self::PATIENCE;
        loop {
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(fd)),
                Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(rustix::io::Errno::AGAIN) => {
                    bail!("another command holds container {}", state.id)
                }
                Err(e) => return Err(e).context("cannot lock the container"),
            }
        }
    }
}

/// `path` and its ancestors below /run, root's alone from [`BASE`] down.
fn make_private(path: &Path) -> Result<()> {
    for dir in [Path::new(BASE), path] {
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("cannot make {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// Replaces `path` as a whole: a reader sees the old bytes or the new ones.
fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    fs::remove_file(&new).ok();
    write_private(&new, bytes)?;
    fs::rename(&new, path)
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
