//! tar-split (github.com/vbatts/tar-split): an archive without its files' contents, recorded when
//! Docker or containers-storage unpacked it. With the layer's directory it gives the archive back,
//! bit for bit.
//!
//! Only contents are taken from the directory; headers come from the recording. So a file mode that
//! was changed in the directory is seen by comparing the mounted rootfs, not here.

use super::{
    archive::{Archive, from_archive},
    compression::decompress,
    pieces::{Ahead, Piece, Pieces, Queue},
};
use crate::once::FilesRead;
use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::{
    io::{self, BufRead, BufReader, Cursor, Read},
    os::fd::BorrowedFd,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};
use verify::{
    digest::{DiffId, FileDigest},
    rootfs::{Layer, RootfsPath},
};

/// One line holds a header, a file's name, or the padding between: far less than this.
const MAX_LINE: u64 = 64 << 20;
/// Parts of the archive that are prepared before their turn.
const AHEAD: usize = 64;

/// The diff-ID of the archive that `recording` (gzip) and `directory` make, and what it holds.
///
/// Each file is read once: one thread goes through the recording, `readers` read the files that it
/// names and hash each for itself, and this one hashes all in the archive's order. Between them are
/// bounded queues.
pub fn from_tar_split(
    recording: impl Read + Send,
    directory: BorrowedFd<'_>,
    readers: usize,
) -> Result<(DiffId, Layer, FilesRead)> {
    let queue = Queue::default();
    std::thread::scope(|scope| {
        let (jobs, parts) = (queue.open(AHEAD), sync_channel(AHEAD));
        let readers: Vec<_> = (0..readers.max(1))
            .map(|_| scope.spawn(|| queue.work(directory)))
            .collect();
        let (sender, parts) = parts;
        scope.spawn(move || {
            if let Err(error) = parts_of(recording, &jobs, &sender) {
                // Nobody listens any more: then there is an error already.
                sender.send(Err(error)).ok();
            }
        });
        let archive = from_archive(Reassembly {
            parts,
            part: Part::None,
        });
        // The archive is gone, and with it whoever still waits for it.
        let mut files = FilesRead::default();
        for reader in readers {
            match reader.join() {
                Ok(read) => files.append(read),
                Err(_) => bail!("a thread that read files panicked"),
            }
        }
        let (diff_id, layer) = archive?;
        Ok((diff_id, layer, files))
    })
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

/// A stretch of the archive.
enum Part {
    None,
    Segment(Cursor<Vec<u8>>),
    File(Pieces),
}

/// Goes through the recording, and has its files read.
fn parts_of(
    recording: impl Read,
    jobs: &SyncSender<Ahead>,
    parts: &SyncSender<Result<Part>>,
) -> Result<()> {
    let mut lines = BufReader::new(decompress(recording)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        ensure!(
            line.len() as u64 != MAX_LINE,
            "tar-split: a line is too long"
        );
        let line: Line = serde_json::from_slice(&line).context("tar-split: malformed line")?;
        let (part, job) = line.part()?;
        let gone = parts.send(Ok(part)).is_err();
        if gone || job.is_some_and(|job| jobs.send(job).is_err()) {
            return Ok(());
        }
    }
}

impl Line {
    fn part(self) -> Result<(Part, Option<Ahead>)> {
        match self.kind {
            SEGMENT => {
                let bytes = STANDARD.decode(self.payload.unwrap_or_default());
                let bytes = bytes.context("tar-split: malformed payload")?;
                Ok((Part::Segment(Cursor::new(bytes)), None))
            }
            FILE if self.size == 0 => Ok((Part::None, None)),
            FILE => {
                let name = match self.name_raw {
                    Some(raw) => STANDARD.decode(raw).context("tar-split: malformed name")?,
                    None => self.name.into_bytes(),
                };
                let (job, pieces) = Ahead::of(RootfsPath::parse(&name)?, self.size);
                Ok((Part::File(pieces), Some(job)))
            }
            other => bail!("tar-split: unknown line type {other}"),
        }
    }
}

struct Reassembly {
    parts: Receiver<Result<Part>>,
    part: Part,
}

impl Reassembly {
    /// Goes on to the next part; false at the end.
    fn next(&mut self) -> io::Result<bool> {
        match self.parts.recv() {
            Ok(Ok(part)) => self.part = part,
            Ok(Err(error)) => return Err(io::Error::other(format!("{error:#}"))),
            Err(_) => return Ok(false),
        }
        Ok(true)
    }
}

impl Read for Reassembly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let n = match &mut self.part {
                Part::None => 0,
                Part::Segment(bytes) => bytes.read(buffer)?,
                Part::File(pieces) => pieces.read(buffer)?,
            };
            if n > 0 {
                return Ok(n);
            }
            self.part = Part::None;
            if !self.next()? {
                return Ok(0);
            }
        }
    }
}

impl Archive for Reassembly {
    fn file(&mut self, size: u64, all: &mut Sha256) -> io::Result<Option<FileDigest>> {
        loop {
            match &mut self.part {
                // Only what has begun with its header: nothing of another part is passed over.
                Part::Segment(bytes) if bytes.position() < bytes.get_ref().len() as u64 => {
                    return Ok(None);
                }
                Part::File(pieces) if pieces.are_all_of(size) => break,
                Part::File(_) => return Ok(None),
                Part::None | Part::Segment(_) => {
                    if size == 0 || !self.next()? {
                        return Ok(None);
                    }
                }
            }
        }
        let Part::File(mut pieces) = std::mem::replace(&mut self.part, Part::None) else {
            return Ok(None);
        };
        loop {
            match pieces.next()? {
                Piece::Bytes(bytes) => all.update(bytes.as_ref()),
                Piece::End(digest) => return Ok(Some(digest)),
            }
        }
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
