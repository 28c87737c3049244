//! The private directory of one run, in it a file system of its own for what can grow, and who holds on
//! to it.

use super::BASE;
use crate::lending::Owner;
use anyhow::{Context, Result, ensure};
use rustix::fs::FlockOperation;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::{
    collections::BTreeSet,
    ffi::CStr,
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use verify::id::RunId;

/// Where containers with a user namespace reach what is theirs of their run directory.
const INSIDE: &str = "/run/attestrun-inside";

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
        dir.bound().inspect_err(|_| drop(dir.remove()))?;
        Ok(dir)
    }

    /// A file system of its own, with a size: a container that fills its event log or its vTPM fills
    /// nothing else. Only create, guard and vTPM see it: an engine may call `create` in a mount namespace
    /// that the later verbs do not share (podman, for a container with a user namespace).
    fn bound(&self) -> Result<()> {
        let bounded = self.bounded();
        let doing = || format!("cannot mount a tmpfs at {}", bounded.display());
        let made = fs::DirBuilder::new().mode(0o700).create(&bounded);
        made.with_context(doing)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("attestrun", &bounded, "tmpfs", flags, Self::TMPFS).with_context(doing)
    }

    /// The event log's and the vTPM's place.
    pub fn bounded(&self) -> PathBuf {
        self.0.join("bounded")
    }
    /// What the container sees of this directory: the source of its mount. The root user of a user
    /// namespace must be able to reach it, and nobody else.
    pub fn inside(&self, user_namespace: bool) -> PathBuf {
        match user_namespace {
            true => self.way_inside().join("dir"),
            false => self.bounded().join("inside"),
        }
    }

    fn way_inside(&self) -> PathBuf {
        Path::new(INSIDE).join(self.0.file_name().unwrap_or_default())
    }

    /// Makes that directory.
    pub fn lay_inside(&self, owner: Owner, user_namespace: bool) -> Result<()> {
        let make = |dir: &Path, mode: u32| {
            let doing = || format!("cannot make {}", dir.display());
            match fs::DirBuilder::new().mode(mode).create(dir) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    return Err(e).with_context(doing);
                }
                _ => {}
            }
            // whatever the umask is
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).with_context(doing)
        };
        let own = |dir: &Path| {
            chown(dir, Some(owner.uid), Some(owner.gid))
                .with_context(|| format!("cannot give {} to the container", dir.display()))
        };
        let inside = self.inside(false);
        make(&inside, 0o755)?;
        own(&inside)?;
        if user_namespace {
            make(Path::new(INSIDE), 0o711)?;
            let way = self.way_inside();
            make(&way, 0o700)?;
            own(&way)?;
            let place = self.inside(true);
            make(&place, 0o755)?;
            mount_bind(&inside, &place)
                .with_context(|| format!("cannot bind {}", place.display()))?;
        }
        Ok(())
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
    pub(super) fn record(&self) -> PathBuf {
        self.0.join("state.json")
    }

    fn making(&self) -> PathBuf {
        self.0.join("making")
    }

    /// Open in this process and in all that it forks, until they execute another program: by this file
    /// what the backend's half-made processes are is known when their creator was killed.
    pub fn hold_making(&self) -> Result<File> {
        let path = self.making();
        let file =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        rustix::fs::flock(&file, FlockOperation::LockShared)?;
        Ok(file)
    }

    /// Kills whoever still holds that file; a fork may fork once more while it is looked for.
    pub(super) fn end_makers(&self) -> Result<()> {
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

    /// Kills those of `pids` that still hold that file.
    pub(super) fn end_makers_among(&self, pids: &BTreeSet<i32>) -> Result<()> {
        if pids.is_empty() {
            return Ok(()); // looking for holders takes its time
        }
        let among = |pid: &Pid| pids.contains(&pid.as_raw_nonzero().get());
        for pid in holders(&self.making())?.into_iter().filter(among) {
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).ok();
            }
        }
        Ok(())
    }

    /// Removes the directory and all it holds; one that is gone already is no error.
    pub fn remove(&self) -> Result<()> {
        for place in [self.inside(true), self.bounded()] {
            match unmount(&place, UnmountFlags::DETACH) {
                // not mounted here: in another mount namespace, where it goes with the directory; or a run
                // directory whose making was interrupted, or whose removal
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(e) => {
                    return Err(e).with_context(|| format!("cannot unmount {}", place.display()));
                }
            }
        }
        for dir in [self.way_inside(), self.0.clone()] {
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(e).with_context(|| {
                        format!("cannot remove the run directory {}", dir.display())
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
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

/// `path` and its ancestors below /run, root's alone from [`BASE`] down.
pub(super) fn make_private(path: &Path) -> Result<()> {
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
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    fs::remove_file(&new).ok();
    write_private(&new, bytes)?;
    fs::rename(&new, path)
}
