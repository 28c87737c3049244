//! A host whose first process is systemd: the package's units start, guards lie apart from what systemd
//! stops, containers lie where its cgroup driver puts them, and restarts of services hurt neither.

use crate::{
    Module, Test, admission, attestation, cmd,
    layerwatch::{with_store, with_watched},
    machine::{machine, patient},
    packaging,
    rootfs::check_of,
    runtime::{Backend, Bundle, Runtime},
    spawn::Cmd,
    world::{Rootfs, Skip, World},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub const MODULE: Module = Module {
    name: "systemd",
    prepare: |world| match systemd_and_tpm() {
        Ok(()) => world.open_for_business().map(drop),
        Err(_) => Ok(()), // each test says why it is skipped
    },
    tests: &[
        Test::Once("cgroups_are_as_under_runc", cgroups_are_as_under_runc),
        Test::Once("the_packages_units_hold", the_packages_units_hold),
        Test::Once("the_watch_of_layers_holds", the_watch_of_layers_holds),
    ],
};

const INSTALLED: &str = "/usr/bin/attestrun";
const CGROUPS: &str = "/sys/fs/cgroup";

fn systemd_and_tpm() -> Result<()> {
    if machine().systemd && machine().tpm {
        return Ok(());
    }
    let why = "this machine has no systemd and TPM of its own; tests/qemu-host makes one";
    Err(Skip(why.to_owned()).into())
}

/// A process's cgroup on the unified hierarchy.
fn cgroup(pid: i64) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("0::"));
    Ok(line.context("no unified hierarchy")?.to_owned())
}

/// What systemd knows of a scope. `DevicePolicy` is not among it: runc tells systemd the device rules
/// too, and systemd puts a second program of the same effect beside runc's; with libcontainer there is
/// ours alone, which the kernel asks at each open as it asks runc's (`devices::the_rules_hold`).
const PROPERTIES: &str = "-pActiveState,Slice,ControlGroup,Delegate,DefaultDependencies,MemoryMax,MemoryLow,\
    MemorySwapMax,TasksMax,CPUQuotaPerSecUSec,CPUQuotaPeriodUSec,AllowedCPUs,AllowedMemoryNodes";
/// Scope, slice and limits, by runc and by each backend: as created, and after an update.
fn cgroups_are_as_under_runc(world: &World) -> Result<()> {
    systemd_and_tpm()?;
    let mut of_runc = None;
    for rt in world.runtimes() {
        world.select(Some(&rt))?;
        let mut bundle = crate::drop_in::bundle(world, &["/bin/sleep", "1000"])?;
        let scope = format!("e2e-{}.scope", &bundle.id[..12]);
        let path = format!("system.slice:e2e:{}", &bundle.id[..12]);
        bundle.set("/linux/cgroupsPath", path.into())?;
        for (kind, limits) in limits() {
            bundle.set(&format!("/linux/resources/{kind}"), limits)?;
        }
        rt.up(&bundle)?;
        let looked = look(&rt, &bundle, &scope);
        rt.down(&bundle)?;
        let seen = looked.with_context(|| rt.name)?;
        let gone = cmd!("systemctl", "is-active", &scope).output()?;
        ensure!(
            !gone.status.success(),
            "{}: the scope is still there",
            rt.name
        );
        ensure!(
            !Path::new(CGROUPS)
                .join("system.slice")
                .join(&scope)
                .exists(),
            "{}: the scope's cgroup is still there",
            rt.name
        );
        let of_runc = of_runc.get_or_insert_with(|| seen.clone());
        ensure!(
            seen == *of_runc,
            "{}, - under runc, + here:\n{}",
            rt.name,
            unlike(of_runc, &seen)
        );
    }
    Ok(())
}

