//! An external runc, called by absolute path with an argv rendered anew, its state below our run
//! directory, and our sealed bundle: it sees nothing that we did not parse.

use super::{ExecOptions, Made, Options};
use crate::{
    report::Said,
    spawn,
    state::State,
    sys,
    term::{self, Terminal},
};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxResources, Process};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    ffi::{CString, OsString},
    fs::{self, File},
    io::Write,
    os::{fd::AsRawFd, unix::ffi::OsStrExt, unix::net::UnixListener},
    path::{Path, PathBuf},
};

/// Flags before the verb: where runc keeps its state and what it logs.
fn globals(state: &State, log: Option<&Path>, json: bool, debug: bool) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--root".into(), state.run_dir().backend().into()];
    if let Some(log) = log {
        args.extend(["--log".into(), log.into()]);
    }
    args.extend([
        "--log-format".into(),
        if json { "json" } else { "text" }.into(),
    ]);
    if debug {
        args.push("--debug".into());
    }
    if state.systemd_cgroup {
        args.push("--systemd-cgroup".into());
    }
    args
}

pub fn create(runc: &Path, state: &State, options: Options, terminal: Terminal) -> Result<Made> {
    let dir = state.run_dir();
    let mut args: Vec<OsString> = vec!["create".into(), "--bundle".into(), dir.bundle().into()];
    if options.no_pivot {
        args.push("--no-pivot".into());
    }
    if options.no_new_keyring {
        args.push("--no-new-keyring".into());
    }
    if options.preserve_fds > 0 {
        args.extend([
            "--preserve-fds".into(),
            options.preserve_fds.to_string().into(),
        ]);
    }
    // in the foreground we wait for init, in the background its number is passed on at once
    if !options.detached {
        become_subreaper()?;
    }
    make(runc, state, args, &terminal, options.debug)
}

/// A process that runc makes is its child and outlives it: as a subreaper we can wait for it.
fn become_subreaper() -> Result<()> {
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .context("cannot become a subreaper")
}

/// Has runc make a process by `create` or `exec --detach`: its number, and the terminal if it is ours.
fn make(
    runc: &Path,
    state: &State,
    mut args: Vec<OsString>,
    terminal: &Terminal,
    debug: bool,
) -> Result<Made> {
    let dir = state.run_dir();
    let own = std::process::id();
    let pid_file = dir.path().join(format!("backend-{own}.pid"));
    args.extend(["--pid-file".into(), pid_file.clone().into()]);
    let console = match terminal {
        Terminal::None => None,
        Terminal::Socket(path) => {
            args.extend(["--console-socket".into(), path.into()]);
            None
        }
        Terminal::Own => {
            let path = dir.path().join(format!("console-{own}.sock"));
            args.extend(["--console-socket".into(), (&path).into()]);
            let listener = UnixListener::bind(&path)
                .with_context(|| format!("cannot listen at {}", path.display()))?;
            Some((listener, path))
        }
    };
    args.push(state.id.as_str().into());
    let called = call(runc, state, &args, spawn::Streams::Ours, debug);
    let text = fs::read_to_string(&pid_file);
    fs::remove_file(&pid_file).ok();
    if let Some((_, path)) = &console {
        fs::remove_file(path).ok();
    }
    called?;
    let text = text.with_context(|| format!("cannot read {}", pid_file.display()))?;
    let pid = text
        .trim()
        .parse()
        .with_context(|| format!("{} holds no pid", pid_file.display()))?;
    let master = match console {
        None => None,
        Some((listener, _)) => {
            let (socket, _) = listener
                .accept()
                .context("the backend did not send the console")?;
            term::receive(&socket).map(Some)?
        }
    };
    Ok(Made { pid, master })
}

/// `runc <verb...> <id>`, without streams of the container.
pub fn simple(runc: &Path, state: &State, verb: &[&str]) -> Result<()> {
    let mut args: Vec<OsString> = verb.iter().map(Into::into).collect();
    args.push(state.id.as_str().into());
    call(runc, state, &args, spawn::Streams::Nothing, false)
}

/// runc deletes a container whose cgroup others are in, and then complains that this is still there.
pub fn delete(runc: &Path, state: &State) -> Result<()> {
    let done = simple(runc, state, &["delete", "--force"]);
    let kept = state.run_dir().backend().join(state.id.as_str());
    if done.is_err() && !kept.exists() && !state.cgroup.anybody()?.is_empty() {
        return Ok(());
    }
    done
}

pub fn update(runc: &Path, state: &State, resources: &LinuxResources) -> Result<()> {
    let json = memory("resources", &serde_json::to_vec(resources)?)?;
    let path = format!("/proc/self/fd/{}", json.as_raw_fd());
    rustix::io::fcntl_setfd(&json, rustix::io::FdFlags::empty())?;
    let args = [
        "update".into(),
        "--resources".into(),
        path.into(),
        state.id.as_str().into(),
    ];
    call(runc, state, &args, spawn::Streams::Nothing, false)
}

