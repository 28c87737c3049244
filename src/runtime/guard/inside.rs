//! What init has before it starts: the namespaces, mounts and devices of the sealed config.json. What
//! else is there came from a hook (or from root on this host), and is for the policy to allow by name.

use crate::ipc::Refused;
use anyhow::{Context, Result};
use content::store::parse_mountinfo;
use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType, Mount, Spec};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, major, minor, openat2, statat,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};
use verify::{
    policy::plain_text,
    profile::{HookAdditions, How, LaunchProfile},
};

/// The namespaces that config.json has the container join, as they were when it was judged.
pub type Joined = BTreeMap<PathBuf, (u64, u64)>;

pub fn joined(spec: &Spec) -> Result<Joined> {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    let paths = namespaces
        .into_iter()
        .flatten()
        .filter_map(|n| n.path().clone());
    paths
        .filter(|path| !path.as_os_str().is_empty())
        .map(|path| identity(&path).map(|namespace| (path, namespace)))
        .collect()
}

fn identity(namespace: &Path) -> Result<(u64, u64)> {
    let doing = || format!("cannot look up the namespace {}", namespace.display());
    let found = fs::metadata(namespace).with_context(doing)?;
    Ok((found.dev(), found.ino()))
}

/// config.json's name of a namespace, and its file in /proc/<pid>/ns.
const NAMESPACES: [(&str, &str); 8] = [
    ("cgroup", "cgroup"),
    ("ipc", "ipc"),
    ("mount", "mnt"),
    ("network", "net"),
    ("pid", "pid"),
    ("time", "time"),
    ("user", "user"),
    ("uts", "uts"),
];

/// Each namespace is new, the caller's, or the joined one, as the profile says.
pub fn check_namespaces(init: u32, profile: &LaunchProfile, joined: &Joined) -> Result<()> {
    for (kind, file) in NAMESPACES {
        let mine = PathBuf::from(format!("/proc/self/ns/{file}"));
        if !mine.exists() {
            continue; // a kernel without this kind
        }
        let (mine, has) = (
            identity(&mine)?,
            identity(Path::new(&format!("/proc/{init}/ns/{file}")))?,
        );
        let named = profile.namespaces.iter().find(|n| n.kind == kind);
        let as_sealed = match named.map(|n| (n.how, n.path.as_str())) {
            Some((How::New, _)) => has != mine,
            None | Some((How::Host, "")) => has == mine,
            Some((_, path)) => joined.get(Path::new(path)) == Some(&has),
        };
        if !as_sealed {
            let text = format!(
                "refused: before its start the container's {kind} namespace is not the one that config.json says"
            );
            return Err(Refused(text).into());
        }
    }
    Ok(())
}

/// Mounts and devices that config.json does not account for; one that it has and that is gone is refused.
pub fn additions(
    init: u32,
    root: &OwnedFd,
    spec: &Spec,
    tpms: &[(i64, i64)],
) -> Result<HookAdditions> {
    let path = format!("/proc/{init}/mountinfo");
    let text = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let mut found: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for mount in parse_mountinfo(&text).with_context(|| path.clone())? {
        *found.entry(mount.mount_point).or_default() += 1;
    }
    let sealed = Sealed::of(&Inside::of(root)?, spec, &found)?;
    let mounts = found
        .iter()
        .filter(|(place, count)| !sealed.explains(place, **count));
    let mut devices = Vec::new();
    if !is_bind_at(spec, "/dev") {
        Devices::of(spec, tpms).walk(root.as_fd(), &mut devices)?;
    }
    devices.sort();
    Ok(HookAdditions {
        mounts: mounts.map(|(place, _)| shown(place)).collect(),
        devices,
    })
}

fn shown(path: &Path) -> String {
    plain_text(&path.to_string_lossy())
}

/// Resolves paths as the container does.
pub struct Inside<'a> {
    root: &'a OwnedFd,
    /// Where the root is in its mount namespace: `/`, unless init does not pivot.
    at: PathBuf,
}

