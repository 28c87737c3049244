//! The container's socket to its TPM: commands in, answers out, one at a time; and a control socket of
//! which swtpm's clients want no more than that it lets them set locality 0.
//!
//! Trusts nobody on the other side. What anybody there can use up is bounded (connections, bytes, time),
//! the guard's own commands never wait for more than one of theirs, and what they say is judged by
//! `tpm::filter`. A client is a process: libtss2 connects anew for each command, so what is a process's
//! own must outlive its connections, and not the process.

use crate::{
    ending::has_ended,
    lending::{Owner, SOCKET},
    state::RunDir,
};
use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, chmod, chown},
    net::sockopt::socket_peercred,
    process::{Gid, Pid, PidfdFlags, Uid, pidfd_open},
};
use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use tpm::{
    filter::{Broker, ClientId, Refusal},
    wire::{HEADER, MAX_MESSAGE},
};

/// Of one container; the one that was silent for longest makes room for a new one.
const CONNECTIONS: usize = 64;
/// Who begins a command ends it in this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// swtpm's control commands (swtpm_ioctls(3)): a code and what it takes.
const CMD_SET_LOCALITY: [u8; 5] = [0, 0, 0, 5, 0];
/// TPM_BAD_ORDINAL.
const BAD_ORDINAL: [u8; 4] = [0, 0, 0, 10];

/// A list has its place in the run directory's file system, beside the event log; a longer one is in the
/// evidence alone.
pub const MAX_LIST: u64 = 16 << 20;

/// The directory that the container sees.
pub struct Shelf {
    directory: PathBuf,
    owner: Owner,
}

impl Shelf {
    pub fn of(run_dir: &RunDir, owner: Owner) -> Self {
        Self {
            directory: run_dir.inside(false),
            owner,
        }
    }

    /// A file for everybody in the container to read.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        self.give(&path, 0o444)
    }

    /// The same for a file of ours that is still written to.
    pub fn link(&self, name: &str, file: &Path) -> Result<()> {
        let path = self.directory.join(name);
        fs::hard_link(file, &path).with_context(|| format!("cannot link {}", path.display()))?;
        self.give(&path, 0o444)
    }

    fn give(&self, path: &Path, mode: u32) -> Result<()> {
        let owner = (Uid::from_raw(self.owner.uid), Gid::from_raw(self.owner.gid));
        chown(path, Some(owner.0), Some(owner.1))
            .and_then(|()| chmod(path, Mode::from_raw_mode(mode)))
            .with_context(|| format!("cannot give {} to the container", path.display()))
    }

    fn listen(&self, name: &str) -> Result<UnixListener> {
        let path = self.directory.join(name);
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        self.give(&path, 0o666)?; // any user of the container's; nobody else finds the way
        Ok(listener)
    }
}

/// Listens, and serves in a thread of its own for as long as this process and the vTPM live.
pub fn offer(shelf: &Shelf, broker: Broker) -> Result<()> {
    let service = Service {
        data: shelf.listen(SOCKET)?,
        control: shelf.listen(&format!("{SOCKET}.ctrl"))?,
        broker,
        connections: Vec::new(),
        clients: BTreeMap::new(),
        next_client: 0,
    };
    let serve = move || {
        if let Err(error) = service.run() {
            eprintln!("attestrun guard: the container's TPM: {error:#}");
        }
    };
    let thread = thread::Builder::new()
        .name("tpm".into())
        .stack_size(256 << 10);
    thread
        .spawn(serve)
        .context("cannot serve the container's TPM")
        .map(drop)
}

struct Service {
    data: UnixListener,
    control: UnixListener,
    broker: Broker,
    connections: Vec<Connection>,
    clients: BTreeMap<ClientId, Client>,
    next_client: ClientId,
}

/// A process of the container that has connected.
struct Client {
    pid: Pid,
    /// `None`: it had ended before we looked; then it is its connection that counts.
    process: Option<OwnedFd>,
}

impl Client {
    fn has_ended(&self) -> bool {
        self.process.as_ref().is_none_or(has_ended)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data(ClientId),
    Control,
}

struct Connection {
    stream: UnixStream,
    kind: Kind,
    received: Vec<u8>,
    /// When it last said something; the beginning of a command counts once.
    heard: Instant,
    open: bool,
}

impl Service {
    fn run(mut self) -> Result<()> {
        loop {
            let ready = self.wait()?;
            let mut ready = ready.into_iter();
            let (data, control) = (ready.next() == Some(true), ready.next() == Some(true));
            // those that are there before those that come
            for at in 0..self.connections.len() {
                if ready.next() == Some(true) || self.connections[at].has_command() {
                    self.serve(at)?;
                }
            }
            self.tidy()?;
            if data {
                self.accept(false)?;
            }
            if control {
                self.accept(true)?;
            }
        }
    }

