//! B16: the first start of an image whose layers containerd keeps compressed. B17: a directory of a million
//! files, read for the first time. B18: what is watched and did not change, by the number of its files.

use crate::{
    bad_trees::{create_costs, fill, with_directory},
    bench::{Spread, round},
    bench_rootfs::{forget, sha256sum},
    cmd,
    engines::containerd,
    host::{POLICY, policy},
    image::{Image, Plan},
    layerwatch::{start_watch, until_watched, with_images},
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
    const MODES: [&str; 2] = ["boot", "watched"];
    let runtime = ours(world)?;
    let mut images = Vec::new();
    for files in COUNTS {
        let name = format!("localhost/e2e/demo:watched{files}");
        let plan = Plan {
            name: &name,
            text: "watched\n",
        };
        let dir = world.work.join(format!("watched-{files}"));
        let image = Image::with_bulk(&dir, &plan, files, 16)?;
        world.open_for_business()?.owner.publish(&image, 1)?;
        images.push(image);
    }
    let mut times = [const { [const { Vec::new() }; 2] }; 2];
    let mut looks = [const { Vec::new() }; 2]; // of the last mode
    with_images(world, &[&images[0], &images[1]], 1024, |mounted| {
        let bundles = mounted
            .iter()
            .map(|rootfs| Bundle::make(&world.work, rootfs, &["/bin/true"]));
        let bundles: Vec<_> = bundles.collect::<Result<_>>()?;
        std::thread::sleep(Duration::from_millis(200));
        let watch = start_watch(world)?;
        for (mode, times) in MODES.iter().zip(&mut times) {
            looks = [const { Vec::new() }; 2];
            checking(mode, || {
                for bundle in &bundles {
                    match *mode {
                        "watched" => until_watched(&watch, &runtime, bundle)?,
                        _ => drop(create_costs(&runtime, bundle)?),
                    }
                }
                for _ in 0..runs {
                    let sides = bundles.iter().zip(times.iter_mut()).zip(&mut looks);
                    for ((bundle, times), looks) in sides {
                        times.push(runtime.create(bundle).timed()?);
                        looks.push(look()?);
                        runtime.on("delete", bundle).arg("--force").ok()?;
                    }
                }
                Ok(())
            })?;
        }
        watch.stop(Duration::from_secs(5))
    })?;
    let [boot, watched] = times.map(|times| times.map(|times| Spread::of(&times)));
    let per_file =
        |of: &[Spread; 2]| (of[1].median - of[0].median) * 1e3 / (COUNTS[1] - COUNTS[0]) as f64;
    let ratio = watched[1].median / watched[0].median;
    let looks = looks.map(|looks| Spread::of(&looks));
    println!(
        "B18: create, {COUNTS:?} files: watched {:.1} / {:.1} ms, of which the guard's look at the rootfs {:.2} / \
         {:.2} ms; boot {:.1} / {:.1} ms",
        watched[0].median,
        watched[1].median,
        looks[0].median,
        looks[1].median,
        boot[0].median,
        boot[1].median
    );
    let side = |of: &[Spread; 2]| json!({ "few_ms": of[0].json(), "many_ms": of[1].json(), "us_per_file": round(per_file(of)) });
    Ok(json!({
        "id": "B18",
        "what": "create with unchanged layers that are watched: 100 000 files against 1000, interleaved",
        "value": round(ratio), "unit": "x", "goal": "<= 1.1 x", "met": ratio <= 1.1,
        "ours": side(&watched), "anchor": { "boot": side(&boot) }, "runs": runs,
        "guard": { "look_at_rootfs_ms": looks.map(|look| look.json()) },
    }))
}

/// What the guard of the only container says that the look at its rootfs took.
fn look() -> Result<Duration> {
    for run in fs::read_dir("/run/attestrun/containers")? {
        let Ok(said) = fs::read(run?.path().join("decision.json")) else {
            continue;
        };
        let decision: Value = serde_json::from_slice(&said)?;
        let took = decision["took_us"]["rootfs"].as_u64().context("took_us")?;
        return Ok(Duration::from_micros(took));
    }
    anyhow::bail!("no decision.json")
}
