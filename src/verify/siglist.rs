//! The signature list: which programs (by path and SHA-256) may run in containers of which image.
//!
//! An in-toto Statement v1 over one predicate of ours, signed by the image's user. Trusts: the user
//! CA and tenant that a policy names. Proves: this tenant's list, in force now, is about this image.

use crate::cms::{self, CmsRefusal, Revocation, VerifiedSigner};
use crate::digest::{FileDigest, ImageDigest, ListDigest};
use crate::id::UnixTime;
use crate::imalog::{PathError, encode_path};
use std::collections::BTreeSet;

mod draft;
mod statement;
mod table;
pub use draft::Draft;
use statement::Statement;
pub(crate) use statement::is_name;
pub use table::Files;

/// in-toto attestation framework v1, `spec/v1/statement.md`.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The same with its former name, which cosign 2 still writes.
const STATEMENT_TYPE_V0_1: &str = "https://in-toto.io/Statement/v0.1";
/// Our predicate (a tag URI, RFC 4151).
pub const PREDICATE_TYPE: &str = "tag:attestrun,2026:signature-list/v1";
/// Files in one list: ten times a large image.
pub const MAX_ENTRIES: usize = 1_048_576;
/// Room for that many, with paths of some eighty bytes.
pub const MAX_STATEMENT: usize = 160 << 20;
/// Digests of one path (a list may cover neighbouring versions of an image).
const MAX_DIGESTS: usize = 64;
/// Images that one list is about.
const MAX_SUBJECTS: usize = 1024;
/// RFC 8785 numbers are IEEE 754 doubles: larger integers have no exact spelling.
const MAX_SERIAL: u64 = (1 << 53) - 1;

/// What is wrong with a list's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("the list has {0} bytes, more than {MAX_STATEMENT}")]
    TooLong(usize),
    #[error("the list is malformed: {0}")]
    Malformed(String),
    #[error("the list is a `{0}`, not an in-toto Statement v1")]
    StatementType(String),
    #[error("the statement's predicateType is `{0}`, not `{PREDICATE_TYPE}`")]
    PredicateType(String),
    #[error("the list uses {field} `{found}`, which is not known here")]
    Unknown { field: &'static str, found: String },
    #[error("`{0}` cannot be a list's name (letters, digits, `.`, `_`, `-`; at most 128)")]
    Name(String),
    #[error("serial {0} is not in the range 1 to 2^53-1")]
    Serial(u64),
    #[error("the list expires at {expires}, not after it was issued at {issued}")]
    Lifetime { issued: UnixTime, expires: UnixTime },
    #[error("the list is about {0} images; at least one, at most {MAX_SUBJECTS} are expected")]
    Subjects(usize),
    #[error("the list has {0} files; at least one, at most {MAX_ENTRIES} are expected")]
    Entries(usize),
    #[error("{0}")]
    Path(#[from] PathError),
    #[error("the path {0} holds a newline")]
    Newline(String),
    #[error("the path {0} is listed twice")]
    DuplicatePath(String),
    #[error("{path} has {count} digests; at least one, at most {MAX_DIGESTS} are expected")]
    Digests { path: String, count: usize },
    #[error("{path}: `{found}` is not a SHA-256 in 64 lower-case hex digits")]
    Digest { path: String, found: String },
    #[error("{path} has the digest {digest} twice")]
    DuplicateDigest { path: String, digest: FileDigest },
    #[error("exec.allow names {0}, which is not among the files")]
    UnknownProgram(String),
    #[error("the list has excludes, which are not known here")]
    Excludes,
}

/// Why a list does not count for an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListRefusal {
    #[error(transparent)]
    Signature(#[from] CmsRefusal),
    #[error(transparent)]
    List(#[from] ListError),
    #[error("it is signed for tenant {found}, not {expected}")]
    OtherTenant { expected: String, found: String },
    #[error("it is named `{found}`, not `{expected}`")]
    OtherName { expected: String, found: String },
    #[error("it is not about this image, but about {0}")]
    OtherImage(ImageDigest),
    #[error("its serial {found} is lower than {min}")]
    LowSerial { min: u64, found: u64 },
    #[error("it expired at {0}")]
    Expired(UnixTime),
    #[error("it was issued at {issued}, which is later than now ({now})")]
    NotYetIssued { issued: UnixTime, now: UnixTime },
}

/// Which of the listed files may be started as programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Programs {
    /// All: the list has no `exec`.
    AllFiles,
    /// These; the others may only be mapped (libraries) or read.
    Only(BTreeSet<Vec<u8>>),
}

/// A well-formed list of which nothing has been believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    digest: ListDigest,
    name: String,
    serial: u64,
    issued_at: UnixTime,
    expires_at: UnixTime,
    images: Vec<ImageDigest>,
    files: Files,
    /// For each of the files whether it may be started; without: all.
    starts: Option<Vec<bool>>,
}

