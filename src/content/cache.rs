//! Layers that were read before, by diff-ID: what a layer holds is a function of its diff-ID, so it
//! needs to be hashed only once.
//!
//! Trusts: the directory (root's, 0700), in this boot only. An entry of another boot, of another
//! version or with a wrong checksum is a miss. The mounted rootfs is hashed every time all the same.

use crate::{beneath, layer::LayerSource};
use anyhow::{Context as _, Result, ensure};
use rayon::prelude::*;
use rustix::{
    fs::{self, Mode, OFlags},
    process::geteuid,
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File},
    io::Write as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};
use verify::{
    digest::{DiffId, FileDigest},
    rootfs::{Entry, Kind, Layer, LayerBuilder, LayerEntry, RootfsPath},
};

/// The format's name and version.
const MAGIC: &[u8] = b"attestrun-layer-v1\0";
const MAX_ENTRY: u64 = 4 << 30;

/// The cache's directory.
#[derive(Debug)]
pub struct Cache {
    directory: OwnedFd,
    boot: Vec<u8>,
}

impl Cache {
    /// Opens the directory, or makes it.
    pub fn open(path: &Path) -> Result<Self> {
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
        Ok(Self { directory, boot })
    }

    /// The image's layers, lowest first: `wanted` are the diff-IDs of its configuration, and every
    /// layer is the one that it is asked for.
    pub fn layers(&self, sources: &[LayerSource], wanted: &[DiffId]) -> Result<Vec<Layer>> {
        ensure!(
            sources.len() == wanted.len(),
            "the store has {} layers, the image's configuration {}",
            sources.len(),
            wanted.len()
        );
        let known: Vec<_> = wanted.iter().map(|diff_id| self.get(*diff_id)).collect();
        if known.iter().filter(|layer| layer.is_none()).count() < 2 {
            let each = known.into_iter().zip(sources).zip(wanted);
            return each
                .map(|((known, source), wanted)| self.known_or_read(known, source, *wanted))
                .collect();
        }
        // Our own pool: its threads end with the call.
        let pool = rayon::ThreadPoolBuilder::new()
            .build()
            .context("start threads")?;
        pool.install(|| {
            let each = known.into_par_iter().zip(sources).zip(wanted);
            each.map(|((known, source), wanted)| self.known_or_read(known, source, *wanted))
                .collect()
        })
    }

    fn known_or_read(
        &self,
        known: Option<Layer>,
        source: &LayerSource,
        wanted: DiffId,
    ) -> Result<Layer> {
        if let Some(layer) = known {
            return Ok(layer);
        }
        let layer = source.read_as(wanted)?;
        // Only speed is lost when it cannot be kept (no space left, say).
        let _ = self.put(wanted, &layer);
        Ok(layer)
    }

    fn get(&self, diff_id: DiffId) -> Option<Layer> {
        let bytes = beneath::read_optional(&self.directory, &diff_id.hex(), MAX_ENTRY).ok()??;
        let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Sha256::digest(content).as_slice() != checksum {
            return None;
        }
        let body = content.strip_prefix(self.head(diff_id).as_slice())?;
        decode(body)
    }

    fn put(&self, diff_id: DiffId, layer: &Layer) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut bytes = self.head(diff_id);
        encode(layer, &mut bytes);
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".{}.{}.{count}", diff_id.hex(), std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(&self.directory, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let written = File::from(file)
            .write_all(&bytes)
            .map_err(anyhow::Error::from);
        let renamed = written.and_then(|()| {
            Ok(fs::renameat(
                &self.directory,
                &temporary,
                &self.directory,
                diff_id.hex(),
            )?)
        });
        if renamed.is_err() {
            let _ = fs::unlinkat(self.directory.as_fd(), &temporary, fs::AtFlags::empty());
        }
        renamed
    }

    fn head(&self, diff_id: DiffId) -> Vec<u8> {
        [MAGIC, &self.boot, diff_id.as_bytes().as_slice()].concat()
    }
}

const ENTRY_FILE: u8 = 0;
const ENTRY_DIRECTORY: u8 = 1;
const ENTRY_SYMLINK: u8 = 2;
const ENTRY_CHAR: u8 = 3;
const ENTRY_BLOCK: u8 = 4;
const ENTRY_FIFO: u8 = 5;
const ENTRY_SOCKET: u8 = 6;
const ENTRY_HARDLINK: u8 = 7;

