//! The leftover checker: what a test may not leave behind. Processes, mounts, cgroups, files, kernel
//! keys and unix sockets are listed before and after each test; a difference fails the test.
//!
//! The namespaces of the tests hold nobody else, so the lists are whole and every entry is ours. Only
//! keys are seen machine-wide: of these the ones that name a container of the test count.

use crate::{machine::patient, namespace};
use anyhow::Result;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Engines and the kernel finish some things just after their caller has been answered.
const SETTLE: Duration = Duration::from_secs(5);

/// Where files are looked for.
const PLACES: [&str; 5] = ["/run", "/var/lib/attestrun", "/tmp", "/var/tmp", "/dev/shm"];

/// What stays by design: directories that the next container uses again, and what is measured once
/// per boot. A directory allowed here is allowed empty: what lies in it is judged by itself.
const STAYS: &[&str] = &[
    "/run/attestrun",
    "/run/attestrun/cache",
    "/run/attestrun/cache/*",
    "/run/attestrun/containers",
    "/run/attestrun/index",
    "/run/attestrun/uids",
    "/run/attestrun-inside",
    "/run/attestrun-host",
    // what the host service keeps for as long as the machine runs: one binding log per boot and reset
    "/run/attestrun-host/host.log",
    "/var/lib/attestrun/host/binding-*",
    // of a guard that died while it wrote: one at most, which the next writer writes over
    "/var/lib/attestrun/host/.serials.new",
    // copies of hooks and inits, by digest
    "/var/lib/attestrun/hooks",
    "/var/lib/attestrun/hooks/*",
    "/var/lib/attestrun/programs",
    "/var/lib/attestrun/programs/*",
    "/run/runc",
    // the runtimes under test: their state roots, not what lies in them
    "/run/rt",
    "/run/rt/runc",
    "/run/rt/attestrun",
    "/run/rt/attestrun+runc",
    "/run/lock/*",
    "/run/mount",     // libmount
    "/run/systemd/*", // of a service manager, where there is one
    // podman's own database, locks and boot marker, made at its first call
    "/run/libpod",
    "/run/libpod/*",
    "/run/containers",
    "/run/containers/*",
    "/dev/shm/libpod_lock",
    "/tmp/e2e-*",
    "/run/docker/*",
    "/run/containerd/io.containerd.grpc.v1.cri/containers",
    "/run/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/run/containerd/io.containerd.runtime.v2.task/k8s.io",
    "/run/containerd/runc/k8s.io",
];

/// Cgroups that engines make once, as parents of their containers' own.
const PARENTS: &[&str] = &[
    "/libpod_parent",
    "/libpod_parent/conmon",
    "/docker",
    "/default",
    "/e2e",
    "/attestrun.slice",
    "/attestrun.slice/host",
    "/machine.slice",
    "/moby",
];

/// The flag of a kernel thread in proc_pid_stat(5)'s ninth field.
const PF_KTHREAD: u32 = 0x0020_0000;

/// One listing.
#[derive(Clone, Default)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Everything now; of the keys those whose description contains one of `ids`, of the processes those
    /// that are no daemons of the tests' own.
    pub fn take(ids: &[String], daemons: &[i32]) -> Result<Self> {
        let mut all = BTreeSet::new();
        processes(daemons, &mut all)?;
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let (left, right) = line.split_once(" - ").unwrap_or((line, ""));
            let place = left.split(' ').nth(4).unwrap_or(left);
            all.insert(format!(
                "mount {place} ({})",
                right.split(' ').next().unwrap_or("")
            ));
        }
        for root in namespace::hierarchies()? {
            cgroups(&root, &root, &mut all);
        }
        for place in PLACES {
            files(Path::new(place), &mut all);
        }
        for line in fs::read_to_string("/proc/keys").unwrap_or_default().lines() {
            if ids.iter().any(|id| line.contains(id.as_str())) {
                let serial = line.split_whitespace().next().unwrap_or(line);
                let what = line.rsplit("  ").next().unwrap_or(line);
                all.insert(format!("key {serial} {what}"));
            }
        }
        for line in fs::read_to_string("/proc/net/unix")?.lines().skip(1) {
            if let Some(path) = line.split_whitespace().nth(7).filter(|p| !is_dockerds(p)) {
                all.insert(format!("socket {path}"));
            }
        }
        Ok(Self(all))
    }

    /// What is here and was not in `before`.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Waits until nothing is new since `before`; what stays new is returned.
