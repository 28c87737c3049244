//! The launch profile: a clear-text summary of config.json (OCI runtime-spec 1.x) that is judged at
//! `create`, measured into PCR 1, and judged again by the challenger.
//!
//! config.json points at things on the host (sources of bind mounts, hooks, namespaces); the caller
//! looks these up and hands the answers over in a [`HostView`], so that names are not judged by sight.

use crate::canon::{NotCanonical, canonical};
use crate::digest::{FileDigest, ProfileDigest, RecordDigest};
use crate::id::ContainerId;
use oci_spec::runtime::{Hook, Linux, LinuxDeviceCgroup, LinuxNamespaceType, Mount, Spec};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

mod defaults;
mod demands;
mod devices;
mod judge;
mod process;
mod relaxation;
mod syscalls;

pub use defaults::Launcher;
pub use demands::{AnyOr, AnyWord, Demands, SeccompDemand, SeccompWord};
pub use devices::DeviceNode;
pub use judge::{
    Area, HookAdditions, JudgedProcess, JudgedProfile, Objection, judge, judge_added,
    judge_process, loads_code,
};
pub use process::{CapabilitySets, ProcessProfile, UserProfile};
pub use relaxation::{LaunchRules, NotARelaxation, Relaxation};

/// A config.json that cannot be summarised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error("config.json has no `{0}`")]
    Missing(&'static str),
    #[error("config.json: process.args is empty")]
    NoArgs,
    #[error("config.json: {what} `{path}` was not looked up on the host")]
    Unresolved { what: &'static str, path: String },
    #[error("config.json: {0}")]
    Encoding(String),
    #[error("config.json names the {0} namespace twice")]
    DuplicateNamespace(String),
}

/// Facts about the host that config.json only points at; [`needs`] says which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostView {
    /// Whose config.json it is.
    pub launcher: Launcher,
    /// The kernel has AppArmor, and it is on.
    pub apparmor: bool,
    /// The kernel has SELinux, and a policy is loaded.
    pub selinux: bool,
    /// cgroup v2 alone is mounted, where engines give each container a cgroup namespace.
    pub unified_cgroups: bool,
    /// Where this launcher keeps volumes of its own, canonical, and under their other names.
    pub volume_roots: Vec<PathBuf>,
    /// Source of each bind mount → its canonical path (no symbolic links, no `..`).
    pub sources: BTreeMap<PathBuf, PathBuf>,
    /// Such a canonical path → other places of the same directory or file, when it is itself a bind mount
    /// (as Docker's `local` volumes may be); left out: none.
    pub origins: BTreeMap<PathBuf, Vec<PathBuf>>,
    /// Path of each hook → which program that is.
    pub hooks: BTreeMap<PathBuf, HostProgram>,
    /// Source of the bind mount that brings the container's first program → which program that is.
    pub programs: BTreeMap<PathBuf, HostProgram>,
    /// Path of each startContainer hook, which is a file of the container → its content.
    pub start_hooks: BTreeMap<PathBuf, FileDigest>,
    /// Path of each namespace that is joined → whose it is.
    pub namespaces: BTreeMap<PathBuf, NamespaceOwner>,
    /// Major and minor numbers of the host's TPM devices (`/dev/tpm*`).
    pub tpm_devices: Vec<(i64, i64)>,
}

/// A program of the host: config.json may name attestrun's own copy of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostProgram {
    /// As the engine named it.
    pub path: PathBuf,
    pub digest: FileDigest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceOwner {
    /// The initial namespace: joining it is sharing the host's.
    Host,
    /// An attested container's.
    Peer(Peer),
    Other,
}

/// The container that a joined namespace came to be with: whoever relies on the one that joins relies on
/// it, too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub container: ContainerId,
    /// Of its binding record.
    pub record: RecordDigest,
}

