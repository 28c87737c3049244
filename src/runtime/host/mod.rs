//! The host service: one root process without network, the only user of the host TPM, owner of its
//! attestation key, of the binding PCR and of the binding log. Here: what it is asked, and by whom;
//! [`service`] is the program behind it.

mod batch;
mod challenge;
mod core;
mod ledger;
mod log;
mod nurse;
pub mod service;

use crate::{
    config::Config,
    guard::Endorsable,
    ipc::{Answer, Channel},
    kept, spawn,
};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    path::Path,
    thread,
    time::Duration,
};
use verify::{
    binding::Claim, digest::FileDigest, event::HostLink, id::RunId, profile::Peer, tpm2::TpmName,
};

const DIR: &str = "/run/attestrun-host";
/// For root alone: create, and guards whose host service was restarted.
pub const CONTROL: &str = "/run/attestrun-host/control.sock";
/// The option of a service that no service manager started: a nurse starts it, outside the caller's
/// session and cgroup.
const ON_DEMAND: &str = "--on-demand";
/// The option of a service that has a nurse at the other end of its standard input.
const NURSED: &str = "--nursed";
/// The argument that makes the host's key instead of serving.
const ENROLL: &str = "enroll";
/// Gives a kept state of a vTPM up.
const FORGET: &str = "forget";

/// Between two messages of one conversation.
const PATIENCE: Duration = Duration::from_secs(240);

/// create → host service, in this order on one connection; guard → host service: `Rejoin`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Who the host is; answered with [`HostLink`].
    Hello,
    /// Whose these namespaces are (device and inode); answered with `Vec<Option<Peer>>`.
    Owners { namespaces: Vec<(u64, u64)> },
    /// Of a kept vTPM.
    Vtpm(OfVtpm),
    /// Log and extend; answered with the record (canonical JSON). Descriptor: the channel to the guard.
    Bind {
        run_id: RunId,
        claim: Box<Claim>,
        /// What the vTPM's certificate is to be about; absent: it is to have none.
        #[serde(default)]
        endorsable: Option<Endorsable>,
    },
    /// The container exists; answered with `()`. Descriptor: init's pidfd, whose end is the unbinding.
    Attach,
    /// The container is watched; not answered. Descriptors: the keeper's pidfd, the group of fanotify events
    /// that the keeper holds. The last to close it waits for the kernel, some 20 ms: that shall be nobody
    /// for whom a `delete` waits.
    Hold,
    /// A guard whose record is in the log lost its host service. Descriptors: channel, init's pidfd.
    Rejoin { run_id: RunId, record: String },
}

/// What is asked about a kept vTPM, by its name ([`crate::kept`]); answered with `()`, but for `Open`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OfVtpm {
    /// Answered with [`OpenedVtpm`].
    Open { name: String },
    /// Its container, one of this owner's, starts from this state.
    Runs {
        name: String,
        state: Option<FileDigest>,
        owner: String,
    },
    /// Its container has ended, in this state.
    Ended { name: String, state: FileDigest },
    /// Its state is given up.
    Forget { name: String },
}

/// What a guard needs for a kept vTPM.
#[derive(Serialize, Deserialize)]
pub struct OpenedVtpm {
    /// 32 bytes in base64.
    pub key: String,
    /// SHA-256 of the state that it was left in; absent: there never was one.
    pub state: Option<FileDigest>,
}

/// What enrolling made or found: the host's identity for every challenger.
#[derive(Debug, Serialize, Deserialize)]
pub struct Enrolled {
    pub aik_name: TpmName,
    /// A software root proves nothing about this machine.
    pub software: bool,
    pub fresh: bool,
    /// The certificate (PEM) of the CA of this host's vTPMs, if they are to have certificates.
    pub vtpm_ca: Option<String>,
}

/// `attestrun host …`: becomes the service.
pub fn become_service(words: &[OsString]) -> Result<()> {
    let config = Config::load()?;
    if let [word, name] = words
        && word == FORGET
    {
        let name = name.to_str().context("the name of a vTPM")?;
        Client::connect(&config)?.of_vtpm::<()>(OfVtpm::Forget {
            name: name.to_owned(),
        })?;
        return kept::remove(name);
    }
    Err(spawn::become_host_service(&config.host_service, words))
}

/// Whether this host was enrolled before.
pub fn has_key() -> Result<bool> {
    let found = Path::new(service::AIK).try_exists();
    found.with_context(|| format!("cannot look for {}", service::AIK))
}

/// Whether this host has a CA for its vTPMs.
pub fn has_vtpm_ca() -> Result<bool> {
    let found = Path::new(service::VTPM_CA).try_exists();
    found.with_context(|| format!("cannot look for {}", service::VTPM_CA))
}

/// Makes this host's attestation key, once.
pub fn enroll(config: &Config) -> Result<Enrolled> {
    let said = spawn::host_service_says(&config.host_service, ENROLL)?;
    serde_json::from_str(&said).context("the host service's answer")
}

/// A conversation with the host service; starts the service when it does not run.
pub struct Client(Channel);

impl Client {
    pub fn connect(config: &Config) -> Result<Self> {
        let stream = UnixStream::connect(CONTROL).or_else(|_| start(config))?;
        Self::over(stream, PATIENCE)
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

    pub fn of_vtpm<T: DeserializeOwned>(&self, request: OfVtpm) -> Result<T> {
        self.0
            .ask::<_, Answer<T>>(&Request::Vtpm(request), &[])?
            .into_result()
    }

    /// Whose these namespaces are.
    pub fn owners(&self, namespaces: Vec<(u64, u64)>) -> Result<Vec<Option<Peer>>> {
        self.0
            .ask::<_, Answer<_>>(&Request::Owners { namespaces }, &[])?
            .into_result()
    }

    /// The record, canonical, once it is logged and extended.
    pub fn bind(
        &self,
        run_id: &RunId,
        claim: Claim,
        endorsable: Option<Endorsable>,
        guard: &OwnedFd,
    ) -> Result<String> {
        let request = Request::Bind {
            run_id: run_id.clone(),
            claim: Box::new(claim),
            endorsable,
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

    pub fn hold(&self, keeper: &OwnedFd, group: &OwnedFd) -> Result<()> {
        self.0
            .send(&Request::Hold, &[keeper.as_fd(), group.as_fd()])
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
fn start(config: &Config) -> Result<UnixStream> {
    const ATTEMPTS: u32 = 500;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIR)
        .with_context(|| format!("cannot make {DIR}"))?;
    let log = Path::new(DIR).join("host.log");
    let file = File::options().create(true).append(true).open(&log);
    let file = file.with_context(|| format!("cannot open {}", log.display()))?;
    let mut service = spawn::host_service(&config.host_service, ON_DEMAND, file)?;
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
