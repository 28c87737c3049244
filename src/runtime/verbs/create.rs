//! `create`: init exists and waits for `start`. Standard output is the container's: nothing is said.

use crate::{cli::Create, cli::Globals, config::Config, launch};
use anyhow::Result;

pub fn run(request: &Create, globals: &Globals) -> Result<()> {
    let config = Config::load()?;
    launch::create(request, globals, true, &config).map(drop)
}
