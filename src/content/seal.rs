//! A directory's seal: one digest over every name below it and every inode's stamp, so that a tree
//! whose seal is the same as before needs not be read again.
//!
//! Why a stamp is believed. It holds the inode's change time, which the kernel sets at each change of
//! content, attributes, links or names, and which no system call sets. So a changed file has another
//! stamp, unless
//!
//! * root sets the clock back, writes to the disk beneath the file system, or puts another file
//!   system in its place: root at run time is not claimed (README), and only root reaches a store;
//! * the change came within the same tick of the clock as the stamp: a seal that holds a change time
//!   as late as that is not [`Sealed::settled`], and nothing is kept for it;
//! * it was made by a store into a shared mapping. The kernel sets the time when a page of a mapping
//!   is written for the first time since it was last written back, not at each store: whoever had
//!   dirtied a page *before* the seal may go on writing to it without a trace. So a seal counts only
//!   when no file was open for writing, which a mapping keeps it, after the seal was begun
//!   ([`crate::tree::Unpacked::quiet`]); every mapping made later leaves its trace with the first
//!   store. Memory file systems leave none (mm/shmem.c has no `page_mkwrite`): [`can_be_sealed`].
//!
//! And for this boot only: before the next one root may have changed the disk elsewhere.

use crate::{
    beneath,
    inode::failed,
    tree::{MAX_DEPTH, WalkError, list},
};
use rayon::prelude::*;
use rustix::fs::{self, AtFlags, FileType, OFlags, Stat};
use sha2::{Digest as _, Sha256};
use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::{SystemTime, UNIX_EPOCH},
};
use verify::rootfs::RootfsPath;

/// Two ticks of the slowest clock (CONFIG_HZ=100), and some.
const TICKS_NANOS: i128 = 50_000_000;

/// What was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    pub seal: [u8; 32],
    /// The latest change, in nanoseconds since 1970.
    newest: i128,
}

impl Sealed {
    /// Whether every change lies so far back that a later one has another time.
    pub fn settled(&self, began: Moment) -> bool {
        self.newest + TICKS_NANOS < began.0
    }
}

/// [`Sealed::settled`] of one inode.
pub(crate) fn long_settled(stat: &Stat, began: Moment) -> bool {
    changed(stat) + TICKS_NANOS < began.0
}

/// A time of the clock that stamps are taken from (theirs lags by a tick).
#[derive(Debug, Clone, Copy)]
pub struct Moment(i128);

impl Moment {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        // A clock before 1970 makes nothing look settled.
        Self(since.map_or(i128::MIN, |since| since.as_nanos() as i128))
    }
}

/// Whether the file system that `directory` lies on sets a change time at each change, also by stores
/// into mappings: those that were looked at. Nothing else is ever taken for unchanged.
pub fn can_be_sealed(directory: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    const F2FS: i64 = 0xf2f5_2010;
    Ok([EXT4, XFS, BTRFS, F2FS].contains(&(fs::fstatfs(directory)?.f_type as i64)))
}

/// Seals everything below `root`, and `root` itself, on the threads of the current pool.
pub fn seal(root: BorrowedFd<'_>) -> Result<Sealed, WalkError> {
    let path = RootfsPath::root();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = beneath::openat2(root, b".", flags).map_err(failed("open", &path))?;
    let stat = fs::fstat(&root).map_err(failed("stat", &path))?;
    let mut sealed = directory(&root, path, 0)?;
    sealed.newest = sealed.newest.max(changed(&stat));
    let digest = Sha256::new_with_prefix(stamp(&stat)).chain_update(sealed.seal);
    sealed.seal = digest.finalize().into();
    Ok(sealed)
}

/// What `fd` holds; its own stamp is its parent's to take, before it is listed.
fn directory(fd: &OwnedFd, path: RootfsPath, depth: usize) -> Result<Sealed, WalkError> {
    if depth > MAX_DEPTH {
        return Err(WalkError::TooDeep(path));
    }
    let mut names = list(fd).map_err(failed("list", &path))?;
    names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let mut digest = Sha256::new();
    let mut newest = i128::MIN;
    let mut below = Vec::new();
    for (name, _) in names {
        let stat = fs::statat(fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("stat", &path)(errno))?;
        newest = newest.max(changed(&stat));
        digest.update((name.len() as u32).to_le_bytes());
        digest.update(&name);
        digest.update(stamp(&stat));
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            below.push(name);
        }
    }
    let inside = |name: Vec<u8>| {
        let path = path.join(&name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = beneath::openat2(fd, &name, flags).map_err(failed("open", &path))?;
        directory(&child, path, depth + 1)
    };
    let sealed: Result<Vec<_>, WalkError> = match below.len() {
        0 | 1 => below.into_iter().map(inside).collect(),
        _ => below.into_par_iter().map(inside).collect(),
    };
    for child in sealed? {
        newest = newest.max(child.newest);
        digest.update(child.seal);
    }
    Ok(Sealed {
        seal: digest.finalize().into(),
        newest,
    })
}

/// Everything that a change of the inode changes, in an encoding of one length.
pub(crate) type Stamp = [u8; 72];

pub(crate) fn stamp(stat: &Stat) -> Stamp {
    let mut bytes = [0; 72];
    let fields: [u64; 9] = [
        stat.st_dev,
        stat.st_ino,
        stat.st_size as u64,
        stat.st_mtime as u64,
        stat.st_ctime as u64,
        u64::from(stat.st_mtime_nsec as u32) << 32 | u64::from(stat.st_ctime_nsec as u32),
        u64::from(stat.st_uid) << 32 | u64::from(stat.st_gid),
        u64::from(stat.st_mode) << 32 | stat.st_nlink as u32 as u64,
        stat.st_rdev,
    ];
    for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    bytes
}

fn changed(stat: &Stat) -> i128 {
    i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec)
}

#[cfg(test)]
#[path = "seal_tests.rs"]
mod tests;
