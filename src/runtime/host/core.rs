//! What the host service knows and does, one at a time: the TPM, the binding log, the containers that
//! run now.

mod early_quote; // the record, signed as soon as it is bound
mod endorse; // certificates of vTPMs
mod kept; // states of vTPMs that are kept

use super::{
    Enrolled,
    batch::Batches,
    log::{BindingLog, BindingPcr},
    service,
};
use crate::{
    config::{self, BindingQuote, Config},
    ending::has_ended,
    guard,
    ipc::{Answer, Channel, Refused},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use early_quote::EarlyQuotes;
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tpm::{
    Quote,
    host::{AikBlob, HostTpm, HostTpmConfig, Root},
};
use verify::{
    batch::Path as MerklePath,
    binding::{Claim, HostPart, Kind, LogEntry, Record, live},
    digest::RecordDigest,
    event::HostLink,
    evidence::HostPcrs,
    id::{ContainerId, RunId},
    pcr::{HOST_QUOTED, PcrIndex},
    profile::Peer,
    tpm2::{Credential, Public},
    wire::{Activated, Endorsement},
};

/// A guard that does not quote within this time is as good as gone.
const GUARD_PATIENCE: Duration = Duration::from_secs(20);

pub struct Core {
    link: HostLink,
    aik_public: Vec<u8>,
    root: Root,
    /// Locked before `running`, when both are.
    state: Mutex<State>,
    /// Whether the CA of vTPMs is loaded.
    endorses: bool,
    early_quotes: Option<EarlyQuotes>,
    /// Locked before `state`, when both are.
    kept: Option<kept::Kept>,
    /// Apart from the TPM, so that who only looks does not wait for a quote.
    running: Mutex<HashMap<RunId, Arc<Bound>>>,
    batches: Batches,
}

struct State {
    tpm: HostTpm,
    pcr: PcrIndex,
    log: BindingLog,
    /// Records of this boot, whatever became of them.
    seq: u64,
}

/// A container whose record is logged and whose guard answers.
pub struct Bound {
    pub record: Record,
    pub r: RecordDigest,
    guard: Mutex<Channel>,
    /// Its init, once there is one.
    init: OnceLock<OwnedFd>,
}

/// What a host quote proves, with the log that explains its binding PCR.
pub struct HostHalf {
    pub quote: Quote,
    pub pcrs: HostPcrs,
    pub binding_log: Vec<u8>,
}

impl Core {
    pub fn open(config: &Config) -> Result<Self> {
        let mut tpm = open_tpm(config)?;
        let blob = fs::read(service::AIK).with_context(|| {
            format!(
                "cannot read the host's attestation key {}; `attestrun setup` makes it",
                service::AIK
            )
        })?;
        tpm.load_aik(
            &AikBlob::parse(&blob)
                .with_context(|| format!("the attestation key {} is corrupt", service::AIK))?,
        )
        .with_context(|| format!("the host TPM does not load the key {}", service::AIK))?;
        // before other keys are loaded: a TPM has room for three
        let kept = match config.vtpm.persistent {
            true => Some(kept::Kept::open(&mut tpm)?),
            false => None,
        };
        if config.vtpm.ek_certificate {
            endorse::load(&mut tpm)?;
        }
        let host_boot = boot_id()?;
        let host_reset = tpm.reset_count()?;
        let pcr = PcrIndex::new(config.host_tpm.binding_pcr.into())?;
        // a software root may be restarted within a boot; on hardware resetCount adds nothing
        let era = format!("{host_boot}-{host_reset}");
        let early_quotes = match config.host_tpm.binding_quote {
            BindingQuote::Challenge => None,
            BindingQuote::Create => Some(EarlyQuotes::open(service::state_dir(), &era)?),
        };
        let log = BindingLog::open(
            service::state_dir(),
            &era,
            &mut OnTpm { tpm: &mut tpm, pcr },
        )?;
        let seq = log
            .entries()
            .iter()
            .filter(|e| e.kind == Kind::Bind)
            .count() as u64;
        let link = HostLink {
            host_ak_name: tpm.aik_name()?,
            host_reset,
            host_boot,
        };
        Ok(Self {
            link,
            aik_public: tpm.aik_public()?.to_vec(),
            root: tpm.kind(),
            state: Mutex::new(State { tpm, pcr, log, seq }),
            endorses: config.vtpm.ek_certificate,
            early_quotes,
            kept,
            running: Mutex::default(),
            batches: Batches::default(),
        })
    }

    pub fn link(&self) -> HostLink {
        self.link.clone()
    }

    pub fn aik_public(&self) -> &[u8] {
        &self.aik_public
    }

    pub fn root(&self) -> Root {
        self.root
    }

    pub fn binding_start(&self) -> [u8; 32] {
        *self.state().log.start()
    }

    /// Completes the claim with what only this service knows, logs it and extends the host TPM.
    pub fn bind(
        &self,
        run_id: &RunId,
        claim: Claim,
        endorsable: Option<&guard::Endorsable>,
        guard: Channel,
    ) -> Result<String> {
        guard.set_timeout(GUARD_PATIENCE)?;
        if let Some(endorsable) = endorsable {
            self.check_endorsable(endorsable, &claim)?;
        }
        let mut state = self.state();
        if self.by_run().contains_key(run_id) {
            bail!("run {run_id} is bound already");
        }
        let prev = state
            .log
            .entries()
            .last()
            .map(LogEntry::value)
            .unwrap_or_default();
        let host = HostPart {
            seq: state.seq + 1,
            prev: RecordDigest::from_bytes(prev).hex(),
            host_boot: self.link.host_boot.clone(),
            host_reset: self.link.host_reset,
            host_ak_name: self.link.host_ak_name,
        };
        let record = Record::new(claim, host)?;
        let r = record.digest()?;
        for peer in &record.claim.peers {
            ensure!(
                self.by_run().values().any(|bound| bound.r.hex() == *peer),
                "a container whose namespaces are joined has ended (record {peer})"
            );
        }
        state.append(LogEntry::new(Kind::Bind, &record.claim.vtpm_ak_name, r))?;
        state.seq += 1;
        let text = String::from_utf8(record.canonical()?)?;
        self.by_run().insert(
            run_id.clone(),
            Arc::new(Bound {
                record,
                r,
                guard: Mutex::new(guard),
                init: OnceLock::new(),
            }),
        );
        Ok(text)
    }

    /// Takes a guard back whose record this boot's log still holds alive.
    pub fn rejoin(&self, run_id: &RunId, record: &str, guard: Channel) -> Result<()> {
        guard.set_timeout(GUARD_PATIENCE)?;
        let record = Record::parse(record.as_bytes())?;
        let r = record.digest()?;
        let state = self.state();
        live(state.log.entries(), &r, &record.claim.vtpm_ak_name).map_err(|why| {
            Refused(format!(
                "the binding log does not hold this record alive: {why:?}"
            ))
        })?;
        ensure!(
            !self.by_run().contains_key(run_id),
            "run {run_id} has a guard already"
        );
        self.by_run().insert(
            run_id.clone(),
            Arc::new(Bound {
                record,
                r,
                guard: Mutex::new(guard),
                init: OnceLock::new(),
            }),
        );
        Ok(())
    }

    /// The container has this init.
    pub fn attached(&self, run_id: &RunId, init: OwnedFd) {
        if let Some(bound) = self.by_run().get(run_id) {
            bound.init.set(init).ok();
        }
    }

    /// Whose each namespace (device, inode) is: of the containers in it that which was bound first, since
    /// the others joined it.
    pub fn owners(&self, namespaces: &[(u64, u64)]) -> Result<Vec<Option<Peer>>> {
        let running = self.running();
        let mut owners = vec![None; namespaces.len()];
        for bound in running {
            let Some(has) = bound.namespaces()? else {
                continue;
            };
            for (namespace, owner) in namespaces.iter().zip(&mut owners) {
                if owner.is_none() && has.contains(namespace) {
                    *owner = Some(bound.peer());
                }
            }
        }
        Ok(owners)
    }

    /// All that run, in the order in which they were bound.
    pub fn running(&self) -> Vec<Arc<Bound>> {
        let mut running: Vec<_> = self.by_run().values().cloned().collect();
        running.sort_by_key(|bound| bound.record.host.seq);
        running
    }

    /// The container has ended.
    pub fn unbind(&self, run_id: &RunId) -> Result<()> {
        self.close(run_id, Kind::Unbind)
    }

    /// The container never came to be: create failed or was killed after its record was logged.
    pub fn void(&self, run_id: &RunId) -> Result<()> {
        self.close(run_id, Kind::Void)
    }

    fn close(&self, run_id: &RunId, kind: Kind) -> Result<()> {
        let mut state = self.state();
        let Some(bound) = self.by_run().remove(run_id) else {
            return Ok(());
        };
        let entry = LogEntry::new(kind, &bound.record.claim.vtpm_ak_name, bound.r);
        state
            .append(entry)
            .with_context(|| format!("cannot log the end of run {run_id}"))
    }

    /// The one running container with this id.
    pub fn find(&self, container: &ContainerId) -> Result<Arc<Bound>, Missing> {
        let running = self.by_run();
        let mut with_id = running
            .values()
            .filter(|b| b.record.claim.container == *container);
        match (with_id.next(), with_id.next()) {
            (Some(bound), None) => Ok(bound.clone()),
            (None, _) => Err(Missing::NotFound),
            (Some(_), Some(_)) => Err(Missing::Ambiguous),
        }
    }

    /// A quote by the host's attestation key over `qualifying_data`, which this process computed, with
    /// the PCR values that it covers: read before and after, since the kernel may extend in between.
    pub fn quote(&self, qualifying_data: &[u8; 32]) -> Result<HostHalf> {
        const ATTEMPTS: usize = 5;
        let mut state = self.state();
        let mut before = state.pcrs()?;
        for _ in 0..ATTEMPTS {
            let quote = state
                .tpm
                .quote(qualifying_data, &HOST_QUOTED)
                .context("the host TPM does not quote")?;
            let after = state.pcrs()?;
            if before == after {
                return Ok(HostHalf {
                    quote,
                    pcrs: after,
                    binding_log: state.log.bytes().to_vec(),
                });
            }
            before = after;
        }
        bail!("the host's PCRs changed during each of {ATTEMPTS} quotes")
    }

    pub fn endorsement(&self) -> Result<Endorsement> {
        let tpm = &mut self.state().tpm;
        let ek = Public::parse(&tpm.ek_public()?)?.to_2b();
        let certificate = tpm.ek_certificate()?;
        Ok(Endorsement { ek, certificate })
    }

    /// Opens a credential for whoever made it: it was made for this TPM's keys, or it is not opened.
    pub fn activate(&self, credential: &Credential) -> Result<Activated> {
        let secret = self.state().tpm.activate(credential)?;
        Ok(Activated { secret })
    }

    /// A quote that covers `leaf`: with all that wait for one, or alone.
    pub fn vouch(&self, leaf: [u8; 32], batch: bool) -> Result<(Arc<HostHalf>, MerklePath)> {
        match batch {
            true => self.batches.quote(self, leaf),
            false => Ok((Arc::new(self.quote(&leaf)?), MerklePath::single())),
        }
    }

    fn by_run(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Bound>>> {
        // each change is one insertion or removal
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // a thread that panicked held no half-made change: log and PCR change at single points
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    NotFound,
    Ambiguous,
}

impl State {
    fn pcrs(&mut self) -> Result<HostPcrs> {
        let mut values = [[0; 32]; HOST_QUOTED.len()];
        for (pcr, value) in HOST_QUOTED.iter().zip(&mut values) {
            *value = self.tpm.pcr_read(*pcr)?;
        }
        Ok(HostPcrs(values))
    }

    fn append(&mut self, entry: LogEntry) -> Result<()> {
        let Self { tpm, pcr, log, .. } = self;
        log.append(entry, &mut OnTpm { tpm, pcr: *pcr })
    }
}

impl Bound {
    fn peer(&self) -> Peer {
        Peer {
            container: self.record.claim.container.clone(),
            record: self.r,
        }
    }

    /// The namespaces that its init is in; `None` if it has none, or has ended.
    fn namespaces(&self) -> Result<Option<HashSet<(u64, u64)>>> {
        let Some(init) = self.init.get() else {
            return Ok(None);
        };
        let Some(pid) = pid_of(init)? else {
            return Ok(None);
        };
        let entries = match fs::read_dir(format!("/proc/{pid}/ns")) {
            Ok(entries) => entries,
            Err(_) if has_ended(init) => return Ok(None),
            Err(e) => return Err(e).context("cannot read a container's namespaces"),
        };
        let identity =
            |path: std::path::PathBuf| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        let found = entries
            .flatten()
            .filter_map(|e| identity(e.path()))
            .collect();
        // had it ended meanwhile, the number could be another process's
        Ok((!has_ended(init)).then_some(found))
    }

    /// The guard's evidence, and the bytes of the signature list.
    pub fn quote(&self, qualifying_data: [u8; 32]) -> Result<(guard::ContainerEvidence, Vec<u8>)> {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        guard.send(&guard::FromHost::Quote { qualifying_data }, &[])?;
        let (answer, fds): (Answer<_>, _) = guard.expect()?;
        let evidence = answer.into_result()?;
        let list = fds.into_iter().next().map(File::from);
        let list = guard::list_text::read(list.as_ref(), &self.record.claim.siglist)?;
        Ok((evidence, list))
    }
}

struct OnTpm<'a> {
    tpm: &'a mut HostTpm,
    pcr: PcrIndex,
}

impl BindingPcr for OnTpm<'_> {
    fn read(&mut self) -> Result<[u8; 32]> {
        Ok(self.tpm.pcr_read(self.pcr)?)
    }
    fn extend(&mut self, value: &[u8; 32]) -> Result<()> {
        Ok(self.tpm.pcr_extend(self.pcr, *value)?)
    }
}

/// The configured TPM, if it is what the configuration calls it.
fn open_tpm(config: &Config) -> Result<HostTpm> {
    let tcti = &config.host_tpm.tcti;
    let tpm = HostTpm::open(&HostTpmConfig { tcti: tcti.clone() }).with_context(|| {
        format!(
            "cannot open the host TPM {tcti} (host_tpm.tcti in {}); is there one?",
            config::PATH
        )
    })?;
    match (tpm.kind(), config.host_tpm.root) {
        (Root::Hardware, config::Root::Hardware) | (Root::Software, config::Root::Software) => {
            Ok(tpm)
        }
        (found, named) => Err(anyhow!(
            "the TPM {tcti} is a {found:?} root and {} names it {named:?}: say what it is with host_tpm.root",
            config::PATH
        )),
    }
}

/// Makes the key, or loads the one that is there.
pub fn enroll(config: &Config) -> Result<Enrolled> {
    let mut tpm = open_tpm(config)?;
    let path = Path::new(service::AIK);
    let (blob, fresh) = match fs::read(path) {
        Ok(bytes) => (
            AikBlob::parse(&bytes).with_context(|| format!("{} is corrupt", path.display()))?,
            false,
        ),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => (tpm.create_aik()?, true),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    tpm.load_aik(&blob).with_context(|| {
        format!(
            "this TPM does not load the key {}: was it made by another?",
            path.display()
        )
    })?;
    if fresh {
        save(path, &blob.encode())?;
    }
    if config.vtpm.persistent {
        kept::enroll(&mut tpm)?;
    }
    let vtpm_ca = match config.vtpm.ek_certificate {
        true => Some(endorse::enroll(&mut tpm)?),
        false => None,
    };
    Ok(Enrolled {
        aik_name: tpm.aik_name()?,
        software: tpm.kind() == Root::Software,
        fresh,
        vtpm_ca,
    })
}

/// Root's alone from the first byte, whole or not at all.
fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::{
        io::Write,
        os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    };
    let doing = || format!("cannot write {}", path.display());
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(doing)?;
    }
    let new = path.with_extension("new");
    let mut file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .with_context(doing)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(doing)?;
    fs::rename(&new, path).with_context(doing)
}

/// The process behind a pidfd (pidfd_open(2), "fdinfo"); `None` when it has ended.
fn pid_of(pidfd: &OwnedFd) -> Result<Option<u32>> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    Ok(pid.and_then(|pid| pid.trim().parse().ok()))
}

fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(PATH)
        .with_context(|| format!("cannot read {PATH}"))?
        .trim()
        .to_owned())
}
