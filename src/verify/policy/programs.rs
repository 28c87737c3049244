//! Which file of the rootfs a path would execute, where no mount is in the way.

use crate::digest::FileDigest;
use crate::imalog::encode_path;
use crate::rootfs::{Kind, RootfsManifest, RootfsPath};

/// The mount that a path lies in.
pub(super) fn covering<'m>(mounts: &'m [RootfsPath], path: &RootfsPath) -> Option<&'m RootfsPath> {
    mounts
        .iter()
        .find(|mount| path == *mount || path.is_below(mount))
}

/// The list's programs are in the rootfs as the list says, and no mount hides one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedPrograms {
    pub(super) mounts: Vec<RootfsPath>,
}

/// Why it cannot be said which file a path would execute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStartable {
    #[error("{0} is not in the image")]
    Missing(String),
    #[error("{0} is no regular file of the image")]
    NotAFile(String),
    #[error("{path} leads through the mount at {mount}, whose content is not the image's")]
    Mounted { path: String, mount: String },
    #[error("{0} leads through too many symbolic links")]
    Loop(String),
}

impl CheckedPrograms {
    /// The file of the image that executing `path` (absolute) would start: symbolic links are followed
    /// step by step, and no step may lie in a mount, since what is there is not what was measured.
    pub fn resolve(
        &self,
        rootfs: &RootfsManifest,
        path: &[u8],
    ) -> Result<(RootfsPath, FileDigest), NotStartable> {
        const MAX_LINKS: usize = 40; // as the kernel, MAXSYMLINKS
        let shown = || encode_path(path);
        let names = |text: &[u8]| -> Vec<Vec<u8>> {
            text.split(|b| *b == b'/')
                .rev()
                .map(<[u8]>::to_vec)
                .collect()
        };
        let (mut here, mut rest, mut links) = (RootfsPath::root(), names(path), 0);
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here = here.parent().unwrap_or(here);
                    continue;
                }
                _ => {}
            }
            let next = here
                .join(&name)
                .map_err(|_| NotStartable::Missing(shown()))?;
            if let Some(mount) = covering(&self.mounts, &next) {
                return Err(NotStartable::Mounted {
                    path: shown(),
                    mount: encode_path(&mount.absolute()),
                });
            }
            match rootfs.tree().get(&next).map(|entry| &entry.kind) {
                None => return Err(NotStartable::Missing(shown())),
                Some(Kind::Symlink { target }) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(NotStartable::Loop(shown()));
                    }
                    if target.starts_with(b"/") {
                        here = RootfsPath::root();
                    }
                    rest.extend(names(target));
                }
                Some(_) => here = next,
            }
        }
        match rootfs.tree().get(&here).map(|entry| &entry.kind) {
            Some(Kind::File { digest, .. }) => Ok((here, *digest)),
            _ => Err(NotStartable::NotAFile(shown())),
        }
    }
}
