//! Checked layers as bytes that are looked into without being read whole, so that a start which finds
//! them in a cache costs the same however many files an image has.
//!
//! A tree of nodes, each some 4 KiB; a node is named by its place and its SHA-256, the root's name stands
//! in the front. So what is looked at is checked, and nothing else is read: a path takes as many nodes
//! as the tree has levels (three of them hold 100 000 files). Who keeps these bytes vouches for the
//! front, which restores a witness; from there on every bit is checked, before it is understood.
//!
//! ```text
//! front = digest(32) entries(u64) bytes(u64) levels(u8) node notes     ; entries, bytes: of the manifest
//! node  = offset(u64) length(u32) sha256(32)                           ; offset: from the first node
//! notes = count(u32) *(text text)                                      ; path, rule
//! inner = 1*(text node)                                                ; the first path below, and where
//! leaf  = 1*(shared(u16) text length(u32) flags(u8) entry)             ; in bytewise order of the paths
//! text  = length(u32) *octet
//! ```
//! Numbers are little-endian. A leaf's path begins with `shared` bytes of the one before it; `length` is
//! that of flags and entry; flag 1: no layer names the directory; `entry` as in a layer's bytes. Nothing
//! refers to addresses: the bytes may be mapped as they are.

use super::{
    Expected, RootfsManifest, RootfsPath, Said, Tree,
    bytes::{Input, MalformedBytes, Output},
    compare::Note,
};
use crate::digest::RootfsDigest;
use sha2::{Digest as _, Sha256};
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    fmt,
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
};

/// A node is full at this many bytes.
const NODE: usize = 4096;
/// Nodes that are kept once they were checked.
const KEPT: usize = 256;
const IMPLIED: u8 = 1;

/// What was kept is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was kept of the image's layers is damaged")]
pub struct Damaged;

/// Where the nodes are.
pub trait Place: Send + Sync {
    /// Bytes of the nodes, copied; `None` when they cannot be had.
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>>;
}

impl Place for Vec<u8> {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let from = usize::try_from(offset).ok()?;
        let bytes = self.get(from..from.checked_add(length)?)?;
        Some(bytes.to_vec())
    }
}

/// Where a node is, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    offset: u64,
    length: u32,
    sha256: [u8; 32],
}

/// What stands in front of the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Front {
    pub digest: RootfsDigest,
    pub entries: u64,
    pub bytes: u64,
    pub notes: Vec<Note>,
    levels: u8,
    root: Node,
}

/// A manifest in its packed form.
pub(super) struct Packed {
    pub front: Front,
    place: Box<dyn Place>,
    /// By their offset.
    checked: Mutex<HashMap<u64, Arc<Content>>>,
}

impl Packed {
    pub fn of(manifest: &RootfsManifest, notes: Vec<Note>) -> Self {
        let (nodes, levels, root) = nodes(manifest);
        let tree = manifest.tree();
        let front = Front {
            digest: manifest.digest(),
            entries: tree.count(),
            bytes: tree.bytes(),
            notes,
            levels,
            root,
        };
        Self::at_place(front, Box::new(nodes))
    }

    fn at_place(front: Front, place: Box<dyn Place>) -> Self {
        Self {
            front,
            place,
            checked: Mutex::default(),
        }
    }

    /// Of what [`Self::front_bytes`] gave, and the nodes.
    pub fn restore(front: &[u8], place: Box<dyn Place>) -> Result<Self, MalformedBytes> {
        let mut input = Input(front);
        let front = Front::read(&mut input).ok_or(MalformedBytes)?;
        input.end().ok_or(MalformedBytes)?;
        Ok(Self::at_place(front, place))
    }

    pub fn front_bytes(&self) -> Vec<u8> {
        let mut out = Output(Vec::new());
        self.front.write(&mut out);
        out.0
    }

    /// All nodes: the root is the last one.
    pub fn nodes(&self) -> Result<Vec<u8>, Damaged> {
        let root = &self.front.root;
        let length = usize::try_from(root.offset).map_err(|_| Damaged)? + root.length as usize;
        self.place.read(0, length).ok_or(Damaged)
    }

    /// The manifest as it was before.
    pub fn unpack(&self) -> Result<RootfsManifest, Damaged> {
        let (mut entries, mut implied) = (Vec::new(), BTreeSet::new());
        self.each_from(b"", &mut |path, said| {
            if said.implied {
                implied.insert(path.clone());
            }
            entries.push((path, said.entry.into_owned()));
            ControlFlow::Continue(())
        })?;
        let tree = Tree::restore(entries).ok_or(Damaged)?;
        Ok(RootfsManifest::restore(tree, implied))
    }