impl List {
    pub fn parse(bytes: &[u8]) -> Result<Self, ListError> {
        Self::parse_hashed(bytes, ListDigest::of(bytes))
    }
    /// `digest`: that of the bytes.
    fn parse_hashed(bytes: &[u8], digest: ListDigest) -> Result<Self, ListError> {
        if bytes.len() > MAX_STATEMENT {
            return Err(ListError::TooLong(bytes.len()));
        }
        let statement: Statement<table::Read, table::Allowed> =
            serde_json::from_slice(bytes).map_err(|e| ListError::Malformed(e.to_string()))?;
        statement.judge(digest)
    }
    /// SHA-256 of the statement's bytes.
    pub fn digest(&self) -> ListDigest {
        self.digest
    }
    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn serial(&self) -> u64 {
        self.serial
    }
    pub fn issued_at(&self) -> UnixTime {
        self.issued_at
    }
    pub fn expires_at(&self) -> UnixTime {
        self.expires_at
    }
    /// The manifests or indexes that the list is about.
    pub fn images(&self) -> &[ImageDigest] {
        &self.images
    }
    pub fn files(&self) -> &Files {
        &self.files
    }
    /// The listed files that may be started.
    pub fn programs(&self) -> impl Iterator<Item = &[u8]> {
        let files = 0..self.files.len();
        let programs = files.filter(|index| self.starts_at(*index));
        programs.map(|index| self.files.path_at(index))
    }
    /// May the file at `path` be started?
    pub fn starts(&self, path: &[u8]) -> bool {
        let place = self.files.place(path);
        place.is_some_and(|index| self.starts_at(index))
    }
    fn starts_at(&self, index: usize) -> bool {
        match &self.starts {
            None => true,
            Some(starts) => starts.get(index).copied().unwrap_or(false),
        }
    }
}

/// What a policy or a challenger demands of a list.
#[derive(Debug, Clone, Copy)]
pub struct ListRule<'a> {
    /// User CA certificates (DER).
    pub roots: &'a [Vec<u8>],
    pub tenant: &'a str,
    pub name: &'a str,
    pub min_serial: u64,
    pub revocation: &'a Revocation,
}

/// A list that the rule's tenant signed, about the image, in force at the time of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedList {
    list: List,
    signer: VerifiedSigner,
    /// For questions without a path: the beginning of each program's digest, and where it is listed.
    by_digest: Vec<(u64, u32)>,
}

/// Verifies `statement` and its detached signature: whose it is, that it is about one of `images`
/// (an empty slice refuses), and that it is in force at `now`.
pub fn verify_list(
    statement: &[u8],
    signature: &[u8],
    rule: &ListRule<'_>,
    images: &[ImageDigest],
    now: UnixTime,
) -> Result<VerifiedList, ListRefusal> {
    Authentic::verify(statement, signature, rule, images, now)?.in_force(rule, now)
}

/// A list that its tenant did sign about this image; whether it is in force is another question.
/// Kept apart so that an outdated list can still outrank an older one (see `policy`).
pub(crate) struct Authentic {
    list: List,
    signer: VerifiedSigner,
}

impl Authentic {
    /// As of the time `at`.
    pub(crate) fn verify(
        statement: &[u8],
        signature: &[u8],
        rule: &ListRule<'_>,
        images: &[ImageDigest],
        at: UnixTime,
    ) -> Result<Self, ListRefusal> {
        let content = cms::Content::of(statement);
        let signer = cms::verify_content(&content, signature, rule.roots, at, rule.revocation)?;
        // Only now is the statement read.
        if signer.tenant() != rule.tenant {
            return Err(ListRefusal::OtherTenant {
                expected: rule.tenant.to_owned(),
                found: signer.tenant().to_owned(),
            });
        }
        let digest = ListDigest::from_bytes(*content.digest());
        let list = List::parse_hashed(statement, digest)?;
        if list.name != rule.name {
            return Err(ListRefusal::OtherName {
                expected: rule.name.to_owned(),
                found: list.name,
            });
        }
        match list.images.first() {
            _ if list.images.iter().any(|image| images.contains(image)) => {}
            Some(other) => return Err(ListRefusal::OtherImage(*other)),
            None => return Err(ListError::Subjects(0).into()),
        }
        Ok(Self { list, signer })
    }
    pub(crate) fn list(&self) -> &List {
        &self.list
    }
    pub(crate) fn signer(&self) -> &VerifiedSigner {
        &self.signer
    }
    pub(crate) fn in_force(
        self,
        rule: &ListRule<'_>,
        now: UnixTime,
    ) -> Result<VerifiedList, ListRefusal> {
        let Self { list, signer } = self;
        if list.serial < rule.min_serial {
            return Err(ListRefusal::LowSerial {
                min: rule.min_serial,
                found: list.serial,
            });
        }
        if now < list.issued_at {
            return Err(ListRefusal::NotYetIssued {
                issued: list.issued_at,
                now,
            });
        }
        if now >= list.expires_at {
            return Err(ListRefusal::Expired(list.expires_at));
        }
        let by_digest = index(&list);
        Ok(VerifiedList {
            list,
            signer,
            by_digest,
        })
    }
}

