//! Benchmarks B1 and B2: an attested start beside plain runc's, interleaved in one run; B13: how long it
//! takes to know an image and decide about it. B3 to B6, B9 and B14 to B18 are next door.
//!
//! `bench [B1 B2 …] [--json FILE] [--runs N]`; no id means all. Times are wall clock; absolute ones
//! are printed and never judged, since machines differ: the goals are about ratios and differences.

use crate::{
    bench_challenges, bench_exec, bench_fleet, bench_list, bench_rootfs, bench_scale, cmd,
    runtime::{Backend, Bundle, Runtime},
    world::World,
};
use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

const IDS: [&str; 14] = [
    "B1", "B2", "B3", "B4", "B5", "B6", "B9", "B13", "B14", "B15", "B16", "B17", "B18", "B19",
];
const RUNS: usize = 40;
const WARM_UP: usize = 3;
const STEPS: [&str; 4] = ["create", "start", "exit", "delete"];

struct Wanted {
    ids: Vec<String>,
    json: Option<PathBuf>,
    runs: usize,
}

impl Wanted {
    fn parse(args: &[String]) -> Result<Self> {
        let mut wanted = Self {
            ids: Vec::new(),
            json: None,
            runs: RUNS,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--json" => wanted.json = Some(args.next().context("--json needs a file")?.into()),
                "--runs" => wanted.runs = args.next().context("--runs needs a number")?.parse()?,
                id if IDS.contains(&id) => wanted.ids.push(id.to_owned()),
                other => bail!("no benchmark {other}; there are {}", IDS.join(" ")),
            }
        }
        if wanted.ids.is_empty() {
            wanted.ids = IDS.map(str::to_owned).to_vec();
        }
        ensure!(wanted.runs >= 3, "--runs: three or more");
        Ok(wanted)
    }
    fn has(&self, id: &str) -> bool {
        self.ids.iter().any(|i| i == id)
    }
}

/// What `bench` is asked for, checked before a namespace is made for it.
pub fn check(args: &[String]) -> Result<()> {
    Wanted::parse(args).map(|_| ())
}

pub fn run(world: &World, args: &[String]) -> Result<()> {
    let wanted = Wanted::parse(args)?;
    world.open_for_business()?;
    let mut results = Vec::new();
    if ["B1", "B2", "B13"].iter().any(|id| wanted.has(id)) {
        results.extend(starts(world, &wanted)?);
    }
    if wanted.has("B3") {
        results.push(bench_rootfs::b3(world)?);
    }
    if wanted.has("B14") {
        results.push(bench_rootfs::b14(world)?);
    }
    if wanted.has("B4") {
        results.push(bench_rootfs::b4(world, wanted.runs)?);
    }
    if wanted.has("B5") || wanted.has("B6") {
        results.extend(bench_exec::b5(world, wanted.runs)?);
    }
    if wanted.has("B15") {
        results.push(bench_list::b15(world, wanted.runs)?);
    }
    if wanted.has("B16") {
        results.push(bench_scale::b16(world)?);
    }
    if wanted.has("B17") {
        results.push(bench_scale::b17(world)?);
    }
    if wanted.has("B18") {
        results.push(bench_scale::b18(world, wanted.runs)?);
    }
    if wanted.has("B19") {
        results.push(bench_fleet::b19(world)?);
    }
    // Last: it puts another TPM in the host's.
    if wanted.has("B9") {
        results.push(bench_challenges::b9(world)?);
    }
    report(&results, wanted.json)
}

/// Starts of the demo image.
fn starts(world: &World, wanted: &Wanted) -> Result<Vec<Value>> {
    let attestrun = world.program("attestrun")?;
    let mut sides = vec![Side::new(Runtime::runc())];
    if wanted.has("B1") {
        sides.push(Side::new(Runtime::attestrun(
            &attestrun,
            Backend::Libcontainer,
        )));
    }
    if wanted.has("B2") {
        sides.push(Side::new(Runtime::attestrun(&attestrun, Backend::Runc)));
    }
    let mut docker = Vec::new();
    let bundle = Bundle::make(&world.work, &world.rootfs(0)?, &["/bin/true"])?;
    println!(
        "{} runs of each side, interleaved; create, start, exit, delete of /bin/true on {}",
        wanted.runs,
        machine()
    );
    for round in 0..WARM_UP + wanted.runs {
        // The order turns, so that no side always follows the same other one.
        let shift = round % sides.len();
        sides.rotate_left(shift);
        for side in &mut sides {
            world.select(Some(&side.runtime))?;
            let times = cycle(&side.runtime, &bundle).with_context(|| side.runtime.name)?;
            if round >= WARM_UP {
                side.times.push(times);
            }
        }
        sides.rotate_right(shift);
        if wanted.has("B2") && round >= WARM_UP && round % 4 == 0 {
            docker.push(docker_run(world)?);
        }
    }
    let identity = match wanted.has("B13") {
        true => Some(b13(world, &attestrun, wanted.runs)?),
        false => None,
    };
    let [runc, ours @ ..] = &sides[..] else {
        bail!("no side ran")
    };
    let mut results = Vec::new();
    for side in ours {
        results.push(match side.runtime.backend {
            Some(Backend::Libcontainer) => b1(side, runc),
            _ => b2(side, runc, &Spread::of(&docker)),
        });
    }
    results.extend(identity);
    table(&sides, &docker);
    Ok(results)
}

