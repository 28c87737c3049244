//! `update`: other limits for a container that exists.

use crate::{
    cli::{Globals, Update},
    state::{Lock, State, Status},
};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};
use std::io::Read;
use verify::id::ContainerId;

const MAX_BYTES: u64 = 1 << 20;

pub fn run(id: &ContainerId, update: &Update, globals: &Globals) -> Result<()> {
    let state = State::find(&globals.root, id)?;
    let _lock = Lock::of(&state)?;
    if matches!(state.status()?, Status::Stopped | Status::Creating) {
        bail!("container not running");
    }
    let mut resources = match &update.resources {
        Some(path) => read(path)?,
        None => from_flags(update)?,
    };
    // device rules stay as they were sealed and measured (runc ignores them here too)
    resources.set_devices(None);
    state.backend.update(&state, &resources)
}

fn read(path: &str) -> Result<LinuxResources> {
    let mut bytes = Vec::new();
    let mut source: Box<dyn Read> = match path {
        "-" => Box::new(std::io::stdin()),
        path => Box::new(std::fs::File::open(path).with_context(|| format!("cannot open {path}"))?),
    };
    source
        .by_ref()
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {path}"))?;
    ensure!(
        bytes.len() as u64 <= MAX_BYTES,
        "{path} is larger than {MAX_BYTES} bytes"
    );
    serde_json::from_slice(&bytes).with_context(|| format!("resources from {path}"))
}

fn from_flags(u: &Update) -> Result<LinuxResources> {
    let object = |pairs: Vec<(&str, Option<Value>)>| -> Option<Value> {
        let map: Map<String, Value> = pairs
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_owned(), v?)))
            .collect();
        if map.is_empty() {
            None
        } else {
            Some(Value::Object(map))
        }
    };
    let number = |n: Option<i64>| n.map(|n| json!(n));
    let unsigned = |n: Option<u64>| n.map(|n| json!(n));
    let text = |t: &Option<String>| t.as_ref().map(|t| json!(t));
    let memory = object(vec![
        ("limit", number(u.memory)),
        ("reservation", number(u.memory_reservation)),
        ("swap", number(u.memory_swap)),
    ]);
    let cpu = object(vec![
        ("shares", unsigned(u.cpu_share)),
        ("quota", number(u.cpu_quota)),
        ("period", unsigned(u.cpu_period)),
        ("realtimeRuntime", number(u.cpu_rt_runtime)),
        ("realtimePeriod", unsigned(u.cpu_rt_period)),
        ("cpus", text(&u.cpuset_cpus)),
        ("mems", text(&u.cpuset_mems)),
    ]);
    let block = object(vec![("weight", u.blkio_weight.map(|w| json!(w)))]);
    let pids = object(vec![("limit", number(u.pids_limit))]);
    let all = object(vec![
        ("memory", memory),
        ("cpu", cpu),
        ("blockIO", block),
        ("pids", pids),
    ]);
    let all = all.context("nothing to update: no limit was named")?;
    Ok(serde_json::from_value(all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_resources() {
        let update = Update {
            memory: Some(1 << 20),
            pids_limit: Some(5),
            ..Update::default()
        };
        let r = from_flags(&update).unwrap();
        assert_eq!(r.memory().as_ref().unwrap().limit(), Some(1 << 20));
        assert_eq!(r.pids().as_ref().unwrap().limit(), 5);
        assert!(r.cpu().is_none());
        assert!(from_flags(&Update::default()).is_err());
    }
}
