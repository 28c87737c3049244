//! The verbs of runc, each a short story; here is what all of them begin with.

mod create;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;

use crate::{
    cli::{self, Globals, Request, UsageError},
    report, sys,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    ffi::{CString, OsString},
    io::Write,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    process::ExitCode,
};

/// Reads the command line, seals the process off from its caller, does what was asked.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let invocation = cli::parse(&args, &cwd);
    let (globals, verb) = (invocation.globals, invocation.verb);
    let result = match invocation.request {
        Ok(request) => globals
            .report
            .open()
            .and_then(|()| hygiene(&request))
            .and_then(|given| run(request, given, &globals)),
        Err(error) => {
            // a wrong id is a value, not a wrong use
            if !matches!(error, UsageError::Id(_)) {
                say(&format!(
                    "Incorrect Usage: {error}\n\n{}",
                    cli::usage(&called(), verb)
                ))
                .ok();
            }
            Err(error.into())
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            globals.report.error(verb, &error);
            ExitCode::from(report::exit_code(verb, &error))
        }
    }
}

/// One of attestrun's own verbs: what it needs comes by standard input, and nothing else is inherited.
pub fn own(name: &str, run: impl FnOnce() -> Result<()>) -> ExitCode {
    match seal_off().and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Nothing of the caller is left in this process, and it is the host's root.
pub fn seal_off() -> Result<()> {
    sys::clear_environment(&[]);
    let sealed_off = sys::close_from(3).context("cannot close inherited descriptors");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    sealed_off.and_then(|()| ensure_host_root())
}

/// Before anything is opened: no descriptor, variable or mask of the caller reaches what we start,
/// and no container can write to our executable. Returns the file that the request names.
fn hygiene(request: &Request) -> Result<Option<Vec<u8>>> {
    let (preserve, makes_a_process) = match request {
        Request::Create(create) => (create.preserve_fds, true),
        Request::Run(run) => (run.create.preserve_fds, true),
        Request::Exec(_, exec) => (exec.preserve_fds, true),
        _ => (0, false),
    };
    if makes_a_process {
        // the marker only ever makes this fail; it comes from the environment, so it decides nothing
        let marked = std::env::var_os("ATTESTRUN_PROTECTED").is_some();
        let argv: Vec<CString> = std::env::args_os()
            .filter_map(|a| CString::new(a.as_bytes()).ok())
            .collect();
        let env = std::env::vars_os().filter(|(n, _)| n == "LISTEN_FDS" || n == "LISTEN_PID");
        let env: Vec<CString> = env
            .filter_map(|(n, v)| CString::new([n.as_bytes(), b"=", v.as_bytes()].concat()).ok())
            .collect();
        sys::protect_executable(&argv, &env, marked)
            .context("cannot protect attestrun's executable from containers")?;
    }
    // it may be one of the descriptors that are closed below, as `--process <(…)` is
    let given = match request {
        Request::Exec(_, exec) => exec.process.as_deref().map(exec::read),
        Request::Update(_, update) => update.resources.as_deref().map(update::read),
        _ => None,
    };
    let given = given.transpose()?;
    let listen = if makes_a_process { listen_fds() } else { 0 };
    sys::clear_environment(if listen > 0 { &["LISTEN_FDS"] } else { &[] });
    let kept = preserve
        .checked_add(listen)
        .context("--preserve-fds is too large")?;
    let first = kept
        .checked_add(3)
        .filter(|n| i32::try_from(*n).is_ok())
        .context("--preserve-fds is too large")?;
    for fd in 3..first {
        // a number that is free now would later be a descriptor of ours, and reach the container
        ensure!(
            sys::is_open(fd as i32),
            "unable to stat preserved-fd {} (of {kept})",
            fd - 2
        );
    }
    sys::close_from(first).context("cannot close inherited descriptors")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(given)
}

/// Sockets that were passed to exactly this process (sd_listen_fds(3)).
fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    if number("LISTEN_PID") == Some(std::process::id()) {
        number("LISTEN_FDS").unwrap_or(0)
    } else {
        0
    }
}

fn run(request: Request, given: Option<Vec<u8>>, globals: &Globals) -> Result<u8> {
    match &request {
        Request::Features
        | Request::Spec { .. }
        | Request::Version
        | Request::Help(_)
        | Request::Unsupported(_) => {}
        _ => ensure_host_root()?,
    }
    match request {
        Request::Create(create) => create::run(&create, globals).map(|()| 0),
        Request::Run(run) => run::run(&run, globals),
        Request::Start(id) => start::run(&id, globals).map(|()| 0),
        Request::State(id) => state::run(&id, globals).map(|()| 0),
        Request::Kill { id, signal, all } => kill::run(&id, &signal, all, globals).map(|()| 0),
        Request::Delete { id, force } => delete::run(&id, force, globals).map(|()| 0),
        Request::Exec(id, exec) => exec::run(&id, &exec, given, globals),
        Request::List { format, quiet } => list::run(format, quiet, globals).map(|()| 0),
        Request::Ps {
            id,
            format,
            options,
        } => ps::run(&id, format, &options, globals).map(|()| 0),
        Request::Pause(id) => pause::run(&id, true, globals).map(|()| 0),
        Request::Resume(id) => pause::run(&id, false, globals).map(|()| 0),
        Request::Update(id, update) => update::run(&id, &update, given, globals).map(|()| 0),
        Request::Events {
            id,
            stats,
            interval,
        } => events::run(&id, stats, interval, globals).map(|()| 0),
        Request::Features => features::run().map(|()| 0),
        Request::Spec { bundle, rootless } => spec::run(&bundle, rootless).map(|()| 0),
        Request::Version => say(&version()).map(|()| 0),
        Request::Help(verb) => say(&cli::usage(&called(), verb.unwrap_or_default())).map(|()| 0),
        Request::Unsupported(verb) => {
            bail!(
                "{verb} is refused: a container's memory kept on disk could come back under measurements not its own"
            )
        }
    }
}

/// Rootless containers are not attested (README, "what it does not promise").
fn ensure_host_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "attestrun must be run as root: rootless containers are not attested"
    );
    let map =
        std::fs::read_to_string("/proc/self/uid_map").context("cannot read /proc/self/uid_map")?;
    // the initial user namespace maps every uid to itself (user_namespaces(7))
    let initial = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    ensure!(
        initial,
        "attestrun must be run in the initial user namespace: rootless containers are not attested"
    );
    Ok(())
}

/// go-runc demands that the first line begins with `runc version`, and is told whose interface this is;
/// dockerd takes the last line with `version` for name and number; podman and CRI-O show it all.
fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("ATTESTRUN_COMMIT").unwrap_or(version);
    format!(
        "runc version {RUNC_INTERFACE}+attestrun\ncommit: {commit}\nspec: {}\nsha256: {}\nattestrun version {version}\n",
        oci_spec::runtime::VERSION,
        content::sha::implementation()
    )
}

/// The version of runc that the tests compare this program with.
const RUNC_INTERFACE: &str = "1.1.5";

/// The name that this program was called by, as its usage text has it.
fn called() -> String {
    let name = std::env::args_os().next().map(PathBuf::from);
    let name = name.and_then(|n| Some(n.file_name()?.to_string_lossy().into_owned()));
    name.unwrap_or_else(|| "attestrun".to_owned())
}

/// Writes to standard output; a closed pipe is an error, not a panic.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}
