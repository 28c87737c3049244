//! End-to-end tests: the built binaries on real engines, in namespaces of their own, as root.
//!
//! `e2e [--list] [--bench [B1 B2] [--runs N] [--json FILE]] [--slow N] [--here] [--systemd] [--tpm] [NAME-PART …]`.
//! Each module tells one story; each test is followed by the leftover checker. Exit 0: all passed, and only
//! expected skips. The last four options say what machine this is (machine.rs).
#![deny(clippy::disallowed_methods)]

mod admission; // what may not start
mod attacks; // ways around the list, and what becomes of them
mod attestation; // challenges accepted, tampering refused
mod backends; // who makes the container where nobody says
mod bad_input; // what is missing, corrupt or dies
mod bad_trees; // root file systems that cannot be read
mod bench; // B1, B2, B13
mod bench_challenges; // B9: challenges on a slow TPM
mod bench_exec; // B5 and B6: each execve inside
mod bench_fleet; // B19: a round of a simulated fleet
mod bench_list; // B15: a list of a million files
mod bench_rootfs; // B3 and B4: the rootfs read for the first time, and again
mod bench_scale; // B16 to B18: compressed layers, a million files, watched layers
mod challengers; // who may ask, and what each sees
mod conformance; // runc's own tests, and a driver on go-runc
mod containers_policy; // /etc/containers/policy.json
mod deaths; // whoever dies at whatever moment
mod devices; // which devices a container may open
mod doctor; // what a host lacks to attest
mod drop_in; // the verbs on the runtime itself: what runc does, and in runc's words
mod engines; // docker, podman, containerd (ctr and CRI)
mod enrolment; // a host's key proved by its TPM's maker
mod enter; // ways into a running container
mod explain; // what an administrator is told that the policy says
mod fills; // the signature store filled: past TLS and passwords, and killed
mod flags; // pidfds, keyrings, real-time signals
mod host; // the attested host, and its challenger
mod host_list; // the host's programs: its kernel's IMA list against the administrator's list
mod identity; // which image it is
mod image; // test images
mod impostors; // who wants to be believed
mod inside; // what processes of a container may execute
mod judges; // other people's verifiers
mod launch; // how an image is run, judged by its engine's default profile
mod layerwatch; // layers that are watched, and attacks on them
mod leftover; // what a test may not leave behind
mod limits; // limits as the kernel has them
mod lists; // signature lists: what may be one, that none goes back, both envelopes
mod machine; // what the machine of this run is like
mod matrix; // signatures of every kind, and what counts
mod memory; // what a challenger sees who remembers
mod namespace; // a machine of one's own
mod overlay; // layers merged as the kernel merges them
mod packaging; // the .deb
mod policy; // entries for what is no signed image, audit mode
mod publisher; // the owner: keys, signatures, lists
mod reboot; // a host that goes down and comes up
mod registry; // a registry on loopback
mod release; // secrets that only one container opens
mod rootfs; // the rootfs measured: not read again, never taken for unchanged, the same at start
mod runtime; // the runtime under test, bundles
mod sharing; // a cgroup with somebody in it
mod signatures; // image signatures of every kind and from every source
mod sigstore; // a Sigstore instance of the tests' own
mod spawn; // starting processes
mod statements; // what must have been stated about an image
mod stock_tools; // other people's tools on manifests and logs
mod surface; // what a process sees and may do, compared with runc
mod systemd; // a host whose first process is systemd
mod tidy; // rules about the source itself
mod vtpm; // the container's own TPM, as it sees it
mod workloads; // ordinary workloads under a list
mod world; // binaries, software root, engines, images
mod wrong_calls; // command lines, ids, places, streams: compared with runc
mod wrong_input; // bundles: compared with runc

use anyhow::{Context, Result, ensure};
use runtime::Runtime;
use std::{
    path::Path,
    process::ExitCode,
    sync::mpsc,
    time::{Duration, Instant},
};
use world::{Skip, World};

