//! Differences from runc that are known, each with its reason. None of them gives a container more.

use super::Entry;
use crate::runtime::{Backend, Runtime};
use std::path::Path;

/// Lines that begin so differ: `-` is seen only under runc, `+` only under attestrun.
struct Difference {
    line: &'static str,
    /// Beginnings of the cases' names where it must be seen.
    cases: &'static [&'static str],
    entries: &'static [Entry],
    #[allow(dead_code)] // for the reader
    why: &'static str,
}

const BOTH: &[Entry] = &[Entry::Init, Entry::Exec];
const EXEC: &[Entry] = &[Entry::Exec];

/// A difference as two lines, what runc has and what is here.
macro_rules! instead {
    ($theirs:expr, $ours:expr, $cases:expr, $entries:expr, $why:expr) => {
        [
            Difference {
                line: concat!("-", $theirs),
                cases: $cases,
                entries: $entries,
                why: $why,
            },
            Difference {
                line: concat!("+", $ours),
                cases: $cases,
                entries: $entries,
                why: $why,
            },
        ]
    };
}

const SYSFS: &str = "libcontainer makes the mount read-only, runc the superblock too; who could remount \
    the one could remount the other";
const SYSFS_CASES: &[&str] = &[
    "docker", "podman", "ctr", "cri", "buildah", "readonly", "userns", "other",
];
const OTHER_USERS: &[&str] = &["docker --user", "other inherited"];

const EMBEDDED: &[[Difference; 2]] = &[
    instead!(
        "mount /sys root=/ ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro",
        "mount /sys root=/ ro,nosuid,nodev,noexec,relatime - sysfs sysfs rw",
        SYSFS_CASES,
        BOTH,
        SYSFS
    ),
    instead!(
        "path /sys/kernel ",
        "path /sys/kernel ",
        OTHER_USERS,
        BOTH,
        SYSFS
    ),
    instead!(
        "path /sys/kernel ",
        "path /sys/kernel ",
        &["docker exec --user"],
        EXEC,
        SYSFS
    ),
    instead!(
        "status Umask:\t0022",
        "status Umask:\t0027",
        &["docker --user"],
        EXEC,
        "runc 1.1 does not apply `umask` on exec"
    ),
    instead!(
        "mount /sys/fs/cgroup/systemd root=/ ",
        "mount /sys/fs/cgroup/systemd root=/ ",
        &["podman private cgroups", "privileged private cgroups"],
        BOTH,
        "the source's name: libcontainer mounts the host's directory again, runc the hierarchy"
    ),
    instead!(
        "mount /proc/keys root=/null ro",
        "mount /proc/keys root=/null rw",
        &["readonly dev"],
        BOTH,
        "/dev becomes read-only after files are masked with /dev/null, not before"
    ),
    instead!(
        "mount /proc/kcore root=/null ro",
        "mount /proc/kcore root=/null rw",
        &["readonly dev"],
        BOTH,
        "as /proc/keys"
    ),
    instead!(
        "mount /sys/fs/cgroup root=/ ro",
        "mount /sys/fs/cgroup root=/",
        &["userns"],
        BOTH,
        "where cgroup2 cannot be mounted runc shows the whole tree, libcontainer the container's part of it"
    ),
    instead!(
        "mount /proc/timer_list root=/null ro",
        "mount /proc/timer_list root=/null rw",
        &["readonly dev"],
        BOTH,
        "as /proc/keys"
    ),
    instead!(
        "keyring session ok keyring;0;0;3f13",
        "keyring session ok keyring;0;0;3f1b0000;",
        &["userns podman"],
        BOTH,
        "the ring is joined outside the user namespace, so that its owner needs search permission, not everybody"
    ),
    instead!(
        "attribute personality 0",
        "attribute personality 0x8",
        &["other personality"],
        BOTH,
        "runc 1.1 ignores `linux.personality`"
    ),
    instead!(
        "proc personality",
        "proc personality",
        &["other personality"],
        BOTH,
        "as above"
    ),
];

const OWN_TPM: &str = "the container's own TPM, its event log and its list (vtpm.in_containers)";

/// A line that is only here, with each backend.
const fn more(line: &'static str) -> Difference {
    Difference {
        line,
        cases: &[""],
        entries: BOTH,
        why: OWN_TPM,
    }
}

const LENT: &[Difference] = &[
    more("+mount /run/attestrun root=/inside ro,nosuid,nodev,noexec,relatime - tmpfs attestrun "),
    more("+env TPM2TOOLS_TCTI=swtpm:path=/run/attestrun/tpm.sock"),
    more("+env TPM2OPENSSL_TCTI=swtpm:path=/run/attestrun/tpm.sock"),
    more("+env TPM2_PKCS11_TCTI=swtpm:path=/run/attestrun/tpm.sock"),
];

/// What is found and not listed, or listed and not found.
pub fn check(rt: &Runtime, case: &str, entry: Entry, found: &[String]) -> Vec<String> {
    let own: &[_] = match rt.backend {
        Some(Backend::Libcontainer) => EMBEDDED,
        _ => &[],
    };
    let lent: &[_] = match rt.backend {
        Some(_) => LENT,
        None => &[], // runc itself
    };
    let here = |d: &&Difference| {
        d.entries.contains(&entry) && d.cases.iter().any(|name| case.starts_with(name))
    };
    // the table of a machine with cgroup v1 has more
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let here = |d: &&Difference| here(d) && !(unified && d.line.contains("/sys/fs/cgroup/"));
    let here = |d: &&Difference| here(d) && (unified || !d.line.contains("/sys/fs/cgroup "));
    // and not every kernel has this file
    let kcore = Path::new("/proc/kcore").exists();
    let here = |d: &&Difference| here(d) && (kcore || !d.line.contains("/proc/kcore"));
    let own = own.iter().flatten().chain(lent);
    let listed: Vec<_> = own.filter(here).collect();
    let unlisted = found
        .iter()
        .filter(|line| !listed.iter().any(|d| line.starts_with(d.line)))
        .cloned();
    let gone = listed
        .iter()
        .filter(|d| !found.iter().any(|line| line.starts_with(d.line)))
        .map(|d| format!("listed, and no longer so: {}", d.line));
    unlisted.chain(gone).collect()
}
