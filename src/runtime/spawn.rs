//! Every process that attestrun starts: absolute paths, an empty environment, no inherited descriptor
//! but those named here.
#![allow(clippy::disallowed_methods)] // this is the room that the lint sends everybody to

use anyhow::{Context, Result};
use oci_spec::runtime::Hook;
use std::{
    ffi::OsString,
    fs::File,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// This very executable, so that one digest covers runtime, keeper and guard.
const MYSELF: &str = "/proc/self/exe";

/// `attestrun keeper` with `channel` as standard input. It has its own file for complaints: our standard
/// error is the container's, or the engine waits for its end.
pub fn keeper(channel: OwnedFd, log: File) -> Result<Child> {
    let mut command = Command::new(MYSELF);
    command
        .arg0("attestrun")
        .arg("keeper")
        .stdin(Stdio::from(channel));
    alone(command, log)
        .spawn()
        .context("cannot start `attestrun keeper`")
}

/// The host service, which outlives us.
pub fn host_service(program: &Path, option: &str, log: File) -> Result<Child> {
    let mut command = Command::new(program);
    command.arg(option).stdin(Stdio::null());
    alone(command, log)
        .spawn()
        .with_context(|| format!("cannot start the host service {}", program.display()))
}

/// This program as the host service that its nurse holds by `channel`; its complaints go where ours go.
pub fn nursed_service(option: &str, channel: OwnedFd) -> Result<Child> {
    let mut command = Command::new(MYSELF);
    command
        .arg0(std::env::args_os().next().unwrap_or_default())
        .arg(option)
        .env_clear()
        .stdin(Stdio::from(channel))
        .stdout(Stdio::null());
    command.spawn().context("cannot start the host service")
}

fn alone(mut command: Command, log: File) -> Command {
    command
        .env_clear()
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(log);
    command
}

/// What the host service's program prints when it is run with `word`; its complaints go where ours go.
pub fn host_service_says(program: &Path, word: &str) -> Result<String> {
    let output = Command::new(program)
        .arg(word)
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot execute the host service {}", program.display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{} {word} ended with {}",
        program.display(),
        output.status
    );
    String::from_utf8(output.stdout).context("its answer is not valid UTF-8")
}

/// Becomes the host service; returns only if that fails.
pub fn become_host_service(program: &Path, words: &[OsString]) -> anyhow::Error {
    let error = Command::new(program).args(words).env_clear().exec();
    anyhow::Error::new(error).context(format!(
        "cannot execute the host service {}",
        program.display()
    ))
}

/// A container's TPM: no privilege, a uid of its own, the current directory as its state.
/// `arguments` name an inherited descriptor, which the caller opened without close-on-exec. It dies with
/// its guard: `--terminate` alone does not end an swtpm (0.7) whose client closes before an answer.
/// (swtpm's own `--runas` would be quicker, but a change of uid forgets the parent-death signal.)
pub fn swtpm(program: &Path, arguments: &[OsString], uid: u32, log: &Path) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .context("cannot open the log of swtpm")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .uid(uid)
        .gid(uid)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    crate::sys::prepare_child(&mut command, true);
    command
        .spawn()
        .with_context(|| format!("cannot start the vTPM {}", program.display()))
}

/// What `PROGRAM --version` prints.
pub fn version_of(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .output();
    let output = output.with_context(|| format!("cannot run {} --version", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `PROGRAM features` prints, if it knows that verb (runc since 1.1).
pub fn features_of(program: &Path) -> Option<serde_json::Value> {
    let mut command = Command::new(program);
    command
        .arg("features")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = command.output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// The environment of the external backend: nothing but where its own helpers are found.
pub const PATH_FOR_BACKEND: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the backend gets as standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// Ours: they become the container's.
    Ours,
    Nothing,
}

/// Runs the external backend to its end. It dies with us, so that an engine that kills us kills it.
pub fn backend(
    program: &Path,
    arguments: &[OsString],
    streams: Streams,
) -> Result<std::process::ExitStatus> {
    let (name, value) = PATH_FOR_BACKEND.split_once('=').unwrap_or_default();
    let mut command = Command::new(program);
    command
        .arg0("runc")
        .args(arguments)
        .env_clear()
        .env(name, value);
    if streams == Streams::Nothing {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
    }
    crate::sys::prepare_child(&mut command, true);
    command
        .status()
        .with_context(|| format!("cannot execute the backend {}", program.display()))
}

/// The host's `ps` with `options`: its table.
pub fn ps(options: &[String]) -> Result<String> {
    let mut command = Command::new("/usr/bin/ps");
    command
        .args(options)
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    crate::sys::prepare_child(&mut command, true);
    let output = command.output().context("cannot execute /usr/bin/ps")?;
    anyhow::ensure!(
        output.status.success(),
        "/usr/bin/ps ended with {}",
        output.status
    );
    String::from_utf8(output.stdout).context("the output of ps is not valid UTF-8")
}

/// A hook of the configuration (runtime-spec, "POSIX-platform Hooks"), run to its end as `program`: it
/// reads `state` and has `env` if it names no environment of its own.
pub fn hook(hook: &Hook, program: &Path, env: &[String], state: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    match hook.args().as_deref().and_then(<[_]>::split_first) {
        Some((name, args)) => command.arg0(name).args(args),
        None => command.arg0(hook.path()),
    };
    let env = hook.env().as_deref().unwrap_or(env);
    command
        .env_clear()
        .envs(env.iter().filter_map(|e| e.split_once('=')))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let failed = |e: std::io::Error| format!("{}: {e}", hook.path().display());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // a hook need not read what it is told
        std::io::Write::write_all(&mut stdin, state.as_bytes()).ok();
    }
    let seconds = hook.timeout().and_then(|s| u64::try_from(s).ok());
    let deadline = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let status = loop {
        match (child.try_wait().map_err(failed)?, deadline) {
            (Some(status), _) => break status,
            (None, None) => break child.wait().map_err(failed)?,
            (None, Some(end)) if Instant::now() > end => {
                child.kill().and_then(|()| child.wait()).map_err(failed)?;
                return Err(format!("{} did not end in time", hook.path().display()));
            }
            (None, Some(_)) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    match (status.success(), status.signal()) {
        (true, _) => Ok(()),
        (false, Some(signal)) => Err(format!("signal: {}", crate::sys::signal_words(signal))),
        (false, None) => Err(format!("{status}")),
    }
}
