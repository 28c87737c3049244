//! A directory tree as it is on disk: walked by descriptors, every regular file hashed. Either what a
//! mount shows, or one of the directories that an overlay mount lays over each other.
//!
//! Trusts nothing in the tree: each step opens one name below the directory that is open already,
//! never follows a link and never enters another mount. What cannot be read, or changes while it is
//! read, is an error that names the path.

use crate::{
    beneath,
    inode::{Reading, entry, failed, hash, is_opaque, special, stamp, xattrs},
    once::FilesRead,
};
use rayon::prelude::*;
use rustix::{
    fs::{self, AtFlags, FileType, OFlags, RawDir},
    io::Errno,
};
use std::{
    fs::File,
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};
use verify::{
    digest::FileDigest,
    rootfs::{
        Entry, Kind, Layer, LayerBuilder, LayerEntry, LayerError, MAX_ENTRIES, PathError,
        RootfsPath, Tree, TreeError,
    },
};

/// Directories within directories; every level holds a descriptor.
pub(crate) const MAX_DEPTH: usize = 256;
/// Files that wait for hashing hold their directory's descriptor: bounded, so that the walk stays
/// below the usual limit of 1024.
const BATCH: usize = 256;
/// Below this many bytes, starting threads costs more than it saves.
const WORTH_THREADS: u64 = 8 << 20;
const BUFFER: usize = 256 << 10;

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    #[error("cannot {action} {path}: {errno}")]
    Io {
        action: &'static str,
        path: RootfsPath,
        errno: Errno,
    },
    #[error("{0} changed while it was read")]
    Changed(RootfsPath),
    #[error("{0} is a mount point: the tree below it is not part of the rootfs")]
    MountPoint(RootfsPath),
    #[error("{0} lies more than {MAX_DEPTH} directories deep")]
    TooDeep(RootfsPath),
    #[error("more than {0} entries")]
    TooMany(usize),
    #[error("more than {0} bytes in its files")]
    TooLarge(u64),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{path} has the overlay file system's mark {mark}, which is not followed here")]
    Marked { path: RootfsPath, mark: String },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("cannot start threads: {0}")]
    Threads(String),
}

/// How much may be read, and what is left out.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'a> {
    pub entries: usize,
    pub bytes: u64,
    /// Other mounts stand there.
    pub except: &'a [RootfsPath],
}

impl Bounds<'_> {
    /// An image's: its layers bound what it may hold.
    const IMAGE: Self = Self {
        entries: MAX_ENTRIES,
        bytes: u64::MAX,
        except: &[],
    };
}

/// Everything below `root`, which is not trusted to be small.
pub fn walk_within(root: BorrowedFd<'_>, bounds: &Bounds<'_>) -> Result<Tree, WalkError> {
    mounted(root, Contents::Read, bounds)
}

/// Everything below `root`, and the root itself; but a file that has the size of the one that is
/// `expected` at its path is taken to have that one's content, and is not read. All else is looked at.
pub fn walk_unread(root: BorrowedFd<'_>, expected: &Tree) -> Result<Tree, WalkError> {
    mounted(root, Contents::Expected(expected), &Bounds::IMAGE)
}

fn mounted(
    root: BorrowedFd<'_>,
    contents: Contents<'_>,
    bounds: &Bounds<'_>,
) -> Result<Tree, WalkError> {
    let nothing = FilesRead::default();
    let walk = Walk::of(root, View::Mounted, &nothing, contents, bounds)?;
    Ok(Tree::new(walk.found)?)
}

/// What is no directory, by two descriptors: `at` names it (O_PATH), `opened` reads it if it is a
/// regular file.
pub fn single(at: BorrowedFd<'_>, opened: Option<File>, bytes: u64) -> Result<Entry, WalkError> {
    let path = RootfsPath::root();
    let Some(file) = opened else {
        return special(at, b"").map_err(failed("read", &path));
    };
    let before = fs::fstat(&file).map_err(failed("stat", &path))?;
    if u64::try_from(before.st_size).unwrap_or(u64::MAX) > bytes {
        return Err(WalkError::TooLarge(bytes));
    }
    let mut reading = Reading {
        file,
        before,
        quiet: false,
        view: View::Mounted,
    };
    let (size, digest) = hash(&mut reading, &mut vec![0; BUFFER], &path)?;
    reading.end(&path, size, digest)
}

