//! The socket that challengers connect to: everybody may, so connections are few per user and
//! short-lived, whatever the other side does or omits.

use crate::{
    caller::{Caller, Peer},
    metrics::Metrics,
    seats::{Connection, Seats},
};
use anyhow::{Context as _, bail};
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::net::{UnixListener, UnixStream};
use verify::wire::ChannelBinding;

/// What a user over the limit reads: a whole HTTP answer, since no request is read any more.
const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\n\
    Content-Type: application/problem+json\r\nContent-Length: 160\r\nConnection: close\r\n\
    Retry-After: 5\r\n\r\n{\"type\":\"tag:attestrun,2026:problem/too-many\",\
    \"title\":\"too many challenges at once\",\"status\":429,\
    \"detail\":\"wait until other challenges of this user have ended\"}";

/// The bound socket; removed when dropped, unless another process has put its own there.
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            // If it cannot be removed, the next start finds it dead and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, for everybody (mode 0666: what a user may see is decided by its number).
pub fn bind(
    path: &Path,
    lifetime: Duration,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Bounded, SocketFile)> {
    remove_dead_socket(path)?;
    let listener = UnixListener::bind(path).with_context(|| {
        format!(
            "listening on {}: create its directory for this user first (the packaged systemd unit does)",
            path.display()
        )
    })?;
    let meta = fs::symlink_metadata(path).with_context(|| format!("reading {}", path.display()))?;
    let socket = SocketFile {
        path: path.to_owned(),
        inode: (meta.dev(), meta.ino()),
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
        .with_context(|| format!("opening {} to all users (mode 0666)", path.display()))?;
    Ok((
        Bounded {
            listener,
            lifetime,
            seats: Seats::default(),
            metrics,
        },
        socket,
    ))
}

/// A socket that nobody answers is left from a crash; anything else at that place is not ours.
fn remove_dead_socket(path: &Path) -> anyhow::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("looking at {}", path.display()))?,
    };
    if !meta.file_type().is_socket() {
        bail!(
            "{} exists and is not a socket: remove it or name another place",
            path.display()
        );
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("removing the dead socket {}", path.display())),
        _ => bail!(
            "{}: another process listens there; stop it first",
            path.display()
        ),
    }
}

/// A listener that hands out only as many connections as there are seats.
pub struct Bounded {
    listener: UnixListener,
    lifetime: Duration,
    seats: Seats,
    metrics: Arc<Metrics>,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection<UnixStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(_) => {
                    // Out of descriptors or a connection that died in the queue: neither is fatal,
                    // and trying at once would burn a processor.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(peer) = stream.peer_cred() else {
                continue;
            };
            let caller = Caller::User(peer.uid());
            match self.seats.take(&caller) {
                Some(seat) => {
                    let peer = Peer {
                        caller,
                        binding: ChannelBinding::None,
                    };
                    return (Connection::new(stream, self.lifetime, seat), peer);
                }
                // A fresh socket takes this much without waiting; if not, the close says it too.
                None => {
                    self.metrics.turned_away.fetch_add(1, Ordering::Relaxed);
                    drop(stream.try_write(TOO_MANY));
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_the_full_house_is_whole() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}\r\n", body.len())),
            "{}",
            body.len()
        );
        assert!(
            serde_json::from_str::<serde_json::Value>(body).is_ok(),
            "{body}"
        );
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = std::env::temp_dir().join(format!("attestrun-agent-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (living, file) = bind(&path, Duration::from_secs(1), Arc::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        assert!(bind(&path, Duration::from_secs(1), Arc::default()).is_err());
        drop(living);
        drop(file);
        assert!(!path.exists());
        fs::write(&path, "not a socket").unwrap();
        assert!(bind(&path, Duration::from_secs(1), Arc::default()).is_err());
        assert!(path.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
