//! Layers (OCI image-spec, layer.md) and what they make when they are laid over each other.

use super::{Entry, Expected, Kind, PathError, RootfsPath, Tree};
use crate::digest::FileDigest;
use std::collections::{BTreeMap, BTreeSet};

/// How many entries an image may have: a bound on memory, far above any real image.
pub const MAX_ENTRIES: usize = 4_000_000;

/// OCI image-spec, layer.md, "Whiteouts" and "Opaque Whiteout".
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// aufs bookkeeping that engines leave out when they unpack (moby, WhiteoutMetaPrefix).
const AUFS: &[u8] = b".wh..wh.";

/// An archive that cannot be a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    #[error("{0} is a whiteout of nothing")]
    EmptyWhiteout(RootfsPath),
    #[error("{0} stands below {1}, which the same layer makes something else than a directory")]
    BelowNonDirectory(RootfsPath, RootfsPath),
    #[error("{0} is a hard link to the directory {1}")]
    LinkToDirectory(RootfsPath, RootfsPath),
    #[error("the layer's root is not a directory")]
    RootNotDirectory,
    #[error("more than {MAX_ENTRIES} entries")]
    TooMany,
    #[error(transparent)]
    Path(#[from] PathError),
}

/// What one archive member says about its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerEntry {
    Entry(Entry),
    /// Another name of a file: of this layer or, when this layer has none, of those below.
    Hardlink {
        target: RootfsPath,
    },
}

/// One layer: what it adds, and what of the layers below it takes away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layer {
    pub(super) present: BTreeMap<RootfsPath, LayerEntry>,
    pub(super) whiteouts: BTreeSet<RootfsPath>,
    pub(super) opaque: BTreeSet<RootfsPath>,
}

impl Layer {
    pub fn present(&self) -> impl ExactSizeIterator<Item = (&RootfsPath, &LayerEntry)> {
        self.present.iter()
    }
    pub fn whiteouts(&self) -> impl ExactSizeIterator<Item = &RootfsPath> {
        self.whiteouts.iter()
    }
    pub fn opaque(&self) -> impl ExactSizeIterator<Item = &RootfsPath> {
        self.opaque.iter()
    }
}

/// Makes a [`Layer`] from archive members in the archive's order: a later member of the same path
/// replaces an earlier one.
#[derive(Debug, Default)]
pub struct LayerBuilder(Layer);

impl LayerBuilder {
    pub fn add(&mut self, path: RootfsPath, item: LayerEntry) -> Result<(), LayerError> {
        if self.0.present.len() + self.0.whiteouts.len() + self.0.opaque.len() >= MAX_ENTRIES {
            return Err(LayerError::TooMany);
        }
        let parent = path.parent().unwrap_or(RootfsPath::root());
        match path.name() {
            OPAQUE => return self.opaque(parent),
            name if name.starts_with(AUFS) => return Ok(()),
            name => {
                if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                    let target = parent.join(hidden).ok().filter(|target| *target != parent);
                    return self.whiteout(target.ok_or(LayerError::EmptyWhiteout(path))?);
                }
            }
        }
        match item {
            // Unpacked into an overlay store, such a node *is* a whiteout
            // (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
            LayerEntry::Entry(Entry {
                kind: Kind::CharDevice { major: 0, minor: 0 },
                ..
            }) => self.whiteout(path),
            LayerEntry::Entry(entry) => self.insert(path, LayerEntry::Entry(entry)),
            LayerEntry::Hardlink { target } => match self.0.present.get(&target).cloned() {
                Some(LayerEntry::Entry(entry)) if entry.is_directory() => {
                    Err(LayerError::LinkToDirectory(path, target))
                }
                Some(known) => self.insert(path, known),
                None => self.insert(path, LayerEntry::Hardlink { target }),
            },
        }
    }

    /// What was read of a layer that was built before, from a store that only we write.
    pub fn restore(&mut self, path: RootfsPath, item: LayerEntry) -> Result<(), LayerError> {
        self.insert(path, item)
    }

    /// `path` of the layers below is gone.
    pub fn whiteout(&mut self, path: RootfsPath) -> Result<(), LayerError> {
        self.below_directories(&path)?;
        self.0.whiteouts.insert(path);
        Ok(())
    }

    /// What the layers below hold in `directory` is gone.
    pub fn opaque(&mut self, directory: RootfsPath) -> Result<(), LayerError> {
        self.below_directories(&directory)?;
        self.0.opaque.insert(directory);
        Ok(())
    }

    pub fn build(self) -> Layer {
        self.0
    }

    fn insert(&mut self, path: RootfsPath, item: LayerEntry) -> Result<(), LayerError> {
        let directory = matches!(&item, LayerEntry::Entry(entry) if entry.is_directory());
        if path.is_root() && !directory {
            return Err(LayerError::RootNotDirectory);
        }
        self.below_directories(&path)?;
        if !directory {
            remove_below(&mut self.0.present, &path);
        }
        self.0.present.insert(path, item);
        Ok(())
    }

    fn below_directories(&self, path: &RootfsPath) -> Result<(), LayerError> {
        let mut above = path.parent();
        while let Some(directory) = above {
            match self.0.present.get(&directory) {
                // Its own parents were looked at when it came.
                Some(LayerEntry::Entry(entry)) if entry.is_directory() => return Ok(()),
                Some(_) => return Err(LayerError::BelowNonDirectory(path.clone(), directory)),
                None => above = directory.parent(),
            }
        }
        Ok(())
    }
}

