//! The host service's program: it signs only what it computed itself. create hands it a claim, the agent
//! a nonce; nobody hands it qualifying data.

use super::{
    CONTROL, DIR, ENROLL, NURSED, ON_DEMAND, OfVtpm, PATIENCE, Request, challenge, core,
    core::Core, nurse,
};
use crate::{
    config::{self, Config},
    ending::has_ended,
    ipc::{Answer, Channel},
};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};
use verify::id::RunId;

/// For the agent's group.
const AGENT: &str = "/run/attestrun-host/agent.sock";
/// The host AIK: its blob and its authorization value, root's alone.
pub(super) const AIK: &str = "/var/lib/attestrun/host/aik";
/// The key of the CA of this host's vTPMs: the same.
pub(super) const VTPM_CA: &str = "/var/lib/attestrun/host/vtpm-ca";
/// Its certificate.
pub(super) const VTPM_CA_CERTIFICATE: &str = "/var/lib/attestrun/host/vtpm-ca.pem";

/// The secret of kept vTPMs, sealed, and which state each was left in.
pub(super) const VTPM_MASTER: &str = "/var/lib/attestrun/host/vtpm-master";
pub(super) const VTPM_LEDGER: &str = "/var/lib/attestrun/host/vtpm-ledger";

/// `attestrun-host [--on-demand | enroll]`.
pub fn main(arguments: &[OsString]) -> Result<()> {
    let words: Vec<_> = arguments.iter().filter_map(|a| a.to_str()).collect();
    match words[..] {
        [] if arguments.is_empty() => serve(),
        [ON_DEMAND] => nurse::run(),
        [NURSED] => {
            nurse::has_nurse()?;
            serve()
        }
        [ENROLL] => enroll(),
        _ => bail!("takes no arguments but {ON_DEMAND} or {ENROLL}: {arguments:?}"),
    }
}

/// Runs until it is ended.
fn serve() -> Result<()> {
    let config = Config::load()?;
    hold_many()?;
    let _one = lock()?;
    let core = Arc::new(Core::open(&config)?);
    let control = listen(CONTROL, 0o600, None)?;
    let agent = listen(AGENT, 0o660, Some(&config.agent.group))?;
    let for_agent = core.clone();
    thread::spawn(move || accept(&agent, &for_agent, challenge::serve));
    accept(&control, &core, |core, stream| {
        converse(core, &Channel::new(stream))
    });
    Ok(())
}

/// Each container takes some six descriptors, and 1024 are what a service manager gives.
fn hold_many() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, all).context("cannot raise the number of open files")
}

/// Makes this host's attestation key, once, and prints what a challenger must know of it.
fn enroll() -> Result<()> {
    let config = Config::load()?;
    let _one = lock().context("the host service holds the TPM; stop it first")?;
    println!("{}", serde_json::to_string(&core::enroll(&config)?)?);
    Ok(())
}

fn lock() -> Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIR)
        .with_context(|| format!("cannot make {DIR}"))?;
    let path = Path::new(DIR).join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another host service runs (it holds {})", path.display()))?;
    Ok(file)
}

fn listen(path: &str, mode: u32, group: Option<&str>) -> Result<UnixListener> {
    let doing = || format!("cannot listen on {path}");
    fs::remove_file(path).or_else(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            Ok(())
        } else {
            Err(e)
        }
    })?;
    // the directory lets everybody pass: the socket must never exist with a wider mode than its own
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.with_context(doing)?;
    if let Some(name) = group {
        match nix::unistd::Group::from_name(name)
            .with_context(|| format!("cannot look up group {name}"))?
        {
            Some(group) => std::os::unix::fs::chown(path, None, Some(group.gid.as_raw()))
                .with_context(doing)?,
            None => bail!(
                "group `{name}` (agent.group) does not exist; the package makes it, or `groupadd -r {name}`"
            ),
        }
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(doing)?;
    Ok(listener)
}

/// Each connection in a thread of its own, so that a slow one delays nobody.
fn accept(listener: &UnixListener, core: &Arc<Core>, serve: fn(&Core, UnixStream) -> Result<()>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            thread::sleep(Duration::from_millis(50)); // out of descriptors: do not spin
            continue;
        };
        let core = core.clone();
        let spawned = thread::Builder::new().stack_size(512 << 10).spawn(move || {
            if let Err(error) = serve(&core, stream) {
                eprintln!("attestrun host: {error:#}");
            }
        });
        if let Err(error) = spawned {
            eprintln!("attestrun host: cannot serve: {error}");
        }
    }
}