impl<'a> Inside<'a> {
    pub fn of(root: &'a OwnedFd) -> Result<Self> {
        let at = place_of(root.as_fd()).context("cannot look up the container's root")?;
        Ok(Self { root, at })
    }

    /// Where `path` leads to; `None` if there is nothing.
    pub fn place(&self, path: &Path) -> Option<PathBuf> {
        let path = path.strip_prefix("/").unwrap_or(path);
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = openat2(self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
        let place = place_of(fd.as_fd()).ok()?;
        Some(Path::new("/").join(place.strip_prefix(&self.at).ok()?))
    }
}

fn place_of(fd: BorrowedFd<'_>) -> Result<PathBuf> {
    Ok(fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?)
}

/// The mounts that config.json accounts for.
#[derive(Default)]
struct Sealed {
    /// How many lie on top of each other.
    places: BTreeMap<PathBuf, usize>,
    /// Below these there may be more: what the host has there, or hands down later.
    trees: Vec<PathBuf>,
    /// These may be there or not.
    may: BTreeSet<PathBuf>,
}

impl Sealed {
    fn of(inside: &Inside<'_>, spec: &Spec, found: &BTreeMap<PathBuf, usize>) -> Result<Self> {
        let mut sealed = Self::default();
        sealed.places.insert("/".into(), 1);
        let gone = |what: &str, path: &Path| {
            Refused(plain_text(&format!(
                "refused: before its start the container has no {what} at {}, which config.json has there",
                path.display()
            )))
        };
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        for (n, mount) in mounts.iter().enumerate() {
            let path = mount.destination();
            let hides = |later: &Mount| {
                path != later.destination() && path.starts_with(later.destination())
            };
            if mounts[n + 1..].iter().any(hides) {
                continue;
            }
            let place = inside.place(path).filter(|place| found.contains_key(place));
            let place = place.ok_or_else(|| gone("mount", path))?;
            if has_tree(mount) {
                sealed.trees.push(place.clone());
            }
            *sealed.places.entry(place).or_default() += 1;
        }
        let linux = spec.linux().as_ref();
        let masked = linux.and_then(|l| l.masked_paths().as_ref());
        let read_only = linux.and_then(|l| l.readonly_paths().as_ref());
        for (what, paths) in [("mask", masked), ("read-only mount", read_only)] {
            for path in paths.into_iter().flatten() {
                let Some(place) = inside.place(Path::new(path)) else {
                    continue; // the kernel has no such file
                };
                if !found.contains_key(&place) {
                    return Err(gone(what, Path::new(path)).into());
                }
                *sealed.places.entry(place).or_default() += 1;
            }
        }
        let terminal = spec.process().as_ref().and_then(|p| p.terminal()) == Some(true);
        if terminal {
            sealed.may.insert("/dev/console".into());
        }
        let namespaces = linux
            .and_then(|l| l.namespaces().as_ref())
            .into_iter()
            .flatten();
        if namespaces
            .map(|n| n.typ())
            .any(|t| t == LinuxNamespaceType::User)
        {
            // who may not make device nodes gets the host's own, each as a mount
            let devices = linux
                .and_then(|l| l.devices().as_ref())
                .into_iter()
                .flatten();
            sealed.may.extend(devices.map(|d| d.path().clone()));
            sealed
                .may
                .extend(USUAL_DEVICES.iter().map(|(path, ..)| PathBuf::from(path)));
        }
        Ok(sealed)
    }

