//! tar-split (github.com/vbatts/tar-split): an archive without its files' contents, recorded when
//! Docker or containers-storage unpacked it. With the layer's directory it gives the archive back,
//! bit for bit.
//!
//! Only contents are taken from the directory; headers come from the recording. So a file mode that
//! was changed in the directory is seen by comparing the mounted rootfs, not here.

use super::{archive::from_tar, compression::decompress};
use crate::beneath;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    os::fd::BorrowedFd,
};
use verify::{
    digest::DiffId,
    rootfs::{Layer, RootfsPath},
};

/// One line holds a header, a file's name, or the padding between: far less than this.
const MAX_LINE: u64 = 64 << 20;

/// The diff-ID of the archive that `recording` (gzip) and `directory` make, and what it holds.
pub fn from_tar_split(recording: impl Read, directory: BorrowedFd<'_>) -> Result<(DiffId, Layer)> {
    let lines = BufReader::new(decompress(recording)?);
    let archive = Reassembly {
        lines,
        directory,
        part: Part::None,
    };
    Ok(from_tar(archive)?)
}

/// One line of the recording (tar-split, tar/storage/entry.go).
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: String,
    /// Base64, when the name is not UTF-8.
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    /// Base64: bytes of the archive (segments), or a CRC-64 (files), which proves nothing to us.
    payload: Option<String>,
}

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

struct Reassembly<'a, R> {
    lines: R,
    directory: BorrowedFd<'a>,
    part: Part,
}

enum Part {
    None,
    Segment(Cursor<Vec<u8>>),
    File {
        file: File,
        left: u64,
        path: RootfsPath,
    },
}

impl<R: BufRead> Read for Reassembly<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.part {
                Part::None => {}
                Part::Segment(bytes) => match bytes.read(buffer)? {
                    0 => self.part = Part::None,
                    n => return Ok(n),
                },
                Part::File { left: 0, .. } => self.part = Part::None,
                Part::File { file, left, path } => {
                    let most = buffer
                        .len()
                        .min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let n = file.read(&mut buffer[..most])?;
                    if n == 0 {
                        return Err(io::Error::other(format!("{path} is shorter than recorded")));
                    }
                    *left -= n as u64;
                    return Ok(n);
                }
            }
            if matches!(self.part, Part::None)
                && !self
                    .next()
                    .map_err(|e| io::Error::other(format!("{e:#}")))?
            {
                return Ok(0);
            }
        }
    }
}

impl<R: BufRead> Reassembly<'_, R> {
    /// Goes on to the next part; false at the end.
    fn next(&mut self) -> Result<bool> {
        let mut line = Vec::new();
        (&mut self.lines)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(false);
        }
        ensure!(
            line.len() as u64 != MAX_LINE,
            "tar-split: a line is too long"
        );
        let line: Line = serde_json::from_slice(&line).context("tar-split: malformed line")?;
        self.part = match line.kind {
            SEGMENT => {
                let bytes = STANDARD.decode(line.payload.unwrap_or_default());
                Part::Segment(Cursor::new(bytes.context("tar-split: malformed payload")?))
            }
            FILE if line.size == 0 => Part::None,
            FILE => {
                let name = match line.name_raw {
                    Some(raw) => STANDARD.decode(raw).context("tar-split: malformed name")?,
                    None => line.name.into_bytes(),
                };
                let path = RootfsPath::parse(&name)?;
                let file = beneath::open_file(self.directory, path.as_bytes())
                    .map_err(|errno| anyhow!("open {path} in the layer's directory: {errno}"))?;
                Part::File {
                    file,
                    left: line.size,
                    path,
                }
            }
            other => bail!("tar-split: unknown line type {other}"),
        };
        Ok(true)
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
