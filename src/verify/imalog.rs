//! IMA binary runtime list, the canonical form of a container's event log: encode, parse, replay.
//!
//! Layout: Linux `security/integrity/ima/ima_fs.c` (`ima_measurements_show`), always little-endian
//! (`ima_canonical_fmt`). Two templates, one PCR rule each: `ima-ng` (digest, path) in PCR 10 and
//! `ima-buf` (digest, name, buffer) everywhere else. Every extended value is recomputed from the
//! template data; the list's own hash column is never trusted.
//!
//! For who may not see what a log says there is a third one, `attestrun-opaque`: the extended values
//! alone. It replays, and appraisal refuses it (P-OPAQUE); no TPM's owner ever writes it.

use crate::digest::FileDigest;
use crate::pcr::{self, Pcr, PcrIndex};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

mod ascii;
mod cel;
pub mod kernel;
mod path;
pub use ascii::ascii;
pub use cel::cel_json;
pub(crate) use path::decode_into;
pub use path::{EncodedPath, MAX_PATH, PathError, decode_path, encode_path};

/// Longest log that is read; a guard caps its container's log far below.
pub const MAX_LOG: usize = 64 << 20;
/// Longest buffer of one `ima-buf` entry.
pub const MAX_BUFFER: usize = 1 << 20;
/// Longest name of a buffer.
pub const MAX_NAME: usize = 64;

const DIGEST_PREFIX: &[u8] = b"sha256:\0";
const DIGEST_FIELD: usize = DIGEST_PREFIX.len() + 32;
const IMA_NG: &str = "ima-ng";
const IMA_BUF: &str = "ima-buf";
const OPAQUE: &str = "attestrun-opaque";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("`{0}` cannot be the name of a buffer")]
    Name(String),
    #[error("buffer `{0}` has {1} bytes, more than {MAX_BUFFER}")]
    BufferTooLong(String, usize),
    #[error("buffers are not measured into PCR {0}")]
    BufferPcr(PcrIndex),
}

/// Why a list is not one. `entry` counts from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("log has {0} bytes, more than {MAX_LOG}")]
    TooLong(usize),
    #[error("entry {entry} ends in the middle of its {field}")]
    Truncated { entry: usize, field: &'static str },
    #[error("entry {entry}: {found} is not a PCR")]
    Pcr { entry: usize, found: u32 },
    /// Twenty zero bytes in the template-hash column: the kernel saw a file change while in use.
    #[error("entry {entry} is a violation")]
    Violation { entry: usize },
    #[error("entry {entry}: template `{found}` is neither {IMA_NG}, {IMA_BUF} nor {OPAQUE}")]
    Template { entry: usize, found: String },
    #[error("entry {entry}: template {template} does not belong into PCR {pcr}")]
    TemplatePcr {
        entry: usize,
        template: &'static str,
        pcr: PcrIndex,
    },
    #[error("entry {entry}: malformed {field}")]
    Field { entry: usize, field: &'static str },
    #[error("entry {entry}: the template hash is not that of the template data")]
    TemplateHash { entry: usize },
    #[error("entry {entry}: the digest is not that of the buffer")]
    BufferDigest { entry: usize },
    #[error("entry {entry}: {source}")]
    Path { entry: usize, source: PathError },
    #[error("entry {entry}: {source}")]
    Entry { entry: usize, source: EntryError },
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

/// What one entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// `ima-ng`: a file's SHA-256 and its path.
    ImaNg {
        digest: FileDigest,
        path: EncodedPath,
    },
    /// `ima-buf`: a named buffer, in clear; its digest field is the buffer's SHA-256.
    ImaBuf { name: String, buf: Vec<u8> },
    /// `attestrun-opaque`: what was extended into the two banks, and nothing of what it was.
    Opaque { sha1: [u8; 20], sha256: [u8; 32] },
}

impl Template {
    /// The template's name in the list.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ImaNg { .. } => IMA_NG,
            Self::ImaBuf { .. } => IMA_BUF,
            Self::Opaque { .. } => OPAQUE,
        }
    }
}

/// Ends the files of PCR 10 that were measured and not executed.
pub const FILES_DONE: &str = "attestrun.files-done";

/// One entry of the list. Made by [`Entry::file`], [`Entry::buffer`] or [`parse`] alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pcr: PcrIndex,
    template: Template,
}

impl Entry {
    /// A file that was executed: PCR 10.
    pub fn file(digest: FileDigest, path: EncodedPath) -> Self {
        Self {
            pcr: pcr::FILES,
            template: Template::ImaNg { digest, path },
        }
    }

