//! `events`: the cgroup's counters as runc's JSON lines (libcontainer/types, Stats).

use super::say;
use crate::{
    backend::cgroup_config,
    cli::Globals,
    state::{State, Status},
};
use anyhow::{Context, Result, bail};
use libcgroups::{
    common::{CgroupManager, create_cgroup_manager},
    stats::{BlkioDeviceStat, MemoryData, Stats},
};
use serde_json::{Map, Value, json};
use std::{thread::sleep, time::Duration};
use verify::id::ContainerId;

pub fn run(id: &ContainerId, once: bool, interval: Duration, globals: &Globals) -> Result<()> {
    let state = State::find(&globals.root, id)?;
    loop {
        if state.status()? == Status::Stopped {
            if once {
                bail!("container with id {id} is not running");
            }
            return Ok(());
        }
        let manager = create_cgroup_manager(cgroup_config(&state))?;
        let stats = manager
            .stats()
            .context("cannot read the container's counters")?;
        say(&format!(
            "{}\n",
            json!({ "type": "stats", "id": id, "data": data(&stats) })
        ))?;
        if once {
            return Ok(());
        }
        sleep(interval);
    }
}

fn data(s: &Stats) -> Value {
    let memory = |m: &MemoryData| json!({ "limit": m.limit, "usage": m.usage, "max": m.max_usage, "failcnt": m.fail_count });
    let hugetlb: Map<String, Value> = s
        .hugetlb
        .iter()
        .map(|(size, h)| {
            (
                size.clone(),
                json!({ "usage": h.usage, "max": h.max_usage, "failcnt": h.fail_count }),
            )
        })
        .collect();
    let blkio = |list: &[BlkioDeviceStat]| -> Value {
        let one = |d: &BlkioDeviceStat| json!({ "major": d.major, "minor": d.minor, "op": d.op_type, "value": d.value });
        list.iter().map(one).collect()
    };
    json!({
        "cpu": {
            "usage": {
                "total": s.cpu.usage.usage_total,
                "percpu": s.cpu.usage.per_core_usage_total,
                "kernel": s.cpu.usage.usage_kernel,
                "user": s.cpu.usage.usage_user,
            },
            "throttling": {
                "periods": s.cpu.throttling.periods,
                "throttledPeriods": s.cpu.throttling.throttled_periods,
                "throttledTime": s.cpu.throttling.throttled_time,
            },
        },
        "memory": {
            "cache": s.memory.cache,
            "usage": memory(&s.memory.memory),
            "swap": memory(&s.memory.memswap),
            "kernel": memory(&s.memory.kernel),
            "kernelTCP": memory(&s.memory.kernel_tcp),
            "raw": s.memory.stats,
        },
        "pids": { "current": s.pids.current, "limit": s.pids.limit },
        "blkio": {
            "ioServiceBytesRecursive": blkio(&s.blkio.service_bytes),
            "ioServicedRecursive": blkio(&s.blkio.serviced),
            "ioQueueRecursive": blkio(&s.blkio.queued),
            "ioServiceTimeRecursive": blkio(&s.blkio.service_time),
            "ioWaitTimeRecursive": blkio(&s.blkio.wait_time),
            "ioMergedRecursive": blkio(&s.blkio.merged),
            "ioTimeRecursive": blkio(&s.blkio.time),
            "sectorsRecursive": blkio(&s.blkio.sectors),
        },
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}
