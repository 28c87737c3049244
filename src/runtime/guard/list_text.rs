//! The signature list's own bytes, which evidence shows: a file that is kept open, since they may be a
//! hundred megabytes, and nothing in this process reads them again.

use crate::config;
use anyhow::{Context, Result, ensure};
use content::signatures::Store;
use rustix::fs::{MemfdFlags, memfd_create};
use std::{fs::File, io::Write, os::unix::fs::FileExt, path::Path};
use verify::{
    digest::{ListDigest, OrNone},
    policy::StoredList,
    siglist::MAX_STATEMENT,
};

/// A list and its detached signature.
pub struct ListText {
    statement: File,
    signature: Vec<u8>,
}

impl ListText {
    /// From the store, in which it was found, or a copy in memory: an attestation that came with the image
    /// has it in other bytes.
    pub fn keep(list: StoredList) -> Result<Self> {
        let digest = ListDigest::of(&list.statement);
        let stored = Store::open(Path::new(config::SIGNATURES))?.list_file(&digest)?;
        let statement = match stored {
            Some(file) => file,
            None => copy(&list.statement).context("cannot keep the signature list")?,
        };
        Ok(Self {
            statement,
            signature: list.signature,
        })
    }

    pub fn statement(&self) -> &File {
        &self.statement
    }

    pub fn signature(&self) -> &[u8] {
        &self.signature
    }
}

fn copy(bytes: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create("signature-list", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

/// The bytes that a guard has kept: those of the list that was bound, whatever became of the file.
pub fn read(file: Option<&File>, bound: &OrNone<ListDigest>) -> Result<Vec<u8>> {
    let (file, expected) = match (file, bound.digest()) {
        (None, None) => return Ok(Vec::new()),
        (Some(file), Some(expected)) => (file, expected),
        _ => anyhow::bail!("the container's guard has another list than the one that was bound"),
    };
    let size = usize::try_from(file.metadata()?.len())?;
    ensure!(size <= MAX_STATEMENT, "the signature list has {size} bytes");
    let mut bytes = vec![0; size];
    let doing = || format!("cannot read the signature list {expected}");
    file.read_exact_at(&mut bytes, 0).with_context(doing)?;
    ensure!(
        ListDigest::of(&bytes) == *expected,
        "the signature list {expected} was altered in its store"
    );
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bound_list_is_shown() {
        let file = copy(b"list").unwrap();
        let bound = OrNone::Is(ListDigest::of(b"list"));
        assert_eq!(read(Some(&file), &bound).unwrap(), b"list");
        assert_eq!(read(None, &OrNone::None).unwrap(), b"");
        assert!(read(Some(&file), &OrNone::None).is_err());
        assert!(read(None, &bound).is_err());
        file.write_all_at(b"L", 0).unwrap();
        let error = read(Some(&file), &bound).unwrap_err().to_string();
        assert!(error.contains("altered"), "{error}");
    }
}