fn index(list: &List) -> Vec<(u64, u32)> {
    let mut index = Vec::with_capacity(list.files.len());
    // there are fewer than MAX_ENTRIES
    for place in (0..list.files.len()).filter(|place| list.starts_at(*place)) {
        let digests = list.files.digests_at(place).iter();
        index.extend(digests.map(|digest| (beginning(digest), place as u32)));
    }
    index.sort_unstable();
    index
}

fn beginning(digest: &FileDigest) -> u64 {
    let beginning = digest.as_bytes().first_chunk();
    u64::from_be_bytes(*beginning.unwrap_or(&[0; 8]))
}

/// A program that the list names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    path: Vec<u8>,
    digest: FileDigest,
}

impl Listed {
    /// The path under which the list names it.
    pub fn path(&self) -> &[u8] {
        &self.path
    }
    pub fn digest(&self) -> FileDigest {
        self.digest
    }
}

/// Why a program may not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotListed {
    #[error("{path} ({digest}) is not in the signed list {list}")]
    Path {
        path: String,
        digest: FileDigest,
        list: String,
    },
    #[error("{path} has content {digest}, which the signed list {list} does not name for it")]
    Content {
        path: String,
        digest: FileDigest,
        list: String,
    },
    #[error("{path} is in the signed list {list}, but not as a program that may be started")]
    NotAProgram { path: String, list: String },
    #[error("a program with content {digest} is not in the signed list {list}")]
    Digest { digest: FileDigest, list: String },
}

impl VerifiedList {
    pub fn list(&self) -> &List {
        &self.list
    }
    pub fn signer(&self) -> &VerifiedSigner {
        &self.signer
    }
    pub fn digest(&self) -> ListDigest {
        self.list.digest
    }
    pub fn name(&self) -> &str {
        &self.list.name
    }
    pub fn serial(&self) -> u64 {
        self.list.serial
    }
    /// The program at `path` (absolute, without symbolic links) with this content may be started.
    pub fn allows(&self, path: &[u8], digest: &FileDigest) -> Result<Listed, NotListed> {
        let shown = || encode_path(path);
        match self.list.files.get(path) {
            None => Err(NotListed::Path {
                path: shown(),
                digest: *digest,
                list: self.title(),
            }),
            Some(digests) if !digests.contains(digest) => Err(NotListed::Content {
                path: shown(),
                digest: *digest,
                list: self.title(),
            }),
            Some(_) if !self.list.starts(path) => Err(NotListed::NotAProgram {
                path: shown(),
                list: self.title(),
            }),
            Some(_) => Ok(Listed {
                path: path.to_vec(),
                digest: *digest,
            }),
        }
    }
    /// A program with this content may be started, wherever it lies.
    pub fn allows_digest(&self, digest: &FileDigest) -> Result<Listed, NotListed> {
        let start = self
            .by_digest
            .partition_point(|(known, _)| *known < beginning(digest));
        let alike = self.by_digest.iter().skip(start);
        let mut alike = alike.take_while(|(known, _)| *known == beginning(digest));
        let files = &self.list.files;
        match alike.find(|(_, place)| files.digests_at(*place as usize).contains(digest)) {
            Some((_, place)) => Ok(Listed {
                path: files.path_at(*place as usize).to_vec(),
                digest: *digest,
            }),
            None => Err(NotListed::Digest {
                digest: *digest,
                list: self.title(),
            }),
        }
    }
    fn title(&self) -> String {
        format!("{} (serial {})", self.list.name, self.list.serial)
    }
}

#[cfg(test)]
mod tests;
