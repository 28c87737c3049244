//! Other people's judges: runc's own integration tests and a driver on the go-runc library, on plain
//! runc, which says what is right on this machine, and on attestrun with each backend.
//!
//! `--conformance PREPARED [--on RUNTIME] [NAME-PART …]`; `tests/conformance` prepares and calls it.

use crate::{
    admission::restoring,
    cmd,
    host::POLICY,
    namespace::{self, SOURCES},
    runtime::{Bundle, ROOTS, Runtime},
    world::World,
};
use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::symlink},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

/// All of it together.
pub const LIMIT: Duration = Duration::from_secs(90 * 60);
/// One file of tests.
const FILE_LIMIT: Duration = Duration::from_secs(15 * 60);
/// The embedded backend must pass at least as many of runc's own tests.
const AT_LEAST: usize = 135;

pub struct Wanted {
    /// Opened before anything is mounted over its place.
    prepared: File,
    on: Option<String>,
    names: Vec<String>,
}

impl Wanted {
    pub fn parse(args: &[String]) -> Result<Self> {
        let (prepared, rest) = args
            .split_first()
            .context("--conformance needs what tests/conformance prepares")?;
        let mut wanted = Self {
            prepared: File::open(prepared).with_context(|| prepared.clone())?,
            on: None,
            names: Vec::new(),
        };
        let mut rest = rest.iter();
        while let Some(arg) = rest.next() {
            match arg.as_str() {
                "--on" => wanted.on = Some(rest.next().context("--on needs a runtime")?.clone()),
                name if name.starts_with('-') => bail!("unknown option {name}"),
                name => wanted.names.push(name.to_owned()),
            }
        }
        Ok(wanted)
    }
    fn has(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|n| name.contains(n.as_str()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// What one runtime's tests came to, by file and name.
#[derive(Default)]
struct Results(BTreeMap<Name, Verdict>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    file: String,
    test: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} | {}", self.file, self.test)
    }
}

impl Results {
    fn count(&self, verdict: Verdict) -> usize {
        self.0.values().filter(|v| **v == verdict).count()
    }

    fn counts(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.count(Verdict::Passed),
            self.count(Verdict::Failed),
            self.count(Verdict::Skipped)
        )
    }
}

/// Ends well when every runtime did what it should.
pub fn run(world: &World, wanted: &Wanted) -> Result<()> {
    let judges = world.work.join("judges");
    fs::create_dir_all(&judges)?;
    namespace::bind(
        Path::new(&format!("/proc/self/fd/{}", wanted.prepared.as_raw_fd())),
        &judges,
    )?;
    // cgroup v1 gives a new cgroup no real-time; ours is the machine that one test wants to divide
    let real_time = Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us");
    if real_time.exists() {
        let _ = fs::write(real_time, "900000"); // without it that test fails on every runtime alike
    }
    let mut complaints = Vec::new();
    let mut all: BTreeMap<&str, Results> = BTreeMap::new();
    for runtime in world.runtimes() {
        if wanted.on.as_ref().is_some_and(|on| on != runtime.name) {
            continue;
        }
        world.select(Some(&runtime))?;
        if wanted.has("go-runc") {
            complaints.extend(go_runc(world, &judges, &runtime)?);
        }
        let mut results = Results::default();
        if runtime.backend.is_none() {
            results = bats(world, &judges, &runtime, wanted)?;
        } else {
            restoring(POLICY, || {
                fs::write(POLICY, bundles_policy(&judges)?)?;
                results = bats(world, &judges, &runtime, wanted)?;
                Ok(())
            })?;
        }
        println!("{}: runc's own tests: {}", runtime.name, results.counts());
        all.insert(runtime.name, results);
    }
    complaints.extend(judge(&all, wanted)?);
    for complaint in &complaints {
        println!("{complaint}");
    }
    ensure!(complaints.is_empty(), "{} complaints", complaints.len());
    Ok(())
}

