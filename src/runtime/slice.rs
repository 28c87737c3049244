//! `attestrun.slice`: the cgroups of keepers, guards and vTPMs, apart from the shim's, the login's and
//! the container's own, so that nobody who stops those stops a guard.

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use verify::id::RunId;

const SLICE: &str = "attestrun.slice";
/// For keeper, guard and swtpm together; an swtpm needs about 6 MiB, a guard as much and its log; and while
/// it judges a list of a million files some 250 MiB, of which 100 stay.
const MEMORY_MAX_BYTES: u64 = 512 << 20;
/// Among the last that the kernel ends when memory runs out: their end is the container's end.
const OOM_SCORE_ADJ: &str = "-900";

/// Leaves the caller's session and cgroups for the slice.
pub fn enter(name: &str) -> Result<()> {
    rustix::process::setsid().ok();
    // needs CAP_SYS_RESOURCE; without it the default holds, which is no worse than for the engine
    fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ).ok();
    join(name, &[std::process::id()])
}

/// Moves processes, and so all their later children, into the slice's cgroup `name`.
pub fn join(name: &str, processes: &[u32]) -> Result<()> {
    for (controller, hierarchy) in hierarchies()? {
        let cgroup = hierarchy.join(SLICE).join(name);
        make(&cgroup)?;
        if controller == "memory" {
            fs::write(
                cgroup.join("memory.limit_in_bytes"),
                MEMORY_MAX_BYTES.to_string(),
            )
            .ok();
        } else if controller.is_empty() {
            limit_unified(&hierarchy, &cgroup);
        }
        let procs = cgroup.join("cgroup.procs");
        for process in processes {
            fs::write(&procs, process.to_string())
                .with_context(|| format!("cannot enter {}", procs.display()))?;
        }
    }
    Ok(())
}

/// On cgroup v2 a controller counts below a cgroup that hands it down. systemd does so for the slices
/// that it knows; where nobody does, and nobody may, the guard has no limit of its own.
fn limit_unified(root: &Path, cgroup: &Path) {
    for parent in [root, &root.join(SLICE)] {
        fs::write(parent.join("cgroup.subtree_control"), "+memory").ok();
    }
    fs::write(cgroup.join("memory.max"), MEMORY_MAX_BYTES.to_string()).ok();
}

/// Removes a run's cgroups. Keeper, guard and vTPM end with the container; what is still there after
/// `PATIENCE` is killed, since a container that is gone needs no guard.
pub fn remove(run_id: &RunId) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for (_, hierarchy) in hierarchies()? {
        let cgroup = hierarchy.join(SLICE).join(run_id.as_str());
        while let Err(error) = fs::remove_dir(&cgroup) {
            match error.kind() {
                ErrorKind::NotFound => break,
                ErrorKind::ResourceBusy if Instant::now() < deadline => thread::sleep(PAUSE),
                ErrorKind::ResourceBusy if Instant::now() < deadline + PATIENCE => {
                    kill_all(&cgroup);
                    thread::sleep(PAUSE);
                }
                _ => {
                    return Err(error)
                        .with_context(|| format!("cannot remove {}", cgroup.display()));
                }
            }
        }
    }
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(1);

fn kill_all(cgroup: &Path) {
    let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in members
        .lines()
        .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
    {
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
            pidfd_send_signal(&pidfd, Signal::KILL).ok();
        }
    }
}

fn make(cgroup: &Path) -> Result<()> {
    if let Some(slice) = cgroup.parent() {
        fs::create_dir_all(slice).with_context(|| format!("cannot make {}", slice.display()))?;
    }
    match fs::create_dir(cgroup) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(e).with_context(|| format!("cannot make {}", cgroup.display()))
        }
        _ => Ok(()),
    }
}

/// Each hierarchy that counts or freezes: the unified one alone on cgroup v2; on v1 and hybrid hosts
/// memory, freezer and pids, and the named one by which service managers know what is theirs.
fn hierarchies() -> Result<Vec<(&'static str, PathBuf)>> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![("", root.to_owned())]);
    }
    let all = ["memory", "freezer", "pids", "systemd"].map(|name| (name, root.join(name)));
    let mounted: Vec<_> = all
        .into_iter()
        .filter(|(_, path)| path.join("cgroup.procs").exists())
        .collect();
    anyhow::ensure!(
        !mounted.is_empty(),
        "no cgroup hierarchy is mounted under {}",
        root.display()
    );
    Ok(mounted)
}
