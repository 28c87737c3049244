//! B16: the first start of an image whose layers containerd keeps compressed. B17: a directory of a million
//! files, read for the first time. B18: B4 with the watch of layers, which vouches for what did not change.

use crate::{
    bad_trees::{create_costs, fill, with_directory},
    bench::{Spread, round},
    bench_rootfs::{forget, sha256sum},
    cmd,
    engines::containerd,
    host::{POLICY, policy},
    image::{Image, Plan},
    layerwatch::{start_watch, until_watched, with_store},
    runtime::{Backend, Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const COLD_RUNS: usize = 5;

fn ours(world: &World) -> Result<Runtime> {
    let attestrun = world.program("attestrun")?;
    let runtime = Runtime::attestrun(&attestrun, Backend::Libcontainer);
    world.select(Some(&runtime))?;
    Ok(runtime)
}

/// With a policy that lets files be checked in this way.
fn checking(mode: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let how = format!("min_tier = \"none\"\nrootfs = \"{mode}\"");
    fs::write(
        POLICY,
        policy("enforce").replace("min_tier = \"none\"", &how),
    )?;
    let done = body();
    fs::write(POLICY, policy("enforce"))?;
    done
}

pub fn b16(world: &World) -> Result<Value> {
    let plan = Plan {
        name: "localhost/e2e/demo:compressed",
        text: "compressed\n",
    };
    let dir = world.work.join("compressed");
    let image = Image::with_text(&dir, &plan, 10_000, 20_000)?;
    world.open_for_business()?.owner.publish(&image, 1)?;
    let runtime = ours(world)?;
    world
        .ctr()?
        .args(["image", "import"])
        .arg(&image.archive)
        .ok()?;
    let layer = largest(&image.layout.join("blobs/sha256"))?;
    let mut count = 0;
    let mut start = || {
        count += 1;
        let id = format!("compressed-{count}");
        containerd::run_image(world, &runtime, &image.name, &id, &[])?
            .arg("/bin/true")
            .timed()
    };
    let (mut first, mut again, mut anchor) = (Vec::new(), Vec::new(), Vec::new());
    checking("boot", || {
        start()?;
        let files = unpacked()?;
        for _ in 0..COLD_RUNS {
            forget()?;
            first.push(start()?);
            again.push(start()?);
            let layer = cmd!("sh", "-c", "gzip -dc \"$1\" | sha256sum", "sh", &layer).timed()?;
            anchor.push(layer + sha256sum(&files).timed()?);
        }
        Ok(())
    })?;
    fs::remove_dir_all(dir)?;
    let (first, again, anchor) = (Spread::of(&first), Spread::of(&again), Spread::of(&anchor));
    let ratio = (first.median - again.median) / anchor.median;
    Ok(json!({
        "id": "B16",
        "what": "first start of an image that containerd keeps as gzip, 10 000 files, 200 MB, beyond a warm one; \
                 against `gzip -dc | sha256sum` of the layer, then sha256sum of the files on all cores",
        "value": round(ratio), "unit": "x", "goal": "<= 1.15 x", "met": ratio <= 1.15,
        "ours": { "first_ms": first.json(), "again_ms": again.json() }, "anchor": anchor.json(),
        "runs": COLD_RUNS,
    }))
}

fn largest(directory: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    files.sort();
    Ok(files.pop().context("no layer")?.1)
}

/// Where containerd has unpacked the files.
fn unpacked() -> Result<PathBuf> {
    let snapshots = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
    for snapshot in fs::read_dir(snapshots)? {
        let bulk = snapshot?.path().join("fs/bulk");
        if bulk.exists() {
            return Ok(bulk);
        }
    }
    anyhow::bail!("no snapshot has the files")
}

pub fn b17(world: &World) -> Result<Value> {
    const COUNTS: [usize; 2] = [100_000, 1_000_000];
    let mut costs = Vec::new();
    with_directory(world, |directory| {
        for files in COUNTS {
            fill(&directory.root.join("etc/many"), files)?;
            // what was made is not written to the disk meanwhile
            cmd!("sync").ok()?;
            costs.push(create_costs(&directory.rt, &directory.bundle)?);
        }
        Ok(fs::remove_dir_all(directory.root.join("etc/many"))?)
    })?;
    let [(few, few_kib), (many, many_kib)] = costs[..] else {
        anyhow::bail!("two counts")
    };
    println!("B17: {few:?} and {few_kib} KiB, {many:?} and {many_kib} KiB");
    let slope = (many - few).as_secs_f64() * 1e6 / (COUNTS[1] - COUNTS[0]) as f64;
    let growth = many.as_secs_f64() / few.as_secs_f64();
    Ok(json!({
        "id": "B17", "what": "create on a directory of a million empty files, per file",
        "value": round(slope), "unit": "us", "goal": "<= 15 x the time of 100 000 files",
        "met": growth <= 15.0,
        "ours": {
            "create_s": [round(few.as_secs_f64()), round(many.as_secs_f64())],
            "guard_peak_mib": [few_kib >> 10, many_kib >> 10],
        },
        "anchor": {}, "runs": 1,
    }))
}

pub fn b18(world: &World, runs: usize) -> Result<Value> {
    const COUNTS: [usize; 2] = [1_000, 100_000];
    let mut medians = Vec::new();
    let mut ours_json = json!({});
    let runtime = ours(world)?;
    for files in COUNTS {
        let name = format!("localhost/e2e/demo:watched{files}");
        let plan = Plan {
            name: &name,
            text: "watched\n",
        };
        let dir = world.work.join("watched-bulk");
        let image = Image::with_bulk(&dir, &plan, files, 16)?;
        world.open_for_business()?.owner.publish(&image, 1)?;
        with_store(world, &image, 1024, |rootfs| {
            let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
            std::thread::sleep(Duration::from_millis(200));
            let watch = start_watch(world)?;
            for mode in ["boot", "watched"] {
                checking(mode, || {
                    match mode {
                        "watched" => until_watched(&watch, &runtime, &bundle)?,
                        _ => drop(create_costs(&runtime, &bundle)?),
                    }
                    let times = (0..runs).map(|_| Ok(create_costs(&runtime, &bundle)?.0));
                    let spread = Spread::of(&times.collect::<Result<Vec<_>>>()?);
                    println!(
                        "B18: create, {files} files, {mode}: {:.1} ms",
                        spread.median
                    );
                    ours_json[format!("{mode}_ms_{files}_files")] = spread.json();
                    medians.push(spread.median);
                    Ok(())
                })?;
            }
            watch.stop(Duration::from_secs(5))
        })?;
        fs::remove_dir_all(dir)?;
    }
    let [boot_few, watched_few, boot_many, watched_many] = medians[..] else {
        anyhow::bail!("two counts in two modes")
    };
    let per_file = |few: f64, many: f64| (many - few) * 1e3 / (COUNTS[1] - COUNTS[0]) as f64;
    let (watched, boot) = (
        per_file(watched_few, watched_many),
        per_file(boot_few, boot_many),
    );
    Ok(json!({
        "id": "B18", "what": "create with unchanged layers that are watched, per file",
        "value": round(watched), "unit": "us", "goal": "below the same with `boot`", "met": watched < boot,
        "ours": ours_json, "anchor": { "boot_us_per_file": round(boot) }, "runs": runs,
    }))
}
