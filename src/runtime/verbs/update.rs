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

pub fn run(
    id: &ContainerId,
    update: &Update,
    resources: Option<Vec<u8>>,
    globals: &Globals,
) -> Result<()> {
    let state = State::find(&globals.root, id)?;
    let _lock = Lock::of(&state)?;
    if matches!(state.status()?, Status::Stopped | Status::Creating) {
        bail!("container not running");
    }
    let resources = match resources {
        Some(bytes) => serde_json::from_slice(&bytes).context("the resources are malformed")?,
        None => from_flags(update)?,
    };
    state.backend.update(&state, &changes(resources)?)
}

/// What runc's update changes: these limits, of which 0 and "" mean that they stay as they are. Device
/// rules, among others, stay as they were sealed and measured.
fn changes(mut resources: Value) -> Result<LinuxResources> {
    const LIMITS: [(&str, &[&str]); 4] = [
        ("memory", &["limit", "reservation", "swap"]),
        (
            "cpu",
            &[
                "shares",
                "quota",
                "period",
                "realtimeRuntime",
                "realtimePeriod",
                "cpus",
                "mems",
            ],
        ),
        ("blockIO", &["weight"]),
        ("pids", &["limit"]),
    ];
    let all = resources
        .as_object_mut()
        .context("the resources are no JSON object")?;
    all.retain(|name, _| name == "unified" || LIMITS.iter().any(|(limit, _)| limit == name));
    for (name, known) in LIMITS {
        let Some(Value::Object(limits)) = all.get_mut(name) else {
            all.remove(name); // null
            continue;
        };
        let stays = |v: &Value| v.is_null() || v.as_i64() == Some(0) || v.as_str() == Some("");
        limits.retain(|limit, value| known.contains(&limit.as_str()) && !stays(value));
        if limits.is_empty() {
            all.remove(name);
        }
    }
    serde_json::from_value(resources).context("the resources")
}

/// The file of `--resources`: read before inherited descriptors are closed, since it may be one of them.
pub fn read(path: &str) -> Result<Vec<u8>> {
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
    Ok(bytes)
}

fn from_flags(u: &Update) -> Result<Value> {
    ensure!(
        u.rdt.is_none(),
        "Intel RDT is not available: its schemas cannot be updated"
    );
    let object = |pairs: Vec<(&str, Option<Value>)>| -> Value {
        let given = pairs
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_owned(), v?)));
        Value::Object(given.collect::<Map<_, _>>())
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
    Ok(json!({ "memory": memory, "cpu": cpu, "blockIO": block, "pids": pids }))
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
        let r = changes(from_flags(&update).unwrap()).unwrap();
        assert_eq!(r.memory().as_ref().unwrap().limit(), Some(1 << 20));
        assert_eq!(r.pids().as_ref().unwrap().limit(), 5);
        assert!(r.cpu().is_none());
        let none = changes(from_flags(&Update::default()).unwrap()).unwrap();
        assert_eq!(none, changes(json!({})).unwrap());
    }

    #[test]
    fn zero_leaves_a_limit_as_it_is() {
        let r = changes(json!({
            "memory": { "limit": 0, "swap": -1, "kernel": 5, "useHierarchy": true },
            "cpu": { "shares": 0, "cpus": "" },
            "pids": null,
            "devices": [{ "allow": true }],
            "hugepageLimits": [],
        }))
        .unwrap();
        let memory = r.memory().as_ref().unwrap();
        assert_eq!(
            (memory.limit(), memory.swap(), memory.kernel()),
            (None, Some(-1), None)
        );
        assert!(r.cpu().is_none() && r.pids().is_none() && r.devices().is_none());
        assert!(changes(json!([])).is_err());
        assert!(changes(json!({ "pids": { "limit": "many" } })).is_err());
    }
}
