//! podman: containers, pods, and Kubernetes' YAML.

use super::{SPEAK, TYPED, at_terminal, name, refused_by_us, same, was_interactive, with_pause};
use crate::{
    Module, Test, launch::allowing, namespace, runtime::Runtime, spawn::Cmd, world::World,
};
use anyhow::{Context, Result, ensure};
use std::fs;

pub const MODULE: Module = Module {
    name: "podman",
    prepare: super::warm,
    tests: &[
        Test::Each("run", run_and_status),
        Test::Each("life_of_a_container", life_of_a_container),
        Test::Each("options_of_run", options_of_run),
        Test::Each("terminals", terminals),
        Test::Each("pods", pods),
        Test::Each("kubernetes_yaml", kubernetes_yaml),
        Test::Each("errors", errors),
    ],
};

/// A verb of podman on this runtime.
pub fn on(world: &World, rt: &Runtime, verb: &str) -> Result<Cmd> {
    Ok(world.podman()?.arg("--runtime").arg(&rt.path).arg(verb))
}

/// A detached container that sleeps; its name.
pub fn sleeper(world: &World, rt: &Runtime) -> Result<String> {
    let name = name(world, "podman", rt);
    let id = world
        .podman_run(rt, "run")?
        .args(["-d", "--name", &name, &world.images()?.demo.name])
        .args(["/bin/sleep", "1000"])
        .ok()?
        .stdout;
    world.note(id.trim());
    Ok(name)
}

fn run_and_status(world: &World, rt: &Runtime) -> Result<()> {
    let output = world
        .podman_run(rt, "run")?
        .args(["--rm", &world.images()?.demo.name])
        .args(SPEAK)
        .output()?;
    same(&output, 3, "out\n")?;
    output.says("err")?;
    Ok(())
}

/// exec, top, stats, pause, unpause, stop, start, restart, cp, commit, kill, rm: one container.
fn life_of_a_container(world: &World, rt: &Runtime) -> Result<()> {
    let name = sleeper(world, rt)?;
    let on = |verb: &str| on(world, rt, verb);
    let exec = |args: &[&str]| on("exec")?.arg(&name).args(args).output();
    same(&exec(&["/bin/echo", "inside"])?, 0, "inside\n")?;
    same(&exec(&["/bin/sh", "-c", "exit 5"])?, 5, "")?;
    on("ps")?.ok()?.says(&name)?;
    let unit = on("generate")?.args(["systemd", "--name", &name]).ok()?;
    unit.says(&format!("podman start {name}"))?;
    on("top")?.arg(&name).ok()?.says("sleep 1000")?;
    on("stats")?
        .args(["--no-stream", &name])
        .ok()?
        .says(&name)?;
    on("pause")?.arg(&name).ok()?;
    on("exec")?.args([&name, "/bin/true"]).fails()?;
    on("unpause")?.arg(&name).ok()?;
    on("stop")?.args(["-t", "0", &name]).ok()?;
    on("start")?.arg(&name).ok()?; // create is called afresh
    same(&exec(&["/bin/echo", "again"])?, 0, "again\n")?;
    on("restart")?.args(["-t", "0", &name]).ok()?;
    let file = world.work.join("copied");
    fs::write(&file, "a copy\n")?;
    on("cp")?.arg(&file).arg(format!("{name}:/tmp/in")).ok()?;
    same(&exec(&["/bin/cat", "/tmp/in"])?, 0, "a copy\n")?;
    let image = "localhost/e2e/committed:v1";
    on("commit")?.args(["--quiet", &name, image]).ok()?;
    let committed = world
        .podman_run(rt, "run")?
        .args(["--rm", image, "/bin/true"])
        .output()?;
    refused_by_us(rt, &committed, "no rule")?;
    on("kill")?.arg(&name).ok()?;
    on("wait")?.arg(&name).ok()?.says("137")?;
    let changed = on("start")?.arg(&name).output()?;
    refused_by_us(rt, &changed, "is not what the signed layers hold")?;
    on("rm")?.args(["-f", "-t", "0", &name]).ok()?;
    on("rmi")?.args(["-f", image]).ok()?;
    Ok(())
}

fn options_of_run(world: &World, rt: &Runtime) -> Result<()> {
    allowing(&["device:/dev/e2e"], || options_work(world, rt))
}

fn options_work(world: &World, rt: &Runtime) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let script = |options: &[&str], script: &str| {
        world
            .podman_run(rt, "run")?
            .arg("--rm")
            .args(options)
            .args([demo, "/bin/sh", "-c", script])
            .output()
    };
    let user = script(&["--user=1000:1000"], "id -u; id -g")?;
    same(&user, 0, "1000\n1000\n")?;
    // podman's own read-only tmpfs needs tmpcopyup, which the embedded backend leaves to runc
    let read_only = script(&["--read-only", "--read-only-tmpfs=false"], "echo x >/x")?;
    same(&read_only, 1, "")?;
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
    Ok(())
}

fn terminals(world: &World, rt: &Runtime) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let shell = world
        .podman_run(rt, "run")?
        .args(["-it", "--rm", demo, "/bin/sh"]);
    was_interactive(&at_terminal(world, &shell, TYPED)?)?;
    let name = sleeper(world, rt)?;
    let shell = on(world, rt, "exec")?.args(["-it", &name, "/bin/sh"]);
    was_interactive(&at_terminal(world, &shell, TYPED)?)?;
    on(world, rt, "rm")?.args(["-f", "-t", "0", &name]).ok()?;
    Ok(())
}

