//! B5 and B6: what judging adds to each execve inside a container, beside the same container under runc: a
//! program of the image that has run before, and one that was changed, which is read again each time.

use crate::{
    bench::{Spread, round},
    runtime::{Backend, Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs, thread,
    time::{Duration, Instant},
};

const EXECS: u32 = 200;
/// Copied into the container's own layer once it runs.
const CHANGED: &str = "/root/true";

struct Side {
    name: &'static str,
    /// Per execve.
    known: Vec<Duration>,
    changed: Vec<Duration>,
}

pub fn b5(world: &World, runs: usize) -> Result<[Value; 2]> {
    let attestrun = world.program("attestrun")?;
    let runtimes = [
        Runtime::runc(),
        Runtime::attestrun(&attestrun, Backend::Libcontainer),
    ];
    let mut sides = Vec::new();
    let mut hashes = Vec::new();
    world.with_rootfs(&world.images()?.demo, |rootfs| {
        // a file that changed within the last second might change again within the same tick of the clock
        thread::sleep(Duration::from_millis(1500));
        let program = fs::read(rootfs.path.join("bin/busybox"))?;
        for runtime in &runtimes {
            sides.push(Side::measure(world, runtime, rootfs, runs)?);
        }
        for _ in 0..runs {
            let since = Instant::now();
            std::hint::black_box(Sha256::digest(&program));
            hashes.push(since.elapsed());
        }
        Ok(())
    })?;
    let [runc, ours] = &sides[..] else {
        bail!("two sides")
    };
    let micros = |times: &[Duration]| Spread::of(times).median * 1e3;
    let known = micros(&ours.known) - micros(&runc.known);
    let changed = micros(&ours.changed) - micros(&runc.changed);
    let goal = 1.1 * micros(&hashes) + 200.0;
    Ok([
        json!({
            "id": "B5", "what": "added to an execve of a program that was judged before (tier fanotify)",
            "value": round(known), "unit": "us", "goal": "<= 1 us", "met": known <= 1.0, "runs": runs,
            "ours": ours.json(), "anchor": runc.json(),
        }),
        json!({
            "id": "B6", "what": "added to an execve of a program that is read (tier fanotify)",
            "value": round(changed), "unit": "us", "goal": format!("<= 1.1 x sha256 + 200 = {goal:.0} us"),
            "met": changed <= goal, "runs": runs, "ours": ours.json(), "anchor": runc.json(),
        }),
    ])
}

impl Side {
    fn measure(
        world: &World,
        runtime: &Runtime,
        rootfs: &crate::world::Rootfs,
        runs: usize,
    ) -> Result<Self> {
        world.select(Some(runtime))?;
        let mut bundle = Bundle::make(&world.work, rootfs, &["/bin/sleep", "1000"])?;
        bundle.set("/root/readonly", json!(false))?;
        runtime.up(&bundle)?;
        let run = |script: String| {
            let exec = runtime.cmd("exec").arg(&bundle.id);
            exec.args(["/bin/sh", "-c", &script]).ok()
        };
        let each = |program: &str| -> Result<Duration> {
            let script = format!("i=0; while test $i -lt {EXECS}; do i=$((i+1)); {program}; done");
            let since = Instant::now();
            run(script)?;
            Ok(since.elapsed() / EXECS)
        };
        run(format!(
            "/bin/cat /bin/busybox > {CHANGED}; /bin/chmod 755 {CHANGED}"
        ))?;
        let mut side = Self {
            name: runtime.name,
            known: Vec::new(),
            changed: Vec::new(),
        };
        for _ in 0..runs {
            side.known.push(each("/bin/true")?);
            side.changed.push(each(CHANGED)?);
        }
        runtime
            .cmd("delete")
            .args(["--force", &bundle.id])
            .ok()
            .context("delete")?;
        fs::remove_file(rootfs.path.join(&CHANGED[1..]))?;
        Ok(side)
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "known_ms": Spread::of(&self.known).json(),
            "changed_ms": Spread::of(&self.changed).json(),
        })
    }
}
