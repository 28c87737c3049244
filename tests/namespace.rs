//! Gives the tests a machine of their own: this program runs itself again in new mount, pid, network,
//! ipc, uts and cgroup namespaces, and there lays private file systems over every place that attestrun
//! or an engine writes to. Nothing of it is seen outside, and all of it goes when its pid 1 goes.
//!
//! outer (the caller's namespaces) -> reaper (pid 1, collects orphans) -> inner (runs the tests).

use crate::{cmd, machine::machine, spawn::Cmd};
use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        statfs::{FsType, statfs},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, geteuid, getpid},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// Where the work directory is seen inside: short, since unix sockets' names are.
pub const WORK: &str = "/mnt";
/// The project's sources inside: wherever they lie, nothing is mounted over them.
pub const SOURCES: &str = "/mnt/sources";
/// The same for target/tools.
pub const TOOLS: &str = "/mnt/tools";
const CGROUPS: &str = "/sys/fs/cgroup";
const OVERLAYFS_SUPER_MAGIC: FsType = FsType(0x794c_7630);

/// Runs `args` of this program inside; ends with its exit code, or kills it all after `limit`.
pub fn enter(args: &[String], limit: Duration) -> Result<ExitCode> {
    ensure!(
        geteuid().is_root(),
        "the end-to-end tests run containers: run them as root"
    );
    let outside = Outside::make()?;
    let me = std::env::current_exe()?;
    let cgroups: Vec<_> = outside
        .cgroups
        .iter()
        .map(|c| c.display().to_string())
        .collect();
    let unshare = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
    ];
    let mut child = cmd!("setpriv", "--pdeathsig", "KILL")
        .args(unshare)
        .args(["--mount-proc", "--net", "--ipc", "--uts"])
        .arg(&me)
        .arg("--reaper")
        .arg(cgroups.join(":"))
        .arg(&outside.work)
        .args(args)
        .passthrough()?;
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(ExitCode::from(
                status
                    .code()
                    .and_then(|c| u8::try_from(c).ok())
                    .unwrap_or(1),
            ));
        }
        if since.elapsed() > limit {
            child.kill()?; // unshare, whose --kill-child takes pid 1 along
            child.wait()?;
            bail!(
                "the tests did not end within {} s and were killed",
                limit.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What must be made outside, and is removed on drop.
struct Outside {
    work: PathBuf,
    cgroups: Vec<PathBuf>,
}

impl Outside {
    fn make() -> Result<Self> {
        let name = format!("attestrun-e2e-{}", getpid());
        let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
        fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
        let mut made = Self {
            work,
            cgroups: Vec::new(),
        };
        for root in hierarchies()? {
            let dir = root.join(&name);
            fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
            made.cgroups.push(dir.clone());
            // cpuset v1 takes no process before these are set.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if root.join("tasks").exists() && root.join(file).exists() {
                    fs::write(dir.join(file), fs::read(root.join(file))?)?;
                }
            }
        }
        Ok(made)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        for dir in &self.cgroups {
            // The kernel takes a moment to empty the cgroup of a killed pid namespace.
            for _ in 0..100 {
                if remove_cgroup(dir).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// Removes a cgroup and those below it; none may hold a process.
pub fn remove_cgroup(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Mount points of every cgroup hierarchy, v1 and v2.
pub fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right
                .starts_with("cgroup")
                .then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or("/")))
        })
        .collect();
    found.sort();
    found.dedup();
    ensure!(
        !found.is_empty(),
        "no cgroup file system is mounted on this machine"
    );
    Ok(found)
}

