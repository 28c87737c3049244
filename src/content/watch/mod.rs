//! Layers' directories under watch: which of them are, without a walk, still what a seal once said.
//!
//! A watch is a group of fanotify(7) that only listens. It marks whole file systems and asks for whatever
//! changes an inode or a directory; and for each opening, since a store into a shared mapping raises no
//! event: whoever maps a file for writing has opened it, and has it open until the mapping is gone.
//!
//! Why a layer that stands has the seal that is said:
//!
//! 1. its file system is marked, then each of its inodes noted by its handle (a directory before it is
//!    listed), and only then is each file asked whether anybody has it open for writing
//!    ([`sys::has_no_writer`]), and then is the layer sealed. A writer from before is seen by the second,
//!    a later one raises an event, and what was written before either is in the seal. The seal is the key
//!    under which a check was kept: a change between that check and the watch makes it another one;
//! 2. an event about a noted inode ends the watch of its layer, whatever it says; so do an event that
//!    names no inode and a queue that ran over, of all layers. The kernel queues an event before the
//!    system call that caused it ends, and the queue is emptied before each answer;
//! 3. only openings are looked into, since some kernels tell of those for reading through an overlay: who
//!    opened it for writing is found by asking the file again whether it has a writer, or has closed it
//!    before that, of which the kernel has queued an event by then (fs/file_table.c, `__fput`: the event,
//!    then the end of the access). So the queue is emptied once more after asking;
//! 4. the file system stays mounted while the watch lasts (by a mount of our own, so that the engine can
//!    unmount its one), thus nobody changes it elsewhere and brings it back; inode numbers that are used
//!    again have other handles.
//!
//! What raises no event: writing to the disk beneath the file system, and writing through another
//! overlay mount whose *upper* directory is a layer (fs/overlayfs opens with FMODE_NONOTIFY). Only root
//! can do these; no engine does.

mod events;

use crate::{
    beneath,
    inode::failed,
    seal,
    sys::{self, Handle},
    tree::{MAX_DEPTH, WalkError, list},
};
use anyhow::{Context as _, Result, bail, ensure};
use events::About;
use rustix::{
    fs::{self, FileType, OFlags},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{
        HashMap, HashSet,
        hash_map::{Entry, RandomState},
    },
    fs::File,
    hash::BuildHasher as _,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};
use verify::rootfs::{MAX_ENTRIES, RootfsPath};

/// Of all layers together; an inode takes 16 bytes or so.
const MAX_INODES: usize = MAX_ENTRIES;
const MAX_LAYERS: usize = 1024;
/// Openings may come while others are looked into.
const ATTEMPTS: usize = 32;

/// A layer's directory, whatever its path: an inode of a file system that stays mounted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerId {
    device: u64,
    handle: Vec<u8>,
}

impl LayerId {
    pub fn of(layer: BorrowedFd<'_>) -> Result<Self> {
        let handle = sys::handle(layer, b"").context("name_to_handle_at")?;
        let device = fs::fstat(layer)?.st_dev;
        let handle = handle.0;
        Ok(Self { device, handle })
    }
}

/// A view of the layer's directory that keeps its file system mounted, but not the mount that it was
/// opened on; to be made by a process in that mount's namespace.
pub fn held(layer: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(layer, "", flags).context("open_tree")
}

/// The layers under watch.
#[derive(Debug)]
pub struct Watch {
    group: OwnedFd,
    /// Hashes handles: by a key that nobody else knows; two that are taken for one end one watch more.
    hasher: RandomState,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// What keeps each marked file system mounted.
    marked: HashMap<u64, OwnedFd>,
    layers: HashMap<LayerId, Watched>,
    /// Handles of files that were opened, for whatever, and the device of their file system.
    opened: HashMap<Vec<u8>, u64>,
    /// Every beginning has a number of its own.
    begun: u64,
}

#[derive(Debug)]
struct Watched {
    begun: u64,
    inodes: HashSet<u64>,
    /// Those of them that are regular files.
    files: HashSet<u64>,
    /// None before all of step 1 is done.
    seal: Option<[u8; 32]>,
}

impl Watch {
    pub fn new() -> Result<Self> {
        let group = sys::listen().context("fanotify_init")?;
        Ok(Self {
            group,
            hasher: RandomState::new(),
            table: Mutex::default(),
        })
    }

