//! Engines' default profiles: what a container has that was started without options. What goes beyond
//! it is an objection, by name.
//!
//! Sources: moby (oci/defaults.go, oci/caps/defaults.go), containers-common (pkg/config/default.go),
//! containerd (oci/spec.go, pkg/cri/sbserver), runc (libcontainer/specconv/example.go).

use super::{How, LaunchProfile, ProcessProfile};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Who made config.json, by the store and the place that the container was found in, never by what
/// config.json says of itself: its defaults are what is allowed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Launcher {
    Docker,
    /// podman and CRI-O.
    Podman,
    Buildah,
    /// containerd's own clients: ctr, nerdctl.
    Containerd,
    /// A container of a pod, by containerd's CRI.
    Cri,
    /// What holds a pod's namespaces, by containerd's CRI.
    CriSandbox,
    /// No engine that is known: runc's defaults (`runc spec`).
    #[default]
    Other,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Buildah => "buildah",
            Self::Containerd => "containerd",
            Self::Cri => "cri",
            Self::CriSandbox => "cri-sandbox",
            Self::Other => "runc",
        })
    }
}

/// podman's, buildah's.
const ELEVEN: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// With these, Docker's and containerd's.
const THREE_MORE: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_MKNOD", "CAP_NET_RAW"];

/// Names of engines' own AppArmor profiles, without their versions.
const APPARMOR: [&str; 4] = [
    "docker-default",
    "containers-default-",
    "cri-containerd.apparmor.d",
    "crio-default",
];

/// Every engine hides these…
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
/// … and hides these or makes them read-only.
const READ_ONLY: [&str; 6] = [
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Kernel parameters of the container's own namespaces that these set for every container.
const SYSCTLS: [(Launcher, &str, &str); 8] = [
    (Launcher::Docker, "net.ipv4.ip_unprivileged_port_start", "0"),
    (
        Launcher::Docker,
        "net.ipv4.ping_group_range",
        "0 2147483647",
    ),
    (Launcher::Podman, "net.ipv4.ping_group_range", "0 0"),
    (Launcher::Buildah, "net.ipv4.ping_group_range", "0 0"),
    // of containerd 2, in a pod's sandbox and in nothing that joins it
    (Launcher::Cri, "net.ipv4.ip_unprivileged_port_start", "0"),
    (Launcher::Cri, "net.ipv4.ping_group_range", "0 2147483647"),
    (
        Launcher::CriSandbox,
        "net.ipv4.ip_unprivileged_port_start",
        "0",
    ),
    (
        Launcher::CriSandbox,
        "net.ipv4.ping_group_range",
        "0 2147483647",
    ),
];

/// Types of processes and of files by which container-selinux confines containers.
const SELINUX_PROCESS: [&str; 2] = ["container_t", "container_init_t"];
const SELINUX_FILES: [&str; 1] = ["container_file_t"];

/// Character devices that every container has: null, zero, full, random, urandom, tty, console, ptmx,
/// pts; and the tun device, which runc itself allows (Linux `Documentation/admin-guide/devices.txt`).
const DEVICES: [(i64, i64); 9] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
    (10, 200),
];
const PTS: i64 = 136;

impl Launcher {
    pub(super) fn gives(self, capability: &str) -> bool {
        let fourteen = !matches!(self, Self::Podman | Self::Buildah);
        ELEVEN.contains(&capability) || fourteen && THREE_MORE.contains(&capability)
    }
    /// Docker, podman and buildah filter system calls unless told otherwise; ctr, a kubelet and
    /// `runc spec` do not.
    pub(super) fn filters(self) -> bool {
        matches!(self, Self::Docker | Self::Podman | Self::Buildah)
    }
    /// Confines its containers by a profile of its own, where the host has AppArmor.
    pub(super) fn confines(self) -> bool {
        matches!(self, Self::Docker | Self::Podman | Self::Cri)
    }
    /// Labels its containers, where the host has SELinux; for Docker and containerd it is an option.
    fn labels(self) -> bool {
        matches!(self, Self::Podman | Self::Buildah)
    }
    pub(super) fn sets(self, name: &str, value: &str) -> bool {
        SYSCTLS.contains(&(self, name, value))
    }
    /// With the CRI it is the kubelet that says what is hidden: nothing, when nothing is said.
    fn hides(self) -> bool {
        self != Self::Cri
    }
}

/// What of /proc and /sys is not hidden, and what can be written, by path.
pub(super) fn uncovered(profile: &LaunchProfile) -> (Vec<&'static str>, Vec<&'static str>) {
    if !profile.launcher.hides() {
        return (Vec::new(), Vec::new());
    }
    let in_list = |list: &[String], path: &str| list.iter().any(|listed| listed == path);
    let shown = |path: &&str| !in_list(&profile.masked_paths, path);
    let writable = |path: &&str| shown(path) && !in_list(&profile.readonly_paths, path);
    (
        MASKED.into_iter().filter(shown).collect(),
        READ_ONLY.into_iter().filter(writable).collect(),
    )
}

