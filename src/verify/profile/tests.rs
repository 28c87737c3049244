//! Profiles of config.json files, and the objections to them.

mod defaults;
mod demands;
mod hooks;
mod programs;

use super::*;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

/// What docker gives an ordinary container, abridged.
pub(crate) fn usual() -> Value {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_MKNOD",
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "args": ["/usr/bin/app", "-v"],
            "env": ["PATH=/usr/bin:/bin", "TOKEN=secret", "HOSTNAME=c1"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": false
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "c1",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/docker/containers/1/hosts",
             "options": ["rbind", "rprivate"]}
        ],
        "linux": {
            "resources": {"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "access": "m"},
                {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"}]},
            "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "uts"},
                           {"type": "pid"}, {"type": "ipc"}],
            "cgroupsPath": "/docker/1",
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"]}
        }
    })
}

fn spec(value: &Value) -> Spec {
    serde_json::from_value(value.clone()).unwrap()
}

/// A host on which nothing is a symbolic link and joined namespaces are not the host's.
fn host(spec: &Spec) -> HostView {
    let needs = needs(spec);
    HostView {
        launcher: Launcher::Docker,
        apparmor: false,
        selinux: false,
        unified_cgroups: false,
        volume_roots: vec![
            "/var/lib/docker/volumes".into(),
            "/disk/docker/volumes".into(),
        ],
        origins: BTreeMap::new(),
        sources: needs.sources.into_iter().map(|s| (s.clone(), s)).collect(),
        hooks: needs
            .hooks
            .into_iter()
            .map(|path| {
                let digest = FileDigest::of(b"hook");
                (path.clone(), HostProgram { path, digest })
            })
            .collect(),
        start_hooks: needs
            .start_hooks
            .into_iter()
            .map(|path| (path, FileDigest::of(b"start-hook")))
            .collect(),
        namespaces: needs
            .namespaces
            .into_iter()
            .map(|n| (n, NamespaceOwner::Other))
            .collect(),
        programs: BTreeMap::new(),
        tpm_devices: vec![(10, 224), (253, 65536)],
    }
}

pub(crate) fn profile(value: &Value) -> LaunchProfile {
    let spec = spec(value);
    LaunchProfile::of(&spec, &host(&spec)).unwrap()
}

/// The objections to the usual profile with `edit`; by name if they have one, else by text.
fn objections(edit: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut value = usual();
    edit(&mut value);
    match judge(&profile(&value), &LaunchRules::default()) {
        Ok(_) => vec![],
        Err(objections) => {
            let named = objections.into_iter();
            let mut named: Vec<_> = named
                .map(|o| o.relaxation.map_or(o.text, |name| name.to_string()))
                .collect();
            named.dedup();
            named
        }
    }
}

fn bind(value: &mut Value, source: &str, destination: &str) {
    value["mounts"].as_array_mut().unwrap().push(json!({
        "destination": destination, "type": "bind", "source": source, "options": ["rbind"]}));
}

#[test]
fn accept_usual_profile() {
    let profile = profile(&usual());
    let judged = judge(&profile, &LaunchRules::default()).unwrap();
    assert_eq!(judged.digest(), profile.digest().unwrap());
    assert!(judged.used().is_empty());
    let process = &profile.process;
    assert_eq!(process.program, "/usr/bin/app");
    assert_eq!(process.env_names, ["HOSTNAME", "PATH", "TOKEN"]);
    assert_eq!(process.user.additional_gids, [0, 10]);
    assert_eq!(process.capabilities.bounding[0], "CAP_AUDIT_WRITE");
    assert_eq!(profile.namespace("pid"), How::New);
    assert_eq!(profile.namespace("user"), How::Host);
    assert_eq!(profile.device_rules[0], "deny a *:* rwm");
    assert_eq!(profile.masked_paths.len(), 10);
    let text = String::from_utf8(canonical(&profile).unwrap()).unwrap();
    assert!(
        !text.contains("secret"),
        "values of variables stay out of the log"
    );
    assert_eq!(
        serde_json::from_str::<LaunchProfile>(&text).unwrap(),
        profile
    );
}

