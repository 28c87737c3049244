//! What was judged goes into the vTPM's PCRs, in clear text, before anything runs: the golden contract
//! of `verify::event`, in its order.

use super::{Application, admit::Admitted, journal::Journal, rootfs::Outcome, swtpm::Identity};
use crate::{config::Config, executables};
use anyhow::{Context, Result};
use std::path::Path;
use verify::{
    binding::Claim,
    digest::{BundleDigest, FileDigest, OrNone},
    event::{
        Enforce, Event, Executable, FilesDone, Grounds, Image, Latitude, Launch, List, Measure,
        NoImage, NoList, Policy, Rootfs, RootfsCheck, RootfsDone, Runtime, Tier, TierName, User,
        Verdict,
    },
    pcr::{LAST_CLOSED, PcrIndex},
    policy::{Admission, Made, Programs},
    signature::{Signed, Signer},
};

/// What is measured.
pub struct Subject<'a> {
    pub application: &'a Application,
    pub admitted: &'a Admitted,
    pub identity: &'a Identity,
    pub tier: TierName,
    pub memory_files: Latitude,
}

/// Extends PCRs 0 to 7 and 11 and returns what is to be bound.
pub fn measure(journal: &Journal, subject: &Subject<'_>, config: &Config) -> Result<Claim> {
    let Subject {
        application,
        admitted,
        identity,
        tier,
        memory_files,
    } = *subject;
    let admission = &admitted.admission;
    let rule = || admission.rule().to_owned();
    let runtime = Runtime {
        attestrun: myself()?,
        swtpm: swtpm(config)?,
    };
    let image = admission.made().image();
    let listed = match admission.programs() {
        Programs::Listed(listed) => Some(listed.as_ref()),
        Programs::Named(_) | Programs::Args(_) | Programs::Any => None,
    };
    let claim = Claim {
        container: application.container.clone(),
        created: application.created,
        vtpm_ak_name: identity.aik.name,
        vtpm_ek_name: identity.ek.name,
        vtpm_reset: identity.reset,
        vtpm_restart: identity.restart,
        image: image.map_or(OrNone::None, |image| image.manifest_digest().into()),
        image_config: image.map_or(OrNone::None, |image| image.config_digest().into()),
        bundle_config: BundleDigest::of(application.config.as_bytes()),
        profile: admission.profile_digest(),
        siglist: listed.map_or(OrNone::None, |listed| listed.list().digest().into()),
        user_cert: listed.map_or(OrNone::None, |listed| listed.signer().certificate().into()),
        policy: admission.policy_digest(),
        mode: mode(admission.mode()).to_owned(),
        tier: tier.name().to_owned(),
        runtime: runtime.attestrun.sha256,
        swtpm: runtime.swtpm.sha256,
        peers: admission
            .profile()
            .peers()
            .iter()
            .map(|peer| peer.record.hex())
            .collect(),
    };
    let rootfs = rootfs(&admitted.rootfs);
    let check = rootfs.check;
    let manifest = rootfs.manifest;
    let mut events = vec![
        Event::HostLink(application.host.clone()),
        Event::Runtime(runtime),
        Event::Launch(Box::new(Launch {
            bundle_config: claim.bundle_config,
            backend: application.backend.clone(),
            profile: admission.profile().clone(),
        })),
        made(admission, application),
        Event::Rootfs(rootfs),
        Event::RootfsDone(RootfsDone { manifest }),
        Event::Policy(Policy {
            digest: claim.policy,
            enforce: admission.mode(),
            tier,
            rootfs: check,
            measure: admission.terms().measure,
            // neither tier prevents any of these, and says so
            scripts: Latitude::Any,
            inject: Latitude::Any,
            anonymous_exec: Latitude::Any,
            enter: admission.enter(),
            exec_log: admission.terms().exec_log,
            rule: rule(),
            decided_at: application.created,
        }),
        Event::Grounds(Grounds {
            origin: admission.made().origin(),
            programs: admission.programs().rule(),
            mounts: admission.terms().mounts,
            upper: admission.terms().upper,
            relaxations: admission
                .relaxations()
                .iter()
                .map(ToString::to_string)
                .collect(),
            sources: admission.sources().to_vec(),
            audited: admitted.audited.clone(),
        }),
    ];
    match listed {
        None => events.push(Event::NoList(NoList {
            programs: admission.programs().rule(),
            rule: rule(),
        })),
        Some(listed) => {
            let (list, signer) = (listed.list(), listed.signer());
            events.push(Event::User(User {
                certificate: signer.certificate(),
                subject: signer.subject().to_owned(),
                tenant: signer.tenant().to_owned(),
            }));
            events.push(Event::List(List {
                digest: list.digest(),
                name: list.name().to_owned(),
                serial: list.serial(),
            }));
        }
    }
    for event in &events {
        journal.record(event)?;
    }
    files(journal, admitted)?;
    for pcr in 0..=LAST_CLOSED.get() {
        journal.record(&Event::Separator(PcrIndex::new(pcr.into())?))?;
    }
    journal.record(&Event::Tier(Tier {
        tier,
        kernel: kernel(),
        memory_files,
    }))?;
    Ok(claim)
}

