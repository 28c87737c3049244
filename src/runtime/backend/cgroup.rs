//! A container's cgroups as directories: who is in them, freezing, killing, removing.
//!
//! Limits are set by the backend; here is only what attestrun itself must be able to do, with cgroup
//! v1, v2 and hybrids (cgroups(7)).

mod limits;
pub mod scope;
mod unified;
mod visit;

pub use unified::forget_zeros;
pub use visit::Visit;

use crate::sys::PidNamespace;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

/// Controllers' names (`""` is the unified hierarchy) to the container's directories.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup(BTreeMap<String, PathBuf>);

impl Cgroup {
    /// The cgroups of `pid` that are not also ours: those made for its container.
    pub fn of_container(pid: i32) -> Result<Self> {
        let ours = Self::of("self")?;
        let mut theirs = Self::of(&pid.to_string())?;
        theirs.0.retain(|name, dir| ours.0.get(name) != Some(dir));
        ensure!(
            !theirs.0.is_empty(),
            "process {pid} has no cgroup of its own"
        );
        Ok(theirs)
    }

    fn of(process: &str) -> Result<Self> {
        let path = format!("/proc/{process}/cgroup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let mounts = hierarchies()?;
        let mut dirs = BTreeMap::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let first = names.split(',').next().unwrap_or_default();
            let Some(mount) = mounts
                .iter()
                .find(|m| m.controllers.iter().any(|c| c == first))
            else {
                continue;
            };
            let Ok(below) = Path::new(path).strip_prefix(&mount.root) else {
                continue;
            };
            dirs.insert(names.to_owned(), mount.point.join(below));
        }
        Ok(Self(dirs))
    }

