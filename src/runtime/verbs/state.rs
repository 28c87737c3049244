//! `state`: OCI runtime-spec, "Query State".

use super::say;
use crate::{cli::Globals, state::State};
use anyhow::Result;
use verify::id::ContainerId;

pub fn run(id: &ContainerId, globals: &Globals) -> Result<()> {
    let state = State::find(&globals.root, id)?;
    say(&format!(
        "{}\n",
        serde_json::to_string_pretty(&state.to_oci("")?)?
    ))
}
