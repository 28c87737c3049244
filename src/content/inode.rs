//! One inode of a tree: a regular file between its opening and the proof that nobody changed it meanwhile,
//! and everything else by being looked at.

use crate::{
    beneath, sys,
    tree::{View, WalkError},
};
use rustix::{
    fs::{self, AtFlags, FileType, Stat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, fs::File, io::Read as _, os::fd::AsFd};
use verify::{
    digest::FileDigest,
    rootfs::{Entry, Kind, RootfsPath, SYMLINK_MODE, xattr_counts},
};

/// What the kernel reads ahead without being told.
const READ_AHEAD: i64 = 128 << 10;

/// A regular file between its opening and the proof that nobody changed it meanwhile.
pub(crate) struct Reading {
    pub file: File,
    pub before: Stat,
    /// Nobody had it open for writing, nor mapped.
    pub quiet: bool,
    pub view: View,
}

impl Reading {
    /// `name` may be several components, below `directory`.
    pub fn begin(directory: impl AsFd, name: &[u8], view: View) -> rustix::io::Result<Self> {
        let file = beneath::open_file(directory, name)?;
        let quiet = view == View::Unpacked && sys::has_no_writer(&file);
        let before = fs::fstat(&file)?;
        if before.st_size > READ_AHEAD {
            // Only a hint. Cold, with three readers: 0.42 of the time that large files take without it;
            // O_DIRECT 0.58, and the container would read them again; WILLNEED and DONTNEED are slower.
            fs::fadvise(&file, 0, None, fs::Advice::Sequential).ok();
        }
        Ok(Self {
            before,
            file,
            quiet,
            view,
        })
    }

    /// The file's entry, if `size` is all of it.
    pub fn end(
        &self,
        path: &RootfsPath,
        size: u64,
        digest: FileDigest,
    ) -> Result<Entry, WalkError> {
        let read = xattrs(&self.file);
        let (xattrs, marks) = read.map_err(failed("read extended attributes of", path))?;
        if self.view == View::Unpacked {
            only_bookkeeping(path, &marks)?;
        }
        let after = fs::fstat(&self.file).map_err(failed("stat", path))?;
        if stamp(&self.before) != stamp(&after) || u64::try_from(after.st_size) != Ok(size) {
            return Err(WalkError::Changed(path.clone()));
        }
        Ok(entry(&after, Kind::File { size, digest }, xattrs))
    }
}

/// Reads to the end; beyond what the file had at first no more than shows that it grew.
pub(crate) fn hash(
    reading: &mut Reading,
    buffer: &mut [u8],
    path: &RootfsPath,
) -> Result<(u64, FileDigest), WalkError> {
    let mut hasher = Sha256::new();
    let mut size = 0;
    let most = u64::try_from(reading.before.st_size).unwrap_or(0);
    while size <= most {
        match reading.file.read(buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                return Err(failed("read", path)(errno));
            }
        }
    }
    Ok((size, FileDigest::from_bytes(hasher.finalize().into())))
}

/// A symbolic link, device, FIFO or socket: looked at, never opened. Extended attributes of these
/// mean nothing to the kernel.
pub(crate) fn special(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<Entry> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let stat = fs::statat(&directory, name, flags)?;
    let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = fs::readlinkat(directory, name, Vec::new())?.into_bytes();
            Kind::Symlink { target }
        }
        FileType::CharacterDevice => Kind::CharDevice { major, minor },
        FileType::BlockDevice => Kind::BlockDevice { major, minor },
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        // It was something else when it was listed.
        _ => return Err(Errno::STALE),
    };
    Ok(entry(&stat, kind, BTreeMap::new()))
}

pub(crate) fn entry(stat: &Stat, kind: Kind, xattrs: BTreeMap<Vec<u8>, Vec<u8>>) -> Entry {
    let mode = match kind {
        Kind::Symlink { .. } => SYMLINK_MODE,
        _ => (stat.st_mode & 0o7777) as u16,
    };
    Entry {
        kind,
        mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        xattrs,
    }
}

/// Equal before and after: nobody wrote meanwhile, as far as the file system tells.
pub(crate) fn stamp(stat: &Stat) -> impl PartialEq + use<> {
    let inode = (
        stat.st_dev,
        stat.st_ino,
        stat.st_mode,
        stat.st_uid,
        stat.st_gid,
        stat.st_size,
    );
    (
        inode,
        stat.st_mtime,
        stat.st_mtime_nsec,
        stat.st_ctime,
        stat.st_ctime_nsec,
    )
}

/// Extended attributes by name.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the overlay file system keeps on the files of its directories; a mount does not show it.
const MARKS: &[u8] = b"trusted.overlay.";
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Where a copy came from, and what it is: nothing of what is shown depends on it.
const BOOKKEEPING: [&[u8]; 5] = [
    b"trusted.overlay.origin",
    b"trusted.overlay.impure",
    b"trusted.overlay.nlink",
    b"trusted.overlay.upper",
    b"trusted.overlay.uuid",
];

/// `redirect` and `metacopy` lead to other files: such a directory is read through its mount.
fn only_bookkeeping(path: &RootfsPath, marks: &Xattrs) -> Result<(), WalkError> {
    match marks
        .keys()
        .find(|mark| !BOOKKEEPING.contains(&mark.as_slice()))
    {
        None => Ok(()),
        Some(mark) => Err(WalkError::Marked {
            path: path.clone(),
            mark: verify::rootfs::encode(mark),
        }),
    }
}

pub(crate) fn is_opaque(path: &RootfsPath, marks: &Xattrs) -> Result<bool, WalkError> {
    let mut marks = marks.clone();
    let opaque = marks.remove(OPAQUE);
    only_bookkeeping(path, &marks)?;
    match opaque.as_deref() {
        None => Ok(false),
        Some(b"y") => Ok(true),
        Some(_) => Err(WalkError::Marked {
            path: path.clone(),
            mark: verify::rootfs::encode(OPAQUE),
        }),
    }
}

/// Those that are part of a tree, and the overlay file system's marks.
pub(crate) fn xattrs(file: impl AsFd) -> rustix::io::Result<(Xattrs, Xattrs)> {
    const MAX: usize = 64 << 10; // XATTR_LIST_MAX and XATTR_SIZE_MAX (xattr(7))
    let mut found = (Xattrs::new(), Xattrs::new());
    let mut small = [0; 1024];
    let mut large = Vec::new();
    let names: &[u8] = match fs::flistxattr(&file, &mut small[..]) {
        Ok(length) => &small[..length],
        Err(Errno::OPNOTSUPP) => return Ok(found),
        Err(Errno::RANGE) => {
            large.resize(MAX, 0);
            let length = fs::flistxattr(&file, &mut large[..])?;
            &large[..length]
        }
        Err(errno) => return Err(errno),
    };
    for name in names.split(|byte| *byte == 0) {
        let into = match name {
            name if xattr_counts(name) => &mut found.0,
            name if name.starts_with(MARKS) => &mut found.1,
            _ => continue,
        };
        let mut value = vec![0; MAX];
        let length = fs::fgetxattr(&file, name, &mut value[..])?;
        value.truncate(length);
        into.insert(name.to_vec(), value);
    }
    Ok(found)
}

pub(crate) fn failed<'a>(
    action: &'static str,
    path: &'a RootfsPath,
) -> impl Fn(Errno) -> WalkError + 'a {
    move |errno| match errno {
        Errno::XDEV => WalkError::MountPoint(path.clone()),
        errno => WalkError::Io {
            action,
            path: path.clone(),
            errno,
        },
    }
}
