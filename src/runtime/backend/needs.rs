//! What libcontainer 0.7 cannot give as runc gives it. Each line of [`beyond_libcontainer`] is a gap
//! that would weaken or break a container silently.

use super::{cgroup::is_unified, seccomp};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

/// The names of features that need the external backend; empty if the embedded one will do.
pub fn beyond_libcontainer(spec: &Spec, systemd_cgroup: bool, no_pivot: bool) -> Vec<String> {
    let mut needs = of_spec(spec);
    if no_pivot {
        // runc unmounts the host's proc and sysfs first; else whoever may mount in a user namespace
        // of his own gets a whole /proc
        needs.push("--no-pivot".to_owned());
    }
    if systemd_cgroup && !is_unified() {
        needs.push("systemd's cgroup driver on cgroup v1".to_owned());
    }
    needs.sort();
    needs.dedup();
    needs
}

/// Mount options that libcontainer passes over, or takes for the file system's own.
const OPTIONS: &[&str] = &[
    "tmpcopyup",
    "nosymfollow",
    "sync",
    "dirsync",
    "mand",
    "lazytime",
    "iversion",
    "acl",
    "noacl",
    "silent",
];

fn of_spec(spec: &Spec) -> Vec<String> {
    let mut needs = Vec::new();
    let mut need = |what: &str| needs.push(what.to_owned());
    let filled = |label: &Option<String>| label.as_ref().is_some_and(|l| !l.is_empty());
    let some = |list: bool, what: &str, need: &mut dyn FnMut(&str)| {
        if list {
            need(what);
        }
    };
    for mount in spec.mounts().iter().flatten() {
        let has = |option: &str| mount.options().iter().flatten().any(|o| o == option);
        let mapped = mount.uid_mappings().as_ref().is_some_and(|m| !m.is_empty())
            || mount.gid_mappings().as_ref().is_some_and(|m| !m.is_empty());
        some(
            mapped || has("idmap") || has("ridmap"),
            "an idmapped mount",
            &mut need,
        );
        for option in OPTIONS.iter().filter(|o| has(o)) {
            need(&format!("the mount option {option}"));
        }
    }
    if let Some(process) = spec.process() {
        some(
            filled(process.selinux_label()),
            "an SELinux label",
            &mut need,
        );
    }
    if let Some(linux) = spec.linux() {
        some(
            filled(linux.mount_label()),
            "an SELinux mount label",
            &mut need,
        );
        some(linux.intel_rdt().is_some(), "Intel RDT", &mut need);
        if let Some(profile) = linux.seccomp() {
            let foreign = profile
                .architectures()
                .iter()
                .flatten()
                .any(|a| seccomp::architecture(*a).is_none());
            some(
                foreign,
                "a seccomp filter for another architecture",
                &mut need,
            );
        }
        // libcontainer writes one line; for more it wants newuidmap(1) and /etc/subuid, as root too
        let several = |m: &Option<Vec<_>>| m.as_ref().is_some_and(|m| m.len() > 1);
        some(
            several(linux.uid_mappings()) || several(linux.gid_mappings()),
            "several mappings of user or group ids",
            &mut need,
        );
        let joins_mounts = linux
            .namespaces()
            .iter()
            .flatten()
            .any(|n| n.typ() == LinuxNamespaceType::Mount && n.path().is_some());
        some(joins_mounts, "joining a mount namespace", &mut need);
        let relative = linux.cgroups_path().as_ref().is_some_and(|p| {
            let text = p.to_string_lossy();
            !text.is_empty() && !text.starts_with('/') && !text.contains(':')
        });
        some(relative, "a relative cgroupsPath", &mut need);
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(rest: &str) -> Vec<String> {
        let text = format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}}{rest}}}"#);
        of_spec(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn an_ordinary_container_needs_nothing_more() {
        assert!(
            needs(r#","linux":{"cgroupsPath":"/x","seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}"#)
                .is_empty()
        );
        assert!(needs(r#","mounts":[{"destination":"/dev","options":["nosuid"]}]"#).is_empty());
        assert!(needs(r#","linux":{"mountLabel":""}"#).is_empty());
    }

    #[test]
    fn each_gap_is_named() {
        for (rest, name) in [
            (
                r#","mounts":[{"destination":"/a","options":["bind","idmap"]}]"#,
                "idmapped",
            ),
            (
                r#","mounts":[{"destination":"/a","uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#,
                "idmapped",
            ),
            (
                r#","mounts":[{"destination":"/a","options":["tmpcopyup"]}]"#,
                "tmpcopyup",
            ),
            (
                r#","linux":{"uidMappings":[{"containerID":0,"hostID":5,"size":1},{"containerID":1,"hostID":7,"size":9}]}"#,
                "several mappings",
            ),
            (r#","linux":{"mountLabel":"x"}"#, "SELinux"),
            (r#","linux":{"cgroupsPath":"a/b"}"#, "cgroupsPath"),
            (
                r#","linux":{"namespaces":[{"type":"mount","path":"/proc/1/ns/mnt"}]}"#,
                "mount namespace",
            ),
            (
                r#","process":{"user":{"uid":0,"gid":0},"cwd":"/","selinuxLabel":"x"}"#,
                "SELinux",
            ),
        ] {
            let needs = needs(rest);
            assert!(
                needs.len() == 1 && needs[0].contains(name),
                "{rest}: {needs:?}"
            );
        }
    }
}
