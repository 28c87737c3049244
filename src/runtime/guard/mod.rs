//! The guard: one process per container, owner of its vTPM. It judges the image, the list and the
//! launch, measures what it judged, and answers for the container until that ends.
//!
//! Trusts: its binary, `/etc/attestrun`, the root-only run directory. It parses what images and
//! containers bring, so it never touches the host TPM. It keeps the truth in memory: files under
//! `/run/attestrun` are for people.

mod admit;
mod enter;
mod entry;
pub mod gate;
mod inside;
mod journal;
pub mod list_text;
mod measure;
mod mounts;
mod rootfs;
pub mod serials;
mod serve;
mod swtpm;
mod tpm_service;
mod view;

pub use inside::joined;
pub use swtpm::VtpmUid;

use self::{
    gate::{Gate, Group},
    journal::Journal,
    list_text::ListText,
};
use crate::{
    config::Config,
    ending::{Holdings, Means},
    ipc::{Answer, Channel},
    keeper::Begin,
    kept::KeptVtpm,
    keys, slice,
    state::RunDir,
    sys,
};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap, os::fd::OwnedFd, path::PathBuf, process::Child, sync::Arc, thread,
    time::Duration,
};
use tpm::vtpm::Vtpm;
use verify::{
    binding::{Claim, Record},
    digest::FileDigest,
    event::{Backend, Event, HostLink},
    id::{ContainerId, UnixTime},
    policy::{Admission, Programs},
    profile::Peer,
};

/// create → guard, in this order; a channel that closes before `Attach` ends the guard.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromCreate {
    /// Judge and measure; answered with [`Measured`].
    Admit(Box<Application>),
    /// The host service has logged this record (canonical JSON); answered with `()`.
    Bound { record: String },
    /// The backend has made the container; descriptors as in [`crate::ending::descriptors`]. Answered with
    /// [`Kept`].
    Attach { means: Means },
}

/// What wants to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Application {
    pub container: ContainerId,
    pub created: UnixTime,
    /// runc's `--root`; its last component is containerd's namespace.
    pub state_root: PathBuf,
    /// The caller's bundle.
    pub bundle: PathBuf,
    /// Canonical.
    pub rootfs: PathBuf,
    /// The sealed config.json, from which the backend builds.
    pub config: String,
    /// Whose copies are in it: hooks, an engine's init.
    pub copies: crate::copies::Origins,
    pub backend: Backend,
    pub host: HostLink,
    /// The host service's word on namespaces that it joins.
    pub peers: Vec<Joins>,
}

/// A namespace of another container that is joined.
#[derive(Debug, Serialize, Deserialize)]
pub struct Joins {
    pub path: PathBuf,
    /// Device and inode: another one at this path is not this peer's.
    pub namespace: (u64, u64),
    pub peer: Peer,
}

/// The guard's word that the application was admitted and measured: what gets bound.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    pub claim: Claim,
    pub rule: String,
    pub image: String,
    /// What the container will execute: absolute, symbolic links not followed.
    pub program: PathBuf,
    /// What its startContainer hooks are, in their order.
    pub start_hooks: Vec<FileDigest>,
    /// For `state`: whose container it is, by the certificate behind its list.
    pub owner: BTreeMap<String, String>,
    /// With `vtpm.ek_certificate`.
    pub endorsable: Option<Endorsable>,
}

/// What a certificate of the vTPM's endorsement key is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endorsable {
    /// TPM2B_PUBLIC in base64.
    pub ek: String,
    /// As the vTPM says of itself, see [`tpm::Make`].
    pub level: u32,
    pub revision: u32,
    pub manufacturer: u32,
    pub firmware: u32,
}

/// The guard's word that it watches the container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// What the kernel's keyrings did with the list's certificates; absent without a list.
    pub kernel_keys: Option<String>,
}

/// verb → guard, over `guard.sock` in the run directory; answered with the path to execute.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromVerb {
    /// May the container start? Measures its entrypoint.
    Start,
    /// May this process (runtime-spec `process` object) enter?
    Exec { process: String },
}

/// host service → guard.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromHost {
    Quote {
        qualifying_data: [u8; 32],
    },
    /// For the vTPM (DER in base64), or why it gets none; answered with `()`.
    Certificate(Answer<String>),
}

/// The container's half of an evidence; bytes in base64 (RFC 4648, section 4). Descriptor: the signature
/// list, if there is one ([`list_text::read`]).
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerEvidence {
    pub attest: String,
    pub signature: String,
    pub ak: String,
    pub ek: String,
    pub log: String,
    pub siglist_signature: String,
}

pub const SOCKET: &str = "guard.sock";

/// Annotations of ours begin like this; a caller's of that name are dropped.
pub const ANNOTATIONS: &str = "dev.attestrun.";

/// How long create may take between two messages; engines allow 240 s for all of it.
const CREATE_PATIENCE: Duration = Duration::from_secs(240);