pub(super) fn remove_below<T>(map: &mut BTreeMap<RootfsPath, T>, path: &RootfsPath) {
    let (from, to) = path.below();
    let doomed: Vec<_> = match to {
        Some(to) => map.range(from..to).map(|(path, _)| path.clone()).collect(),
        None => map.range(from..).map(|(path, _)| path.clone()).collect(),
    };
    for path in doomed {
        map.remove(&path);
    }
}

/// Layers that do not fit on each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    #[error(
        "layer {layer}: {path} is a hard link to {target}, which is no file of this layer or those below"
    )]
    NoLinkTarget {
        layer: usize,
        path: RootfsPath,
        target: RootfsPath,
    },
    #[error("the image has more than {MAX_ENTRIES} entries")]
    TooMany,
}

/// What the image's layers say that the rootfs holds: a pure function of the layers. Attributes of
/// directories that no layer names (see [`Self::is_implied`]) are 0755, owner 0:0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsManifest {
    tree: Tree,
    pub(super) implied: BTreeSet<RootfsPath>,
}

/// Lays `layers` over each other, lowest first (the order of the image's `rootfs.diff_ids`).
pub fn merge(layers: impl IntoIterator<Item = Layer>) -> Result<RootfsManifest, MergeError> {
    let root = BTreeMap::from([(RootfsPath::root(), Entry::implied_directory())]);
    let mut manifest = RootfsManifest {
        tree: Tree { entries: root },
        implied: BTreeSet::new(),
    };
    for (number, layer) in layers.into_iter().enumerate() {
        manifest.apply(number, layer)?;
        if manifest.tree.entries.len() > MAX_ENTRIES {
            return Err(MergeError::TooMany);
        }
    }
    Ok(manifest)
}

impl RootfsManifest {
    /// What was merged before, from a store that only we write.
    pub(super) fn restore(tree: Tree, implied: BTreeSet<RootfsPath>) -> Self {
        Self { tree, implied }
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The topmost layer that needs this directory has no entry for it: engines make it with a
    /// mode of their own choice.
    pub fn is_implied(&self, path: &RootfsPath) -> bool {
        self.implied.contains(path)
    }

    /// [`Expected::file`].
    pub fn file(&self, path: &[u8]) -> Option<FileDigest> {
        let Ok(digest) = Expected::file(self, path);
        digest
    }

    /// [`Expected::resolve`].
    pub fn resolve(&self, path: &[u8]) -> Option<RootfsPath> {
        let Ok(place) = Expected::resolve(self, path);
        place
    }

    fn apply(&mut self, number: usize, layer: Layer) -> Result<(), MergeError> {
        let Layer {
            present,
            whiteouts,
            opaque,
        } = layer;
        // Links into lower layers are looked up before this layer takes anything away.
        let mut resolved = Vec::with_capacity(present.len());
        for (path, item) in present {
            let entry = match item {
                LayerEntry::Entry(entry) => entry,
                LayerEntry::Hardlink { target } => match self.tree.get(&target) {
                    Some(entry) if !entry.is_directory() => entry.clone(),
                    _ => {
                        return Err(MergeError::NoLinkTarget {
                            layer: number,
                            path,
                            target,
                        });
                    }
                },
            };
            resolved.push((path, entry));
        }
        for path in &whiteouts {
            self.remove(path);
        }
        for directory in &opaque {
            self.remove_below(directory);
        }
        // Explicit directories first lose the mark, so that only those that stay unnamed keep it.
        let mut named = BTreeSet::new();
        for (path, entry) in resolved {
            self.make_parents(&path, &named);
            if entry.is_directory() {
                self.implied.remove(&path);
                named.insert(path.clone());
            } else {
                if self.tree.get(&path).is_some_and(Entry::is_directory) {
                    self.remove_below(&path);
                    self.implied.remove(&path);
                }
            }
            self.tree.entries.insert(path, entry);
        }
        for path in &whiteouts {
            self.make_parents(path, &named);
        }
        for directory in &opaque {
            if !named.contains(directory) && !directory.is_root() {
                self.make_parents(directory, &named);
                self.make_implied(directory.clone());
            }
        }
        Ok(())
    }

    fn make_parents(&mut self, path: &RootfsPath, named: &BTreeSet<RootfsPath>) {
        let mut above = path.parent();
        while let Some(directory) = above {
            if directory.is_root() || named.contains(&directory) {
                return;
            }
            above = directory.parent();
            self.make_implied(directory);
        }
    }

    fn make_implied(&mut self, directory: RootfsPath) {
        if !self.tree.get(&directory).is_some_and(Entry::is_directory) {
            self.tree
                .entries
                .insert(directory.clone(), Entry::implied_directory());
        }
        self.implied.insert(directory);
    }

    fn remove(&mut self, path: &RootfsPath) {
        if !path.is_root() {
            self.remove_below(path);
            self.tree.entries.remove(path);
            self.implied.remove(path);
        }
    }

    fn remove_below(&mut self, path: &RootfsPath) {
        let (from, to) = path.below();
        remove_below(&mut self.tree.entries, path);
        self.implied
            .retain(|path| !(*path >= from && to.as_ref().is_none_or(|to| path < to)));
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