/// One test may take this long; then the namespace is ended, and with it everything.
const TEST_LIMIT: Duration = Duration::from_secs(180);
/// All tests together.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// A test: what it says by its name.
pub enum Test {
    /// On the world.
    Once(&'static str, fn(&World) -> Result<()>),
    /// On each runtime, plain runc included: a test that runc fails is a wrong test.
    Each(&'static str, fn(&World, &Runtime) -> Result<()>),
    /// On each attestrun.
    Ours(&'static str, fn(&World, &Runtime) -> Result<()>),
}

/// A story, and what must stand before its first test (and so is no leftover of it).
pub struct Module {
    pub name: &'static str,
    pub prepare: fn(&World) -> Result<()>,
    pub tests: &'static [Test],
}

const MODULES: &[Module] = &[
    tidy::MODULE,
    reboot::MODULE,    // before anybody enrols this host
    host_list::MODULE, // before anybody runs what the host's kernel is to measure
    drop_in::MODULE,
    flags::MODULE,
    sharing::MODULE,
    devices::MODULE,
    limits::MODULE,
    backends::MODULE,
    surface::MODULE,
    enter::MODULE,
    inside::MODULE,
    attacks::MODULE,
    workloads::MODULE,
    launch::MODULE,
    engines::podman::MODULE,
    engines::buildah::MODULE,
    engines::containerd::MODULE,
    engines::cri::MODULE,
    engines::docker::MODULE,
    engines::hooks::MODULE,
    engines::init::MODULE,
    engines::restarts::MODULE,
    engines::userns::MODULE,
    admission::MODULE,
    lists::MODULE,
    doctor::MODULE,
    identity::MODULE,
    signatures::MODULE,
    fills::MODULE,
    attestation::MODULE,
    judges::MODULE,
    memory::MODULE,
    challengers::MODULE,
    impostors::MODULE,
    vtpm::MODULE,
    release::MODULE,
    enrolment::MODULE,
    policy::MODULE,
    explain::MODULE,
    containers_policy::MODULE,
    statements::MODULE,
    rootfs::MODULE,
    overlay::MODULE,
    layerwatch::MODULE,
    stock_tools::MODULE,
    bad_input::MODULE,
    bad_trees::MODULE,
    wrong_input::MODULE,
    wrong_calls::MODULE,
    deaths::MODULE,
    packaging::MODULE,
    systemd::MODULE,
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        Some("--reaper") => namespace::reap(&args[1..]),
        Some("--inner") => inner(&args[1..]),
        Some("--list") => list(),
        Some("--bench") => bench::check(&args[1..]).and_then(|()| namespace::enter(&args, LIMIT)),
        Some("--conformance") => conformance::Wanted::parse(&args[1..])
            .and_then(|_| namespace::enter(&args, conformance::LIMIT)),
        _ => outer(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("e2e: {error:#}");
        ExitCode::FAILURE
    })
}

fn outer(args: &[String]) -> Result<ExitCode> {
    machine::take(args)?;
    if machine::machine().here {
        let mut inside = vec![namespace::WORK.to_owned()];
        inside.extend_from_slice(args);
        return inner(&inside);
    }
    namespace::enter(args, machine::patient(LIMIT))
}

fn list() -> Result<ExitCode> {
    for module in MODULES {
        for test in module.tests {
            let (Test::Once(name, _) | Test::Each(name, _) | Test::Ours(name, _)) = test;
            println!("{}::{name}", module.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// In the namespaces: `<work> [--bench …] [machine's options] [NAME-PART …]`.
fn inner(args: &[String]) -> Result<ExitCode> {
    let (work, rest) = args.split_first().context("work directory")?;
    let rest = machine::take(rest)?;
    // target/release/deps/e2e-… -> target/release
    let me = std::env::current_exe()?;
    let binaries = me.ancestors().nth(2).context("this program's place")?;
    let judged = rest.first().is_some_and(|a| a == "--conformance");
    let judged = judged
        .then(|| conformance::Wanted::parse(&rest[1..]))
        .transpose()?;
    let world = World::make(Path::new(work), binaries)?;
    if let Some(wanted) = judged {
        let done = conformance::run(&world, &wanted);
        world.close()?;
        return done.map(|()| ExitCode::SUCCESS);
    }
    if rest.first().is_some_and(|a| a == "--bench") {
        let done = bench::run(&world, &rest[1..]);
        world.close()?;
        return done.map(|()| ExitCode::SUCCESS);
    }
    leftover::sees_what_it_promises(&world.work)?;
    let filters: Vec<&String> = rest.iter().filter(|a| !a.starts_with('-')).collect();
    let mut run = Run {
        world: &world,
        filters,
        tally: Tally::default(),
        watchdog: watchdog(),
    };
    for module in MODULES {
        run.module(module)?;
    }
    let tally = run.tally;
    let closed = world.close();
    tally.report(closed)
}

/// What happened so far.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<(String, String)>,
    filtered: usize,
}

impl Tally {
    fn report(self, closed: Result<()>) -> Result<ExitCode> {
        if let Err(error) = &closed {
            println!("ending the daemons: {error:#}");
        }
        let expected = expected_skips()?;
        let unexpected: Vec<_> = self
            .skipped
            .iter()
            .filter(|(name, _)| !expected.iter().any(|e| name.starts_with(e)))
            .collect();
        for (name, why) in &unexpected {
            println!("not in tests/expected-skips: {name}: {why}");
        }
        for name in &self.failed {
            println!("failed: {name}");
        }
        let good =
            closed.is_ok() && self.failed.is_empty() && unexpected.is_empty() && self.passed > 0;
        let verdict = if good { "ok" } else { "FAILED" };
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped.len());
        println!(
            "\ntest result: {verdict}. {passed} passed; {failed} failed; {skipped} skipped; {} filtered out",
            self.filtered
        );
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// Names (or their beginnings) in `tests/expected-skips`, one a line, a reason after `:`.
fn expected_skips() -> Result<Vec<String>> {
    let path = Path::new(namespace::SOURCES).join("tests/expected-skips");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'));
    Ok(lines
        .map(|l| l.split(": ").next().unwrap_or(l).to_owned())
        .collect())
}

struct Run<'a> {
    world: &'a World,
    filters: Vec<&'a String>,
    tally: Tally,
    watchdog: mpsc::Sender<Option<String>>,
}

impl Run<'_> {
    fn module(&mut self, module: &Module) -> Result<()> {
        let world = self.world;
        let mut tests: Vec<(String, Option<Runtime>, &Test)> = Vec::new();
        for test in module.tests {
            match test {
                Test::Once(name, _) => tests.push((format!("{}::{name}", module.name), None, test)),
                Test::Each(name, _) | Test::Ours(name, _) => {
                    for runtime in world.runtimes() {
                        if runtime.backend.is_some() || matches!(test, Test::Each(..)) {
                            tests.push((
                                format!("{}::{name}::{}", module.name, runtime.name),
                                Some(runtime),
                                test,
                            ));
                        }
                    }
                }
            }
        }
        let all = tests.len();
        tests.retain(|(name, ..)| {
            self.filters.is_empty() || self.filters.iter().any(|f| name.contains(f.as_str()))
        });
        self.tally.filtered += all - tests.len();
        if tests.is_empty() {
            return Ok(());
        }
        if let Err(error) = (module.prepare)(world) {
            println!(
                "test {}::prepare ... FAILED\n    {error:#}\n{}",
                module.name,
                world.logs()
            );
            self.tally.failed.push(format!(
                "{}::prepare (and its {} tests)",
                module.name,
                tests.len()
            ));
            return Ok(());
        }
        for (name, runtime, test) in tests {
            self.one(
                &name,
                || match (test, &runtime) {
                    (Test::Once(_, run), _) => run(world),
                    (Test::Each(_, run) | Test::Ours(_, run), Some(runtime)) => run(world, runtime),
                    (Test::Each(..) | Test::Ours(..), None) => Ok(()),
                },
                runtime.as_ref(),
            )?;
        }
        Ok(())
    }

    fn one(
        &mut self,
        name: &str,
        test: impl Fn() -> Result<()>,
        runtime: Option<&Runtime>,
    ) -> Result<()> {
        let since = Instant::now();
        self.watchdog.send(Some(name.to_owned()))?;
        let done = self.world.select(runtime).and_then(|()| {
            let before = self.world.snapshot()?;
            test()?;
            let left = self.world.left_since(&before)?;
            ensure!(
                left.is_empty(),
                "left behind:\n      {}",
                left.join("\n      ")
            );
            Ok(())
        });
        self.watchdog.send(None)?;
        let took = since.elapsed().as_millis();
        match done {
            Ok(()) => {
                println!("test {name} ... ok ({took} ms)");
                self.tally.passed += 1;
            }
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(Skip(why)) => {
                    println!("test {name} ... skipped: {why}");
                    self.tally.skipped.push((name.to_owned(), why.clone()));
                }
                None => {
                    println!(
                        "test {name} ... FAILED ({took} ms)\n    {error:#}\n{}",
                        self.world.logs()
                    );
                    self.tally.failed.push(name.to_owned());
                    self.world.sweep();
                }
            },
        }
        Ok(())
    }
}

/// Ends this program, and with it the namespace, when a test is late: a hang must not hang the run.
fn watchdog() -> mpsc::Sender<Option<String>> {
    let (sender, receiver) = mpsc::channel::<Option<String>>();
    std::thread::spawn(move || {
        let mut current = None;
        loop {
            match receiver.recv_timeout(machine::patient(TEST_LIMIT)) {
                Ok(next) => current = next,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Some(name) = &current {
                        println!(
                            "test {name} ... FAILED (no end within {} s; the run ends here)",
                            machine::patient(TEST_LIMIT).as_secs()
                        );
                        println!("\ntest result: FAILED. the watchdog ended the run");
                        std::process::exit(1);
                    }
                }
            }
        }
    });
    sender
}
