//! The files of a list as they are read: paths and digests one after the other in a few blocks, since a
//! list may have a million of them.

use super::{ListError, MAX_DIGESTS, MAX_ENTRIES};
use crate::digest::FileDigest;
use crate::imalog::{decode_into, encode_path};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::cmp::Ordering;
use std::fmt;

/// Paths, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Paths {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Paths {
    /// One more, from its one spelling (see [`crate::imalog::EncodedPath`]). Newlines are refused although
    /// they could be encoded: a path is shown to people in lines.
    fn push(&mut self, text: &str) -> Result<(), ListError> {
        let start = self.bytes.len();
        decode_into(text, &mut self.bytes)?;
        let path = self.bytes.get(start..).unwrap_or_default();
        if path.contains(&b'\n') {
            return Err(ListError::Newline(text.to_owned()));
        }
        let end = u32::try_from(self.bytes.len());
        self.ends
            .push(end.map_err(|_| ListError::TooLong(self.bytes.len()))?);
        Ok(())
    }
    fn len(&self) -> usize {
        self.ends.len()
    }
    fn get(&self, index: usize) -> &[u8] {
        let end = |index: usize| self.ends.get(index).map_or(0, |end| *end as usize);
        let start = index.checked_sub(1).map_or(0, end);
        self.bytes.get(start..end(index)).unwrap_or_default()
    }
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index))
    }
    fn last(&self) -> String {
        encode_path(self.len().checked_sub(1).map_or(b"", |last| self.get(last)))
    }
    /// The places of the paths in the order of their bytes; `None` if that is the order they are in.
    fn order(&self) -> Result<Option<Vec<usize>>, ListError> {
        let twice = |path: &[u8]| ListError::DuplicatePath(encode_path(path));
        let (mut former, mut sorted) = (None, true);
        for path in self.iter() {
            match former.map_or(Ordering::Less, |former: &[u8]| former.cmp(path)) {
                Ordering::Less => {}
                Ordering::Equal => return Err(twice(path)),
                Ordering::Greater => sorted = false,
            }
            former = Some(path);
        }
        if sorted {
            return Ok(None);
        }
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_unstable_by_key(|index| self.get(*index));
        for (a, b) in order.iter().zip(order.iter().skip(1)) {
            if self.get(*a) == self.get(*b) {
                return Err(twice(self.get(*a)));
            }
        }
        Ok(Some(order))
    }
}

/// Absolute paths (as the file system spells them) in the order of their bytes, and the contents that each
/// may have: about a hundred bytes for each, whatever their number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    paths: Paths,
    digests: Vec<FileDigest>,
    /// Where the digests of each path end.
    ends: Vec<u32>,
}

impl Files {
    pub fn len(&self) -> usize {
        self.paths.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The contents that the file at `path` may have.
    pub fn get(&self, path: &[u8]) -> Option<&[FileDigest]> {
        self.place(path).map(|index| self.digests_at(index))
    }
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[FileDigest])> {
        (0..self.len()).map(|index| (self.path_at(index), self.digests_at(index)))
    }
    pub(super) fn path_at(&self, index: usize) -> &[u8] {
        self.paths.get(index)
    }
    pub(super) fn digests_at(&self, index: usize) -> &[FileDigest] {
        let end = |index: usize| self.ends.get(index).map_or(0, |end| *end as usize);
        let start = index.checked_sub(1).map_or(0, end);
        self.digests.get(start..end(index)).unwrap_or_default()
    }
    pub(super) fn place(&self, path: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.path_at(middle).cmp(path) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(middle),
            }
        }
        None
    }
    fn sorted(self) -> Result<Self, ListError> {
        let Some(order) = self.paths.order()? else {
            return Ok(self);
        };
        let mut sorted = Self::default();
        sorted.paths.bytes.reserve_exact(self.paths.bytes.len());
        sorted.digests.reserve_exact(self.digests.len());
        for index in order {
            sorted.paths.bytes.extend_from_slice(self.path_at(index));
            sorted.digests.extend_from_slice(self.digests_at(index));
            // neither is longer than what it was made of
            sorted.paths.ends.push(sorted.paths.bytes.len() as u32);
            sorted.ends.push(sorted.digests.len() as u32);
        }
        Ok(sorted)
    }
    /// The digests after those of the paths before, which belong to the last path.
    fn close_digests(&mut self, count: usize) -> Result<(), ListError> {
        let start = self.ends.last().map_or(0, |end| *end as usize);
        let path = || self.paths.last();
        if count == 0 || count > MAX_DIGESTS {
            return Err(ListError::Digests {
                path: path(),
                count,
            });
        }
        let own = self.digests.get_mut(start..).unwrap_or_default();
        own.sort_unstable();
        let mut pairs = own.iter().zip(own.iter().skip(1));
        if let Some((digest, _)) = pairs.find(|(a, b)| a == b) {
            return Err(ListError::DuplicateDigest {
                path: path(),
                digest: *digest,
            });
        }
        let end = u32::try_from(self.digests.len());
        self.ends
            .push(end.map_err(|_| ListError::Entries(self.len()))?);
        Ok(())
    }
}

