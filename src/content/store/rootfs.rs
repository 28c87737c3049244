//! The root directory as it was opened, and the mount that it is the root of: paths may be mounted
//! over meanwhile, a descriptor stays with what it was opened on.

use super::{LocateError, inconsistent, mountinfo::Mount};
use crate::beneath;
use anyhow::Context as _;
use rustix::fs::{self, AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

/// A container's root directory.
#[derive(Debug)]
pub struct Rootfs {
    fd: OwnedFd,
    path: PathBuf,
}

impl Rootfs {
    /// `path` is `root.path` of config.json, made absolute and canonical; its last name is no symbolic
    /// link.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty())
            .with_context(|| format!("cannot open the rootfs {}", path.display()))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mount that the directory is the root of; `None` for a directory within one.
    pub(super) fn mount(&self) -> Result<Option<Mount>, LocateError> {
        let flags = AtFlags::EMPTY_PATH;
        let stat = fs::statx(&self.fd, "", flags, StatxFlags::MNT_ID)
            .with_context(|| format!("statx {}", self.path.display()))?;
        let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID)
            && stat
                .stx_attributes_mask
                .contains(StatxAttributes::MOUNT_ROOT);
        if !known {
            let old = anyhow::anyhow!("this kernel does not tell a directory's mount (Linux 5.8)");
            return Err(old.into());
        }
        if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(None);
        }
        let text = beneath::read_bounded_proc(Path::new("/proc/self/mountinfo"))?;
        let mounts = super::mountinfo::parse(&text).map_err(|e| inconsistent(e.to_string()))?;
        let found = mounts.into_iter().find(|mount| mount.id == stat.stx_mnt_id);
        found.map(Some).ok_or_else(|| {
            inconsistent(format!(
                "the mount at {} is gone, or in another mount namespace",
                self.path.display()
            ))
        })
    }
}

impl AsFd for Rootfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
