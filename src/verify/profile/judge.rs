//! What a container may not have unless a policy names it: whatever goes beyond its engine's default
//! profile; and, whatever an engine's defaults are, ways to the host TPM, to the engines and to
//! attestrun's own files, and the powers that would let it forge what is measured.

use super::defaults::{
    confined_otherwise, engines_own, files_labelled_otherwise, labelled_otherwise, stays_read_only,
    uncovered, usual_place,
};
use super::relaxation::{HOSTPID_PTRACE, KINDS, LaunchRules, Relaxation};
use super::syscalls::denied_by_default;
use super::{How, LaunchProfile, MountUse, ProcessProfile, devices};
use crate::canon::NotCanonical;
use crate::digest::{FileDigest, ProfileDigest};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which of the challenger's checks an objection belongs to (C-CAPS, C-NS, C-MOUNT, C-DEV, C-HOOK).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    Env,
    /// What only a policy's own demands object to.
    Demand,
    Caps,
    Ns,
    Mount,
    Dev,
    Hook,
}

/// One thing in a profile that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    pub area: Area,
    /// The name under which a policy may allow it; nothing allows the others.
    pub relaxation: Option<Relaxation>,
    pub text: String,
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.relaxation {
            Some(name) => write!(f, " (allowed only as \"{name}\")"),
            None => f.write_str(" (never allowed)"),
        }
    }
}

/// What hooks added, by its places in the container, in alphabetical order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookAdditions {
    pub mounts: Vec<String>,
    pub devices: Vec<String>,
}

impl HookAdditions {
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty() && self.devices.is_empty()
    }
}

/// A profile without objections under some rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedProfile {
    profile: LaunchProfile,
    digest: ProfileDigest,
    used: Vec<Relaxation>,
}

impl JudgedProfile {
    pub fn profile(&self) -> &LaunchProfile {
        &self.profile
    }
    pub fn digest(&self) -> ProfileDigest {
        self.digest
    }
    /// The relaxations without which there would have been objections.
    pub fn used(&self) -> &[Relaxation] {
        &self.used
    }
}

/// The profile of an `exec` without objections under some rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedProcess(ProcessProfile);

impl JudgedProcess {
    pub fn profile(&self) -> &ProcessProfile {
        &self.0
    }
}

/// Every container has these of its own…
const OWN_NAMESPACES: [&str; 4] = ["ipc", "network", "pid", "uts"];
/// … or shares them with its pod.
const POD_NAMESPACES: [&str; 3] = ["ipc", "network", "uts"];
/// File system types of engines' default mounts (docker, podman, containerd), bind mounts apart.
const USUAL_TYPES: [&str; 8] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs",
];
/// What no bind mount may reach: neither by its source, nor by one below it or above it.
const PROTECTED: [(&str, &str); 16] = [
    ("/dev/tpm0", "a host TPM"),
    ("/dev/tpmrm0", "a host TPM"),
    ("/sys/fs/bpf", "the BPF file system"),
    ("/etc/attestrun", "attestrun's configuration"),
    ("/var/lib/attestrun", "attestrun's state"),
    ("/run/attestrun", "attestrun's state"),
    ("/run/attestrun-host", "attestrun's host service"),
    ("/run/attestrun-layerwatch", "attestrun's watch of layers"),
    ("/run/docker.sock", "an engine's socket"),
    ("/run/containerd/containerd.sock", "an engine's socket"),
    ("/run/podman/podman.sock", "an engine's socket"),
    ("/run/crio/crio.sock", "an engine's socket"),
    ("/run/cri-dockerd.sock", "an engine's socket"),
    ("/run/buildkit/buildkitd.sock", "an engine's socket"),
    ("/run/k3s/containerd/containerd.sock", "an engine's socket"),
    ("/run/balena-engine.sock", "an engine's socket"),
];
/// Where attestrun shows a container its own evidence.
const OWN_MOUNT: &str = "/run/attestrun";

/// Variables that make the loader or libc run other code than the program's (ld.so(8), glibc
/// "Tunables", iconv_open(3)).
pub fn loads_code(variable: &str) -> bool {
    variable.starts_with("LD_") || ["GCONV_PATH", "GLIBC_TUNABLES", "LOCPATH"].contains(&variable)
}

