//! When the container ran out of memory: the kernel's own word about the cgroup.

use crate::backend::cgroup::Cgroup;
use anyhow::{Context, Result};
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::inotify,
};
use std::{
    fs::{self, File},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

/// Readable when memory ran out, or the cgroup changed.
pub enum Listener {
    /// cgroup v1: an eventfd that was tied to memory.oom_control (cgroup-v1/memory.rst, section 10).
    V1 {
        event: OwnedFd,
        /// Held open for as long as the tie is to hold.
        _control: File,
    },
    /// cgroup v2: a change of memory.events.
    V2 {
        watch: OwnedFd,
        events: PathBuf,
        seen: u64,
    },
}

impl Listener {
    pub fn of(cgroup: &Cgroup) -> Result<Self> {
        if let Some(dir) = cgroup.dir("memory") {
            let path = dir.join("memory.oom_control");
            let control =
                File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let register = dir.join("cgroup.event_control");
            let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
            fs::write(&register, line)
                .with_context(|| format!("cannot write to {}", register.display()))?;
            return Ok(Self::V1 {
                event,
                _control: control,
            });
        }
        let dir = cgroup
            .dir("")
            .context("the container has no memory cgroup")?;
        let events = dir.join("memory.events");
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, &events, inotify::WatchFlags::MODIFY)
            .with_context(|| format!("cannot watch {}", events.display()))?;
        let seen = kills(&events);
        Ok(Self::V2 {
            watch,
            events,
            seen,
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::V1 { event, .. } => event.as_fd(),
            Self::V2 { watch, .. } => watch.as_fd(),
        }
    }

    /// How often memory ran out since the last call. A cgroup's removal wakes too, and counts nothing.
    pub fn take(&mut self, cgroup: &Cgroup) -> u64 {
        match self {
            Self::V1 { event, .. } => {
                let mut count = [0; 8];
                let read = rustix::io::read(&*event, &mut count).is_ok();
                let there = cgroup.dir("memory").is_some_and(|d| d.exists());
                if read && there {
                    u64::from_ne_bytes(count)
                } else {
                    0
                }
            }
            Self::V2 {
                watch,
                events,
                seen,
            } => {
                let mut space = [MaybeUninit::uninit(); 1024];
                let mut reader = inotify::Reader::new(&*watch, &mut space);
                while reader.next().is_ok() {}
                let now = kills(events);
                let more = now.saturating_sub(*seen);
                *seen = now.max(*seen);
                more
            }
        }
    }
}

/// `oom_kill` of memory.events; a file that is gone says nothing more.
fn kills(events: &PathBuf) -> u64 {
    let text = fs::read_to_string(events).unwrap_or_default();
    let count = text.lines().find_map(|l| l.strip_prefix("oom_kill "));
    count.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}
