//! The keeper: the guard's tiny parent. It holds the container's pidfd, cgroup, mount namespace and group
//! of fanotify events, and does nothing else: guard gone → the container is killed; create gone before it handed the
//! container over → the guard is killed.
//!
//! It parses nothing that a container sent, so it outlives whatever a container can do to its guard.

use crate::{
    ending::Holdings,
    guard::{self, gate::Group},
    ipc::{Answer, Channel},
    keys, slice, sys,
};
use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid},
};
use serde::{Deserialize, Serialize};
use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};
use verify::id::{ContainerId, RunId};

/// create → keeper, and from there to the guard. Descriptors: the guard's ends of its channels to create
/// and to the host service.
#[derive(Debug, Serialize, Deserialize)]
pub struct Begin {
    pub run_id: RunId,
    pub container: ContainerId,
    /// The name of its vTPM, if that one's state is kept.
    pub kept: Option<String>,
}

/// create → keeper, once the backend has made the container.
/// Descriptors: init's pidfd, its mount namespace, the directory of its cgroup. The answer's descriptor, if
/// there is one: the group of fanotify events.
#[derive(Debug, Serialize, Deserialize)]
pub struct Keep {
    pub means: crate::ending::Means,
}

/// A guard that lost its container has this long to write its last events.
const GUARD_GRACE: Duration = Duration::from_secs(3);

/// `attestrun keeper`; standard input is the channel to create.
pub fn run() -> Result<()> {
    let create = Channel::from_stdin()?;
    let (begin, fds) = create
        .expect::<Begin>()
        .context("keeper: nothing to keep")?;
    keys::begin_session()?;
    let (lifeline, guards_end) = Channel::pair()?;
    // both hold it: a guard's death answers nobody who waits for leave to execute a file
    let group = Group::open()?;
    // a fork, not a fresh start: what create waits for is the guard's TPM
    let Some(guard) = sys::fork().context("keeper: cannot make the guard")? else {
        drop((create, lifeline));
        sys::exit_now(guard(begin, guards_end, fds, group))
    };
    drop((guards_end, fds));
    let run_id = begin.run_id;
    // the guard enters by itself, while its vTPM gets ready: entering takes longer than starting it
    slice::enter(run_id.as_str())?;
    keep(create, lifeline, guard, &group)?;
    drop(group);
    Ok(())
}

/// The guard's side of the fork: its exit code.
fn guard(begin: Begin, lifeline: Channel, fds: Vec<OwnedFd>, group: Group) -> i32 {
    match guard::run(begin, lifeline, fds, group) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("attestrun guard: {error:#}");
            1
        }
    }
}

/// The whole state of a keeper: before create handed the container over, and after.
enum Watch {
    Awaiting(Channel),
    Keeping(Holdings),
}

fn keep(create: Channel, lifeline: Channel, guard: Pid, group: &Group) -> Result<()> {
    let guard_end = pidfd_open(guard, PidfdFlags::empty())
        .with_context(|| format!("keeper: no pidfd for guard {guard}"))?;
    let mut watch = Watch::Awaiting(create);
    loop {
        let other = match &watch {
            Watch::Awaiting(create) => create.stream().as_fd(),
            Watch::Keeping(holdings) => holdings.pidfd.as_fd(),
        };
        let mut fds = [
            PollFd::new(&guard_end, PollFlags::IN),
            PollFd::from_borrowed_fd(other, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.context("keeper: poll")?,
        };
        let (guard_ended, other_ready) =
            (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        watch = match (watch, guard_ended, other_ready) {
            (Watch::Keeping(holdings), true, _) => {
                // No takeover: whatever the guard had seen is gone, so the container ends with it.
                holdings.end();
                return reap(guard);
            }
            (Watch::Keeping(holdings), false, true) => {
                // The container ended; the guard sees the same and ends by itself.
                holdings.end_rest();
                drop(lifeline);
                return end_guard(guard, &guard_end);
            }
            (Watch::Awaiting(_), true, _) => {
                return reap(guard);
            }
            (Watch::Awaiting(create), false, true) => match create.recv::<Keep>() {
                Ok(Some((keep, fds))) => {
                    let holdings = Holdings::of(keep.means, fds)?;
                    create.send(&Answer::Ok(()), group.descriptor().as_slice())?;
                    Watch::Keeping(holdings)
                }
                // create was killed, or gave up and cleans up after itself
                Ok(None) | Err(_) => {
                    pidfd_send_signal(&guard_end, Signal::KILL).ok();
                    return reap(guard);
                }
            },
            (unchanged, false, false) => unchanged,
        };
    }
}

fn end_guard(guard: Pid, guard_end: &OwnedFd) -> Result<()> {
    let grace = rustix::event::Timespec {
        tv_sec: GUARD_GRACE.as_secs() as i64,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(guard_end, PollFlags::IN)];
    if poll(&mut fds, Some(&grace)).unwrap_or(0) == 0 {
        pidfd_send_signal(guard_end, Signal::KILL).ok();
    }
    reap(guard)
}

fn reap(guard: Pid) -> Result<()> {
    match waitpid(Some(guard), WaitOptions::empty()) {
        Ok(_) | Err(rustix::io::Errno::CHILD) => Ok(()),
        Err(error) => Err(error).context("keeper: cannot wait for the guard"),
    }
}

impl Channel {
    /// The channel that the parent put at standard input; 0 is then /dev/null.
    pub fn from_stdin() -> Result<Self> {
        let stdin = std::io::stdin();
        let channel = stdin
            .as_fd()
            .try_clone_to_owned()
            .context("cannot take the channel at standard input")?;
        debug_assert!(channel.as_raw_fd() > 2);
        let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
        rustix::stdio::dup2_stdin(&null).context("cannot replace standard input")?;
        Ok(Channel::new(channel.into()))
    }
}