/// Plain runc decides what this machine can do; others may differ where the checked-in list says why.
fn judge(all: &BTreeMap<&str, Results>, wanted: &Wanted) -> Result<Vec<String>> {
    let expected = expected_failures()?;
    let mut complaints = Vec::new();
    let Some(plain) = all.get("runc") else {
        return Ok(complaints);
    };
    for (runtime, ours) in all.iter().filter(|(name, _)| **name != "runc") {
        for (name, verdict) in &ours.0 {
            let known = expected.contains(&(runtime.to_string(), name.clone()));
            match (verdict, plain.0.get(name)) {
                (Verdict::Failed, Some(Verdict::Passed)) if known => {}
                (Verdict::Passed, _) if known => {
                    complaints.push(format!("{runtime}: {name}: passes, and is in {EXPECTED}"));
                }
                (ours, Some(plain)) if ours == plain => {}
                (ours, plain) => {
                    complaints.push(format!(
                        "{runtime}: {name}: {ours:?}, plain runc: {plain:?}"
                    ));
                }
            }
        }
        for (_, name) in expected.iter().filter(|(of, _)| of == runtime) {
            if wanted.names.is_empty() && !ours.0.contains_key(name) {
                complaints.push(format!("{EXPECTED}: there is no test {name}"));
            }
        }
        let passed = ours.count(Verdict::Passed);
        if *runtime == "attestrun" && wanted.names.is_empty() && passed < AT_LEAST {
            complaints.push(format!("{runtime}: {passed} passed, {AT_LEAST} are to"));
        }
    }
    Ok(complaints)
}

const EXPECTED: &str = "tests/conformance.expected";

/// Lines `runtime | file | test | why`.
fn expected_failures() -> Result<Vec<(String, Name)>> {
    let path = Path::new(SOURCES).join(EXPECTED);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines = text
        .lines()
        .filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    lines
        .map(
            |line| match line.split(" | ").collect::<Vec<_>>().as_slice() {
                [runtime, file, test, why] if !why.trim().is_empty() => Ok((
                    (*runtime).to_owned(),
                    Name {
                        file: (*file).to_owned(),
                        test: (*test).to_owned(),
                    },
                )),
                _ => bail!("{EXPECTED}: `{line}` is not `runtime | file | test | why`"),
            },
        )
        .collect()
}

/// runc's tests on `runtime`, file by file; what they said is kept.
fn bats(world: &World, judges: &Path, runtime: &Runtime, wanted: &Wanted) -> Result<Results> {
    let tests = judges.join("runc/tests/integration");
    let said = judges.join("results").join(runtime.name);
    fs::create_dir_all(&said)?;
    let mut files: Vec<PathBuf> = fs::read_dir(&tests)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "bats"));
    files.sort();
    // as a runtime is installed in runc's place: the usage text has the name that it was called by
    let called = world.work.join("called").join(runtime.name).join("runc");
    fs::create_dir_all(called.parent().context("directory")?)?;
    if fs::symlink_metadata(&called).is_err() {
        symlink(&runtime.path, &called)?;
    }
    let mut results = Results::default();
    for path in files {
        let file = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !wanted.has(&file) {
            continue;
        }
        let before = world.snapshot()?;
        let mut of_file = bats_file(&path, &file, &called, None, &said)?;
        for (name, verdict) in &mut of_file.0 {
            if *verdict != Verdict::Failed {
                continue;
            }
            // the tests have races of their own on a busy machine: what counts is a second attempt alone
            let again = bats_file(&path, &file, &called, Some(&name.test), &said)?;
            *verdict = *again
                .0
                .get(name)
                .with_context(|| format!("{name} was not repeated"))?;
            println!("    {}: failed, repeated: {verdict:?}", name.test);
        }
        println!("{}: {file}: {}", runtime.name, of_file.counts());
        for left in world.left_since(&before)? {
            println!("    left behind: {left}");
        }
        results.0.extend(of_file.0);
    }
    Ok(results)
}

/// All tests of a file, or one by its name.
fn bats_file(
    path: &Path,
    file: &str,
    runtime: &Path,
    only: Option<&str>,
    said: &Path,
) -> Result<Results> {
    let mut command = format!("bats --tap {}", path.display());
    if let Some(test) = only {
        let literal: String = test
            .chars()
            .map(|c| {
                if c.is_alphanumeric() || c == ' ' {
                    c
                } else {
                    '.'
                }
            })
            .collect();
        command += &format!(" --filter '^{literal}$'");
    }
    // a terminal of its own: some tests look at the one they are started from
    let mut running = cmd!("env", format!("RUNC={}", runtime.display()), "script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .start()?;
    let since = Instant::now();
    while running.is_running()? && since.elapsed() < FILE_LIMIT {
        sleep(Duration::from_millis(200));
        // a test that fails may leave its terminal server behind, and bats waits for that one's end
        if verdicts(file, &running.written().replace('\r', "")).is_ok() {
            sleep(Duration::from_secs(2));
            end_all_of("recvtty")?;
        }
    }
    let output = running.finish(FILE_LIMIT)?;
    let text = output.stdout.replace('\r', "");
    let name = if only.is_some() { "again" } else { "tap" };
    fs::write(said.join(file).with_extension(name), &text)?;
    verdicts(file, &text).with_context(|| format!("{output}"))
}

/// Ends every process of this program: in this pid namespace there are only ours.
fn end_all_of(program: &str) -> Result<()> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let pid = entry.file_name().to_string_lossy().parse::<i32>();
        if let (true, Ok(pid)) = (exe.ends_with(program), pid) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
    Ok(())
}

