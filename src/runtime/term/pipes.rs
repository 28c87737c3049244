//! The foreground without a terminal: pipes between the process and our standard streams, so that it
//! never holds the caller's files or terminal (runc, setupProcessPipes).

use anyhow::{Context, Result};
use rustix::{
    io::fcntl_dupfd_cloexec,
    pipe::{PipeFlags, pipe_with},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout},
};
use std::{
    fs::File,
    io::copy,
    os::fd::OwnedFd,
    thread::{JoinHandle, spawn},
};

/// Our ends.
#[derive(Debug)]
pub struct Pipes {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// While this lives, the process's ends stand where our standard streams were, for it to inherit.
pub struct Laid {
    pipes: Option<Pipes>,
    kept: [OwnedFd; 3],
}

impl Laid {
    pub fn lay() -> Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe");
        let ((stdin_end, stdin_ours), (stdout_ours, stdout_end), (stderr_ours, stderr_end)) =
            (pipe()?, pipe()?, pipe()?);
        let keep = |fd| fcntl_dupfd_cloexec(fd, 3).context("cannot keep a standard stream");
        let laid = Self {
            kept: [keep(stdin())?, keep(stdout())?, keep(stderr())?],
            pipes: Some(Pipes {
                stdin: stdin_ours,
                stdout: stdout_ours,
                stderr: stderr_ours,
            }),
        };
        dup2_stdin(stdin_end)
            .and_then(|()| dup2_stdout(stdout_end))
            .and_then(|()| dup2_stderr(stderr_end))
            .context("cannot lay the process's standard streams")?;
        Ok(laid)
    }

    /// The process has inherited its ends: ours are our own again.
    pub fn take(mut self) -> Result<Pipes> {
        self.pipes.take().context("the pipes are gone")
    }
}

impl Drop for Laid {
    fn drop(&mut self) {
        let [stdin, stdout, stderr] = &self.kept;
        // three open descriptors: this does not fail
        let _ = (dup2_stdin(stdin), dup2_stdout(stdout), dup2_stderr(stderr));
    }
}

impl Pipes {
    /// Copies until each end closes, whoever is slow: one thread for each direction. Nothing forks
    /// without exec from here on.
    pub fn copy(self) -> Result<Copying> {
        let own = |fd| fcntl_dupfd_cloexec(fd, 3).context("cannot duplicate a standard stream");
        let (stdin, stdout, stderr) = (own(stdin())?, own(stdout())?, own(stderr())?);
        // nobody waits for the input's end: the caller may never close it
        joined(stdin, self.stdin);
        Ok(Copying([
            joined(self.stdout, stdout),
            joined(self.stderr, stderr),
        ]))
    }
}

fn joined(from: OwnedFd, to: OwnedFd) -> JoinHandle<()> {
    spawn(move || {
        // an end that breaks is an end, for the other side too
        copy(&mut File::from(from), &mut File::from(to)).ok();
    })
}

/// Output on its way.
pub struct Copying([JoinHandle<()>; 2]);

impl Copying {
    /// Returns when all that the process, and whoever it left its streams to, wrote has been passed on.
    pub fn finish(self) {
        for direction in self.0 {
            direction.join().ok();
        }
    }
}
