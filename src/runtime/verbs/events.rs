//! `events`: the cgroup's counters at intervals, and each time that memory ran out, as runc's JSON
//! lines, until the container ends.

mod oom;
mod stats;

use super::say;
use crate::{
    backend::cgroup_config,
    cli::Globals,
    state::{State, Status},
};
use anyhow::{Context, Result, bail};
use libcgroups::common::{CgroupManager, create_cgroup_manager};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::Value;
use std::time::{Duration, Instant};
use verify::id::ContainerId;

pub fn run(id: &ContainerId, once: bool, interval: Duration, globals: &Globals) -> Result<()> {
    let state = State::find(&globals.root, id)?;
    let init = state.init.map(|init| init.pidfd()).transpose()?.flatten();
    let Some(init) = init.filter(|_| !matches!(state.status(), Ok(Status::Stopped))) else {
        bail!("container with id {id} is not running")
    };
    if once {
        return say_stats(&state);
    }
    let mut oom = oom::Listener::of(&state.cgroup)?;
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let mut fds = [
            PollFd::new(&init, PollFlags::IN),
            PollFd::from_borrowed_fd(oom.fd(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&Timespec::try_from(left)?)) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.context("cannot wait for the container")?,
        };
        let [ended, alarmed] = fds.map(|fd| !fd.revents().is_empty());
        if alarmed {
            for _ in 0..oom.take(&state.cgroup) {
                say_line(&Line {
                    kind: "oom",
                    id,
                    data: None,
                })?;
            }
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            next += interval;
            // a container that ends at this moment has no counters any more
            if let Err(error) = say_stats(&state)
                && !matches!(state.status(), Ok(Status::Stopped))
            {
                return Err(error);
            }
        }
    }
}

/// runc, types.Event; in this order of fields.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a ContainerId,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

fn say_stats(state: &State) -> Result<()> {
    let manager = create_cgroup_manager(cgroup_config(state))?;
    let stats = manager
        .stats()
        .context("cannot read the container's counters")?;
    say_line(&Line {
        kind: "stats",
        id: &state.id,
        data: Some(stats::data(&stats, &state.cgroup)),
    })
}

fn say_line(line: &Line<'_>) -> Result<()> {
    say(&format!("{}\n", serde_json::to_string(line)?))
}
