//! Every process that the tests start is started here: absolute program, cleared environment, a time
//! limit, and output to files (a container inherits its runtime's stdout, so a pipe would never end).

use crate::machine::patient;
use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Where engines and tools are looked for: the distribution's own first.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";
const LIMIT: Duration = Duration::from_secs(60);

/// A command line, to be run to its end.
#[derive(Clone)]
pub struct Cmd {
    args: Vec<OsString>,
    cwd: Option<PathBuf>,
    stdin: Option<PathBuf>,
    limit: Duration,
}

/// `cmd!("podman", "run", name)`: each argument is anything that turns into an `OsString`.
#[macro_export]
macro_rules! cmd {
    ($program:expr $(, $arg:expr)* $(,)?) => {
        $crate::spawn::Cmd::new($program)$(.arg($arg))*
    };
}

impl Cmd {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            args: vec![program.as_ref().to_owned()],
            cwd: None,
            stdin: None,
            limit: LIMIT,
        }
    }
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }
    /// The same as the command of another program: `program args… this`.
    pub fn within<S: AsRef<OsStr>>(
        mut self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut all = Self::new(program).args(args).args;
        all.append(&mut self.args);
        self.args = all;
        self
    }
    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = Some(dir.as_ref().to_owned());
        self
    }
    pub fn stdin(mut self, file: impl AsRef<Path>) -> Self {
        self.stdin = Some(file.as_ref().to_owned());
        self
    }
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    #[allow(clippy::disallowed_methods)] // the one place
    fn command(&self) -> Result<Command> {
        let program = Path::new(&self.args[0]);
        let program = if program.is_absolute() {
            program.to_owned()
        } else {
            which(program).with_context(|| format!("{} is not installed", program.display()))?
        };
        let mut command = Command::new(program);
        command
            .args(&self.args[1..])
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LC_ALL", "C");
        command.current_dir(self.cwd.as_deref().unwrap_or(Path::new("/")));
        command.stdin(match &self.stdin {
            Some(path) => Stdio::from(File::open(path)?),
            None => Stdio::null(),
        });
        Ok(command)
    }

    /// As a shell reads it.
    pub fn quoted(&self) -> String {
        let quote = |arg: &OsString| format!("'{}'", arg.to_string_lossy().replace('\'', "'\\''"));
        self.args.iter().map(quote).collect::<Vec<_>>().join(" ")
    }

    /// Starts it, its output going to files.
    pub fn start(&self) -> Result<Running> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let base = std::env::temp_dir().join(format!("e2e-{}-{serial}", std::process::id()));
        let (out, err) = (base.with_extension("out"), base.with_extension("err"));
        let child = self
            .command()?
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .spawn()
            .with_context(|| format!("cannot start {self}"))?;
        Ok(Running {
            child,
            what: self.to_string(),
            out,
            err,
            since: Instant::now(),
            reaped: false,
        })
    }

    /// Runs it to its end, whatever that is.
    pub fn output(&self) -> Result<Output> {
        self.start()?.finish(self.limit)
    }

    /// Runs it; anything but success is an error with its output.
    pub fn ok(&self) -> Result<Output> {
        let output = self.output()?;
        ensure!(output.status.success(), "{output}");
        Ok(output)
    }

    /// Runs it; success is an error.
    pub fn fails(&self) -> Result<Output> {
        let output = self.output()?;
        ensure!(
            !output.status.success(),
            "this should have failed: {output}"
        );
        Ok(output)
    }

    /// Runs it; it must end with `code` (128 + n for a signal).
    pub fn exits(&self, code: i32) -> Result<Output> {
        let output = self.output()?;
        ensure!(
            output.code() == code,
            "expected exit status {code}: {output}"
        );
        Ok(output)
    }

    /// Runs it, waiting without a pause: how long it took. Its stdout goes nowhere.
    pub fn timed(&self) -> Result<Duration> {
        let errors = std::env::temp_dir().join("e2e-timed.err");
        let mut command = self.command()?;
        command.stdout(Stdio::null()).stderr(File::create(&errors)?);
        let since = Instant::now();
        let status = command
            .status()
            .with_context(|| format!("cannot start {self}"))?;
        let took = since.elapsed();
        ensure!(
            status.success(),
            "`{self}` ended with {status}: {}",
            text(&errors)
        );
        Ok(took)
    }

    /// Runs it and forwards its output: the outer shell of this program.
    pub fn passthrough(&self) -> Result<Child> {
        self.command()?
            .spawn()
            .with_context(|| format!("cannot start {self}"))
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, arg) in self.args.iter().enumerate() {
            let gap = if n == 0 { "" } else { " " };
            write!(f, "{gap}{}", arg.to_string_lossy())?;
        }
        Ok(())
    }
}