/// `files` of a statement: what is wrong with it is told after everything else.
pub(super) struct Read(Result<Files, ListError>);

impl Read {
    pub(super) fn judge(self) -> Result<Files, ListError> {
        self.0?.sorted()
    }
}

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members).map(Self)
    }
}

/// The members of the JSON object in their order, repeated names included: a map type would keep
/// one of two equal names without a word.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Result<Files, ListError>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of paths with their digests")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut files = Files::default();
        while let Some(pushed) = map.next_key_seed(OnePath(&mut files.paths))? {
            let why = match pushed {
                Ok(()) if files.len() <= MAX_ENTRIES => {
                    match map.next_value_seed(Digests(&mut files))? {
                        Ok(()) => continue,
                        Err(why) => why,
                    }
                }
                judged => {
                    map.next_value::<IgnoredAny>()?;
                    judged.err().unwrap_or(ListError::Entries(files.len()))
                }
            };
            return rest(map, why, files.len());
        }
        Ok(match files.is_empty() {
            true => Err(ListError::Entries(0)),
            false => Ok(files),
        })
    }
}

/// Reads on to the object's end, which must be sound, and counts.
fn rest<'de, A: MapAccess<'de>>(
    mut map: A,
    why: ListError,
    mut count: usize,
) -> Result<Result<Files, ListError>, A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
        count += 1;
    }
    Ok(Err(match count > MAX_ENTRIES {
        true => ListError::Entries(count),
        false => why,
    }))
}

/// One path, which is judged as it is read.
struct OnePath<'a>(&'a mut Paths);

impl<'de> DeserializeSeed<'de> for OnePath<'_> {
    type Value = Result<(), ListError>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for OnePath<'_> {
    type Value = Result<(), ListError>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path")
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.push(text))
    }
}

/// The digests of the last path.
struct Digests<'a>(&'a mut Files);

impl<'de> DeserializeSeed<'de> for Digests<'_> {
    type Value = Result<(), ListError>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Digests<'_> {
    type Value = Result<(), ListError>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of digests")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut count, mut wrong) = (0, None);
        while let Some(read) = seq.next_element_seed(OneDigest)? {
            count += 1;
            match read {
                Ok(digest) if count <= MAX_DIGESTS => self.0.digests.push(digest),
                Ok(_) => {}
                Err(found) => {
                    let path = self.0.paths.last();
                    wrong.get_or_insert(ListError::Digest { path, found });
                }
            }
        }
        Ok(match wrong {
            Some(why) => Err(why),
            None => self.0.close_digests(count),
        })
    }
}

/// One digest, or the beginning of what is none.
struct OneDigest;

impl<'de> DeserializeSeed<'de> for OneDigest {
    type Value = Result<FileDigest, String>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for OneDigest {
    type Value = Result<FileDigest, String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a SHA-256 in hex digits")
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(FileDigest::from_hex(text).ok_or_else(|| super::statement::clip(text)))
    }
}

/// `exec.allow` of a statement.
pub(super) struct Allowed(Result<Paths, ListError>);

impl Allowed {
    /// For each of `files` whether it is among them; all of them are among the files.
    pub(super) fn judge(self, files: &Files) -> Result<Vec<bool>, ListError> {
        let mut starts = vec![false; files.len()];
        for path in self.0?.iter() {
            let place = files.place(path).and_then(|index| starts.get_mut(index));
            match place {
                None => return Err(ListError::UnknownProgram(encode_path(path))),
                Some(true) => return Err(ListError::DuplicatePath(encode_path(path))),
                Some(starts) => *starts = true,
            }
        }
        Ok(starts)
    }
}

impl<'de> Deserialize<'de> for Allowed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Programs;
        impl<'de> Visitor<'de> for Programs {
            type Value = Result<Paths, ListError>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of paths")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let (mut paths, mut wrong) = (Paths::default(), None);
                while wrong.is_none()
                    && let Some(pushed) = seq.next_element_seed(OnePath(&mut paths))?
                {
                    wrong = pushed.err();
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(wrong.map_or(Ok(paths), Err))
            }
        }
        deserializer.deserialize_seq(Programs).map(Self)
    }
}
