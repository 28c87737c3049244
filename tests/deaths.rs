//! Whoever dies at whatever moment: guard, keeper, vTPM, a verb in the middle of its work. The container
//! ends with its guard, and after `delete --force` nothing is left.

use crate::{
    Module, Test,
    machine::patient,
    runtime::{Backend, Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

pub const MODULE: Module = Module {
    name: "deaths",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        Ok(())
    },
    tests: &[
        Test::Ours(
            "a_dead_guard_ends_the_container",
            a_dead_guard_ends_the_container,
        ),
        Test::Ours(
            "a_dead_keeper_ends_the_container",
            a_dead_keeper_ends_the_container,
        ),
        Test::Ours(
            "a_dead_vtpm_ends_the_container",
            a_dead_vtpm_ends_the_container,
        ),
        Test::Ours(
            "a_dead_guard_ends_a_paused_container",
            a_dead_guard_ends_a_paused_container,
        ),
        Test::Ours("no_guard_no_start", no_guard_no_start),
        Test::Ours("create_killed_at_any_moment", create_killed_at_any_moment),
        Test::Ours(
            "start_and_delete_killed_at_any_moment",
            start_and_delete_killed_at_any_moment,
        ),
        Test::Once("host_service_on_demand", host_service_on_demand),
        Test::Ours(
            "a_restarted_host_service_finds_its_containers",
            a_restarted_host_service_finds_its_containers,
        ),
    ],
};

fn demo(world: &World, args: &[&str]) -> Result<Bundle> {
    let rootfs = world.rootfs(0)?;
    world.note(&rootfs.id);
    Bundle::make(&world.work, &rootfs, args)
}

/// Our processes with `word` among their arguments.
fn processes(word: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let argv = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let argv: Vec<_> = argv
            .split(|b| *b == 0)
            .map(String::from_utf8_lossy)
            .collect();
        if argv
            .iter()
            .any(|a| a == word || a.ends_with(&format!("/attestrun-{word}")))
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The processes that `up` starts and that were not there before.
pub fn new_processes(word: &str, up: impl FnOnce() -> Result<()>) -> Result<Vec<i32>> {
    let before = processes(word)?;
    up()?;
    let new: Vec<_> = processes(word)?
        .into_iter()
        .filter(|pid| !before.contains(pid))
        .collect();
    ensure!(!new.is_empty(), "no process with the argument {word}");
    Ok(new)
}

/// The container's init is gone within a moment, and the container can be deleted.
fn ends_with(world: &World, rt: &Runtime, word: &str, paused: bool) -> Result<()> {
    let bundle = demo(world, &["/bin/sleep", "1000"])?;
    let pids = new_processes(word, || rt.up(&bundle))?;
    if paused {
        rt.on("pause", &bundle).ok()?;
    }
    let init = rt.state(&bundle)?["pid"].as_i64().context("pid")?;
    for pid in pids {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let since = Instant::now();
    while Path::new(&format!("/proc/{init}")).exists() {
        ensure!(
            since.elapsed() < patient(Duration::from_secs(5)),
            "the container outlived its {word}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let exec = rt
        .cmd("exec")
        .args([bundle.id.as_str(), "/bin/true"])
        .fails()?;
    exec.says_not("panicked")?;
    rt.wait_for(&bundle, "stopped")?;
    rt.on("delete", &bundle).ok()?;
    Ok(())
}

fn a_dead_guard_ends_the_container(world: &World, rt: &Runtime) -> Result<()> {
    ends_with(world, rt, "guard", false)
}

fn a_dead_guard_ends_a_paused_container(world: &World, rt: &Runtime) -> Result<()> {
    ends_with(world, rt, "guard", true)
}

fn a_dead_keeper_ends_the_container(world: &World, rt: &Runtime) -> Result<()> {
    ends_with(world, rt, "keeper", false)
}

fn a_dead_vtpm_ends_the_container(world: &World, rt: &Runtime) -> Result<()> {
    ends_with(world, rt, "--tpm2", false)
}

fn no_guard_no_start(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo(world, &["/bin/sleep", "1000"])?;
    let pids = new_processes("guard", || rt.create(&bundle).ok().map(|_| ()))?;
    for pid in pids {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    rt.on("start", &bundle).exits(1)?.says_not("panicked")?;
    rt.cmd("delete").arg("--force").arg(&bundle.id).ok()?;
    Ok(())
}

/// Kills `verb` after ever longer times until it gets through; `delete --force` must leave nothing.
fn killed(
    world: &World,
    what: &str,
    mut once: impl FnMut(Duration) -> Result<bool>,
    clean: impl Fn() -> Result<()>,
) -> Result<()> {
    let before = world.snapshot()?;
    let mut after = Duration::from_micros(300);
    let mut kills = 0;
    loop {
        let finished = once(after)?;
        clean()?;
        let left = world.left_since(&before)?;
        ensure!(
            left.is_empty(),
            "{what} killed after {after:?}, then delete --force: {left:#?}"
        );
        if finished {
            ensure!(kills >= 3, "{what} was too quick to be killed");
            return Ok(());
        }
        kills += 1;
        ensure!(kills < 60, "{what} does not get through");
        after = after * 5 / 4;
    }
}

/// Starts `command` and kills it alone (not its children) after `delay`; whether it was done before.
pub fn kill_after(command: &crate::spawn::Cmd, delay: Duration) -> Result<bool> {
    let mut running = command.start()?;
    std::thread::sleep(delay);
    let done = !running.is_running()?;
    if !done {
        running.signal(Signal::SIGKILL)?;
    }
    let output = running.finish(Duration::from_secs(20))?;
    Ok(done || output.status.success())
}

fn create_killed_at_any_moment(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo(world, &["/bin/sleep", "1000"])?;
    let clean = || {
        rt.cmd("delete")
            .arg("--force")
            .arg(&bundle.id)
            .ok()
            .map(|_| ())
    };
    killed(
        world,
        "create",
        |delay| kill_after(&rt.create(&bundle), delay),
        clean,
    )?;
    rt.up(&bundle).context("after all that")?;
    rt.down(&bundle)
}

fn start_and_delete_killed_at_any_moment(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo(world, &["/bin/sleep", "1000"])?;
    let clean = || {
        rt.cmd("delete")
            .arg("--force")
            .arg(&bundle.id)
            .ok()
            .map(|_| ())
    };
    for (n, delay) in [500u64, 1000, 2000, 4000, 8000].into_iter().enumerate() {
        let before = world.snapshot()?;
        rt.create(&bundle).ok()?;
        let verb = if n % 2 == 0 {
            rt.on("start", &bundle)
        } else {
            rt.cmd("delete").arg("--force").arg(&bundle.id)
        };
        kill_after(&verb, Duration::from_micros(delay))?;
        clean()?;
        let left = world.left_since(&before)?;
        ensure!(
            left.is_empty(),
            "killed after {delay} us, then delete --force: {left:#?}"
        );
    }
    Ok(())
}

/// The first create of a boot starts the host service, where no service manager did.
fn host_service_on_demand(world: &World) -> Result<()> {
    let rt = Runtime::attestrun(&world.program("attestrun")?, Backend::Libcontainer);
    for service in ["attestrun-agent", "attestrun-host"] {
        world.stop(service)?;
    }
    let before = processes("host")?;
    let image = world.images()?.demo.name.as_str();
    let ran = world
        .podman_run(&rt, "run")?
        .args(["--rm", image, "/bin/true"])
        .output();
    let new: Vec<_> = processes("host")?
        .into_iter()
        .filter(|pid| !before.contains(pid))
        .collect();
    let known = world
        .podman()?
        .args(["ps", "-aq", "--no-trunc"])
        .ok()?
        .stdout;
    // conmon, a subreaper that waits for its children, must not wait for the service
    let since = Instant::now();
    let conmons = || -> Result<usize> { Ok(processes("--exit-command")?.len()) };
    while conmons()? > 0 && since.elapsed() < patient(Duration::from_secs(10)) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (waiting, serving) = (conmons()?, processes("--nursed")?);
    for pid in &new {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGTERM);
    }
    std::thread::sleep(Duration::from_millis(100));
    world.start_services()?;
    let ran = ran?;
    ensure!(ran.status.success(), "{ran}");
    ensure!(
        serving.len() == 1,
        "one host service on demand, not {new:?}"
    );
    ensure!(waiting == 0, "conmon waits for the host service");
    ensure!(
        known.lines().count() <= world.mounted(),
        "podman run --rm left its container: {known}"
    );
    Ok(())
}

/// A host service that is restarted (an upgrade) takes the running guards back; nobody ends for it.
fn a_restarted_host_service_finds_its_containers(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo(world, &["/bin/sleep", "1000"])?;
    rt.up(&bundle)?;
    let expectations = world.expectations(&["software-root", "no-ima", "tier-fanotify"])?;
    for service in ["attestrun-agent", "attestrun-host"] {
        world.stop(service)?;
    }
    ensure!(rt.status(&bundle)? == "running", "without its host service");
    world.start_services()?;
    let since = Instant::now();
    loop {
        let output = world.challenge(&bundle.id, &expectations)?;
        if output.code() == 0 {
            break;
        }
        ensure!(
            since.elapsed() < patient(Duration::from_secs(20)),
            "{output}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    rt.cmd("exec")
        .args([bundle.id.as_str(), "/bin/true"])
        .ok()?;
    rt.down(&bundle)?;
    let output = world.challenge(&bundle.id, &expectations)?;
    ensure!(output.code() == 2, "after its end: {output}");
    Ok(())
}