    /// The path of a process in the unified hierarchy, as that is mounted here.
    pub fn unified_path(pid: i32) -> Result<PathBuf> {
        let path = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("0::"));
        line.map(PathBuf::from)
            .with_context(|| format!("{path} names no unified cgroup"))
    }

    /// Where the container at `cgroups_path` will have its v1 or v2 directories, with the cgroupfs driver.
    pub fn at(cgroups_path: &Path) -> Result<Self> {
        let below = cgroups_path.strip_prefix("/").unwrap_or(cgroups_path);
        ensure!(
            below
                .components()
                .all(|c| matches!(c, std::path::Component::Normal(_)))
                && below.file_name().is_some(),
            "cgroupsPath {} does not name a cgroup below the root",
            cgroups_path.display()
        );
        let dirs = hierarchies()?
            .into_iter()
            .map(|m| (m.controllers.join(","), m.point.join(below)));
        Ok(Self(dirs.collect()))
    }

    /// A frozen cgroup would hang init beyond the reach of signals.
    pub fn ensure_not_frozen(&self) -> Result<()> {
        for dir in self.0.values() {
            ensure!(
                !is_frozen(dir),
                "container's cgroup unexpectedly frozen: {}",
                dir.display()
            );
        }
        Ok(())
    }

    /// Whether some directory is of both.
    pub fn meets(&self, other: &Self) -> bool {
        self.0
            .values()
            .any(|dir| other.0.values().any(|theirs| theirs == dir))
    }

    pub fn dir(&self, controller: &str) -> Option<&Path> {
        let has = |names: &str| names.split(',').any(|n| n == controller);
        self.0
            .iter()
            .find(|(names, _)| has(names))
            .map(|(_, dir)| dir.as_path())
    }

    /// The one directory whose members are the container's processes, and which can freeze them.
    fn main_dir(&self) -> Option<&Path> {
        let frozen = self.dir("freezer");
        frozen
            .or_else(|| self.dir(""))
            .or_else(|| self.dir("pids"))
            .or_else(|| self.dir("devices"))
    }

    /// Every process of the container, those in its own sub-cgroups too.
    pub fn pids(&self) -> Result<Vec<i32>> {
        self.main_dir().map_or(Ok(vec![]), members)
    }

    /// Every process in any of the directories: one that was killed on its way in is only in some.
    pub fn anybody(&self) -> Result<BTreeSet<i32>> {
        let mut pids = BTreeSet::new();
        for dir in self.0.values() {
            pids.extend(members(dir)?);
        }
        Ok(pids)
    }

    pub fn is_frozen(&self) -> bool {
        self.main_dir().is_some_and(is_frozen)
    }

    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let dir = self
            .main_dir()
            .context("the container has no cgroup that can be frozen")?;
        let (file, word) = if dir.join("freezer.state").exists() {
            ("freezer.state", if frozen { "FROZEN" } else { "THAWED" })
        } else {
            ("cgroup.freeze", if frozen { "1" } else { "0" })
        };
        let path = dir.join(file);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            // v1: a write repeats the attempt while a task could not be stopped yet
            fs::write(&path, word)
                .with_context(|| format!("cannot write {word} to {}", path.display()))?;
            if is_frozen(dir) == frozen {
                return Ok(());
            }
            if Instant::now() > deadline {
                fs::write(
                    &path,
                    if file == "freezer.state" {
                        "THAWED"
                    } else {
                        "0"
                    },
                )
                .ok();
                bail!("the cgroup {} did not become {word} in time", dir.display());
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Sends `signal` to every process; those that ended meanwhile do not matter.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        self.signal_those(signal, |_| Ok(true))
    }

    /// Sends `signal` to those of the processes that are in this pid namespace, or in one below it.
    pub fn signal_all_in(&self, namespace: &PidNamespace, signal: i32) -> Result<()> {
        self.signal_those(signal, |pid| {
            namespace
                .holds(pid)
                .with_context(|| format!("cannot look up the pid namespace of process {pid}"))
        })
    }

    fn signal_those(&self, signal: i32, which: impl Fn(i32) -> Result<bool>) -> Result<()> {
        for number in self.anybody()? {
            let Some(pid) = Pid::from_raw(number) else {
                continue;
            };
            match pidfd_open(pid, PidfdFlags::empty()) {
                // after the descriptor: it is this process's namespace, and no later one's
                Ok(_) if !which(number)? => {}
                Ok(fd) => match crate::sys::pidfd_signal(fd.as_fd(), signal) {
                    Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                        return Err(e).context("cannot signal");
                    }
                    _ => {}
                },
                Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => {}
                Err(e) => return Err(e).context("cannot open a process of the container"),
            }
        }
        Ok(())
    }

    /// Kills every process and returns when none is left. v2 does it in one step; v1 stands still
    /// meanwhile, so that nothing forks away.
    pub fn kill_all(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(kill) = self
                .dir("")
                .map(|d| d.join("cgroup.kill"))
                .filter(|k| k.exists())
            {
                fs::write(&kill, "1")
                    .with_context(|| format!("cannot write {}", kill.display()))?;
            }
            if let Some(state) = self
                .dir("freezer")
                .map(|d| d.join("freezer.state"))
                .filter(|s| s.exists())
            {
                fs::write(&state, "FROZEN").ok();
                let killed = self.signal_all(libc::SIGKILL);
                fs::write(&state, "THAWED")
                    .with_context(|| format!("cannot thaw {}", state.display()))?;
                killed?;
            } else {
                self.signal_all(libc::SIGKILL)?;
            }
            if self.anybody()?.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "processes of the container survive SIGKILL"
            );
            sleep(Duration::from_millis(2));
        }
    }

    /// Removes the directories with all below them. The kernel lets go of a dead process's cgroup a
    /// moment after its end, so EBUSY is tried again; whoever entered meanwhile is killed too.
    pub fn remove(&self) -> Result<()> {
        for dir in self.0.values() {
            let deadline = Instant::now() + Duration::from_secs(5);
            loop {
                match remove_tree(dir) {
                    Ok(()) => break,
                    Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                        self.kill_all()?;
                        sleep(Duration::from_millis(5));
                    }
                    Err(e) => {
                        return Err(e).with_context(|| {
                            format!("cannot remove the cgroup {}", dir.display())
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes the directories in which nobody is. The container's own processes are gone; others may
    /// have shared its cgroup, and it is removed with the last of them.
    pub fn leave(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_millis(300);
        while !self.anybody()?.is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(2)); // killed just now
        }
        for dir in self.0.values() {
            let deadline = Instant::now() + Duration::from_secs(5);
            while members(dir)?.is_empty() {
                match remove_tree(dir) {
                    Ok(()) => break,
                    Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                        sleep(Duration::from_millis(5));
                    }
                    Err(e) => {
                        return Err(e).with_context(|| {
                            format!("cannot remove the cgroup {}", dir.display())
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the container's directory on a unified hierarchy, with every controller that there is
    /// enabled on the way to it (cgroups(7), "cgroup.subtree_control").
    pub fn make_unified(&self) -> Result<&Path> {
        let dir = self
            .dir("")
            .context("no unified cgroup hierarchy is mounted")?;
        let root = hierarchies()?.into_iter().find(|h| h.controllers == [""]);
        let root = root
            .context("no unified cgroup hierarchy is mounted")?
            .point;
        let controllers = fs::read_to_string(root.join("cgroup.controllers"))
            .with_context(|| format!("cannot read {}/cgroup.controllers", root.display()))?;
        let mut parent = root.clone();
        for part in dir.strip_prefix(&root)?.components() {
            for controller in controllers.split_whitespace() {
                // one that cannot be enabled is missed when a limit needs it (as runc)
                fs::write(
                    parent.join("cgroup.subtree_control"),
                    format!("+{controller}"),
                )
                .ok();
            }
            parent.push(part);
            match fs::create_dir(&parent) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                result => result.with_context(|| format!("cannot make {}", parent.display()))?,
            }
        }
        Ok(dir)
    }

    /// The v1 hierarchies: the name of each one's mount point, and the container's directory there.
    pub fn v1_directories(cgroups_path: &Path) -> Result<Vec<(String, PathBuf)>> {
        let dirs = Self::at(cgroups_path)?.0;
        let named = |h: Hierarchy| {
            let dir = dirs.get(&h.controllers.join(","))?.clone();
            Some((h.point.file_name()?.to_str()?.to_owned(), dir))
        };
        let v1 = hierarchies()?.into_iter().filter(|h| h.controllers != [""]);
        Ok(v1.filter_map(named).collect())
    }

    /// Moves `pid` into cgroups below the container's, by runc's `exec --cgroup [CONTROLLERS:]PATH`.
    pub fn move_below(&self, pid: i32, wanted: &[String]) -> Result<()> {
        for (controllers, below) in sub_cgroups(wanted)? {
            let dirs: Vec<&Path> = if controllers.is_empty() {
                self.0.values().map(PathBuf::as_path).collect()
            } else {
                let dir = |name: &str| {
                    self.dir(name)
                        .with_context(|| format!("unknown controller {name} in --cgroup"))
                };
                controllers.split(',').map(dir).collect::<Result<_>>()?
            };
            for dir in dirs {
                let procs = dir.join(below).join("cgroup.procs");
                fs::write(&procs, pid.to_string()).map_err(|e| {
                    let why = match e.kind() {
                        ErrorKind::NotFound => "no such file or directory".to_owned(),
                        _ => e.to_string(),
                    };
                    anyhow::anyhow!("adding pid {pid} to cgroups: {}: {why}", procs.display())
                })?;
            }
        }
        Ok(())
    }
}

/// Pairs of controllers (none: all) and a relative path that does not climb.
fn sub_cgroups(wanted: &[String]) -> Result<Vec<(&str, &Path)>> {
    let mut pairs: Vec<(&str, &Path)> = Vec::new();
    for text in wanted {
        let (controllers, path) = text.split_once(':').unwrap_or(("", text));
        ensure!(!path.contains(':'), "invalid --cgroup argument: {text}");
        ensure!(
            !controllers.is_empty() || wanted.len() == 1,
            "invalid --cgroup argument: {text} (missing <controller>: prefix)"
        );
        let path = Path::new(path.trim_start_matches('/'));
        let climbs = |c| {
            !matches!(
                c,
                std::path::Component::Normal(_) | std::path::Component::CurDir
            )
        };
        ensure!(
            !path.components().any(climbs),
            "invalid --cgroup argument: {text} is not a sub cgroup path"
        );
        for controller in controllers.split(',') {
            let twice = |(c, _): &(&str, &Path)| c.split(',').any(|c| c == controller);
            ensure!(
                !pairs.iter().any(twice),
                "invalid --cgroup argument(s): controller {controller} specified multiple times"
            );
        }
        pairs.push((controllers, path));
    }
    Ok(pairs)
}

/// Whether cgroup v2 alone is mounted where containers look for it.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

struct Hierarchy {
    controllers: Vec<String>,
    root: PathBuf,
    point: PathBuf,
}

/// Mounted hierarchies; of several mounts of one the first counts.
fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text =
        fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(parse_mountinfo(&text))
}

/// Lines of mountinfo (proc_pid_mountinfo(5)) that are cgroup or cgroup2.
fn parse_mountinfo(text: &str) -> Vec<Hierarchy> {
    const CONTROLLERS: &[&str] = &[
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "net_cls",
        "blkio",
        "perf_event",
        "net_prio",
        "hugetlb",
        "pids",
        "rdma",
        "misc",
    ];
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((mount, fs)) = line.split_once(" - ") else {
            continue;
        };
        let mut mount = mount.split(' ').skip(3);
        let (Some(root), Some(point)) = (mount.next(), mount.next()) else {
            continue;
        };
        let mut fs = fs.split(' ');
        let controllers: Vec<String> = match (fs.next(), fs.nth(1)) {
            (Some("cgroup2"), _) => vec![String::new()],
            (Some("cgroup"), Some(options)) => {
                let known = |o: &&str| o.starts_with("name=") || CONTROLLERS.contains(o);
                options
                    .split(',')
                    .filter(known)
                    .map(str::to_owned)
                    .collect()
            }
            _ => continue,
        };
        if !controllers.is_empty() && !found.iter().any(|h| h.controllers == controllers) {
            found.push(Hierarchy {
                controllers,
                root: root.into(),
                point: point.into(),
            });
        }
    }
    found
}

fn is_frozen(dir: &Path) -> bool {
    let file = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
    // FREEZING counts: init may be in it already
    file("freezer.state").starts_with("FR")
        || file("cgroup.events").lines().any(|l| l == "frozen 1")
}

fn members(dir: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok())),
            Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => {
                continue;
            }
            Err(e) => {
                return Err(e)
                    .with_context(|| format!("cannot read {}/cgroup.procs", dir.display()));
            }
        }
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        todo.extend(
            entries
                .flatten()
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path()),
        );
    }
    pids.sort_unstable();
    Ok(pids)
}

fn remove_tree(dir: &Path) -> std::io::Result<()> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries
                .flatten()
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            {
                remove_tree(&entry.path())?;
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_of_a_hybrid_host() {
        let text = "30 25 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                    31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                    32 30 0:28 / /sys/fs/cgroup/systemd rw shared:3 - cgroup cgroup rw,xattr,name=systemd\n\
                    33 30 0:29 /sub /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    34 30 0:29 /sub /somewhere/else rw - cgroup2 cgroup2 rw\n";
        let found = parse_mountinfo(text);
        let names: Vec<_> = found.iter().map(|h| h.controllers.join(",")).collect();
        assert_eq!(names, ["cpu,cpuacct", "name=systemd", ""]);
        assert_eq!(found[2].root, Path::new("/sub"));
        assert_eq!(found[2].point, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn refuse_a_cgroup_that_is_the_root_or_climbs() {
        for bad in ["", "/", "/..", "/a/../..", "../x"] {
            assert!(Cgroup::at(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(Cgroup::at(Path::new("/a/b")).is_ok());
    }

    #[test]
    fn refuse_sub_cgroups_that_climb_or_repeat() {
        let parse = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|s| (*s).to_owned()).collect();
            sub_cgroups(&list).map(|pairs| pairs.len())
        };
        assert_eq!(parse(&["/"]).unwrap(), 1);
        assert_eq!(parse(&["cpu,cpuacct:a", "memory:b/c"]).unwrap(), 2);
        for bad in [
            &["../x"][..],
            &["a/../../x"],
            &["cpu:a:b"],
            &["a", "b"],
            &["cpu:a", "memory,cpu:b"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_combined_hierarchy_is_found_by_each_name() {
        let cgroup = Cgroup(BTreeMap::from([
            ("cpu,cpuacct".into(), "/c".into()),
            (String::new(), "/u".into()),
        ]));
        assert_eq!(cgroup.dir("cpuacct"), Some(Path::new("/c")));
        assert_eq!(cgroup.dir(""), Some(Path::new("/u")));
        assert_eq!(cgroup.dir("memory"), None);
        assert_eq!(cgroup.main_dir(), Some(Path::new("/u")));
    }
}