    /// Each entry from this path on, in order, until `visit` has enough.
    fn each_from(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(RootfsPath, Said<'static>) -> ControlFlow<()>,
    ) -> Result<(), Damaged> {
        let _ = self.below(&self.front.root, self.front.levels, from, visit)?;
        Ok(())
    }

    fn below(
        &self,
        node: &Node,
        levels: u8,
        from: &[u8],
        visit: &mut dyn FnMut(RootfsPath, Said<'static>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Damaged> {
        let content = self.checked(node, levels)?;
        let children = match &*content {
            Content::Leaf(bytes) => return leaf(bytes, from, visit).ok_or(Damaged),
            Content::Inner(children) => children,
        };
        let after = children.partition_point(|(first, _)| first.as_slice() <= from);
        for (_, child) in children.iter().skip(after.saturating_sub(1)) {
            if self.below(child, levels - 1, from, visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What the node holds, which is what was written.
    fn checked(&self, node: &Node, levels: u8) -> Result<Arc<Content>, Damaged> {
        // Nothing is changed half: whoever panicked has left it whole.
        let lock = || self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = lock().get(&node.offset) {
            return Ok(content.clone());
        }
        let read = self.place.read(node.offset, node.length as usize);
        let bytes = read.ok_or(Damaged)?;
        if Sha256::digest(&bytes).as_slice() != node.sha256 {
            return Err(Damaged);
        }
        let content = match levels {
            0 => Content::Leaf(bytes),
            _ => Content::Inner(inner(&bytes).ok_or(Damaged)?),
        };
        let content = Arc::new(content);
        let mut kept = lock();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(node.offset, content.clone());
        Ok(content)
    }

    /// The first entry from this path on.
    fn first_from(&self, from: &[u8]) -> Result<Option<(RootfsPath, Said<'static>)>, Damaged> {
        let mut first = None;
        self.each_from(from, &mut |path, said| {
            first = Some((path, said));
            ControlFlow::Break(())
        })?;
        Ok(first)
    }
}

impl Expected for Packed {
    type Error = Damaged;

    fn at(&self, path: &RootfsPath) -> Result<Option<Said<'_>>, Damaged> {
        let first = self.first_from(path.as_bytes())?;
        Ok(first.and_then(|(at, said)| (at == *path).then_some(said)))
    }

    fn first_below(&self, directory: &RootfsPath) -> Result<Option<RootfsPath>, Damaged> {
        let (from, _) = directory.below();
        let first = self.first_from(from.as_bytes())?;
        Ok(first
            .map(|(path, _)| path)
            .filter(|path| path.is_below(directory)))
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.front.fmt(f)
    }
}

/// The root's digest is all nodes'.
impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        self.front == other.front
    }
}

impl Eq for Packed {}

impl Front {
    fn write(&self, out: &mut Output) {
        out.0.extend_from_slice(self.digest.as_bytes());
        out.0.extend_from_slice(&self.entries.to_le_bytes());
        out.0.extend_from_slice(&self.bytes.to_le_bytes());
        out.0.push(self.levels);
        self.root.write(out);
        out.number(self.notes.len());
        for (path, note) in &self.notes {
            out.text(path.as_bytes());
            out.text(note.as_bytes());
        }
    }

    fn read(input: &mut Input<'_>) -> Option<Self> {
        let digest = RootfsDigest::from_bytes(input.take()?);
        let entries = u64::from_le_bytes(input.take()?);
        let bytes = u64::from_le_bytes(input.take()?);
        let levels = input.byte()?;
        let root = Node::read(input)?;
        let mut notes = Vec::new();
        for _ in 0..input.u32()? {
            let path = RootfsPath::restore(input.text()?);
            notes.push((path, String::from_utf8(input.text()?.to_vec()).ok()?));
        }
        Some(Self {
            digest,
            entries,
            bytes,
            notes,
            levels,
            root,
        })
    }
}

impl Node {
    fn write(&self, out: &mut Output) {
        out.0.extend_from_slice(&self.offset.to_le_bytes());
        out.0.extend_from_slice(&self.length.to_le_bytes());
        out.0.extend_from_slice(&self.sha256);
    }

    fn read(input: &mut Input<'_>) -> Option<Self> {
        Some(Self {
            offset: u64::from_le_bytes(input.take()?),
            length: input.u32()?,
            sha256: input.take()?,
        })
    }
}

/// All nodes, how many levels stand above the leaves, and the root.
fn nodes(manifest: &RootfsManifest) -> (Vec<u8>, u8, Node) {
    let mut writing = Writing::default();
    let mut before: &[u8] = b"";
    for (path, entry) in manifest.tree().iter() {
        let path = path.as_bytes();
        if writing.begin(path) {
            before = b"";
        }
        let same = path.iter().zip(before).take_while(|(a, b)| a == b).count();
        let shared = u16::try_from(same).unwrap_or(0); // paths are shorter than that
        let implied = manifest.implied.contains(path);
        let mut said = Output(vec![if implied { IMPLIED } else { 0 }]);
        said.entry(entry);
        let out = &mut writing.node;
        out.0.extend_from_slice(&shared.to_le_bytes());
        out.text(path.get(usize::from(shared)..).unwrap_or_default());
        out.text(&said.0);
        before = path;
    }
    let mut level = writing.next_level();
    let mut levels = 0;
    while level.len() > 1 {
        for (first, node) in level {
            writing.begin(&first);
            writing.node.text(&first);
            node.write(&mut writing.node);
        }
        level = writing.next_level();
        levels += 1;
    }
    // A tree has its root directory, thus a leaf.
    let nothing = Node {
        offset: 0,
        length: 0,
        sha256: Sha256::digest(b"").into(),
    };
    let root = level.pop().map_or(nothing, |(_, root)| root);
    (writing.done, levels, root)
}

/// Nodes of one level, one after the other.
struct Writing {
    done: Vec<u8>,
    level: Vec<(Vec<u8>, Node)>,
    first: Vec<u8>,
    node: Output,
}

impl Default for Writing {
    fn default() -> Self {
        Self {
            done: Vec::new(),
            level: Vec::new(),
            first: Vec::new(),
            node: Output(Vec::with_capacity(NODE)),
        }
    }
}

impl Writing {
    /// Before what begins with `path`; true: it is the first of its node.
    fn begin(&mut self, path: &[u8]) -> bool {
        if self.node.0.len() >= NODE {
            self.finish();
        }
        let first = self.node.0.is_empty();
        if first {
            self.first = path.to_vec();
        }
        first
    }

    fn finish(&mut self) {
        let node = Node {
            offset: self.done.len() as u64,
            length: self.node.0.len() as u32, // NODE and one entry, whose parts are bounded
            sha256: Sha256::digest(&self.node.0).into(),
        };
        self.done.append(&mut self.node.0);
        self.level.push((std::mem::take(&mut self.first), node));
    }

    fn next_level(&mut self) -> Vec<(Vec<u8>, Node)> {
        if !self.node.0.is_empty() {
            self.finish();
        }
        std::mem::take(&mut self.level)
    }
}

/// A node, once it was checked.
enum Content {
    Leaf(Vec<u8>),
    /// The first path below, and where that is.
    Inner(Vec<(Vec<u8>, Node)>),
}

/// `None`: malformed.
fn inner(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Node)>> {
    let mut input = Input(bytes);
    let mut children = Vec::with_capacity(NODE / 64);
    while !input.0.is_empty() {
        children.push((input.text()?.to_vec(), Node::read(&mut input)?));
    }
    Some(children)
}

/// `None`: malformed.
fn leaf(
    bytes: &[u8],
    from: &[u8],
    visit: &mut dyn FnMut(RootfsPath, Said<'static>) -> ControlFlow<()>,
) -> Option<ControlFlow<()>> {
    let mut input = Input(bytes);
    let mut path = Vec::new();
    while !input.0.is_empty() {
        let shared = usize::from(u16::from_le_bytes(input.take()?));
        let rest = input.text()?;
        if shared > path.len() {
            return None;
        }
        path.truncate(shared);
        path.extend_from_slice(rest);
        let mut said = Input(input.text()?);
        if path.as_slice() < from {
            continue;
        }
        let implied = said.byte()? & IMPLIED != 0;
        let kind = said.byte()?;
        let entry = Cow::Owned(said.entry(kind)?);
        said.end()?;
        let said = Said { entry, implied };
        if visit(RootfsPath::restore(&path), said).is_break() {
            return Some(ControlFlow::Break(()));
        }
    }
    Some(ControlFlow::Continue(()))
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
