//! Which file systems and mounts are watched: the container's overlay as a whole, whoever mounts it where;
//! of all that is mounted into the container from elsewhere, that mount alone.
//!
//! A mark on a file system of the host's would have the whole host wait for this guard. So only an overlay
//! that is mounted for this container is marked as a file system, and mounts only where they are in the
//! container's own mount namespace.

use super::{
    settled,
    sys::{self, Extent},
};
use anyhow::{Context, Result, bail, ensure};
use content::store::{Mount, parse_mountinfo};
use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, fstat, open, openat2, statx},
    io::Errno,
};
use std::{
    fs,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

/// File systems whose files are the kernel's: there is nothing to execute.
const PSEUDO: [&str; 14] = [
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "fusectl",
    "mqueue",
    "proc",
    "pstore",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// The overlay of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    pub device: u64,
    /// The kernel notices each change of its files.
    pub settles: bool,
}

/// The overlay that is mounted at `rootfs` for one container; or why there is none.
pub fn own(rootfs: &Path) -> Result<Result<Own, String>> {
    let mounts = mounts("self")?;
    let lacks = |why: &str| Ok(Err(format!("its root file system {why}")));
    let at = mounts.iter().rev().find(|m| m.mount_point == rootfs);
    let Some(overlay) = at.filter(|m| m.fs_type == "overlay" && m.root == Path::new("/")) else {
        return lacks("is no overlay of its own");
    };
    let above = |m: &&Mount| m.mount_point != rootfs && rootfs.starts_with(&m.mount_point);
    let mut same = mounts.iter().filter(|m| m.device == overlay.device);
    if same.any(|m| above(&m)) {
        return lacks("is a part of the host's");
    }
    let metadata = fs::metadata(rootfs)
        .with_context(|| format!("cannot look at the root file system {}", rootfs.display()))?;
    let settles = match overlay.upper() {
        Some(upper) => settled::notices_stores(&upper)?,
        None => false,
    };
    Ok(Ok(Own {
        device: metadata.dev(),
        settles,
    }))
}

/// Marks everything that init can execute files from.
pub fn mark(group: BorrowedFd<'_>, init: u32, device: u64) -> Result<()> {
    let namespace = |process: &str| -> Result<u64> {
        let path = format!("/proc/{process}/ns/mnt");
        Ok(fs::metadata(&path)
            .with_context(|| format!("cannot look up {path}"))?
            .ino())
    };
    // the host's own mounts must never be marked
    ensure!(
        namespace(&init.to_string())? != namespace("self")?,
        "init is in the guard's mount namespace"
    );
    let path = format!("/proc/{init}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(&path, flags, Mode::empty()).with_context(|| format!("cannot open {path}"))?;
    ensure!(
        fstat(&root)?.st_dev == device,
        "the container's root is not the overlay that was judged"
    );
    sys::mark(group, Extent::FileSystem, root.as_fd()).context("the root file system")?;
    for mount in mounts(&init.to_string())? {
        if PSEUDO.contains(&mount.fs_type.as_str()) {
            continue;
        }
        if let Some(place) = opened(&root, &mount)? {
            sys::mark(group, Extent::Mount, place.as_fd())
                .with_context(|| format!("the mount at {}", mount.mount_point.display()))?;
        }
    }
    Ok(())
}

/// The mount, unless another one hides it.
fn opened(root: &OwnedFd, mount: &Mount) -> Result<Option<OwnedFd>> {
    let doing = || format!("cannot open the mount at {}", mount.mount_point.display());
    let path = match mount.mount_point.strip_prefix("/") {
        Ok(path) if path.as_os_str().is_empty() => PathBuf::from("."),
        Ok(path) => path.to_owned(),
        Err(_) => bail!("a mount at {}", mount.mount_point.display()),
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let place = match openat2(root, &path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        place => place.with_context(doing)?,
    };
    let found = statx(&place, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).with_context(doing)?;
    Ok((found.stx_mnt_id == mount.id).then_some(place))
}

fn mounts(process: &str) -> Result<Vec<Mount>> {
    let path = format!("/proc/{process}/mountinfo");
    let text = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    parse_mountinfo(&text).with_context(|| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not mounted for one container is never marked as a file system.
    #[test]
    fn refuse_directories_of_the_host() {
        for place in ["/", "/proc", "/usr", "/nowhere"] {
            assert!(own(Path::new(place)).unwrap().is_err(), "{place}");
        }
    }

    #[test]
    fn refuse_the_guards_own_mounts() {
        let group = File::open("/dev/null").unwrap();
        let error = mark(group.as_fd(), std::process::id(), 0).unwrap_err();
        assert!(error.to_string().contains("mount namespace"), "{error}");
    }
    use std::fs::File;
}