    /// Begins to watch the layer at `root`, which [`held`] made; what stands is left alone. An error: it
    /// is not watched, for now.
    pub fn begin(&self, root: OwnedFd) -> Result<()> {
        let id = LayerId::of(root.as_fd())?;
        let begun = match self.note(&id, &root)? {
            Some(begun) => begun,
            None => return Ok(()),
        };
        let sealed = self.step_by_step(&id, begun, &root);
        let mut table = self.emptied();
        let still = table.layers.get_mut(&id).filter(|at| at.begun == begun);
        match (sealed, still) {
            (Ok(seal), Some(watched)) => watched.seal = Some(seal),
            (Ok(_), None) => bail!("it was changed or opened meanwhile"),
            (Err(error), still) => {
                if still.is_some() {
                    table.layers.remove(&id);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The seals of these layers, if all are under watch and nothing happened to any of them.
    pub fn standing(&self, layers: &[LayerId]) -> Option<Vec<[u8; 32]>> {
        let table = self.emptied();
        let seal = |id: &LayerId| table.layers.get(id)?.seal;
        layers.iter().map(seal).collect()
    }

    /// Takes what the kernel has queued; to be called whenever [`Self::as_fd`] can be read.
    pub fn take_events(&self) {
        drop(self.emptied());
    }

    /// The file system is marked and the layer entered, without inodes yet.
    fn note(&self, id: &LayerId, root: &OwnedFd) -> Result<Option<u64>> {
        let mut table = self.emptied();
        if table.layers.contains_key(id) {
            return Ok(None);
        }
        ensure!(
            table.layers.len() < MAX_LAYERS,
            "{MAX_LAYERS} layers are watched already"
        );
        if let Entry::Vacant(unmarked) = table.marked.entry(id.device) {
            ensure!(
                has_handles_for_all(root.as_fd())?,
                "only layers on ext4 and XFS can be watched"
            );
            let kept = directory(root)?;
            sys::mark_file_system(&self.group, &kept).context("fanotify_mark")?;
            unmarked.insert(kept);
        }
        table.begun += 1;
        let begun = table.begun;
        let watched = Watched {
            begun,
            inodes: HashSet::new(),
            files: HashSet::new(),
            seal: None,
        };
        table.layers.insert(id.clone(), watched);
        Ok(Some(begun))
    }

    fn step_by_step(&self, id: &LayerId, begun: u64, root: &OwnedFd) -> Result<[u8; 32]> {
        let (path, directory) = (RootfsPath::root(), directory(root)?);
        let beginning = Beginning {
            watch: self,
            id,
            begun,
        };
        beginning.enter(&directory, b"", &path, FileType::Directory)?;
        beginning.directory(&directory, &path, 0)?;
        Ok(seal::seal(root.as_fd())?.seal)
    }

    /// The table, once everything that the kernel has queued is heard.
    fn emptied(&self) -> MutexGuard<'_, Table> {
        // Whoever panicked has left at most a layer without a seal.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ATTEMPTS {
            self.hear(&mut table);
            if table.opened.is_empty() {
                return table;
            }
            for (handle, device) in std::mem::take(&mut table.opened) {
                if !table.has_no_writer(&handle, device) {
                    self.end(&mut table, &handle);
                }
            }
        }
        // Opened faster than it can be looked into.
        table.layers.clear();
        table
    }

    fn hear(&self, table: &mut Table) {
        let heard = events::each(&self.group, |about| match about {
            About::Inode(handle) => self.end(table, handle),
            About::Opened(handle) => {
                let inode = self.hasher.hash_one(handle);
                let mut of = table.layers.iter();
                if let Some((id, _)) = of.find(|(_, watched)| watched.files.contains(&inode)) {
                    table.opened.insert(handle.to_vec(), id.device);
                }
            }
            About::Anything => table.layers.clear(),
        });
        if heard.is_err() {
            table.layers.clear();
        }
    }

    fn end(&self, table: &mut Table, handle: &[u8]) {
        let inode = self.hasher.hash_one(handle);
        table
            .layers
            .retain(|_, watched| !watched.inodes.contains(&inode));
    }
}

impl Table {
    /// What cannot be told is not so.
    fn has_no_writer(&self, handle: &[u8], device: u64) -> bool {
        let mount = self.marked.get(&device);
        let file = mount.and_then(|mount| sys::open_handle(mount, handle).ok());
        file.is_some_and(|file| sys::has_no_writer(&file))
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

/// Which [`held`] only names.
fn directory(held: &OwnedFd) -> Result<OwnedFd, WalkError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    beneath::openat2(held, b".", flags).map_err(failed("open", &RootfsPath::root()))
}

/// Whether each inode has a handle that an event names it by, and a number that is used again another
/// one: the file systems that were looked at.
fn has_handles_for_all(directory: BorrowedFd<'_>) -> Result<bool> {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    Ok([EXT4, XFS].contains(&(fs::fstatfs(directory)?.f_type as i64)))
}

/// A layer that is being entered into the table.
struct Beginning<'w> {
    watch: &'w Watch,
    id: &'w LayerId,
    begun: u64,
}

impl Beginning<'_> {
    fn directory(&self, fd: &OwnedFd, path: &RootfsPath, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(WalkError::TooDeep(path.clone()).into());
        }
        for (name, kind) in list(fd).map_err(failed("list", path))? {
            let at = path.join(&name)?;
            self.enter(fd, &name, &at, kind)?;
            match kind {
                FileType::Directory => {
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let child = beneath::openat2(fd, &name, flags).map_err(failed("open", &at))?;
                    self.directory(&child, &at, depth + 1)?;
                }
                FileType::RegularFile => {
                    let file = beneath::open_file(fd, &name).map_err(failed("open", &at))?;
                    quiet(&file, &at)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn enter(
        &self,
        directory: &OwnedFd,
        name: &[u8],
        path: &RootfsPath,
        kind: FileType,
    ) -> Result<()> {
        let handle: Result<Handle, Errno> = sys::handle(directory.as_fd(), name);
        let handle = handle.map_err(failed("take the handle of", path))?;
        let inode = self.watch.hasher.hash_one(handle.0.as_slice());
        let mut table = self
            .watch
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let inodes: usize = table
            .layers
            .values()
            .map(|watched| watched.inodes.len())
            .sum();
        ensure!(
            inodes < MAX_INODES,
            "{MAX_INODES} inodes are watched already"
        );
        let watched = table.layers.get_mut(self.id);
        let watched = watched.filter(|watched| watched.begun == self.begun);
        let watched = watched.context("it was changed or opened meanwhile")?;
        watched.inodes.insert(inode);
        if kind == FileType::RegularFile {
            watched.files.insert(inode);
        }
        Ok(())
    }
}

fn quiet(file: &File, path: &RootfsPath) -> Result<()> {
    ensure!(sys::has_no_writer(file), "{path} is open for writing");
    Ok(())
}
