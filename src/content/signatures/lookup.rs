//! Which entries of index.json are about a digest, without reading all of it.
//!
//! `index.lookup` beside index.json says from which index.json it was made (the file's stamp), then has
//! a record for each digest that an entry is about, in order, with the place of that entry. It holds
//! nothing that index.json does not; beside another index.json it is not used, and the whole is read.

use super::{IMAGE_CONFIG, SUBJECT, is_image};
use crate::oci::{Descriptor, Directory, INDEX_FILE, IndexFile};
use anyhow::{Context as _, Result, ensure};
use std::{
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};
use verify::digest::BlobDigest;

const TABLE: &str = "index.lookup";
const MAGIC: &[u8; 8] = b"lookup1\n";
/// A record: 32 bytes of key, place and length in index.json.
const RECORD: usize = 48;
/// Five million records.
const MAX_TABLE: u64 = 240 << 20;
/// Of one entry: an index of a hundred platforms has some 10 KB of annotations.
const MAX_ENTRY: u64 = 1 << 20;

/// Entries that do not say what they are about: looked at for every digest.
const ANY: [u8; 32] = [0; 32];

/// In index.json on an index: the manifests that it contains, so that nobody must read it to know.
pub(super) const MANIFESTS: &str = "dev.attestrun.manifests";

/// index.json as it was at one moment; the blobs that it names stay.
#[derive(Debug)]
pub(super) struct Entries {
    stamp: Stamp,
    found: Found,
}

#[derive(Debug)]
enum Found {
    Table { index: File, records: Vec<u8> },
    Whole(Vec<Descriptor>),
}

/// Which file it is, and that nobody wrote to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([u64; 4]);

impl Stamp {
    fn of(file: &File) -> Result<Self> {
        let data = file.metadata()?;
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(rest);
        Ok(Self([
            data.ino(),
            data.size(),
            nanoseconds(data.mtime(), data.mtime_nsec()).cast_unsigned(),
            nanoseconds(data.ctime(), data.ctime_nsec()).cast_unsigned(),
        ]))
    }

    fn head(self) -> Vec<u8> {
        let words = self.0.iter().flat_map(|word| word.to_le_bytes());
        MAGIC.iter().copied().chain(words).collect()
    }
}

impl Entries {
    pub fn open(directory: &Directory) -> Result<Self> {
        let index = directory.open_index()?;
        let stamp = Stamp::of(&index)?;
        let table = directory.optional(TABLE, MAX_TABLE).ok().flatten();
        let records = table
            .as_deref()
            .and_then(|table| table.strip_prefix(stamp.head().as_slice()))
            .filter(|records| records.len() % RECORD == 0);
        let found = match records {
            Some(records) => Found::Table {
                index,
                records: records.to_vec(),
            },
            None => Found::Whole(directory.index_of(index)?.manifests),
        };
        Ok(Self { stamp, found })
    }

    /// Is this still what the directory holds?
    pub fn is_current(&self, directory: &Directory) -> Result<bool> {
        Ok(Stamp::of(&directory.open_index()?)? == self.stamp)
    }

    /// The entries that may be about `digest`, in index.json's order: whoever asks looks closer.
    pub fn about(&self, digest: &BlobDigest) -> Result<Vec<Descriptor>> {
        let (index, records) = match &self.found {
            Found::Whole(entries) => return Ok(entries.clone()),
            Found::Table { index, records } => (index, records.as_chunks::<RECORD>().0),
        };
        let mut places = Vec::new();
        for key in [&ANY, digest.as_bytes()] {
            let first = records.partition_point(|record| record[..32] < key[..]);
            let same = records[first..]
                .iter()
                .take_while(|record| record[..32] == key[..]);
            places.extend(same.map(|record| (word(record, 32), word(record, 40))));
        }
        places.sort_unstable();
        places.dedup();
        let entry = |(at, length): (u64, u64)| {
            ensure!(length <= MAX_ENTRY, "an entry of {length} bytes");
            let mut bytes = vec![0; length as usize];
            index.read_exact_at(&mut bytes, at)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        let entries = places.into_iter().map(entry).collect::<Result<_>>();
        entries.with_context(|| format!("{TABLE} does not fit index.json: delete it"))
    }
}

fn word(record: &[u8; RECORD], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&record[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Writes index.json, and the table that finds its entries. The caller is the only writer.
pub(super) fn write(directory: &Directory, index: &IndexFile) -> Result<()> {
    let mut bytes = index.head()?;
    let mut records = Vec::new();
    for (number, entry) in index.manifests.iter().enumerate() {
        if number > 0 {
            bytes.push(b',');
        }
        let at = bytes.len() as u64;
        serde_json::to_writer(&mut bytes, entry)?;
        let length = bytes.len() as u64 - at;
        records.extend(keys(entry).into_iter().map(|key| (key, at, length)));
    }
    bytes.extend(b"]}");
    directory.replace(INDEX_FILE, &bytes)?;

    records.sort_unstable();
    let mut table = Stamp::of(&directory.open_index()?)?.head();
    for (key, at, length) in records {
        table.extend(key);
        table.extend(at.to_le_bytes());
        table.extend(length.to_le_bytes());
    }
    directory.replace(TABLE, &table)
}

/// What an entry says that it is about: a signature or list its subject, a manifest its
/// configuration, an index its manifests. A wrong word can only hide the entry that says it.
fn keys(entry: &Descriptor) -> Vec<[u8; 32]> {
    let annotation = if entry.annotations.contains_key(SUBJECT) {
        SUBJECT
    } else if !is_image(entry) {
        return vec![ANY];
    } else if entry.is_index() {
        MANIFESTS
    } else {
        IMAGE_CONFIG
    };
    let Some(text) = entry.annotations.get(annotation) else {
        return vec![ANY];
    };
    let digests = text
        .split(',')
        .map(|word| Some(*word.parse::<BlobDigest>().ok()?.as_bytes()));
    digests
        .collect::<Option<Vec<_>>>()
        .unwrap_or_else(|| vec![ANY])
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
