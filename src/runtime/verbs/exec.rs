//! `exec`: a further process in the container, admitted like the first one.

use crate::{
    backend::{Backend, ExecOptions},
    bundle::{SealedBundle, check_process, parse_process},
    cli::{Exec, Globals},
    launch, lending,
    report::LogFormat,
    state::{State, Status},
    term::{self, Laid, Signals, Terminal},
};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Capabilities, Capability, Process};
use std::{fs::File, io::Read, os::fd::AsFd, path::Path};
use verify::id::ContainerId;

const MAX_PROCESS_BYTES: u64 = 4 << 20;

pub fn run(
    id: &ContainerId,
    request: &Exec,
    process: Option<Vec<u8>>,
    globals: &Globals,
) -> Result<u8> {
    let state = State::find(&globals.root, id)?;
    match state.status()? {
        Status::Created | Status::Running => {}
        Status::Paused if request.ignore_paused => {}
        Status::Paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Creating => bail!("cannot exec in a container that is being created"),
    }
    let mut process = match process {
        Some(bytes) => serde_json::from_slice(&bytes)
            .and_then(parse_process)
            .context("the process is malformed")?,
        None => from_flags(request, &state)?,
    };
    check_process(&process)?;
    let wanted = process.terminal().unwrap_or(false);
    let terminal = Terminal::choose(wanted, request.console_socket.as_deref(), request.detach)?;
    let agreed = launch::before_exec(&state, &process)?;
    if state.lent {
        // like the first process; not before it was judged by what the caller wants
        lending::name_in(&mut process);
    }
    let signals = if request.detach {
        None
    } else {
        Some(Signals::block()?)
    };
    let options = ExecOptions {
        preserve_fds: request.preserve_fds,
        terminal,
        detached: request.detach,
        pid_file: request.pid_file.clone(),
        pidfd_socket: request.pidfd_socket.clone(),
        ignore_paused: request.ignore_paused,
        cgroup: request.cgroup.clone(),
        log: globals.report.log.clone(),
        log_is_json: globals.report.format == LogFormat::Json,
        debug: globals.debug,
    };
    // the external backend becomes this process, and lays its own
    let ours = matches!(state.backend, Backend::Libcontainer);
    let laid = (ours && !request.detach && options.terminal == Terminal::None)
        .then(Laid::lay)
        .transpose()?;
    let made = state.backend.exec(&state, process, &agreed, &options)?;
    let pipes = laid.map(Laid::take).transpose()?;
    // our unreaped child: its number cannot be another's
    let pid = rustix::process::Pid::from_raw(made.pid).context("the process has no pid")?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .context("cannot open the process")?;
    let announced = announce(request, made.pid, pidfd.as_fd());
    if let Err(error) = announced {
        crate::sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL).ok();
        return Err(error);
    }
    match signals {
        None => Ok(0),
        Some(signals) => {
            let ended = term::foreground(&pidfd, &signals, made.served(pipes))?;
            Ok(ended.finish())
        }
    }
}

fn announce(request: &Exec, pid: i32, pidfd: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    if let Some(path) = &request.pidfd_socket {
        term::send_pidfd(path, pidfd)?;
    }
    match &request.pid_file {
        Some(path) => launch::write_pid_file(path, pid),
        None => Ok(()),
    }
}

/// The file of `--process`: read before inherited descriptors are closed, since it may be one of them.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.take(MAX_PROCESS_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= MAX_PROCESS_BYTES,
        "{} is larger than {MAX_PROCESS_BYTES} bytes",
        path.display()
    );
    Ok(bytes)
}

/// The container's own process with the flags' changes (runc, exec.go, getProcess).
fn from_flags(request: &Exec, state: &State) -> Result<Process> {
    let spec = SealedBundle::read_spec(&state.run_dir())?;
    let mut process = spec
        .process()
        .clone()
        .context("process property must not be empty")?;
    process.set_args(Some(request.command.clone()));
    process.set_terminal(Some(request.tty));
    process.set_console_size(None);
    if let Some(cwd) = &request.cwd {
        process.set_cwd(cwd.into());
    }
    if let Some(profile) = &request.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &request.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if request.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(request.env.iter().cloned());
    process.set_env(Some(env));
    if let Some((uid, gid)) = request.user {
        let user = process.user_mut();
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    if !request.additional_gids.is_empty() {
        let user = process.user_mut();
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&request.additional_gids);
        user.set_additional_gids(Some(gids));
    }
    add_capabilities(&mut process, &request.cap)?;
    Ok(process)
}

/// Bounding, effective, permitted; ambient only where something is inheritable (runc 1.1.2 and later).
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut more = Capabilities::new();
    for name in names {
        let capability: Capability = serde_json::from_value(name.to_ascii_uppercase().into())
            .with_context(|| format!("unknown capability {name:?}"))?;
        more.insert(capability);
    }
    let mut caps = process.capabilities().clone().unwrap_or_default();
    let joined =
        |set: &Option<Capabilities>| Some(set.iter().flatten().chain(&more).copied().collect());
    let (bounding, effective, permitted) = (
        joined(caps.bounding()),
        joined(caps.effective()),
        joined(caps.permitted()),
    );
    if caps
        .inheritable()
        .as_ref()
        .is_some_and(|set| !set.is_empty())
    {
        let ambient = joined(caps.ambient());
        caps.set_ambient(ambient);
    }
    caps.set_bounding(bounding);
    caps.set_effective(effective);
    caps.set_permitted(permitted);
    process.set_capabilities(Some(caps));
    Ok(())
}
