//! Layers as bytes: for a cache, by which nothing is decided. Checked layers: `packed`.
//!
//! Little-endian numbers; texts, and lists of whatever, have their length in front (u32). Who reads
//! these bytes back vouches that they are those that were written.

use super::{Entry, Kind, Layer, LayerBuilder, LayerEntry, RootfsPath};
use crate::digest::FileDigest;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that were not written by this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the bytes of a layer as this version writes them")]
pub struct MalformedBytes;

const FILE: u8 = 0;
const DIRECTORY: u8 = 1;
const SYMLINK: u8 = 2;
const CHAR: u8 = 3;
const BLOCK: u8 = 4;
const FIFO: u8 = 5;
const SOCKET: u8 = 6;
const HARDLINK: u8 = 7;

impl Layer {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Output(Vec::with_capacity(96 * self.present.len()));
        out.number(self.present.len());
        for (path, item) in &self.present {
            out.text(path.as_bytes());
            match item {
                LayerEntry::Entry(entry) => out.entry(entry),
                LayerEntry::Hardlink { target } => {
                    out.0.push(HARDLINK);
                    out.text(target.as_bytes());
                }
            }
        }
        out.paths(&self.whiteouts);
        out.paths(&self.opaque);
        out.0
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MalformedBytes> {
        let mut input = Input(bytes);
        let mut read = || -> Option<LayerBuilder> {
            let mut layer = LayerBuilder::default();
            for _ in 0..input.u32()? {
                let path = input.path()?;
                let item = match input.byte()? {
                    HARDLINK => LayerEntry::Hardlink {
                        target: input.path()?,
                    },
                    kind => LayerEntry::Entry(input.entry(kind)?),
                };
                layer.restore(path, item).ok()?;
            }
            for path in input.paths()? {
                layer.whiteout(path).ok()?;
            }
            for path in input.paths()? {
                layer.opaque(path).ok()?;
            }
            Some(layer)
        };
        let layer = read().ok_or(MalformedBytes)?;
        input.end().ok_or(MalformedBytes).map(|()| layer.build())
    }
}

pub(super) struct Output(pub Vec<u8>);

impl Output {
    pub fn number(&mut self, value: usize) {
        // Counts are below MAX_ENTRIES, texts are paths and xattrs: both far below 2^32.
        self.0
            .extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }
    pub fn text(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.extend_from_slice(bytes);
    }
    fn paths(&mut self, paths: &BTreeSet<RootfsPath>) {
        self.number(paths.len());
        for path in paths {
            self.text(path.as_bytes());
        }
    }
    fn device(&mut self, kind: u8, major: u32, minor: u32) {
        self.0.push(kind);
        self.0.extend_from_slice(&major.to_le_bytes());
        self.0.extend_from_slice(&minor.to_le_bytes());
    }
    pub fn entry(&mut self, entry: &Entry) {
        match &entry.kind {
            Kind::File { size, digest } => {
                self.0.push(FILE);
                self.0.extend_from_slice(&size.to_le_bytes());
                self.0.extend_from_slice(digest.as_bytes());
            }
            Kind::Directory => self.0.push(DIRECTORY),
            Kind::Symlink { target } => {
                self.0.push(SYMLINK);
                self.text(target);
            }
            Kind::CharDevice { major, minor } => self.device(CHAR, *major, *minor),
            Kind::BlockDevice { major, minor } => self.device(BLOCK, *major, *minor),
            Kind::Fifo => self.0.push(FIFO),
            Kind::Socket => self.0.push(SOCKET),
        }
        self.0.extend_from_slice(&entry.mode.to_le_bytes());
        self.0.extend_from_slice(&entry.uid.to_le_bytes());
        self.0.extend_from_slice(&entry.gid.to_le_bytes());
        self.number(entry.xattrs.len());
        for (name, value) in &entry.xattrs {
            self.text(name);
            self.text(value);
        }
    }
}

pub(super) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }
    pub fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }
    fn path(&mut self) -> Option<RootfsPath> {
        RootfsPath::parse(self.text()?).ok()
    }
    fn paths(&mut self) -> Option<Vec<RootfsPath>> {
        (0..self.u32()?).map(|_| self.path()).collect()
    }
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
    fn device(&mut self) -> Option<(u32, u32)> {
        Some((self.u32()?, self.u32()?))
    }
    pub fn entry(&mut self, kind: u8) -> Option<Entry> {
        let kind = match kind {
            FILE => Kind::File {
                size: u64::from_le_bytes(self.take()?),
                digest: FileDigest::from_bytes(self.take()?),
            },
            DIRECTORY => Kind::Directory,
            SYMLINK => Kind::Symlink {
                target: self.text()?.to_vec(),
            },
            CHAR => {
                let (major, minor) = self.device()?;
                Kind::CharDevice { major, minor }
            }
            BLOCK => {
                let (major, minor) = self.device()?;
                Kind::BlockDevice { major, minor }
            }
            FIFO => Kind::Fifo,
            SOCKET => Kind::Socket,
            _ => return None,
        };
        let mode = u16::from_le_bytes(self.take()?);
        let (uid, gid) = (self.u32()?, self.u32()?);
        let mut xattrs = BTreeMap::new();
        for _ in 0..self.u32()? {
            xattrs.insert(self.text()?.to_vec(), self.text()?.to_vec());
        }
        Some(Entry {
            kind,
            mode,
            uid,
            gid,
            xattrs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RootfsPath {
        RootfsPath::parse(text.as_bytes()).unwrap()
    }

    /// Every kind of entry, a link, a whiteout, an opaque directory.
    fn layer() -> Layer {
        let mut builder = LayerBuilder::default();
        let kinds = [
            Kind::File {
                size: 5,
                digest: FileDigest::of(b"x"),
            },
            Kind::Directory,
            Kind::Symlink {
                target: b"t".to_vec(),
            },
            Kind::CharDevice { major: 1, minor: 2 },
            Kind::BlockDevice { major: 3, minor: 4 },
            Kind::Fifo,
            Kind::Socket,
        ];
        for (number, kind) in kinds.into_iter().enumerate() {
            let entry = Entry {
                kind,
                mode: 0o4755,
                uid: 1,
                gid: u32::MAX,
                xattrs: [(b"user.a".to_vec(), vec![0, 1])].into(),
            };
            builder
                .add(path(&format!("d{number}/e")), LayerEntry::Entry(entry))
                .unwrap();
        }
        let target = path("lower");
        builder
            .add(path("h"), LayerEntry::Hardlink { target })
            .unwrap();
        builder.whiteout(path("w")).unwrap();
        builder.opaque(path("o")).unwrap();
        builder.build()
    }

    #[test]
    fn accept_what_was_written() {
        assert_eq!(Layer::from_bytes(&layer().to_bytes()), Ok(layer()));
    }

    #[test]
    fn refuse_anything_shorter_or_longer() {
        let layer = layer().to_bytes();
        for end in 0..layer.len() {
            assert!(Layer::from_bytes(&layer[..end]).is_err(), "{end}");
        }
        assert!(Layer::from_bytes(&[&layer[..], b"\0"].concat()).is_err());
    }
}