/// The paths that a [`HostView`] must answer for this config.json.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    pub sources: BTreeSet<PathBuf>,
    pub hooks: BTreeSet<PathBuf>,
    pub start_hooks: BTreeSet<PathBuf>,
    pub namespaces: BTreeSet<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchProfile {
    /// Whose defaults apply.
    pub launcher: Launcher,
    pub host_apparmor: bool,
    pub host_selinux: bool,
    pub host_unified_cgroups: bool,
    pub process: ProcessProfile,
    /// All eight kinds, by name.
    pub namespaces: Vec<NamespaceUse>,
    pub mounts: Vec<MountUse>,
    /// Directories below which the engine keeps volumes of its own.
    pub volume_roots: Vec<String>,
    /// SELinux's label of the files that are mounted, else empty.
    pub mount_label: String,
    /// Kernel parameters that are set, by name.
    pub sysctls: BTreeMap<String, String>,
    pub devices: Vec<DeviceNode>,
    /// Rules of the device cgroup in their order: `allow c 1:3 rwm`.
    pub device_rules: Vec<String>,
    /// These rules leave a host TPM readable or writable.
    pub tpm_by_rule: bool,
    pub hooks: Vec<HookProgram>,
    pub rootfs_readonly: bool,
    /// `none`, or the digest of the seccomp section.
    pub seccomp: String,
    /// What it lets through of the system calls that some engine's default filter denies; `*`: whatever
    /// it does not name.
    pub seccomp_opens: Vec<String>,
    /// In alphabetical order.
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub cgroups_path: String,
}

/// How a container comes by its namespace of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceUse {
    /// As config.json calls it: `pid`, `network`, `mount`…
    #[serde(rename = "type")]
    pub kind: String,
    pub how: How,
    /// The joined namespace, else empty.
    pub path: String,
    /// Absent: it is no attested container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    New,
    /// The host's, by leaving it out or by joining it.
    Host,
    Joined,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountUse {
    pub destination: String,
    /// The file system type, or `bind`.
    #[serde(rename = "type")]
    pub kind: String,
    /// As config.json has it.
    pub source: String,
    /// Where the source of a bind mount really is; else empty.
    pub real_source: String,
    /// Where else that is, when it was bind-mounted itself.
    pub origins: Vec<String>,
    pub options: Vec<String>,
    /// The container begins with this file of the host (an engine's init), which lies in no image;
    /// what is mounted is a copy of it with this content. Absent for every other mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<FileDigest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookProgram {
    /// As config.json calls it: `prestart`, `createRuntime`…
    pub stage: String,
    pub path: String,
    pub digest: FileDigest,
    /// Over the canonical JSON of the hook's arguments.
    pub args_digest: String,
    /// Names of its environment variables, sorted, each once; without any it has its runner's.
    pub env_names: Vec<String>,
}

/// What has to be looked up on the host before [`LaunchProfile::of`].
pub fn needs(spec: &Spec) -> Needs {
    let mut needs = Needs::default();
    for mount in spec.mounts().iter().flatten().filter(|m| is_bind(m)) {
        needs.sources.extend(mount.source().clone());
    }
    for (stage, hook) in hooks(spec) {
        let of_stage = match stage {
            START_CONTAINER => &mut needs.start_hooks,
            _ => &mut needs.hooks,
        };
        of_stage.insert(hook.path().clone());
    }
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    for namespace in namespaces.into_iter().flatten() {
        needs.namespaces.extend(joined(namespace.path()));
    }
    needs
}

impl HookProgram {
    /// It is a program of the container's, not one of the host's.
    pub fn runs_inside(&self) -> bool {
        self.stage == START_CONTAINER
    }
}

