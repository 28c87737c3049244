//! Docker: every command that people use on a container.

use super::{SPEAK, TYPED, at_terminal, name, refused_by_us, same, was_interactive};
use crate::{Module, Test, launch::allowing, runtime::Runtime, spawn::Cmd, world::World};
use anyhow::{Result, ensure};
use std::fs;

pub const MODULE: Module = Module {
    name: "docker",
    prepare: super::warm,
    tests: &[
        Test::Each("run", run_and_status),
        Test::Each("life_of_a_container", life_of_a_container),
        Test::Each("options_of_run", options_of_run),
        Test::Each("cp_and_commit", cp_and_commit),
        Test::Each("terminals", terminals),
        Test::Each("errors", errors),
    ],
};

/// `docker run` on this runtime.
pub fn run(world: &World, rt: &Runtime) -> Result<Cmd> {
    Ok(run_on(world.docker()?, rt))
}

/// The same with this client.
pub fn run_on(docker: Cmd, rt: &Runtime) -> Cmd {
    docker
        .arg("run")
        .arg(format!("--runtime=e2e-{}", rt.name))
        .arg("--network=none")
}

/// A detached container that sleeps; its name.
pub fn sleeper(world: &World, rt: &Runtime) -> Result<String> {
    let name = name(world, "docker", rt);
    let id = run(world, rt)?
        .args(["-d", "--name", &name, &world.images()?.demo.name])
        .args(["/bin/sleep", "1000"])
        .ok()?
        .stdout;
    world.note(id.trim());
    Ok(name)
}

fn run_and_status(world: &World, rt: &Runtime) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let output = run(world, rt)?.args(["--rm", demo]).args(SPEAK).output()?;
    same(&output, 3, "out\n")?;
    output.says("err")?;
    Ok(())
}

/// exec, top, stats, update, pause, unpause, stop, start, restart, kill, rm: one container.
fn life_of_a_container(world: &World, rt: &Runtime) -> Result<()> {
    let name = sleeper(world, rt)?;
    let on = |verb: &str| -> Result<Cmd> { Ok(world.docker()?.arg(verb)) };
    let exec = |args: &[&str]| on("exec")?.arg(&name).args(args).output();
    same(&exec(&["/bin/echo", "inside"])?, 0, "inside\n")?;
    same(&exec(&["/bin/sh", "-c", "exit 5"])?, 5, "")?;
    on("top")?.arg(&name).ok()?.says("sleep 1000")?;
    on("stats")?
        .args(["--no-stream", &name])
        .ok()?
        .says(&name)?
        .says("MiB|KiB|kB|B /")?;
    on("update")?
        .args(["--memory=48m", "--memory-swap=-1", "--pids-limit=77", &name])
        .ok()?;
    let limits = exec(&[
        "/bin/sh",
        "-c",
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max || cat memory.max pids.max",
    ])?;
    same(&limits, 0, "50331648\n77\n")?;
    on("pause")?.arg(&name).ok()?;
    on("ps")?.ok()?.says("(Paused)")?;
    on("exec")?
        .args([&name, "/bin/true"])
        .fails()?
        .says("paused")?;
    on("unpause")?.arg(&name).ok()?;
    on("restart")?.args(["-t", "0", &name]).ok()?;
    same(&exec(&["/bin/echo", "again"])?, 0, "again\n")?;
    on("stop")?.args(["-t", "0", &name]).ok()?;
    on("start")?.arg(&name).ok()?;
    on("kill")?.args(["--signal=KILL", &name]).ok()?;
    let status = on("wait")?.arg(&name).ok()?;
    same(&status, 0, "137\n")?;
    on("rm")?.arg(&name).ok()?;
    Ok(())
}

fn options_of_run(world: &World, rt: &Runtime) -> Result<()> {
    let volume = format!("mount:{}", world.work.join("volume").display());
    allowing(&["device:/dev/e2e", &volume], || options_work(world, rt))
}

