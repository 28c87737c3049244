//! What libcontainer 0.7 cannot give as runc gives it. Each line of [`beyond_libcontainer`] is a gap
//! that would weaken or break a container silently.

use super::{cgroup::is_unified, seccomp};
use crate::bundle::Bundle;
use oci_spec::runtime::{
    LinuxIdMapping, LinuxNamespaceType, LinuxResources, LinuxThrottleDevice, Spec,
};
use std::{os::unix::fs::MetadataExt, path::Path};

/// The names of features that need the external backend; empty if the embedded one will do.
pub fn beyond_libcontainer(bundle: &Bundle, systemd_cgroup: bool, no_pivot: bool) -> Vec<String> {
    let mut needs = of_spec(&bundle.spec);
    if has_unreachable_source(&bundle.spec, &bundle.path) {
        // runc opens it before it enters the user namespace
        needs.push("a bind mount of what the container's root user cannot reach".to_owned());
    }
    if no_pivot {
        // runc unmounts the host's proc and sysfs first; else whoever may mount in a user namespace
        // of his own gets a whole /proc
        needs.push("--no-pivot".to_owned());
    }
    if systemd_cgroup && !is_unified() {
        needs.push("systemd's cgroup driver on cgroup v1".to_owned());
    }
    let linux = bundle.spec.linux().as_ref();
    let resources = linux.and_then(|l| l.resources().as_ref());
    if let Some(resources) = resources.filter(|_| systemd_cgroup) {
        needs.extend(beyond_systemd(resources));
    }
    needs.sort();
    needs.dedup();
    needs
}

