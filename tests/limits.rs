//! A container's limits as the kernel has them, under each attestrun and under plain runc: as created,
//! and after updates that name some of them and leave the others as they are.

use crate::{
    Module, Test,
    machine::machine,
    runtime::{Backend, Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{fs, path::Path};

pub const MODULE: Module = Module {
    name: "limits",
    prepare: |world| world.rootfs(0).map(|_| ()),
    tests: &[
        Test::Ours("are_as_under_runc", are_as_under_runc),
        Test::Ours("that_systemd_is_not_told", that_systemd_is_not_told),
    ],
};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Files of both versions. Not `cpu.weight`: libcontainer converts shares as runc does since 1.3.2, with
/// which 1024 is the kernel's own 100; runc 1.1 makes 39 of it. Not `hugetlb.2MB.rsvd.max`: runc 1.1.5
/// leaves reservations without a limit, later ones and libcontainer do not.
const FILES: &[&str] = &[
    "memory.max",
    "memory.low",
    "memory.high",
    "memory.swap.max",
    "pids.max",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "hugetlb.2MB.max",
    "io.weight",
    "io.bfq.weight",
    "memory.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "cpu.shares",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "hugetlb.2MB.limit_in_bytes",
];

/// Each is one call of `update`, on what the calls before it left.
const UPDATES: &[&[&str]] = &[
    &["--cpu-share", "2048"],
    &["--cpu-quota", "20000"],
    &["--cpu-period", "50000"],
    &["--memory", "50331648", "--memory-swap", "67108864"],
    &["--pids-limit", "55"],
    // the last: runc does not tell systemd of no swap, and systemd sets the old limit at its next change
    &["--memory", "41943040", "--memory-swap", "41943040"],
];

fn is_unified() -> bool {
    Path::new(CGROUPS).join("cgroup.controllers").exists()
}

fn are_as_under_runc(world: &World, rt: &Runtime) -> Result<()> {
    for resources in [
        json!({}),
        json!({ "memory": { "limit": 0, "swap": 0 }, "pids": { "limit": 0 }, "cpu": { "shares": 0 } }),
        json!({ "memory": { "limit": 64 << 20, "swap": 64 << 20 } }),
        json!({ "memory": { "limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20 },
                "cpu": { "shares": 512, "quota": 50_000, "period": 100_000 }, "pids": { "limit": 77 } }),
    ] {
        // what nobody limits cannot be changed alone
        let updates = if resources["pids"]["limit"] == 77 {
            UPDATES
        } else {
            &[]
        };
        same(world, rt, &resources, updates)?;
    }
    Ok(())
}

/// With systemd's driver the embedded backend leaves these to runc, by name; else they are as all others.
fn that_systemd_is_not_told(world: &World, rt: &Runtime) -> Result<()> {
    let mut all = vec![json!({ "cpu": { "cpus": "0", "mems": "0" } })];
    if is_unified() {
        let huge = json!([{ "pageSize": "2MB", "limit": 4 << 20 }]);
        all.push(json!({ "hugepageLimits": huge }));
        all.push(json!({ "blockIO": { "weight": 500 } }));
        all.push(json!({ "unified": { "memory.high": "33554432" } }));
    }
    let left_to_runc = machine().systemd && rt.backend == Some(Backend::Libcontainer);
    for resources in all {
        if left_to_runc {
            let bundle = with_limits(world, &resources)?;
            let refused = rt.create(&bundle).exits(1)?;
            refused.says("under systemd's cgroup driver")?;
        } else {
            same(world, rt, &resources, &[])?;
        }
    }
    if left_to_runc {
        let bundle = with_limits(world, &json!({}))?;
        rt.up(&bundle)?;
        let update = rt.cmd("update").args(["--cpuset-cpus", "0", &bundle.id]);
        let update = update.output();
        rt.down(&bundle)?;
        let update = update?;
        ensure!(!update.status.success(), "no word about it: {update}");
        update.says("a set of processors or memory nodes")?;
    }
    Ok(())
}

fn with_limits(world: &World, resources: &Value) -> Result<Bundle> {
    let mut bundle = crate::drop_in::bundle(world, &["/bin/sleep", "1000"])?;
    for (kind, limits) in resources.as_object().into_iter().flatten() {
        bundle.set(&format!("/linux/resources/{kind}"), limits.clone())?;
    }
    Ok(bundle)
}

fn same(world: &World, rt: &Runtime, resources: &Value, updates: &[&[&str]]) -> Result<()> {
    let bundle = with_limits(world, resources)?;
    let of = |rt: &Runtime| -> Result<Vec<String>> {
        rt.up(&bundle)?;
        let seen = after_each(rt, &bundle, updates);
        rt.down(&bundle)?;
        seen.with_context(|| format!("{}: {resources}", rt.name))
    };
    let (theirs, ours) = (of(&Runtime::runc())?, of(rt)?);
    ensure!(theirs.len() > 3, "few limits were seen: {theirs:?}");
    let only = |sign: &str, these: &[String], those: &[String]| {
        let lines = these.iter().filter(|l| !those.contains(l));
        lines
            .map(|l| format!("\n      {sign}{l}"))
            .collect::<String>()
    };
    ensure!(
        ours == theirs,
        "{resources}, - under runc, + here:{}{}",
        only("-", &theirs, &ours),
        only("+", &ours, &theirs)
    );
    Ok(())
}

fn after_each(rt: &Runtime, bundle: &Bundle, updates: &[&[&str]]) -> Result<Vec<String>> {
    let pid = rt.state(bundle)?["pid"].as_i64().context("pid")?;
    let mut seen = limits(pid, "created")?;
    for update in updates {
        rt.cmd("update").args(*update).arg(&bundle.id).ok()?;
        seen.extend(limits(pid, &update.join(" "))?);
    }
    Ok(seen)
}

/// The limits in each of the process's cgroups.
fn limits(pid: i64, when: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let mut seen = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (
            fields.next().context("cgroup")?,
            fields.next().unwrap_or("/"),
        );
        let path = path.trim_start_matches('/');
        for file in FILES {
            let place = Path::new(CGROUPS).join(controllers).join(path).join(file);
            if let Ok(value) = fs::read_to_string(place) {
                seen.push(format!("{when}: {file} {}", value.trim()));
            }
        }
    }
    Ok(seen)
}
