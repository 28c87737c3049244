//! What was read before in this boot: layers by diff-ID, since what a layer holds is a function of its
//! diff-ID; and checked layers by the [`Key`] of their directories' state.
//!
//! Trusts: the directory (root's, 0700), in this boot only. An entry of another boot, of another
//! version or with a wrong checksum is a miss; only speed depends on what is here. An entry is one
//! file, written beside its place and renamed, never written to again:
//!
//! ```text
//! entry = head of length(u64) front sha256(32) nodes     ; sha256: of all before it
//! head  = "attestrun-cache-v3" %x00 boot-id LF
//! of    = the layer's diff-ID, or the stack's key (32)
//! ```
//! A layer's front is all of it. That of a stack names the first of its nodes, which name each other by
//! their digests (`verify::rootfs::packed`): what is looked at is checked then, and no more is read.

use crate::{beneath, layer::LayerSource, once::FilesRead, stack::Key, tree};
use anyhow::{Context as _, Result, ensure};
use rayon::prelude::*;
use rustix::{
    fs::{self, Mode, OFlags},
    process::geteuid,
};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{DirBuilder, File},
    io::Write as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, FileExt as _},
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use verify::{
    digest::DiffId,
    rootfs::{CheckedLayers, Layer, Place},
};

/// The format's name and version.
const MAGIC: &[u8] = b"attestrun-cache-v3\0";
const MAX_ENTRY: u64 = 1 << 30;
/// /run is memory: beyond this the entries that were not used for longest go.
const MAX_BYTES: u64 = 256 << 20;
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The cache's directory.
#[derive(Debug)]
pub struct Cache {
    directory: OwnedFd,
    boot: Vec<u8>,
    /// Hears of entries that are there and cannot be used.
    warn: fn(&str),
}

/// What an entry is about: its file's name, and what its head says.
struct Subject<'a> {
    name: String,
    of: &'a [u8; 32],
}

impl Subject<'_> {
    fn layer(diff_id: &DiffId) -> Subject<'_> {
        Subject {
            name: format!("layer-{}", diff_id.hex()),
            of: diff_id.as_bytes(),
        }
    }
    fn stack(key: &Key) -> Subject<'_> {
        Subject {
            name: format!("stack-{}", key.hex()),
            of: key.as_bytes(),
        }
    }
}

