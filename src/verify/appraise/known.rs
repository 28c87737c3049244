//! What was verified already, by the same arguments: a fleet's containers share a signature list, and the
//! challenges of one batch a host quote. A remembered result is what the same call would give again.

use crate::cms::{CmsRefusal, VerifiedSigner};
use crate::digest::{FileDigest, ImageDigest};
use crate::evidence::list_digest;
use crate::id::UnixTime;
use crate::siglist::{ListRefusal, VerifiedList};
use crate::tpm2::{QuoteError, VerifiedQuote};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// More than the lists, or the hosts, of one second.
const MOST: usize = 4096;

/// A list that the challenger kept, and need not be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct KeptList {
    statement: Vec<u8>,
    signature: Vec<u8>,
    digest: FileDigest,
}

impl KeptList {
    pub fn new(statement: Vec<u8>, signature: Vec<u8>) -> Self {
        let digest = list_digest(&statement, &signature);
        Self {
            statement,
            signature,
            digest,
        }
    }
    pub fn statement(&self) -> &[u8] {
        &self.statement
    }
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }
    pub fn digest(&self) -> FileDigest {
        self.digest
    }
}

/// All that the verdict about a list depends on, but for the standard that this is a part of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ListQuestion {
    pub list: FileDigest,
    pub image: Option<ImageDigest>,
    pub min_serial: u64,
    pub now: UnixTime,
}

/// What became of a list and its signature.
#[derive(Debug)]
pub(super) struct Signed {
    pub signer: Result<VerifiedSigner, CmsRefusal>,
    /// None: without a record, or with none in it, there is no image that the list could be about.
    pub list: Option<Result<VerifiedList, ListRefusal>>,
}

type Quote = Result<VerifiedQuote, Vec<QuoteError>>;

#[derive(Debug, Default)]
pub(super) struct Known {
    lists: Mutex<BTreeMap<ListQuestion, Arc<Signed>>>,
    quotes: Mutex<BTreeMap<FileDigest, Quote>>,
}

impl Known {
    pub fn list(&self, asked: ListQuestion, verify: impl FnOnce() -> Signed) -> Arc<Signed> {
        remembered(&self.lists, asked, || Arc::new(verify()))
    }
    /// `asked`: all that is verified, and with what.
    pub fn quote(&self, asked: [&[u8]; 4], verify: impl FnOnce() -> Quote) -> Quote {
        let digests = asked.map(|part| *FileDigest::of(part).as_bytes());
        remembered(&self.quotes, FileDigest::of(&digests.concat()), verify)
    }
}

fn remembered<K: Ord, V: Clone>(
    known: &Mutex<BTreeMap<K, V>>,
    asked: K,
    find: impl FnOnce() -> V,
) -> V {
    // A map stays whole, whoever panicked.
    let lock = || known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = lock().get(&asked) {
        return found.clone();
    }
    let found = find();
    let mut known = lock();
    if known.len() >= MOST {
        known.clear();
    }
    known.insert(asked, found.clone());
    found
}
