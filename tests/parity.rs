//! A process under attestrun sees what it sees under runc: capabilities, seccomp, environment, limits,
//! devices, mounts; the first one of a container and those that enter later.

use crate::{
    Module, Test,
    drop_in::bundle,
    runtime::{Bundle, Runtime},
    world::World,
};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

pub const MODULE: Module = Module {
    name: "parity",
    prepare: |world| world.rootfs(0).map(|_| ()),
    tests: &[
        Test::Each("process_is_as_under_runc", process_is_as_under_runc),
        Test::Each("exec_is_as_under_runc", exec_is_as_under_runc),
    ],
};

/// What a process sees of itself; the same lines must come out of each runtime.
const PROBE: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status; env | sort; pwd; hostname; \
     cat /proc/self/limits | grep -E 'open files|processes'; ls -l /dev | tr -s ' ' | cut -d' ' -f1,3-; \
     cat /proc/self/uid_map; cat /proc/self/oom_score_adj; \
     grep -E ' (/|/proc|/dev|/dev/pts|/dev/shm|/dev/mqueue|/sys|/proc/sys|/proc/kcore|/sys/firmware) ' /proc/self/mounts | sort";

fn probe_bundle(world: &World, args: &[&str]) -> Result<Bundle> {
    let mut bundle = bundle(world, args)?;
    bundle.set("/linux/seccomp", seccomp())?;
    bundle.set("/process/noNewPrivileges", json!(false))?;
    Ok(bundle)
}

/// A filter in the manner of docker's: most things are allowed, two are not, with a condition.
fn seccomp() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 },
            { "names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
              "args": [{ "index": 0, "value": 268435456, "valueTwo": 268435456, "op": "SCMP_CMP_MASKED_EQ" }] },
        ],
    })
}

fn compare(what: &str, ours: &str, theirs: &str) -> Result<()> {
    // libcontainer adds these to a read-only path, runc does not: stricter, and nothing else.
    let ours = &ours.replace(
        "/proc/sys proc ro,nosuid,nodev,noexec,",
        "/proc/sys proc ro,",
    );
    let lost: Vec<_> = theirs
        .lines()
        .filter(|l| !ours.lines().any(|o| o == *l))
        .collect();
    let new: Vec<_> = ours
        .lines()
        .filter(|l| !theirs.lines().any(|o| o == *l))
        .collect();
    ensure!(
        lost.is_empty() && new.is_empty(),
        "{what}\n    only under runc: {lost:#?}\n    only here: {new:#?}"
    );
    Ok(())
}

fn process_is_as_under_runc(world: &World, rt: &Runtime) -> Result<()> {
    let script = format!("{PROBE}; chmod 700 /tmp; echo chmod $?");
    let bundle = probe_bundle(world, &["/bin/sh", "-c", &script])?;
    let theirs = Runtime::runc().run(&bundle)?;
    ensure!(
        theirs.status.success() && theirs.all().contains("chmod 1"),
        "{theirs}"
    );
    let ours = rt.run(&bundle)?;
    compare("the container's first process", &ours.all(), &theirs.all())
}

fn exec_is_as_under_runc(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = probe_bundle(world, &["/bin/sleep", "100"])?;
    let script = format!("{PROBE}; chmod 700 /tmp; echo chmod $?");
    let probe = |rt: &Runtime| {
        rt.up(&bundle)?;
        let output = rt
            .cmd("exec")
            .args([bundle.id.as_str(), "/bin/sh", "-c", &script])
            .output();
        rt.down(&bundle)?;
        output
    };
    let theirs = probe(&Runtime::runc())?;
    ensure!(
        theirs.status.success() && theirs.all().contains("chmod 1"),
        "{theirs}"
    );
    let ours = probe(rt)?;
    compare("an exec'd process", &ours.all(), &theirs.all())
}