    fn explains(&self, place: &Path, count: usize) -> bool {
        let known =
            self.places.get(place).copied().unwrap_or(0) + usize::from(self.may.contains(place));
        count <= known
            || self
                .trees
                .iter()
                .any(|tree| place != tree && place.starts_with(tree))
    }
}

/// A mount that brings others along: bound recursively, receiving the host's, or cgroup's hierarchies.
fn has_tree(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    let tree = ["rbind", "shared", "rshared", "slave", "rslave"];
    mount.typ().as_deref() == Some("cgroup") || options.iter().any(|o| tree.contains(&o.as_str()))
}

fn is_bind_at(spec: &Spec, path: &str) -> bool {
    let bind = |m: &Mount| {
        let options = m.options().as_deref().unwrap_or_default();
        m.typ().as_deref() == Some("bind") || options.iter().any(|o| o == "bind" || o == "rbind")
    };
    let mounts = spec.mounts().iter().flatten();
    mounts
        .filter(|m| m.destination() == Path::new(path))
        .any(bind)
}

/// What every container has in /dev (runtime-spec, config-linux.md, "Default Devices").
const USUAL_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
/// Pseudoterminals' other ends (admin-guide/devices.txt, 136 to 143): `/dev/console` is one of them.
const PTS: std::ops::RangeInclusive<u32> = 136..=143;
const MAX_DEPTH: usize = 8;

/// The device nodes that config.json accounts for.
struct Devices<'a> {
    known: BTreeSet<(PathBuf, bool, u32, u32)>,
    tpms: &'a [(i64, i64)],
}

impl<'a> Devices<'a> {
    fn of(spec: &Spec, tpms: &'a [(i64, i64)]) -> Self {
        let usual = USUAL_DEVICES
            .iter()
            .map(|(path, major, minor)| (path.into(), false, *major, *minor));
        let linux = spec.linux().as_ref();
        let named = linux
            .and_then(|l| l.devices().as_ref())
            .into_iter()
            .flatten();
        let number = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
        let named = named.map(|d| {
            (
                d.path().clone(),
                d.typ() == LinuxDeviceType::B,
                number(d.major()),
                number(d.minor()),
            )
        });
        Self {
            known: usual.chain(named).collect(),
            tpms,
        }
    }

    fn walk(&self, root: BorrowedFd<'_>, added: &mut Vec<String>) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat2(root, "dev", flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(dev) => self.directory(dev, Path::new("/dev"), 0, added),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error).context("cannot open the container's /dev"),
        }
    }

    fn directory(
        &self,
        dir: OwnedFd,
        path: &Path,
        depth: usize,
        added: &mut Vec<String>,
    ) -> Result<()> {
        let doing = || format!("cannot read the container's {}", path.display());
        anyhow::ensure!(
            depth < MAX_DEPTH,
            "the container's {} is too deep",
            path.display()
        );
        let here = statat(&dir, "", AtFlags::EMPTY_PATH)
            .with_context(doing)?
            .st_dev;
        for entry in Dir::read_from(&dir).with_context(doing)? {
            let entry = entry.with_context(doing)?;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let place = path.join(name);
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).with_context(doing)?;
            match FileType::from_raw_mode(stat.st_mode) {
                kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                    self.judge(&place, kind == FileType::BlockDevice, stat.st_rdev, added)?;
                }
                // devpts and other file systems make their own nodes
                FileType::Directory if stat.st_dev == here => {
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let below = openat2(&dir, name, flags, Mode::empty(), ResolveFlags::BENEATH);
                    self.directory(below.with_context(doing)?, &place, depth + 1, added)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn judge(&self, place: &Path, block: bool, rdev: u64, added: &mut Vec<String>) -> Result<()> {
        let (major, minor) = (major(rdev), minor(rdev));
        let console = place == Path::new("/dev/console") && PTS.contains(&major);
        if console
            || self
                .known
                .contains(&(place.to_owned(), block, major, minor))
        {
            return Ok(());
        }
        if !block && self.tpms.contains(&(major.into(), minor.into())) {
            let text = format!(
                "refused: a hook put a host TPM ({major}:{minor}) at {} (never allowed)",
                shown(place)
            );
            return Err(Refused(text).into());
        }
        added.push(shown(place));
        Ok(())
    }
}
