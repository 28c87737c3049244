//! Reads a layer's tar archive (POSIX.1-2001 pax, ustar, GNU long names) once, hashing all of it.
//!
//! Reads as Go's archive/tar does, since that is what engines unpack with; what it would read
//! differently or only we could misread (sparse files, unknown types) is refused by name.

use super::fields::{DEVICE_MAJOR, DEVICE_MINOR, Extended, Field, GID, MODE, SIZE, UID, until_nul};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    io::{self, Read},
};
use tar::Header;
use verify::{
    digest::{DiffId, FileDigest},
    rootfs::{
        Entry, Kind, Layer, LayerBuilder, LayerEntry, LayerError, PathError, RootfsPath,
        SYMLINK_MODE, encode,
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

/// Where an archive's bytes come from.
pub(super) trait Archive: Read {
    /// The digest of the file whose `size` bytes come next, if the source knows it: then they are
    /// passed over, after `all` has had them.
    fn file(&mut self, size: u64, all: &mut Sha256) -> io::Result<Option<FileDigest>>;
}

/// Bytes that nobody knows anything of.
struct Plain<R>(R);

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Archive for Plain<R> {
    fn file(&mut self, _: u64, _: &mut Sha256) -> io::Result<Option<FileDigest>> {
        Ok(None)
    }
}

/// The diff-ID of the archive and what it holds.
pub fn from_tar(archive: impl Read) -> Result<(DiffId, Layer), ArchiveError> {
    from_archive(Plain(archive))
}

pub(super) fn from_archive(archive: impl Archive) -> Result<(DiffId, Layer), ArchiveError> {
    let mut reader = Reader {
        input: Hashing {
            input: archive,
            hasher: Sha256::new(),
        },
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
    Ok((
        DiffId::from_bytes(rest.hasher.finalize().into()),
        layer.build(),
    ))
}

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

impl<R: Archive> Reader<R> {
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
                    extended
                        .read(&records)
                        .ok_or_else(|| self.field("pax record"))?;
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
        let name = extended
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let path = RootfsPath::parse(&name)?;
        let unsupported = |what: String| ArchiveError::Unsupported {
            path: path.to_string(),
            what,
        };
        if extended.sparse {
            return Err(unsupported("a sparse file".into()));
        }
        let link = || {
            extended
                .link
                .clone()
                .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
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
                return Ok((
                    path,
                    LayerEntry::Hardlink {
                        target: RootfsPath::parse(&target)?,
                    },
                ));
            }
            b'2' => Kind::Symlink {
                target: link().ok_or_else(|| self.field("link name"))?,
            },
            b'3' | b'4' => {
                // Pre-POSIX headers have no device numbers.
                let posix = header.as_ustar().is_some() || header.as_gnu().is_some();
                let number = |field| {
                    if posix {
                        self.small(header, field)
                    } else {
                        Ok(0)
                    }
                };
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
            mode: if matches!(kind, Kind::Symlink { .. }) {
                SYMLINK_MODE
            } else {
                (mode & 0o7777) as u16
            },
            uid: owner(extended.uid, UID)?,
            gid: owner(extended.gid, GID)?,
            xattrs: if with_xattrs {
                extended.xattrs
            } else {
                BTreeMap::new()
            },
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
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u32::from(*byte)
                }
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(ArchiveError::Checksum {
                number: self.number,
            });
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
        let Hashing { input, hasher } = &mut self.input;
        if let Some(digest) = input.file(size, hasher)? {
            self.padding(size)?;
            return Ok(digest);
        }
        let mut hasher = Sha256::new();
        let mut left = size;
        while left > 0 {
            let most = self
                .buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
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
        self.input
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => ArchiveError::Truncated("a record"),
                _ => ArchiveError::Io(error),
            })
    }

    fn number(&self, header: &Header, field: Field) -> Result<u64, ArchiveError> {
        field.of(header).ok_or_else(|| self.field(field.0))
    }

    fn small(&self, header: &Header, field: Field) -> Result<u32, ArchiveError> {
        u32::try_from(self.number(header, field)?).map_err(|_| self.field(field.0))
    }

    fn field(&self, field: &'static str) -> ArchiveError {
        ArchiveError::Field {
            number: self.number,
            field,
        }
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