/// Judges a profile; all objections are reported, not only the first.
pub fn judge(
    profile: &LaunchProfile,
    rules: &LaunchRules,
) -> Result<JudgedProfile, Vec<Objection>> {
    let mut court = Court::new(rules);
    court.process(&profile.process, profile);
    court.demands(rules.demand.against(profile));
    court.filter(profile);
    court.namespaces(profile);
    court.parameters(profile);
    court.devices(profile);
    court.covers(profile);
    for mount in &profile.mounts {
        court.mount(mount, profile);
    }
    for hook in &profile.hooks {
        // A name of its own: what may run in a container may not therefore run on the host.
        let kind = match hook.runs_inside() {
            true => "start-hook",
            false => "hook",
        };
        court.object(
            Area::Hook,
            Some(format!("{kind}:{}", hook.digest)),
            format!("{} hook {} ({})", hook.stage, hook.path, hook.digest),
        );
        // else the judged program would run code that nobody judged; on the host it would as root
        for name in hook.env_names.iter().filter(|name| loads_code(name)) {
            court.object(
                Area::Hook,
                hook.runs_inside().then(|| format!("env:{name}")),
                format!(
                    "{} hook {} with the environment variable {name}, by which programs load other code",
                    hook.stage, hook.path
                ),
            );
        }
    }
    let digest = profile.digest().map_err(|e: NotCanonical| {
        vec![Objection {
            area: Area::Ns,
            relaxation: None,
            text: e.to_string(),
        }]
    })?;
    let used = court.close()?;
    Ok(JudgedProfile {
        profile: profile.clone(),
        digest,
        used,
    })
}

/// Judges the process of an `exec` into a container that was launched with `launch`.
pub fn judge_process(
    process: &ProcessProfile,
    launch: &LaunchProfile,
    rules: &LaunchRules,
) -> Result<JudgedProcess, Vec<Objection>> {
    let mut court = Court::new(rules);
    court.process(process, launch);
    court.demands(rules.demand.against_process(process));
    court.close()?;
    Ok(JudgedProcess(process.clone()))
}

/// Judges what hooks added to a container beyond its config.json: mounts and device nodes, each by its
/// place. `hook-mount:<path>` allows what lies at or below the path, `hook-device:<path>` that one node.
pub fn judge_added(added: &HookAdditions, rules: &LaunchRules) -> Result<(), Vec<Objection>> {
    let mut court = Court::new(rules);
    for mount in &added.mounts {
        let by_name = rules.allow.iter().any(|name| {
            let place = name.as_str().strip_prefix("hook-mount:");
            place.is_some_and(|place| is_at_or_below(mount, place))
        });
        if !by_name {
            court.object(
                Area::Hook,
                Some(format!("hook-mount:{mount}")),
                format!("a mount at {mount} that config.json does not have"),
            );
        }
    }
    for device in &added.devices {
        court.object(
            Area::Hook,
            Some(format!("hook-device:{device}")),
            format!("a device {device} that config.json does not have"),
        );
    }
    court.close().map(drop)
}

struct Court<'a> {
    rules: &'a LaunchRules,
    used: Vec<Relaxation>,
    objections: Vec<Objection>,
}

impl<'a> Court<'a> {
    fn new(rules: &'a LaunchRules) -> Self {
        Self {
            rules,
            used: Vec::new(),
            objections: Vec::new(),
        }
    }

    fn close(self) -> Result<Vec<Relaxation>, Vec<Objection>> {
        match self.objections.is_empty() {
            true => Ok(self.used),
            false => Err(self.objections),
        }
    }

    /// An objection, unless the rules name it.
    fn object(&mut self, area: Area, relaxation: Option<String>, text: String) {
        // A name that is too long to be written into a policy is one that no policy can allow.
        let relaxation = relaxation.and_then(|name| Relaxation::parse(&name).ok());
        let allowed = relaxation
            .as_ref()
            .and_then(|name| self.rules.allowing(name));
        match relaxation {
            Some(_) if allowed.is_some() => {
                let news = allowed.filter(|name| !self.used.contains(name));
                self.used.extend(news.cloned());
            }
            relaxation => self.objections.push(Objection {
                area,
                relaxation,
                text,
            }),
        }
    }