/// The guard's whole life, in a process that the keeper forked. `lifeline` ends with the keeper; the
/// descriptors are the channels to create and to the host service; the keeper holds the group as well.
pub fn run(begin: Begin, lifeline: Channel, fds: Vec<OwnedFd>, group: Group) -> Result<()> {
    sys::retitle("attestrun", "guard")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    content::ignore_lease_signals();
    let Ok([create, host]) = <[OwnedFd; 2]>::try_from(fds) else {
        bail!("guard: two channels must come")
    };
    let (create, host) = (Channel::new(create.into()), Channel::new(host.into()));
    create.set_timeout(CREATE_PATIENCE)?;

    let run_dir = RunDir::of(&begin.run_id);
    // the vTPM gets ready while create still reads its bundle
    let vtpm = Starting::begin(&begin, &run_dir);
    let (FromCreate::Admit(application), _) = create.expect()? else {
        bail!("guard: create begins with Admit")
    };
    ensure!(
        application.container == begin.container,
        "guard: create changed its container"
    );
    let admitted = vtpm.and_then(|vtpm| Guarded::admit(*application, vtpm, &run_dir, group));
    let (mut guarded, gate) = match admitted {
        Ok(both) => both,
        Err(refusal) => return create.send(&Answer::<Measured>::of(Err(refusal)), &[]),
    };
    create.send(&Answer::Ok(guarded.measured()), &[])?;
    guarded.bound(&create)?;
    guarded.lend(&run_dir)?;
    let holdings = attached(&create)?;
    if let Err(unwatched) = gate.arm(&guarded, &holdings) {
        return create.send(&Answer::<Kept>::of(Err(unwatched)), &[]);
    }
    // kept, that is revoked when this process ends
    let keys = match guarded.retained(&begin.container, &holdings) {
        Ok(keys) => keys,
        Err(disagreement) => return create.send(&Answer::<Kept>::of(Err(disagreement)), &[]),
    };
    if let Some(keys) = &keys {
        let event = Event::KernelKeys(keys.event());
        guarded.journal.record(&event)?;
    }
    let kept = Kept {
        kernel_keys: keys.as_ref().map(keys::Retained::said),
    };
    serve::Service::new(begin.run_id, guarded, holdings, &run_dir, lifeline, host)?
        .announce(&create, &kept)?
        .run()
}

/// A vTPM that makes its keys in a thread of its own.
struct Starting {
    config: Config,
    identity: thread::JoinHandle<Result<(Child, Vtpm, swtpm::Identity)>>,
    kept: Option<KeptVtpm>,
}

impl Starting {
    fn begin(begin: &Begin, run_dir: &RunDir) -> Result<Self> {
        let config = Config::load()?;
        let uid = VtpmUid::take(config.vtpm.uid_range, run_dir.path(), std::process::id())?;
        let kept = begin.kept.as_deref();
        let kept = kept.map(|name| KeptVtpm::open(&config, name)).transpose()?;
        let swtpm = swtpm::Swtpm::start(&config, &run_dir.bounded(), uid, kept.as_ref())?;
        let vtpm = swtpm.child.id();
        let outside_info: [u8; 32] = Sha256::digest(begin.container.as_str()).into();
        let run_id = begin.run_id.clone();
        let start = kept.is_some();
        let start = start.then(|| Sha256::digest(run_id.as_str()).into());
        let identity = thread::spawn(move || {
            // while swtpm gets ready to answer
            slice::enter(run_id.as_str())?;
            slice::join(run_id.as_str(), &[vtpm])?;
            swtpm.identify(&outside_info, start.as_ref())
        });
        Ok(Self {
            config,
            identity,
            kept,
        })
    }

    fn finish(self, run_dir: &RunDir) -> Result<(Child, Vtpm, swtpm::Identity)> {
        let identified = self
            .identity
            .join()
            .unwrap_or_else(|_| bail!("the vTPM's thread panicked"));
        identified.with_context(|| swtpm::last_words(&run_dir.bounded()))
    }
}

/// A measured container and all that its guard knows of it.
struct Guarded {
    application: Application,
    admitted: admit::Admitted,
    journal: Arc<Journal>,
    identity: swtpm::Identity,
    swtpm: Child,
    claim: Claim,
    record: Option<String>,
    list: Option<ListText>,
    certificate: Certificate,
    kept: Option<KeptVtpm>,
}

/// Of the vTPM's endorsement key, by the host's CA.
enum Certificate {
    /// Not wanted, or in the vTPM.
    Settled,
    /// The container does not start without it.
    Awaited(Endorsable),
    Failed(String),
}

