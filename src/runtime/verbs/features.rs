//! `features`: what this runtime can do (runtime-spec, features.md). Nothing goes to standard error:
//! CRI-O reads both streams as one.

use super::say;
use crate::{
    config::{BackendChoice, Config},
    spawn,
};
use anyhow::Result;
use serde_json::{Value, json};

/// Mount options of libcontainer as we use it.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "unbindable",
];

/// What the configured backend gives; `auto` gives what either does, where each feature is one for
/// which it would take that backend. Without a configuration, what is built in.
pub fn run() -> Result<()> {
    let config = Config::load().ok();
    let external = config
        .filter(|c| c.backend != BackendChoice::Libcontainer)
        .and_then(|c| Some((c.backend, spawn::features_of(&c.runc)?)));
    let mut features = embedded();
    match external {
        Some((BackendChoice::Runc, theirs)) => {
            let annotations = features["annotations"].take();
            features = theirs;
            features["annotations"] = annotations;
        }
        Some((_, theirs)) => add(&mut features, &theirs),
        None => {}
    }
    say(&format!("{}\n", serde_json::to_string_pretty(&features)?))
}

/// What runc has and libcontainer lacks: see `backend::needs`.
fn add(features: &mut Value, theirs: &Value) {
    for list in [
        "/mountOptions",
        "/linux/seccomp/actions",
        "/linux/seccomp/archs",
    ] {
        let more = theirs.pointer(list).and_then(Value::as_array);
        if let Some(all) = features.pointer_mut(list).and_then(Value::as_array_mut) {
            all.extend(more.into_iter().flatten().cloned());
            all.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
            all.dedup();
        }
    }
    for item in ["selinux", "intelRdt", "mountExtensions"] {
        if let Some(theirs) = theirs["linux"].get(item) {
            features["linux"][item] = theirs.clone();
        }
    }
}

fn embedded() -> Value {
    let caps: Vec<String> = caps::all().into_iter().map(|c| c.to_string()).collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": oci_spec::runtime::VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": sorted(caps),
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                              "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
                "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
                "knownFlags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG",
                               "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
        },
        "annotations": {
            "org.attestrun.version": env!("CARGO_PKG_VERSION"),
            "org.attestrun.sha256": sha256(),
            "org.opencontainers.runc.checkpoint.enabled": "false",
        },
        "potentiallyUnsafeConfigAnnotations": [],
    })
}

/// What contents are hashed with on this machine: what the crate sha2 finds, by the same question.
fn sha256() -> &'static str {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    if std::is_x86_feature_detected!("sha")
        && std::is_x86_feature_detected!("ssse3")
        && std::is_x86_feature_detected!("sse4.1")
    {
        return "sha-ni";
    }
    "software"
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_has_what_either_has() {
        let mut features = embedded();
        assert_eq!(
            features["linux"]["mountExtensions"]["idmap"]["enabled"],
            false
        );
        add(
            &mut features,
            &json!({
                "mountOptions": ["ro", "idmap"],
                "linux": {
                    "seccomp": { "actions": ["SCMP_ACT_NOTIFY", "SCMP_ACT_ALLOW"] },
                    "mountExtensions": { "idmap": { "enabled": true } },
                },
            }),
        );
        let has = |list: &str, item: &str| {
            let list = features.pointer(list).and_then(Value::as_array).unwrap();
            list.iter().filter(|i| *i == item).count()
        };
        assert_eq!(
            (has("/mountOptions", "idmap"), has("/mountOptions", "ro")),
            (1, 1)
        );
        assert_eq!(has("/linux/seccomp/actions", "SCMP_ACT_NOTIFY"), 1);
        assert_eq!(
            features["linux"]["mountExtensions"]["idmap"]["enabled"],
            true
        );
        assert_eq!(features["linux"]["selinux"]["enabled"], false);
    }
}
