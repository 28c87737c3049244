//! A container's own TPM: an swtpm without privileges, spoken to over a socket pair that has no name,
//! ended by the end of its guard.

use crate::{config::Config, kept::KeptVtpm, spawn};
use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{Mode, chown, mkdir},
    io::{FdFlags, fcntl_setfd},
    process::{Gid, Uid},
};
use std::{
    fs::{self, File},
    io::ErrorKind,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Child,
};
use tpm::{Key, vtpm::Vtpm};
use verify::tpm2::Public;

/// A running swtpm that nobody else can speak to.
pub struct Swtpm {
    pub child: Child,
    data: UnixStream,
}

/// The keys of a vTPM and the counters at which they were made.
pub struct Identity {
    /// No longer loaded.
    pub ek: Key,
    pub aik: Key,
    pub reset: u32,
    pub restart: u32,
}

impl Identity {
    /// TPM2B_PUBLIC of the attestation key.
    pub fn aik_public(&self) -> Result<Vec<u8>> {
        Ok(Public::parse(&self.aik.public)?.to_2b())
    }

    /// TPM2B_PUBLIC of the endorsement key.
    pub fn ek_public(&self) -> Result<Vec<u8>> {
        Ok(Public::parse(&self.ek.public)?.to_2b())
    }
}

impl Swtpm {
    /// Starts swtpm on a fresh state directory below `place`. Call it before any thread exists:
    /// it changes the current directory, which swtpm takes as its state (its uid cannot reach the
    /// directory by path), and opens a descriptor for it.
    pub fn start(config: &Config, place: &Path, uid: u32, kept: Option<&KeptVtpm>) -> Result<Self> {
        let state = state_of(place);
        mkdir(&state, Mode::RWXU).with_context(|| format!("cannot make {}", state.display()))?;
        chown(&state, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))?;
        if let Some(kept) = kept {
            kept.lay(&state, uid)?;
        }
        rustix::process::chdir(&state)
            .with_context(|| format!("cannot change to {}", state.display()))?;
        rustix::thread::set_no_new_privs(true).context("cannot set no_new_privs")?;

        let (data, their_data) = UnixStream::pair()?;
        fcntl_setfd(&their_data, FdFlags::empty())?;
        let key = kept.map(KeptVtpm::key_fd).transpose()?;
        let arguments = match &key {
            None => tpm::swtpm::arguments(their_data.as_raw_fd()),
            Some(key) => {
                fcntl_setfd(key, FdFlags::empty())?;
                tpm::swtpm::arguments_with_key(their_data.as_raw_fd(), key.as_raw_fd())
            }
        };
        let child = spawn::swtpm(&config.swtpm, &arguments, uid, &place.join("swtpm.log"))?;
        Ok(Self { child, data })
    }

    /// Locks the TPM down and makes its keys: endorsement key, and the attestation key whose creation
    /// data name the container. Where the state is kept, `start` makes the latter this start's own.
    pub fn identify(
        self,
        outside_info: &[u8; 32],
        start: Option<&[u8; 32]>,
    ) -> Result<(Child, Vtpm, Identity)> {
        let mut vtpm = Vtpm::new(self.data);
        vtpm.lock_down().context("vTPM: lock down")?;
        let ek = vtpm.create_ek().context("vTPM: endorsement key")?;
        let aik = match start {
            None => vtpm.create_aik(outside_info),
            Some(start) => vtpm.create_aik_of_start(outside_info, start),
        };
        let aik = aik.context("vTPM: attestation key")?;
        // it can be made again, and a vTPM has room for three objects: the rest is the container's
        vtpm.flush(ek.clone()).context("vTPM: endorsement key")?;
        let clock = vtpm.read_clock().context("vTPM: clock")?;
        let identity = Identity {
            ek,
            aik,
            reset: clock.reset_count,
            restart: clock.restart_count,
        };
        Ok((self.child, vtpm, identity))
    }
}

/// Where its state is while it runs.
pub fn state_of(place: &Path) -> PathBuf {
    place.join("vtpm")
}

/// What swtpm said before it stopped answering.
pub fn last_words(place: &Path) -> String {
    let said = fs::read_to_string(place.join("swtpm.log")).unwrap_or_default();
    match said.lines().last() {
        Some(line) => format!("the container's vTPM does not work; swtpm said: {line}"),
        None => "the container's vTPM does not work; swtpm said nothing".to_owned(),
    }
}

const UIDS: &str = "/run/attestrun/uids";

/// A uid that no other vTPM of this host has: a name that only one process can create.
#[derive(Debug)]
pub struct VtpmUid;

impl VtpmUid {
    /// Takes a uid of the range and writes its name into the run directory, for [`Self::release`].
    pub fn take([first, last]: [u32; 2], run_dir: &Path, start: u32) -> Result<u32> {
        fs::create_dir_all(UIDS).with_context(|| format!("cannot make {UIDS}"))?;
        let size = last - first + 1;
        for step in 0..size {
            let uid = first + (start.wrapping_add(step)) % size;
            let name = PathBuf::from(UIDS).join(uid.to_string());
            match File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&name)
            {
                Ok(_) => {
                    std::os::unix::fs::symlink(&name, run_dir.join("uid"))?;
                    return Ok(uid);
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(e).with_context(|| format!("cannot take uid {uid} for the vTPM"));
                }
            }
        }
        anyhow::bail!("every uid of vtpm.uid_range = [{first}, {last}] is in use")
    }

    /// Gives the run's uid back; a run that never took one has none.
    pub fn release(run_dir: &Path) -> Result<()> {
        let Ok(name) = fs::read_link(run_dir.join("uid")) else {
            return Ok(());
        };
        ensure!(
            name.starts_with(UIDS),
            "{} is not a uid's name",
            name.display()
        );
        match fs::remove_file(&name) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", name.display()))
            }
            _ => Ok(()),
        }
    }
}

/// A pidfd, to see in one poll when the TPM dies.
pub fn pidfd(child: &Child) -> Result<OwnedFd> {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .context("no pidfd for swtpm")
}