#[test]
fn every_change_changes_the_digest() {
    let before = profile(&usual()).digest().unwrap();
    for (pointer, value) in [
        ("/process/args/1", json!("-x")),
        ("/process/env/1", json!("TOKEN=other")),
        ("/process/user/uid", json!(1)),
        ("/process/cwd", json!("/tmp")),
        ("/process/noNewPrivileges", json!(true)),
        ("/process/capabilities/bounding", json!(["CAP_CHOWN"])),
        ("/root/readonly", json!(true)),
        ("/mounts/0/options", json!([])),
        ("/linux/resources/devices/2/minor", json!(6)),
        (
            "/linux/namespaces/1",
            json!({"type": "network", "path": "/run/netns/x"}),
        ),
        ("/linux/maskedPaths/0", json!("/proc/keys")),
        ("/linux/seccomp/defaultAction", json!("SCMP_ACT_ALLOW")),
        ("/linux/cgroupsPath", json!("/other")),
    ] {
        let mut config = usual();
        *config.pointer_mut(pointer).unwrap() = value;
        assert_ne!(profile(&config).digest().unwrap(), before, "{pointer}");
    }
}

#[test]
fn refuse_host_tpm() {
    for (path, major, minor) in [
        ("/dev/tpm0", 10, 224),
        ("/dev/tpmrm0", 1, 1),
        ("/dev/x", 253, 65536),
    ] {
        let nodes = json!([{"path": path, "type": "c", "major": major, "minor": minor}]);
        assert_eq!(
            objections(|v| v["linux"]["devices"] = nodes),
            [format!("device:{path}")]
        );
    }
    for rule in [
        json!({"allow": true}),
        json!({"allow": true, "type": "c", "access": "rw"}),
        json!({"allow": true, "type": "c", "major": 10, "access": "r"}),
        json!({"allow": true, "type": "c", "major": 253, "minor": 65536, "access": "w"}),
    ] {
        assert_eq!(
            objections(|v| {
                v["linux"]["resources"]["devices"]
                    .as_array_mut()
                    .unwrap()
                    .push(rule.clone());
            }),
            ["device:*"],
            "{rule}"
        );
    }
    // Mending a rule: what is denied again is denied; denying a part is not enough.
    for (access, expected) in [("rwm", vec![]), ("r", vec!["device:*"])] {
        assert_eq!(
            objections(|v| {
                let rules = v["linux"]["resources"]["devices"].as_array_mut().unwrap();
                rules.push(json!({"allow": true}));
                rules.push(json!({"allow": false, "access": access}));
            }),
            expected
        );
    }
    assert!(
        objections(|v| {
            v["linux"]["resources"] = json!({});
        })
        .is_empty()
    );
}

#[test]
fn refuse_mounts_that_lead_out() {
    for source in [
        "/",
        "/run",
        "/var",
        "/var/run",
        "/var/lib",
        "/etc",
        "/dev",
        "/sys",
        "/sys/fs/bpf/x",
        "/dev/tpm0",
        "/dev/tpmrm1",
        "/run/attestrun/containers",
        "/run/attestrun-host",
        "/var/lib/attestrun",
        "/etc/attestrun/trust",
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/containerd",
        "/run/podman",
        "/run/crio/crio.sock",
        "/run/x/../docker.sock",
    ] {
        let real = source.replace("/var/run", "/run").replace("x/../", "");
        assert_eq!(
            objections(|v| bind(v, source, "/x")),
            [format!("mount:{real}")]
        );
    }
    // Through a symbolic link: the canonical path counts.
    let mut value = usual();
    bind(&mut value, "/srv/link", "/x");
    let spec = spec(&value);
    let mut host = host(&spec);
    host.sources
        .insert("/srv/link".into(), "/run/docker.sock".into());
    let profile = LaunchProfile::of(&spec, &host).unwrap();
    assert!(judge(&profile, &LaunchRules::default()).is_err());
    // By options alone, whatever the type says.
    assert_eq!(
        objections(|v| {
            bind(v, "/run", "/x");
            v["mounts"][4]["type"] = "none".into();
        }),
        ["mount:/run"]
    );
}

#[test]
fn refuse_unusual_file_systems() {
    for kind in ["bpf", "devtmpfs", "overlay", "ext4", "securityfs", ""] {
        let mount = json!({"destination": "/x", "type": kind, "source": "x"});
        let found = objections(|v| v["mounts"].as_array_mut().unwrap().push(mount));
        assert_eq!(found.len(), 1, "{kind}");
    }
}

