//! Decompresses in a thread of its own, a few buffers ahead of who reads: hashing the archive and its
//! files takes about as long as inflating it.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

const BUFFERS: usize = 4;
const BUFFER: usize = 256 << 10;

/// What `open` gives, while `read` reads it; `open` runs in the other thread.
pub fn ahead<R: Read, T>(
    open: impl FnOnce() -> io::Result<R> + Send,
    read: impl FnOnce(Ahead) -> T,
) -> T {
    let (filled, full) = sync_channel(BUFFERS);
    let (emptied, empty) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        emptied.send(Vec::new()).ok(); // there is room
    }
    let ahead = Ahead {
        full,
        emptied,
        now: Vec::new(),
        at: 0,
        over: false,
    };
    thread::scope(|scope| {
        scope.spawn(move || {
            if let Err(error) = open().and_then(|input| fill(input, &filled, &empty)) {
                filled.send(Err(error)).ok(); // nobody reads any more: nobody asks
            }
        });
        read(ahead)
    })
}

/// Until the end, which an empty buffer says, or until nobody reads any more.
fn fill(
    mut input: impl Read,
    filled: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Ok(mut buffer) = empty.recv() {
        buffer.resize(BUFFER, 0);
        let length = loop {
            match input.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        buffer.truncate(length);
        if filled.send(Ok(buffer)).is_err() || length == 0 {
            break;
        }
    }
    Ok(())
}

/// The bytes, in their order.
pub struct Ahead {
    full: Receiver<io::Result<Vec<u8>>>,
    emptied: SyncSender<Vec<u8>>,
    now: Vec<u8>,
    at: usize,
    over: bool,
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.now.len() && !self.over {
            // Without an end that was said, the thread is gone.
            let next = self.full.recv().map_err(|_| {
                io::Error::other("the thread that decompresses has ended before the archive")
            })??;
            self.over = next.is_empty();
            self.at = 0;
            let spent = std::mem::replace(&mut self.now, next);
            self.emptied.send(spent).ok(); // it may have ended
        }
        let rest = self.now.get(self.at..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of odd lengths, then an error or the end.
    struct Pieces(Vec<u8>, usize, Option<io::ErrorKind>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let rest = self.0.get(self.1..).unwrap_or_default();
            let length = rest.len().min(buffer.len()).min(100_003);
            buffer[..length].copy_from_slice(&rest[..length]);
            self.1 += length;
            match (length, self.2.take_if(|_| length == 0)) {
                (0, Some(kind)) => Err(kind.into()),
                (length, _) => Ok(length),
            }
        }
    }

    fn bytes() -> Vec<u8> {
        (0..3_000_000u32).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn accept_the_same_bytes() {
        for bytes in [bytes(), b"x".to_vec(), Vec::new()] {
            let mut read = Vec::new();
            let end = ahead(
                || Ok(Pieces(bytes.clone(), 0, Some(io::ErrorKind::Interrupted))),
                |mut ahead| ahead.read_to_end(&mut read),
            );
            assert_eq!(end.unwrap(), bytes.len());
            assert!(read == bytes);
        }
    }

    #[test]
    fn refuse_what_does_not_end() {
        let read = |open: fn() -> io::Result<Pieces>| {
            ahead(open, |mut ahead| {
                let mut read = Vec::new();
                ahead
                    .read_to_end(&mut read)
                    .map_err(|error| (error.kind(), read.len()))
            })
        };
        let broken = read(|| Ok(Pieces(bytes(), 0, Some(io::ErrorKind::InvalidData))));
        assert_eq!(broken, Err((io::ErrorKind::InvalidData, bytes().len())));
        let none = read(|| Err(io::ErrorKind::InvalidInput.into()));
        assert_eq!(none, Err((io::ErrorKind::InvalidInput, 0)));
    }

    #[test]
    fn accept_who_reads_no_further() {
        let first = ahead(
            || Ok(Pieces(bytes(), 0, None)),
            |mut ahead| {
                let mut first = [0; 3];
                ahead.read_exact(&mut first).map(|()| first)
            },
        );
        assert_eq!(first.unwrap(), [0, 1, 2]);
    }
}
