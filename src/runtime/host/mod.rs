//! `attestrun host`: the host service. One root process without network, the only user of the host
//! TPM, owner of its attestation key, of the binding PCR and of the binding log.
//!
//! It signs only what it computed itself: create hands it a claim, the agent a nonce; nobody hands it
//! qualifying data.

mod challenge;
mod core;
mod log;

use self::core::Core;
use crate::{
    config::{self, Config},
    ending::has_ended,
    ipc::{Answer, Channel},
    slice,
};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
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
use verify::{binding::Claim, event::HostLink, id::RunId};

const DIR: &str = "/run/attestrun-host";
/// For root alone: create, and guards whose host service was restarted.
pub const CONTROL: &str = "/run/attestrun-host/control.sock";
/// For the agent's group.
const AGENT: &str = "/run/attestrun-host/agent.sock";
/// The host AIK: its blob and its authorization value, root's alone.
const AIK: &str = "/var/lib/attestrun/host/aik";

/// Between two messages of one conversation.
const PATIENCE: Duration = Duration::from_secs(240);

/// create → host service, in this order on one connection; guard → host service: `Rejoin`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Who the host is; answered with [`HostLink`].
    Hello,
    /// Log and extend; answered with the record (canonical JSON). Descriptor: the channel to the guard.
    Bind { run_id: RunId, claim: Box<Claim> },
    /// The container exists; answered with `()`. Descriptor: init's pidfd, whose end is the unbinding.
    Attach,
    /// A guard whose record is in the log lost its host service. Descriptors: channel, init's pidfd.
    Rejoin { run_id: RunId, record: String },
}

/// The option of a service that no service manager started: it leaves the caller's session and cgroup.
const ON_DEMAND: &str = "--on-demand";

/// Runs until it is ended.
pub fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => {}
        [option] if option == ON_DEMAND => slice::enter("host")?,
        other => bail!("attestrun host takes no arguments but {ON_DEMAND}: {other:?}"),
    }
    let config = Config::load()?;
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

/// Makes this host's attestation key, once: the key is the host's identity for every challenger.
pub fn enroll(config: &Config) -> Result<Enrolled> {
    let _one = lock().context("the host service holds the TPM; stop it first")?;
    core::enroll(config)
}

pub use core::Enrolled;

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
            Request::Bind { run_id, claim } => {
                let guard = Channel::new(one(&mut fds)?.into());
                match core.bind(&run_id, *claim, guard) {
                    Ok(record) => peer.send(&Answer::Ok(record), &[])?,
                    Err(error) => return peer.send(&Answer::<String>::of(Err(error)), &[]),
                }
                let attached = attach(peer);
                let pidfd = match attached {
                    Ok(pidfd) => pidfd,
                    Err(_) => return core.void(&run_id),
                };
                return until_end(core, &run_id, &pidfd);
            }
            Request::Rejoin { run_id, record } => {
                let pidfd = fds
                    .pop()
                    .context("a guard rejoined without its container")?;
                let guard = Channel::new(one(&mut fds)?.into());
                let rejoined = core.rejoin(&run_id, &record, guard);
                let failed = rejoined.is_err();
                peer.send(&Answer::of(rejoined), &[])?;
                return if failed {
                    Ok(())
                } else {
                    until_end(core, &run_id, &pidfd)
                };
            }
            Request::Attach => bail!("attach before bind"),
        }
    }
    Ok(())
}

fn attach(peer: &Channel) -> Result<OwnedFd> {
    let (Request::Attach, mut fds) = peer.expect()? else {
        bail!("bind is followed by attach")
    };
    let pidfd = one(&mut fds)?;
    peer.send(&Answer::Ok(()), &[])?;
    Ok(pidfd)
}

fn until_end(core: &Core, run_id: &RunId, pidfd: &OwnedFd) -> Result<()> {
    while !has_ended(pidfd) {
        let mut fds = [rustix::event::PollFd::new(
            pidfd,
            rustix::event::PollFlags::IN,
        )];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the container's end"),
        }
    }
    core.unbind(run_id)
}

fn one(fds: &mut Vec<OwnedFd>) -> Result<OwnedFd> {
    let fd = fds.pop().context("a descriptor is missing")?;
    ensure!(fds.is_empty(), "too many descriptors");
    Ok(fd)
}

/// A conversation with the host service; starts the service when it does not run.
pub struct Client(Channel);

impl Client {
    pub fn connect() -> Result<Self> {
        Self::over(UnixStream::connect(CONTROL).or_else(|_| start())?, PATIENCE)
    }

    /// Over a connection that exists already, with `patience` for each answer.
    pub fn over(stream: UnixStream, patience: Duration) -> Result<Self> {
        let channel = Channel::new(stream);
        channel.set_timeout(patience)?;
        Ok(Self(channel))
    }

    pub fn hello(&self) -> Result<HostLink> {
        self.0
            .ask::<_, Answer<_>>(&Request::Hello, &[])?
            .into_result()
    }

    /// The record, canonical, once it is logged and extended.
    pub fn bind(&self, run_id: &RunId, claim: Claim, guard: &OwnedFd) -> Result<String> {
        let request = Request::Bind {
            run_id: run_id.clone(),
            claim: Box::new(claim),
        };
        self.0
            .ask::<_, Answer<_>>(&request, &[guard.as_fd()])?
            .into_result()
    }

    pub fn attach(&self, pidfd: BorrowedFd<'_>) -> Result<()> {
        self.0
            .ask::<_, Answer<_>>(&Request::Attach, &[pidfd])?
            .into_result()
    }

    pub fn rejoin(
        &self,
        run_id: &RunId,
        record: &str,
        guard: &OwnedFd,
        pidfd: &OwnedFd,
    ) -> Result<()> {
        let request = Request::Rejoin {
            run_id: run_id.clone(),
            record: record.to_owned(),
        };
        self.0
            .ask::<_, Answer<_>>(&request, &[guard.as_fd(), pidfd.as_fd()])?
            .into_result()
    }
}

/// The first create of a boot starts the service where no service manager did.
fn start() -> Result<UnixStream> {
    const ATTEMPTS: u32 = 500;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIR)
        .with_context(|| format!("cannot make {DIR}"))?;
    let log = Path::new(DIR).join("host.log");
    let null = File::open("/dev/null")?;
    let file = File::options().create(true).append(true).open(&log);
    let file = file.with_context(|| format!("cannot open {}", log.display()))?;
    let mut service = crate::spawn::myself_logging(&["host", ON_DEMAND], null.into(), file)?;
    for _ in 0..ATTEMPTS {
        if let Ok(stream) = UnixStream::connect(CONTROL) {
            return Ok(stream);
        }
        if let Some(status) = service.try_wait()? {
            // another create may have been first; then its service answers
            if let Ok(stream) = UnixStream::connect(CONTROL) {
                return Ok(stream);
            }
            let said = fs::read_to_string(&log).unwrap_or_default();
            let last = said.lines().last().unwrap_or("it said nothing").to_owned();
            bail!(
                "the host service ({CONTROL}) does not run and ended when started ({status}): {last}"
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    service.kill().ok();
    service.wait().ok();
    bail!(
        "the host service was started and did not listen on {CONTROL} within 5 s; see {}",
        log.display()
    )
}

/// Where the host's state lies.
fn state_dir() -> &'static Path {
    Path::new(config::HOST_STATE)
}