/// Limits of which libcontainer does not tell systemd, which would lift them at its next reload, or tells
/// it in a way that it does not take.
pub fn beyond_systemd(resources: &LinuxResources) -> Vec<String> {
    let filled = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    let cpu = resources.cpu().as_ref();
    let block = resources.block_io().as_ref();
    // engines write a weight of 0 for none, and empty lists
    let limits = block.is_some_and(|b| {
        let bytes = [b.throttle_read_bps_device(), b.throttle_write_bps_device()];
        let calls = [
            b.throttle_read_iops_device(),
            b.throttle_write_iops_device(),
        ];
        let listed = |list: &&Option<Vec<LinuxThrottleDevice>>| list.iter().flatten().count() > 0;
        b.weight().is_some_and(|w| w > 0)
            || b.leaf_weight().is_some_and(|w| w > 0)
            || b.weight_device().iter().flatten().count() > 0
            || bytes.iter().chain(&calls).any(listed)
    });
    let huge = resources.hugepage_limits().iter().flatten().count() > 0;
    let unified = resources.unified().as_ref().is_some_and(|u| !u.is_empty());
    [
        (
            cpu.is_some_and(|c| filled(c.cpus()) || filled(c.mems())),
            "a set of processors or memory nodes",
        ),
        (limits, "limits of block devices"),
        (huge, "limits of huge pages"),
        (unified, "limits by their names in cgroup v2"),
    ]
    .into_iter()
    .filter(|(has, _)| *has)
    .map(|(_, what)| format!("{what} under systemd's cgroup driver"))
    .collect()
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
        let resources = linux.resources().as_ref();
        let rdma = resources.and_then(|r| r.rdma().as_ref());
        some(
            rdma.is_some_and(|r| !r.is_empty()),
            "limits of RDMA",
            &mut need,
        );
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

/// In a new user namespace libcontainer looks for sources as the container's root user.
fn has_unreachable_source(spec: &Spec, bundle: &Path) -> bool {
    let Some(linux) = spec.linux() else {
        return false;
    };
    let namespaces = linux.namespaces().iter().flatten();
    if !namespaces
        .into_iter()
        .any(|n| n.typ() == LinuxNamespaceType::User)
    {
        return false;
    }
    let root = |mappings: &Option<Vec<LinuxIdMapping>>| {
        let mut mappings = mappings.iter().flatten();
        mappings
            .find(|m| m.container_id() == 0)
            .map(LinuxIdMapping::host_id)
    };
    let (uid, gid) = (root(linux.uid_mappings()), root(linux.gid_mappings()));
    let binds = spec.mounts().iter().flatten().filter(|mount| {
        let mut options = mount.options().iter().flatten();
        mount.typ().as_deref() == Some("bind") || options.any(|o| o == "bind" || o == "rbind")
    });
    let sources = binds.filter_map(|mount| mount.source().as_ref());
    // one that is not there at all is an error of its own, later
    let mut real = sources.filter_map(|source| bundle.join(source).canonicalize().ok());
    real.any(|source| !is_reachable(&source, uid, gid))
}

/// By the permission bits of the directories above it (path_resolution(7)).
fn is_reachable(path: &Path, uid: Option<u32>, gid: Option<u32>) -> bool {
    path.ancestors().skip(1).all(|directory| {
        directory.metadata().is_ok_and(|found| {
            let search = match () {
                () if uid == Some(found.uid()) => 0o100,
                () if gid == Some(found.gid()) => 0o010,
                () => 0o001,
            };
            found.mode() & search != 0
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn sources_that_the_containers_root_cannot_reach() {
        let dir = std::env::temp_dir().join(format!("attestrun-needs-{}", std::process::id()));
        fs::create_dir_all(dir.join("closed/source")).unwrap();
        let open = |mode| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        let closed = |mode| {
            fs::set_permissions(dir.join("closed"), fs::Permissions::from_mode(mode)).unwrap();
        };
        let text = |namespaces: &str, host: u32| {
            format!(
                r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},
                "mounts":[{{"destination":"/a","source":"closed/source","options":["bind"]}}],
                "linux":{{"namespaces":[{namespaces}],"uidMappings":[{{"containerID":0,"hostID":{host},"size":9}}]}}}}"#
            )
        };
        let user = |host| serde_json::from_str(&text(r#"{"type":"user"}"#, host)).unwrap();
        let unreachable = |spec: &Spec| has_unreachable_source(spec, &dir);
        open(0o755);
        closed(0o755);
        assert!(!unreachable(&user(100_000)));
        closed(0o700);
        assert!(unreachable(&user(100_000)));
        let owner = dir.metadata().unwrap().uid();
        assert!(!unreachable(&user(owner)));
        assert!(!unreachable(
            &serde_json::from_str(&text("", 100_000)).unwrap()
        ));
        closed(0o755);
        open(0o750);
        assert!(unreachable(&user(100_000)));
        fs::remove_dir_all(&dir).unwrap();
    }

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
    fn limits_that_systemd_is_not_told() {
        let beyond = |resources: &str| beyond_systemd(&serde_json::from_str(resources).unwrap());
        for told in [
            "{}",
            r#"{"memory":{"limit":5,"swap":5,"reservation":3},"pids":{"limit":7}}"#,
            r#"{"cpu":{"shares":2,"quota":5,"period":9,"cpus":""},"blockIO":{"weight":0,"weightDevice":[]}}"#,
            r#"{"hugepageLimits":[],"unified":{}}"#,
        ] {
            assert!(beyond(told).is_empty(), "{told}");
        }
        for (untold, name) in [
            (r#"{"cpu":{"cpus":"0"}}"#, "processors"),
            (r#"{"cpu":{"mems":"0"}}"#, "memory nodes"),
            (r#"{"blockIO":{"weight":10}}"#, "block devices"),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]}}"#,
                "block devices",
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#,
                "huge pages",
            ),
            (r#"{"unified":{"memory.high":"1"}}"#, "by their names"),
        ] {
            let found = beyond(untold);
            assert!(
                found.len() == 1 && found[0].contains(name),
                "{untold}: {found:?}"
            );
        }
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
            (
                r#","linux":{"resources":{"rdma":{"mlx5_1":{"hcaHandles":3}}}}"#,
                "RDMA",
            ),
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
