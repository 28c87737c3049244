//! The socket that challengers connect to: everybody may, so connections are few per user and
//! short-lived, whatever the other side does or omits.

use anyhow::{Context as _, bail};
use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    time::Sleep,
};

/// Connections at once, of everybody, and of one user (SO_PEERCRED): nobody can lock others out.
const CONNECTIONS: usize = 64;
const CONNECTIONS_PER_USER: usize = 16;

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

/// Listens at `path`, for everybody (mode 0666: who asks is judged by nobody, evidence is not secret
/// from local users; the directory decides who comes near).
pub fn bind(path: &Path, lifetime: Duration) -> anyhow::Result<(Bounded, SocketFile)> {
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
            seats: Arc::default(),
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

/// Who is connected: user id to number of connections.
type Seats = Arc<Mutex<BTreeMap<u32, usize>>>;

/// A listener that hands out only as many connections as there are seats.
pub struct Bounded {
    listener: UnixListener,
    lifetime: Duration,
    seats: Seats,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    /// Nothing is decided by where a challenge comes from.
    type Addr = ();

    async fn accept(&mut self) -> (Connection, ()) {
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
            match Seat::take(&self.seats, peer.uid()) {
                Some(seat) => {
                    let deadline = Box::pin(tokio::time::sleep(self.lifetime));
                    return (
                        Connection {
                            stream,
                            deadline,
                            _seat: seat,
                        },
                        (),
                    );
                }
                // A fresh socket takes this much without waiting; if not, the close says it too.
                None => drop(stream.try_write(TOO_MANY)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// One place of one user, given back when dropped.
struct Seat {
    seats: Seats,
    uid: u32,
}

impl Seat {
    fn take(seats: &Seats, uid: u32) -> Option<Self> {
        let mut taken = seats.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let mine = taken.get(&uid).copied().unwrap_or(0);
        if all >= CONNECTIONS || mine >= CONNECTIONS_PER_USER {
            return None;
        }
        taken.insert(uid, mine + 1);
        drop(taken);
        Some(Self {
            seats: Arc::clone(seats),
            uid,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.uid) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => drop(taken.remove(&self.uid)),
        }
    }
}

/// A connection that ends at its deadline, whether its peer writes slowly, reads slowly, or sleeps.
pub struct Connection {
    stream: UnixStream,
    deadline: Pin<Box<Sleep>>,
    _seat: Seat,
}

impl Connection {
    /// `inner`'s result, or an error once the deadline has passed.
    fn until_deadline<T>(
        &mut self,
        cx: &mut Context<'_>,
        inner: impl FnOnce(Pin<&mut UnixStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        inner(Pin::new(&mut self.stream), cx)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.until_deadline(cx, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
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

    #[test]
    fn one_user_cannot_take_all_seats() {
        let seats = Seats::default();
        let mut greedy: Vec<Seat> = std::iter::from_fn(|| Seat::take(&seats, 1)).collect();
        assert_eq!(greedy.len(), CONNECTIONS_PER_USER);
        assert!(Seat::take(&seats, 2).is_some());
        greedy.pop();
        assert!(Seat::take(&seats, 1).is_some());
        drop(greedy);
        assert!(seats.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = std::env::temp_dir().join(format!("attestrun-agent-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (living, file) = bind(&path, Duration::from_secs(1)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        assert!(bind(&path, Duration::from_secs(1)).is_err());
        drop(living);
        drop(file);
        assert!(!path.exists());
        fs::write(&path, "not a socket").unwrap();
        assert!(bind(&path, Duration::from_secs(1)).is_err());
        assert!(path.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