/// PCR 10: the rootfs's files by themselves, where the policy says so.
fn files(journal: &Journal, admitted: &Admitted) -> Result<()> {
    let admission = &admitted.admission;
    let measure = admission.terms().measure;
    let wanted = |digest: &FileDigest| match measure {
        Measure::Manifest => false,
        Measure::Files => true,
        Measure::Listed => admission.is_listed(digest),
    };
    if measure == Measure::Manifest {
        return Ok(());
    }
    let files = admitted.rootfs.files()?;
    let files: Vec<_> = files
        .into_iter()
        .filter(|(_, digest)| wanted(digest))
        .collect();
    let count = files.len() as u64;
    let done = FilesDone {
        measure,
        files: count,
    };
    journal.files(&files, &Event::FilesDone(done))
}

/// PCR 2: the image and who vouches for it, or that there is none.
fn made(admission: &Admission, application: &Application) -> Event {
    let rule = admission.rule().to_owned();
    let verdict = match admission.made() {
        Made::Signed(image) => signed_by(image.signed_by()),
        Made::Sandbox(_) => Verdict::Named {},
        Made::Build(_) | Made::Bundle(..) | Made::Unsigned(_) => Verdict::Unsigned {},
    };
    match admission.made().image() {
        Some(image) => Event::Image(Image {
            manifest: image.manifest_digest(),
            config: image.config_digest(),
            name: image.name().to_owned(),
            verdict,
            rule,
        }),
        None => Event::NoImage(NoImage {
            rootfs: application.rootfs.display().to_string(),
            rule,
        }),
    }
}

fn rootfs(found: &super::rootfs::Rootfs) -> Rootfs {
    match found.outcome() {
        Outcome::Checked(rootfs, check) => Rootfs {
            manifest: rootfs.manifest(),
            check: *check,
            entries: rootfs.entries(),
            bytes: rootfs.bytes(),
            stubs: rootfs.stubs().to_vec(),
        },
        Outcome::Measured(rootfs) => Rootfs {
            manifest: rootfs.manifest(),
            check: RootfsCheck::Measured,
            entries: rootfs.entries(),
            bytes: rootfs.bytes(),
            stubs: Vec::new(),
        },
    }
}

/// Who vouched for the image.
fn signed_by(signed: &Signed) -> Verdict {
    let docker_reference = signed.docker_reference().map(str::to_owned);
    match signed.signer() {
        Signer::Key(fingerprint) => Verdict::Key {
            fingerprint: *fingerprint,
            docker_reference,
        },
        Signer::Identity {
            subject,
            issuer,
            certificate,
        } => Verdict::Keyless {
            subject: subject.clone(),
            issuer: issuer.clone(),
            certificate: *certificate,
            docker_reference,
        },
    }
}

fn mode(enforce: Enforce) -> &'static str {
    match enforce {
        Enforce::Enforce => "enforce",
        Enforce::Audit => "audit",
    }
}

fn myself() -> Result<Executable> {
    let sha256 = executables::digest(Path::new("/proc/self/exe"))?;
    Ok(Executable {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sha256,
    })
}

fn swtpm(config: &Config) -> Result<Executable> {
    let sha256 = executables::digest(&config.swtpm)?;
    let version = executables::remembered("swtpm-version", &sha256, || {
        let said = crate::spawn::version_of(&config.swtpm)?;
        let version = tpm::swtpm::version(&said)
            .with_context(|| format!("{} does not say its version", config.swtpm.display()))?;
        Ok(version.to_owned())
    })?;
    Ok(Executable { version, sha256 })
}

fn kernel() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}
