//! buildah: steps of a build are containers whose files are nobody's yet. None runs unless a `[[build]]`
//! entry says so.

use super::{name, refused_by_us, same, wait_until, with_entry};
use crate::{Module, Test, attestation::WAIVERS, runtime::Runtime, spawn::Cmd, world::World};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{fs, path::Path};

pub const MODULE: Module = Module {
    name: "buildah",
    prepare: |world| {
        super::warm(world)?;
        buildah(world)?.arg("version").ok()?;
        Ok(())
    },
    tests: &[
        Test::Each("no_step_runs_by_default", no_step_runs_by_default),
        Test::Each("run_and_bud_under_an_entry", run_and_bud_under_an_entry),
        Test::Ours("a_build_is_named_in_evidence", a_build_is_named_in_evidence),
    ],
};

/// Lets steps run.
pub const ENTRY: &str = "[[build]]\nname = \"ci\"\nbase = \"any\"\nprograms = \"any\"\nenter = \"any\"\nmin_tier = \"none\"\n";

fn buildah(world: &World) -> Result<Cmd> {
    world.podman()?; // its storage, filled
    Ok(Cmd::new("buildah").arg("--storage-driver=overlay"))
}

fn on(world: &World, rt: &Runtime, verb: &str) -> Result<Cmd> {
    let cmd = buildah(world)?.args([verb, "--isolation=oci", "--network=none", "--runtime"]);
    Ok(cmd.arg(&rt.path))
}

/// `body` with the name of a working container of the demo image.
pub fn working(world: &World, rt: &Runtime, body: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let name = name(world, "buildah", rt);
    buildah(world)?
        .args([
            "from",
            "--pull-never",
            "--name",
            &name,
            &world.images()?.demo.name,
        ])
        .ok()?;
    let done = body(&name);
    buildah(world)?.args(["rm", &name]).ok()?;
    done
}

/// A step of the build in this working container.
pub fn step(world: &World, rt: &Runtime, working: &str) -> Result<Cmd> {
    Ok(on(world, rt, "run")?.args([working, "/bin/true"]))
}

fn no_step_runs_by_default(world: &World, rt: &Runtime) -> Result<()> {
    working(world, rt, |name| {
        let output = on(world, rt, "run")?
            .args([name, "/bin/echo", "built"])
            .output()?;
        refused_by_us(rt, &output, "no [[build]] entry is for this build")
    })
}

fn run_and_bud_under_an_entry(world: &World, rt: &Runtime) -> Result<()> {
    with_entry(ENTRY, || {
        working(world, rt, |name| {
            let run = |script: &str| {
                on(world, rt, "run")?
                    .args([name, "/bin/sh", "-c", script])
                    .output()
            };
            same(&run("echo built; echo x >/tmp/first")?, 0, "built\n")?;
            same(&run("cat /tmp/first; exit 4")?, 4, "x\n")
        })?;
        let dir = world.work.join("bud");
        fs::create_dir_all(&dir)?;
        let demo = &world.images()?.demo.name;
        let steps = format!("FROM {demo}\nRUN echo one >/tmp/x\nRUN cat /tmp/x\n");
        fs::write(dir.join("Containerfile"), steps)?;
        let image = "localhost/e2e/built:v1";
        let bud = on(world, rt, "bud")?
            .args(["--pull-never", "--tag", image])
            .arg(&dir)
            .ok()?;
        bud.says("one")?;
        // what a step was lent is no part of what it built
        let built = buildah(world)?
            .args(["from", "--pull-never", image])
            .ok()?
            .stdout;
        let root = buildah(world)?.args(["mount", built.trim()]).ok()?.stdout;
        let left = Path::new(root.trim()).join("run/attestrun").exists();
        buildah(world)?.args(["rm", built.trim()]).ok()?;
        ensure!(!left, "the image has a directory /run/attestrun");
        buildah(world)?.args(["rmi", "-f", image]).ok()?;
        Ok(())
    })
}

/// A step of a build answers challenges; only who waives `build` by name accepts it.
fn a_build_is_named_in_evidence(world: &World, rt: &Runtime) -> Result<()> {
    with_entry(ENTRY, || {
        working(world, rt, |name| {
            let mut step = on(world, rt, "run")?
                .args([name, "/bin/sleep", "1000"])
                .start()?;
            let mut id = None;
            wait_until("the step runs", || {
                ensure!(step.is_running()?, "it ended: {}", step.written());
                id = running()?;
                Ok(id.is_some())
            })?;
            let id = id.context("the step's id")?;
            world.note(&id);
            let asked = |more: &[&str], rootfs: &str| -> Result<(i32, Value)> {
                let names: Vec<_> = WAIVERS.iter().chain(more).copied().collect();
                let expectations = world.expectations(&names)?;
                let text = fs::read_to_string(&expectations)?;
                let text = text.replace("enter = \"listed\"", "enter = \"any\"");
                // nobody knows a build's files beforehand: which ones it has is looked at
                fs::write(
                    &expectations,
                    text.replace("rootfs = [", &format!("rootfs = [{rootfs}")),
                )?;
                let output = world.challenge(&id, &expectations)?;
                let answer =
                    serde_json::from_str(&output.stdout).with_context(|| format!("{output}"))?;
                Ok((output.code(), answer))
            };
            let outcome = |answer: &Value, check: &str| {
                let findings = answer["findings"].as_array().cloned().unwrap_or_default();
                let found = findings.into_iter().find(|f| f["check"] == check);
                found.map(|f| f.to_string()).unwrap_or_default()
            };
            let judged = || -> Result<()> {
                let (code, answer) = asked(&["any-program"], "")?;
                let origin = outcome(&answer, "P-ORIGIN");
                ensure!(
                    code == 1 && origin.contains("a build, on image"),
                    "{code} {origin}"
                );
                let rootfs = format!("{}, ", answer["container"]["measured"]["rootfs"]);
                let (code, answer) = asked(&["any-program", "build"], &rootfs)?;
                ensure!(code == 0, "{}", answer["findings"]);
                let (code, _) = asked(&["any-program"], &rootfs)?;
                ensure!(code == 1, "accepted without the waiver");
                Ok(())
            };
            let done = judged();
            Cmd::new(&rt.path).args(["kill", &id, "KILL"]).output()?;
            wait_until("buildah cleans up", || Ok(!step.is_running()?))?;
            done
        })
    })
}

/// The id of the one container that runs.
fn running() -> Result<Option<String>> {
    let Ok(runs) = fs::read_dir("/run/attestrun/containers") else {
        return Ok(None);
    };
    for run in runs {
        let Ok(text) = fs::read(run?.path().join("state.json")) else {
            continue;
        };
        let state: Value = serde_json::from_slice(&text)?;
        if state["phase"] == "started" {
            return Ok(state["id"].as_str().map(str::to_owned));
        }
    }
    Ok(None)
}
