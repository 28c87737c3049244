//! The members of an image file, whether a directory or a tar.

use crate::{beneath, layer::LayerSource};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};
use verify::{
    digest::{BlobDigest, DiffId},
    rootfs::{MAX_ENTRIES, RootfsPath},
};

pub(super) enum Files {
    Directory {
        fd: OwnedFd,
        path: PathBuf,
    },
    Archive {
        path: PathBuf,
        members: BTreeMap<RootfsPath, Member>,
    },
}

pub(super) enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// `docker save` links layers that several images share.
    Link(RootfsPath),
}

pub(super) fn blob_name(digest: BlobDigest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Files {
    pub(super) fn open(path: &Path) -> Result<Self> {
        // Layers are read later, by path.
        let path =
            std::fs::canonicalize(path).with_context(|| format!("open {}", path.display()))?;
        if path.is_dir() {
            return Ok(Self::Directory {
                fd: beneath::open_directory(&path)?,
                path,
            });
        }
        let members =
            members(&path).with_context(|| format!("read {} as a tar", path.display()))?;
        Ok(Self::Archive { path, members })
    }

    pub(super) fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Directory { fd, .. } => beneath::read_optional(fd, name, max),
            Self::Archive { path, members } => {
                let Some((offset, size)) = find(members, name)? else {
                    return Ok(None);
                };
                ensure!(size <= max, "{name} has {size} bytes, more than {max}");
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                let mut bytes = vec![0; size as usize];
                file.read_exact(&mut bytes)?;
                Ok(Some(bytes))
            }
        }
    }

    /// A manifest, index or configuration, hashed.
    pub(super) fn blob(&self, digest: BlobDigest) -> Result<Vec<u8>> {
        let name = blob_name(digest);
        let bytes = self.read(&name, crate::oci::MAX_DOCUMENT)?;
        let bytes = bytes.ok_or_else(|| anyhow!("{name} is missing"))?;
        ensure!(
            BlobDigest::of(&bytes) == digest,
            "{name} has another digest"
        );
        Ok(bytes)
    }

    pub(super) fn layer(&self, name: &str, diff_id: DiffId) -> Result<LayerSource> {
        match self {
            Self::Directory { path, .. } => {
                let file = path.join(String::from_utf8(
                    RootfsPath::parse(name.as_bytes())?.as_bytes().to_vec(),
                )?);
                ensure!(file.is_file(), "{name} is missing");
                Ok(LayerSource::blob(diff_id, file))
            }
            Self::Archive { path, members } => match find(members, name)? {
                Some((offset, size)) => Ok(LayerSource::part(diff_id, path.clone(), offset, size)),
                None => bail!("{name} is missing"),
            },
        }
    }
}

fn find(members: &BTreeMap<RootfsPath, Member>, name: &str) -> Result<Option<(u64, u64)>> {
    let mut path = RootfsPath::parse(name.as_bytes())?;
    for _ in 0..8 {
        match members.get(&path) {
            None => return Ok(None),
            Some(Member::File { offset, size }) => return Ok(Some((*offset, *size))),
            Some(Member::Link(target)) => path = target.clone(),
        }
    }
    bail!("{name}: too many links")
}

fn members(path: &Path) -> Result<BTreeMap<RootfsPath, Member>> {
    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(File::open(path)?);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = RootfsPath::parse(&entry.path_bytes())?;
        let kind = entry.header().entry_type();
        let member = if kind.is_file() {
            Member::File {
                offset: entry.raw_file_position(),
                size: entry.size(),
            }
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().context("a link without a target")?;
            let directory = match name.parent() {
                Some(parent) if kind.is_symlink() => parent,
                _ => RootfsPath::root(),
            };
            Member::Link(lexical(&directory, &target)?)
        } else {
            continue;
        };
        ensure!(members.len() < MAX_ENTRIES, "too many members");
        members.insert(name, member);
    }
    Ok(members)
}

/// `../<id>/layer.tar`, from the link's own directory.
fn lexical(directory: &RootfsPath, target: &[u8]) -> Result<RootfsPath> {
    let mut here = directory.clone();
    for name in target.split(|byte| *byte == b'/') {
        here = match name {
            b"" | b"." => here,
            b".." => here
                .parent()
                .ok_or_else(|| anyhow!("a link leaves the archive"))?,
            name => here.join(name)?,
        };
    }
    Ok(here)
}
