//! Terminals: who serves the pseudoterminal's master, its size and owner, and the foreground of
//! `run` and `exec`: signals in, exit status out.

mod pipes;

pub use pipes::{Copying, Laid, Pipes};

use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
    termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
};
use oci_spec::runtime::Box as ConsoleSize;
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    process::{WaitId, WaitIdOptions, waitid},
};
use std::{
    fs::File,
    io::{ErrorKind, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

/// Who gets the master of the process's pseudoterminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Terminal {
    /// There is none: the process has our standard streams.
    None,
    /// The caller, through its `--console-socket`.
    Socket(PathBuf),
    /// We, in the foreground.
    Own,
}

impl Terminal {
    /// runc's rules (utils_linux.go, checkTerminal).
    pub fn choose(wanted: bool, socket: Option<&Path>, detached: bool) -> Result<Self> {
        match (wanted, socket, detached) {
            (true, Some(path), true) => Ok(Self::Socket(path.to_owned())),
            (true, None, false) => Ok(Self::Own),
            (false, None, _) => Ok(Self::None),
            (true, None, true) => {
                bail!("cannot allocate tty if attestrun will detach without setting console socket")
            }
            (_, Some(_), _) => {
                bail!("cannot use console socket if attestrun will not detach or allocate tty")
            }
        }
    }
}

/// What the foreground serves of a process that was made.
#[derive(Debug)]
pub enum Served {
    Nothing,
    /// The pseudoterminal's master.
    Console(OwnedFd),
    Pipes(Pipes),
}

/// A connected pair: ours, and the one that the process sends its master through.
pub fn channel() -> Result<(UnixStream, UnixStream)> {
    UnixStream::pair().context("cannot make a socket pair for the console")
}

/// Takes the master from the process, gives it size and owner, and passes it to who serves it.
pub fn deliver(
    from: &UnixStream,
    to: &Terminal,
    size: Option<ConsoleSize>,
    owner: u32,
) -> Result<Option<OwnedFd>> {
    let master = receive(from)?;
    if let Some(size) = size {
        let short = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        sys::set_window(master.as_fd(), short(size.height()), short(size.width()))
            .context("cannot set the console's size")?;
    }
    let slave = sys::open_peer(master.as_fd()).context("cannot open the console")?;
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(owner)), None)
        .context("cannot give the console to its user")?;
    match to {
        Terminal::Socket(path) => {
            let socket = connect(path)?;
            send(&socket, &[master.as_fd()], b"/dev/ptmx").context("cannot send the console")?;
            Ok(None)
        }
        _ => Ok(Some(master)),
    }
}

/// Connects to a caller's socket, whose path may be longer than sockaddr_un: through its directory.
fn connect(path: &Path) -> Result<UnixStream> {
    let doing = || format!("cannot connect to {}", path.display());
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{}", doing())
    };
    let dir = File::open(dir).with_context(doing)?;
    let short = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir));
    UnixStream::connect(Path::new(&short).join(name)).with_context(doing)
}

/// Passes a process's pidfd to the caller's `--pidfd-socket`.
pub fn send_pidfd(path: &Path, pidfd: BorrowedFd<'_>) -> Result<()> {
    send(&connect(path)?, &[pidfd], b"pidfd").context("cannot send the pidfd")
}

