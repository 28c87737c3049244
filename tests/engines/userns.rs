//! Containers with user namespaces: their files are the image's, owned by the users that the maps make
//! of the image's owners.

use super::{docker, name, podman, refused_by_us, same};
use crate::{
    Module, Test,
    attestation::accepted,
    cmd,
    host::add_line,
    launch::allowing,
    runtime::Runtime,
    spawn::{Cmd, Output},
    world::World,
};
use anyhow::{Result, ensure};
use std::{fs, path::Path};

pub const MODULE: Module = Module {
    name: "userns",
    prepare: |world| {
        super::warm(world)?;
        for file in ["/etc/subuid", "/etc/subgid"] {
            add_line(file, "containers:300000:200000")?;
            add_line(file, "e2eremap:100000:65536")?;
        }
        add_line(
            "/etc/passwd",
            "e2eremap:x:64998:64998::/nonexistent:/usr/sbin/nologin",
        )?;
        add_line("/etc/group", "e2eremap:x:64998:")?;
        start_remapped(world)
    },
    tests: &[
        Test::Each("podman_uidmap", podman_uidmap),
        Test::Each("podman_userns_auto", podman_userns_auto),
        Test::Each("docker_userns_remap", docker_userns_remap),
        Test::Each("other_owners_are_no_image", other_owners_are_no_image),
    ],
};

/// As on a host whose first process is systemd: podman makes such a container in a mount namespace of
/// its own, where it sees what is mounted and unmounted outside.
pub fn with_shared_mounts(body: impl FnOnce() -> Result<()>) -> Result<()> {
    cmd!("mount", "--make-rshared", "/").ok()?;
    let done = body();
    cmd!("mount", "--make-rprivate", "/").ok()?;
    done
}

const SEEN: &str = "id -u; tr -s ' ' </proc/self/uid_map; stat -c %u:%g /bin/busybox";

/// What the container sees, and a challenge; `run` is the engine's `run` with a user namespace.
fn lives(
    world: &World,
    rt: &Runtime,
    map: &str,
    run: &dyn Fn() -> Result<Cmd>,
    name: &str,
    remove: &dyn Fn(&str) -> Result<()>,
) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let script = |script: &str| {
        run()?
            .args(["--rm", demo, "/bin/sh", "-c", script])
            .output()
    };
    same(&script(SEEN)?, 0, &format!("0\n {map}\n0:0\n"))?;
    let id = run()?
        .args(["-d", "--name", name, demo, "sleep", "1000"])
        .ok()?
        .stdout;
    let id = id.trim();
    world.note(id);
    let done = match rt.backend {
        Some(_) => accepted(world, id).map(drop),
        None => Ok(()),
    };
    remove(name)?;
    done?;
    let unsigned = &world.images()?.unsigned.name;
    let output = run()?.args(["--rm", unsigned, "/bin/true"]).output()?;
    refused_by_us(rt, &output, unsigned)
}

fn on_podman(world: &World, rt: &Runtime, map: &str, options: &[&str]) -> Result<()> {
    let run = || Ok(world.podman_run(rt, "run")?.args(options));
    let remove = |name: &str| {
        let rm = podman::on(world, rt, "rm")?.args(["-f", "-t", "0", name]);
        rm.ok().map(drop)
    };
    let name = name(world, "userns", rt);
    with_shared_mounts(|| lives(world, rt, map, &run, &name, &remove))
}

fn podman_uidmap(world: &World, rt: &Runtime) -> Result<()> {
    let options = ["--uidmap=0:100000:65536", "--gidmap=0:200000:65536"];
    on_podman(world, rt, "0 100000 65536", &options)
}

fn podman_userns_auto(world: &World, rt: &Runtime) -> Result<()> {
    on_podman(world, rt, "0 300000 1024", &["--userns=auto:size=1024"])
}

const SOCKET: &str = "unix:///run/docker/e2e-userns/docker.sock";

