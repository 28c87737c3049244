//! Making a list.

use super::statement::Statement;
use super::{List, ListError, Programs};
use crate::canon::canonical;
use crate::digest::{FileDigest, ImageDigest};
use crate::id::UnixTime;
use std::collections::{BTreeMap, BTreeSet};

/// A list being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub name: String,
    pub serial: u64,
    pub issued_at: UnixTime,
    pub expires_at: UnixTime,
    /// Name (for people) and digest of each image that the list is about.
    pub images: Vec<(String, ImageDigest)>,
    /// Absolute paths and the contents that each may have.
    pub files: BTreeMap<Vec<u8>, BTreeSet<FileDigest>>,
    pub programs: Programs,
}

impl Draft {
    /// The statement's bytes (RFC 8785), which are what is signed. Parsed before they are handed out:
    /// nothing is signed that would be refused later.
    pub fn statement_bytes(&self) -> Result<Vec<u8>, ListError> {
        let statement = Statement::of(self)?;
        let bytes = canonical(&statement).map_err(|e| ListError::Malformed(e.to_string()))?;
        List::parse(&bytes)?;
        Ok(bytes)
    }
}
