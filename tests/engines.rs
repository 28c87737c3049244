//! The image through real engines, unchanged: podman, containerd's ctr, docker; each on plain runc too.

use crate::{
    Module, Test,
    machine::machine,
    runtime::Runtime,
    spawn::{Cmd, Output},
    world::World,
};
use anyhow::{Result, ensure};

pub const MODULE: Module = Module {
    name: "engines",
    prepare: |world| {
        world.docker()?; // and with it containerd
        world.rootfs(0)?; // and with it podman
        warm(world)
    },
    tests: &[
        Test::Each("podman_run", podman_run),
        Test::Each("podman_exec_stop_restart", podman_exec_stop_restart),
        Test::Each("podman_terminal", podman_terminal),
        Test::Each("podman_errors", podman_errors),
        Test::Each("ctr_run", ctr_run),
        Test::Each("ctr_exec_and_kill", ctr_exec_and_kill),
        Test::Each("docker_run", docker_run),
        Test::Each("docker_exec_stop_restart", docker_exec_stop_restart),
        Test::Each("docker_terminal", docker_terminal),
        Test::Each("docker_errors", docker_errors),
    ],
};

/// Each engine runs once with plain runc: directories that it makes at its first run are no leftovers.
pub fn warm(world: &World) -> Result<()> {
    let runc = Runtime::runc();
    let demo = world.images()?.demo.name.as_str();
    world
        .podman_run(&runc, "run")?
        .args(["--rm", demo, "/bin/true"])
        .ok()?;
    ctr(world, &runc, "e2e-warm", false)?
        .arg("/bin/true")
        .ok()?;
    docker(world, &runc, "run")?
        .args(["--rm", demo, "/bin/true"])
        .ok()?;
    Ok(())
}

fn name(world: &World, engine: &str, rt: &Runtime) -> String {
    let name = format!("e2e-{engine}-{}", rt.name.replace('+', "-"));
    world.note(&name);
    name
}

fn same(output: &Output, code: i32, stdout: &str) -> Result<()> {
    ensure!(
        output.code() == code && output.stdout.replace('\r', "") == stdout,
        "expected {code}, {stdout:?}: {output}"
    );
    Ok(())
}

const SPEAK: [&str; 3] = ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"];

fn podman_run(world: &World, rt: &Runtime) -> Result<()> {
    let demo = world.images()?.demo.name.as_str();
    world
        .podman_run(rt, "run")?
        .args(["--rm", demo, "/bin/true"])
        .ok()?;
    let output = world
        .podman_run(rt, "run")?
        .args(["--rm", demo])
        .args(SPEAK)
        .output()?;
    same(&output, 3, "out\n")?;
    output.says("err")?;
    Ok(())
}

fn podman_exec_stop_restart(world: &World, rt: &Runtime) -> Result<()> {
    let name = name(world, "podman", rt);
    let on = |verb: &str| -> Result<Cmd> {
        Ok(world.podman()?.arg("--runtime").arg(&rt.path).arg(verb))
    };
    let demo = world.images()?.demo.name.as_str();
    let id = world
        .podman_run(rt, "run")?
        .args(["-d", "--name", &name, demo, "/bin/sleep", "1000"])
        .ok()?
        .stdout;
    world.note(id.trim());
    same(
        &on("exec")?.args([&name, "/bin/echo", "inside"]).output()?,
        0,
        "inside\n",
    )?;
    same(
        &on("exec")?
            .args([&name, "/bin/sh", "-c", "exit 5"])
            .output()?,
        5,
        "",
    )?;
    on("ps")?.ok()?.says(&name)?;
    on("stop")?.args(["-t", "0", &name]).ok()?;
    on("start")?.arg(&name).ok()?; // create is called afresh
    same(
        &on("exec")?.args([&name, "/bin/echo", "again"]).output()?,
        0,
        "again\n",
    )?;
    on("kill")?.arg(&name).ok()?;
    on("rm")?.args(["-f", "-t", "0", &name]).ok()?;
    Ok(())
}

fn podman_terminal(world: &World, rt: &Runtime) -> Result<()> {
    let demo = world.images()?.demo.name.as_str();
    let run = world.podman_run(rt, "run")?.args([
        "--rm",
        "-t",
        demo,
        "/bin/sh",
        "-c",
        "test -t 1 && echo terminal",
    ]);
    same(&run.output()?, 0, "terminal\n")
}

fn podman_errors(world: &World, rt: &Runtime) -> Result<()> {
    let demo = world.images()?.demo.name.as_str();
    let run = |program: &str| {
        world
            .podman_run(rt, "run")?
            .args(["--rm", demo, program])
            .output()
    };
    let missing = run("/bin/nothing")?;
    ensure!(missing.code() == 127, "a missing program is 127: {missing}");
    let forbidden = run("/etc/passwd")?;
    // 126 with runc's words; attestrun refuses what is on no list before anybody tries to execute it.
    let refused = rt.backend.is_some() && forbidden.all().contains("refused: /etc/passwd");
    ensure!(
        refused || forbidden.code() == 126,
        "a program that may not be executed is 126: {forbidden}"
    );
    Ok(())
}