/// One container's life as the host service sees it: bound, attached, ended, unbound.
fn converse(core: &Core, peer: &Channel) -> Result<()> {
    peer.set_timeout(PATIENCE)?;
    while let Some((request, mut fds)) = peer.recv::<Request>()? {
        match request {
            Request::Hello => peer.send(&Answer::Ok(core.link()), &[])?,
            Request::Owners { namespaces } => {
                peer.send(&Answer::of(core.owners(&namespaces)), &[])?;
            }
            Request::Vtpm(OfVtpm::Open { name }) => {
                peer.send(&Answer::of(core.open_vtpm(&name)), &[])?;
            }
            Request::Vtpm(OfVtpm::Runs { name, state, owner }) => {
                let runs = core.vtpm_runs(&name, state, owner);
                peer.send(&Answer::of(runs), &[])?;
            }
            Request::Vtpm(OfVtpm::Ended { name, state }) => {
                peer.send(&Answer::of(core.vtpm_ended(&name, state)), &[])?;
            }
            Request::Vtpm(OfVtpm::Forget { name }) => {
                peer.send(&Answer::of(core.forget_vtpm(&name)), &[])?;
            }
            Request::Bind {
                run_id,
                claim,
                endorsable,
            } => {
                let guard = Channel::new(one(&mut fds)?.into());
                let record = match core.bind(&run_id, *claim, endorsable.as_ref(), guard) {
                    Ok(record) => record,
                    Err(error) => return peer.send(&Answer::<String>::of(Err(error)), &[]),
                };
                // create may be gone by now: what was bound is voided, whenever it went
                let attached = peer
                    .send(&Answer::Ok(record), &[])
                    .and_then(|()| attach(core, &run_id, peer));
                let pidfd = match attached {
                    Ok(pidfd) => pidfd,
                    Err(_) => return core.void(&run_id),
                };
                let held = held(peer);
                // create has its answer by now: it waits for neither
                if let Some(endorsable) = endorsable {
                    core.endorse(&run_id, &endorsable);
                }
                core.quote_early(&run_id);
                let unbound = until_end(core, &run_id, &pidfd);
                if let Some((keeper, group)) = held {
                    wait_for(&keeper)?;
                    drop(group);
                }
                return unbound;
            }
            Request::Rejoin { run_id, record } => {
                let pidfd = fds
                    .pop()
                    .context("a guard rejoined without its container")?;
                let guard = Channel::new(one(&mut fds)?.into());
                let rejoined = core.rejoin(&run_id, &record, guard);
                core.attached(&run_id, pidfd.try_clone()?);
                let failed = rejoined.is_err();
                let told = peer.send(&Answer::of(rejoined), &[]);
                return if failed {
                    told
                } else {
                    until_end(core, &run_id, &pidfd)
                };
            }
            Request::Attach | Request::Hold => bail!("attach before bind"),
        }
    }
    Ok(())
}

fn attach(core: &Core, run_id: &RunId, peer: &Channel) -> Result<OwnedFd> {
    let (Request::Attach, mut fds) = peer.expect()? else {
        bail!("bind is followed by attach")
    };
    let pidfd = one(&mut fds)?;
    // before the answer: who joins its namespaces next finds it
    core.attached(run_id, pidfd.try_clone()?);
    peer.send(&Answer::Ok(()), &[])?;
    Ok(pidfd)
}

/// The keeper's pidfd and its group of fanotify events; a container that is not watched has none, and a
/// create that is gone by now sends none: then the keeper is the last to close it.
fn held(peer: &Channel) -> Option<(OwnedFd, OwnedFd)> {
    match peer.recv() {
        Ok(Some((Request::Hold, fds))) => <[OwnedFd; 2]>::try_from(fds).ok().map(Into::into),
        _ => None,
    }
}

fn wait_for(process: &OwnedFd) -> Result<()> {
    while !has_ended(process) {
        let mut fds = [rustix::event::PollFd::new(
            process,
            rustix::event::PollFlags::IN,
        )];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for a process's end"),
        }
    }
    Ok(())
}

fn until_end(core: &Core, run_id: &RunId, pidfd: &OwnedFd) -> Result<()> {
    wait_for(pidfd)?;
    let unbound = core.unbind(run_id);
    nurse::tell();
    unbound
}

fn one(fds: &mut Vec<OwnedFd>) -> Result<OwnedFd> {
    let fd = fds.pop().context("a descriptor is missing")?;
    ensure!(fds.is_empty(), "too many descriptors");
    Ok(fd)
}

/// Where the host's state lies.
pub(super) fn state_dir() -> &'static Path {
    Path::new(config::HOST_STATE)
}
