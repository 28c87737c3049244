//! Ending a container from outside, by descriptors that no process of the container can move.

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{Mode, OFlags, openat},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use std::{
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Where the cgroup descriptor points: a cgroup v2 directory, or one of the v1 freezer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupKind {
    Unified,
    Freezer,
}

/// What it takes to end a container: held by its keeper and by its guard, each against the other's end.
#[derive(Debug)]
pub struct Holdings {
    pub pidfd: OwnedFd,
    /// Held so that the namespace's inode number is not used again while rules name it.
    _mount_namespace: OwnedFd,
    kind: CgroupKind,
    cgroup: OwnedFd,
}

impl Holdings {
    /// From the descriptors in the order that [`descriptors`] has.
    pub fn of(kind: CgroupKind, fds: Vec<OwnedFd>) -> Result<Self> {
        let [pidfd, mount_namespace, cgroup]: [OwnedFd; 3] = match fds.try_into() {
            Ok(three) => three,
            Err(fds) => bail!("{} descriptors of the container came, not three", fds.len()),
        };
        Ok(Self {
            pidfd,
            _mount_namespace: mount_namespace,
            kind,
            cgroup,
        })
    }

    /// Init's pid in this process's view; the pidfd says for how long the number is init's.
    pub fn init(&self) -> Result<u32> {
        let path = format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd());
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let pid = text
            .lines()
            .find_map(|line| line.strip_prefix("Pid:"))
            .and_then(|pid| pid.trim().parse().ok());
        pid.filter(|pid| *pid > 0)
            .context("the container has ended")
    }

    /// SIGKILL for every process of the container, whatever it forked or unshared. Never fails
    /// half-way: each step is tried, init last and always.
    pub fn kill_all(&self) {
        match self.kind {
            CgroupKind::Unified => write(&self.cgroup, "cgroup.kill", "1"),
            CgroupKind::Freezer => {
                write(&self.cgroup, "freezer.state", "FROZEN");
                // a process may have forked before the freeze took hold
                for _ in 0..3 {
                    for pid in self.members() {
                        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                            pidfd_send_signal(&pidfd, Signal::KILL).ok();
                        }
                    }
                }
                write(&self.cgroup, "freezer.state", "THAWED");
            }
        }
        pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
    }

    fn members(&self) -> Vec<Pid> {
        let mut text = String::new();
        let file = openat(
            &self.cgroup,
            "cgroup.procs",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        if let Ok(fd) = file {
            std::fs::File::from(fd).read_to_string(&mut text).ok();
        }
        text.lines()
            .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
            .collect()
    }
}

fn write(cgroup: &OwnedFd, name: &str, value: &str) {
    if let Ok(fd) = openat(
        cgroup,
        name,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        std::fs::File::from(fd).write_all(value.as_bytes()).ok();
    }
}

/// The descriptors of a container whose init has just been made: pidfd, mount namespace, cgroup.
pub fn descriptors(init: u32) -> Result<(CgroupKind, [OwnedFd; 3])> {
    let pid = i32::try_from(init)
        .ok()
        .and_then(Pid::from_raw)
        .context("init's pid is 0")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())
        .with_context(|| format!("no pidfd for init {init}"))?;
    let namespace = open(Path::new(&format!("/proc/{init}/ns/mnt")), OFlags::RDONLY)?;
    let (kind, path) = cgroup_of(init)?;
    let cgroup = open(&path, OFlags::PATH | OFlags::DIRECTORY)?;
    Ok((kind, [pidfd, namespace, cgroup]))
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("cannot open {}", path.display()))
}

/// A process's cgroup: on the unified hierarchy where that has controllers, else the v1 freezer.
fn cgroup_of(pid: u32) -> Result<(CgroupKind, PathBuf)> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mut unified = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, cgroup) = (fields.next(), fields.next(), fields.next());
        let Some(cgroup) = cgroup.map(|c| c.trim_start_matches('/')) else {
            continue;
        };
        match controllers {
            Some("freezer") => {
                return Ok((
                    CgroupKind::Freezer,
                    Path::new("/sys/fs/cgroup/freezer").join(cgroup),
                ));
            }
            Some("") => unified = Some(Path::new("/sys/fs/cgroup").join(cgroup)),
            _ => {}
        }
    }
    match unified {
        Some(path) if path.join("cgroup.kill").exists() => Ok((CgroupKind::Unified, path)),
        _ => bail!(
            "process {pid} is in no cgroup that can be killed as one (no v1 freezer, no cgroup.kill)"
        ),
    }
}

/// Whether the process behind a pidfd has ended.
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(
        pidfd.as_fd(),
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
}
