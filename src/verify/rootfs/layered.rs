//! The rootfs judged by the directories that its mount lays over each other: once those of the image's
//! layers, which many containers share, and each time what lies above them, which is the container's.
//!
//! That the two make what the kernel shows rests on [`merge`](super::merge()) and the overlay file
//! system laying directories over each other by the same rules.

use super::{
    CheckedRootfs, Damaged, Difference, Entry, Expected, Kind, Layer, LayerEntry, MalformedBytes,
    Place, RootfsManifest, RootfsPath, Said, Stubs, What,
    compare::{Judge, Note},
    merge::remove_below,
    packed::Packed,
};
use std::collections::{BTreeMap, BTreeSet};

/// Witness: the layers' directories, laid over each other, hold what the signed layers hold. Made by
/// [`compare_layers`], or restored by [`Self::restore`] from what that once made.
#[derive(Debug, PartialEq, Eq)]
pub struct CheckedLayers(Packed);

/// `expected` from the signed layers, `found` from their directories; on refusal every difference.
pub fn compare_layers(
    expected: &RootfsManifest,
    found: &RootfsManifest,
) -> Result<CheckedLayers, Vec<Difference>> {
    let mut judge = Judge::new(|_, _, _| None);
    judge.trees(expected, found.tree());
    let notes = judge.verdict()?;
    Ok(CheckedLayers(Packed::of(expected, notes)))
}

impl CheckedLayers {
    /// What [`Self::restore`] takes: the front, and all nodes.
    pub fn to_bytes(&self) -> Result<(Vec<u8>, Vec<u8>), Damaged> {
        Ok((self.0.front_bytes(), self.0.nodes()?))
    }

    /// Of nothing but a front that [`Self::to_bytes`] wrote, kept where nobody else writes. The nodes
    /// are checked whenever they are looked at.
    pub fn restore(front: &[u8], nodes: Box<dyn Place>) -> Result<Self, MalformedBytes> {
        Packed::restore(front, nodes).map(Self)
    }

    /// All of it.
    pub fn manifest(&self) -> Result<RootfsManifest, Damaged> {
        self.0.unpack()
    }

    /// The rootfs with what lies `above` the image's layers, lowest first: an engine's own layer, the
    /// container's. Nothing may stand there but `stubs`, and what is the same as below.
    pub fn with(
        &self,
        above: impl IntoIterator<Item = Layer>,
        stubs: &Stubs,
    ) -> Result<Result<CheckedRootfs, Vec<Difference>>, Damaged> {
        let above = Above::of(above, &self.0)?;
        let judged = match above.judge(&self.0, stubs)? {
            Ok(notes) => notes,
            Err(differences) => return Ok(Err(differences)),
        };
        let front = &self.0.front;
        let (mut entries, mut bytes) = (front.entries, front.bytes);
        for (path, here) in &above.found {
            let wanted = self.0.at(path)?;
            entries += u64::from(wanted.is_none());
            bytes = bytes.saturating_sub(wanted.map_or(0, |said| size(&said.entry))) + size(here);
        }
        // What stands above a path is what is seen there, so what was noted below it is not.
        let seen = |(path, _): &&Note| !above.found.contains_key(path);
        let below = front.notes.iter().filter(seen).cloned();
        let mut notes: Vec<_> = below.chain(judged).collect();
        notes.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Ok(CheckedRootfs {
            manifest: front.digest,
            entries,
            bytes,
            stubs: notes.into_iter().map(|(_, note)| note).collect(),
        }))
    }
}

impl Expected for CheckedLayers {
    type Error = Damaged;

    fn at(&self, path: &RootfsPath) -> Result<Option<Said<'_>>, Damaged> {
        self.0.at(path)
    }

    fn first_below(&self, directory: &RootfsPath) -> Result<Option<RootfsPath>, Damaged> {
        self.0.first_below(directory)
    }
}

/// Whether nothing but `stubs` stands `above` layers that were found to hold what `manifest` says.
pub fn compare_above<E: Expected>(
    manifest: &E,
    above: impl IntoIterator<Item = Layer>,
    stubs: &Stubs,
) -> Result<Result<(), Vec<Difference>>, E::Error> {
    let above = Above::of(above, manifest)?;
    Ok(above.judge(manifest, stubs)?.map(drop))
}

/// What directories above the image's layers show, and what they take away of those.
struct Above {
    found: BTreeMap<RootfsPath, Entry>,
    gone: BTreeSet<RootfsPath>,
}

impl Above {
    fn of<E: Expected>(
        above: impl IntoIterator<Item = Layer>,
        manifest: &E,
    ) -> Result<Self, E::Error> {
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
                gone.extend(manifest.at(path)?.map(|_| path.clone()));
            }
            for directory in &opaque {
                remove_below(&mut found, directory);
                gone.extend(manifest.first_below(directory)?);
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
        Ok(Self { found, gone })
    }

    fn judge<E: Expected>(
        &self,
        manifest: &E,
        stubs: &Stubs,
    ) -> Result<Result<Vec<Note>, Vec<Difference>>, E::Error> {
        let stubs = stubs.resolved(manifest)?;
        let mut judge = Judge::new(|path, wanted, here| stubs.explain(path, wanted, here));
        for (path, here) in &self.found {
            judge.look(path, manifest.at(path)?.as_ref(), Some(here));
        }
        let judged = judge.verdict();
        if self.gone.is_empty() {
            return Ok(judged);
        }
        let missing = self.gone.iter().map(|path| Difference {
            path: path.clone(),
            what: What::Missing,
        });
        Ok(Err(missing
            .chain(judged.err().unwrap_or_default())
            .collect()))
    }
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