fn encode(layer: &Layer, out: &mut Vec<u8>) {
    number(out, layer.present().len());
    for (path, item) in layer.present() {
        text(out, path.as_bytes());
        let entry = match item {
            LayerEntry::Hardlink { target } => {
                out.push(ENTRY_HARDLINK);
                text(out, target.as_bytes());
                continue;
            }
            LayerEntry::Entry(entry) => entry,
        };
        match &entry.kind {
            Kind::File { size, digest } => {
                out.push(ENTRY_FILE);
                out.extend_from_slice(&size.to_le_bytes());
                out.extend_from_slice(digest.as_bytes());
            }
            Kind::Directory => out.push(ENTRY_DIRECTORY),
            Kind::Symlink { target } => {
                out.push(ENTRY_SYMLINK);
                text(out, target);
            }
            Kind::CharDevice { major, minor } => device(out, ENTRY_CHAR, *major, *minor),
            Kind::BlockDevice { major, minor } => device(out, ENTRY_BLOCK, *major, *minor),
            Kind::Fifo => out.push(ENTRY_FIFO),
            Kind::Socket => out.push(ENTRY_SOCKET),
        }
        out.extend_from_slice(&entry.mode.to_le_bytes());
        out.extend_from_slice(&entry.uid.to_le_bytes());
        out.extend_from_slice(&entry.gid.to_le_bytes());
        number(out, entry.xattrs.len());
        for (name, value) in &entry.xattrs {
            text(out, name);
            text(out, value);
        }
    }
    for paths in [
        layer.whiteouts().collect::<Vec<_>>(),
        layer.opaque().collect(),
    ] {
        number(out, paths.len());
        for path in paths {
            text(out, path.as_bytes());
        }
    }
}

fn number(out: &mut Vec<u8>, value: usize) {
    out.extend_from_slice(&(value as u32).to_le_bytes());
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn device(out: &mut Vec<u8>, kind: u8, major: u32, minor: u32) {
    out.push(kind);
    out.extend_from_slice(&major.to_le_bytes());
    out.extend_from_slice(&minor.to_le_bytes());
}

/// `None` for anything that [`encode`] does not write.
fn decode(body: &[u8]) -> Option<Layer> {
    let mut input = Input(body);
    let mut layer = LayerBuilder::default();
    for _ in 0..input.u32()? {
        let path = input.path()?;
        let kind = match input.take::<1>()?[0] {
            ENTRY_HARDLINK => {
                let target = input.path()?;
                layer.restore(path, LayerEntry::Hardlink { target }).ok()?;
                continue;
            }
            ENTRY_FILE => {
                let size = u64::from_le_bytes(input.take()?);
                Kind::File {
                    size,
                    digest: FileDigest::from_bytes(input.take()?),
                }
            }
            ENTRY_DIRECTORY => Kind::Directory,
            ENTRY_SYMLINK => Kind::Symlink {
                target: input.text()?.to_vec(),
            },
            ENTRY_CHAR => Kind::CharDevice {
                major: input.u32()?,
                minor: input.u32()?,
            },
            ENTRY_BLOCK => Kind::BlockDevice {
                major: input.u32()?,
                minor: input.u32()?,
            },
            ENTRY_FIFO => Kind::Fifo,
            ENTRY_SOCKET => Kind::Socket,
            _ => return None,
        };
        let mode = u16::from_le_bytes(input.take()?);
        let (uid, gid) = (input.u32()?, input.u32()?);
        let mut xattrs = BTreeMap::new();
        for _ in 0..input.u32()? {
            xattrs.insert(input.text()?.to_vec(), input.text()?.to_vec());
        }
        let entry = Entry {
            kind,
            mode,
            uid,
            gid,
            xattrs,
        };
        layer.restore(path, LayerEntry::Entry(entry)).ok()?;
    }
    for _ in 0..input.u32()? {
        layer.whiteout(input.path()?).ok()?;
    }
    for _ in 0..input.u32()? {
        layer.opaque(input.path()?).ok()?;
    }
    input.0.is_empty().then(|| layer.build())
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }
    fn path(&mut self) -> Option<RootfsPath> {
        RootfsPath::parse(self.text()?).ok()
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