/// From TAP (Test Anything Protocol): `ok N name`, `not ok N name`, `ok N name # skip why`.
fn verdicts(file: &str, tap: &str) -> Result<Results> {
    let plan = tap
        .lines()
        .find_map(|l| l.strip_prefix("1..")?.parse::<usize>().ok());
    let mut results = Results::default();
    for line in tap.lines() {
        let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let (_, test) = rest.split_once(' ').with_context(|| line.to_owned())?;
        let (test, skipped) = test
            .split_once(" # skip")
            .map_or((test, false), |(t, _)| (t, true));
        let verdict = match (passed, skipped) {
            (true, true) => Verdict::Skipped,
            (true, false) => Verdict::Passed,
            (false, _) => Verdict::Failed,
        };
        let mut name = Name {
            file: file.to_owned(),
            test: test.trim().to_owned(),
        };
        while results.0.contains_key(&name) {
            name.test.push_str(" (again)"); // two tests of one file have one name
        }
        results.0.insert(name, verdict);
    }
    ensure!(
        plan == Some(results.0.len()),
        "{} of {plan:?} tests reported",
        results.0.len()
    );
    Ok(results)
}

/// The driver on the go-runc library, with the signed demo image.
fn go_runc(world: &World, judges: &Path, runtime: &Runtime) -> Result<Vec<String>> {
    let rootfs = world.rootfs(0)?;
    world.note(&rootfs.id);
    let bundle = Bundle::make(&world.work, &rootfs, &["/bin/sleep", "1000"])?;
    let before = world.snapshot()?;
    let output = cmd!(judges.join("go-runc"), &runtime.path)
        .arg(Path::new(ROOTS).join(runtime.name))
        .arg(&bundle.dir)
        .arg(&bundle.id)
        .limit(Duration::from_secs(180))
        .output()?;
    print!("{}", output.stdout);
    let mut complaints = Vec::new();
    if !output.status.success() {
        complaints.push(format!("{}: go-runc: {output}", runtime.name));
    }
    let left = world.left_since(&before)?;
    complaints.extend(
        left.iter()
            .map(|l| format!("{}: go-runc left behind: {l}", runtime.name)),
    );
    Ok(complaints)
}

/// Admits the tests' unsigned bundles; evidence names the relaxations, and a challenger has to waive
/// "no-image" and "any-program".
fn bundles_policy(judges: &Path) -> Result<String> {
    let name = |kind: &str, program: &Path| -> Result<String> {
        let content = fs::read(program).with_context(|| program.display().to_string())?;
        Ok(format!("{kind}:{}", crate::image::digest(&content)))
    };
    let library = |name| format!("hook-mount:/usr/lib/librunc-hooks-{name}.so.1.0.0");
    let allow = [
        library("create-runtime"),
        library("create-container"),
        name("hook", Path::new("/bin/sh"))?,
        name("start-hook", &judges.join("busybox/bin/busybox"))?,
        name("start-hook", &judges.join("debian/usr/bin/dash"))?,
        // the tests are about these
        "cap:*".into(),
        "device:*".into(),
        "mount:*".into(),
        "namespace:*".into(),
        "shown:*".into(),
        "writable:*".into(),
    ];
    Ok(format!(
        "version = 1\nmode = \"enforce\"\n\n[[bundle]]\nname = \"runc-tests\"\nrootfs = \"/tmp\"\n\
         content = \"any\"\nprograms = \"any\"\nenter = \"any\"\nmin_tier = \"none\"\n\n\
         [bundle.launch]\nallow = {allow:?}\n"
    ))
}
