//! buildah: steps of a build are containers whose files are nobody's yet. None runs unless a `[[build]]`
//! entry says so.

use super::{name, refused_by_us, same, with_entry};
use crate::{Module, Test, runtime::Runtime, spawn::Cmd, world::World};
use anyhow::Result;
use std::fs;

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
    ],
};

const ENTRY: &str = "[[build]]\nname = \"ci\"\nbase = \"any\"\nprograms = \"any\"\nenter = \"any\"\nmin_tier = \"none\"\n";

fn buildah(world: &World) -> Result<Cmd> {
    world.podman()?; // its storage, filled
    Ok(Cmd::new("buildah").arg("--storage-driver=overlay"))
}

fn on(world: &World, rt: &Runtime, verb: &str) -> Result<Cmd> {
    let cmd = buildah(world)?.args([verb, "--isolation=oci", "--network=none", "--runtime"]);
    Ok(cmd.arg(&rt.path))
}

/// `body` with the name of a working container of the demo image.
fn working(world: &World, rt: &Runtime, body: impl FnOnce(&str) -> Result<()>) -> Result<()> {
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
        buildah(world)?.args(["rmi", "-f", image]).ok()?;
        Ok(())
    })
}