#[test]
fn refuse_mounts_over_the_evidence() {
    for destination in [
        "/run/attestrun",
        "/run/attestrun/x",
        "/var/run/attestrun",
        "/run/./attestrun",
    ] {
        assert_eq!(
            objections(|v| bind(v, "/srv", destination)).len(),
            2,
            "{destination}"
        );
    }
    assert_eq!(objections(|v| bind(v, "/srv", "/run")), ["mount:/srv"]);
}

#[test]
fn refuse_capabilities() {
    for set in [
        "bounding",
        "effective",
        "inheritable",
        "permitted",
        "ambient",
    ] {
        for cap in ["CAP_SYS_MODULE", "CAP_BPF", "CAP_SYS_RAWIO"] {
            assert_eq!(
                objections(|v| v["process"]["capabilities"][set] = json!([cap])),
                [format!("cap:{cap}")]
            );
        }
    }
    let ptrace =
        |v: &mut Value| v["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_PTRACE"]);
    assert_eq!(objections(ptrace), ["cap:CAP_SYS_PTRACE"]);
    assert_eq!(
        objections(|v| {
            ptrace(v);
            v["linux"]["namespaces"].as_array_mut().unwrap().remove(3);
        }),
        ["cap:CAP_SYS_PTRACE", "hostpid-ptrace", "namespace:pid"]
    );
    // Joining the host's PID namespace by path is sharing it.
    let mut value = usual();
    ptrace(&mut value);
    value["linux"]["namespaces"][3]["path"] = "/proc/1/ns/pid".into();
    let spec = spec(&value);
    let mut host = host(&spec);
    let objections = |host: &HostView| {
        let profile = LaunchProfile::of(&spec, host).unwrap();
        judge(&profile, &LaunchRules::default()).unwrap_err().len()
    };
    assert_eq!(objections(&host), 2);
    host.namespaces
        .insert("/proc/1/ns/pid".into(), NamespaceOwner::Host);
    assert_eq!(objections(&host), 3);
}

#[test]
fn refuse_foreign_mount_namespace() {
    assert_eq!(
        objections(|v| v["linux"]["namespaces"][0]["path"] = "/proc/7/ns/mnt".into()),
        ["another container's mount namespace"]
    );
    assert_eq!(
        objections(|v| {
            v["linux"]["namespaces"].as_array_mut().unwrap().remove(0);
        }),
        ["the host's mount namespace"]
    );
}

#[test]
fn accept_what_the_rules_name_and_nothing_else() {
    let mut value = usual();
    bind(&mut value, "/run/docker.sock", "/x");
    value["linux"]["devices"] =
        json!([{"path": "/dev/tpm0", "type": "c", "major": 10, "minor": 224}]);
    value["linux"]["resources"]["devices"]
        .as_array_mut()
        .unwrap()
        .push(json!({"allow": true, "type": "c", "major": 10, "minor": 224, "access": "rwm"}));
    value["process"]["capabilities"]["bounding"] = json!(["CAP_BPF"]);
    value["hooks"] = json!({"prestart": [{"path": "/bin/hook"}]});
    let profile = profile(&value);
    let all = [
        "mount:/run/docker.sock".to_owned(),
        "device:/dev/tpm0".to_owned(),
        "cap:CAP_BPF".to_owned(),
        format!("hook:{}", FileDigest::of(b"hook")),
    ];
    let rules = |names: &[String]| LaunchRules {
        allow: names
            .iter()
            .map(|n| Relaxation::parse(n).unwrap())
            .collect(),
        ..LaunchRules::default()
    };
    let judged = judge(&profile, &rules(&all)).unwrap();
    assert_eq!(judged.used().len(), all.len());
    for missing in 0..all.len() {
        let mut some = all.to_vec();
        some.remove(missing);
        assert!(
            judge(&profile, &rules(&some)).is_err(),
            "without {}",
            all[missing]
        );
    }
}

#[test]
fn accept_all_of_a_kind_by_name() {
    let edit = |v: &mut Value| {
        v["process"]["capabilities"]["bounding"] = json!(["CAP_BPF", "CAP_SYS_MODULE"])
    };
    let mut spec = usual();
    edit(&mut spec);
    let judged = |allow: &[&str]| {
        let allow = allow
            .iter()
            .map(|n| Relaxation::parse(n).unwrap())
            .collect();
        judge(
            &profile(&spec),
            &LaunchRules {
                allow,
                ..LaunchRules::default()
            },
        )
    };
    let used = judged(&["hook:*", "cap:*"]).unwrap().used().to_vec();
    assert_eq!(used, [Relaxation::parse("cap:*").unwrap()]);
    assert_eq!(
        judged(&["device:*", "mount:*", "hook:*"])
            .unwrap_err()
            .len(),
        2
    );
    assert_eq!(judged(&["cap:CAP_BPF"]).unwrap_err().len(), 1);
}

