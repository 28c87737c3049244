//! Frames between attestrun's own processes: a length, a JSON body, and descriptors beside them.
//!
//! Every message says its version; a peer of another version is told so by name. The sockets lie in
//! directories of root, so the peer is root; sizes are bounded all the same.

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

/// The protocol between keeper, guard, host service and verbs. A new one must still be understood by
/// the processes of the one before, since an upgrade restarts no guard.
pub const VERSION: u32 = 1;

/// A log at its cap in base64, and the rest of an evidence beside it.
const MAX_BODY: usize = 160 << 20;
const MAX_FDS: usize = 4;

#[derive(Serialize)]
struct Outgoing<'a, T> {
    v: u32,
    m: &'a T,
}

#[derive(Deserialize)]
struct Incoming {
    v: u32,
    m: serde_json::Value,
}

/// A connection to a process of ours.
#[derive(Debug)]
pub struct Channel(UnixStream);

impl Channel {
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    pub fn pair() -> Result<(Self, Self)> {
        let (a, b) = UnixStream::pair().context("cannot make a socket pair")?;
        Ok((Self(a), Self(b)))
    }

    /// No answer within `limit` is an error from then on.
    pub fn set_timeout(&self, limit: Duration) -> Result<()> {
        self.0.set_read_timeout(Some(limit))?;
        self.0.set_write_timeout(Some(limit))?;
        Ok(())
    }

    pub fn into_fd(self) -> OwnedFd {
        self.0.into()
    }

    pub fn stream(&self) -> &UnixStream {
        &self.0
    }

    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let body = serde_json::to_vec(&Outgoing {
            v: VERSION,
            m: message,
        })?;
        ensure!(
            body.len() <= MAX_BODY,
            "a message of {} bytes is too long",
            body.len()
        );
        let header = u32::try_from(body.len())?.to_be_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(
                ancillary.push(SendAncillaryMessage::ScmRights(fds)),
                "too many descriptors"
            );
        }
        let sent = loop {
            match sendmsg(
                &self.0,
                &[IoSlice::new(&header)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            ) {
                Err(rustix::io::Errno::INTR) => continue,
                result => break result.context("cannot send to the peer")?,
            }
        };
        (&self.0).write_all(header.get(sent..).unwrap_or_default())?;
        (&self.0)
            .write_all(&body)
            .context("cannot send to the peer")
    }

    /// The next message and its descriptors, or `None` when the peer has closed.
    pub fn recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let mut header = [0u8; 4];
        let mut fds = Vec::new();
        let mut have = 0;
        while have < header.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let rest = &mut header[have..];
            let got = match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(rest)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => bail!("the peer did not answer in time"),
                result => result.context("cannot receive from the peer")?,
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            match (got.bytes, have) {
                (0, 0) => return Ok(None),
                (0, _) => bail!("the peer closed in the middle of a message"),
                (n, _) => have += n,
            }
        }
        let len = u32::from_be_bytes(header) as usize;
        ensure!(
            len <= MAX_BODY,
            "the peer announced a message of {len} bytes"
        );
        let mut body = vec![0; len];
        (&self.0)
            .read_exact(&mut body)
            .context("the peer closed in the middle of a message")?;
        let incoming: Incoming =
            serde_json::from_slice(&body).context("the peer sent no message of ours")?;
        ensure!(
            incoming.v == VERSION,
            "the peer speaks protocol version {}, this attestrun speaks {VERSION}",
            incoming.v
        );
        Ok(Some((
            serde_json::from_value(incoming.m).context("the peer sent an unknown message")?,
            fds,
        )))
    }

    /// The next message of a peer that must not close now.
    pub fn expect<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>)> {
        self.recv()?.context("the peer closed without an answer")
    }

    pub fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        question: &Q,
        fds: &[BorrowedFd<'_>],
    ) -> Result<A> {
        self.send(question, fds)?;
        Ok(self.expect()?.0)
    }
}

/// An answer: what was asked for, a refusal by policy, or a failure to find out.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer<T> {
    Ok(T),
    Refused(String),
    Failed(String),
}

/// Policy said no: never wrapped in words of failure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl<T> Answer<T> {
    pub fn of(result: Result<T>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(error) => match error.downcast_ref::<Refused>() {
                Some(refused) => Self::Refused(refused.0.clone()),
                None => Self::Failed(format!("{error:#}")),
            },
        }
    }

    pub fn into_result(self) -> Result<T> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Refused(why) => Err(Refused(why).into()),
            Self::Failed(why) => Err(anyhow::Error::msg(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn carries_messages_and_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        a.send(&"hello", &[file.as_fd()]).unwrap();
        a.send(&7u8, &[]).unwrap();
        let (text, fds): (String, _) = b.expect().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("hello", 1));
        let (number, fds): (u8, _) = b.expect().unwrap();
        assert_eq!((number, fds.len()), (7, 0));
        drop(a);
        assert!(b.recv::<u8>().unwrap().is_none());
    }

    #[test]
    fn refuse_another_version() {
        let (a, b) = Channel::pair().unwrap();
        let body = br#"{"v":9,"m":1}"#;
        a.stream()
            .write_all(&(body.len() as u32).to_be_bytes())
            .unwrap();
        a.stream().write_all(body).unwrap();
        let error = b.recv::<u8>().unwrap_err().to_string();
        assert!(error.contains("version 9"), "{error}");
    }

    #[test]
    fn refusals_stay_refusals() {
        let refused: Result<()> = Err(Refused("no".into()).into());
        let error = Answer::of(refused).into_result().unwrap_err();
        assert!(error.is::<Refused>());
    }
}