fn errors(world: &World, rt: &Runtime) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let program = |program: &str| {
        world
            .podman_run(rt, "run")?
            .args(["--rm", demo, program])
            .output()
    };
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

/// What this kind of machine needs (without CAP_SYS_RESOURCE podman's own limits cannot be set), and the
/// image that holds pods together instead of the one that podman builds by itself.
const POD_DEFAULTS: &str = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
infra_image = "localhost/e2e/pause:v1"
infra_command = "/pause"
"#;

fn with_pod_defaults(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let place = "/etc/containers/containers.conf";
    let before = fs::read(place).ok();
    fs::write(place, POD_DEFAULTS)?;
    let done = body();
    match before {
        Some(text) => fs::write(place, text)?,
        None => fs::remove_file(place)?,
    }
    done
}

/// A pod of this name on the tests' own pause image.
fn make_pod(world: &World, rt: &Runtime, pod: &str) -> Result<String> {
    let made = on(world, rt, "pod")?
        .args(["create", "--network=none", "--name", pod])
        .ok()?;
    let id = made.stdout.trim().to_owned();
    world.note(&id);
    Ok(id)
}

/// podman 4.3 leaves a pod's cgroups in the hierarchies that have no controllers.
fn forget_pod(id: &str) -> Result<()> {
    for hierarchy in namespace::hierarchies()? {
        let cgroup = hierarchy.join("libpod_parent").join(id);
        if cgroup.exists() {
            namespace::remove_cgroup(&cgroup)?;
        }
    }
    Ok(())
}

fn pods(world: &World, rt: &Runtime) -> Result<()> {
    with_pod_defaults(|| with_pause(world, || pod_of_two(world, rt)))
}

fn pod_of_two(world: &World, rt: &Runtime) -> Result<()> {
    let pod = name(world, "pod", rt);
    let id = make_pod(world, rt, &pod)?;
    let member = |command: &[&str]| {
        let run = on(world, rt, "run")?.args(["-d", "--pod", &pod, &world.images()?.demo.name]);
        Ok::<_, anyhow::Error>(run.args(command).ok()?.stdout.trim().to_owned())
    };
    let first = member(&["/bin/sleep", "1000"])?;
    world.note(&first);
    let second = member(&["/bin/sleep", "1000"])?;
    world.note(&second);
    let exec = on(world, rt, "exec")?
        .args([&second, "/bin/hostname"])
        .output()?;
    same(&exec, 0, &format!("{pod}\n"))?;
    if rt.backend.is_some() {
        let inspect = on(world, rt, "pod")?.args(["inspect", "--format", "{{.InfraContainerID}}"]);
        let infra = inspect.arg(&pod).ok()?.stdout;
        world.note(infra.trim());
        super::pod_is_accepted(world, infra.trim(), &first)?;
        super::pod_is_accepted(world, infra.trim(), &second)?;
    }
    let verb = |verb: &str| on(world, rt, "pod")?.args([verb, &pod]).ok();
    on(world, rt, "pod")?.args(["ps"]).ok()?.says("Running")?;
    verb("pause")?;
    verb("unpause")?;
    verb("kill")?;
    on(world, rt, "pod")?
        .args(["rm", "-f", "-t", "0", &pod])
        .ok()?;
    forget_pod(&id)
}

fn kubernetes_yaml(world: &World, rt: &Runtime) -> Result<()> {
    with_pod_defaults(|| with_pause(world, || generated_and_played(world, rt)))
}

fn generated_and_played(world: &World, rt: &Runtime) -> Result<()> {
    let pod = name(world, "kube", rt);
    let first = make_pod(world, rt, &pod)?;
    let app = format!("{pod}-app");
    on(world, rt, "run")?
        .args([
            "-d",
            "--pod",
            &pod,
            "--name",
            &app,
            &world.images()?.demo.name,
            "/bin/sleep",
            "1000",
        ])
        .ok()?;
    let yaml = world.work.join("pod.yaml");
    let generated = on(world, rt, "generate")?.args(["kube", &pod]).ok()?.stdout;
    fs::write(&yaml, generated)?;
    on(world, rt, "pod")?
        .args(["rm", "-f", "-t", "0", &pod])
        .ok()?;
    forget_pod(&first)?;
    // the names in the YAML are the pod's and, below it, the container's
    let play = |verb: &[&str]| {
        on(world, rt, "play")?
            .arg("kube")
            .args(verb)
            .arg(&yaml)
            .ok()
    };
    play(&["--network=none"])?;
    let all = on(world, rt, "pod")?
        .args([
            "ps",
            "--no-trunc",
            "--format",
            "{{.ID}} {{.Name}} {{.Status}} {{.NumberOfContainers}}",
        ])
        .ok()?;
    all.says(&format!(" {pod} Running 2"))?;
    let id = all
        .stdout
        .lines()
        .find(|l| l.contains(&pod))
        .and_then(|l| l.split(' ').next());
    let id = id.context("the pod's id")?.to_owned();
    play(&["--down"])?;
    forget_pod(&id)
}
