//! The directories of the overlay mount that a rootfs is.

use super::{Rootfs, Roots};
use crate::{beneath, stack::Stack};
use anyhow::{Context as _, Result};
use std::path::PathBuf;

/// Mount options by which an overlay shows something else than its directories laid over each other.
const OTHER_VIEWS: [&[u8]; 2] = [b"metacopy=on", b"userxattr"];

impl Roots {
    /// Opens the directories of the overlay that `rootfs` is the root of, of which the lowest `layers` are the
    /// image's. `None` for what is no such mount, shows more than its directories, or does not say where
    /// they are.
    pub fn stack(&self, rootfs: &Rootfs, layers: usize) -> Result<Option<Stack>> {
        let Some(mount) = rootfs.mount()? else {
            return Ok(None);
        };
        let options = mount.options.split(|byte| *byte == b',');
        if options.into_iter().any(|o| OTHER_VIEWS.contains(&o)) {
            return Ok(None);
        }
        let Some(overlay) = mount.overlay(&self.canonical().layer_directories())? else {
            return Ok(None);
        };
        if overlay.guessed {
            return Ok(None); // other directories of these names would show other files
        }
        let mut lower = overlay.lower;
        lower.reverse();
        if lower.len() < layers {
            return Ok(None);
        }
        let above = lower.split_off(layers).into_iter().chain(overlay.upper);
        Ok(Some(Stack::new(open(lower)?, open(above)?)))
    }
}

fn open(directories: impl IntoIterator<Item = PathBuf>) -> Result<Vec<std::os::fd::OwnedFd>> {
    let open = |directory: PathBuf| {
        // Engines name their layers by short symbolic links.
        let real = std::fs::canonicalize(&directory)
            .with_context(|| format!("resolve layer directory {}", directory.display()))?;
        beneath::open_directory(&real)
    };
    directories.into_iter().map(open).collect()
}