/// A started process; dropped, it is ended.
pub struct Running {
    child: Child,
    what: String,
    out: PathBuf,
    err: PathBuf,
    since: Instant,
    reaped: bool,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
    pub fn what(&self) -> &str {
        &self.what
    }
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.reaped {
            kill(Pid::from_raw(self.pid()), signal)
                .with_context(|| format!("{signal} to {}", self.what))?;
        }
        Ok(())
    }
    pub fn is_running(&mut self) -> Result<bool> {
        if !self.reaped && self.child.try_wait()?.is_some() {
            self.reaped = true;
        }
        Ok(!self.reaped)
    }
    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.reaped {
            return None;
        }
        let status = self.child.try_wait().ok().flatten();
        self.reaped = status.is_some();
        status
    }
    /// What it has written so far, both streams.
    pub fn written(&self) -> String {
        format!("{}{}", text(&self.out), text(&self.err))
    }

    /// Waits for its end; at the limit it is killed and the wait is an error.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let limit = patient(limit);
        let mut pause = Duration::from_micros(500);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if self.since.elapsed() > limit {
                let written = self.written();
                bail!(
                    "`{}` did not end within {} s; so far: {written}",
                    self.what,
                    limit.as_secs()
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        };
        self.reaped = true;
        Ok(Output {
            what: self.what.clone(),
            status,
            stdout: text(&self.out),
            stderr: text(&self.err),
        })
    }

    /// Ends it as an administrator would: TERM, then KILL after `grace`.
    pub fn stop(mut self, grace: Duration) -> Result<()> {
        if !self.is_running()? {
            return Ok(());
        }
        self.signal(Signal::SIGTERM)?;
        let since = Instant::now();
        while self.is_running()? && since.elapsed() < patient(grace) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(()) // Drop kills what is left
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = std::fs::remove_file(&self.out);
        let _ = std::fs::remove_file(&self.err);
    }
}

/// How a command ended and what it said.
pub struct Output {
    what: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// As a shell reports it: 128 + n for a signal.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
    /// Both streams.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
    /// One of `words` (or all their alternatives, separated by `|`) is in the output.
    pub fn says(&self, words: &str) -> Result<&Self> {
        let all = self.all();
        ensure!(
            words.split('|').any(|w| all.contains(w)),
            "expected the words `{words}`: {self}"
        );
        Ok(self)
    }
    pub fn says_not(&self, words: &str) -> Result<&Self> {
        ensure!(
            !self.all().contains(words),
            "unexpected words `{words}`: {self}"
        );
        Ok(self)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {}", self.what, self.code())?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n    {name}: {}", text.trim().replace('\n', "\n    "))?;
            }
        }
        Ok(())
    }
}

/// The program of this name in [`PATH`].
pub fn which(name: impl AsRef<Path>) -> Option<PathBuf> {
    PATH.split(':')
        .map(|dir| Path::new(dir).join(&name))
        .find(|p| p.is_file())
}

fn text(path: &Path) -> String {
    std::fs::read(path)
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .unwrap_or_default()
}