/// One message with descriptors.
pub fn send(socket: impl AsFd, fds: &[BorrowedFd<'_>], text: &[u8]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ensure!(
        ancillary.push(SendAncillaryMessage::ScmRights(fds)),
        "too many descriptors"
    );
    sendmsg(
        socket,
        &[IoSlice::new(text)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// One descriptor from `socket`.
pub fn receive(socket: &UnixStream) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0u8; 4096];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .context("cannot receive the console")?;
    let rights = ancillary.drain().find_map(|m| match m {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    rights.context("the process sent no console")
}

/// Standard streams belong to the container's user, who may open /dev/stdout anew (runc,
/// fixStdioPermissions). In the foreground only pipes and sockets are given away: a terminal or a
/// file there is the caller's own.
pub fn give_streams(owner: u32, detached: bool) {
    use rustix::fs::{FileType, Uid, fchown, fstat, makedev};
    for fd in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let Ok(stat) = fstat(fd) else { continue };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let given = detached || matches!(kind, FileType::Fifo | FileType::Socket);
        let is_null = kind == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
        if given && !is_null && stat.st_uid != owner {
            // a stream that cannot change its owner stays as it is, as in runc
            fchown(fd, Some(Uid::from_raw(owner)), None).ok();
        }
    }
}

/// Signals that the foreground passes on, blocked from before the container exists: none is lost.
pub struct Signals(SignalFd);

impl Signals {
    pub fn block() -> Result<Self> {
        let mut set = SigSet::all();
        // ours (a child's end is seen by pidfd), nobody's, and those that a fault of our own raises
        for own in [
            Signal::SIGCHLD,
            Signal::SIGURG,
            Signal::SIGPIPE,
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGABRT,
            Signal::SIGTRAP,
            Signal::SIGSYS,
        ] {
            set.remove(own);
        }
        set.thread_block().context("cannot block signals")?;
        Ok(Self(SignalFd::with_flags(
            &set,
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        )?))
    }
}

/// How a process ended that was served: its exit code or 128 + signal, and output still to be passed on.
pub struct Ended {
    pub code: u8,
    output: Option<Copying>,
}

impl Ended {
    /// Waits for the output's end; who else holds the streams must have ended, or will.
    pub fn finish(self) -> u8 {
        if let Some(output) = self.output {
            output.finish();
        }
        self.code
    }
}

/// Serves the process until it ends.
pub fn foreground(pidfd: &OwnedFd, signals: &Signals, served: Served) -> Result<Ended> {
    let (master, output) = match served {
        Served::Nothing => (None, None),
        Served::Console(master) => (Some(File::from(master)), None),
        Served::Pipes(pipes) => (None, Some(pipes.copy()?)),
    };
    let raw = master.as_ref().map(|m| RawStdin::enter(m.as_fd()));
    let status = serve(pidfd, signals, master.as_ref());
    drop(raw);
    Ok(Ended {
        code: u8::try_from(status?).unwrap_or(u8::MAX),
        output,
    })
}

fn serve(pidfd: &OwnedFd, signals: &Signals, master: Option<&File>) -> Result<i32> {
    let mut stdin_open = master.is_some();
    let mut master_open = master.is_some();
    let stdin = std::io::stdin();
    loop {
        let mut fds = vec![
            PollFd::new(pidfd, PollFlags::IN),
            PollFd::new(&signals.0, PollFlags::IN),
        ];
        let master_at = master.filter(|_| master_open).map(|m| {
            fds.push(PollFd::from_borrowed_fd(m.as_fd(), PollFlags::IN));
            fds.len() - 1
        });
        let stdin_at = stdin_open.then(|| {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
            fds.len() - 1
        });
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.context("cannot wait for the process")?,
        };
        let ready = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        let (ended, signalled) = (ready(Some(0)), ready(Some(1)));
        let (from_process, from_caller) = (ready(master_at), ready(stdin_at));
        if signalled {
            forward(pidfd, &signals.0, master);
        }
        if let Some(mut master) = master {
            if from_process {
                master_open = copy_once(master, &mut std::io::stdout().lock());
            }
            if from_caller {
                stdin_open = copy_once(&mut stdin.lock(), &mut master);
            }
        }
        if ended {
            if let Some(master) = master.filter(|_| master_open) {
                drain(master);
            }
            return exit_code(pidfd);
        }
    }
}

/// One read and its write; false at the end of either. A pseudoterminal without processes says EIO.
fn copy_once(mut from: impl Read, to: &mut impl Write) -> bool {
    let mut buffer = [0u8; 16384];
    match from.read(&mut buffer) {
        Ok(0) => false,
        Ok(n) => to.write_all(&buffer[..n]).and_then(|()| to.flush()).is_ok(),
        Err(e) => e.kind() == ErrorKind::Interrupted,
    }
}

/// What the process wrote before its end.
fn drain(master: &File) {
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut stdout = std::io::stdout().lock();
    loop {
        let mut fds = [PollFd::from_borrowed_fd(master.as_fd(), PollFlags::IN)];
        let readable = poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
            && fds[0].revents().contains(PollFlags::IN);
        if !readable || !copy_once(master, &mut stdout) {
            return;
        }
    }
}

fn forward(pidfd: &OwnedFd, signals: &SignalFd, master: Option<&File>) {
    while let Ok(Some(info)) = signals.read_signal() {
        let signal = info.ssi_signo as i32;
        match (signal, master) {
            (libc::SIGWINCH, Some(master)) => copy_window(master.as_fd()),
            // the process may have ended meanwhile
            _ => drop(sys::pidfd_signal(pidfd.as_fd(), signal)),
        }
    }
}

fn copy_window(master: BorrowedFd<'_>) {
    if let Ok((rows, cols)) = sys::window(std::io::stdin().as_fd()) {
        sys::set_window(master, rows, cols).ok();
    }
}

fn exit_code(pidfd: &OwnedFd) -> Result<i32> {
    let status = loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => continue,
            result => {
                break result
                    .context("cannot wait for the process")?
                    .context("the process has no status")?;
            }
        }
    };
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => bail!("the process ended without a status"),
    })
}

/// Standard input passes every byte on while this lives.
struct RawStdin(Option<Termios>);

impl RawStdin {
    fn enter(master: BorrowedFd<'_>) -> Self {
        let stdin = std::io::stdin();
        let Ok(saved) = tcgetattr(&stdin) else {
            return Self(None);
        };
        copy_window(master);
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok();
        Self(Some(saved))
    }
}

impl Drop for RawStdin {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            tcsetattr(std::io::stdin(), SetArg::TCSANOW, saved).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_follow_runcs_rules() {
        let socket = Some(Path::new("/s"));
        assert_eq!(
            Terminal::choose(true, socket, true).unwrap(),
            Terminal::Socket("/s".into())
        );
        assert_eq!(Terminal::choose(true, None, false).unwrap(), Terminal::Own);
        assert_eq!(Terminal::choose(false, None, true).unwrap(), Terminal::None);
        assert!(Terminal::choose(true, None, true).is_err());
        assert!(Terminal::choose(false, socket, true).is_err());
        assert!(Terminal::choose(true, socket, false).is_err());
    }

    #[test]
    fn a_descriptor_arrives() {
        let (a, b) = channel().unwrap();
        let file = File::open("/proc/self/stat").unwrap();
        send(&a, &[file.as_fd()], b"x").unwrap();
        let mut text = String::new();
        File::from(receive(&b).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert!(text.starts_with(&std::process::id().to_string()));
        send(&a, &[], b"x").ok();
        assert!(receive(&b).is_err());
    }
}