fn limits() -> [(&'static str, serde_json::Value); 3] {
    use serde_json::json;
    [
        (
            "memory",
            json!({ "limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20 }),
        ),
        ("pids", json!({ "limit": 77 })),
        (
            "cpu",
            json!({ "shares": 512, "quota": 50_000, "period": 100_000 }),
        ),
    ]
}

/// What systemd and the kernel say of the container's scope, before and after an update.
fn look(rt: &Runtime, bundle: &Bundle, scope: &str) -> Result<Vec<String>> {
    let pid = rt.state(bundle)?["pid"].as_i64().context("pid")?;
    let look = |when: &str| -> Result<Vec<String>> {
        let shown = cmd!("systemctl", "show", scope, PROPERTIES).ok()?.stdout;
        Ok(shown.lines().map(|l| format!("{when}: {l}")).collect())
    };
    let mut seen = vec![cgroup(pid)?];
    seen.extend(look("created")?);
    rt.cmd("update")
        .args(["--memory", "50331648", "--memory-swap", "67108864"])
        .args(["--pids-limit", "55", "--cpu-quota", "20000"])
        .args(["--cpu-share", "2048", &bundle.id])
        .ok()?;
    seen.extend(look("updated")?);
    Ok(seen)
}

fn unlike(theirs: &[String], ours: &[String]) -> String {
    let missing = |from: &[String], of: &[String], sign: &str| {
        let lines = of.iter().filter(|l| !from.contains(l));
        lines
            .map(|l| format!("      {sign}{l}\n"))
            .collect::<String>()
    };
    missing(ours, theirs, "-") + &missing(theirs, ours, "+")
}

fn the_packages_units_hold(world: &World) -> Result<()> {
    systemd_and_tpm()?;
    world.open_for_business()?;
    world.configure(Backend::Runc)?;
    for service in ["attestrun-agent", "attestrun-host"] {
        world.stop(service)?;
    }
    let deb = packaging::build(world)?;
    // the harness has written a configuration already: it stays
    cmd!("dpkg", "--force-confold", "--install", &deb)
        .limit(Duration::from_secs(120))
        .ok()?;
    let done = units_hold(world);
    let stopped = systemctl(&["stop", "attestrun-agent", "attestrun-host"]).output();
    cmd!("dpkg", "--remove", "attestrun").ok()?;
    for dir in ["/run/attestrun-agent", "/run/attestrun-host"] {
        fs::create_dir_all(dir)?;
    }
    std::os::unix::fs::chown("/run/attestrun-agent", Some(64999), Some(64999))?;
    world.start_services()?;
    stopped?;
    done
}

fn systemctl(args: &[&str]) -> Cmd {
    cmd!("systemctl").args(args)
}

fn units_hold(world: &World) -> Result<()> {
    let units = ["attestrun-host.service", "attestrun-agent.service"];
    systemctl(&["start"])
        .args(units)
        .ok()
        .with_context(|| journal(&units))?;
    settled(&units)?;
    let place = systemctl(&["show", "-PControlGroup", units[0]])
        .ok()?
        .stdout;
    ensure!(
        place.trim() == "/attestrun.slice/attestrun-host.service",
        "the host service lies in {place}"
    );

    let rt = Runtime {
        path: PathBuf::from(INSTALLED),
        ..Runtime::attestrun(Path::new(INSTALLED), Backend::Runc)
    };
    let demo = world.images()?.demo.name.as_str();
    let id = world
        .podman_run(&rt, "run")?
        .args(["-d", demo, "/bin/sleep", "1000"])
        .ok()?
        .stdout;
    let id = id.trim().to_owned();
    world.note(&id);
    let held = holds(world, &id);
    world.podman()?.args(["rm", "-f", "-t", "0", &id]).ok()?;
    held
}

/// A container under the installed package: in its scope, its guard apart; challenged before and after
/// the services' restart.
fn holds(world: &World, id: &str) -> Result<()> {
    let pid = world
        .podman()?
        .args(["inspect", "--format", "{{.State.Pid}}", id])
        .ok()?
        .stdout;
    let place = cgroup(pid.trim().parse()?)?;
    ensure!(
        place.starts_with(&format!("/machine.slice/libpod-{id}.scope")),
        "the container lies in {place}"
    );
    let guards = guards()?;
    let [(run, guarding)] = guards.as_slice() else {
        anyhow::bail!("not one guarded run but {guards:?}");
    };
    ensure!(guarding.len() == 3, "keeper, guard, swtpm: {guarding:?}");
    let limit = fs::read_to_string(run.join("memory.max"))?;
    ensure!(limit.trim() == "268435456", "memory.max is {limit}");
    attestation::accepted(world, id)?;

    systemctl(&["daemon-reload"]).ok()?;
    systemctl(&["restart", "attestrun-host", "attestrun-agent"]).ok()?;
    let since = Instant::now();
    while let Err(error) = attestation::accepted(world, id) {
        ensure!(
            since.elapsed() < patient(Duration::from_secs(20)),
            "after a restart of the services: {error:#}"
        );
    }
    ensure!(
        self::guards()? == guards,
        "a restart of the services moved or ended a guard"
    );
    let limit = fs::read_to_string(run.join("memory.max"))?;
    ensure!(limit.trim() == "268435456", "memory.max is then {limit}");
    Ok(())
}

/// The runs' cgroups in the slice and who is in them; the services' own are not runs.
fn guards() -> Result<Vec<(PathBuf, Vec<String>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(CGROUPS).join("attestrun.slice"))? {
        let path = entry?.path();
        let is_service = path.extension().is_some_and(|e| e == "service") || path.ends_with("host");
        if path.is_dir() && !is_service {
            let members = fs::read_to_string(path.join("cgroup.procs"))?;
            found.push((path, members.lines().map(str::to_owned).collect()));
        }
    }
    Ok(found)
}

/// Both units are up and stay so: a unit that is restarted over and over is neither.
fn settled(units: &[&str]) -> Result<()> {
    let socket = Path::new("/run/attestrun-agent/challenge.sock");
    let since = Instant::now();
    while !socket.exists() {
        ensure!(
            since.elapsed() < patient(Duration::from_secs(10)),
            "no {}\n{}",
            socket.display(),
            journal(units)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    for unit in units {
        let is = systemctl(&["show", "-PActiveState,NRestarts", unit]).ok()?;
        ensure!(
            is.stdout.contains("active") && is.stdout.contains('0'),
            "{unit}: {is}\n{}",
            journal(units)
        );
    }
    Ok(())
}

fn journal(units: &[&str]) -> String {
    let lines = cmd!("journalctl", "--no-pager", "-n", "30")
        .args(units.iter().map(|u| format!("--unit={u}")))
        .output();
    lines.map(|l| l.all()).unwrap_or_default()
}

/// Within all that its unit takes from it: layers are watched, a changed one is not vouched for, and after
/// the process died another one begins anew.
fn the_watch_of_layers_holds(world: &World) -> Result<()> {
    systemd_and_tpm()?;
    world.open_for_business()?;
    cmd!("modprobe", "loop").ok()?;
    let file = format!("{}/packaging/systemd/{WATCH}", crate::namespace::SOURCES);
    let unit = Path::new("/run/systemd/system").join(WATCH);
    fs::copy(file, &unit)?;
    fs::copy(world.program("attestrun")?, INSTALLED)?;
    systemctl(&["daemon-reload"]).ok()?;
    systemctl(&["start", WATCH])
        .ok()
        .with_context(|| journal(&[WATCH]))?;
    let done = with_store(world, &world.images()?.demo, 96, |rootfs| {
        let rt = admission::ours(world)?;
        let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
        with_watched(|| watch_holds(&rt, &bundle, rootfs))
    });
    systemctl(&["stop", WATCH]).ok()?;
    for file in [unit.as_path(), Path::new(INSTALLED)] {
        fs::remove_file(file)?;
    }
    done
}

const WATCH: &str = "attestrun-layerwatch.service";

fn watch_holds(rt: &Runtime, bundle: &Bundle, rootfs: &Rootfs) -> Result<()> {
    // stamps count once the clock has moved on
    std::thread::sleep(Duration::from_millis(200));
    watched(rt, bundle).context("at first")?;
    let layer = admission::layer_with(rootfs, "etc/passwd")?;
    let kept = fs::read(&layer)?;
    fs::write(&layer, "root::0:0::/:/bin/sh\n")?;
    admission::refusal(&rt.create(bundle).output()?, "etc/passwd")?;
    fs::write(&layer, kept)?;
    std::thread::sleep(Duration::from_millis(200));
    watched(rt, bundle).context("put right again")?;
    systemctl(&["kill", "--signal=SIGKILL", WATCH]).ok()?;
    watched(rt, bundle).context("after its death")?;
    let restarts = systemctl(&["show", "-PNRestarts", WATCH]).ok()?.stdout;
    ensure!(restarts.trim() == "1", "{restarts} restarts");
    Ok(())
}

/// Creates until the layers are watched.
fn watched(rt: &Runtime, bundle: &Bundle) -> Result<()> {
    let since = Instant::now();
    loop {
        let check = check_of(rt, bundle)?;
        if check == "watched" {
            return Ok(());
        }
        ensure!(
            since.elapsed() < patient(Duration::from_secs(10)),
            "still checked `{check}`\n{}",
            journal(&[WATCH])
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
