//! The parent of a host service that no service manager started.
//!
//! podman's conmon is a subreaper: what the runtime leaves behind becomes its child, and it does not end
//! before all its children have. No process leaves a living subreaper, so the service is not its child
//! but its grandchild. When a container has ended, conmon gives up being a subreaper and waits; then the
//! nurse ends, and the service goes to init.

use super::NURSED;
use crate::{slice, spawn, sys};
use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, getppid, pidfd_open},
};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

/// How long conmon may take from its container's end to its own; then the next end is waited for.
const ENDING: Duration = Duration::from_secs(30);
const PAUSES: std::ops::Range<Duration> = Duration::from_millis(10)..Duration::from_millis(500);

/// Starts the service and waits until somebody better can have it.
pub fn run() -> Result<()> {
    slice::enter("host")?;
    let (mut ends, theirs) = UnixStream::pair()?;
    let mut service = spawn::nursed_service(NURSED, theirs.into())?;
    let pidfd = pidfd_open(Pid::from_child(&service), PidfdFlags::empty())?;
    loop {
        let mut fds = [
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(&ends, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.context("nurse: poll")?,
        };
        if !fds[0].revents().is_empty() {
            // It has said why; a word of ours would be the last one in the log, and hide it.
            let status = service.wait()?;
            std::process::exit(status.code().unwrap_or(1));
        }
        let mut news = [0; 64];
        let _ = ends.read(&mut news)?;
        if not_needed()? {
            return Ok(());
        }
    }
}

/// Whether an orphan of ours would go past our parent.
fn not_needed() -> Result<bool> {
    let (since, mut pause) = (Instant::now(), PAUSES.start);
    while since.elapsed() < ENDING {
        let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        if parent <= 1 || sys::adopter()? != parent {
            return Ok(true);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.end);
    }
    Ok(false)
}

static NURSE: OnceLock<UnixStream> = OnceLock::new();

/// In the service: the nurse is at the other end of standard input.
pub fn has_nurse() -> Result<()> {
    let channel = crate::ipc::Channel::from_stdin()?.into_fd();
    NURSE.set(channel.into()).ok();
    Ok(())
}

/// In the service: a container has ended. The nurse may be gone.
pub fn tell() {
    if let Some(mut nurse) = NURSE.get() {
        nurse.write_all(&[0]).ok();
    }
}