    /// Until something is to be done: whether for each of the listeners and the connections.
    fn wait(&self) -> Result<Vec<bool>> {
        let mut fds = vec![
            PollFd::new(&self.data, PollFlags::IN),
            PollFd::new(&self.control, PollFlags::IN),
        ];
        let connections = self.connections.iter();
        fds.extend(connections.map(|one| PollFd::new(&one.stream, PollFlags::IN)));
        let processes = self
            .clients
            .values()
            .filter_map(|client| client.process.as_ref());
        fds.extend(processes.map(|process| PollFd::new(process, PollFlags::IN)));
        let time = |time: Duration| Timespec {
            tv_sec: time.as_secs().cast_signed(),
            tv_nsec: time.subsec_nanos().into(),
        };
        let waiting = |one: &Connection| !one.received.is_empty();
        let timeout = if self.connections.iter().any(Connection::has_command) {
            Some(time(Duration::ZERO))
        } else if self.connections.iter().any(waiting) {
            Some(time(Duration::from_secs(1)))
        } else {
            None
        };
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error).context("poll"),
        }
    }

    /// At most one command of one connection.
    fn serve(&mut self, at: usize) -> Result<()> {
        let connection = &mut self.connections[at];
        connection.receive();
        let answer = match (connection.kind, connection.command()) {
            (_, None) => return Ok(()),
            (Kind::Control, Some(command)) => match command == CMD_SET_LOCALITY {
                true => [0; 4].to_vec(),
                false => {
                    connection.open = false;
                    BAD_ORDINAL.to_vec()
                }
            },
            (Kind::Data(_), Some(command)) if command.len() < HEADER => {
                // no size that could be: nothing after it can be told apart
                connection.open = false;
                Refusal::SIZE.response()
            }
            (Kind::Data(client), Some(command)) => self.broker.answer(client, &command)?,
        };
        let connection = &mut self.connections[at];
        // one that does not take its answer has lost it
        connection.open &= connection.stream.write_all(&answer).is_ok();
        Ok(())
    }

    /// Connections that are closed or too slow go, and what belonged to processes that have ended.
    fn tidy(&mut self) -> Result<()> {
        self.connections
            .retain(|one| one.open && (one.received.is_empty() || one.heard.elapsed() < PATIENCE));
        let connected = |client: ClientId| {
            let mut kinds = self.connections.iter().map(|one| one.kind);
            kinds.any(|kind| kind == Kind::Data(client))
        };
        let gone = self.clients.iter().filter(|(id, client)| {
            !connected(**id) && (client.has_ended() || !self.broker.has(**id))
        });
        let gone: Vec<ClientId> = gone.map(|(id, _)| *id).collect();
        for client in gone {
            self.clients.remove(&client);
            self.broker.forget(client)?;
        }
        Ok(())
    }

    fn accept(&mut self, control: bool) -> Result<()> {
        let listener = if control { &self.control } else { &self.data };
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // whoever it was has gone again, or this process has too many descriptors open just now
            Err(_) => return Ok(()),
        };
        if stream.set_nonblocking(true).is_err() {
            return Ok(());
        }
        if self.connections.len() >= CONNECTIONS {
            let silent = self.connections.iter().enumerate();
            if let Some((at, _)) = silent.min_by_key(|(_, one)| one.heard) {
                self.connections.swap_remove(at);
            }
        }
        let kind = match control {
            true => Kind::Control,
            false => match self.client_of(&stream) {
                Some(client) => Kind::Data(client),
                None => return Ok(()),
            },
        };
        self.connections.push(Connection {
            stream,
            kind,
            received: Vec::new(),
            heard: Instant::now(),
            open: true,
        });
        Ok(())
    }

    /// The process at the other end: the one that connected.
    fn client_of(&mut self, stream: &UnixStream) -> Option<ClientId> {
        let pid = socket_peercred(stream.as_fd()).ok()?.pid;
        let known = self.clients.iter();
        let mut known = known.filter(|(_, client)| client.pid == pid && !client.has_ended());
        if let Some((id, _)) = known.next() {
            return Some(*id);
        }
        let process = pidfd_open(pid, PidfdFlags::empty()).ok();
        self.next_client += 1;
        self.clients
            .insert(self.next_client, Client { pid, process });
        Some(self.next_client)
    }
}

impl Connection {
    /// What there is, up to one longest command.
    fn receive(&mut self) {
        let mut buffer = [0; MAX_MESSAGE];
        let room = MAX_MESSAGE.saturating_sub(self.received.len());
        let Some(buffer) = buffer.get_mut(..room).filter(|buffer| !buffer.is_empty()) else {
            return;
        };
        match self.stream.read(buffer) {
            Ok(0) => self.open = false,
            Ok(count) => {
                if self.received.is_empty() {
                    self.heard = Instant::now();
                }
                self.received
                    .extend_from_slice(buffer.get(..count).unwrap_or_default());
            }
            Err(e) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&e.kind()) => {}
            Err(_) => self.open = false,
        }
    }

    /// How long the command is that has begun to come; `Some(0)`: as long as none can be.
    fn expected(&self) -> Option<usize> {
        match self.kind {
            Kind::Control => Some(CMD_SET_LOCALITY.len()),
            Kind::Data(_) => {
                let size = self.received.get(2..6)?.try_into().ok()?;
                let size = u32::from_be_bytes(size) as usize;
                Some(size)
                    .filter(|size| (HEADER..=MAX_MESSAGE).contains(size))
                    .or(Some(0))
            }
        }
    }

    fn has_command(&self) -> bool {
        self.open
            && self
                .expected()
                .is_some_and(|size| self.received.len() >= size)
    }

    /// Takes a whole command out of what was received.
    fn command(&mut self) -> Option<Vec<u8>> {
        let size = self
            .expected()
            .filter(|size| self.received.len() >= *size)?;
        let rest = self.received.split_off(size);
        self.heard = Instant::now();
        Some(std::mem::replace(&mut self.received, rest))
    }
}
