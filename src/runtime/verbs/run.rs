//! `run`: create, start, and in the foreground serve the container to its end.

use super::{delete, start};
use crate::{
    cli::Globals,
    cli::Run,
    config::Config,
    launch,
    state::State,
    term::{self, Ended, Served},
};
use anyhow::{Context, Result};

pub fn run(request: &Run, globals: &Globals) -> Result<u8> {
    let config = Config::load()?;
    if request.detach {
        let launched = launch::create(&request.create, globals, true, &config)?;
        if let Err(error) = start::start(launched.state.clone()) {
            delete::destroy(&launched.state).ok();
            return Err(error);
        }
        return Ok(0);
    }
    if !request.no_subreaper {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("cannot become a subreaper")?;
    }
    // before the container exists, so that no signal falls between its start and our listening
    let signals = term::Signals::block()?;
    let launched = launch::create(&request.create, globals, false, &config)?;
    let state = launched.state;
    let served = serve(&state, &signals, launched.served);
    let removed = if request.keep && served.is_ok() {
        Ok(())
    } else {
        delete::destroy(&state)
    };
    let code = served?.finish();
    removed?;
    Ok(code)
}

fn serve(state: &State, signals: &term::Signals, served: Served) -> Result<Ended> {
    let init = state.init.context("the container has no init")?;
    let pidfd = init.pidfd()?.context("init ended before its start")?;
    start::start(state.clone())?;
    term::foreground(&pidfd, signals, served)
}
