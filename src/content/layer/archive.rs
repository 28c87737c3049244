//! Reads a layer's tar archive (POSIX.1-2001 pax, ustar, GNU long names) once, hashing all of it.
//!
//! Reads as Go's archive/tar does, since that is what engines unpack with; what it would read
//! differently or only we could misread (sparse files, unknown types) is refused by name.

use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    io::{self, Read},
};
use tar::Header;
use verify::{
    digest::{DiffId, FileDigest},
    rootfs::{
        Entry, Kind, Layer, LayerBuilder, LayerEntry, LayerError, PathError, RootfsPath, SYMLINK_MODE,
        encode, xattr_counts,
    },
};

const BLOCK: usize = 512;
/// A bound on pax and GNU records; Go's reader has the same (maxSpecialFileSize).
const MAX_RECORD: u64 = 1 << 20;
const BUFFER: usize = 256 << 10;

/// What cannot be read as a layer.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot read the archive: {0}")]
    Io(#[from] io::Error),
    #[error("the archive ends within {0}")]
    Truncated(&'static str),
    #[error("header {number}: checksum differs")]
    Checksum { number: u64 },
    #[error("header {number}: {field} is malformed")]
    Field { number: u64, field: &'static str },
    #[error("{path}: {what} is not supported")]
    Unsupported { path: String, what: String },
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Path(#[from] PathError),
}

/// The diff-ID of the archive and what it holds.
pub fn from_tar(archive: impl Read) -> Result<(DiffId, Layer), ArchiveError> {
    let mut reader = Reader {
        input: Hashing { input: archive, hasher: Sha256::new() },
        number: 0,
        buffer: vec![0; BUFFER],
    };
    let mut layer = LayerBuilder::default();
    while let Some((path, item)) = reader.member()? {
        layer.add(path, item)?;
    }
    // Whatever follows the end mark belongs to the diff-ID, but to no reader.
    let mut rest = reader.input;
    while read_some(&mut rest, &mut reader.buffer)? > 0 {}
    Ok((DiffId::from_bytes(rest.hasher.finalize().into()), layer.build()))
}

/// A numeric field's name and place (POSIX.1-2001, "ustar Header Block").
#[derive(Clone, Copy)]
struct Field(&'static str, usize, usize);

const MODE: Field = Field("mode", 100, 8);
const UID: Field = Field("uid", 108, 8);
const GID: Field = Field("gid", 116, 8);
const SIZE: Field = Field("size", 124, 12);
const DEVICE_MAJOR: Field = Field("device number", 329, 8);
const DEVICE_MINOR: Field = Field("device number", 337, 8);

struct Hashing<R> {
    input: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

struct Reader<R> {
    input: Hashing<R>,
    number: u64,
    buffer: Vec<u8>,
}

/// What extended headers say about the next member.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: bool,
}

impl<R: Read> Reader<R> {
    /// The next member; `None` at the end mark or the end of the input.
    fn member(&mut self) -> Result<Option<(RootfsPath, LayerEntry)>, ArchiveError> {
        let mut extended = Extended::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = self.number(&header, SIZE)?;
            match header.as_bytes()[156] {
                b'x' => {
                    let records = self.record(size)?;
                    self.pax(&records, &mut extended)?;
                }
                // Global headers: Go hands them out, engines leave them out.
                b'g' => {
                    self.record(size)?;
                }
                b'L' => extended.path = Some(until_nul(self.record(size)?)),
                b'K' => extended.link = Some(until_nul(self.record(size)?)),
                _ => return self.real(&header, size, extended).map(Some),
            }
        }
    }

    fn real(
        &mut self,
        header: &Header,
        size: u64,
        extended: Extended,
    ) -> Result<(RootfsPath, LayerEntry), ArchiveError> {
        let name = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = RootfsPath::parse(&name)?;
        let unsupported = |what: String| ArchiveError::Unsupported { path: path.to_string(), what };
        if extended.sparse {
            return Err(unsupported("a sparse file".into()));
        }
        let link = || {
            extended.link.clone().or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
        };
        let kind = match header.as_bytes()[156] {
            // Pre-POSIX archives mark directories by a slash only.
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => {
                let size = extended.size.unwrap_or(size);
                let digest = self.content(size)?;
                Kind::File { size, digest }
            }
            b'1' => {
                let target = link().ok_or_else(|| self.field("link name"))?;
                return Ok((path, LayerEntry::Hardlink { target: RootfsPath::parse(&target)? }));
            }
            b'2' => Kind::Symlink { target: link().ok_or_else(|| self.field("link name"))? },
            b'3' | b'4' => {
                // Pre-POSIX headers have no device numbers.
                let posix = header.as_ustar().is_some() || header.as_gnu().is_some();
                let number = |field| if posix { self.small(header, field) } else { Ok(0) };
                let (major, minor) = (number(DEVICE_MAJOR)?, number(DEVICE_MINOR)?);
                match header.as_bytes()[156] {
                    b'3' => Kind::CharDevice { major, minor },
                    _ => Kind::BlockDevice { major, minor },
                }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(unsupported(format!("member type `{}`", encode(&[other])))),
        };
        let owner = |pax: Option<u64>, field: Field| match pax {
            Some(value) => u32::try_from(value).map_err(|_| self.field(field.0)),
            None => self.small(header, field),
        };
        let mode = self.number(header, MODE)?;
        let with_xattrs = matches!(kind, Kind::File { .. } | Kind::Directory);
        let entry = Entry {
            mode: if matches!(kind, Kind::Symlink { .. }) { SYMLINK_MODE } else { (mode & 0o7777) as u16 },
            uid: owner(extended.uid, UID)?,
            gid: owner(extended.gid, GID)?,
            xattrs: if with_xattrs { extended.xattrs } else { BTreeMap::new() },
            kind,
        };
        Ok((path, LayerEntry::Entry(entry)))
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let Some(header) = self.block()? else {
            return Ok(None);
        };
        self.number += 1;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return match self.block()? {
                Some(second) if second.as_bytes().iter().any(|byte| *byte != 0) => {
                    Err(self.field("end mark"))
                }
                _ => Ok(None),
            };
        }
        // POSIX.1-2001, "ustar Interchange Format": the sum with the field itself as spaces.
        let sum: u32 = (header.as_bytes().iter().enumerate())
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(ArchiveError::Checksum { number: self.number });
        }
        Ok(Some(header))
    }

    /// One block; `None` at the end of the input.
    fn block(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.input, &mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(ArchiveError::Truncated("a header")),
                n => filled += n,
            }
        }
        Ok(Some(header))
    }

    fn content(&mut self, size: u64) -> Result<FileDigest, ArchiveError> {
        let mut hasher = Sha256::new();
        let mut left = size;
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match read_some(&mut self.input, &mut self.buffer[..most])? {
                0 => return Err(ArchiveError::Truncated("a file")),
                n => {
                    hasher.update(&self.buffer[..n]);
                    left -= n as u64;
                }
            }
        }
        self.padding(size)?;
        Ok(FileDigest::from_bytes(hasher.finalize().into()))
    }

    /// The content of an extended header.
    fn record(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_RECORD {
            return Err(self.field("extended header's size"));
        }
        let mut content = vec![0; size as usize];
        self.exact(&mut content)?;
        self.padding(size)?;
        Ok(content)
    }

    fn padding(&mut self, size: u64) -> Result<(), ArchiveError> {
        let mut padding = [0; BLOCK];
        let length = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        self.exact(&mut padding[..length])
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated("a record"),
            _ => ArchiveError::Io(error),
        })
    }

    /// pax records, `"%d %s=%s\n"` (POSIX.1-2001, "pax Extended Header").
    fn pax(&self, mut records: &[u8], extended: &mut Extended) -> Result<(), ArchiveError> {
        let malformed = || self.field("pax record");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
            let length = decimal(&records[..space]).ok_or_else(malformed)?;
            let length = usize::try_from(length).map_err(|_| malformed())?;
            let record = records.get(space + 1..length).ok_or_else(malformed)?;
            records = &records[length..];
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.starts_with(b"GNU.sparse.") {
                extended.sparse = true;
            }
            // An empty value takes a former one back; Go keeps the plain header's.
            if value.is_empty() {
                continue;
            }
            let number = || decimal(value).ok_or_else(malformed);
            match key {
                b"path" => extended.path = Some(value.to_vec()),
                b"linkpath" => extended.link = Some(value.to_vec()),
                b"size" => extended.size = Some(number()?),
                b"uid" => extended.uid = Some(number()?),
                b"gid" => extended.gid = Some(number()?),
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                        && xattr_counts(name)
                    {
                        extended.xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        Ok(())
    }

    /// Octal digits, or GNU's base 256; nothing at all is 0, as for Go.
    fn number(&self, header: &Header, Field(name, at, length): Field) -> Result<u64, ArchiveError> {
        let field = &header.as_bytes()[at..at + length];
        let value = match field[0] {
            first if first & 0x80 != 0 => {
                // Positive only: 0xff begins a negative number.
                let start = Some(u64::from(first & 0x7f));
                field[1..].iter().fold(start, |sum, byte| {
                    sum?.checked_mul(256)?.checked_add(u64::from(*byte))
                })
            }
            _ => {
                let digits = field.trim_ascii_start();
                let end = digits.iter().position(|byte| matches!(byte, 0 | b' '));
                match &digits[..end.unwrap_or(digits.len())] {
                    b"" => Some(0),
                    digits => str::from_utf8(digits).ok().and_then(|d| u64::from_str_radix(d, 8).ok()),
                }
            }
        };
        value.ok_or_else(|| self.field(name))
    }

    fn small(&self, header: &Header, field: Field) -> Result<u32, ArchiveError> {
        u32::try_from(self.number(header, field)?).map_err(|_| self.field(field.0))
    }

    fn field(&self, field: &'static str) -> ArchiveError {
        ArchiveError::Field { number: self.number, field }
    }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    text
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
