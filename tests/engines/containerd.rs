//! containerd's own client, ctr.

use super::{SPEAK, TYPED, at_terminal, name, same, was_interactive};
use crate::{
    Module, Test,
    machine::{machine, patient},
    runtime::Runtime,
    spawn::Cmd,
    world::World,
};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const MODULE: Module = Module {
    name: "ctr",
    prepare: super::warm,
    tests: &[
        Test::Each("run", run_and_status),
        Test::Each("life_of_a_container", life_of_a_container),
        Test::Each("terminal", terminal),
    ],
};

/// `ctr run` of the demo image; the program follows.
pub fn run(world: &World, rt: &Runtime, id: &str, options: &[&str]) -> Result<Cmd> {
    run_image(world, rt, &world.images()?.demo.name, id, options)
}

pub fn run_image(
    world: &World,
    rt: &Runtime,
    image: &str,
    id: &str,
    options: &[&str],
) -> Result<Cmd> {
    let run = world
        .ctr()?
        .args(["run", "--runc-binary"])
        .arg(&rt.path)
        .args(options);
    let run = if options.contains(&"-d") {
        run
    } else {
        run.arg("--rm")
    };
    let run = if machine().systemd {
        let cgroup = format!("system.slice:ctr:{id}");
        run.args(["--runc-systemd-cgroup", "--cgroup", &cgroup])
    } else {
        run
    };
    Ok(run.args([image, id]))
}

pub fn task(world: &World, args: &[&str]) -> Result<Cmd> {
    Ok(world.ctr()?.arg("task").args(args))
}

fn run_and_status(world: &World, rt: &Runtime) -> Result<()> {
    let id = name(world, "ctr", rt);
    let output = run(world, rt, &id, &[])?.args(SPEAK).output()?;
    same(&output, 3, "out\n")?;
    output.says("err")?;
    let missing = run(world, rt, &id, &[])?.arg("/bin/nothing").fails()?;
    missing.says("no such file or directory")?;
    Ok(())
}

/// exec, ps, pause, resume, metrics, kill: one container.
fn life_of_a_container(world: &World, rt: &Runtime) -> Result<()> {
    let id = name(world, "ctr", rt);
    run(world, rt, &id, &["-d"])?
        .args(["/bin/sleep", "1000"])
        .ok()?;
    let task = |args: &[&str]| task(world, args);
    let exec = |n: &str, args: &[&str]| task(&["exec", "--exec-id", n, &id])?.args(args).output();
    same(&exec("e1", &["/bin/echo", "inside"])?, 0, "inside\n")?;
    same(&exec("e2", &["/bin/sh", "-c", "exit 5"])?, 5, "")?;
    task(&["ps", &id])?.ok()?.says("PID")?;
    task(&["metrics", &id])?
        .ok()?
        .says("memory.usage")?
        .says("pids.current")?;
    task(&["pause", &id])?.ok()?;
    task(&["ls"])?.ok()?.says("PAUSED")?;
    let paused = exec("e3", &["/bin/true"])?;
    ensure!(
        paused.code() != 0,
        "nothing enters a paused container: {paused}"
    );
    task(&["resume", &id])?.ok()?;
    same(&exec("e4", &["/bin/echo", "again"])?, 0, "again\n")?;
    end(world, &id)
}

/// Kills the task and deletes the container.
pub fn end(world: &World, id: &str) -> Result<()> {
    task(world, &["kill", "--signal", "KILL", id])?.ok()?;
    let since = Instant::now();
    while !task(world, &["ls"])?.ok()?.stdout.contains("STOPPED") {
        ensure!(
            since.elapsed() < patient(Duration::from_secs(20)),
            "the task does not stop"
        );
    }
    task(world, &["rm", id])?.ok()?;
    world.ctr()?.args(["container", "rm", id]).ok()?;
    Ok(())
}

fn terminal(world: &World, rt: &Runtime) -> Result<()> {
    let id = name(world, "ctr", rt);
    let shell = run(world, rt, &id, &["-t"])?.arg("/bin/sh");
    was_interactive(&at_terminal(world, &shell, TYPED)?)
}