fn options_work(world: &World, rt: &Runtime) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let script = |options: &[&str], script: &str| {
        run(world, rt)?
            .arg("--rm")
            .args(options)
            .args([demo, "/bin/sh", "-c", script])
            .output()
    };
    let user = script(&["--user=1000:1000"], "id -u; id -g")?;
    same(&user, 0, "1000\n1000\n")?;
    let read_only = script(
        &["--read-only", "--tmpfs=/tmp"],
        "echo x >/x; echo y >/tmp/y && echo tmp",
    )?;
    same(&read_only, 0, "tmp\n")?;
    read_only.says("Read-only file system")?;
    let dropped = script(&["--cap-drop=ALL"], "grep CapEff /proc/self/status")?;
    same(&dropped, 0, "CapEff:\t0000000000000000\n")?;
    let device = script(
        &["--device=/dev/full:/dev/e2e:r"],
        "head -c 2 /dev/e2e | wc -c; echo x >/dev/e2e",
    )?;
    ensure!(
        device.stdout == "2\n" && device.code() == 1,
        "a device to read: {device}"
    );
    let limited = script(
        &["--memory=48m", "--pids-limit=50"],
        "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null",
    )?;
    ensure!(limited.stdout == "50\n", "{limited}");
    let volume = world.work.join("volume");
    fs::create_dir_all(&volume)?;
    fs::write(volume.join("file"), "from the host\n")?;
    let mounted = script(
        &["--volume", &format!("{}:/data:ro", volume.display())],
        "cat /data/file; echo x >/data/file",
    )?;
    ensure!(
        mounted.stdout == "from the host\n" && mounted.code() == 1,
        "{mounted}"
    );
    Ok(())
}

/// `cp` both ways, `commit`; what was changed is no longer the signed image.
fn cp_and_commit(world: &World, rt: &Runtime) -> Result<()> {
    let name = sleeper(world, rt)?;
    let on = |verb: &str| -> Result<Cmd> { Ok(world.docker()?.arg(verb)) };
    let file = world.work.join("copied");
    fs::write(&file, "a copy\n")?;
    let copy = |from: &str, to: &str| on("cp")?.args([from, to]).ok();
    copy(&file.display().to_string(), &format!("{name}:/tmp/in"))?;
    same(
        &on("exec")?.args([&name, "/bin/cat", "/tmp/in"]).output()?,
        0,
        "a copy\n",
    )?;
    let out = world.work.join("out");
    copy(&format!("{name}:/tmp/in"), &out.display().to_string())?;
    ensure!(
        fs::read_to_string(&out)? == "a copy\n",
        "cp out of the container"
    );

    let image = "localhost/e2e/committed:v1";
    on("commit")?.args([&name, image]).ok()?;
    let committed = run(world, rt)?
        .args(["--rm", image, "/bin/true"])
        .output()?;
    refused_by_us(rt, &committed, "no manifest|no rule")?;
    on("stop")?.args(["-t", "0", &name]).ok()?;
    let again = on("start")?.arg(&name).output()?;
    refused_by_us(rt, &again, "is not what the signed layers hold")?;
    on("rm")?.args(["-f", &name]).ok()?;
    on("rmi")?.args(["-f", image]).ok()?;
    Ok(())
}

fn terminals(world: &World, rt: &Runtime) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let shell = run(world, rt)?.args(["-it", "--rm", demo, "/bin/sh"]);
    was_interactive(&at_terminal(world, &shell, TYPED)?)?;
    let name = sleeper(world, rt)?;
    let shell = world.docker()?.args(["exec", "-it", &name, "/bin/sh"]);
    was_interactive(&at_terminal(world, &shell, TYPED)?)?;
    world.docker()?.args(["rm", "-f", &name]).ok()?;
    Ok(())
}

fn errors(world: &World, rt: &Runtime) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let program = |program: &str| run(world, rt)?.args(["--rm", demo, program]).output();
    let missing = program("/bin/nothing")?;
    ensure!(missing.code() == 127, "a missing program is 127: {missing}");
    let forbidden = program("/etc/passwd")?;
    // 126 with runc's words; attestrun refuses what is on no list before anybody tries to execute it.
    let refused = rt.backend.is_some() && forbidden.all().contains("refused: /etc/passwd");
    ensure!(
        refused || forbidden.code() == 126,
        "a program that may not be executed is 126: {forbidden}"
    );
    Ok(())
}
