//! A layer's archive, or its recording and directory, to its diff-ID and what it holds.
//!
//! The diff-ID is computed over exactly the bytes that the entries were read from, so a caller who
//! compares it with the signed one knows that the entries are signed too.

mod ahead;
mod archive;
mod compression;
mod fields;
mod pieces;
mod split;

pub use archive::{ArchiveError, from_tar};
pub use compression::decompress;
pub use split::from_tar_split;

use crate::{beneath, once::FilesRead};
use anyhow::{Context as _, Result, bail};
use std::{
    fs::File,
    io::Read,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};
use verify::{digest::DiffId, rootfs::Layer};

/// Threads that read one layer's files, when nothing is known of the others.
const READERS: usize = 2;

/// What the store holds is not the layer of the image: it was changed, or is another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{layer}: the layer's diff-ID is {found}, the image's configuration says {wanted}")]
pub struct OtherLayer {
    pub layer: String,
    pub found: DiffId,
    pub wanted: DiffId,
}

/// Where one layer can be read from, and which diff-ID the store says it has.
#[derive(Debug, Clone)]
pub struct LayerSource {
    claimed: DiffId,
    origin: Origin,
}

#[derive(Debug, Clone)]
enum Origin {
    /// tar-split: the archive's headers, recorded, and the directory it was unpacked to.
    Split {
        recording: PathBuf,
        directory: PathBuf,
    },
    /// The archive itself, compressed or not.
    Blob(PathBuf),
    /// The archive within a file (a layer in an image archive).
    Part {
        path: PathBuf,
        offset: u64,
        size: u64,
    },
}

impl LayerSource {
    pub(crate) fn split(claimed: DiffId, recording: PathBuf, directory: PathBuf) -> Self {
        Self {
            claimed,
            origin: Origin::Split {
                recording,
                directory,
            },
        }
    }

    pub(crate) fn blob(claimed: DiffId, path: PathBuf) -> Self {
        Self {
            claimed,
            origin: Origin::Blob(path),
        }
    }

    pub(crate) fn part(claimed: DiffId, path: PathBuf, offset: u64, size: u64) -> Self {
        Self {
            claimed,
            origin: Origin::Part { path, offset, size },
        }
    }

    /// What the store says; [`Self::read`] tells what it is.
    pub fn claimed(&self) -> DiffId {
        self.claimed
    }

    /// Whether the directory that the layer was unpacked to is read for it.
    pub fn is_recorded(&self) -> bool {
        matches!(self.origin, Origin::Split { .. })
    }

    /// Reads the whole layer.
    pub fn read(&self) -> Result<(DiffId, Layer)> {
        let (found, layer, _) = self.read_by(READERS)?;
        Ok((found, layer))
    }

    /// By so many threads, when they read single files; and what these files turned out to be.
    fn read_by(&self, readers: usize) -> Result<(DiffId, Layer, FilesRead)> {
        let alone = |(found, layer)| (found, layer, FilesRead::default());
        match &self.origin {
            Origin::Split {
                recording,
                directory,
            } => {
                let fd = beneath::open_directory(directory)?;
                from_tar_split(open(recording)?, fd.as_fd(), readers).with_context(|| {
                    format!(
                        "layer {}, recorded in {}",
                        directory.display(),
                        recording.display()
                    )
                })
            }
            Origin::Blob(path) => from_archive(open(path)?, path).map(alone),
            Origin::Part { path, offset, size } => {
                use std::io::{Seek as _, SeekFrom};
                let mut file = open(path)?;
                file.seek(SeekFrom::Start(*offset))?;
                from_archive(file.take(*size), path).map(alone)
            }
        }
    }

    /// The uncompressed archive, for readers of contents; which layer it is, [`Self::read`] tells.
    pub fn archive(&self) -> Result<Box<dyn Read>> {
        use std::io::{Seek as _, SeekFrom};
        let file = |path: &Path, offset: u64, size: u64| -> Result<Box<dyn Read>> {
            let mut file = open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            decompress(file.take(size)).with_context(|| format!("decompress {}", path.display()))
        };
        match &self.origin {
            Origin::Split { directory, .. } => {
                bail!("{}: no archive, only its headers", directory.display())
            }
            Origin::Blob(path) => file(path, 0, u64::MAX),
            Origin::Part { path, offset, size } => file(path, *offset, *size),
        }
    }

    /// Reads the whole layer and refuses another one than `wanted`.
    pub fn read_as(&self, wanted: DiffId) -> Result<Layer> {
        Ok(self.read_once_as(wanted, READERS)?.0)
    }

    /// The same by so many threads, and what the files of its directory turned out to be.
    pub fn read_once_as(&self, wanted: DiffId, readers: usize) -> Result<(Layer, FilesRead)> {
        let (found, layer, files) = self.read_by(readers)?;
        if found != wanted {
            bail!(OtherLayer {
                layer: self.to_string(),
                found,
                wanted
            });
        }
        Ok((layer, files))
    }
}

impl std::fmt::Display for LayerSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.origin {
            Origin::Split { directory, .. } => write!(f, "{}", directory.display()),
            Origin::Blob(path) => write!(f, "{}", path.display()),
            Origin::Part { path, offset, .. } => write!(f, "{} at {offset}", path.display()),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    beneath::open_regular(path)
}

fn from_archive(file: impl Read + Send, path: &Path) -> Result<(DiffId, Layer)> {
    let read = ahead::ahead(|| decompress(file), from_tar);
    read.with_context(|| format!("layer {}", path.display()))
}
