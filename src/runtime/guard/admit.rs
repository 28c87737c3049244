//! Is this the image it claims to be, may it run like this, and is what lies on disk what was signed?
//!
//! From the rootfs outward: the engine's store says which image is mounted, signature and list decide
//! whether it may run, its layers say what the rootfs must hold, and the rootfs is read and compared.

use super::{
    Application,
    entry::{Entry, Seen},
    inside,
    rootfs::{self, Question, Rootfs},
    serials, view,
};
use crate::{
    config::{self, Config},
    hooks,
    ipc::Refused,
    lending,
    programs::Program,
    state::RunDir,
};
use anyhow::{Context, Error, Result, anyhow};
use content::{
    MAX_TRUST_FILE, read_trusted, require_trusted_directory,
    signatures::Store,
    store::{self, Attached, Client, Found, LocateError, Located, NoImage, Purpose, Query},
};
use oci_spec::runtime::{Process, Spec};
use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use verify::{
    digest::FileDigest,
    event::{How, TierName},
    image::Image,
    policy::{
        Admission, Enforce, Material, Measure, NotAdmitted, Policy, Programs, Subject, UpperRule,
        decide, plain_text,
    },
    profile::{LaunchProfile, Launcher},
    rootfs::{MeasuredRootfs, Owners, Stubs},
};

/// Everything that the start needs, with the witnesses that say why it may.
pub struct Admitted {
    pub admission: Arc<Admission>,
    pub rootfs: Rootfs,
    /// The sealed config.json.
    pub spec: Spec,
    /// Who gets the vTPM's socket, if anybody does.
    pub lent: Option<lending::Owner>,
    pub joined: inside::Joined,
    pub process: Process,
    /// Where its first argument leads to, before symbolic links are followed.
    pub program: PathBuf,
    /// What startContainer hooks are, in their order.
    pub start_hooks: Vec<FileDigest>,
    /// The list is no older than what was seen; absent only where mode `audit` let that pass.
    _list: Option<serials::Current>,
    /// What should have been refused, and mode `audit` let pass.
    pub audited: Vec<String>,
    pub took: Took,
}

/// How long the judging took, in microseconds.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Took {
    /// To find out which image it is.
    pub identity: u128,
    /// Policy, signatures, list, launch.
    pub decision: u128,
    /// To read and compare the root file system.
    pub rootfs: u128,
}

pub fn admit(application: &Application, config: &Config, run_dir: &RunDir) -> Result<Admitted> {
    let began = Instant::now();
    let sealed: Spec =
        serde_json::from_str(&application.config).context("the sealed config.json is malformed")?;
    let (spec, lent) = lending::as_called(&sealed, run_dir)?;
    let process = spec
        .process()
        .clone()
        .context("config.json has no process")?;
    let policy = config::policy()?;
    let policy = Policy::parse(&policy).with_context(|| format!("policy {}", config::POLICY))?;
    let joined = inside::joined(&spec)?;
    let root = store::Rootfs::open(&application.rootfs)?;
    let start_hooks = hooks::of_start(&spec, root.as_fd())?;
    let signatures = Path::new(config::SIGNATURES);
    require_trusted_directory(signatures).map_err(|why| {
        anyhow!(
            "cannot use the signature store {}: {why:#}",
            config::SIGNATURES
        )
    })?;
    let signatures = Store::open(signatures)?;
    let asked = Instant::now();
    let origin = locate(application, config, &root, &signatures)?;
    let identity = asked.elapsed();
    let host = view::of(
        &spec,
        application,
        &start_hooks,
        &joined,
        launcher(&origin),
        &config.stores,
    )?;
    let profile = LaunchProfile::of(&spec, &host)?;
    let admission = match &origin {
        Located::Image(found) => decided(application, found, &signatures, &policy, &profile)?,
        Located::NoImage(none) => {
            let subject = match none.purpose {
                Purpose::Build => Subject::Build(None),
                Purpose::Run | Purpose::Sandbox => Subject::Bundle(&none.rootfs),
            };
            decide(&policy, subject, &profile, application.created).map_err(not_admitted)?
        }
    };
    supported(&admission)?;
    let decision = began.elapsed() - identity;
    let mut court = Court::new(&admission);
    crate::copies::install(&application.copies)?;

    let rootfs = match (&origin, admission.made().image()) {
        (Located::Image(found), Some(image)) if admission.made().is_image() => {
            let stubs = Stubs::new(found.engine, places(&spec, &process))?;
            let owners = Owners::of(&spec);
            let question = Question {
                root: &root,
                image,
                layers: &found.layers,
                roots: &config.stores,
                admission: &admission,
                owners: owners.as_ref(),
            };
            compared(&question, stubs, &mut court)?
        }
        _ => {
            let found = rootfs::walk(&root)?;
            let measured = Rootfs::measured(&found);
            court.hear(admission.check_content(MeasuredRootfs::of(&found).manifest()))?;
            measured
        }
    };

    // the image's files are known; only what mounts will bring is not among them (judged at start)
    let known = |path: &[u8]| rootfs.known(path);
    let brought = admission.profile().brought();
    let entry = Entry::find(root.as_fd(), &process, brought, Seen::Rootfs, &known)?;
    court.hear(entry.judge(&admission))?;
    let start_hooks: Vec<_> = start_hooks.into_iter().map(|hook| hook.program).collect();
    court.hear(judge(&admission, How::Hook, &start_hooks))?;
    // last: only a list that lets something run has been seen
    let list = court.hear(serials::advance(&admission, application.created)?)?;
    let audited = court.close();
    Ok(Admitted {
        admission: Arc::new(admission),
        rootfs,
        spec: sealed,
        lent,
        joined,
        process,
        program: entry.path,
        start_hooks: start_hooks.iter().map(|hook| hook.digest).collect(),
        _list: list,
        audited,
        took: Took {
            identity: identity.as_micros(),
            decision: decision.as_micros(),
            rootfs: (began.elapsed() - identity - decision).as_micros(),
        },
    })
}

