//! Files of a layer's directory, read ahead of their turn in the archive: by several threads, in pieces
//! whose number is bounded, each file hashed for itself on the way.

use crate::{inode::Reading, once::FilesRead, seal::Moment, tree::View};
use sha2::{Digest as _, Sha256};
use std::{
    io::{self, Read as _},
    os::fd::BorrowedFd,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};
use verify::{digest::FileDigest, rootfs::RootfsPath};

const PIECE: usize = 128 << 10;
/// Of one file; a large one waits for the archive's reader, so that memory stays bounded.
const AHEAD: usize = 8;

/// What comes of a file, in its order.
pub(super) enum Piece {
    Bytes(Bytes),
    /// That was all; the digest of all.
    End(FileDigest),
}

/// A part of a file's content.
pub(super) struct Bytes {
    buffer: Vec<u8>,
    length: usize,
    /// Where the buffer goes for its next use.
    back: Option<SyncSender<Vec<u8>>>,
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            // Full, or nobody reads any more: one buffer less.
            back.try_send(std::mem::take(&mut self.buffer)).ok();
        }
    }
}

/// A file that is to be read.
pub(super) struct Ahead {
    path: RootfsPath,
    size: u64,
    to: SyncSender<io::Result<Piece>>,
}

/// Where its content arrives.
pub(super) struct Pieces {
    size: u64,
    begun: bool,
    from: Receiver<io::Result<Piece>>,
    rest: Option<(Bytes, usize)>,
}

impl Ahead {
    /// The first `size` bytes of the file at `path`.
    pub fn of(path: RootfsPath, size: u64) -> (Self, Pieces) {
        let (to, from) = sync_channel(AHEAD);
        let pieces = Pieces {
            size,
            begun: false,
            from,
            rest: None,
        };
        (Self { path, size, to }, pieces)
    }
}

impl Pieces {
    /// Whether nothing was taken yet, and `size` bytes are to come.
    pub fn are_all_of(&self, size: u64) -> bool {
        !self.begun && self.size == size
    }

    pub fn next(&mut self) -> io::Result<Piece> {
        self.begun = true;
        let gone = |_| io::Error::other("a thread that read files ended");
        self.from.recv().map_err(gone)?
    }

    /// As `Read::read`.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some((bytes, taken)) = &mut self.rest {
                let left = &bytes.as_ref()[*taken..];
                let n = left.len().min(buffer.len());
                buffer[..n].copy_from_slice(&left[..n]);
                *taken += n;
                if n > 0 {
                    return Ok(n);
                }
                self.rest = None;
            }
            match self.next()? {
                Piece::Bytes(bytes) => self.rest = Some((bytes, 0)),
                Piece::End(_) => return Ok(0),
            }
        }
    }
}

/// The files that wait for a thread to read them.
#[derive(Default)]
pub(super) struct Queue(Mutex<Option<Receiver<Ahead>>>);

impl Queue {
    /// Ends when the sender is dropped.
    pub fn open(&self, length: usize) -> SyncSender<Ahead> {
        let (sender, receiver) = sync_channel(length);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
        sender
    }

    fn next(&self) -> Option<Ahead> {
        let queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref()?.recv().ok()
    }

    /// Reads what waits, until there is no more to come.
    pub fn work(&self, directory: BorrowedFd<'_>) -> FilesRead {
        let mut worker = Worker {
            directory,
            files: FilesRead::default(),
            buffers: sync_channel(4 * AHEAD),
        };
        while let Some(file) = self.next() {
            if let Err(error) = worker.file(&file) {
                // Who does not listen has found an error before.
                file.to.send(Err(error)).ok();
            }
        }
        worker.files
    }
}

struct Worker<'d> {
    directory: BorrowedFd<'d>,
    files: FilesRead,
    /// Used ones: a fresh one of this size would be mapped, zeroed and unmapped each time.
    buffers: (SyncSender<Vec<u8>>, Receiver<Vec<u8>>),
}

impl Worker<'_> {
    fn file(&mut self, wanted: &Ahead) -> io::Result<()> {
        let Ahead { path, size, to } = wanted;
        let began = Moment::now();
        let opened = Reading::begin(self.directory, path.as_bytes(), View::Unpacked);
        let mut reading = opened.map_err(|errno| {
            io::Error::other(format!("open {path} in the layer's directory: {errno}"))
        })?;
        let mut hasher = Sha256::new();
        let mut left = *size;
        while left > 0 {
            let bytes = self.piece(&mut reading, left).map_err(|error| {
                io::Error::other(format!("read {path} in the layer's directory: {error}"))
            })?;
            if bytes.length == 0 {
                return Err(io::Error::other(format!("{path} is shorter than recorded")));
            }
            left -= bytes.length as u64;
            hasher.update(bytes.as_ref());
            if to.send(Ok(Piece::Bytes(bytes))).is_err() {
                return Ok(());
            }
        }
        let digest = FileDigest::from_bytes(hasher.finalize().into());
        to.send(Ok(Piece::End(digest))).ok();
        // What cannot be taken over, for whatever reason, is read again.
        if let Ok(entry) = reading.end(path, *size, digest) {
            self.files.add(&reading.before, began, entry, reading.quiet);
        }
        Ok(())
    }

    fn piece(&self, reading: &mut Reading, left: u64) -> io::Result<Bytes> {
        let (back, used) = &self.buffers;
        let buffer = used.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
        let mut bytes = Bytes {
            buffer,
            length: 0,
            back: Some(back.clone()),
        };
        let most = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        loop {
            match reading.file.read(&mut bytes.buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => {
                    bytes.length = read?;
                    return Ok(bytes);
                }
            }
        }
    }
}