/// An AppArmor profile that is not an engine's own, where the engine would have given one.
pub(super) fn confined_otherwise<'p>(
    process: &'p ProcessProfile,
    launch: &LaunchProfile,
) -> Option<&'p str> {
    let given = process.apparmor.as_str();
    let own = |name: &str| given == name || name.ends_with('-') && given.starts_with(name);
    let expected = launch.host_apparmor && launch.launcher.confines();
    if !expected || APPARMOR.iter().any(|name| own(name)) {
        return None;
    }
    Some(match given {
        "" => "unconfined",
        name => name,
    })
}

/// A label of SELinux's for a process that confines it less, or otherwise, than engines' own do.
pub(super) fn labelled_otherwise<'p>(
    process: &'p ProcessProfile,
    launch: &LaunchProfile,
) -> Option<&'p str> {
    match process.selinux.as_str() {
        "" => (launch.host_selinux && launch.launcher.labels()).then_some("disabled"),
        label => (!is_engines_label(label, "system_r", &SELINUX_PROCESS)).then_some(label),
    }
}

pub(super) fn files_labelled_otherwise(launch: &LaunchProfile) -> Option<&str> {
    let label = launch.mount_label.as_str();
    let usual = label.is_empty() || is_engines_label(label, "object_r", &SELINUX_FILES);
    (!usual).then_some(label)
}

/// `user:role:type:level`: one of these types, apart from others by two categories of its own
/// (`s0:c1,c2`), as the engines draw them.
fn is_engines_label(label: &str, role: &str, types: &[&str]) -> bool {
    let mut parts = label.splitn(4, ':');
    let category = |text: &str| {
        let number = text.strip_prefix('c').unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    let apart = |level: &str| match level.strip_prefix("s0:").and_then(|c| c.split_once(',')) {
        Some((one, other)) => one != other && category(one) && category(other),
        None => false,
    };
    parts.next() == Some("system_u")
        && parts.next() == Some(role)
        && parts.next().is_some_and(|kind| types.contains(&kind))
        && parts.next().is_some_and(apart)
}

pub(super) fn usual_device(kind: char, major: Option<i64>, minor: Option<i64>) -> bool {
    let (Some(major), 'c') = (major, kind) else {
        return false;
    };
    major == PTS || minor.is_some_and(|minor| DEVICES.contains(&(major, minor)))
}

/// Where the kernel's own file systems belong.
pub(super) fn usual_place(kind: &str, destination: &str) -> bool {
    match kind {
        "proc" => destination == "/proc",
        "sysfs" => destination == "/sys",
        "cgroup" | "cgroup2" => destination == "/sys/fs/cgroup",
        _ => true,
    }
}

/// Kernel file systems that every engine mounts read-only. buildah leaves its cgroups writable, and Docker
/// those of a container with a user namespace, whose root is nobody there.
pub(super) fn stays_read_only(kind: &str, profile: &LaunchProfile) -> bool {
    match kind {
        "sysfs" => true,
        "cgroup" | "cgroup2" => {
            profile.launcher != Launcher::Buildah && profile.namespace("user") != How::New
        }
        _ => false,
    }
}

/// A bind mount that every engine makes for every container (its name files, its shared memory), or
/// one of a volume that the engine itself keeps: no path of the host that somebody chose.
pub(super) fn engines_own(source: &str, destination: &str, profile: &LaunchProfile) -> bool {
    let name = source.rsplit('/').next().unwrap_or_default();
    let own_file = match destination {
        "/etc/hosts" => ["hosts", "etc-hosts"].contains(&name),
        "/etc/hostname" => name == "hostname",
        "/etc/resolv.conf" => name == "resolv.conf",
        "/run/.containerenv" => name == ".containerenv",
        "/dev/shm" => name == "shm" && source != "/dev/shm",
        _ => false,
    };
    let kubelets =
        profile.launcher == Launcher::Cri && source.starts_with("/var/lib/kubelet/pods/");
    own_file || kubelets || is_volume(source, &profile.volume_roots)
}

/// `<root>/<name>/_data`: Docker's and podman's local volumes.
fn is_volume(source: &str, roots: &[String]) -> bool {
    let below = |root: &String| source.strip_prefix(root.as_str())?.strip_prefix('/');
    let name = |rest: &str| match rest.split_once('/') {
        Some((name, end)) => !name.is_empty() && end == "_data",
        None => false,
    };
    roots.iter().filter_map(below).any(name)
}