impl Admitted {
    /// The policy's least tier.
    pub fn demand(&mut self, tier: TierName, lacks: &str) -> Result<(), Refused> {
        match (
            self.admission.check_tier(tier, lacks),
            self.admission.mode(),
        ) {
            (Ok(()), _) => {}
            (Err(refusal), Enforce::Enforce) => return Err(Refused(refusal.to_string())),
            (Err(refusal), Enforce::Audit) => self.audited.push(refusal.to_string()),
        }
        Ok(())
    }
}

/// Hears every refusal: in mode `enforce` the first one ends the launch, in mode `audit` all are noted.
struct Court {
    mode: Enforce,
    audited: Vec<String>,
}

impl Court {
    fn new(admission: &Admission) -> Self {
        Self {
            mode: admission.mode(),
            audited: admission.audited().to_vec(),
        }
    }
    /// What was proved; `None`: refused, and let pass.
    fn hear<T, R: std::fmt::Display>(
        &mut self,
        outcome: Result<T, R>,
    ) -> Result<Option<T>, Refused> {
        match (outcome, self.mode) {
            (Ok(proved), _) => Ok(Some(proved)),
            (Err(refusal), Enforce::Enforce) => Err(Refused(refusal.to_string())),
            (Err(refusal), Enforce::Audit) => {
                self.audited.push(refusal.to_string());
                Ok(None)
            }
        }
    }
    fn close(self) -> Vec<String> {
        self.audited
    }
}

/// Only a list tells which files are listed.
fn supported(admission: &Admission) -> Result<(), Refused> {
    let terms = admission.terms();
    match (terms.measure, admission.programs()) {
        (Measure::Manifest | Measure::Files, _) => Ok(()),
        (Measure::Listed, Programs::Listed(_) | Programs::Named(_)) => Ok(()),
        (Measure::Listed, Programs::Args(_) | Programs::Any) => Err(Refused(format!(
            "refused: {}: measure = \"listed\" needs a list of programs [policy {} rule {}]; \
             let it have measure = \"files\" or \"manifest\"",
            admission.made(),
            config::POLICY,
            terms.name
        ))),
    }
}

/// Compares what the rootfs holds with the tree that the image's layers make.
fn compared(question: &Question<'_>, stubs: Stubs, court: &mut Court) -> Result<Rootfs> {
    let measured = || Ok(Rootfs::measured(&rootfs::walk(question.root)?));
    match question.ask(stubs) {
        Ok(rootfs::Answer::Same(rootfs, listed)) => {
            court.hear(listed)?;
            Ok(*rootfs)
        }
        Ok(rootfs::Answer::Differs(differences, listed)) => {
            // said by name: it is measured as it is, and its programs are judged by their content
            if question.admission.terms().upper == UpperRule::Pristine {
                court.hear::<(), _>(Err(question.refusal(&differences)))?;
            }
            court.hear(listed)?;
            measured()
        }
        Err(error) => {
            let refused = error.downcast::<Refused>()?;
            court.hear::<(), _>(Err(refused))?;
            measured()
        }
    }
}