impl LaunchProfile {
    pub fn of(spec: &Spec, host: &HostView) -> Result<Self, ProfileError> {
        let process = spec
            .process()
            .as_ref()
            .ok_or(ProfileError::Missing("process"))?;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or(ProfileError::Missing("linux"))?;
        let root = spec.root().as_ref().ok_or(ProfileError::Missing("root"))?;
        let rules: &[LinuxDeviceCgroup] = linux
            .resources()
            .as_ref()
            .and_then(|r| r.devices().as_deref())
            .unwrap_or_default();
        let mut tpms = host.tpm_devices.clone();
        tpms.push(devices::TPM0);
        Ok(Self {
            launcher: host.launcher,
            host_apparmor: host.apparmor,
            host_selinux: host.selinux,
            host_unified_cgroups: host.unified_cgroups,
            process: ProcessProfile::of(process)?,
            namespaces: namespaces(linux, host)?,
            mounts: spec
                .mounts()
                .iter()
                .flatten()
                .map(|m| mount_use(m, host))
                .collect::<Result<_, _>>()?,
            volume_roots: (host.volume_roots.iter())
                .map(|root| utf8(root))
                .collect::<Result<_, _>>()?,
            mount_label: linux.mount_label().clone().unwrap_or_default(),
            sysctls: (linux.sysctl().iter().flatten())
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            devices: devices::nodes(linux, &tpms)?,
            device_rules: rules.iter().map(devices::rule_text).collect(),
            tpm_by_rule: tpms.iter().any(|tpm| devices::reachable(rules, *tpm)),
            hooks: hook_programs(spec, host)?,
            rootfs_readonly: root.readonly().unwrap_or(false),
            seccomp: match linux.seccomp() {
                None => "none".to_owned(),
                Some(seccomp) => digest_of(seccomp)?,
            },
            seccomp_opens: linux
                .seccomp()
                .as_ref()
                .map_or_else(Vec::new, syscalls::opened),
            masked_paths: sorted(linux.masked_paths()),
            readonly_paths: sorted(linux.readonly_paths()),
            cgroups_path: match linux.cgroups_path() {
                None => String::new(),
                Some(path) => utf8(path)?,
            },
        })
    }
    /// SHA-256 of the canonical JSON: `profile` of the binding record.
    pub fn digest(&self) -> Result<ProfileDigest, NotCanonical> {
        Ok(ProfileDigest::of(&canonical(self)?))
    }
    /// The program of the host that the container begins with, if it does not begin with the image's.
    pub fn brought(&self) -> Option<FileDigest> {
        self.mounts.iter().find_map(|mount| mount.program)
    }

    /// Whose namespaces are joined, each container once.
    pub fn peers(&self) -> BTreeSet<&Peer> {
        self.namespaces
            .iter()
            .filter_map(|n| n.peer.as_ref())
            .collect()
    }

    /// How the namespace of this kind (`pid`, `mount`…) is come by; what is not said is the host's.
    pub fn namespace(&self, kind: &str) -> How {
        self.namespaces
            .iter()
            .find(|n| n.kind == kind)
            .map_or(How::Host, |n| n.how)
    }
}

/// config.json's names (runtime-spec, config-linux.md, "Namespaces"), in alphabetical order.
const NAMESPACES: [(&str, LinuxNamespaceType); 8] = [
    ("cgroup", LinuxNamespaceType::Cgroup),
    ("ipc", LinuxNamespaceType::Ipc),
    ("mount", LinuxNamespaceType::Mount),
    ("network", LinuxNamespaceType::Network),
    ("pid", LinuxNamespaceType::Pid),
    ("time", LinuxNamespaceType::Time),
    ("user", LinuxNamespaceType::User),
    ("uts", LinuxNamespaceType::Uts),
];

fn namespaces(linux: &Linux, host: &HostView) -> Result<Vec<NamespaceUse>, ProfileError> {
    let given = linux.namespaces().as_deref().unwrap_or_default();
    NAMESPACES
        .iter()
        .map(|(name, typ)| {
            let mut of_kind = given.iter().filter(|n| n.typ() == *typ);
            let (how, path, peer) = match (of_kind.next(), of_kind.next()) {
                (Some(_), Some(_)) => {
                    return Err(ProfileError::DuplicateNamespace((*name).to_owned()));
                }
                (None, _) => (How::Host, String::new(), None),
                (Some(namespace), None) => match joined(namespace.path()) {
                    None => (How::New, String::new(), None),
                    Some(path) => match host.namespaces.get(&path) {
                        Some(NamespaceOwner::Host) => (How::Host, utf8(&path)?, None),
                        Some(NamespaceOwner::Other) => (How::Joined, utf8(&path)?, None),
                        Some(NamespaceOwner::Peer(peer)) => {
                            (How::Joined, utf8(&path)?, Some(peer.clone()))
                        }
                        None => return Err(unresolved("joined namespace", &path)),
                    },
                },
            };
            Ok(NamespaceUse {
                kind: (*name).to_owned(),
                how,
                path,
                peer,
            })
        })
        .collect()
}

