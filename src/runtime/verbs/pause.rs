//! `pause` and `resume`: the container's cgroup frozen and thawed.

use crate::{
    cli::Globals,
    state::{Lock, State, Status},
};
use anyhow::{Result, bail};
use verify::id::ContainerId;

pub fn run(id: &ContainerId, pause: bool, globals: &Globals) -> Result<()> {
    let state = State::find(&globals.root, id)?;
    let _lock = Lock::of(&state)?;
    match (state.status()?, pause) {
        (Status::Running | Status::Created, true) => state.cgroup.freeze(true),
        (Status::Paused, false) => state.cgroup.freeze(false),
        (_, true) => bail!("container not running"),
        (_, false) => bail!("container not paused"),
    }
}
