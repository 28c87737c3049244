//! `start`: the guard agrees, then init goes on to the program.

use crate::{
    cli::Globals,
    launch,
    state::{Lock, Phase, State, Status},
};
use anyhow::{Result, bail};
use verify::id::ContainerId;

pub fn run(id: &ContainerId, globals: &Globals) -> Result<()> {
    start(State::find(&globals.root, id)?)
}

pub fn start(found: State) -> Result<()> {
    let _lock = Lock::of(&found)?;
    let mut state = State::load(&found.run_dir())?;
    match state.status()? {
        Status::Created if state.phase == Phase::Starting => {
            bail!("a start of this container was interrupted; delete it and create it again")
        }
        Status::Created => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running => bail!("cannot start an already running container"),
        status => bail!("cannot start a container in the {status} state"),
    }
    let agreed = launch::before_start(&state)?;
    // before init goes on: a crash between the two leaves a container that cannot be started twice
    state.phase = Phase::Starting;
    state.save()?;
    state.backend.start(&state, agreed)?;
    // and only then is it running, for whoever asks: who kills it earlier kills a container not started
    state.phase = Phase::Started;
    state.save()
}