/// An empty path is none (runc, specconv).
fn joined(path: &Option<PathBuf>) -> Option<PathBuf> {
    path.clone().filter(|path| !path.as_os_str().is_empty())
}

/// What runc takes for a bind mount: the options decide; `type: bind` alone is read the strict way.
fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.into_iter().any(|o| o == "bind" || o == "rbind")
}

fn mount_use(mount: &Mount, host: &HostView) -> Result<MountUse, ProfileError> {
    let source = mount.source().clone().unwrap_or_default();
    let (kind, real_source, origins) = match is_bind(mount) {
        true => match host.sources.get(&source) {
            Some(real) => {
                let origins = host.origins.get(real).into_iter().flatten();
                let origins = origins.map(|o| utf8(o)).collect::<Result<_, _>>()?;
                ("bind".to_owned(), utf8(real)?, origins)
            }
            None => return Err(unresolved("source of a bind mount", &source)),
        },
        false => {
            let kind = mount.typ().clone().unwrap_or_default();
            (kind, String::new(), Vec::new())
        }
    };
    Ok(MountUse {
        destination: utf8(mount.destination())?,
        kind,
        source: utf8(&source)?,
        real_source,
        origins,
        options: mount.options().clone().unwrap_or_default(),
        program: host.programs.get(&source).map(|program| program.digest),
    })
}

/// The stage whose hooks init itself runs: files of the container, with its rights and under its filter.
pub const START_CONTAINER: &str = "startContainer";

/// The hooks in the order in which they run (runtime-spec, config.md, "POSIX-platform Hooks").
fn hooks(spec: &Spec) -> Vec<(&'static str, &Hook)> {
    let Some(hooks) = spec.hooks() else {
        return Vec::new();
    };
    let stages = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        (START_CONTAINER, hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    stages
        .into_iter()
        .flat_map(|(stage, hooks)| hooks.iter().flatten().map(move |hook| (stage, hook)))
        .collect()
}

fn hook_programs(spec: &Spec, host: &HostView) -> Result<Vec<HookProgram>, ProfileError> {
    hooks(spec)
        .into_iter()
        .map(|(stage, hook)| {
            let found = match stage {
                START_CONTAINER => {
                    let digest = host.start_hooks.get(hook.path());
                    digest.map(|digest| (hook.path(), *digest))
                }
                _ => {
                    let file = host.hooks.get(hook.path());
                    file.map(|file| (&file.path, file.digest))
                }
            };
            let (path, digest) = found.ok_or_else(|| unresolved("hook", hook.path()))?;
            Ok(HookProgram {
                stage: stage.to_owned(),
                path: utf8(path)?,
                digest,
                args_digest: digest_of(hook.args())?,
                env_names: process::names_of(hook.env().as_deref().unwrap_or_default()),
            })
        })
        .collect()
}

fn sorted(paths: &Option<Vec<String>>) -> Vec<String> {
    let mut paths = paths.clone().unwrap_or_default();
    paths.sort();
    paths.dedup();
    paths
}

fn unresolved(what: &'static str, path: &Path) -> ProfileError {
    ProfileError::Unresolved {
        what,
        path: path.display().to_string(),
    }
}

fn utf8(path: &Path) -> Result<String, ProfileError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| ProfileError::Encoding(format!("the path {path:?} is not UTF-8")))
}

/// `sha256:` of the value's canonical JSON.
fn digest_of<T: Serialize>(value: &T) -> Result<String, ProfileError> {
    let bytes = canonical(value).map_err(|e| ProfileError::Encoding(e.to_string()))?;
    Ok(ProfileDigest::of(&bytes).to_string())
}

#[cfg(test)]
pub(crate) mod tests;
