//! B3 and B4: what the rootfs costs a start. B3: an image of 10 000 files and 500 MB that is started for
//! the first time, beside `sha256sum` over the same files with as many processes as cores, page cache
//! dropped and warm (podman's store; layers that are kept compressed, as containerd's: B15);
//! B14: the same with 20 files and 1 GB. B4: the same start again, against the number of files.

use crate::{
    admission::layer_with,
    bench::{Spread, round},
    cmd,
    host::{POLICY, policy},
    image::{Image, Plan},
    runtime::{Backend, Bundle, Runtime},
    spawn::Cmd,
    world::{Rootfs, World},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

const CACHE: &str = "/run/attestrun/cache/layers";
const COLD_RUNS: usize = 5;

fn boot() -> String {
    let how = "min_tier = \"none\"\nrootfs = \"boot\"";
    policy("enforce").replace("min_tier = \"none\"", how)
}

struct Start<'a> {
    runtime: &'a Runtime,
    bundle: &'a Bundle,
}

impl Start<'_> {
    /// The time that `create` takes; the container is gone afterwards.
    fn time(&self) -> Result<Duration> {
        let took = self.runtime.create(self.bundle).timed()?;
        self.runtime.on("delete", self.bundle).arg("--force").ok()?;
        Ok(took)
    }
}

/// `body` with a mounted rootfs of an image that has this many more files.
fn with_files(
    world: &World,
    files: usize,
    size: usize,
    body: impl FnOnce(&Start<'_>, &Rootfs) -> Result<()>,
) -> Result<()> {
    let name = format!("localhost/e2e/demo:bulk{files}");
    let plan = Plan {
        name: &name,
        text: "bulk\n",
    };
    let dir = world.work.join("bulk");
    let image = Image::with_bulk(&dir, &plan, files, size)?;
    world.open_for_business()?.owner.publish(&image, 1)?;
    let attestrun = world.program("attestrun")?;
    let runtime = Runtime::attestrun(&attestrun, Backend::Libcontainer);
    world.select(Some(&runtime))?;
    fs::write(POLICY, boot())?;
    let done = world.with_rootfs(&image, |rootfs| {
        // Stamps count once the clock has moved on.
        std::thread::sleep(Duration::from_millis(200));
        let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
        let start = Start {
            runtime: &runtime,
            bundle: &bundle,
        };
        body(&start, rootfs)
    });
    fs::write(POLICY, policy("enforce"))?;
    fs::remove_dir_all(dir)?;
    done
}

pub fn b4(world: &World, runs: usize) -> Result<Value> {
    const COUNTS: [usize; 3] = [1_000, 10_000, 100_000];
    let mut medians = Vec::new();
    let mut ours = json!({});
    for files in COUNTS {
        with_files(world, files, 16, |start, _| {
            start.time()?;
            let times: Vec<_> = (0..runs).map(|_| start.time()).collect::<Result<_>>()?;
            let spread = Spread::of(&times);
            println!(
                "B4: create, {files} files unchanged: {:.1} ms",
                spread.median
            );
            ours[format!("create_ms_{files}_files")] = spread.json();
            medians.push(spread.median);
            Ok(())
        })?;
    }
    let (first, last) = (medians[0], medians[medians.len() - 1]);
    let slope = (last - first) * 1e3 / (COUNTS[2] - COUNTS[0]) as f64;
    Ok(json!({
        "id": "B4", "what": "create with unchanged layers, per file",
        "value": round(slope), "unit": "us", "goal": "<= 1.5 us per file", "met": slope <= 1.5,
        "ours": ours, "anchor": {}, "runs": runs,
    }))
}

/// Files of which an image is started for the first time.
struct Shape {
    id: &'static str,
    what: &'static str,
    files: usize,
    size: usize,
    /// Of the time that `sha256sum` takes.
    most: f64,
    goal: &'static str,
}

pub fn b3(world: &World) -> Result<Value> {
    first_start(
        world,
        &Shape {
            id: "B3",
            what: "first create of an image of 10 000 files, 500 MB, against sha256sum on all cores",
            files: 10_000,
            size: 50_000,
            most: 1.15,
            goal: "<= 1.15 x sha256sum, page cache dropped and warm",
        },
    )
}

pub fn b14(world: &World) -> Result<Value> {
    first_start(
        world,
        &Shape {
            id: "B14",
            what: "first create of an image of 20 files, 1 GB, against sha256sum on all cores",
            files: 20,
            size: 50_000_000,
            most: 1.0 / 0.85,
            goal: "at 85 % of the speed of sha256sum or more, page cache dropped and warm",
        },
    )
}

fn first_start(world: &World, shape: &Shape) -> Result<Value> {
    let mut result = json!({});
    with_files(world, shape.files, shape.size, |start, rootfs| {
        let bulk = layer_with(rootfs, "bulk")?;
        let (mut ours, mut anchor) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        let mut warm = Vec::new();
        start.time()?; // makes the cache that each cold run forgets
        for _ in 0..COLD_RUNS {
            for (at, dropped) in [true, false].into_iter().enumerate() {
                prepare(dropped, false)?;
                anchor[at].push(sha256sum(&bulk).timed()?);
                prepare(dropped, true)?;
                ours[at].push(start.time()?);
            }
            warm.push(start.time()?);
        }
        // What a start costs without reading the image is not the reading's.
        let rest = Spread::of(&warm);
        let spread = |times: &[Duration]| Spread::of(times);
        let ratio = |at: usize| spread(&ours[at]).median / spread(&anchor[at]).median;
        let (cold, cached) = (ratio(0), ratio(1));
        let names = ["page_cache_dropped_ms", "page_cache_warm_ms"];
        let side = |times: &[Vec<Duration>; 2]| json!({ names[0]: spread(&times[0]).json(), names[1]: spread(&times[1]).json() });
        println!(
            "{}: first create {:.0} / {:.0} ms (dropped / warm page cache), sha256sum {:.0} / {:.0} ms; \
             {cold:.2} x / {cached:.2} x; unchanged {:.1} ms",
            shape.id,
            spread(&ours[0]).median,
            spread(&ours[1]).median,
            spread(&anchor[0]).median,
            spread(&anchor[1]).median,
            rest.median,
        );
        let worst = cold.max(cached);
        result = json!({
            "id": shape.id, "what": shape.what, "value": round(worst), "unit": "x", "goal": shape.goal,
            "met": worst <= shape.most, "ours": side(&ours), "anchor": side(&anchor), "runs": COLD_RUNS,
        });
        Ok(())
    })?;
    Ok(result)
}

/// The page cache dropped or left, attestrun's own forgotten.
fn prepare(dropped: bool, forgotten: bool) -> Result<()> {
    if forgotten {
        forget()?;
    }
    if dropped {
        cmd!("sync").ok()?;
        fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache")?;
    }
    Ok(())
}

/// What attestrun keeps of layers in this boot.
pub fn forget() -> Result<()> {
    let entries = fs::read_dir(CACHE).context(CACHE)?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    for path in paths.collect::<Result<Vec<_>>>()? {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// One process per core.
pub fn sha256sum(directory: &Path) -> Cmd {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let script = format!("find \"$1\" -type f -print0 | xargs -0 -n 64 -P {cores} sha256sum");
    cmd!("sh", "-c", script, "sh", directory)
}