/// pid 1 of the namespace: enters the tests' cgroups and makes them the roots of a cgroup namespace, then
/// starts the tests and collects every orphan until they end.
pub fn reap(args: &[String]) -> Result<ExitCode> {
    let (cgroups, args) = args.split_first().context("cgroups")?;
    for cgroup in cgroups.split(':') {
        // 0 is the writer itself.
        fs::write(Path::new(cgroup).join("cgroup.procs"), "0")
            .with_context(|| cgroup.to_owned())?;
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).context("cannot make a cgroup namespace")?;
    let me = std::env::current_exe()?;
    let child = Cmd::new(me).arg("--inner").args(args).passthrough()?;
    let inner = Pid::from_raw(child.id().cast_signed());
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == inner => {
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == inner => {
                bail!("the tests were killed by {signal}")
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Lays the private file systems; `work` is the directory that `Outside` made.
pub fn furnish(work: &Path) -> Result<()> {
    if machine().here {
        tmpfs(WORK, "mode=0755")?;
        sources()?;
        return tmpfs("/tmp", "mode=1777"); // the project may lie there, which is no leftover
    }
    ensure!(
        getpid().as_raw() < 10 && Path::new("/proc/1").exists(),
        "not in a pid namespace of our own"
    );
    bind(work, Path::new(WORK))?;
    if statfs(WORK)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC {
        tmpfs(WORK, "mode=0755")?; // an overlay cannot lie on another one
    }
    sources()?;
    for (place, mode) in [
        ("/tmp", "1777"),
        ("/var/tmp", "1777"),
        ("/dev/shm", "1777"),
        ("/run", "0755"),
    ] {
        tmpfs(place, &format!("mode={mode}"))?;
    }
    fs::create_dir("/run/lock")?;
    for place in ["/etc", "/var/lib"] {
        overlay(place)?;
    }
    // Engines keep overlays' upper directories here, so these must not be overlays themselves.
    for store in ["containers", "containerd", "docker", "attestrun"] {
        let (inside, place) = (
            Path::new(WORK).join("lib").join(store),
            Path::new("/var/lib").join(store),
        );
        fs::create_dir_all(&inside)?;
        fs::create_dir_all(&place)?;
        bind(&inside, &place)?;
    }
    for place in ["/etc/attestrun", "/etc/containers"] {
        fs::create_dir_all(place)?;
    }
    if Path::new("/etc/attestrun/config.toml").exists() {
        tmpfs("/etc/attestrun", "mode=0755")?; // this machine's own stays out of the tests
    }
    cgroups()?;
    // busybox is needed anyway, for the image; iproute2 might not be there.
    cmd!("busybox", "ip", "link", "set", "lo", "up").ok()?;
    cmd!("hostname", "e2e").ok()?;
    Ok(())
}

fn sources() -> Result<()> {
    fs::create_dir_all(SOURCES)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the project's root")?;
    bind(sources, Path::new(SOURCES))?;
    // Programs that scripts have fetched; the directory may be a link to what is hidden inside.
    let tools = sources.join("target/tools");
    if tools.is_dir() {
        fs::create_dir_all(TOOLS)?;
        bind(&tools, Path::new(TOOLS))?;
    }
    Ok(())
}

/// Mounts the cgroup hierarchies again, so that their roots are ours.
fn cgroups() -> Result<()> {
    let hierarchies = hierarchies()?;
    if hierarchies == [Path::new(CGROUPS)] {
        umount2(CGROUPS, MntFlags::MNT_DETACH)?;
        mount_fs("cgroup2", CGROUPS, "")?;
        // cgroup v2 gives controllers only to children of a cgroup without processes.
        let leaf = Path::new(CGROUPS).join("e2e");
        fs::create_dir(&leaf)?;
        for pid in fs::read_to_string(Path::new(CGROUPS).join("cgroup.procs"))?.lines() {
            fs::write(leaf.join("cgroup.procs"), pid)?;
        }
        for controller in
            fs::read_to_string(Path::new(CGROUPS).join("cgroup.controllers"))?.split_whitespace()
        {
            fs::write(
                Path::new(CGROUPS).join("cgroup.subtree_control"),
                format!("+{controller}"),
            )?;
        }
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let options: Vec<(PathBuf, &str, String)> = hierarchies
        .into_iter()
        .filter_map(|place| {
            let line = mounts
                .lines()
                .find(|l| l.split(' ').nth(4) == place.to_str())?;
            let (_, right) = line.split_once(" - ")?;
            let mut fields = right.split(' ');
            let kind = if fields.next()? == "cgroup2" {
                "cgroup2"
            } else {
                "cgroup"
            };
            let controllers = fields
                .nth(1)?
                .split(',')
                .filter(|o| !matches!(*o, "rw" | "ro" | "xattr"));
            let controllers: Vec<_> = controllers
                .filter(|o| !o.starts_with("release_agent"))
                .collect();
            Some((place, kind, controllers.join(",")))
        })
        .collect();
    umount2(CGROUPS, MntFlags::MNT_DETACH)?;
    tmpfs(CGROUPS, "mode=0755")?;
    for (place, kind, controllers) in options {
        fs::create_dir_all(&place)?;
        let data = match (kind, controllers.as_str()) {
            ("cgroup2", _) => String::new(),
            (_, named) if named.starts_with("name=") => format!("none,{named}"),
            (_, controllers) => controllers.to_owned(),
        };
        mount_fs(kind, place.to_str().context("cgroup path")?, &data)?;
    }
    Ok(())
}

pub fn tmpfs(place: impl AsRef<Path>, options: &str) -> Result<()> {
    mount_fs("tmpfs", &place.as_ref().display().to_string(), options)
}

fn mount_fs(kind: &str, place: &str, options: &str) -> Result<()> {
    mount(
        Some(kind),
        place,
        Some(kind),
        MsFlags::empty(),
        Some(options),
    )
    .with_context(|| format!("cannot mount {kind} ({options}) on {place}"))
}

pub fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}

/// A private, writable view of `place`.
fn overlay(place: &str) -> Result<()> {
    let base = Path::new(WORK)
        .join("overlay")
        .join(place.trim_start_matches('/').replace('/', "-"));
    let (upper, work) = (base.join("upper"), base.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    mount_fs(
        "overlay",
        place,
        &format!(
            "lowerdir={place},upperdir={},workdir={}",
            upper.display(),
            work.display()
        ),
    )
}
