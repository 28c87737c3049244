//! B5 and B6: what judging adds to each execve inside a container, beside the same container under runc: a
//! program of the image that has run before, recorded once or each time, and one that was changed, which is read again each time.

use crate::{
    bench::{Spread, round},
    host::POLICY,
    policy::under,
    runtime::{Backend, Bundle, Runtime},
    world::{Rootfs, World},
};
use anyhow::{Context, Result};
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
    runtime: Runtime,
    /// Per execve.
    known: Vec<Duration>,
    changed: Vec<Duration>,
}

pub fn b5(world: &World, runs: usize) -> Result<[Value; 3]> {
    let attestrun = world.program("attestrun")?;
    let ours = || Runtime::attestrun(&attestrun, Backend::Libcontainer);
    let runtimes = [Runtime::runc(), ours(), ours()];
    let first = fs::read_to_string(POLICY)?;
    let tier = "min_tier = \"none\"";
    let every = first.replace(tier, &format!("{tier}\nexec_log = \"every\""));
    let mut sides = runtimes.map(Side::new);
    let mut hashes = Vec::new();
    world.with_rootfs(&world.images()?.demo, |rootfs| {
        // a file that changed within the last second might change again within the same tick of the clock
        thread::sleep(Duration::from_millis(1500));
        let program = fs::read(rootfs.path.join("bin/busybox"))?;
        for round in 0..runs {
            for (side, policy) in sides.iter_mut().zip([&first, &first, &every]) {
                under(policy, || side.round(world, rootfs)).with_context(|| format!("{round}"))?;
            }
        }
        for _ in 0..runs {
            let since = Instant::now();
            std::hint::black_box(Sha256::digest(&program));
            hashes.push(since.elapsed());
        }
        Ok(())
    })?;
    let [runc, ours, every] = &sides;
    let micros = |times: &[Duration]| Spread::of(times).median * 1e3;
    let added = |side: &Side| micros(&side.known) - micros(&runc.known);
    let (known, recorded) = (added(ours), added(every));
    let changed = micros(&ours.changed) - micros(&runc.changed);
    let goal = 1.1 * micros(&hashes) + 200.0;
    Ok([
        json!({
            "id": "B5", "what": "added to an execve of a program that was judged before (tier fanotify)",
            "value": round(known), "unit": "us", "goal": "<= 1 us", "met": known <= 1.0, "runs": runs,
            "ours": ours.json(), "anchor": runc.json(),
        }),
        json!({
            "id": "B5", "what": "the same, and each is recorded (exec_log = every)",
            "value": round(recorded), "unit": "us", "goal": "none", "met": true, "runs": runs,
            "ours": every.json(), "anchor": runc.json(),
        }),
        json!({
            "id": "B6", "what": "added to an execve of a program that is read (tier fanotify)",
            "value": round(changed), "unit": "us", "goal": format!("<= 1.1 x sha256 + 200 = {goal:.0} us"),
            "met": changed <= goal, "runs": runs, "ours": ours.json(), "anchor": runc.json(),
        }),
    ])
}

impl Side {
    fn new(runtime: Runtime) -> Self {
        Self {
            runtime,
            known: Vec::new(),
            changed: Vec::new(),
        }
    }

    /// One container's life: interleaved with the other sides', since machines are busy.
    fn round(&mut self, world: &World, rootfs: &Rootfs) -> Result<()> {
        let runtime = &self.runtime;
        world.select(Some(runtime))?;
        let mut bundle = Bundle::make(&world.work, rootfs, &["/bin/sleep", "1000"])?;
        bundle.set("/root/readonly", json!(false))?;
        runtime.up(&bundle)?;
        let run = |script: &str| {
            let exec = runtime.cmd("exec").arg(&bundle.id);
            exec.args(["/bin/sh", "-c", script]).ok()
        };
        let each = |program: &str| -> Result<Duration> {
            let since = Instant::now();
            run(&format!(
                "i=0; while test $i -lt {EXECS}; do i=$((i+1)); {program}; done"
            ))?;
            Ok(since.elapsed() / EXECS)
        };
        run(&format!(
            "/bin/cat /bin/busybox > {CHANGED}; /bin/chmod 755 {CHANGED}; {CHANGED}; /bin/true"
        ))?;
        self.known.push(each("/bin/true")?);
        self.changed.push(each(CHANGED)?);
        runtime.cmd("delete").args(["--force", &bundle.id]).ok()?;
        fs::remove_file(rootfs.path.join(&CHANGED[1..]))?;
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "name": self.runtime.name,
            "known_ms": Spread::of(&self.known).json(),
            "changed_ms": Spread::of(&self.changed).json(),
        })
    }
}
