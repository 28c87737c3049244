//! A directory of an engine's store. Files are opened below its descriptor and never through a symbolic
//! link, so that nobody who can write somewhere in a store can lead us out of it.

use super::{LocateError, inconsistent};
use crate::beneath;
use anyhow::Context as _;
use rustix::{
    fs::{self, FileType, OFlags, ResolveFlags},
    io::Errno,
};
use std::{
    ffi::OsString,
    fs::File,
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

/// As [`beneath::BENEATH`], but other mounts are entered: stores lie on several, and containers/storage
/// mounts its layers' directory over itself.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

#[derive(Debug)]
pub(super) struct Place {
    fd: OwnedFd,
    path: PathBuf,
}

impl Place {
    /// A store's root, canonical.
    pub fn open(path: &Path) -> Result<Self, LocateError> {
        Ok(Self {
            fd: beneath::open_directory(path)?,
            path: path.to_owned(),
        })
    }

    /// Where the file of this name is, for whoever opens it later.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A regular file's content; `None` when there is none.
    pub fn optional(
        &self,
        name: impl AsRef<Path>,
        max: u64,
    ) -> Result<Option<Vec<u8>>, LocateError> {
        // NONBLOCK: a FIFO that stands in the file's place must not stop us.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Some(fd) = self.look(name.as_ref(), flags)? else {
            return Ok(None);
        };
        let shown = self.at(&name);
        let kind = fs::fstat(&fd).with_context(|| format!("stat {}", shown.display()))?;
        if FileType::from_raw_mode(kind.st_mode) != FileType::RegularFile {
            return Err(inconsistent(format!(
                "{} is not a regular file",
                shown.display()
            )));
        }
        let bytes = beneath::read_at_most(File::from(fd), max);
        Ok(Some(
            bytes.with_context(|| format!("read {}", shown.display()))?,
        ))
    }

    /// The same for a file that must be there.
    pub fn read(&self, name: impl AsRef<Path>, max: u64) -> Result<Vec<u8>, LocateError> {
        let shown = self.at(&name);
        self.optional(name, max)?
            .ok_or_else(|| inconsistent(format!("{} is missing", shown.display())))
    }

    pub fn has(&self, name: impl AsRef<Path>) -> Result<bool, LocateError> {
        Ok(self.look(name.as_ref(), OFlags::PATH)?.is_some())
    }

    /// What the symbolic link of this name says; nothing is followed.
    pub fn link(&self, name: impl AsRef<Path>) -> Result<PathBuf, LocateError> {
        let shown = self.at(&name);
        let fd = self
            .look(name.as_ref(), OFlags::PATH | OFlags::NOFOLLOW)?
            .ok_or_else(|| inconsistent(format!("{} is missing", shown.display())))?;
        let text = fs::readlinkat(&fd, "", Vec::new())
            .map_err(|_| inconsistent(format!("{} is not a symbolic link", shown.display())))?;
        Ok(OsString::from_vec(text.into_bytes()).into())
    }

    /// The id of a layer of an overlay store: `<id>/diff`, or a link to it, `l/<LINK>`. `None` for what
    /// is none.
    pub fn layer_of(&self, directory: &Path) -> Result<Option<String>, LocateError> {
        let Ok(name) = directory.strip_prefix(&self.path) else {
            return Ok(None);
        };
        let name = unmapped(name);
        let layer = match name.strip_prefix("l") {
            Ok(_) => match self.link(&name)?.strip_prefix("..") {
                Ok(target) => target.to_owned(),
                Err(_) => return Ok(None),
            },
            Err(_) => name,
        };
        let names: Vec<_> = layer.iter().map(|name| name.to_str()).collect();
        Ok(match names.as_slice() {
            [Some(id), Some("diff")] if !id.starts_with('.') => Some((*id).to_owned()),
            _ => None,
        })
    }

    fn look(&self, name: &Path, flags: OFlags) -> Result<Option<OwnedFd>, LocateError> {
        let name = name.as_os_str().as_bytes();
        match beneath::openat2_within(&self.fd, name, flags | OFlags::CLOEXEC, WITHIN) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::XDEV) => Err(inconsistent(format!(
                "{}: a symbolic link stands where the store has files and directories",
                self.at(Path::new(std::ffi::OsStr::from_bytes(name)))
                    .display()
            ))),
            Err(errno) => Err(anyhow::Error::new(errno)
                .context(format!(
                    "open {}",
                    self.at(Path::new(std::ffi::OsStr::from_bytes(name)))
                        .display()
                ))
                .into()),
        }
    }
}

/// For a container with a user namespace containers/storage mounts its layers once more, with shifted
/// owners, on `<container's layer>/mapped/<n>`, and takes the layers from there (drivers/overlay,
/// "mapped"); once the rootfs is mounted that mount is gone. What it shows lies in the store itself.
fn unmapped(name: &Path) -> PathBuf {
    let mut parts = name.components();
    let (own, mapped, number) = (parts.next(), parts.next(), parts.next());
    let is_number = number.is_some_and(|n| {
        let digits = n.as_os_str().as_bytes();
        digits.iter().all(u8::is_ascii_digit)
    });
    match mapped {
        Some(part) if own.is_some() && part.as_os_str() == "mapped" && is_number => {
            parts.as_path().to_owned()
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_layers_are_the_stores_own() {
        for (name, layer) in [
            ("c0/mapped/0/l/ABC", "l/ABC"),
            ("c0/mapped/12/id/diff", "id/diff"),
            ("c0/mapped/x/l/ABC", "c0/mapped/x/l/ABC"),
            ("mapped/0/l/ABC", "mapped/0/l/ABC"),
            ("id/diff", "id/diff"),
        ] {
            assert_eq!(unmapped(Path::new(name)), Path::new(layer));
        }
    }
}
