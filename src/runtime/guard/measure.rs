//! What was judged goes into the vTPM's PCRs, in clear text, before anything runs: the golden contract
//! of `verify::event`, in its order.

use super::{Application, admit::Admitted, journal::Journal, swtpm::Identity};
use crate::{config::Config, executables};
use anyhow::{Context, Result};
use std::path::Path;
use verify::{
    binding::Claim,
    digest::BundleDigest,
    event::{
        Enforce, Event, ExecLog, Executable, Image, Latitude, Launch, List, Measure, Policy,
        Rootfs, RootfsCheck, RootfsDone, Runtime, Tier, TierName, User, Verdict,
    },
    pcr::{LAST_CLOSED, PcrIndex},
    signature::{Signed, Signer},
};

/// Extends PCRs 0 to 7 and 11 and returns what is to be bound.
pub fn measure(
    journal: &mut Journal,
    application: &Application,
    admitted: &Admitted,
    identity: &Identity,
    config: &Config,
) -> Result<Claim> {
    let admission = &admitted.admission;
    let (image, list, signer) = (admission.image(), admission.list(), admission.signer());
    let runtime = Runtime {
        attestrun: myself()?,
        swtpm: swtpm(config)?,
    };
    let claim = Claim {
        container: application.container.clone(),
        created: application.created,
        vtpm_ak_name: identity.aik.name,
        vtpm_ek_name: identity.ek.name,
        vtpm_reset: identity.reset,
        vtpm_restart: identity.restart,
        image: image.manifest_digest(),
        image_config: image.config_digest(),
        bundle_config: BundleDigest::of(application.config.as_bytes()),
        profile: admission.profile().digest(),
        siglist: list.digest(),
        user_cert: signer.certificate(),
        policy: admission.policy_digest(),
        mode: mode(admission.mode()).to_owned(),
        tier: TIER.to_owned(),
        runtime: runtime.attestrun.sha256,
        swtpm: runtime.swtpm.sha256,
        peers: Vec::new(),
    };
    let manifest = admitted.rootfs.manifest();
    let events = [
        Event::HostLink(application.host.clone()),
        Event::Runtime(runtime),
        Event::Launch(Box::new(Launch {
            bundle_config: claim.bundle_config,
            backend: application.backend.clone(),
            profile: admission.profile().profile().clone(),
        })),
        Event::Image(Image {
            manifest: claim.image,
            config: claim.image_config,
            name: image.name().to_owned(),
            verdict: verdict(admission.signed_by()),
            rule: admission.rule().to_owned(),
        }),
        Event::Rootfs(Rootfs {
            manifest,
            check: RootfsCheck::Full,
            entries: admitted.rootfs.entries(),
            bytes: admitted.rootfs.bytes(),
            stubs: admitted.rootfs.stubs().to_vec(),
        }),
        Event::RootfsDone(RootfsDone { manifest }),
        Event::Policy(Policy {
            digest: claim.policy,
            enforce: admission.mode(),
            tier: TierName::None,
            rootfs: RootfsCheck::Full,
            measure: Measure::Manifest,
            // tier none prevents none of these, and says so
            scripts: Latitude::Any,
            inject: Latitude::Any,
            anonymous_exec: Latitude::Any,
            enter: admission.enter(),
            exec_log: ExecLog::First,
            rule: admission.rule().to_owned(),
            decided_at: application.created,
        }),
        Event::User(User {
            certificate: claim.user_cert,
            subject: signer.subject().to_owned(),
            tenant: signer.tenant().to_owned(),
        }),
        Event::List(List {
            digest: claim.siglist,
            name: list.name().to_owned(),
            serial: list.serial(),
        }),
    ];
    for event in &events {
        journal.record(event)?;
    }
    for pcr in 0..=LAST_CLOSED.get() {
        journal.record(&Event::Separator(PcrIndex::new(pcr.into())?))?;
    }
    journal.record(&Event::Tier(Tier {
        tier: TierName::None,
        kernel: kernel(),
    }))?;
    Ok(claim)
}

/// What watches executions inside the container: nothing yet, and evidence says so.
const TIER: &str = "none";

/// Who vouched for the image.
fn verdict(signed: &Signed) -> Verdict {
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
