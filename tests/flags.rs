//! Flags and signals that few callers use: a pidfd for the caller, the session keyring, real-time signals.

use crate::{
    Module, Test,
    drop_in::{bundle, wait_until},
    enter::received_pidfd,
    launch::allowing,
    runtime::{Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    os::{fd::AsRawFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    time::Duration,
};

pub const MODULE: Module = Module {
    name: "flags",
    prepare: |world| world.rootfs(0).map(|_| ()),
    tests: &[
        Test::Ours("a_pidfd_of_init", a_pidfd_of_init),
        Test::Ours("kill_hits_init_alone", kill_hits_init_alone),
        Test::Each("a_session_keyring_or_none", a_session_keyring_or_none),
        Test::Each("signals_in_real_time", signals_in_real_time),
        Test::Each("signal_0_asks", signal_0_asks),
    ],
};

/// runc knows `--pidfd-socket` since 1.2; attestrun sends the pidfd itself, whoever makes the process.
fn a_pidfd_of_init(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "1000"])?;
    let path = bundle.dir.join("pidfd.sock");
    for verb in ["create", "run"] {
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let mut command = rt.cmd(verb);
        if verb == "run" {
            command = command.arg("--detach");
        }
        command
            .arg("--pidfd-socket")
            .arg(&path)
            .arg("--bundle")
            .arg(&bundle.dir)
            .arg(&bundle.id)
            .ok()?;
        let pidfd = received_pidfd(&listener)?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let init = rt.state(&bundle)?["pid"].clone();
        ensure!(
            info.lines().any(|l| l == format!("Pid:\t{init}")),
            "{verb}: init is {init}: {info}"
        );
        rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
    }
    let _ = fs::remove_file(&path);
    rt.cmd("create")
        .arg("--pidfd-socket")
        .arg(&path)
        .arg("--bundle")
        .arg(&bundle.dir)
        .arg(&bundle.id)
        .exits(1)?
        .says("pidfd.sock")?;
    rt.on("state", &bundle).exits(1)?.says("does not exist")?;
    Ok(())
}

/// The record of the container's run, in this machine of the test's own.
fn record(bundle: &Bundle) -> Result<PathBuf> {
    for entry in fs::read_dir("/run/attestrun/containers")? {
        let path = entry?.path().join("state.json");
        let record: Value = serde_json::from_slice(&fs::read(&path)?)?;
        if record["id"] == json!(bundle.id) {
            return Ok(path);
        }
    }
    anyhow::bail!("no record of {}", bundle.id)
}

/// A later process with init's number is not init: its start time says so.
fn kill_hits_init_alone(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "1000"])?;
    rt.up(&bundle)?;
    let pid = rt.state(&bundle)?["pid"].as_i64().context("pid")?;
    let path = record(&bundle)?;
    let text = fs::read(&path)?;
    let mut record: Value = serde_json::from_slice(&text)?;
    let start = record["init"]["start_time"].as_u64().context("start")?;
    record["init"]["start_time"] = json!(start + 1);
    fs::write(&path, serde_json::to_vec(&record)?)?;
    for all in [&[][..], &["--all"]] {
        let kill = rt.cmd("kill").args(all).args([&bundle.id, "KILL"]);
        let output = kill.output()?;
        let all = !all.is_empty();
        ensure!(output.code() == i32::from(!all), "{output}"); // --all finds nobody
        ensure!(Path::new(&format!("/proc/{pid}")).exists(), "{output}");
    }
    fs::write(&path, text)?;
    rt.down(&bundle)
}

fn a_session_keyring_or_none(world: &World, rt: &Runtime) -> Result<()> {
    allowing(&["shown:*", "writable:*"], || session_keyrings(world, rt))
}

fn session_keyrings(world: &World, rt: &Runtime) -> Result<()> {
    let mut bundle = bundle(world, &["/bin/cat", "/proc/keys"])?;
    bundle.set("/linux/maskedPaths", json!([]))?;
    let name = format!("_ses.{}", bundle.id);
    // the kernel collects a container's keyring some time after its end
    let gone = || Ok(!fs::read_to_string("/proc/keys")?.contains(&name));
    for flag in [None, Some("--no-new-keyring")] {
        wait_until(gone)?;
        let run = rt.cmd("run").args(flag).arg("--bundle").arg(&bundle.dir);
        let keys = run.arg(&bundle.id).ok()?;
        ensure!(keys.stdout.contains(&name) == flag.is_none(), "{keys}");
    }
    // a process of `exec` has what init has
    bundle.args(&["/bin/sleep", "1000"])?;
    for flag in [None, Some("--no-new-keyring")] {
        wait_until(gone)?;
        let create = rt.cmd("create").args(flag).arg("--bundle");
        create.arg(&bundle.dir).arg(&bundle.id).ok()?;
        rt.on("start", &bundle).ok()?;
        let keys = rt.cmd("exec").args([&bundle.id, "/bin/cat", "/proc/keys"]);
        let keys = keys.ok()?;
        ensure!(keys.stdout.contains(&name) == flag.is_none(), "{keys}");
        rt.down(&bundle)?;
    }
    Ok(())
}

fn signals_in_real_time(world: &World, rt: &Runtime) -> Result<()> {
    let (min, max) = (34, 64);
    let script = format!(
        "for s in {} {max}; do trap \"echo got $s\" $s; done; echo ready; while :; do sleep 0.05; done",
        min + 3
    );
    let bundle = bundle(world, &["/bin/sh", "-c", &script])?;
    let running = rt.cmd("run").arg("--bundle").arg(&bundle.dir);
    let running = running.arg(&bundle.id).start()?;
    wait_until(|| Ok(running.written().contains("ready")))?;
    let mut signals = vec![("37", "got 37"), ("64", "got 64")];
    if rt.backend.is_some() {
        // runc 1.1 knows these by number only
        signals.extend([("RTMIN+3", "got 37"), ("SIGRTMAX", "got 64")]);
    }
    for (signal, word) in signals {
        let before = running.written().matches(word).count();
        rt.on("kill", &bundle).arg(signal).ok()?;
        wait_until(|| Ok(running.written().matches(word).count() == before + 1))
            .with_context(|| format!("kill {signal}"))?;
    }
    for wrong in ["65", "RTMIN+31", "RTMAX-x"] {
        rt.on("kill", &bundle).arg(wrong).fails()?;
    }
    rt.on("kill", &bundle).arg("9").ok()?;
    running.finish(Duration::from_secs(10))?;
    Ok(())
}

fn signal_0_asks(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "1000"])?;
    rt.create(&bundle).ok()?;
    rt.on("kill", &bundle).arg("0").ok()?;
    rt.on("start", &bundle).ok()?;
    rt.on("kill", &bundle).arg("0").ok()?;
    ensure!(rt.status(&bundle)? == "running", "it only asks");
    rt.on("kill", &bundle).arg("KILL").ok()?;
    rt.wait_for(&bundle, "stopped")?;
    rt.on("kill", &bundle)
        .arg("0")
        .exits(1)?
        .says("container not running")?;
    rt.down(&bundle)
}