impl Cache {
    /// Opens the directory, or makes it.
    pub fn open(path: &Path, warn: fn(&str)) -> Result<Self> {
        let mut private = DirBuilder::new();
        private
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("create {}", path.display()))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = fs::open(path, flags, Mode::empty())
            .with_context(|| format!("open {}", path.display()))?;
        let stat = fs::fstat(&directory)?;
        ensure!(
            stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0,
            "{} must belong to this user alone (mode 0700)",
            path.display()
        );
        let boot = beneath::read_bounded_proc(Path::new("/proc/sys/kernel/random/boot_id"))?;
        Ok(Self {
            directory,
            boot,
            warn,
        })
    }

    /// The image's layers, lowest first: `wanted` are the diff-IDs of its configuration, and every
    /// layer is the one that it is asked for. And the files that were read for that.
    pub fn layers(
        &self,
        sources: &[LayerSource],
        wanted: &[DiffId],
    ) -> Result<(Vec<Layer>, FilesRead)> {
        ensure!(
            sources.len() == wanted.len(),
            "the store has {} layers, the image's configuration {}",
            sources.len(),
            wanted.len()
        );
        let known: Vec<_> = wanted.iter().map(|diff_id| self.layer(diff_id)).collect();
        let unknown = known.iter().filter(|layer| layer.is_none()).count();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let at_once = unknown.clamp(1, cores);
        // One thread of each layer puts it together, these read for it.
        let readers = cores.div_ceil(at_once) + 1;
        // Our own pool: its threads end with the call.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(at_once)
            .build()
            .context("start threads")?;
        let read = pool.install(|| {
            let each = known.into_par_iter().zip(sources).zip(wanted);
            each.map(|((known, source), wanted)| {
                self.known_or_read(known, source, *wanted, readers)
            })
            .collect::<Result<Vec<_>>>()
        })?;
        let (mut layers, mut files) = (Vec::with_capacity(read.len()), FilesRead::default());
        for (layer, of_layer) in read {
            layers.push(layer);
            files.append(of_layer);
        }
        Ok((layers, files))
    }

    fn known_or_read(
        &self,
        known: Option<Layer>,
        source: &LayerSource,
        wanted: DiffId,
        readers: usize,
    ) -> Result<(Layer, FilesRead)> {
        if let Some(layer) = known {
            return Ok((layer, FilesRead::default()));
        }
        let (layer, files) = source.read_once_as(wanted, readers)?;
        self.put(&Subject::layer(&wanted), &layer.to_bytes(), &[]);
        Ok((layer, files))
    }

    fn layer(&self, diff_id: &DiffId) -> Option<Layer> {
        let subject = Subject::layer(diff_id);
        let (front, _) = self.get(&subject)?;
        self.understood(&subject, Layer::from_bytes(&front))
    }

    /// What stood in directories whose state had this key.
    pub fn checked(&self, key: &Key) -> Option<CheckedLayers> {
        let subject = Subject::stack(key);
        let (front, nodes) = self.get(&subject)?;
        self.understood(&subject, CheckedLayers::restore(&front, Box::new(nodes)))
    }

    /// Keeps what was found while the directories' state had this key.
    pub fn keep_checked(&self, key: &Key, layers: &CheckedLayers) {
        if let Ok((front, nodes)) = layers.to_bytes() {
            self.put(&Subject::stack(key), &front, &nodes);
        }
    }

    /// What [`Self::checked`] gave turned out to be damaged where it was looked into.
    pub fn damaged(&self, key: &Key) {
        self.warn_of(&Subject::stack(key), "is damaged, and not used");
    }

    /// The front of an entry, and the nodes that follow; `None` when there is none that counts.
    fn get(&self, subject: &Subject<'_>) -> Option<(Vec<u8>, Nodes)> {
        let name = &subject.name;
        let file = match beneath::open_optional(&self.directory, name) {
            Ok(found) => found?,
            Err(error) => {
                self.warn_of(subject, &format!("cannot be read: {error:#}"));
                return None;
            }
        };
        let head = self.head(subject);
        let Some((said, nodes)) = front(file, head.len()) else {
            self.warn_of(subject, "is damaged or of another version, and not used");
            return None;
        };
        // Another boot's, or another subject's.
        let front = said.strip_prefix(head.as_slice())?.get(8..)?.to_vec();
        // Used now: pruned later than others.
        let now = fs::Timestamps {
            last_access: NOW,
            last_modification: NOW,
        };
        fs::utimensat(&self.directory, name, &now, fs::AtFlags::SYMLINK_NOFOLLOW).ok();
        Some((front, nodes))
    }

    fn warn_of(&self, subject: &Subject<'_>, what: &str) {
        (self.warn)(&format!("the cache's entry {} {what}", subject.name));
    }

    fn understood<T, E>(&self, subject: &Subject<'_>, read: Result<T, E>) -> Option<T> {
        if read.is_err() {
            self.warn_of(subject, "is malformed, and not used");
        }
        read.ok()
    }

    /// Only speed is lost when it cannot be kept (no space left, say).
    fn put(&self, subject: &Subject<'_>, front: &[u8], nodes: &[u8]) {
        if let Err(error) = self.write(subject, front, nodes) {
            self.warn_of(subject, &format!("cannot be kept: {error:#}"));
        }
        self.prune().ok();
    }

    fn write(&self, subject: &Subject<'_>, front: &[u8], nodes: &[u8]) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let length = (front.len() as u64).to_le_bytes();
        let said = [&self.head(subject), length.as_slice(), front].concat();
        let checksum = Sha256::digest(&said);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("{TEMPORARY}{}.{count}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(&self.directory, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(file);
        let written = file
            .write_all(&said)
            .and_then(|()| file.write_all(&checksum))
            .and_then(|()| file.write_all(nodes))
            .map_err(anyhow::Error::from);
        let renamed = written.and_then(|()| {
            let directory = &self.directory;
            Ok(fs::renameat(
                directory,
                &temporary,
                directory,
                &subject.name,
            )?)
        });
        if renamed.is_err() {
            let _ = fs::unlinkat(self.directory.as_fd(), &temporary, fs::AtFlags::empty());
        }
        renamed
    }

    fn head(&self, subject: &Subject<'_>) -> Vec<u8> {
        [MAGIC, &self.boot, subject.of.as_slice()].concat()
    }

    /// Removes what is old or too much, and what writers that were killed have left.
    fn prune(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let mut entries = Vec::new();
        for (name, _) in tree::list(&self.directory)? {
            let Ok(stat) = fs::statat(
                &self.directory,
                name.as_slice(),
                fs::AtFlags::SYMLINK_NOFOLLOW,
            ) else {
                continue; // somebody else's pruning
            };
            if fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::RegularFile {
                let used = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
                entries.push((used, u64::try_from(stat.st_size).unwrap_or(0), name));
            }
        }
        entries.sort_unstable_by(|a, b| b.cmp(a));
        let mut sum = 0u64;
        for (used, size, name) in entries {
            sum = sum.saturating_add(size);
            let age = now.saturating_sub(used);
            let left = name.starts_with(TEMPORARY.as_bytes()) && age > WRITING;
            if sum > MAX_BYTES || age > MAX_AGE || left {
                fs::unlinkat(&self.directory, name.as_slice(), fs::AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

/// All before an entry's nodes, by its checksum what was written, and the nodes.
fn front(file: File, head: usize) -> Option<(Vec<u8>, Nodes)> {
    let size = file.metadata().ok()?.len();
    let mut start = vec![0; head + 8];
    file.read_exact_at(&mut start, 0).ok()?;
    let length = u64::from_le_bytes(*start.last_chunk()?);
    let before = (start.len() as u64).checked_add(length)?;
    let from = before.checked_add(32)?;
    if from > size || size > MAX_ENTRY {
        return None;
    }
    let mut said = vec![0; usize::try_from(from).ok()?];
    file.read_exact_at(&mut said, 0).ok()?;
    let sum = said.split_off(usize::try_from(before).ok()?);
    let length = size - from;
    let nodes = Nodes { file, from, length };
    (Sha256::digest(&said).as_slice() == sum).then_some((said, nodes))
}

/// What follows an entry's front. It is read and not mapped: what was checked is a copy of our own, and
/// a file that got shorter is an error instead of a signal.
struct Nodes {
    file: File,
    from: u64,
    length: u64,
}

impl Place for Nodes {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(length as u64)?;
        if end > self.length {
            return None;
        }
        let mut bytes = vec![0; length];
        let at = self.from.checked_add(offset)?;
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }
}

const TEMPORARY: &str = ".new.";
/// Longer than anybody writes one entry.
const WRITING: Duration = Duration::from_secs(60);
const NOW: fs::Timespec = fs::Timespec {
    tv_sec: 0,
    tv_nsec: fs::UTIME_NOW,
};

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
