//! How an image is run: an engine's default profile passes without a word in the policy; each thing
//! beyond it is refused by its name, and runs once a rule names it.

use crate::{
    Module, Test,
    admission::restoring,
    engines::{self, containerd, docker, podman},
    host::{POLICY, policy},
    publisher::relaxations,
    runtime::{Backend, Runtime},
    spawn::{Cmd, Output},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;

pub const MODULE: Module = Module {
    name: "launch",
    prepare: |world| {
        engines::warm(world)?;
        // Docker keeps the host's network namespace at hand once it was asked for.
        let demo = world.images()?.demo.name.as_str();
        let run = world.docker()?.args(["run", "--rm", "--network=host"]);
        run.args([demo, "/bin/true"]).ok().map(drop)
    },
    tests: &[
        Test::Once("docker_by_default_and_beyond", docker_by_default_and_beyond),
        Test::Once("podman_by_default_and_beyond", podman_by_default_and_beyond),
        Test::Once("ctr_by_default_and_beyond", ctr_by_default_and_beyond),
        Test::Once("exec_beyond_the_default", exec_beyond_the_default),
        Test::Once("selinux_labels", selinux_labels),
        Test::Once("the_hosts_cgroup_namespace", the_hosts_cgroup_namespace),
        Test::Once("what_looks_like_a_volume", what_looks_like_a_volume),
        Test::Once(
            "a_volume_leads_where_it_was_made_to",
            a_volume_leads_where_it_was_made_to,
        ),
    ],
};

/// The engine's options, and the names under which what they bring could be allowed.
type Beyond<'a> = (Vec<String>, &'a [&'a str]);

fn options<'a>(options: &[&str], names: &'a [&'a str]) -> Beyond<'a> {
    (options.iter().map(ToString::to_string).collect(), names)
}

fn ours(world: &World) -> Result<Runtime> {
    Ok(Runtime::attestrun(
        &world.program("attestrun")?,
        Backend::Libcontainer,
    ))
}

/// By default it runs; with each of the options it is refused by these names, and with the first
/// option it runs again when a rule names what it brings.
fn judged(cases: &[Beyond<'_>], run: impl Fn(&[String]) -> Result<Output>) -> Result<()> {
    let output = run(&[])?;
    ensure!(output.code() == 0, "the default profile: {output}");
    let mut wrong = Vec::new();
    for (options, names) in cases {
        let output = run(options)?;
        let refused = output.code() != 0 && output.says("refused: ").is_ok();
        let missing: Vec<_> = names
            .iter()
            .filter(|name| output.says(name).is_err())
            .collect();
        if !refused || !missing.is_empty() {
            wrong.push(format!("{options:?}: not refused by {missing:?}: {output}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (options, names) = cases.first().context("no case")?;
    allowing(names, || {
        let output = run(options)?;
        ensure!(output.code() == 0, "{options:?} with {names:?}: {output}");
        Ok(())
    })
}

/// `body` under a rule that allows these too.
pub fn allowing(names: &[&str], body: impl FnOnce() -> Result<()>) -> Result<()> {
    restoring(POLICY, || {
        fs::write(POLICY, with_names(&policy("enforce"), names)?)?;
        body()
    })
}

/// The policy whose rules allow these too.
pub fn with_names(policy: &str, names: &[&str]) -> Result<String> {
    let mut allow: Vec<Value> = serde_json::from_str(&relaxations())?;
    allow.extend(names.iter().map(|name| json!(name)));
    let usual = format!("allow = {}", relaxations());
    ensure!(policy.contains(&usual), "no `{usual}` in {policy}");
    Ok(policy.replace(&usual, &format!("allow = {}", json!(allow))))
}

/// Docker's own filter, as far as a shell needs it, with one call more.
fn weaker_filter(world: &World) -> Result<String> {
    let vector: Value = serde_json::from_str(include_str!("vectors/bundles/docker.json"))?;
    let mut filter = vector["linux"]["seccomp"].clone();
    let rules = filter["syscalls"].as_array_mut().context("rules")?;
    rules.push(json!({ "names": ["unshare"], "action": "SCMP_ACT_ALLOW" }));
    let path = world.work.join("weaker.json");
    fs::write(&path, filter.to_string())?;
    Ok(format!("seccomp={}", path.display()))
}

fn docker_by_default_and_beyond(world: &World) -> Result<()> {
    let (rt, demo) = (ours(world)?, &world.images()?.demo.name);
    let weaker = weaker_filter(world)?;
    let volume = format!("{}:/data", world.work.display());
    let mount = format!("mount:{}", world.work.display());
    let run = |options: &[String]| {
        let run = world.docker()?.args(["run", "--rm"]);
        let run = run.arg(format!("--runtime=e2e-{}", rt.name));
        let network = options.iter().any(|option| option.starts_with("--network"));
        let run = run.args((!network).then_some("--network=none"));
        run.args(options).args([demo, "/bin/true"]).output()
    };
    judged(
        &[
            options(&["--cap-add=NET_ADMIN"], &["cap:CAP_NET_ADMIN"]),
            options(
                &["--privileged"],
                &[
                    "cap:CAP_SYS_ADMIN",
                    "cap:CAP_SYS_MODULE",
                    "seccomp:unconfined",
                    "shown:/proc/kcore",
                    "writable:/proc/sys",
                    "writable:/sys",
                    "device:",
                ],
            ),
            options(
                &["--security-opt=seccomp=unconfined"],
                &["seccomp:unconfined"],
            ),
            options(&["--security-opt", &weaker], &["syscall:unshare"]),
            options(
                &["--security-opt=systempaths=unconfined"],
                &["shown:/sys/firmware", "writable:/proc/sysrq-trigger"],
            ),
            options(&["--pid=host"], &["namespace:pid"]),
            options(&["--network=host"], &["namespace:network"]),
            options(&["--ipc=host"], &["namespace:ipc"]),
            options(&["--uts=host"], &["namespace:uts"]),
            options(
                &["--sysctl=net.core.somaxconn=1024"],
                &["sysctl:net.core.somaxconn"],
            ),
            options(
                &["--sysctl=net.ipv4.ping_group_range=0 1"],
                &["sysctl:net.ipv4.ping_group_range"],
            ),
            options(&["--device=/dev/full:/dev/e2e"], &["device:/dev/e2e"]),
            options(&["--device-cgroup-rule=c 10:229 rwm"], &["device:*"]),
            options(&["--volume", &volume], &[&mount]),
            options(&["--volume=/run:/x"], &["mount:/run"]),
            options(&["--volume=/etc/shadow:/etc/hosts"], &["mount:/etc/shadow"]),
            options(&["--env=LD_PRELOAD=/x.so"], &["env:LD_PRELOAD"]),
        ],
        run,
    )
}

fn podman_by_default_and_beyond(world: &World) -> Result<()> {
    let (rt, demo) = (ours(world)?, &world.images()?.demo.name);
    let mount = format!("mount:{}", world.work.display());
    let volume = format!("{}:/data", world.work.display());
    let run = |options: &[String]| {
        let run = world.podman_run(&rt, "run")?.arg("--rm");
        run.args(options).args([demo, "/bin/true"]).output()
    };
    judged(
        &[
            options(&["--cap-add=NET_RAW"], &["cap:CAP_NET_RAW"]),
            options(
                &["--privileged"],
                &["cap:CAP_SYS_ADMIN", "seccomp:unconfined"],
            ),
            options(
                &["--security-opt=seccomp=unconfined"],
                &["seccomp:unconfined"],
            ),
            options(
                &["--security-opt=unmask=/proc/kcore"],
                &["shown:/proc/kcore"],
            ),
            options(&["--pid=host"], &["namespace:pid"]),
            options(&["--ipc=host"], &["namespace:ipc"]),
            options(&["--uts=host"], &["namespace:uts"]),
            options(&["--sysctl=kernel.msgmax=65536"], &["sysctl:kernel.msgmax"]),
            options(&["--device=/dev/full:/dev/e2e"], &["device:/dev/e2e"]),
            options(&["--volume", &volume], &[&mount]),
            options(&["--env=LD_AUDIT=/x.so"], &["env:LD_AUDIT"]),
        ],
        run,
    )
}

fn ctr_by_default_and_beyond(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let id = engines::name(world, "launch", &rt);
    let bind = format!(
        "type=bind,src={},dst=/data,options=rbind:ro",
        world.work.display()
    );
    let mount = format!("mount:{}", world.work.display());
    let run = |options: &[String]| {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let output = containerd::run(world, &rt, &id, &options)?
            .arg("/bin/true")
            .output()?;
        // ctr leaves the container's record behind when it is refused
        if output.code() != 0 {
            world.ctr()?.args(["container", "delete", &id]).output()?;
        }
        Ok(output)
    };
    judged(
        &[
            options(&["--cap-add=CAP_NET_ADMIN"], &["cap:CAP_NET_ADMIN"]),
            options(
                &["--privileged"],
                &["cap:CAP_SYS_ADMIN", "shown:/proc/kcore"],
            ),
            options(&["--net-host"], &["namespace:network"]),
            options(&["--device=/dev/full"], &["device:/dev/full"]),
            options(&["--mount", &bind], &[&mount]),
            options(&["--mount=type=proc,src=proc,dst=/x"], &["mount:proc"]),
            options(&["--env=LD_PRELOAD=/x.so"], &["env:LD_PRELOAD"]),
        ],
        run,
    )
}

/// A process that enters gets no more either.
fn exec_beyond_the_default(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let name = docker::sleeper(world, &rt)?;
    let exec = |options: &[&str]| -> Result<Cmd> {
        let exec = world.docker()?.arg("exec").args(options);
        Ok(exec.args([name.as_str(), "/bin/true"]))
    };
    exec(&[])?.ok()?;
    let output = exec(&["--privileged"])?.fails()?;
    output.says("refused: ")?.says("cap:CAP_SYS_ADMIN")?;
    world.docker()?.args(["rm", "-f", &name]).ok()?;
    let name = podman::sleeper(world, &rt)?;
    let exec = |options: &[&str]| {
        let exec = podman::on(world, &rt, "exec")?.args(options);
        exec.args([name.as_str(), "/bin/true"]).output()
    };
    ensure!(exec(&[])?.code() == 0, "podman exec");
    let output = exec(&["--privileged"])?;
    ensure!(output.code() != 0, "{output}");
    output.says("refused: ")?.says("cap:CAP_SYS_ADMIN")?;
    podman::on(world, &rt, "rm")?
        .args(["-f", "-t", "0", &name])
        .ok()?;
    Ok(())
}

/// This host has no SELinux, so that no container can have a label; one that asks for it is judged all the
/// same, before anybody finds that out.
fn selinux_labels(world: &World) -> Result<()> {
    // libcontainer knows no labels: it is runc that is asked for them
    let rt = Runtime::attestrun(&world.program("attestrun")?, Backend::Runc);
    world.configure(Backend::Runc)?;
    let done = labels_are_judged(world, &rt);
    world.configure(Backend::Libcontainer)?;
    done
}

fn labels_are_judged(world: &World, rt: &Runtime) -> Result<()> {
    let label = "system_u:system_r:spc_t:s0";
    let mut bundle = crate::admission::demo_bundle(world, &["/bin/true"])?;
    bundle.set("/process/selinuxLabel", json!(label))?;
    let output = rt.run(&bundle)?;
    ensure!(output.code() != 0, "{output}");
    output
        .says("refused: ")?
        .says(&format!("selinux:{label}"))?;
    allowing(&[&format!("selinux:{label}")], || {
        let output = rt.run(&bundle)?;
        ensure!(output.code() != 0, "{output}");
        output.says_not("refused: ")?;
        Ok(())
    })?;
    let files = "system_u:object_r:etc_t:s0:c1,c2";
    let mut bundle = bundle.again();
    bundle.set("/process/selinuxLabel", json!(""))?;
    bundle.set("/linux/mountLabel", json!(files))?;
    let output = rt.run(&bundle)?;
    output
        .says("refused: ")?
        .says(&format!("selinux:{files}"))?;
    Ok(())
}

/// Engines make a cgroup namespace where cgroup v2 is all there is, and none elsewhere.
fn the_hosts_cgroup_namespace(world: &World) -> Result<()> {
    let (rt, demo) = (ours(world)?, &world.images()?.demo.name);
    let unified = fs::exists("/sys/fs/cgroup/cgroup.controllers")?;
    let with_the_hosts = || -> Result<Vec<Output>> {
        let docker = docker::run(world, &rt)?.args(["--rm", "--cgroupns=host"]);
        let podman = world
            .podman_run(&rt, "run")?
            .args(["--rm", "--cgroupns=host"]);
        [docker, podman]
            .map(|run| run.args([demo, "/bin/true"]).output())
            .into_iter()
            .collect()
    };
    for output in with_the_hosts()? {
        ensure!((output.code() == 0) != unified, "{output}");
        if unified {
            output.says("refused: ")?.says("namespace:cgroup")?;
        }
    }
    allowing(&["namespace:cgroup"], || {
        for output in with_the_hosts()? {
            ensure!(output.code() == 0, "{output}");
        }
        Ok(())
    })
}

/// A directory of the host whose path ends as an engine's volumes do.
fn what_looks_like_a_volume(world: &World) -> Result<()> {
    let (rt, demo) = (ours(world)?, &world.images()?.demo.name);
    let like = world.work.join("volumes/v/_data");
    fs::create_dir_all(&like)?;
    let volume = format!("{}:/data", like.display());
    let run = |engine: Cmd, volume: &str| {
        let run = engine.args(["--rm", "--volume", volume]);
        run.args([demo, "/bin/true"]).output()
    };
    for like_one in [true, false] {
        let (volume, code) = match like_one {
            true => (volume.as_str(), 1),
            false => ("e2e-podmans:/data", 0),
        };
        let podman = run(world.podman_run(&rt, "run")?, volume)?;
        ensure!((podman.code() == 0) == (code == 0), "{volume}: {podman}");
        if like_one {
            podman.says(&format!("mount:{}", like.display()))?;
        }
    }
    world.podman()?.args(["volume", "rm", "e2e-podmans"]).ok()?;
    let docker = run(docker::run(world, &rt)?, &volume)?;
    ensure!(docker.code() != 0, "{docker}");
    docker
        .says("refused: ")?
        .says(&format!("mount:{}", like.display()))?;
    // Docker's volume is no volume of podman's
    world
        .docker()?
        .args(["volume", "create", "e2e-dockers"])
        .ok()?;
    let dockers = "/var/lib/docker/volumes/e2e-dockers/_data";
    let podman = run(world.podman_run(&rt, "run")?, &format!("{dockers}:/data"))?;
    ensure!(podman.code() != 0, "{podman}");
    podman.says(&format!("mount:{dockers}"))?;
    world.docker()?.args(["volume", "rm", "e2e-dockers"]).ok()?;
    fs::remove_dir_all(world.work.join("volumes"))?;
    Ok(())
}

/// Docker's and podman's own volumes hold what containers wrote; one that was made of a directory of the
/// host is that directory.
fn a_volume_leads_where_it_was_made_to(world: &World) -> Result<()> {
    let (rt, demo) = (ours(world)?, &world.images()?.demo.name);
    let leads = |device: &str| format!("--opt=device={device}");
    let run = |volume: &str| {
        docker::run(world, &rt)?
            .args([
                "--rm",
                "--volume",
                &format!("{volume}:/data"),
                demo,
                "/bin/true",
            ])
            .output()
    };
    let make = |name: &str, options: &[&str]| {
        let create = world.docker()?.args(["volume", "create"]).args(options);
        create.arg(name).ok()
    };
    make("e2e-own", &[])?;
    let output = run("e2e-own")?;
    ensure!(output.code() == 0, "a volume of Docker's own: {output}");
    for (number, device) in ["/etc", "/run/containerd"].into_iter().enumerate() {
        let name = format!("e2e-bound-{number}");
        make(&name, &["--opt=type=none", "--opt=o=bind", &leads(device)])?;
        let output = run(&name)?;
        ensure!(output.code() != 0, "{device}: {output}");
        output.says("refused: ")?.says(device)?;
        world.docker()?.args(["volume", "rm", &name]).ok()?;
    }
    world.docker()?.args(["volume", "rm", "e2e-own"]).ok()?;
    Ok(())
}