/// A second dockerd, whose root is somebody else.
fn start_remapped(world: &World) -> Result<()> {
    if world.has_daemon("dockerd-userns") {
        return Ok(());
    }
    fs::create_dir_all("/run/docker/e2e-userns")?;
    let dockerd = world.dockerd("/run/docker/e2e-userns")?.args([
        "--userns-remap=e2eremap",
        "--containerd-namespace=e2e-userns",
        "--containerd-plugins-namespace=e2e-userns-plugins",
        "--host",
        SOCKET,
    ]);
    world.start("dockerd-userns", dockerd, || {
        Ok(remapped().arg("version").output()?.status.success())
    })?;
    let images = world.images()?;
    for image in [&images.demo, &images.unsigned] {
        remapped()
            .args(["load", "--input"])
            .arg(&image.archive)
            .ok()?;
    }
    // its first container makes directories that are no leftovers
    docker::run_on(remapped(), &Runtime::runc())
        .args(["--rm", &images.demo.name, "/bin/true"])
        .ok()?;
    Ok(())
}

fn remapped() -> Cmd {
    cmd!("docker", "--host", SOCKET)
}

fn docker_userns_remap(world: &World, rt: &Runtime) -> Result<()> {
    let run = || Ok(docker::run_on(remapped(), rt));
    let remove = |name: &str| remapped().args(["rm", "-f", name]).ok().map(drop);
    let name = name(world, "docker-userns", rt);
    lives(world, rt, "0 100000 65536", &run, &name, &remove)?;
    let own = run()?.args([
        "--userns=host",
        "--rm",
        &world.images()?.demo.name,
        "id",
        "-u",
    ]);
    // such a daemon leaves the cgroups writable in any case
    allowing(&["writable:/sys/fs/cgroup"], || {
        let host: Output = own.output()?;
        // its layers belong to the users of a map that this container does not have
        refused_by_us(rt, &host, "is not what the signed layers hold")
    })
}

/// A file that belongs to somebody else than the map makes of the image's owner, and one to nobody.
fn other_owners_are_no_image(world: &World, rt: &Runtime) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let name = name(world, "docker-owners", rt);
    let create = |name: &str| {
        remapped()
            .args(["create", "--network=none", "--name", name])
            .arg(format!("--runtime=e2e-{}", rt.name))
            .args([demo, "/bin/true"])
            .ok()
    };
    for owner in [100_001, 5] {
        let id = create(&name)?.stdout;
        world.note(id.trim());
        let upper = remapped()
            .args([
                "inspect",
                "--format",
                "{{.GraphDriver.Data.UpperDir}}",
                &name,
            ])
            .ok()?
            .stdout;
        let file = Path::new(upper.trim()).join("etc/passwd");
        ensure!(upper.contains("/var/lib/docker/100000.100000/"), "{upper}");
        let lower = remapped()
            .args([
                "inspect",
                "--format",
                "{{.GraphDriver.Data.LowerDir}}",
                &name,
            ])
            .ok()?
            .stdout;
        copied_up(&lower, &file, owner)?;
        let start = remapped().args(["start", "--attach", &name]).output()?;
        remapped().args(["rm", "-f", &name]).ok()?;
        refused_by_us(rt, &start, "/etc/passwd belongs to")?;
    }
    Ok(())
}

/// The layers' file, with another owner, in the container's own layer.
fn copied_up(lower: &str, to: &Path, owner: u32) -> Result<()> {
    let layers = lower.trim().split(':');
    let mut from = layers.map(|layer| Path::new(layer).join("etc/passwd"));
    let from = from.rfind(|file| file.is_file());
    let Some((from, parent)) = from.zip(to.parent()) else {
        anyhow::bail!("no layer has /etc/passwd: {lower}");
    };
    fs::create_dir_all(parent)?;
    std::os::unix::fs::chown(parent, Some(100_000), Some(100_000))?;
    cmd!("cp", "-a", &from, to).ok()?;
    Ok(std::os::unix::fs::chown(to, Some(owner), Some(100_000))?)
}