/// Everything below `root`, and the root itself.
pub fn walk(root: BorrowedFd<'_>) -> Result<Tree, WalkError> {
    walk_within(root, &Bounds::IMAGE)
}

/// What one directory of an overlay mount holds.
#[derive(Debug)]
pub struct Unpacked {
    pub layer: Layer,
    /// Nobody had one of the files open for writing, nor mapped, when its reading began.
    pub quiet: bool,
}

/// Everything below `root`, read as the overlay file system does: which names are whiteouts, which
/// directories are opaque (Documentation/filesystems/overlayfs.rst). What was `read` already is not
/// read again.
pub fn unpacked(root: BorrowedFd<'_>, read: &FilesRead) -> Result<Unpacked, WalkError> {
    let walk = Walk::of(root, View::Unpacked, read, Contents::Read, &Bounds::IMAGE)?;
    let mut layer = LayerBuilder::default();
    let mut found = walk.found;
    // Directories before what they hold.
    found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    for (path, entry) in found {
        match entry.kind {
            Kind::CharDevice { major: 0, minor: 0 } => layer.whiteout(path)?,
            _ => layer.restore(path, LayerEntry::Entry(entry))?,
        }
    }
    for path in walk.opaque {
        layer.opaque(path)?;
    }
    Ok(Unpacked {
        layer: layer.build(),
        quiet: walk.quiet,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Mounted,
    Unpacked,
}

/// Whether files are read.
#[derive(Clone, Copy)]
enum Contents<'r> {
    Read,
    /// Not those that have the size of what stands there at the same path.
    Expected(&'r Tree),
}

struct Walk<'r> {
    view: View,
    read: &'r FilesRead,
    contents: Contents<'r>,
    bounds: &'r Bounds<'r>,
    /// Of the files that were hashed here.
    bytes: u64,
    found: Vec<(RootfsPath, Entry)>,
    opaque: Vec<RootfsPath>,
    quiet: bool,
    waiting: Vec<Waiting>,
    pool: Option<rayon::ThreadPool>,
}

/// A regular file that is still to be hashed.
struct Waiting {
    directory: Arc<OwnedFd>,
    path: RootfsPath,
}

impl<'r> Walk<'r> {
    fn of(
        root: BorrowedFd<'_>,
        view: View,
        read: &'r FilesRead,
        contents: Contents<'r>,
        bounds: &'r Bounds<'r>,
    ) -> Result<Self, WalkError> {
        let path = RootfsPath::root();
        // A descriptor of our own: the caller's may be O_PATH or stand in the middle of a listing.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = beneath::openat2(root, b".", flags).map_err(failed("open", &path))?;
        let mut walk = Self {
            view,
            read,
            contents,
            bounds,
            bytes: 0,
            found: Vec::new(),
            opaque: Vec::new(),
            quiet: true,
            waiting: Vec::new(),
            pool: None,
        };
        walk.directory(Arc::new(root), path, 0)?;
        walk.hash_waiting()?;
        Ok(walk)
    }

    fn directory(
        &mut self,
        fd: Arc<OwnedFd>,
        path: RootfsPath,
        depth: usize,
    ) -> Result<(), WalkError> {
        if depth > MAX_DEPTH {
            return Err(WalkError::TooDeep(path));
        }
        let before = fs::fstat(&fd).map_err(failed("stat", &path))?;
        let (xattrs, marks) = xattrs(&fd).map_err(failed("read extended attributes of", &path))?;
        if self.view == View::Unpacked && is_opaque(&path, &marks)? {
            self.opaque.push(path.clone());
        }
        self.push(path.clone(), entry(&before, Kind::Directory, xattrs))?;
        for (name, kind) in list(&fd).map_err(failed("list", &path))? {
            let path = path.join(&name)?;
            if self.bounds.except.contains(&path) {
                continue;
            }
            match kind {
                FileType::RegularFile if self.was_read(&fd, &name, &path)? => {}
                FileType::RegularFile => {
                    self.waiting.push(Waiting {
                        directory: fd.clone(),
                        path,
                    });
                    if self.waiting.len() >= BATCH {
                        self.hash_waiting()?;
                    }
                }
                FileType::Directory => {
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let child =
                        beneath::openat2(&fd, &name, flags).map_err(failed("open", &path))?;
                    self.directory(Arc::new(child), path, depth + 1)?;
                }
                _ => match special(&fd, &name) {
                    // The kernel lists the whiteouts of a directory that only one layer has, and
                    // finds nothing there (fs/overlayfs/readdir.c).
                    Err(Errno::NOENT) if kind == FileType::CharacterDevice => {}
                    read => self.push(path.clone(), read.map_err(failed("read", &path))?)?,
                },
            }
        }
        let after = fs::fstat(&fd).map_err(failed("stat", &path))?;
        if stamp(&before) != stamp(&after) {
            return Err(WalkError::Changed(path));
        }
        Ok(())
    }

    /// Takes over what was read of the file before.
    fn was_read(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: &RootfsPath,
    ) -> Result<bool, WalkError> {
        if self.read.is_empty() {
            return Ok(false);
        }
        let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(failed("stat", path))?;
        let Some((entry, quiet)) = self.read.get(&stat) else {
            return Ok(false);
        };
        self.quiet &= quiet;
        self.push(path.clone(), entry.clone())?;
        Ok(true)
    }

    fn push(&mut self, path: RootfsPath, entry: Entry) -> Result<(), WalkError> {
        if self.found.len() >= self.bounds.entries {
            return Err(WalkError::TooMany(self.bounds.entries));
        }
        self.found.push((path, entry));
        Ok(())
    }

    fn hash_waiting(&mut self) -> Result<(), WalkError> {
        let waiting = std::mem::take(&mut self.waiting);
        if self.found.len() + waiting.len() > self.bounds.entries {
            return Err(WalkError::TooMany(self.bounds.entries));
        }
        let ahead = bytes(&waiting);
        self.bytes = self.bytes.saturating_add(ahead);
        if self.bytes > self.bounds.bytes {
            return Err(WalkError::TooLarge(self.bounds.bytes));
        }
        if waiting.len() < 16 && ahead < WORTH_THREADS {
            let mut buffer = vec![0; BUFFER];
            for file in waiting {
                let (entry, quiet) = regular(&file, &mut buffer, self.view, self.contents)?;
                self.quiet &= quiet;
                self.found.push((file.path, entry));
            }
            return Ok(());
        }
        if self.pool.is_none() {
            // Our own pool: its threads end with the walk.
            let pool = rayon::ThreadPoolBuilder::new().build();
            self.pool = Some(pool.map_err(|e| WalkError::Threads(e.to_string()))?);
        }
        let (view, contents) = (self.view, self.contents);
        let hash = || {
            let hashed = waiting.into_par_iter().map_init(
                || vec![0; BUFFER],
                |buffer, file| regular(&file, buffer, view, contents).map(|read| (file.path, read)),
            );
            hashed.collect::<Result<Vec<_>, _>>()
        };
        let hashed = match &self.pool {
            Some(pool) => pool.install(hash)?,
            None => hash()?,
        };
        for (path, (entry, quiet)) in hashed {
            self.quiet &= quiet;
            self.found.push((path, entry));
        }
        Ok(())
    }
}

/// An estimate: what cannot be looked at here is an error when it is hashed.
fn bytes(waiting: &[Waiting]) -> u64 {
    let size = |file: &Waiting| {
        let stat = fs::statat(&file.directory, file.path.name(), AtFlags::SYMLINK_NOFOLLOW);
        stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
    };
    waiting.iter().map(size).sum()
}

pub(crate) fn list(directory: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut names = Vec::new();
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        names.push((name.to_vec(), kind));
    }
    Ok(names)
}

/// The file's entry, and whether nobody was writing to it when it was opened.
fn regular(
    file: &Waiting,
    buffer: &mut [u8],
    view: View,
    contents: Contents<'_>,
) -> Result<(Entry, bool), WalkError> {
    let path = &file.path;
    let mut reading =
        Reading::begin(&file.directory, path.name(), view).map_err(failed("open", path))?;
    let (size, digest) = match contents {
        Contents::Expected(tree) => match taken(tree.get(path), &reading) {
            Some(taken) => taken,
            None => hash(&mut reading, buffer, path)?,
        },
        Contents::Read => hash(&mut reading, buffer, path)?,
    };
    let entry = reading.end(path, size, digest)?;
    Ok((entry, reading.quiet))
}

/// What is said of a file that has this size.
fn taken(expected: Option<&Entry>, reading: &Reading) -> Option<(u64, FileDigest)> {
    match expected?.kind {
        Kind::File { size, digest } if u64::try_from(reading.before.st_size) == Ok(size) => {
            Some((size, digest))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