fn ctr(world: &World, rt: &Runtime, id: &str, detach: bool) -> Result<Cmd> {
    let demo = world.images()?.demo.name.as_str();
    let run = world
        .ctr()?
        .args(["run", "--runc-binary"])
        .arg(&rt.path)
        .arg(if detach { "-d" } else { "--rm" });
    let run = if machine().systemd {
        let cgroup = format!("system.slice:ctr:{id}");
        run.args(["--runc-systemd-cgroup", "--cgroup", &cgroup])
    } else {
        run
    };
    Ok(run.args([demo, id]))
}

fn ctr_run(world: &World, rt: &Runtime) -> Result<()> {
    let id = name(world, "ctr", rt);
    let output = ctr(world, rt, &id, false)?.args(SPEAK).output()?;
    same(&output, 3, "out\n")?;
    output.says("err")?;
    let missing = ctr(world, rt, &id, false)?.arg("/bin/nothing").fails()?;
    missing.says("no such file or directory")?;
    Ok(())
}

fn ctr_exec_and_kill(world: &World, rt: &Runtime) -> Result<()> {
    let id = name(world, "ctr", rt);
    ctr(world, rt, &id, true)?
        .args(["/bin/sleep", "1000"])
        .ok()?;
    let task = |args: &[&str]| -> Result<Cmd> { Ok(world.ctr()?.arg("task").args(args)) };
    let exec = task(&["exec", "--exec-id", "e1", &id, "/bin/echo", "inside"])?.output()?;
    same(&exec, 0, "inside\n")?;
    same(
        &task(&["exec", "--exec-id", "e2", &id, "/bin/sh", "-c", "exit 5"])?.output()?,
        5,
        "",
    )?;
    task(&["ps", &id])?.ok()?.says("PID")?;
    task(&["kill", "--signal", "KILL", &id])?.ok()?;
    let since = std::time::Instant::now();
    while !task(&["ls"])?.ok()?.stdout.contains("STOPPED") {
        ensure!(since.elapsed().as_secs() < 20, "the task does not stop");
    }
    task(&["rm", &id])?.ok()?;
    world.ctr()?.args(["container", "rm", &id]).ok()?;
    Ok(())
}

fn docker(world: &World, rt: &Runtime, verb: &str) -> Result<Cmd> {
    let runtime = format!("e2e-{}", rt.name);
    Ok(world
        .docker()?
        .args([verb, "--runtime", &runtime, "--network=none"]))
}

fn docker_run(world: &World, rt: &Runtime) -> Result<()> {
    let demo = world.images()?.demo.name.as_str();
    docker(world, rt, "run")?
        .args(["--rm", demo, "/bin/true"])
        .ok()?;
    let output = docker(world, rt, "run")?
        .args(["--rm", demo])
        .args(SPEAK)
        .output()?;
    same(&output, 3, "out\n")?;
    output.says("err")?;
    Ok(())
}

fn docker_exec_stop_restart(world: &World, rt: &Runtime) -> Result<()> {
    let name = name(world, "docker", rt);
    let demo = world.images()?.demo.name.as_str();
    let id = docker(world, rt, "run")?
        .args(["-d", "--name", &name, demo, "/bin/sleep", "1000"])
        .ok()?
        .stdout;
    world.note(id.trim());
    let on = |verb: &str| -> Result<Cmd> { Ok(world.docker()?.arg(verb)) };
    same(
        &on("exec")?.args([&name, "/bin/echo", "inside"]).output()?,
        0,
        "inside\n",
    )?;
    same(
        &on("exec")?
            .args([&name, "/bin/sh", "-c", "exit 5"])
            .output()?,
        5,
        "",
    )?;
    on("top")?.arg(&name).ok()?.says("sleep")?;
    on("stop")?.args(["-t", "0", &name]).ok()?;
    on("start")?.arg(&name).ok()?;
    same(
        &on("exec")?.args([&name, "/bin/echo", "again"]).output()?,
        0,
        "again\n",
    )?;
    on("rm")?.args(["-f", &name]).ok()?;
    Ok(())
}

fn docker_terminal(world: &World, rt: &Runtime) -> Result<()> {
    let demo = world.images()?.demo.name.as_str();
    let run = docker(world, rt, "run")?.args([
        "--rm",
        "-t",
        demo,
        "/bin/sh",
        "-c",
        "test -t 1 && echo terminal",
    ]);
    same(&run.output()?, 0, "terminal\n")
}

fn docker_errors(world: &World, rt: &Runtime) -> Result<()> {
    let demo = world.images()?.demo.name.as_str();
    let run = |program: &str| {
        docker(world, rt, "run")?
            .args(["--rm", demo, program])
            .output()
    };
    let missing = run("/bin/nothing")?;
    ensure!(missing.code() == 127, "a missing program is 127: {missing}");
    let forbidden = run("/etc/passwd")?;
    // 126 with runc's words; attestrun refuses what is on no list before anybody tries to execute it.
    let refused = rt.backend.is_some() && forbidden.all().contains("refused: /etc/passwd");
    ensure!(
        refused || forbidden.code() == 126,
        "a program that may not be executed is 126: {forbidden}"
    );
    Ok(())
}
