//! The cgroup's counters as runc prints them (runc, types/events.go): a counter of zero is left out
//! where Go's `omitempty` leaves it out.

use crate::backend::cgroup::Cgroup;
use libcgroups::stats::{BlkioDeviceStat, MemoryData, Stats};
use serde_json::{Map, Value, json};

pub fn data(s: &Stats, cgroup: &Cgroup) -> Value {
    let hugetlb: Map<String, Value> = s
        .hugetlb
        .iter()
        .map(|(size, h)| {
            let entry = some(json!({ "usage": h.usage, "max": h.max_usage }));
            (
                size.clone(),
                with(entry, json!({ "failcnt": h.fail_count })),
            )
        })
        .collect();
    let usage = some(json!({
        "total": s.cpu.usage.usage_total,
        "percpu": s.cpu.usage.per_core_usage_total,
        "percpu_kernel": s.cpu.usage.per_core_usage_kernel,
        "percpu_user": s.cpu.usage.per_core_usage_user,
    }));
    json!({
        "cpu": {
            "usage": with(usage, json!({
                "kernel": s.cpu.usage.usage_kernel,
                "user": s.cpu.usage.usage_user,
            })),
            "throttling": some(json!({
                "periods": s.cpu.throttling.periods,
                "throttledPeriods": s.cpu.throttling.throttled_periods,
                "throttledTime": s.cpu.throttling.throttled_time,
            })),
        },
        "cpuset": cpuset(cgroup),
        "memory": with(some(json!({ "cache": s.memory.cache, "raw": s.memory.stats })), json!({
            "usage": memory(&s.memory.memory),
            "swap": memory(&s.memory.memswap),
            "kernel": memory(&s.memory.kernel),
            "kernelTCP": memory(&s.memory.kernel_tcp),
        })),
        "pids": some(json!({ "current": s.pids.current, "limit": s.pids.limit })),
        "blkio": some(json!({
            "ioServiceBytesRecursive": blkio(&s.blkio.service_bytes),
            "ioServicedRecursive": blkio(&s.blkio.serviced),
            "ioQueueRecursive": blkio(&s.blkio.queued),
            "ioServiceTimeRecursive": blkio(&s.blkio.service_time),
            "ioWaitTimeRecursive": blkio(&s.blkio.wait_time),
            "ioMergedRecursive": blkio(&s.blkio.merged),
            "ioTimeRecursive": blkio(&s.blkio.time),
            "sectorsRecursive": blkio(&s.blkio.sectors),
        })),
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// Without what Go holds to be empty.
fn some(mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.retain(|_, value| match value {
            Value::Number(n) => n.as_u64() != Some(0),
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        });
    }
    object
}

fn with(mut object: Value, more: Value) -> Value {
    if let (Some(map), Value::Object(more)) = (object.as_object_mut(), more) {
        map.extend(more);
    }
    object
}

fn memory(m: &MemoryData) -> Value {
    let entry = some(json!({ "usage": m.usage, "max": m.max_usage }));
    with(entry, json!({ "limit": m.limit, "failcnt": m.fail_count }))
}

fn blkio(list: &[BlkioDeviceStat]) -> Value {
    let one = |d: &BlkioDeviceStat| {
        let op = d.op_type.clone().unwrap_or_default();
        some(json!({ "major": d.major, "minor": d.minor, "op": op, "value": d.value }))
    };
    list.iter().map(one).collect()
}

/// cgroup v1 alone has these files; on v2 runc prints the same keys with zeros.
fn cpuset(cgroup: &Cgroup) -> Value {
    let dir = cgroup.dir("cpuset");
    let text = |file: &str| {
        let text = dir.and_then(|d| std::fs::read_to_string(d.join(format!("cpuset.{file}"))).ok());
        text.unwrap_or_default().trim().to_owned()
    };
    let number = |file: &str| json!(text(file).parse::<i64>().unwrap_or(0));
    let lists = some(json!({ "cpus": numbers(&text("cpus")), "mems": numbers(&text("mems")) }));
    with(
        lists,
        json!({
            "cpu_exclusive": number("cpu_exclusive"),
            "mem_hardwall": number("mem_hardwall"),
            "mem_exclusive": number("mem_exclusive"),
            "memory_migrate": number("memory_migrate"),
            "memory_spread_page": number("memory_spread_page"),
            "memory_spread_slab": number("memory_spread_slab"),
            "memory_pressure": number("memory_pressure"),
            "sched_load_balance": number("sched_load_balance"),
            "sched_relax_domain_level": number("sched_relax_domain_level"),
        }),
    )
}

/// `0-2,7` (cpuset(7), "List format").
fn numbers(list: &str) -> Vec<u16> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u16>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(numbers("0-2,7"), [0, 1, 2, 7]);
        assert!(numbers("").is_empty());
    }

    #[test]
    fn zeros_are_left_out_where_go_leaves_them_out() {
        let value = data(&Stats::default(), &Cgroup::default());
        assert_eq!(value["pids"], json!({}));
        assert_eq!(value["cpu"]["usage"], json!({ "kernel": 0, "user": 0 }));
        assert_eq!(
            value["memory"]["usage"],
            json!({ "limit": 0, "failcnt": 0 })
        );
        assert_eq!(value["cpuset"]["sched_load_balance"], 0);
        assert_eq!(value["network_interfaces"], Value::Null);
    }
}
