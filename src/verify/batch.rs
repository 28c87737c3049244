//! One host quote for many challenges: a Merkle tree over their leaves, and the path that leads from a
//! challenger's own leaf to the quoted root.
//!
//! The tree is that of RFC 6962, section 2.1 (an odd node goes up as it is), with hashes of our own
//! ([`crate::qualify`]): a leaf begins with 0x00, an inner node with 0x01 and a domain, so that neither
//! passes as the other. A tree of one leaf is the leaf: a quote for one challenge is no special case.

use crate::canon::canonical;
use crate::qualify;
use serde::{Deserialize, Serialize};

/// Leaves under one quote: more than any host has challenges at once.
pub const MAX_LEAVES: usize = 1 << 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("Merkle path: {0}")]
    Malformed(String),
    #[error("Merkle path: leaf {index} of {size}")]
    Index { index: u32, size: u32 },
    #[error("Merkle path: {found} hashes, leaf {index} of {size} has {expected}")]
    Length {
        index: u32,
        size: u32,
        found: usize,
        expected: usize,
    },
}

/// Where a leaf stands and what is beside its way to the root, from below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    index: u32,
    size: u32,
    beside: Vec<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PathText {
    index: u32,
    path: Vec<String>,
    size: u32,
}

/// Batches that a quote was made for: the root, and each leaf's path.
#[derive(Debug)]
pub struct Batch {
    /// The leaves, then each level above them; the last one is the root alone.
    levels: Vec<Vec<[u8; 32]>>,
}

impl Batch {
    /// None: no leaf, or too many.
    pub fn of(leaves: Vec<[u8; 32]>) -> Option<Self> {
        if leaves.is_empty() || leaves.len() > MAX_LEAVES {
            return None;
        }
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let above = below.chunks(2).map(|pair| match pair {
                [left, right] => qualify::batch_node(left, right),
                // `chunks` gives one or two; an odd one goes up as it is.
                _ => pair.first().copied().unwrap_or_default(),
            });
            let above = above.collect();
            levels.push(above);
        }
        Some(Self { levels })
    }

    /// What is quoted.
    pub fn root(&self) -> [u8; 32] {
        let root = self.levels.last().and_then(|level| level.first());
        root.copied().unwrap_or_default()
    }

    /// The path of leaf `index`; None if there is none.
    pub fn path(&self, index: usize) -> Option<Path> {
        let size = self.levels.first()?.len();
        if index >= size {
            return None;
        }
        let mut at = index;
        let mut beside = Vec::new();
        for level in &self.levels {
            beside.extend(level.get(at ^ 1));
            at /= 2;
        }
        Some(Path {
            index: u32::try_from(index).ok()?,
            size: u32::try_from(size).ok()?,
            beside,
        })
    }
}

impl Path {
    /// Of a quote for one challenge.
    pub const fn single() -> Self {
        Self {
            index: 0,
            size: 1,
            beside: Vec::new(),
        }
    }

    /// Leaves under the quote.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The root that `leaf` has at this place.
    pub fn root_of(&self, leaf: &[u8; 32]) -> [u8; 32] {
        let (mut at, mut last, mut hash) = (self.index, self.size - 1, *leaf);
        let mut beside = self.beside.iter();
        while last > 0 {
            // the last node of an odd level goes up as it is
            if at % 2 == 1 || at < last {
                // the number of hashes was compared with the place's
                let other = beside.next().copied().unwrap_or_default();
                hash = match at % 2 {
                    1 => qualify::batch_node(&other, &hash),
                    _ => qualify::batch_node(&hash, &other),
                };
            }
            (at, last) = (at / 2, last / 2);
        }
        hash
    }

    fn check(self) -> Result<Self, PathError> {
        let Self { index, size, .. } = self;
        let most = u32::try_from(MAX_LEAVES).unwrap_or(u32::MAX);
        if index >= size || size > most {
            return Err(PathError::Index { index, size });
        }
        let (mut at, mut last, mut expected) = (index, size - 1, 0);
        while last > 0 {
            expected += usize::from(at % 2 == 1 || at < last);
            (at, last) = (at / 2, last / 2);
        }
        match self.beside.len() == expected {
            true => Ok(self),
            false => Err(PathError::Length {
                index,
                size,
                found: self.beside.len(),
                expected,
            }),
        }
    }

