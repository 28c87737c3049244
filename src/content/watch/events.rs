//! What the kernel says in a fanotify group's queue (fanotify(7), "Reading fanotify events").

use anyhow::{Context as _, Result, ensure};
use rustix::{fd::OwnedFd, io::Errno};

/// What an event is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum About<'e> {
    /// The inode with this handle ([`crate::sys::Handle`]); of a change of a directory's names, the
    /// directory.
    Inode(&'e [u8]),
    /// The inode with this handle was opened, for whatever.
    Opened(&'e [u8]),
    /// Events were lost, or one says nothing that could be told apart.
    Anything,
}

const METADATA: usize = 24;
const VERSION: u8 = 3;
/// Header of a record and identifier of a file system.
const BEFORE_HANDLE: usize = 4 + 8;
const INFO_FID: u8 = 1;

/// Empties the queue.
pub(super) fn each(group: &OwnedFd, mut hear: impl FnMut(About<'_>)) -> Result<()> {
    let own = rustix::process::getpid().as_raw_pid();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match rustix::io::read(group, &mut buffer[..]) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => continue,
            read => read.context("read the fanotify group")?,
        };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(part(rest, 0)?) as usize;
            ensure!(
                (METADATA..=rest.len()).contains(&length),
                "an event of {length} bytes"
            );
            let (event, after) = rest.split_at(length);
            rest = after;
            if let Some(about) = about(event, own)? {
                hear(about);
            }
        }
    }
}

/// `None`: nothing happened to anything.
fn about(event: &[u8], own: i32) -> Result<Option<About<'_>>> {
    let [version, _] = part(event, 4)?;
    ensure!(version == VERSION, "events of version {version}");
    let records = usize::from(u16::from_ne_bytes(part(event, 6)?));
    let mask = u64::from_ne_bytes(part(event, 8)?);
    let by = i32::from_ne_bytes(part(event, 20)?);
    let opened = mask & !libc::FAN_ONDIR == libc::FAN_OPEN;
    // A directory is not opened for writing; this process opens files for reading alone.
    if opened && (mask & libc::FAN_ONDIR != 0 || by == own) {
        return Ok(None);
    }
    let record = event.get(records..).unwrap_or_default();
    if mask & libc::FAN_Q_OVERFLOW != 0 || record.first() != Some(&INFO_FID) {
        return Ok(Some(About::Anything));
    }
    let bytes = u32::from_ne_bytes(part(record, BEFORE_HANDLE)?) as usize;
    // as sys::Handle: the kind, then the bytes
    let handle = record.get(BEFORE_HANDLE + 4..BEFORE_HANDLE + 8 + bytes);
    Ok(Some(match handle {
        Some(handle) if bytes > 0 && opened => About::Opened(handle),
        Some(handle) if bytes > 0 => About::Inode(handle),
        _ => About::Anything,
    }))
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let found = bytes
        .get(at..at + N)
        .and_then(|found| found.try_into().ok());
    found.context("an event ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: i32 = 7;

    fn event(mask: u64, by: i32, record: &[u8]) -> Vec<u8> {
        let mut event = Vec::new();
        event.extend_from_slice(&((METADATA + record.len()) as u32).to_ne_bytes());
        event.extend_from_slice(&[VERSION, 0]);
        event.extend_from_slice(&(METADATA as u16).to_ne_bytes());
        event.extend_from_slice(&mask.to_ne_bytes());
        event.extend_from_slice(&(-1i32).to_ne_bytes());
        event.extend_from_slice(&by.to_ne_bytes());
        event.extend_from_slice(record);
        event
    }

    fn record(kind: u8, handle: &[u8]) -> Vec<u8> {
        let mut record = vec![kind, 0, 0, 0];
        record.extend_from_slice(&[9; 8]);
        record.extend_from_slice(&(handle.len() as u32).to_ne_bytes());
        record.extend_from_slice(&1i32.to_ne_bytes());
        record.extend_from_slice(handle);
        record
    }

    #[test]
    fn whatever_is_unclear_is_about_anything() {
        let named = record(INFO_FID, b"handle");
        let handle = [&1i32.to_ne_bytes()[..], b"handle"].concat();
        let modify = event(libc::FAN_MODIFY, 1, &named);
        assert_eq!(about(&modify, OWN).unwrap(), Some(About::Inode(&handle)));
        // what this process changes counts, what it opens does not
        let own = event(libc::FAN_MODIFY | libc::FAN_OPEN, OWN, &named);
        assert_eq!(about(&own, OWN).unwrap(), Some(About::Inode(&handle)));
        for nothing in [
            event(libc::FAN_OPEN, OWN, &named),
            event(libc::FAN_OPEN | libc::FAN_ONDIR, 1, &named),
        ] {
            assert_eq!(about(&nothing, OWN).unwrap(), None);
        }
        let opened = event(libc::FAN_OPEN, 1, &named);
        assert_eq!(about(&opened, OWN).unwrap(), Some(About::Opened(&handle)));
        for unclear in [
            event(libc::FAN_Q_OVERFLOW, 0, b""),
            event(libc::FAN_Q_OVERFLOW, 0, &named),
            event(libc::FAN_MODIFY, 1, b""),
            event(libc::FAN_MODIFY, 1, &record(2, b"handle")),
            event(libc::FAN_MODIFY, 1, &record(INFO_FID, b"")),
            event(libc::FAN_MODIFY, 1, &named[..named.len() - 1]),
        ] {
            assert_eq!(about(&unclear, OWN).unwrap(), Some(About::Anything));
        }
        assert!(about(&modify[..METADATA - 1], OWN).is_err());
        assert!(about(&event(libc::FAN_MODIFY, 1, &named[..9]), OWN).is_err());
    }
}
