//! The connection to a vTPM: one command, one answer, in turn.
//!
//! The guard and its container share it, command by command: the guard's come first, so it waits for one
//! command of the container's at most.
//!
//! Answers are bounded in size and time; after the first one that is not understood, or late,
//! nothing more is sent, because command and answer could no longer be told to belong together.

use crate::rc::Rc;
use crate::wire::{Code, Command, HEADER, MAX_MESSAGE, Malformed, Reader, Response};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A command of the vTPM takes well under 10 ms (only ECC keys are made); a stopped swtpm must not
/// hold up a container for ever.
const PATIENCE: Duration = Duration::from_secs(20);
/// A command that the TPM asks to resend is sent this often in all; the pauses add up to half a second.
pub const ATTEMPTS: u32 = 12;

/// What went wrong, in which command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{command}: the vTPM refused: {rc}")]
    Refused { command: Code, rc: Rc },
    #[error("{command}: the vTPM is still busy after {ATTEMPTS} attempts: {rc}")]
    Busy { command: Code, rc: Rc },
    #[error("{command}: the vTPM's process has closed the connection")]
    Closed { command: Code },
    #[error("{command}: the vTPM did not answer within {} s", PATIENCE.as_secs())]
    Timeout { command: Code },
    #[error("{command}: cannot speak to the vTPM: {source}")]
    Io { command: Code, source: io::Error },
    #[error("{command}: the vTPM's answer is malformed: {what}")]
    Malformed { command: Code, what: Malformed },
    #[error("{command}: not sent, the connection to the vTPM broke before")]
    Broken { command: Code },
    #[error("a quote needs at least one PCR")]
    EmptySelection,
    #[error("no random bytes from the operating system: {0}")]
    Random(io::Error),
}

/// Our end of the socket pair.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    broken: bool,
}

/// The connection, and who waits for it.
#[derive(Debug)]
pub struct Line {
    connection: Mutex<Connection>,
    /// The guard wants it: the container's next command is not sent before the guard's answer has come.
    urgent: AtomicUsize,
    free: Condvar,
}

/// The guard's way to its vTPM.
#[derive(Debug)]
pub struct Channel {
    line: Arc<Line>,
}

impl Line {
    /// Sends `bytes` when the guard wants nothing; the answer is whole, and otherwise as it came.
    pub fn containers_turn(&self, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let command = Code::CONTAINERS;
        let poisoned = || Error::Broken { command };
        let mut connection = self.connection.lock().map_err(|_| poisoned())?;
        while self.urgent.load(Ordering::SeqCst) > 0 {
            connection = self.free.wait(connection).map_err(|_| poisoned())?;
        }
        connection.transmit(command, bytes)
    }

    fn guards_turn(&self, command: Code, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        self.urgent.fetch_add(1, Ordering::SeqCst);
        let answer = match self.connection.lock() {
            Ok(mut connection) => connection.transmit(command, bytes),
            Err(_) => Err(Error::Broken { command }),
        };
        self.urgent.fetch_sub(1, Ordering::SeqCst);
        self.free.notify_all();
        answer
    }

    /// Nothing more is sent, by anybody.
    pub fn give_up(&self) {
        if let Ok(mut connection) = self.connection.lock() {
            connection.broken = true;
        }
    }
}

impl Channel {
    /// A socket that accepts no time limit counts as broken: nothing is ever sent over it.
    pub fn new(stream: UnixStream) -> Self {
        let limited = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        let connection = Connection {
            stream,
            broken: limited.is_err(),
        };
        Self {
            line: Arc::new(Line {
                connection: Mutex::new(connection),
                urgent: AtomicUsize::new(0),
                free: Condvar::new(),
            }),
        }
    }

    /// For the container's commands.
    pub fn line(&self) -> Arc<Line> {
        Arc::clone(&self.line)
    }

    /// A command whose response parameters `parse` uses up.
    pub fn read<T>(
        &mut self,
        command: &Command,
        parse: impl FnOnce(Option<u32>, &mut Reader<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let response = self.execute(command)?;
        let mut reader = Reader::new(&response.parameters);
        parse(response.handle, &mut reader)
            .and_then(|value| reader.finish().map(|()| value))
            .map_err(|what| self.malformed(command.code(), what))
    }

    /// Sends the command until the TPM has executed it. RETRY happens in practice: at the first
    /// use of a key that is under dictionary attack protection.
    fn execute(&mut self, command: &Command) -> Result<Response, Error> {
        let code = command.code();
        let bytes = command.encode();
        let mut attempt = 1;
        loop {
            let answer = self.line.guards_turn(code, &bytes)?;
            match command
                .decode(&answer)
                .map_err(|what| self.malformed(code, what))?
            {
                Ok(response) => return Ok(response),
                Err(rc) if !rc.asks_for_retry() => {
                    return Err(Error::Refused { command: code, rc });
                }
                Err(rc) if attempt == ATTEMPTS => return Err(Error::Busy { command: code, rc }),
                Err(_) => std::thread::sleep(pause(attempt)),
            }
            attempt += 1;
        }
    }

    /// The answer cannot be believed, nor any after it.
    pub fn malformed(&mut self, command: Code, what: Malformed) -> Error {
        self.line.give_up();
        Error::Malformed { command, what }
    }
}

impl Connection {
    /// One command in one write, one response.
    fn transmit(&mut self, command: Code, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        if self.broken {
            return Err(Error::Broken { command });
        }
        if bytes.len() > MAX_MESSAGE {
            return Err(Error::Malformed {
                command,
                what: Malformed::Size(bytes.len()),
            });
        }
        let answer = self
            .stream
            .write_all(bytes)
            .map_err(|source| io_error(command, source))
            .and_then(|()| self.receive(command));
        self.broken = answer.is_err();
        answer
    }

    fn receive(&mut self, command: Code) -> Result<Vec<u8>, Error> {
        let mut buffer = [0; MAX_MESSAGE];
        let mut have = 0;
        let mut size = None;
        let start = Instant::now();
        loop {
            if start.elapsed() > PATIENCE {
                return Err(Error::Timeout { command });
            }
            match self.stream.read(buffer.get_mut(have..).unwrap_or_default()) {
                Ok(0) => return Err(Error::Closed { command }),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(io_error(command, source)),
            }
            let malformed = |what| Err(Error::Malformed { command, what });
            if size.is_none() && have >= HEADER {
                let declared = declared_size(&buffer);
                if !(HEADER..=MAX_MESSAGE).contains(&declared) {
                    return malformed(Malformed::Size(declared));
                }
                size = Some(declared);
            }
            match size {
                Some(size) if have > size => return malformed(Malformed::Trailing(have - size)),
                Some(size) if have == size => return Ok(buffer[..size].to_vec()),
                _ => {}
            }
        }
    }
}

/// The size field of a response header.
fn declared_size(buffer: &[u8; MAX_MESSAGE]) -> usize {
    let mut reader = Reader::new(buffer);
    reader
        .u16()
        .and_then(|_| reader.u32())
        .map_or(0, |size| size as usize)
}

fn io_error(command: Code, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout { command },
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => Error::Closed { command },
        _ => Error::Io { command, source },
    }
}

/// None before the second attempt, then 1, 2, 4 … 64 ms.
pub fn pause(attempt: u32) -> Duration {
    match attempt {
        1 => Duration::ZERO,
        n => Duration::from_millis(1 << (n - 2).min(6)),
    }
}