/// Becomes runc: the same process, so that streams, pid file, exit code and the caller's hold on us
/// stay as they are. Only for a pidfd, which runc knows since 1.2 alone, it is called and we go on.
pub fn exec(runc: &Path, state: &State, process: &Process, options: &ExecOptions) -> Result<Made> {
    let json = memory("process", &serde_json::to_vec(process)?)?;
    rustix::io::fcntl_setfd(&json, rustix::io::FdFlags::empty())?;
    let json_path = format!("/proc/self/fd/{}", json.as_raw_fd());
    if options.pidfd_socket.is_some() {
        let mut args = vec!["exec".into(), "--detach".into()];
        args.extend(["--process".into(), json_path.into()]);
        common(&mut args, options);
        become_subreaper()?;
        return make(runc, state, args, &options.terminal, options.debug);
    }
    let mut args: Vec<OsString> = vec!["runc".into()];
    let log = options.log.as_deref();
    args.extend(globals(state, log, options.log_is_json, options.debug));
    args.extend(["exec".into(), "--process".into(), json_path.into()]);
    if options.detached {
        args.push("--detach".into());
    }
    if let Some(path) = &options.pid_file {
        args.extend(["--pid-file".into(), path.into()]);
    }
    if let Terminal::Socket(path) = &options.terminal {
        args.extend(["--console-socket".into(), path.into()]);
    }
    common(&mut args, options);
    args.push(state.id.as_str().into());
    let c_string = |s: &OsString| CString::new(s.as_bytes());
    let argv: Vec<CString> = args.iter().map(c_string).collect::<Result<_, _>>()?;
    let env = [CString::new(spawn::PATH_FOR_BACKEND)?];
    sys::reset_signals();
    let path = CString::new(runc.as_os_str().as_bytes())?;
    let errno = match nix::unistd::execve(&path, &argv, &env) {
        Ok(never) => match never {},
        Err(errno) => errno,
    };
    bail!("cannot execute the backend {}: {errno}", runc.display())
}

/// Flags of every `exec`.
fn common(args: &mut Vec<OsString>, options: &ExecOptions) {
    if options.preserve_fds > 0 {
        args.extend([
            "--preserve-fds".into(),
            options.preserve_fds.to_string().into(),
        ]);
    }
    if options.ignore_paused {
        args.push("--ignore-paused".into());
    }
    for cgroup in &options.cgroup {
        args.extend(["--cgroup".into(), cgroup.into()]);
    }
}

fn memory(name: &str, bytes: &[u8]) -> Result<File> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    std::io::Seek::rewind(&mut file)?;
    Ok(file)
}

/// What runc logged at the last [`call`].
pub fn log(state: &State) -> String {
    fs::read_to_string(log_of(state)).unwrap_or_default()
}

fn log_of(state: &State) -> PathBuf {
    state.run_dir().path().join("backend.log")
}

fn call(
    runc: &Path,
    state: &State,
    args: &[OsString],
    streams: spawn::Streams,
    debug: bool,
) -> Result<()> {
    let log = log_of(state);
    fs::remove_file(&log).ok();
    let mut all = globals(state, Some(&log), true, debug);
    all.extend_from_slice(args);
    let status = spawn::backend(runc, &all, streams)?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(&log).unwrap_or_default();
    match last_error(&text) {
        Some((message, Told::InWhole)) if streams == spawn::Streams::Ours => {
            Err(Said(message).into())
        }
        Some((message, _)) => bail!("{message}"),
        None => bail!("the backend {} ended with {status}", runc.display()),
    }
}

/// How much of its last error runc writes to standard error when it has a log.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    InWhole,
    /// What its C part said stands in the log alone.
    InPart,
}

/// The last error of runc's log, without its own "runc create failed: "; what its C part said before
/// (level fatal) is the reason of the reason.
fn last_error(log: &str) -> Option<(String, Told)> {
    let lines = serde_json::Deserializer::from_str(log).into_iter::<serde_json::Value>();
    let lines: Vec<_> = lines.map_while(Result::ok).collect();
    let last = |level: &str| {
        let of_level = lines.iter().filter(|l| l["level"] == level);
        of_level.filter_map(|l| l["msg"].as_str()).next_back()
    };
    let message = last("error")?;
    let cause = message
        .strip_prefix("runc ")
        .and_then(|m| m.split_once(" failed: "))
        .map_or(message, |(_, cause)| cause);
    Some(match last("fatal") {
        Some(fatal) => (format!("{cause}: {fatal}"), Told::InPart),
        None => (cause.to_owned(), Told::InWhole),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_taken_from_the_log() {
        let log = r#"{"level":"warning","msg":"w","time":"t"}
{"level":"error","msg":"runc create failed: unable to start container process: exec: \"x\": not found","time":"t"}
"#;
        assert_eq!(
            last_error(log).unwrap().0,
            "unable to start container process: exec: \"x\": not found"
        );
        assert_eq!(
            last_error(r#"{"level":"error","msg":"container does not exist"}"#).unwrap(),
            ("container does not exist".to_owned(), Told::InWhole)
        );
        let log = r#"{"level":"fatal","msg":"nsexec[7]: failed to update oom_score_adj"}
{"level":"error","msg":"runc create failed: can't get final child's PID from pipe: EOF"}"#;
        assert_eq!(
            last_error(log).unwrap(),
            (
                "can't get final child's PID from pipe: EOF: nsexec[7]: failed to update oom_score_adj"
                    .to_owned(),
                Told::InPart
            )
        );
        assert_eq!(last_error(""), None);
        assert_eq!(last_error("no json"), None);
    }
}
