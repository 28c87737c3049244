//! The image in an engine's own store, taken out of it, and what this host measured of a container of it:
//! one digest, which anybody computes from the image alone.

use super::ours;
use crate::{
    engines::{self, containerd},
    policy::asked,
    world::World,
};
use anyhow::{Context, Result, ensure};
use std::path::Path;

pub fn what_an_engine_has_is_what_is_measured(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let demo = &world.images()?.demo.name;
    let digest = |archive: &Path| -> Result<String> {
        let manifest = world.ctl()?.args(["image", "manifest", "--digest"]);
        Ok(manifest.arg(archive).ok()?.stdout.trim().to_owned())
    };

    let archive = world.work.join("of-podman.tar");
    let save = world
        .podman()?
        .args(["save", "--quiet", "--format=oci-archive"]);
    save.arg("--output").arg(&archive).arg(demo).ok()?;
    let run = world
        .podman_run(&rt, "run")?
        .args(["-d", demo, "/bin/sleep", "1000"]);
    let id = run.ok()?.stdout.trim().to_owned();
    world.note(&id);
    is_measured(world, &id, &digest(&archive)?).context("podman")?;
    world.podman()?.args(["rm", "-f", "-t", "0", &id]).ok()?;

    let archive = world.work.join("of-containerd.tar");
    let export = world.ctr()?.args(["image", "export"]);
    export.arg(&archive).arg(demo).ok()?;
    let id = engines::name(world, "measured", &rt);
    let run = containerd::run(world, &rt, &id, &["-d"])?;
    run.args(["/bin/sleep", "1000"]).ok()?;
    is_measured(world, &id, &digest(&archive)?).context("containerd")?;
    containerd::end(world, &id)
}

fn is_measured(world: &World, id: &str, expected: &str) -> Result<()> {
    let (answer, _) = asked(world, id, &[], &[])?;
    ensure!(answer["outcome"] == "accepted", "{answer:#}");
    let measured = answer["container"]["measured"]["rootfs"].as_str();
    let measured = measured.with_context(|| format!("no rootfs in {answer:#}"))?;
    ensure!(measured == expected, "measured {measured}, not {expected}");
    Ok(())
}