    fn process(&mut self, process: &ProcessProfile, launch: &LaunchProfile) {
        for name in process.capabilities.all() {
            if !launch.launcher.gives(name) {
                let text = format!(
                    "capability {name}, which {} does not give by default",
                    launch.launcher
                );
                self.object(Area::Caps, Some(format!("cap:{name}")), text);
            }
        }
        if launch.namespace("pid") == How::Host && process.capabilities.has("CAP_SYS_PTRACE") {
            self.object(
                Area::Caps,
                Some(HOSTPID_PTRACE.to_owned()),
                "capability CAP_SYS_PTRACE in the host's PID namespace".to_owned(),
            );
        }
        if let Some(profile) = confined_otherwise(process, launch) {
            self.object(
                Area::Caps,
                Some(format!("apparmor:{profile}")),
                format!("AppArmor profile `{profile}` instead of its engine's own"),
            );
        }
        if let Some(label) = labelled_otherwise(process, launch) {
            self.object(
                Area::Caps,
                Some(format!("selinux:{label}")),
                format!("SELinux label `{label}` instead of its engine's own"),
            );
        }
        self.environment(process);
    }

    fn filter(&mut self, profile: &LaunchProfile) {
        if !profile.launcher.filters() {
            return;
        }
        if profile.seccomp == "none" {
            self.object(
                Area::Caps,
                Some("seccomp:unconfined".to_owned()),
                format!(
                    "no seccomp filter, where {} has one by default",
                    profile.launcher
                ),
            );
        }
        let has = |capability: &str| profile.process.capabilities.has(capability);
        for call in &profile.seccomp_opens {
            if denied_by_default(profile.launcher, call, has) {
                let text = format!(
                    "a seccomp filter that lets through {call}, which {}'s own denies",
                    profile.launcher
                );
                self.object(Area::Caps, Some(format!("syscall:{call}")), text);
            }
        }
    }

    /// What of /proc and /sys engines hide or make read-only.
    fn covers(&mut self, profile: &LaunchProfile) {
        let (shown, writable) = uncovered(profile);
        for path in shown {
            let text = format!("{path} not masked");
            self.object(Area::Mount, Some(format!("shown:{path}")), text);
        }
        for path in writable {
            let text = format!("{path} neither masked nor read-only");
            self.object(Area::Mount, Some(format!("writable:{path}")), text);
        }
        if let Some(label) = files_labelled_otherwise(profile) {
            self.object(
                Area::Mount,
                Some(format!("selinux:{label}")),
                format!("SELinux label `{label}` on its files, instead of its engine's own"),
            );
        }
    }

    fn environment(&mut self, process: &ProcessProfile) {
        for name in process.env_names.iter().filter(|name| loads_code(name)) {
            self.object(
                Area::Env,
                Some(format!("env:{name}")),
                format!("environment variable {name}, by which programs load other code"),
            );
        }
    }

    fn demands(&mut self, against: Vec<String>) {
        for text in against {
            self.object(Area::Demand, None, text);
        }
    }

    fn namespaces(&mut self, profile: &LaunchProfile) {
        match profile.namespace("mount") {
            How::New => {}
            How::Host => self.object(Area::Ns, None, "the host's mount namespace".to_owned()),
            How::Joined => {
                self.object(
                    Area::Ns,
                    None,
                    "another container's mount namespace".to_owned(),
                );
            }
        }
        for kind in KINDS {
            let whose = match profile.namespace(kind) {
                How::Host if OWN_NAMESPACES.contains(&kind) => "the host's",
                // with cgroup v1 engines leave it out by default
                How::Host if kind == "cgroup" && profile.host_unified_cgroups => "the host's",
                How::Joined if !POD_NAMESPACES.contains(&kind) => "another container's",
                _ => continue,
            };
            let text = format!("{whose} {kind} namespace");
            self.object(Area::Ns, Some(format!("namespace:{kind}")), text);
        }
    }

    /// Kernel parameters; runc and libcontainer set none outside of the container's own namespaces.
    fn parameters(&mut self, profile: &LaunchProfile) {
        for (name, value) in &profile.sysctls {
            if !profile.launcher.sets(name, value) {
                self.object(
                    Area::Ns,
                    Some(format!("sysctl:{name}")),
                    format!("kernel parameter {name} = `{value}`"),
                );
            }
        }
    }

