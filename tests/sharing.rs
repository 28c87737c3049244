//! A cgroup with somebody in it: runc 1.1 warns and goes on. The end of one container, however it comes,
//! is never its neighbours'.

use crate::{
    Module, Test,
    deaths::new_processes,
    launch::allowing,
    runtime::{Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub const MODULE: Module = Module {
    name: "sharing",
    prepare: |world| world.rootfs(1).map(|_| ()),
    tests: &[
        Test::Each("a_used_cgroup_is_warned_of", a_used_cgroup_is_warned_of),
        Test::Ours("one_ends_the_other_lives", one_ends_the_other_lives),
        Test::Ours(
            "the_first_ends_the_second_lives",
            the_first_ends_the_second_lives,
        ),
        Test::Ours("a_failed_create_ends_nobody", a_failed_create_ends_nobody),
        Test::Ours(
            "who_cannot_end_alone_is_alone",
            who_cannot_end_alone_is_alone,
        ),
        Test::Ours(
            "nobody_changes_anothers_device_rules",
            nobody_changes_anothers_device_rules,
        ),
    ],
};

const PATH: &str = "/attestrun-shared";

/// Two containers with one cgroup.
fn two(world: &World) -> Result<(Bundle, Bundle)> {
    let bundle = |n| -> Result<Bundle> {
        let rootfs = world.rootfs(n)?;
        world.note(&rootfs.id);
        let mut bundle = Bundle::make(&world.work, &rootfs, &["/bin/sleep", "1000"])?;
        bundle.set("/linux/cgroupsPath", json!(PATH))?;
        Ok(bundle)
    };
    Ok((bundle(0)?, bundle(1)?))
}

fn directory() -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let v1 = root.join("freezer");
    let root = if v1.exists() { v1 } else { root.to_owned() };
    root.join(PATH.trim_start_matches('/'))
}

fn init(rt: &Runtime, bundle: &Bundle) -> Result<i32> {
    let pid = rt.state(bundle)?["pid"].as_i64().context("pid")?;
    Ok(pid.try_into()?)
}

fn lives(rt: &Runtime, bundle: &Bundle) -> Result<()> {
    ensure!(rt.status(bundle)? == "running", "{} has ended", bundle.id);
    rt.cmd("exec").args([&bundle.id, "/bin/true"]).ok()?;
    ensure!(directory().exists(), "its cgroup is gone");
    Ok(())
}

fn is_gone(pid: i32) -> Result<()> {
    let since = Instant::now();
    while Path::new(&format!("/proc/{pid}")).exists() {
        ensure!(since.elapsed() < Duration::from_secs(5), "{pid} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn a_used_cgroup_is_warned_of(world: &World, rt: &Runtime) -> Result<()> {
    let (one, two) = two(world)?;
    rt.up(&one)?;
    rt.create(&two)
        .ok()?
        .says("level=warning msg=\"container's cgroup is not empty: 1 process")?;
    rt.on("start", &two).ok()?;
    rt.on("kill", &two).arg("KILL").ok()?;
    rt.wait_for(&two, "stopped")?;
    let deleted = rt.on("delete", &two).output()?;
    // runc complains that it cannot remove the cgroup, and has deleted the container
    ensure!(rt.backend.is_none() || deleted.code() == 0, "{deleted}");
    rt.on("state", &two).exits(1)?.says("does not exist")?;
    lives(rt, &one)?;
    rt.down(&one)?;
    ensure!(!directory().exists(), "the last one takes it along");
    Ok(())
}

/// Ends `which` in every way there is; `other` must not notice.
fn each_end(rt: &Runtime, which: &Bundle, other: &Bundle, first: bool) -> Result<()> {
    for way in ["delete", "kill --all", "guard", "keeper"] {
        let mut victims = Vec::new();
        let mut up_which = || -> Result<()> {
            let word = if way == "keeper" { "keeper" } else { "guard" };
            victims = new_processes(word, || rt.up(which))?;
            Ok(())
        };
        if first {
            up_which()?;
            rt.up(other)?;
        } else {
            rt.up(other)?;
            up_which()?;
        }
        let init = init(rt, which)?;
        match way {
            "delete" => drop(rt.cmd("delete").args(["--force", &which.id]).ok()?),
            "kill --all" => {
                drop(rt.cmd("kill").args(["--all", &which.id, "KILL"]).ok()?);
            }
            _ => {
                for pid in victims {
                    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
                }
            }
        }
        is_gone(init).with_context(|| way.to_owned())?;
        lives(rt, other).with_context(|| format!("after {way}"))?;
        if way != "delete" {
            rt.on("delete", which).ok()?;
        }
        lives(rt, other).with_context(|| format!("after {way} and delete"))?;
        rt.down(other)?;
        ensure!(!directory().exists(), "the last one takes it along");
    }
    Ok(())
}

fn one_ends_the_other_lives(world: &World, rt: &Runtime) -> Result<()> {
    let (one, two) = two(world)?;
    each_end(rt, &two, &one, false)
}

fn the_first_ends_the_second_lives(world: &World, rt: &Runtime) -> Result<()> {
    let (one, two) = two(world)?;
    each_end(rt, &one, &two, true)
}

fn a_failed_create_ends_nobody(world: &World, rt: &Runtime) -> Result<()> {
    allowing(&["mount:*", "namespace:*", "device:*"], || {
        one_failed(world, rt)
    })
}

fn one_failed(world: &World, rt: &Runtime) -> Result<()> {
    let (one, mut two) = two(world)?;
    rt.up(&one)?;
    // a file over a directory: only the backend finds out
    let mounts = two.config["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({ "destination": "/etc", "type": "bind", "source": "/etc/passwd", "options": ["bind"] }));
    two.write()?;
    rt.create(&two).fails()?.says_not("refused")?;
    lives(rt, &one)?;
    rt.down(&one)
}

fn who_cannot_end_alone_is_alone(world: &World, rt: &Runtime) -> Result<()> {
    allowing(&["mount:*", "namespace:*", "device:*"], || {
        one_without_its_own(world, rt)
    })
}

fn one_without_its_own(world: &World, rt: &Runtime) -> Result<()> {
    let (one, mut two) = two(world)?;
    rt.up(&one)?;
    let namespaces = two.config["linux"]["namespaces"].clone();
    let all = namespaces.as_array().context("namespaces")?;
    let others = all.iter().filter(|n| n["type"] != "pid").cloned();
    let others: Vec<_> = others.collect();
    let mut joining = others.clone();
    joining.push(json!({ "type": "pid", "path": format!("/proc/{}/ns/pid", init(rt, &one)?) }));
    for namespaces in [others, joining] {
        two.set("/linux/namespaces", json!(namespaces))?;
        rt.create(&two)
            .fails()?
            .says("container's cgroup is not empty: 1 process")?
            .says("no pid namespace of its own")?;
        lives(rt, &one)?;
    }
    rt.down(&one)
}

fn nobody_changes_anothers_device_rules(world: &World, rt: &Runtime) -> Result<()> {
    allowing(&["mount:*", "namespace:*", "device:*"], || {
        one_with_other_devices(world, rt)
    })
}

fn one_with_other_devices(world: &World, rt: &Runtime) -> Result<()> {
    let (one, mut two) = two(world)?;
    rt.up(&one)?;
    two.set(
        "/linux/resources",
        json!({ "devices": [{ "allow": true, "type": "c", "major": 1, "minor": 1, "access": "rw" }] }),
    )?;
    rt.create(&two)
        .fails()?
        .says("is in the same cgroup with other device rules")?;
    lives(rt, &one)?;
    rt.down(&one)?;
    rt.up(&two)?; // alone it may
    rt.down(&two)
}