    /// A record in clear text: any PCR that attestrun extends; of PCR 10 only [`FILES_DONE`].
    pub fn buffer(pcr: PcrIndex, name: &str, buf: Vec<u8>) -> Result<Self, EntryError> {
        if pcr == pcr::FILES && name != FILES_DONE || pcr > pcr::LIFE {
            return Err(EntryError::BufferPcr(pcr));
        }
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
            return Err(EntryError::Name(shorten(
                &name.escape_default().to_string(),
            )));
        }
        if buf.len() > MAX_BUFFER {
            return Err(EntryError::BufferTooLong(name.to_owned(), buf.len()));
        }
        Ok(Self {
            pcr,
            template: Template::ImaBuf {
                name: name.to_owned(),
                buf,
            },
        })
    }

    /// The entry as those see it who may not know what it says.
    pub fn opaque(&self) -> Self {
        let (sha1, sha256) = self.extend_values();
        Self {
            pcr: self.pcr,
            template: Template::Opaque { sha1, sha256 },
        }
    }

    pub fn pcr(&self) -> PcrIndex {
        self.pcr
    }
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The fields, each `u32 LE length ‖ bytes`: what is hashed. Of an opaque entry the hashes themselves.
    pub fn template_data(&self) -> Vec<u8> {
        let (digest, name, buf) = match &self.template {
            Template::ImaNg { digest, path } => (*digest, path.as_str(), None),
            Template::ImaBuf { name, buf } => (FileDigest::of(buf), name.as_str(), Some(buf)),
            Template::Opaque { sha1, sha256 } => return [&sha1[..], sha256].concat(),
        };
        let mut data = Vec::new();
        put_field(&mut data, &[DIGEST_PREFIX, digest.as_bytes()]);
        put_field(&mut data, &[name.as_bytes(), b"\0"]);
        if let Some(buf) = buf {
            put_field(&mut data, &[buf]);
        }
        data
    }

    /// What is extended into the SHA-1 bank (the template hash) and into the SHA-256 bank.
    pub fn extend_values(&self) -> ([u8; 20], [u8; 32]) {
        if let Template::Opaque { sha1, sha256 } = &self.template {
            return (*sha1, *sha256);
        }
        let data = self.template_data();
        (Sha1::digest(&data).into(), Sha256::digest(&data).into())
    }

    /// What is extended into the SHA-256 bank.
    pub fn extend_sha256(&self) -> [u8; 32] {
        match &self.template {
            Template::Opaque { sha256, .. } => *sha256,
            _ => Sha256::digest(self.template_data()).into(),
        }
    }

    /// The entry's bytes in the list.
    pub fn encode(&self) -> Vec<u8> {
        let data = self.template_data();
        let mut bytes = u32::from(self.pcr).to_le_bytes().to_vec();
        bytes.extend(self.extend_values().0);
        put_field(&mut bytes, &[self.template.name().as_bytes()]);
        put_field(&mut bytes, &[&data]);
        bytes
    }
}

