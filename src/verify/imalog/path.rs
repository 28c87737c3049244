//! How a path is spelt in a log or list: injective, printable, without spaces.

use super::shorten;
use std::fmt;

/// Longest encoded path (`n-ng` holds 4097 bytes with its NUL).
pub const MAX_PATH: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("path is not absolute: `{0}`")]
    Relative(String),
    #[error("path has an empty, `.` or `..` component: `{0}`")]
    Component(String),
    #[error("path holds a NUL byte")]
    Nul,
    #[error("encoded path has {0} bytes, more than {MAX_PATH}")]
    TooLong(usize),
    #[error("path is not in its one encoded form: `{0}`")]
    NotCanonical(String),
}

/// An absolute path in the spelling that is hashed: injective, printable, without spaces.
///
/// Bytes 0x01 to 0x20, 0x7F, `%` and all that is not UTF-8 become `%XX` (upper-case). The kernel's
/// own spelling turns spaces into `_` and keeps newlines, so that two files may share one name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EncodedPath(String);

impl EncodedPath {
    /// From a path's bytes, as the file system spells it.
    pub fn of(path: &[u8]) -> Result<Self, PathError> {
        check_path(path)?;
        let text = encode_path(path);
        match text.len() {
            0..=MAX_PATH => Ok(Self(text)),
            n => Err(PathError::TooLong(n)),
        }
    }
    /// From its encoded form, which must be the canonical one.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        decode_into(text, &mut Vec::new())?;
        Ok(Self(text.to_owned()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The path's own bytes.
    pub fn decode(&self) -> Vec<u8> {
        percent_decode(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for EncodedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Percent-encodes (see [`EncodedPath`]); says nothing about the path being absolute.
pub fn encode_path(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\0'..=' ' | '\x7f' | '%' => text.push_str(&format!("%{:02X}", u32::from(c))),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Appends to `out` the path that `text`, an [`EncodedPath`], spells.
pub(crate) fn decode_into(text: &str, out: &mut Vec<u8>) -> Result<(), PathError> {
    if text.len() > MAX_PATH {
        return Err(PathError::TooLong(text.len()));
    }
    // most paths are spelt as they are
    let plain = |b: &u8| b.is_ascii_graphic() && *b != b'%';
    if text.as_bytes().iter().all(plain) {
        check_path(text.as_bytes())?;
        out.extend_from_slice(text.as_bytes());
        return Ok(());
    }
    let path = decode_path(text)?;
    check_path(&path)?;
    out.extend_from_slice(&path);
    Ok(())
}

/// The inverse of [`encode_path`]; refuses every spelling but the canonical one.
pub fn decode_path(text: &str) -> Result<Vec<u8>, PathError> {
    match percent_decode(text) {
        Some(path) if encode_path(&path) == text => Ok(path),
        _ => Err(PathError::NotCanonical(shorten(text))),
    }
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut path = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        path.push(match byte {
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high << 4 | low).ok()?
            }
            other => other,
        });
    }
    Some(path)
}

fn check_path(path: &[u8]) -> Result<(), PathError> {
    let shown = || shorten(&encode_path(path));
    let rest = path
        .strip_prefix(b"/")
        .ok_or_else(|| PathError::Relative(shown()))?;
    if path.contains(&0) {
        return Err(PathError::Nul);
    }
    match rest
        .split(|b| *b == b'/')
        .any(|part| matches!(part, b"" | b"." | b".."))
    {
        true => Err(PathError::Component(shown())),
        false => Ok(()),
    }
}
