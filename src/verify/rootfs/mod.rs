//! What a rootfs holds: trees, layers and their merging, the manifest, and the comparison of the two.
//!
//! ```text
//! layers (tars whose diff-IDs the image names) ─merge▶ RootfsManifest ─┐
//! walk of the mounted rootfs ─▶ Tree ──────────────────────────────────┴compare▶ CheckedRootfs | differences
//!
//! or, so that what the layers hold needs to be read only once, from the directories of the mount:
//! layers' directories ─merge▶ RootfsManifest ┬compare_layers▶ CheckedLayers ┐
//! signed layers       ─merge▶ RootfsManifest ┘   the directories above them ┴with▶ CheckedRootfs
//! ```
//! Proves: a [`CheckedRootfs`] says that the tree that was walked is, entry by entry, what the layers
//! say, except for the engine's own stubs, which it names.

mod bytes;
mod compare;
mod expected;
mod layered;
mod merge;
mod mtree;
mod owners;
mod packed;
mod path;
mod stubs;

pub use bytes::MalformedBytes;
pub use compare::{CheckedRootfs, Difference, MeasuredRootfs, What, compare, summary};
pub use expected::{Expected, Said};
pub use layered::{CheckedLayers, compare_above, compare_layers};
pub use merge::{
    Layer, LayerBuilder, LayerEntry, LayerError, MAX_ENTRIES, MergeError, RootfsManifest, merge,
};
pub use owners::Owners;
pub use packed::{Damaged, Place};
pub use path::{MAX_NAME, MAX_PATH, PathError, RootfsPath, encode};
pub use stubs::{Engine, Stubs};

use crate::digest::FileDigest;
use std::collections::BTreeMap;

/// Symbolic links have no permissions of their own; Linux shows 0777 (symlink(7)).
pub const SYMLINK_MODE: u16 = 0o777;

/// What stands at a path. Hard links are not told apart from copies: every path of a file names
/// the same content and attributes, and that is what is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File { size: u64, digest: FileDigest },
    Directory,
    Symlink { target: Vec<u8> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

impl Kind {
    /// mtree(5) `type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Directory => "dir",
            Self::Symlink { .. } => "link",
            Self::CharDevice { .. } => "char",
            Self::BlockDevice { .. } => "block",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

/// One path's content and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// Permission, set-id and sticky bits only (07777); [`SYMLINK_MODE`] for symbolic links.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Of regular files and directories, and of those only what [`xattr_counts`].
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// The directory that an engine makes for an entry whose parents no layer names.
    pub(crate) fn implied_directory() -> Self {
        Self {
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
        }
    }
}

/// Which extended attributes are part of a tree: file capabilities and whatever else `security.`
/// brings, POSIX ACLs and `user.`; not the labels that the host's own security modules put on every
/// file, nor the overlay file system's bookkeeping (`trusted.overlay.` is not shown at all).
pub fn xattr_counts(name: &[u8]) -> bool {
    const HOST_LABELS: [&[u8]; 4] = [
        b"security.selinux",
        b"security.ima",
        b"security.evm",
        b"security.apparmor",
    ];
    if let Some(rest) = name.strip_prefix(b"security.") {
        return !HOST_LABELS.contains(&name) && !rest.starts_with(b"SMACK64");
    }
    name.starts_with(b"system.posix_acl_")
        || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
}

/// Entries that do not make a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("the tree has no root directory")]
    NoRoot,
    #[error("{0} stands below something that is not a directory")]
    NoParent(RootfsPath),
    #[error("{0} occurs twice")]
    Twice(RootfsPath),
}

/// A directory tree as it was found: the root is a directory, and so is every entry's parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<RootfsPath, Entry>,
}

impl Tree {
    pub fn new(mut entries: Vec<(RootfsPath, Entry)>) -> Result<Self, TreeError> {
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let next = entries.iter().skip(1);
        if let Some(((path, _), _)) = entries.iter().zip(next).find(|((a, _), (b, _))| a == b) {
            return Err(TreeError::Twice(path.clone()));
        }
        let tree = Self {
            entries: entries.into_iter().collect(),
        };
        if !tree
            .get(&RootfsPath::root())
            .is_some_and(Entry::is_directory)
        {
            return Err(TreeError::NoRoot);
        }
        for path in tree.entries.keys().filter(|path| !path.is_root()) {
            if !tree
                .entries
                .get(path.parent_bytes())
                .is_some_and(Entry::is_directory)
            {
                return Err(TreeError::NoParent(path.clone()));
            }
        }
        Ok(tree)
    }

    /// What [`Self::iter`] once gave, from a store that only we write; `None` if it is not in order.
    fn restore(entries: Vec<(RootfsPath, Entry)>) -> Option<Self> {
        let next = entries.iter().skip(1);
        let ordered = entries.iter().zip(next).all(|((a, _), (b, _))| a < b);
        let rooted = entries.first().is_some_and(|(path, _)| path.is_root());
        let entries = entries.into_iter().collect();
        (ordered && rooted).then_some(Self { entries })
    }

    pub fn get(&self, path: &RootfsPath) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// In bytewise order of the paths.
    pub fn iter(&self) -> impl Iterator<Item = (&RootfsPath, &Entry)> {
        self.entries.iter()
    }

    /// How many entries, the root included.
    pub fn count(&self) -> u64 {
        self.entries.len() as u64
    }

    /// How many bytes the regular files hold.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(size).fold(0, u64::saturating_add)
    }
}

fn size(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::File { size, .. } => size,
        _ => 0,
    }
}