#[test]
fn refuse_unknown_relaxations() {
    for good in [
        "cap:*",
        "hook:*",
        "mount:*",
        "device:*",
        "device:/dev/tpm0",
        "mount:/run",
        "mount:bpf",
        "cap:CAP_BPF",
        "hostpid-ptrace",
        "program:sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ] {
        assert!(Relaxation::parse(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "*",
        "device:",
        "device:tpm0",
        "mount:",
        "cap:BPF",
        "cap:CAP_",
        "cap:*x",
        "hook:",
        "hook:/bin/sh",
        "program:*",
        "program:/sbin/docker-init",
        "all",
        "hostpid",
        "hostpid-ptrace:",
    ] {
        assert!(Relaxation::parse(bad).is_err(), "{bad}");
    }
    assert!(serde_json::from_value::<LaunchRules>(json!({"allow": ["all"]})).is_err());
    assert!(serde_json::from_value::<LaunchRules>(json!({"allow": [], "deny": []})).is_err());
}

#[test]
fn refuse_exec_with_forbidden_powers() {
    let launch = profile(&usual());
    let process = |caps: Value| {
        let mut value = usual();
        value["process"]["capabilities"] = json!({"bounding": caps});
        let process: oci_spec::runtime::Process =
            serde_json::from_value(value["process"].clone()).unwrap();
        ProcessProfile::of(&process).unwrap()
    };
    let rules = LaunchRules::default();
    assert!(judge_process(&process(json!(["CAP_CHOWN"])), &launch, &rules).is_ok());
    assert!(judge_process(&process(json!(["CAP_BPF"])), &launch, &rules).is_err());
    let ptrace = judge_process(&process(json!(["CAP_SYS_PTRACE"])), &launch, &rules);
    assert_eq!(ptrace.unwrap_err().len(), 1);
    let mut shared = usual();
    shared["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .remove(3);
    let shared = profile(&shared);
    let ptrace = judge_process(&process(json!(["CAP_SYS_PTRACE"])), &shared, &rules);
    assert_eq!(ptrace.unwrap_err().len(), 2);
}

#[test]
fn refuse_what_was_not_looked_up() {
    let mut value = usual();
    value["hooks"] =
        json!({"prestart": [{"path": "/bin/hook"}], "startContainer": [{"path": "/bin/hook"}]});
    value["linux"]["namespaces"][1]["path"] = "/run/netns/x".into();
    let spec = spec(&value);
    let full = host(&spec);
    assert!(LaunchProfile::of(&spec, &full).is_ok());
    for without in [
        HostView {
            sources: BTreeMap::new(),
            ..full.clone()
        },
        HostView {
            hooks: BTreeMap::new(),
            ..full.clone()
        },
        HostView {
            start_hooks: BTreeMap::new(),
            ..full.clone()
        },
        HostView {
            namespaces: BTreeMap::new(),
            ..full.clone()
        },
    ] {
        assert!(matches!(
            LaunchProfile::of(&spec, &without),
            Err(ProfileError::Unresolved { .. })
        ));
    }
}

#[test]
fn refuse_incomplete_configs() {
    for field in ["process", "root", "linux"] {
        let mut value = usual();
        value.as_object_mut().unwrap().remove(field);
        let refused = LaunchProfile::of(&spec(&value), &HostView::default());
        assert!(matches!(refused, Err(ProfileError::Missing(_))), "{field}");
    }
    let mut value = usual();
    value["process"]["args"] = json!([]);
    let spec_ = spec(&value);
    assert_eq!(
        LaunchProfile::of(&spec_, &host(&spec_)),
        Err(ProfileError::NoArgs)
    );
    let mut value = usual();
    value["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "pid"}));
    let spec_ = spec(&value);
    assert!(matches!(
        LaunchProfile::of(&spec_, &host(&spec_)),
        Err(ProfileError::DuplicateNamespace(_))
    ));
}
