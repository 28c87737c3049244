//! Files that need not be read again: of the container's overlay, and untouched since before its first
//! process.
//!
//! The kernel moves a file's change time to now at each write and truncation, when it copies a file of a lower
//! layer up, and at the first store into a page of a shared mapping; no call sets it. So a file whose change
//! time lies before the container's first process has the content that it had then, and no process of the
//! container can have stored into it, nor into a page that stays writable to it. A file that was changed
//! later is read anew each time, whatever its times say, since a store into a page that was stored into
//! before moves nothing.
//!
//! That holds while the clock only goes forward, and on file systems that notice the first store; where
//! either is not known, nothing is settled.

use super::sys::{self, Clock};
use anyhow::{Context, Result};
use rustix::fs::{fstat, statfs};
use std::{
    collections::HashMap,
    fs::File,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};
use verify::digest::FileDigest;

/// Where the file systems' clock, which ticks in milliseconds, could be behind.
const MARGIN_NANOS: i128 = 1_000_000_000;
/// A container with more programs than that has them read again.
const MOST: usize = 4096;

/// Whether the file system below, where the container's changes go, moves a file's change time when
/// somebody stores into a shared mapping (page_mkwrite); tmpfs, for one, does not.
pub fn notices_stores(upper: &Path) -> Result<bool> {
    let found = statfs(upper).with_context(|| format!("cannot look at {}", upper.display()))?;
    let known = [
        libc::EXT4_SUPER_MAGIC,
        libc::XFS_SUPER_MAGIC,
        libc::BTRFS_SUPER_MAGIC,
    ];
    Ok(known.contains(&found.f_type))
}

/// Which file it is, and when it was changed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    changed_nanos: i128,
}

impl Stamp {
    pub fn of(file: &File) -> Result<Self> {
        let stat = fstat(file).context("cannot look at it")?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            changed_nanos: i128::from(stat.st_ctime) * 1_000_000_000
                + i128::from(stat.st_ctime_nsec),
        })
    }
}

/// Digests of settled files.
pub enum Settled {
    /// Every file is read anew.
    Never,
    Since(Box<Since>),
}

pub struct Since {
    /// The container's overlay.
    device: u64,
    before_nanos: i128,
    clock: Clock,
    known: HashMap<Stamp, FileDigest>,
}

impl Settled {
    /// From now on; called before the container's first process.
    pub fn on(device: u64) -> Result<Self> {
        // first the watch, then the look
        let clock = sys::clock().context("cannot watch the clock")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = i128::try_from(now.context("the clock is before 1970")?.as_nanos())?;
        Ok(Self::Since(Box::new(Since {
            device,
            before_nanos: now - MARGIN_NANOS,
            clock,
            known: HashMap::new(),
        })))
    }

    /// The digest of a file that is settled and was read before. `stamp` was taken under a lease.
    pub fn digest(&mut self, stamp: &Stamp) -> Option<FileDigest> {
        self.check_clock();
        match self {
            Self::Since(since) => since.known.get(stamp).copied(),
            Self::Never => None,
        }
    }

    /// The file had this stamp before and after it was read.
    pub fn remember(&mut self, stamp: Stamp, digest: FileDigest) {
        self.check_clock();
        let Self::Since(since) = self else { return };
        let settled = stamp.device == since.device && stamp.changed_nanos < since.before_nanos;
        if settled && since.known.len() < MOST {
            since.known.insert(stamp, digest);
        }
    }

    /// Somebody set the clock: what is written from now on may look old.
    fn check_clock(&mut self) {
        let went = match self {
            Self::Since(since) => since.clock.was_set(),
            Self::Never => false,
        };
        if went {
            *self = Self::Never;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        io::Write,
        path::PathBuf,
        time::{Duration, Instant},
    };

    const DIGEST: FileDigest = FileDigest::from_bytes([7; 32]);

    fn file(name: &str) -> (PathBuf, File) {
        let path = std::env::temp_dir().join(format!("attestrun-{name}-{}", std::process::id()));
        fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        (path, file)
    }

    /// Of a container that starts in so many seconds.
    fn starting(device: u64, seconds: i128) -> Settled {
        let mut settled = Settled::on(device).unwrap();
        if let Settled::Since(since) = &mut settled {
            since.before_nanos += seconds * 1_000_000_000;
        }
        settled
    }

    #[test]
    fn accept_a_file_that_nobody_touched() {
        let (path, file) = file("settled");
        let stamp = Stamp::of(&file).unwrap();
        let mut settled = starting(stamp.device, 60);
        assert_eq!(settled.digest(&stamp), None);
        settled.remember(stamp, DIGEST);
        assert_eq!(settled.digest(&stamp), Some(DIGEST));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn refuse_what_was_written_since() {
        let (path, file) = file("settled-written");
        let stamp = Stamp::of(&file).unwrap();
        let mut settled = starting(stamp.device, 60);
        settled.remember(stamp, DIGEST);
        let since = Instant::now();
        // the same size; file systems' clocks tick in milliseconds
        while Stamp::of(&file).unwrap() == stamp && since.elapsed() < Duration::from_secs(5) {
            File::create(&path).unwrap().write_all(b"y").unwrap();
        }
        assert_eq!(settled.digest(&Stamp::of(&file).unwrap()), None);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn refuse_what_is_younger_than_the_container() {
        let (path, file) = file("settled-young");
        let stamp = Stamp::of(&file).unwrap();
        let mut settled = starting(stamp.device, 0);
        settled.remember(stamp, DIGEST);
        assert_eq!(settled.digest(&stamp), None);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn refuse_another_file_system() {
        let (path, file) = file("settled-elsewhere");
        let stamp = Stamp::of(&file).unwrap();
        let mut settled = starting(stamp.device + 1, 60);
        settled.remember(stamp, DIGEST);
        assert_eq!(settled.digest(&stamp), None);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn refuse_file_systems_that_do_not_notice() {
        assert!(!notices_stores(Path::new("/proc")).unwrap());
        assert!(!notices_stores(Path::new("/dev/shm")).unwrap());
    }
}
