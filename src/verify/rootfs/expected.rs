//! What an image's layers say of a path, wherever that is kept: whole in memory, or packed.

use super::{Entry, Kind, RootfsManifest, RootfsPath};
use crate::digest::FileDigest;
use std::{borrow::Cow, convert::Infallible};

/// What the layers say of one path.
#[derive(Debug, Clone)]
pub struct Said<'a> {
    pub entry: Cow<'a, Entry>,
    /// See [`RootfsManifest::is_implied`].
    pub implied: bool,
}

/// What an image's layers make, asked path by path, wherever it is kept.
pub trait Expected {
    type Error;
    fn at(&self, path: &RootfsPath) -> Result<Option<Said<'_>>, Self::Error>;
    /// The first path below `directory`, if there is anything.
    fn first_below(&self, directory: &RootfsPath) -> Result<Option<RootfsPath>, Self::Error>;

    /// The digest of the regular file that stands at `path` (absolute, no symbolic link followed).
    fn file(&self, path: &[u8]) -> Result<Option<FileDigest>, Self::Error> {
        let Ok(path) = RootfsPath::parse(path) else {
            return Ok(None);
        };
        Ok(self.at(&path)?.and_then(|said| match said.entry.kind {
            Kind::File { digest, .. } => Some(digest),
            _ => None,
        }))
    }

    /// Where `path` leads inside the rootfs when symbolic links are followed (path_resolution(7),
    /// with the rootfs as `/`); what does not exist is taken literally. `None` for a loop.
    fn resolve(&self, path: &[u8]) -> Result<Option<RootfsPath>, Self::Error> {
        const MAX_LINKS: usize = 40; // as the kernel, MAXSYMLINKS
        let names = |text: &[u8]| -> Vec<Vec<u8>> {
            let names = text.split(|b| *b == b'/').rev();
            names.map(<[u8]>::to_vec).collect()
        };
        let (mut here, mut rest, mut links) = (RootfsPath::root(), names(path), 0);
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => here = here.parent().unwrap_or(here),
                name => {
                    let Ok(next) = here.join(name) else {
                        return Ok(None);
                    };
                    let kind = self.at(&next)?.map(|said| said.entry.into_owned().kind);
                    let Some(Kind::Symlink { target }) = kind else {
                        here = next;
                        continue;
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    if target.starts_with(b"/") {
                        here = RootfsPath::root();
                    }
                    rest.extend(names(&target));
                }
            }
        }
        Ok(Some(here))
    }
}

impl Expected for RootfsManifest {
    type Error = Infallible;

    fn at(&self, path: &RootfsPath) -> Result<Option<Said<'_>>, Infallible> {
        Ok(self.tree().get(path).map(|entry| Said {
            entry: Cow::Borrowed(entry),
            implied: self.is_implied(path),
        }))
    }

    fn first_below(&self, directory: &RootfsPath) -> Result<Option<RootfsPath>, Infallible> {
        let (from, _) = directory.below();
        let first = self.tree().entries.range(from..).next();
        Ok(first
            .map(|(path, _)| path)
            .filter(|path| path.is_below(directory))
            .cloned())
    }
}
