//! Which run a state root and a container id mean, and who may change it now.

use super::{BASE, Exists, NotFound, RunDir, State, run_dir::make_private};
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, Mode, OFlags};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use verify::id::{ContainerId, RunId};

/// Finds a run by state root and container id. An entry appears and vanishes whole.
pub struct Index;

impl Index {
    /// SHA-256 of `state_root ‖ 0 ‖ id`: a path component for any pair, and one for each.
    pub(super) fn entry(state_root: &Path, id: &ContainerId) -> PathBuf {
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

fn random_run_id() -> Result<RunId> {
    let mut random = [0u8; 16];
    File::open("/dev/urandom")
        .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut random))
        .context("cannot read /dev/urandom")?;
    Ok(RunId::from_random(random))
}