/// Where engines may put stubs for what they mount.
fn places<'s>(spec: &'s Spec, process: &'s Process) -> Vec<&'s [u8]> {
    let mounts = spec
        .mounts()
        .iter()
        .flatten()
        .map(|m| m.destination().as_path());
    mounts
        .chain([process.cwd().as_path(), Path::new(lending::PLACE)])
        .map(|p| p.as_os_str().as_encoded_bytes())
        .collect()
}

/// Every file that the kernel would execute must be one that may be started, by its content.
pub fn judge(admission: &Admission, how: How, programs: &[Program]) -> Result<(), Refused> {
    for program in programs {
        if let Err(why) = admission.may_start(how, program.digest) {
            return Err(Refused(plain_text(&format!(
                "refused: {} ({}) of {} is {why} [policy {} rule {}]; \
                 if it may run, add it there: lists are signed anew with a higher serial and imported",
                String::from_utf8_lossy(&program.path),
                program.digest,
                admission.made(),
                config::POLICY,
                admission.rule(),
            ))));
        }
    }
    Ok(())
}

fn launcher(origin: &Located) -> Launcher {
    match origin {
        Located::Image(found) => found.launcher,
        Located::NoImage(none) => none.launcher,
    }
}

/// What the rootfs was mounted from.
fn locate(
    application: &Application,
    config: &Config,
    rootfs: &store::Rootfs,
    signatures: &Store,
) -> Result<Located> {
    let query = Query {
        rootfs,
        container: &application.container,
        state_root: &application.state_root,
        bundle: &application.bundle,
    };
    match store::locate(&query, &config.stores, signatures, &Client::connect) {
        Ok(located) => Ok(located),
        // a mount of no store that the configuration names is as good as a directory
        Err(LocateError::UnknownStore { path, .. }) => Ok(Located::NoImage(NoImage {
            rootfs: path,
            purpose: Purpose::Run,
            launcher: Launcher::Other,
        })),
        Err(LocateError::Failed(error)) => {
            Err(error.context("cannot find out the container's image"))
        }
        // an image that contradicts itself is a no of the policy
        Err(other) => {
            let text = format!(
                "refused: {other}; only images that a rule of {} names may run",
                config::POLICY
            );
            Err(Refused(plain_text(&text)).into())
        }
    }
}

/// The first of the image's manifests that the policy admits.
fn decided(
    application: &Application,
    found: &Found,
    signatures: &Store,
    policy: &Policy,
    profile: &LaunchProfile,
) -> Result<Admission> {
    let (mut refusal, mut audited) = (None, None);
    for claimed in &found.claims {
        let image = Image::of(claimed).with_context(|| format!("image {}", claimed.name))?;
        let material = Material::gather(
            policy,
            &image,
            |path| read_trusted(path, MAX_TRUST_FILE).map_err(|e| format!("{e:#}")),
            |digest| found.signatures(digest, signatures),
            |digest| signatures.lists(digest),
        )?;
        let subject = match found.purpose {
            Purpose::Build => Subject::Build(Some(&image)),
            // a sandbox needs no word of its engine: its entry is exact in image and arguments
            Purpose::Run | Purpose::Sandbox => Subject::Image(&material),
        };
        match decide(policy, subject, profile, application.created) {
            Ok(admission) if admission.audited().is_empty() => return Ok(admission),
            Ok(admission) => drop(audited.get_or_insert(admission)),
            Err(NotAdmitted::Refused(refused)) => drop(refusal.get_or_insert(refused)),
            Err(undecided @ NotAdmitted::Undecided(_)) => return Err(not_admitted(undecided)),
        }
    }
    match (audited, refusal) {
        (Some(admission), _) => Ok(admission),
        (None, Some(refused)) => Err(Refused(refused.to_string() + &unusable(found)).into()),
        (None, None) => anyhow::bail!("image {} has no manifest", found.name),
    }
}

/// What the policy says no to is one thing, what could not be found out another.
fn not_admitted(why: NotAdmitted) -> Error {
    match why {
        NotAdmitted::Refused(refusal) => Refused(refusal.to_string()).into(),
        NotAdmitted::Undecided(undecided) => undecided.into(),
    }
}

/// What the engine keeps as signatures and nobody could judge: part of why there was none.
fn unusable(found: &Found) -> String {
    const TOLD: usize = 3;
    let reasons = found.attached.iter().filter_map(|attached| match attached {
        Attached::Unusable(why) => Some(why.as_str()),
        Attached::Signature(_) => None,
    });
    let told: Vec<_> = reasons.take(TOLD).collect();
    match told.as_slice() {
        [] => String::new(),
        told => plain_text(&format!(
            "; of the signatures that the engine keeps with it some are unusable: {}",
            told.join(", ")
        )),
    }
}