fn report(results: &[Value], json: Option<PathBuf>) -> Result<()> {
    for result in results {
        println!(
            "{}  {}: {} {} (goal {}; {})",
            result["id"].as_str().unwrap_or_default(),
            result["what"].as_str().unwrap_or_default(),
            result["value"],
            result["unit"].as_str().unwrap_or_default(),
            result["goal"].as_str().unwrap_or_default(),
            if result["met"] == true {
                "met"
            } else {
                "missed"
            },
        );
    }
    if let Some(path) = json {
        // Relative to the project: where the caller stood is not known in here.
        let path = PathBuf::from(crate::namespace::SOURCES).join(path);
        fs::write(&path, serde_json::to_vec_pretty(&results)?)
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn b1(ours: &Side, runc: &Side) -> Value {
    let (o, r) = (ours.total(), runc.total());
    let ratio = o.median / r.median;
    json!({
        "id": "B1", "what": "attested create+start+exit+delete, embedded backend, against plain runc",
        "value": round(ratio), "unit": "x", "goal": "<= 1.0 x runc", "met": ratio <= 1.0,
        "ours": ours.json(), "anchor": runc.json(), "runs": ours.times.len(),
    })
}

fn b2(ours: &Side, runc: &Side, docker: &Spread) -> Value {
    let (o, r) = (ours.total(), runc.total());
    let (cost, share) = (
        o.median - r.median,
        (o.median - r.median) / docker.median * 100.0,
    );
    let mut anchor = runc.json();
    anchor["docker_run_ms"] = docker.json();
    anchor["share_of_docker_run_percent"] = json!(round(share));
    json!({
        "id": "B2", "what": "what attesting adds with runc as backend, against plain runc",
        "value": round(cost), "unit": "ms",
        "goal": "<= 10 ms, and <= 3 % of docker run's wall time", "met": cost <= 10.0 && share <= 3.0,
        "ours": ours.json(), "anchor": anchor, "runs": ours.times.len(),
    })
}

/// What the guard itself says that identity, signature, list and policy took, per engine's store.
fn b13(world: &World, attestrun: &std::path::Path, runs: usize) -> Result<Value> {
    let runtime = Runtime::attestrun(attestrun, Backend::Libcontainer);
    world.select(Some(&runtime))?;
    let bundle = Bundle::make(&world.work, &world.rootfs(0)?, &["/bin/sleep", "1000"])?;
    let demo = world.images()?.demo.name.clone();
    let took = || -> Result<[Duration; 2]> {
        let found = cmd!(
            "find",
            "/run/attestrun/containers",
            "-name",
            "decision.json"
        )
        .ok()?;
        let file = found.stdout.lines().next().context("no decision.json")?;
        let decision: Value = serde_json::from_slice(&fs::read(file)?)?;
        let part = |name: &str| decision["took_us"][name].as_u64().context("took_us");
        let [identity, decision] = ["identity", "decision"].map(part);
        Ok([identity?, decision?].map(Duration::from_micros))
    };
    let (mut podman, mut containerd) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + runs {
        runtime.create(&bundle).ok()?;
        let of_podman = took();
        runtime.cmd("delete").arg("--force").arg(&bundle.id).ok()?;
        let run = world.ctr()?.args(["run", "-d", "--runc-binary"]);
        let run = run.arg(attestrun).arg(&demo);
        run.args(["e2e-b13", "/bin/sleep", "1000"]).ok()?;
        let of_containerd = took();
        world
            .ctr()?
            .args(["task", "rm", "--force", "e2e-b13"])
            .ok()?;
        world.ctr()?.args(["container", "rm", "e2e-b13"]).ok()?;
        if round >= WARM_UP {
            podman.push(of_podman?);
            containerd.push(of_containerd?);
        }
    }
    let sums = |times: &[[Duration; 2]]| {
        Spread::of(&times.iter().map(|t| t.iter().sum()).collect::<Vec<_>>())
    };
    let identities =
        |times: &[[Duration; 2]]| Spread::of(&times.iter().map(|t| t[0]).collect::<Vec<_>>());
    let value = sums(&podman).median.max(sums(&containerd).median);
    Ok(json!({
        "id": "B13", "what": "identity, signature, list and policy of an image seen before, the slower store",
        "value": round(value), "unit": "ms", "goal": "<= 4 ms", "met": value <= 4.0, "runs": runs,
        "ours": {
            "podman_ms": sums(&podman).json(), "podman_identity_ms": identities(&podman).json(),
            "containerd_ms": sums(&containerd).json(), "containerd_identity_ms": identities(&containerd).json(),
        },
        "anchor": {},
    }))
}

/// One runtime's measurements.
struct Side {
    runtime: Runtime,
    times: Vec<[Duration; STEPS.len()]>,
}

impl Side {
    fn new(runtime: Runtime) -> Self {
        Self {
            runtime,
            times: Vec::new(),
        }
    }
    fn total(&self) -> Spread {
        Spread::of(
            &self
                .times
                .iter()
                .map(|t| t.iter().sum())
                .collect::<Vec<_>>(),
        )
    }
    fn step(&self, n: usize) -> Spread {
        Spread::of(&self.times.iter().map(|t| t[n]).collect::<Vec<_>>())
    }
    fn json(&self) -> Value {
        let mut all = json!({ "name": self.runtime.name, "total_ms": self.total().json() });
        for (n, step) in STEPS.iter().enumerate() {
            all[format!("{step}_ms")] = self.step(n).json();
        }
        all
    }
}

/// In milliseconds.
pub struct Spread {
    min: f64,
    pub median: f64,
    p90: f64,
}

impl Spread {
    pub fn of(times: &[Duration]) -> Self {
        let mut ms: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let at = |share: f64| {
            ms.get((ms.len().saturating_sub(1) as f64 * share).round() as usize)
                .copied()
        };
        let at = |share| at(share).unwrap_or(f64::NAN);
        Self {
            min: at(0.0),
            median: at(0.5),
            p90: at(0.9),
        }
    }
    pub fn json(&self) -> Value {
        json!({ "min": round(self.min), "median": round(self.median), "p90": round(self.p90) })
    }
}

pub fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// One container's life, each step timed from its call to its end.
fn cycle(runtime: &Runtime, bundle: &Bundle) -> Result<[Duration; STEPS.len()]> {
    let pid_file = bundle.dir.join("pid");
    let create = runtime
        .cmd("create")
        .arg("--bundle")
        .arg(&bundle.dir)
        .arg("--pid-file")
        .arg(&pid_file);
    let created = create.arg(&bundle.id).timed()?;
    let pid: i32 = fs::read_to_string(&pid_file)?.parse()?;
    let init = pidfd_open(Pid::from_raw(pid).context("pid")?, PidfdFlags::empty())?;
    let started = runtime.on("start", bundle).timed()?;
    let since = Instant::now();
    poll(&mut [PollFd::new(&init, PollFlags::IN)], None)?;
    let exited = since.elapsed();
    let deleted = runtime.on("delete", bundle).timed()?;
    Ok([created, started, exited, deleted])
}

fn docker_run(world: &World) -> Result<Duration> {
    let image = &world.images()?.demo.name;
    world
        .docker()?
        .args([
            "run",
            "--rm",
            "--network=none",
            "--runtime=e2e-runc",
            image,
            "/bin/true",
        ])
        .timed()
}

fn table(sides: &[Side], docker: &[Duration]) {
    println!("\nmedian ms (min, p90)");
    print!("{:<16}", "");
    for step in STEPS.iter().chain(&["total"]) {
        print!("{step:>24}");
    }
    println!("{:>10}", "ratio");
    let anchor = sides[0].total().median;
    for side in sides {
        print!("{:<16}", side.runtime.name);
        for spread in (0..STEPS.len()).map(|n| side.step(n)).chain([side.total()]) {
            print!(
                "{:>24}",
                format!(
                    "{:.1} ({:.1}, {:.1})",
                    spread.median, spread.min, spread.p90
                )
            );
        }
        println!("{:>10.2}", side.total().median / anchor);
    }
    if !docker.is_empty() {
        let spread = Spread::of(docker);
        println!(
            "docker run --rm with plain runc: {:.0} ({:.0}, {:.0})",
            spread.median, spread.min, spread.p90
        );
    }
    println!();
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or("");
    let cores = info.lines().filter(|l| l.starts_with("processor")).count();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let kernel = cmd!("uname", "-r")
        .ok()
        .map(|o| o.stdout)
        .unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    format!(
        "{cores} x{}, Linux {}, load {load}",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim()
    )
}
