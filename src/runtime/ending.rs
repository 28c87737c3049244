//! Ending a container from outside, by descriptors that no process of the container can move.

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, openat},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use std::{
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where the cgroup descriptor points: a cgroup v2 directory, or one of the v1 freezer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupKind {
    Unified,
    Freezer,
}

/// What has to be killed so that a container is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// Init is the first process of a pid namespace: with it the kernel ends all that is in there
    /// (pid_namespaces(7)). Others may be in the container's cgroup, and stay alive.
    PidNamespace,
    /// The pid namespace is somebody else's; the cgroup is the container's alone.
    Cgroup,
}

impl Extent {
    pub fn of(init: i32) -> Result<Self> {
        let path = format!("/proc/{init}/status");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let numbers = text.lines().find_map(|l| l.strip_prefix("NSpid:"));
        let numbers = numbers.with_context(|| format!("{path} has no NSpid"))?;
        // one number per namespace, from this process's inward (proc_pid_status(5))
        let numbers: Vec<_> = numbers.split_ascii_whitespace().collect();
        Ok(match numbers.as_slice() {
            [_, .., "1"] => Self::PidNamespace,
            _ => Self::Cgroup,
        })
    }
}

/// How to end a container by its [`descriptors`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Means {
    pub extent: Extent,
    pub cgroup: CgroupKind,
}

/// What it takes to end a container: held by its keeper and by its guard, each against the other's end.
#[derive(Debug)]
pub struct Holdings {
    pub pidfd: OwnedFd,
    /// Held so that the namespace's inode number is not used again while rules name it.
    mount_namespace: OwnedFd,
    means: Means,
    cgroup: OwnedFd,
}

impl Holdings {
    /// From the descriptors in the order that [`descriptors`] has.
    pub fn of(means: Means, fds: Vec<OwnedFd>) -> Result<Self> {
        let [pidfd, mount_namespace, cgroup]: [OwnedFd; 3] = match fds.try_into() {
            Ok(three) => three,
            Err(fds) => bail!("{} descriptors of the container came, not three", fds.len()),
        };
        Ok(Self {
            pidfd,
            mount_namespace,
            means,
            cgroup,
        })
    }

    /// The inode number of its mount namespace, as /proc/<pid>/ns/mnt shows it.
    pub fn mount_namespace(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.mount_namespace);
        Ok(stat.context("cannot look at the mount namespace")?.st_ino)
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
        match (self.means.extent, self.means.cgroup) {
            (Extent::PidNamespace, CgroupKind::Unified) => {}
            (Extent::PidNamespace, CgroupKind::Freezer) => {
                pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
                // a frozen process of v1 does not die; whoever shares the cgroup goes on, too
                write(&self.cgroup, "freezer.state", "THAWED");
            }
            (Extent::Cgroup, CgroupKind::Unified) => write(&self.cgroup, "cgroup.kill", "1"),
            (Extent::Cgroup, CgroupKind::Freezer) => {
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

    /// [`Self::kill_all`], until nobody is left: whoever waits for leave to execute a file must not get it
    /// because those who answer went away first.
    pub fn end(&self) {
        loop {
            self.kill_all();
            let ended = ends_within(&self.pidfd, Duration::from_millis(50));
            if ended && (self.means.extent == Extent::PidNamespace || self.members().is_empty()) {
                return;
            }
        }
    }

    /// After init's end. In somebody else's pid namespace the kernel leaves the others alive, and nobody
    /// watches them any more.
    pub fn end_rest(&self) {
        if self.means.extent == Extent::Cgroup {
            self.end();
        }
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
pub fn descriptors(init: u32, extent: Extent) -> Result<(Means, [OwnedFd; 3])> {
    let pid = i32::try_from(init)
        .ok()
        .and_then(Pid::from_raw)
        .context("init's pid is 0")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())
        .with_context(|| format!("no pidfd for init {init}"))?;
    let namespace = open(Path::new(&format!("/proc/{init}/ns/mnt")), OFlags::RDONLY)?;
    let (kind, path) = cgroup_of(init)?;
    let cgroup = open(&path, OFlags::PATH | OFlags::DIRECTORY)?;
    let means = Means {
        extent,
        cgroup: kind,
    };
    Ok((means, [pidfd, namespace, cgroup]))
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
    ends_within(pidfd, Duration::ZERO)
}

fn ends_within(pidfd: &OwnedFd, time: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    let time = Timespec {
        tv_sec: time.as_secs().cast_signed(),
        tv_nsec: time.subsec_nanos().into(),
    };
    poll(&mut fds, Some(&time)).is_ok_and(|n| n > 0)
}

/// Kills the first process of a pid namespace, and returns when nobody is left in there. `thaw` is
/// called meanwhile: a frozen process of v1 does not die.
pub fn end_namespace(init: &OwnedFd, thaw: impl Fn()) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        pidfd_send_signal(init, Signal::KILL).ok(); // gone already: seen below
        thaw();
        if ends_within(init, Duration::from_millis(50)) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "processes of the container survive SIGKILL"
        );
    }
}
