//! The rootfs judged by the directories that its mount lays over each other: once those of the image's
//! layers, which many containers share, and each time what lies above them, which is the container's.
//!
//! That the two make what the kernel shows rests on [`merge`](super::merge()) and the overlay file
//! system laying directories over each other by the same rules.

use super::{
    CheckedRootfs, Difference, Entry, Kind, Layer, LayerEntry, RootfsManifest, RootfsPath, Stubs,
    What,
    compare::{Judge, Note},
    merge::remove_below,
};
use crate::digest::RootfsDigest;
use std::collections::{BTreeMap, BTreeSet};

/// Witness: the layers' directories, laid over each other, hold what the signed layers hold. Made by
/// [`compare_layers`], or read back by [`Self::from_bytes`] from what that once made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedLayers {
    pub(super) manifest: RootfsManifest,
    pub(super) digest: RootfsDigest,
    pub(super) notes: Vec<Note>,
}

/// `expected` from the signed layers, `found` from their directories; on refusal every difference.
pub fn compare_layers(
    expected: RootfsManifest,
    found: &RootfsManifest,
) -> Result<CheckedLayers, Vec<Difference>> {
    let mut judge = Judge::new(&expected, |_, _, _| None);
    judge.trees(expected.tree(), found.tree());
    let notes = judge.verdict()?;
    Ok(CheckedLayers {
        digest: expected.digest(),
        manifest: expected,
        notes,
    })
}

impl CheckedLayers {
    pub fn manifest(&self) -> &RootfsManifest {
        &self.manifest
    }

    /// For those who need nothing else of it.
    pub fn into_manifest(self) -> RootfsManifest {
        self.manifest
    }

    /// The rootfs with what lies `above` the image's layers, lowest first: an engine's own layer, the
    /// container's. Nothing may stand there but `stubs`, and what is the same as below.
    pub fn with(
        &self,
        above: impl IntoIterator<Item = Layer>,
        stubs: &Stubs,
    ) -> Result<CheckedRootfs, Vec<Difference>> {
        let above = Above::of(above, &self.manifest);
        let judged = above.judge(&self.manifest, stubs)?;
        let tree = self.manifest.tree();
        let (mut entries, mut bytes) = (tree.count(), tree.bytes());
        for (path, here) in &above.found {
            let wanted = tree.get(path);
            entries += u64::from(wanted.is_none());
            bytes = bytes.saturating_sub(wanted.map_or(0, size)) + size(here);
        }
        // What stands above a path is what is seen there, so what was noted below it is not.
        let seen = |(path, _): &&Note| !above.found.contains_key(path);
        let below = self.notes.iter().filter(seen).cloned();
        let mut notes: Vec<_> = below.chain(judged).collect();
        notes.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(CheckedRootfs {
            manifest: self.digest,
            entries,
            bytes,
            stubs: notes.into_iter().map(|(_, note)| note).collect(),
        })
    }
}

/// Whether nothing but `stubs` stands `above` layers that were found to hold what `manifest` says.
pub fn compare_above(
    manifest: &RootfsManifest,
    above: impl IntoIterator<Item = Layer>,
    stubs: &Stubs,
) -> Result<(), Vec<Difference>> {
    let above = Above::of(above, manifest);
    above.judge(manifest, stubs).map(drop)
}

/// What directories above the image's layers show, and what they take away of those.
struct Above {
    found: BTreeMap<RootfsPath, Entry>,
    gone: BTreeSet<RootfsPath>,
}

impl Above {
    fn of(above: impl IntoIterator<Item = Layer>, manifest: &RootfsManifest) -> Self {
        let mut gone = BTreeSet::new();
        let mut found: BTreeMap<RootfsPath, Entry> = BTreeMap::new();
        for layer in above {
            let Layer {
                present,
                whiteouts,
                opaque,
            } = layer;
            // A name that is taken away, below whatever else: of the image's that is a difference.
            for path in &whiteouts {
                found.remove(path);
                remove_below(&mut found, path);
                gone.extend(manifest.tree().get(path).map(|_| path.clone()));
            }
            for directory in &opaque {
                remove_below(&mut found, directory);
                gone.extend(first_below(manifest, directory));
            }
            for (path, item) in present {
                // Directories on disk have no links into other layers ([`LayerEntry::Hardlink`]).
                if let LayerEntry::Entry(entry) = item {
                    if !entry.is_directory() {
                        remove_below(&mut found, &path);
                    }
                    found.insert(path, entry);
                }
            }
        }
        Self { found, gone }
    }

    fn judge(
        &self,
        manifest: &RootfsManifest,
        stubs: &Stubs,
    ) -> Result<Vec<Note>, Vec<Difference>> {
        let stubs = stubs.resolved(manifest);
        let mut judge = Judge::new(manifest, |path, wanted, here| {
            stubs.explain(path, wanted, here)
        });
        for (path, here) in &self.found {
            judge.look(path, manifest.tree().get(path), Some(here));
        }
        let judged = judge.verdict();
        if self.gone.is_empty() {
            return judged;
        }
        let missing = self.gone.iter().map(|path| Difference {
            path: path.clone(),
            what: What::Missing,
        });
        Err(missing.chain(judged.err().unwrap_or_default()).collect())
    }
}

/// Something of the image's below `directory`, if there is anything.
fn first_below(manifest: &RootfsManifest, directory: &RootfsPath) -> Option<RootfsPath> {
    let (from, _) = directory.below();
    let mut after = manifest.tree().entries.range(from..);
    let (path, _) = after.next()?;
    path.is_below(directory).then(|| path.clone())
}

fn size(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::File { size, .. } => size,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "layered_tests.rs"]
mod tests;