pub fn settle(before: &Snapshot, ids: &[String], daemons: &[i32]) -> Result<Vec<String>> {
    let start = Instant::now();
    loop {
        let left = Snapshot::take(ids, daemons)?.since(before);
        if left.is_empty() || start.elapsed() > patient(SETTLE) {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every process of the pid namespace but this one, by pid and start time; threads share their line.
fn processes(daemons: &[i32], all: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.parse::<i32>() {
            Ok(pid) if !daemons.contains(&pid) => {}
            _ => continue,
        }
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // proc(5): fields after the command's closing parenthesis start with the third, the state.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .split_whitespace()
            .collect();
        let (state, started) = (
            fields.first().unwrap_or(&"?"),
            fields.get(19).unwrap_or(&"?"),
        );
        // The kernel's own come and go; only a machine without namespaces shows them.
        let flags: u32 = fields.get(6).and_then(|f| f.parse().ok()).unwrap_or(0);
        if flags & PF_KTHREAD != 0 {
            continue;
        }
        let argv = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let argv = String::from_utf8_lossy(&argv).replace('\0', " ");
        let zombie = if *state == "Z" { " (zombie)" } else { "" };
        let command = stat
            .split('(')
            .nth(1)
            .and_then(|s| s.split(')').next())
            .unwrap_or("?");
        all.insert(format!(
            "process {name} since {started}: {command}: {}{zombie}",
            argv.trim()
        ));
    }
    Ok(())
}

fn cgroups(root: &Path, dir: &Path, all: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let inside = format!("/{}", path.strip_prefix(root).unwrap_or(&path).display());
            if !PARENTS.contains(&inside.as_str()) && !path.join("cgroup.controllers").is_dir() {
                all.insert(format!("cgroup {}", path.display()));
            }
            cgroups(root, &path, all);
        }
    }
}

fn files(dir: &Path, all: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if !stays(&path) {
            all.insert(format!("file {}", path.display()));
        }
        if entry.file_type().is_ok_and(|t| t.is_dir()) && !is_mount_of_engine(&path) {
            files(&path, all);
        }
    }
}

/// A restarted dockerd has new ones: its network's, and one that the kernel named (unix(7), "autobind").
fn is_dockerds(socket: &str) -> bool {
    let autobind = |name: &str| name.len() == 5 && name.bytes().all(|b| b.is_ascii_hexdigit());
    socket.starts_with("/var/run/docker/libnetwork/")
        || socket.strip_prefix('@').is_some_and(autobind)
}

/// A container's root file system is a mount and judged as one; its files are the image's.
fn is_mount_of_engine(path: &Path) -> bool {
    path.ends_with("rootfs") || path.ends_with("merged")
}

fn stays(path: &Path) -> bool {
    let path = path.display().to_string();
    STAYS.iter().any(|allowed| match allowed.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == *allowed,
    })
}

/// The checker itself is tested: it must see each kind of thing that it promises to see.
pub fn sees_what_it_promises(work: &Path) -> Result<()> {
    use crate::cmd;
    use anyhow::ensure;
    let ids = vec!["leftover-probe".to_owned()];
    let before = Snapshot::take(&ids, &[])?;
    let place: PathBuf = work.join("leftover-probe");
    fs::create_dir_all(&place)?;
    let sleeper = cmd!("sleep", "60").start()?;
    namespace::tmpfs(&place, "mode=0755")?;
    let cgroup = namespace::hierarchies()?.remove(0).join("leftover-probe");
    fs::create_dir(&cgroup)?;
    let file = Path::new("/run/attestrun-probe.leftover");
    fs::write(file, "")?;
    let socket = std::os::unix::net::UnixListener::bind("/run/leftover-probe.sock")?;
    let found = Snapshot::take(&ids, &[])?.since(&before);
    drop(socket);
    fs::remove_file("/run/leftover-probe.sock")?;
    fs::remove_file(file)?;
    fs::remove_dir(&cgroup)?;
    cmd!("umount", &place).ok()?;
    drop(sleeper);
    fs::remove_dir(&place)?;
    for kind in ["process ", "mount ", "cgroup ", "file ", "socket "] {
        ensure!(
            found.iter().any(|l| l.starts_with(kind)),
            "the leftover checker missed a {kind}: {found:?}"
        );
    }
    let left = settle(&before, &ids, &[])?;
    ensure!(left.is_empty(), "the probe's own clean-up: {left:?}");
    Ok(())
}