impl Guarded {
    fn admit(
        application: Application,
        mut vtpm: Starting,
        run_dir: &RunDir,
        group: Group,
    ) -> Result<(Self, Gate)> {
        let config = vtpm.config.clone();
        let admitted = admit::admit(&application, &config, run_dir);
        let kept = vtpm.kept.take();
        let identified = vtpm.finish(run_dir);
        // when both failed, the refusal is what the user can act upon
        let mut admitted = admitted?;
        let gate = Gate::of(group, &application.rootfs, &admitted.admission)?;
        admitted.demand(gate.tier(), gate.lacks())?;
        let (swtpm, vtpm, identity) = identified?;
        let journal = Journal::new(
            vtpm,
            &run_dir.bounded().join("event.log"),
            config.vtpm.log_max_bytes,
        )?;
        let subject = measure::Subject {
            application: &application,
            admitted: &admitted,
            identity: &identity,
            tier: gate.tier(),
            memory_files: gate.memory_files(),
        };
        let claim = measure::measure(&journal, &subject, &config)?;
        let certificate = match config.vtpm.ek_certificate {
            // left there by an earlier start
            true if kept.is_some() && journal.has_certificate()? => Certificate::Settled,
            true => Certificate::Awaited(endorsable(&journal, &identity)?),
            false => Certificate::Settled,
        };
        let admission = Arc::make_mut(&mut admitted.admission);
        let list = admission.take_list().map(ListText::keep);
        let decision = serde_json::json!({
            "admitted": admitted.admission.made().to_string(),
            "rule": admitted.admission.rule(),
            "took_us": admitted.took,
            "tier": gate.tier(),
        });
        // for people: nobody reads it back
        std::fs::write(
            run_dir.path().join("decision.json"),
            format!("{decision}\n"),
        )
        .context("cannot write decision.json")?;
        let guarded = Self {
            application,
            admitted,
            journal: Arc::new(journal),
            identity,
            swtpm,
            claim,
            record: None,
            list: list.transpose()?,
            certificate,
            kept,
        };
        Ok((guarded, gate))
    }

    fn measured(&self) -> Measured {
        Measured {
            claim: self.claim.clone(),
            program: self.admitted.program.clone(),
            start_hooks: self.admitted.start_hooks.clone(),
            rule: self.admitted.admission.rule().to_owned(),
            image: self.admitted.admission.made().to_string(),
            owner: owner(&self.admitted.admission),
            endorsable: match &self.certificate {
                Certificate::Awaited(endorsable) => Some(endorsable.clone()),
                Certificate::Settled | Certificate::Failed(_) => None,
            },
        }
    }

    /// The kernel's own check of the list; no list, nothing to check.
    fn retained(
        &self,
        container: &ContainerId,
        holdings: &Holdings,
    ) -> Result<Option<keys::Retained>> {
        let Programs::Listed(listed) = self.admitted.admission.programs() else {
            return Ok(None);
        };
        let proof = listed.signer().proof();
        keys::retain(proof, container, holdings.mount_namespace()?).map(Some)
    }

    /// Gives the container what is its own to see, and its TPM's socket.
    fn lend(&mut self, run_dir: &RunDir) -> Result<()> {
        let Some(owner) = self.admitted.lent else {
            return Ok(());
        };
        let shelf = tpm_service::Shelf::of(run_dir, owner);
        shelf.link("event.log", &run_dir.bounded().join("event.log"))?;
        if let Some(list) = &self.list
            && list.statement().metadata()?.len() <= tpm_service::MAX_LIST
        {
            let statement = list_text::read(Some(list.statement()), &self.claim.siglist)?;
            shelf.put("list", &statement)?;
            shelf.put("list.signature", list.signature())?;
        }
        if let Programs::Listed(listed) = self.admitted.admission.programs()
            && let Some(certificate) = listed.signer().proof().chain().last()
        {
            shelf.put("certificate.der", certificate)?;
        }
        tpm_service::offer(&shelf, self.journal.lend()?)
    }

    /// Takes the record only if it says what was measured here.
    fn bound(&mut self, create: &Channel) -> Result<()> {
        let (FromCreate::Bound { record: text }, _) = create.expect()? else {
            bail!("guard: Admit is followed by Bound")
        };
        let record = Record::parse(text.as_bytes())?;
        let host = &self.application.host;
        ensure!(
            record.claim == self.claim,
            "the host service bound another claim"
        );
        ensure!(
            record.host.host_ak_name == host.host_ak_name
                && record.host.host_reset == host.host_reset
                && record.host.host_boot == host.host_boot,
            "the host service bound under another host identity than the one measured"
        );
        self.record = Some(text);
        create.send(&Answer::Ok(()), &[])
    }
}

/// Annotations, for people and engines; evidence says the same with proof.
fn owner(admission: &Admission) -> BTreeMap<String, String> {
    let Programs::Listed(listed) = admission.programs() else {
        return BTreeMap::new();
    };
    let (list, signer) = (listed.list(), listed.signer());
    [
        ("subject", signer.subject().to_owned()),
        ("tenant", signer.tenant().to_owned()),
        ("list", list.digest().to_string()),
        ("list-name", list.name().to_owned()),
        ("list-serial", list.serial().to_string()),
    ]
    .map(|(key, value)| (format!("{ANNOTATIONS}{key}"), value))
    .into()
}

fn endorsable(journal: &Journal, identity: &swtpm::Identity) -> Result<Endorsable> {
    let make = journal.make()?;
    Ok(Endorsable {
        ek: BASE64.encode(identity.ek_public()?),
        level: make.level,
        revision: make.revision,
        manufacturer: make.manufacturer,
        firmware: make.firmware,
    })
}

fn attached(create: &Channel) -> Result<Holdings> {
    match create.expect()? {
        (FromCreate::Attach { means }, fds) => Holdings::of(means, fds),
        _ => bail!("guard: Bound is followed by Attach"),
    }
}
