//! Benchmarks B1 and B2: an attested start beside plain runc's, interleaved in one run.

use crate::world::World;
use anyhow::Result;

pub fn run(_: &World, _: &[String]) -> Result<()> {
    Ok(())
}
