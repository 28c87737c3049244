//! `delete`: nothing of the container is left. With `--force` whatever its state, and again and again.

use crate::{
    cli::Globals,
    launch,
    state::{Index, Lock, NotFound, State, Status},
};
use anyhow::{Result, bail};
use verify::id::ContainerId;

pub fn run(id: &ContainerId, force: bool, globals: &Globals) -> Result<()> {
    let state = match State::find(&globals.root, id) {
        Ok(state) => state,
        Err(error) if force && error.is::<NotFound>() => return Index::forget(&globals.root, id),
        Err(error) => return Err(error),
    };
    // engines force a deletion after a call of theirs has hung: then it must not wait for that call
    let _lock = match Lock::of(&state) {
        Ok(lock) => Some(lock),
        Err(_) if force => None,
        Err(error) => return Err(error),
    };
    match state.status()? {
        Status::Stopped | Status::Created => {}
        _ if force => {}
        status => bail!("cannot delete container {id} that is not stopped: {status}"),
    }
    if state.init.is_none() {
        // what a killed `create` forked goes on without it, and would make again what is removed here
        state.end_creator()?;
    }
    destroy(&state)
}

/// Ends the container and removes every trace of it, in an order that can be repeated after a crash:
/// the index entry goes last, so that a second `delete` finds what the first one left.
pub fn destroy(state: &State) -> Result<()> {
    state.backend.destroy(state)?;
    launch::deleted(state)?;
    state.run_dir().remove()?;
    Index::release(&state.state_root, &state.id, &state.run_id)
}