fn put_field(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    // Lengths are bounded by this module's limits, far below 4 GiB.
    out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The whole list: strict lengths, known templates, matching hashes, canonical paths.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>, ParseError> {
    if bytes.len() > MAX_LOG {
        return Err(ParseError::TooLong(bytes.len()));
    }
    let mut input = Input(bytes);
    let mut entries = Vec::new();
    while !input.0.is_empty() {
        let entry = parse_entry(&mut input, entries.len())?;
        entries.push(entry);
    }
    Ok(entries)
}

fn parse_entry(input: &mut Input<'_>, entry: usize) -> Result<Entry, ParseError> {
    let found = input.u32(entry, "PCR")?;
    let pcr = PcrIndex::new(found).map_err(|_| ParseError::Pcr { entry, found })?;
    let hash = input.take(20, entry, "template hash")?;
    let name = input.field(entry, "template name")?;
    let data = input.field(entry, "template data")?;

    let made = match name {
        _ if hash == [0; 20] => return Err(ParseError::Violation { entry }),
        b"ima-ng" => parse_file(pcr, data, entry)?,
        b"ima-buf" => parse_buffer(pcr, data, entry)?,
        b"attestrun-opaque" => return parse_opaque(pcr, hash, data, entry),
        other => {
            let found = shorten(&other.escape_ascii().to_string());
            return Err(ParseError::Template { entry, found });
        }
    };
    match Sha1::digest(data).as_slice() == hash {
        true => Ok(made),
        false => Err(ParseError::TemplateHash { entry }),
    }
}

fn parse_file(pcr: PcrIndex, data: &[u8], entry: usize) -> Result<Entry, ParseError> {
    if pcr != pcr::FILES {
        return Err(ParseError::TemplatePcr {
            entry,
            template: IMA_NG,
            pcr,
        });
    }
    let mut data = Input(data);
    let digest = data.digest(entry)?;
    let path = EncodedPath::parse(data.name(entry)?)
        .map_err(|source| ParseError::Path { entry, source })?;
    data.end(entry)?;
    Ok(Entry::file(digest, path))
}

fn parse_buffer(pcr: PcrIndex, data: &[u8], entry: usize) -> Result<Entry, ParseError> {
    let mut data = Input(data);
    let digest = data.digest(entry)?;
    let name = data.name(entry)?;
    let buf = data.field(entry, "buffer")?;
    data.end(entry)?;
    if FileDigest::of(buf) != digest {
        return Err(ParseError::BufferDigest { entry });
    }
    Entry::buffer(pcr, name, buf.to_vec()).map_err(|source| ParseError::Entry { entry, source })
}

fn parse_opaque(
    pcr: PcrIndex,
    hash: &[u8],
    data: &[u8],
    entry: usize,
) -> Result<Entry, ParseError> {
    if pcr > pcr::LIFE {
        return Err(ParseError::TemplatePcr {
            entry,
            template: OPAQUE,
            pcr,
        });
    }
    let field = "pair of hashes";
    let hashes: Option<(&[u8; 20], &[u8])> = data.split_first_chunk();
    let (sha1, sha256) = hashes.ok_or(ParseError::Field { entry, field })?;
    let sha256 = sha256.try_into();
    let (sha1, sha256) = (
        *sha1,
        sha256.map_err(|_| ParseError::Field { entry, field })?,
    );
    if sha1 != hash {
        return Err(ParseError::TemplateHash { entry });
    }
    let template = Template::Opaque { sha1, sha256 };
    Ok(Entry { pcr, template })
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(
        &mut self,
        n: usize,
        entry: usize,
        field: &'static str,
    ) -> Result<&'a [u8], ParseError> {
        let (head, tail) = self
            .0
            .split_at_checked(n)
            .ok_or(ParseError::Truncated { entry, field })?;
        self.0 = tail;
        Ok(head)
    }
    fn u32(&mut self, entry: usize, field: &'static str) -> Result<u32, ParseError> {
        let (head, tail) = self
            .0
            .split_first_chunk()
            .ok_or(ParseError::Truncated { entry, field })?;
        self.0 = tail;
        Ok(u32::from_le_bytes(*head))
    }
    fn field(&mut self, entry: usize, field: &'static str) -> Result<&'a [u8], ParseError> {
        let length = self.u32(entry, field)?;
        let length = usize::try_from(length).map_err(|_| ParseError::Truncated { entry, field })?;
        self.take(length, entry, field)
    }
    fn digest(&mut self, entry: usize) -> Result<FileDigest, ParseError> {
        let malformed = ParseError::Field {
            entry,
            field: "digest (sha256 is demanded)",
        };
        let field = self.field(entry, "digest")?;
        if field.len() != DIGEST_FIELD {
            return Err(malformed);
        }
        let bytes = field
            .strip_prefix(DIGEST_PREFIX)
            .and_then(|d| d.try_into().ok());
        bytes.map(FileDigest::from_bytes).ok_or(malformed)
    }
    fn name(&mut self, entry: usize) -> Result<&'a str, ParseError> {
        let malformed = ParseError::Field {
            entry,
            field: "name",
        };
        let name = self.field(entry, "name")?.strip_suffix(b"\0");
        name.and_then(|n| std::str::from_utf8(n).ok())
            .ok_or(malformed)
    }
    fn end(&self, entry: usize) -> Result<(), ParseError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(ParseError::Field {
                entry,
                field: "template data (trailing bytes)",
            }),
        }
    }
}

/// The PCR values that a list explains, starting from zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    pcrs: [Pcr; pcr::COUNT],
}

impl Replay {
    pub fn of(entries: &[Entry]) -> Self {
        let mut replay = Self {
            pcrs: [Pcr::ZERO; pcr::COUNT],
        };
        entries.iter().for_each(|entry| replay.add(entry));
        replay
    }
    /// As [`Replay::of`] with one entry more.
    pub fn add(&mut self, entry: &Entry) {
        let (sha1, sha256) = entry.extend_values();
        if let Some(pcr) = self.pcrs.get_mut(entry.pcr().as_usize()) {
            pcr.extend(&sha1, &sha256);
        }
    }
    pub fn pcr(&self, index: PcrIndex) -> Pcr {
        // `PcrIndex` is below `COUNT` by construction.
        self.pcrs
            .get(index.as_usize())
            .copied()
            .unwrap_or(Pcr::ZERO)
    }
    /// The SHA-256 bank's values of `selection`, in its order.
    pub fn sha256(&self, selection: &[PcrIndex]) -> Vec<[u8; 32]> {
        selection
            .iter()
            .map(|index| self.pcr(*index).sha256)
            .collect()
    }
}

/// The SHA-256 bank alone: what a quote is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values([[u8; 32]; pcr::COUNT]);

impl Values {
    /// After a reset.
    pub const ZERO: Self = Self([[0; 32]; pcr::COUNT]);

    pub fn add(&mut self, entry: &Entry) {
        if let Some(pcr) = self.0.get_mut(entry.pcr().as_usize()) {
            *pcr = pcr::extend_sha256(pcr, &entry.extend_sha256());
        }
    }
    pub fn set(&mut self, index: PcrIndex, value: [u8; 32]) {
        if let Some(pcr) = self.0.get_mut(index.as_usize()) {
            *pcr = value;
        }
    }
    pub fn get(&self, index: PcrIndex) -> [u8; 32] {
        // `PcrIndex` is below `COUNT` by construction.
        self.0.get(index.as_usize()).copied().unwrap_or_default()
    }
    /// Of `selection`, in its order.
    pub fn of(&self, selection: &[PcrIndex]) -> Vec<[u8; 32]> {
        selection.iter().map(|index| self.get(*index)).collect()
    }
}

#[cfg(test)]
mod tests;
