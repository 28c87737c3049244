//! Connections: few per challenger and short-lived, whatever the other side does or omits.

use crate::caller::Caller;
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// Connections at once, of everybody, and of one challenger: nobody can lock others out. One may have
/// as many as a host has containers, since all of a batch wait for the same quote.
const ALL: usize = 256;
pub const PER_CALLER: usize = 128;

/// Who is connected: challenger to number of connections.
#[derive(Clone, Default)]
pub struct Seats(Arc<Mutex<BTreeMap<Caller, usize>>>);

/// One place of one challenger, given back when dropped.
pub struct Seat {
    seats: Seats,
    caller: Caller,
}

impl Seats {
    pub fn take(&self, caller: &Caller) -> Option<Seat> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let theirs = taken.get(caller).copied().unwrap_or(0);
        if all >= ALL || theirs >= PER_CALLER {
            return None;
        }
        taken.insert(caller.clone(), theirs + 1);
        Some(Seat {
            seats: self.clone(),
            caller: caller.clone(),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.caller) {
            Some(theirs) if *theirs > 1 => *theirs -= 1,
            _ => drop(taken.remove(&self.caller)),
        }
    }
}

/// A connection that ends at its deadline, whether its peer writes slowly, reads slowly, or sleeps.
pub struct Connection<S> {
    stream: S,
    deadline: Pin<Box<Sleep>>,
    _seat: Seat,
}

impl<S: Unpin> Connection<S> {
    pub fn new(stream: S, lifetime: Duration, seat: Seat) -> Self {
        Self {
            stream,
            deadline: Box::pin(tokio::time::sleep(lifetime)),
            _seat: seat,
        }
    }

    /// `inner`'s result, or an error once the deadline has passed.
    fn until_deadline<T>(
        &mut self,
        cx: &mut Context<'_>,
        inner: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        inner(Pin::new(&mut self.stream), cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.until_deadline(cx, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.until_deadline(cx, |stream, cx| stream.poll_write(cx, buf))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.until_deadline(cx, |stream, cx| stream.poll_flush(cx))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.until_deadline(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_challenger_cannot_take_all_seats() {
        let (seats, one, two) = (Seats::default(), Caller::User(1), Caller::User(2));
        let mut greedy: Vec<Seat> = std::iter::from_fn(|| seats.take(&one)).collect();
        assert_eq!(greedy.len(), PER_CALLER);
        assert!(seats.take(&two).is_some());
        greedy.pop();
        assert!(seats.take(&one).is_some());
        drop(greedy);
        assert!(seats.0.lock().unwrap().is_empty());
    }
}
