//! Opening and reading files below a directory descriptor: no symbolic link, no other mount.

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    fs::{self, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::{
    ffi::OsStr,
    fs::File,
    io::Read as _,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Stay below the directory whatever others do to the tree meanwhile (openat2(2)).
pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory by its absolute path.
pub fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty())
        .with_context(|| format!("open directory {}", path.display()))
}

/// A regular file at `name` below `directory`.
pub(crate) fn open_file(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<File> {
    // NONBLOCK: a FIFO that stands there by now must not stop us; it is refused below.
    let flags =
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat2(directory, name, flags)?;
    if FileType::from_raw_mode(fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(File::from(file))
}

/// openat2(2) may answer EAGAIN while somebody renames on the same file system: then it is asked
/// again, a bounded number of times.
pub(crate) fn openat2(
    directory: impl AsFd,
    name: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    openat2_within(directory, name, flags, BENEATH)
}

/// The same under other rules.
pub(crate) fn openat2_within(
    directory: impl AsFd,
    name: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    const ATTEMPTS: usize = 128;
    let mut last = Errno::AGAIN;
    for _ in 0..ATTEMPTS {
        match fs::openat2(
            &directory,
            OsStr::from_bytes(name),
            flags,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::AGAIN | Errno::INTR) => last = Errno::AGAIN,
            other => return other,
        }
    }
    Err(last)
}

/// The content of the file at `name` below `directory`; `None` when there is none.
pub(crate) fn read_optional(directory: impl AsFd, name: &str, max: u64) -> Result<Option<Vec<u8>>> {
    let Some(file) = open_optional(directory, name)? else {
        return Ok(None);
    };
    let content = read_at_most(file, max).with_context(|| format!("read {name}"))?;
    Ok(Some(content))
}

/// The file at `name` below `directory`; `None` when there is none.
pub(crate) fn open_optional(directory: impl AsFd, name: &str) -> Result<Option<File>> {
    match open_file(directory, name.as_bytes()) {
        Ok(file) => Ok(Some(file)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("open {name} (regular files only)")),
    }
}

/// The content of the file at `name` below `directory`.
pub(crate) fn read(directory: impl AsFd, name: &str, max: u64) -> Result<Vec<u8>> {
    match read_optional(directory, name, max)? {
        Some(bytes) => Ok(bytes),
        None => bail!("there is no {name}"),
    }
}

/// A file by its absolute path, at most `max` bytes.
pub fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    read_at_most(open_regular(path)?, max).with_context(|| format!("read {}", path.display()))
}

/// A regular file by its absolute path: a FIFO in its place stops nobody.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file =
        fs::open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))?;
    ensure!(
        FileType::from_raw_mode(fs::fstat(&file)?.st_mode) == FileType::RegularFile,
        "{} is not a regular file",
        path.display()
    );
    Ok(File::from(file))
}

pub(crate) fn read_at_most(file: File, max: u64) -> Result<Vec<u8>> {
    let size = file.metadata()?.len();
    ensure!(size <= max, "{size} bytes, more than {max}");
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(max + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= max, "more than {max} bytes");
    Ok(bytes)
}

/// A short file of procfs, whose size is shown as 0.
pub(crate) fn read_bounded_proc(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.take(64 << 20)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read {}", path.display()))?;
    Ok(bytes)
}