    fn devices(&mut self, profile: &LaunchProfile) {
        for device in &profile.devices {
            let host_tpm = if device.host_tpm { ", a host TPM" } else { "" };
            self.object(
                Area::Dev,
                Some(format!("device:{}", device.path)),
                format!(
                    "device {} ({}:{}){host_tpm}",
                    device.path, device.major, device.minor
                ),
            );
        }
        // A rule for each host TPM that was allowed by name comes with its node.
        let by_name = profile.devices.iter().any(|device| {
            device.host_tpm
                && Relaxation::parse(&format!("device:{}", device.path))
                    .is_ok_and(|name| self.rules.allow.contains(&name))
        });
        if profile.tpm_by_rule && !by_name {
            self.object(
                Area::Dev,
                Some("device:*".to_owned()),
                "device rules that include a host TPM".to_owned(),
            );
        }
        for rule in devices::beyond(profile) {
            self.object(
                Area::Dev,
                Some("device:*".to_owned()),
                format!("the device rule `{rule}`, for which there is no device node"),
            );
        }
    }

    /// The container begins with a program of the host, which no list of an image can name.
    fn program(&mut self, mount: &MountUse, destination: &str, digest: FileDigest) {
        self.object(
            Area::Mount,
            Some(format!("program:{digest}")),
            format!(
                "mount of the program {} ({digest}) at {destination}, with which the container begins",
                mount.real_source
            ),
        );
        let access = mount
            .options
            .iter()
            .rev()
            .find(|o| *o == "ro" || *o == "rw");
        if access.is_none_or(|access| access != "ro") {
            self.object(
                Area::Mount,
                None,
                format!("a writable mount of the program at {destination}"),
            );
        }
    }

    fn mount(&mut self, mount: &MountUse, profile: &LaunchProfile) {
        let destination = plain(&mount.destination);
        if is_at_or_below(&destination, OWN_MOUNT) {
            self.object(
                Area::Mount,
                None,
                format!("mount at {destination}, where attestrun shows its evidence"),
            );
        }
        if let Some(digest) = mount.program {
            self.program(mount, &destination, digest);
        }
        match mount.kind.as_str() {
            "bind" => self.bind(mount, &destination, profile),
            kind => self.file_system(mount, kind, &destination, profile),
        }
    }

    fn file_system(
        &mut self,
        mount: &MountUse,
        kind: &str,
        destination: &str,
        profile: &LaunchProfile,
    ) {
        if !USUAL_TYPES.contains(&kind) || !usual_place(kind, destination) {
            self.object(
                Area::Mount,
                Some(format!("mount:{kind}")),
                format!("mount of type `{kind}` at {destination}"),
            );
        }
        let read_only = mount.options.iter().any(|option| option == "ro");
        if !read_only && stays_read_only(kind, profile) {
            self.object(
                Area::Mount,
                Some(format!("writable:{destination}")),
                format!("{kind} at {destination}, not read-only"),
            );
        }
    }

    fn bind(&mut self, mount: &MountUse, destination: &str, profile: &LaunchProfile) {
        // a program's own name is enough
        let named = mount.program.is_some();
        let own = |source: &str| named || engines_own(source, destination, profile);
        let source = plain(&mount.real_source);
        self.source(&source, destination, own(&source));
        for origin in &mount.origins {
            // Who may mount the one may mount the other, unless the one is any volume of the engine's.
            let origin = plain(origin);
            self.source(&origin, destination, !own(&source) || own(&origin));
        }
    }

    /// `usual`: only what it leads to can speak against it.
    fn source(&mut self, source: &str, destination: &str, usual: bool) {
        // The TPM's further devices (tpm1, tpmrm1…) stand beside the two that are named.
        let tpm = source.starts_with("/dev/tpm").then_some("a host TPM");
        let protected = PROTECTED
            .iter()
            .find(|(path, _)| is_at_or_below(source, path) || is_at_or_below(path, source));
        let why = match tpm.or(protected.map(|(_, what)| *what)) {
            None if usual => return,
            None => "which is the host's".to_owned(),
            Some(what) => format!("which leads to {what}"),
        };
        self.object(
            Area::Mount,
            Some(format!("mount:{source}")),
            format!("mount of {source} at {destination}, {why}"),
        );
    }
}

/// The path without `.`, `..`, repeated slashes, and with `/var/run` spelt `/run` (FHS 3.0, 3.15).
pub(super) fn plain(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if let ["var", "run", ..] = parts.as_slice() {
        parts.remove(0);
    }
    format!("/{}", parts.join("/"))
}

pub(super) fn is_at_or_below(path: &str, directory: &str) -> bool {
    directory == "/"
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
