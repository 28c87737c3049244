//! What a launch that fails takes back.

use super::super::cgroup_config;
use crate::state::State;
use libcgroups::common::{CgroupManager, create_cgroup_manager};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::{collections::BTreeSet, fs};

/// Until disarmed: kills the processes that this launch forked, and removes the cgroup it made.
pub(super) struct Undo<'a> {
    state: Option<&'a State>,
    before: BTreeSet<i32>,
    armed: bool,
}

impl<'a> Undo<'a> {
    pub(super) fn new(state: Option<&'a State>) -> Self {
        Self {
            state,
            before: children(),
            armed: true,
        }
    }
    pub(super) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        for pid in children()
            .difference(&self.before)
            .filter_map(|p| Pid::from_raw(*p))
        {
            kill_process(pid, Signal::KILL).ok();
            waitpid(Some(pid), WaitOptions::empty()).ok();
        }
        if let Some(state) = self.state.filter(|s| s.systemd_cgroup) {
            create_cgroup_manager(cgroup_config(state))
                .ok()
                .and_then(|m| m.remove().ok());
        }
    }
}

/// Our children now; zombies too.
fn children() -> BTreeSet<i32> {
    let me = std::process::id();
    let text = fs::read_to_string(format!("/proc/self/task/{me}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
