//! Engines that end or crash beside running containers: guard, container and verdict stay. What becomes
//! of a container whose shim or conmon is killed is the engine's affair: the same as on plain runc.

use super::{containerd, docker, name, podman, same, wait_until};
use crate::{
    Module, Test, attestation::accepted, machine::patient, runtime::Runtime, world::World,
};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, path::Path};

pub const MODULE: Module = Module {
    name: "restarts",
    prepare: super::warm,
    tests: &[
        Test::Each("dockerd_crashes", dockerd_crashes),
        Test::Each("containerd_ends_and_crashes", containerd_ends_and_crashes),
        Test::Each("a_shim_is_killed", a_shim_is_killed),
        Test::Each("a_conmon_is_killed", a_conmon_is_killed),
        Test::Ours(
            "nobody_is_in_the_engines_cgroup",
            nobody_is_in_the_engines_cgroup,
        ),
    ],
};

/// The container proves itself, if it can.
fn proves_itself(world: &World, rt: &Runtime, id: &str) -> Result<()> {
    if rt.backend.is_some() {
        accepted(world, id)?;
    }
    Ok(())
}

/// Processes by a word of their arguments and their program's name.
fn processes(program: &str, word: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let argv = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut argv = argv.split(|b| *b == 0).map(String::from_utf8_lossy);
        let is_program = argv.next().is_some_and(|a| a.ends_with(program));
        if is_program && argv.any(|a| a == word) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn dockerd_crashes(world: &World, rt: &Runtime) -> Result<()> {
    let name = docker::sleeper(world, rt)?;
    let inspect = |what: &str| -> Result<String> {
        let all = world
            .docker()?
            .args(["inspect", "--format", what, &name])
            .ok()?;
        Ok(all.stdout.trim().to_owned())
    };
    let (id, pid) = (inspect("{{.Id}}")?, inspect("{{.State.Pid}}")?);
    proves_itself(world, rt, &id)?;
    world.crash("dockerd")?;
    ensure!(
        Path::new("/proc").join(&pid).exists(),
        "the container went with dockerd"
    );
    proves_itself(world, rt, &id).context("without dockerd")?;
    world.start_dockerd()?;
    ensure!(
        inspect("{{.State.Pid}}")? == pid,
        "dockerd has found its container"
    );
    let exec = world
        .docker()?
        .args(["exec", &name, "/bin/echo", "inside"])
        .output()?;
    same(&exec, 0, "inside\n")?;
    proves_itself(world, rt, &id).context("under a new dockerd")?;
    world.docker()?.args(["rm", "-f", &name]).ok()?;
    Ok(())
}

fn containerd_ends_and_crashes(world: &World, rt: &Runtime) -> Result<()> {
    let id = name(world, "ctr", rt);
    containerd::run(world, rt, &id, &["-d"])?
        .args(["/bin/sleep", "1000"])
        .ok()?;
    let ends: [(&str, &dyn Fn() -> Result<()>); 2] = [
        ("e1", &|| world.stop("containerd")),
        ("e2", &|| world.crash("containerd")),
    ];
    for (exec, end) in ends {
        proves_itself(world, rt, &id)?;
        end()?;
        proves_itself(world, rt, &id).context("without containerd")?;
        world.start_containerd()?;
        let exec = containerd::task(
            world,
            &["exec", "--exec-id", exec, &id, "/bin/echo", "inside"],
        )?;
        same(&exec.output()?, 0, "inside\n")?;
    }
    proves_itself(world, rt, &id)?;
    containerd::end(world, &id)?;
    // dockerd had lost its containerd too; it must be as before for the next test
    wait_until("dockerd finds containerd again", || {
        let run = docker::run(world, &Runtime::runc())?
            .args(["--rm", &world.images()?.demo.name, "/bin/true"])
            .output()?;
        Ok(run.status.success())
    })
}

/// containerd notices, and has the runtime delete the container: its end, under whatever runtime.
fn a_shim_is_killed(world: &World, rt: &Runtime) -> Result<()> {
    let id = name(world, "ctr", rt);
    containerd::run(world, rt, &id, &["-d"])?
        .args(["/bin/sleep", "1000"])
        .ok()?;
    let [shim] = processes("containerd-shim-runc-v2", &id)?[..] else {
        anyhow::bail!("one shim for {id}")
    };
    kill(shim, Signal::SIGKILL)?;
    wait_until("the container's end after its shim's", || {
        Ok(!containerd::task(world, &["ls"])?.ok()?.stdout.contains(&id))
    })?;
    wait_until("the runtime's own end of the container", || {
        Ok(!rt_state(rt, &id)?)
    })?;
    world.ctr()?.args(["container", "rm", &id]).ok()?;
    // containerd itself leaves its sockets and pipes
    for (place, words) in [
        ("/run/containerd/fifo", id.as_str()),
        ("/run/containerd/s", ""),
    ] {
        for entry in fs::read_dir(place)?.flatten() {
            let path = entry.path();
            if path.is_dir()
                && fs::read_dir(&path)?
                    .flatten()
                    .any(|f| f.file_name().to_string_lossy().contains(words))
            {
                fs::remove_dir_all(&path)?;
            } else if !path.is_dir() && std::os::unix::net::UnixStream::connect(&path).is_err() {
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

/// Whether the runtime itself, asked as the shim does, knows the container.
fn rt_state(rt: &Runtime, id: &str) -> Result<bool> {
    let state = crate::cmd!(
        &rt.path,
        "--root",
        "/run/containerd/runc/default",
        "state",
        id
    )
    .output()?;
    Ok(state.status.success())
}

/// conmon is not needed by a running container; podman ends it all the same.
fn a_conmon_is_killed(world: &World, rt: &Runtime) -> Result<()> {
    let name = podman::sleeper(world, rt)?;
    let inspect = world
        .podman()?
        .args(["inspect", "--format", "{{.Id}} {{.State.Pid}}", &name])
        .ok()?;
    let (id, pid) = inspect.stdout.trim().split_once(' ').context("inspect")?;
    proves_itself(world, rt, id)?;
    for conmon in processes("conmon", id)? {
        kill(conmon, Signal::SIGKILL)?;
    }
    let exec = podman::on(world, rt, "exec")?
        .args([&name, "/bin/echo", "inside"])
        .output()?;
    same(&exec, 0, "inside\n")?;
    ensure!(
        Path::new("/proc").join(pid).exists(),
        "the container went with its conmon"
    );
    proves_itself(world, rt, id).context("without its conmon")?;
    podman::on(world, rt, "rm")?
        .args(["-f", "-t", "0", &name])
        .ok()?;
    // it is conmon that has the runtime delete the container
    crate::cmd!(&rt.path, "delete", "--force", id).ok()?;
    Ok(())
}

/// Guard, keeper and vTPM are in a slice of their own, whoever started them, with nothing of the engine's.
fn nobody_is_in_the_engines_cgroup(world: &World, rt: &Runtime) -> Result<()> {
    let before: Vec<_> = [
        processes("attestrun", "guard")?,
        processes("attestrun", "keeper")?,
    ]
    .concat();
    let name = docker::sleeper(world, rt)?;
    let ours: Vec<_> = [
        processes("attestrun", "guard")?,
        processes("attestrun", "keeper")?,
    ]
    .concat();
    let ours: Vec<_> = ours
        .into_iter()
        .filter(|pid| !before.contains(pid))
        .collect();
    ensure!(ours.len() == 2, "a guard and a keeper, not {ours:?}");
    // the guard keeps others from writing to what was just executed
    std::thread::sleep(patient(std::time::Duration::from_millis(300)));
    for pid in ours {
        let proc = Path::new("/proc").join(pid.to_string());
        let cgroups = fs::read_to_string(proc.join("cgroup"))?;
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            let apart = cgroups.starts_with("0::/attestrun.slice/");
            ensure!(apart, "{pid} is in {cgroups}");
        }
        for controller in ["memory", "freezer", "pids", "systemd"] {
            let line = cgroups.lines().find(|l| {
                l.contains(&format!(":{controller}:")) || l.contains(&format!("={controller}:"))
            });
            ensure!(
                line.is_none_or(|l| l.contains("/attestrun.slice/")),
                "{pid} is in {line:?}"
            );
        }
        for fd in fs::read_dir(proc.join("fd"))?.flatten() {
            let to = fs::read_link(fd.path())
                .unwrap_or_default()
                .display()
                .to_string();
            let known = [
                "socket:",
                "anon_inode:",
                "/run/attestrun",
                // the list, for evidence
                "/var/lib/attestrun/signatures/",
                "/dev/null",
                "mnt:",
                "/sys/fs/cgroup",
                "pipe:",
            ];
            ensure!(known.iter().any(|k| to.starts_with(k)), "{pid} holds {to}");
        }
        let session = fs::read_to_string(proc.join("stat"))?;
        let session = session
            .rsplit(')')
            .next()
            .and_then(|s| s.split_whitespace().nth(3))
            .unwrap_or("")
            .to_owned();
        ensure!(session == pid.to_string(), "{pid} is in session {session}");
    }
    world.docker()?.args(["rm", "-f", &name]).ok()?;
    Ok(())
}
