//! What evidence says about host and container, for the tree that people read. Claims only: an
//! accepted verdict is what makes them facts.

use super::facts::Facts;
use super::rolling::BindingLog;
use crate::digest::{
    FileDigest, ImageDigest, KeyDigest, ListDigest, PolicyDigest, RecordDigest, RootfsDigest,
};
use crate::event::{EnterMode, Event, MountContent, Origin, ProgramsRule};
use crate::evidence::Root;
use crate::id::{ContainerId, UnixTime};
use crate::tpm2::TpmName;
use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostReport {
    /// As the challenger's expectations call it; None if its key is not pinned.
    pub name: Option<String>,
    pub root: Root,
    pub ak_name: Option<TpmName>,
    pub boot: Option<String>,
    pub reset: Option<u32>,
    pub firmware: Option<String>,
    /// Entries of the binding log.
    pub log_entries: Option<usize>,
}

/// A program that was executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Executed {
    /// Percent-encoded.
    pub path: String,
    pub digest: FileDigest,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Measured {
    pub origin: Option<Origin>,
    pub programs: Option<ProgramsRule>,
    /// What should have been refused.
    pub audited: Vec<String>,
    pub image_name: Option<String>,
    /// The root file system of a container without an image.
    pub directory: Option<String>,
    pub image_key: Option<KeyDigest>,
    /// Of a keyless signature: subject and issuer.
    pub image_identity: Option<(String, String)>,
    pub rule: Option<String>,
    pub enter: Option<EnterMode>,
    pub rootfs: Option<RootfsDigest>,
    pub stubs: Vec<String>,
    pub user: Option<String>,
    pub tenant: Option<String>,
    pub list_name: Option<String>,
    pub list_serial: Option<u64>,
    pub attestrun: Option<String>,
    pub swtpm: Option<String>,
    pub backend: Option<String>,
    pub kernel: Option<String>,
    /// What stood in bind mounts at the start.
    pub mounts: Vec<MountContent>,
    /// Files of the rootfs that are measured by themselves.
    pub files: usize,
    pub started: bool,
    pub executed: Vec<Executed>,
    /// Programs that were let into, or kept out of, the running container.
    pub entered: usize,
    pub denied: usize,
    /// Programs that processes of the container were not let execute.
    pub denied_inside: usize,
    pub faults: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerReport {
    /// The container that was asked about.
    pub id: ContainerId,
    pub record: RecordDigest,
    pub created: Option<UnixTime>,
    pub ak_name: Option<TpmName>,
    pub image: Option<ImageDigest>,
    pub list: Option<ListDigest>,
    pub policy: Option<PolicyDigest>,
    pub mode: Option<String>,
    pub tier: Option<String>,
    /// From the event log; None if it does not parse.
    pub measured: Option<Measured>,
}

impl HostReport {
    pub(super) fn of(facts: &Facts<'_>) -> Self {
        let record = facts.record.as_ref().ok();
        let quote = facts.host.verified();
        Self {
            name: facts.pin().ok().map(|pin| pin.name.clone()),
            root: facts.evidence.host_root,
            ak_name: facts.host_public().ok().map(|key| key.name()),
            boot: record.map(|record| record.host.host_boot.clone()),
            reset: quote.map(|quote| quote.reset()),
            firmware: quote.map(|quote| format!("{:#018x}", quote.firmware())),
            log_entries: facts.binding_log.as_ref().ok().map(BindingLog::len),
        }
    }
}

impl ContainerReport {
    pub(super) fn of(facts: &Facts<'_>) -> Self {
        let claim = facts.record.as_ref().ok().map(|record| &record.claim);
        Self {
            id: facts.challenge.container.clone(),
            record: facts.r,
            created: claim.map(|claim| claim.created),
            ak_name: claim.map(|claim| claim.vtpm_ak_name),
            image: claim.and_then(|claim| claim.image.digest().copied()),
            list: claim.and_then(|claim| claim.siglist.digest().copied()),
            policy: claim.map(|claim| claim.policy),
            mode: claim.map(|claim| claim.mode.clone()),
            tier: claim.map(|claim| claim.tier.clone()),
            measured: facts.log.as_ref().ok().map(|log| {
                let mut measured = Measured::default();
                log.events.iter().for_each(|event| measured.add(event));
                measured.entered += log.earlier.entered;
                let executed = log.programs().map(|(path, digest)| Executed {
                    path: path.to_string(),
                    digest: *digest,
                });
                measured.executed = executed.collect();
                measured.files = log.all_measured_files();
                measured
            }),
        }
    }
}

impl Measured {
    fn add(&mut self, event: &Event) {
        use crate::event::{EnterVerdict, Verdict};
        match event {
            Event::Image(image) => {
                self.image_name = Some(image.name.clone());
                match &image.verdict {
                    Verdict::Key { fingerprint, .. } => self.image_key = Some(*fingerprint),
                    Verdict::Keyless {
                        subject, issuer, ..
                    } => self.image_identity = Some((subject.clone(), issuer.clone())),
                    Verdict::Named {} | Verdict::Unsigned {} => {}
                }
            }
            Event::NoImage(none) => self.directory = Some(none.rootfs.clone()),
            Event::Grounds(grounds) => {
                self.origin = Some(grounds.origin);
                self.programs = Some(grounds.programs);
                self.audited.clone_from(&grounds.audited);
            }
            Event::Policy(policy) => {
                self.rule = Some(policy.rule.clone());
                self.enter = Some(policy.enter);
            }
            Event::Rootfs(rootfs) => {
                self.rootfs = Some(rootfs.manifest);
                self.stubs.clone_from(&rootfs.stubs);
            }
            Event::User(user) => {
                self.user = Some(user.subject.clone());
                self.tenant = Some(user.tenant.clone());
            }
            Event::List(list) => {
                self.list_name = Some(list.name.clone());
                self.list_serial = Some(list.serial);
            }
            Event::Runtime(runtime) => {
                self.attestrun = Some(runtime.attestrun.version.clone());
                self.swtpm = Some(runtime.swtpm.version.clone());
            }
            Event::Launch(launch) => {
                self.backend = Some(format!(
                    "{} {}",
                    launch.backend.name, launch.backend.version
                ));
            }
            Event::Mount(mount) => self.mounts.push(mount.clone()),
            Event::Tier(tier) => self.kernel = Some(tier.kernel.clone()),
            Event::Start => self.started = true,
            Event::Enter(enter) => match enter.verdict {
                EnterVerdict::Allowed | EnterVerdict::Audited => self.entered += 1,
                EnterVerdict::Denied => self.denied += 1,
            },
            Event::Inside(inside) if inside.verdict == EnterVerdict::Denied => {
                self.denied_inside += 1;
            }
            Event::Fault(_) => self.faults += 1,
            Event::HostLink(_)
            | Event::RootfsDone(_)
            | Event::FilesDone(_)
            | Event::NoList(_)
            | Event::Separator(_)
            | Event::KernelKeys(_)
            | Event::Hooked(_)
            | Event::Exec(_)
            | Event::Inside(_) => {}
        }
    }
}