    /// Canonical JSON (RFC 8785).
    pub fn encode(&self) -> Vec<u8> {
        let text = PathText {
            index: self.index,
            path: self.beside.iter().map(hex::encode).collect(),
            size: self.size,
        };
        // Numbers and strings always have a canonical form.
        canonical(&text).unwrap_or_default()
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        let malformed = |e: &dyn std::fmt::Display| PathError::Malformed(e.to_string());
        let text: PathText = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
        let beside = text.path.iter().map(|digits| {
            let mut hash = [0; 32];
            hex::decode_to_slice(digits, &mut hash).map(|()| hash)
        });
        let path = Self {
            index: text.index,
            size: text.size,
            beside: beside
                .collect::<Result<_, _>>()
                .map_err(|e| malformed(&e))?,
        };
        let path = path.check()?;
        match path.encode() == bytes {
            true => Ok(path),
            false => Err(malformed(&"not in canonical form")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

    fn leaves(n: usize) -> Vec<[u8; 32]> {
        (0..n)
            .map(|i| Sha256::digest(i.to_be_bytes()).into())
            .collect()
    }

    #[test]
    fn accept_each_leaf_of_each_size() {
        for size in 1..=70 {
            let leaves = leaves(size);
            let batch = Batch::of(leaves.clone()).unwrap();
            for (index, leaf) in leaves.iter().enumerate() {
                let path = batch.path(index).unwrap();
                assert_eq!(path.root_of(leaf), batch.root(), "leaf {index} of {size}");
                assert_eq!(Path::parse(&path.encode()), Ok(path.clone()));
                // nobody else's leaf stands there
                let other = leaves.get((index + 1) % size).unwrap();
                assert_eq!(path.root_of(other) == batch.root(), size == 1);
            }
            assert_eq!(batch.path(size), None);
        }
        assert!(Batch::of(vec![]).is_none());
        assert_eq!(Batch::of(leaves(1)).unwrap().path(0), Some(Path::single()));
    }

    /// The shape of RFC 6962, section 2.1.3, for its seven leaves.
    #[test]
    fn the_tree_is_that_of_rfc_6962() {
        let d = leaves(7);
        let n = |a: &[u8; 32], b: &[u8; 32]| qualify::batch_node(a, b);
        let (g, h, i) = (n(&d[0], &d[1]), n(&d[2], &d[3]), n(&d[4], &d[5]));
        let (k, l) = (n(&g, &h), n(&i, &d[6]));
        let batch = Batch::of(d.clone()).unwrap();
        assert_eq!(batch.root(), n(&k, &l));
        let path = |index| batch.path(index).unwrap().beside;
        assert_eq!(path(0), [d[1], h, l]);
        assert_eq!(path(3), [d[2], g, l]);
        assert_eq!(path(4), [d[5], d[6], k]);
        assert_eq!(path(6), [i, k]);
    }

    #[test]
    fn refuse_an_inner_node_as_a_leaf() {
        let d = leaves(4);
        let batch = Batch::of(d.clone()).unwrap();
        let inner = qualify::batch_node(&d[0], &d[1]);
        let right = qualify::batch_node(&d[2], &d[3]);
        // As a leaf of a smaller tree it gives the same root; but no challenge's leaf has its value,
        // since a leaf is a hash over 0x00 and an inner node one over 0x01.
        let path = Path {
            index: 0,
            size: 2,
            beside: vec![right],
        };
        assert_eq!(path.root_of(&inner), batch.root());
        assert!(!d.contains(&inner));
    }

    #[test]
    fn refuse_paths_of_another_shape() {
        let hash = "00".repeat(32);
        let text = |index: u32, size: u32, n: usize| {
            let hashes = vec![format!("\"{hash}\""); n].join(",");
            format!(r#"{{"index":{index},"path":[{hashes}],"size":{size}}}"#)
        };
        assert!(Path::parse(text(2, 5, 3).as_bytes()).is_ok());
        assert!(Path::parse(text(4, 5, 1).as_bytes()).is_ok());
        for bad in [text(2, 5, 2), text(2, 5, 4), text(4, 5, 3), text(0, 1, 1)] {
            assert!(
                matches!(Path::parse(bad.as_bytes()), Err(PathError::Length { .. })),
                "{bad}"
            );
        }
        for bad in [text(5, 5, 3), text(0, 0, 0), text(0, 1 << 17, 17)] {
            assert!(
                matches!(Path::parse(bad.as_bytes()), Err(PathError::Index { .. })),
                "{bad}"
            );
        }
        let good = text(1, 2, 1);
        for bad in [
            good.replace("00\"", "0\""),
            good.replace("\"size\":2", "\"size\":2,\"x\":1"),
            good.replace(":1,", ": 1,"),
            good.replace("\"index\":1", "\"index\":-1"),
        ] {
            assert!(
                matches!(Path::parse(bad.as_bytes()), Err(PathError::Malformed(_))),
                "{bad}"
            );
        }
    }
}
