//! Engines' own config.json files pass as they are; each thing beyond an engine's defaults is refused
//! by its name.

use super::*;

macro_rules! engine {
    ($name:literal) => {
        include_str!(concat!("../../../../tests/vectors/bundles/", $name))
    };
}

/// What each engine passed for a container without options, and who then made it.
const ENGINES: [(&str, Launcher); 6] = [
    (engine!("docker.json"), Launcher::Docker),
    (engine!("podman.json"), Launcher::Podman),
    (engine!("buildah.json"), Launcher::Buildah),
    (engine!("ctr.json"), Launcher::Containerd),
    (engine!("cri-container.json"), Launcher::Cri),
    (engine!("cri-sandbox.json"), Launcher::CriSandbox),
];

fn config(launcher: Launcher) -> Value {
    let (text, _) = ENGINES.iter().find(|(_, of)| *of == launcher).unwrap();
    complete(text)
}

/// The vectors leave out what a test fills in.
fn complete(text: &str) -> Value {
    let mut value: Value = serde_json::from_str(text).unwrap();
    value["process"]["args"] = json!(["/bin/sh"]);
    value
}

/// The host that these were taken on: sources of mounts have their engines' names.
fn seen(value: &Value, launcher: Launcher, apparmor: bool) -> LaunchProfile {
    let spec = spec(value);
    let mut host = host(&spec);
    for (source, real) in &mut host.sources {
        if let Some(name) = source.to_str().unwrap().strip_prefix('@') {
            *real = format!("/srv/engine/0123456789abcdef/{name}").into();
        }
    }
    (host.launcher, host.apparmor) = (launcher, apparmor);
    LaunchProfile::of(&spec, &host).unwrap()
}

fn named(profile: &LaunchProfile, allow: &[&str]) -> Vec<String> {
    let allow = allow.iter().map(|n| Relaxation::parse(n).unwrap());
    let rules = LaunchRules {
        allow: allow.collect(),
        ..LaunchRules::default()
    };
    match judge(profile, &rules) {
        Ok(_) => vec![],
        Err(objections) => objections
            .into_iter()
            .map(|o| o.relaxation.map_or(o.text, |name| name.to_string()))
            .collect(),
    }
}

/// The objections to this engine's container with `edit`; and none once they are named.
fn beyond(launcher: Launcher, edit: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut value = config(launcher);
    edit(&mut value);
    let profile = seen(&value, launcher, false);
    let found = named(&profile, &[]);
    let allow: Vec<&str> = found.iter().map(String::as_str).collect();
    assert_eq!(named(&profile, &allow), Vec::<String>::new(), "{launcher}");
    found
}

#[test]
fn accept_what_engines_pass_by_default() {
    for (text, launcher) in ENGINES {
        let value = complete(text);
        let found = named(&seen(&value, launcher, false), &[]);
        // that pod was made with the host's network
        let expected: &[&str] = match launcher {
            Launcher::CriSandbox => &["namespace:network", "namespace:uts"],
            _ => &[],
        };
        assert_eq!(found, expected, "{launcher}");
    }
}

#[test]
fn refuse_added_capabilities() {
    for (launcher, more, expected) in [
        (Launcher::Docker, "CAP_NET_ADMIN", true),
        (Launcher::Docker, "CAP_NET_RAW", false),
        (Launcher::Podman, "CAP_NET_RAW", true),
        (Launcher::Containerd, "CAP_SYS_ADMIN", true),
        (Launcher::Cri, "CAP_SYS_TIME", true),
        (Launcher::Other, "CAP_SYS_BOOT", true),
    ] {
        let of = match launcher {
            Launcher::Other => Launcher::Containerd,
            other => other,
        };
        for set in [
            "bounding",
            "effective",
            "inheritable",
            "permitted",
            "ambient",
        ] {
            let mut value = config(of);
            value["process"]["capabilities"][set] = json!([more]);
            let found = named(&seen(&value, launcher, false), &[]);
            let expected: Vec<String> = expected
                .then(|| format!("cap:{more}"))
                .into_iter()
                .collect();
            assert_eq!(found, expected, "{launcher} {set}");
        }
    }
}

#[test]
fn refuse_no_seccomp_filter_where_the_engine_has_one() {
    for (_, launcher) in ENGINES {
        let found = beyond(launcher, |v| {
            v["linux"].as_object_mut().unwrap().remove("seccomp");
        });
        let filters = launcher.filters();
        let refused = found.contains(&"seccomp:unconfined".to_owned());
        assert_eq!(filters, refused, "{launcher}");
    }
}

#[test]
fn refuse_weaker_seccomp_filters() {
    let rule = |call: &str, action: &str| json!({"names": [call], "action": action});
    let add = |rule: Value| {
        move |v: &mut Value| {
            let rules = &mut v["linux"]["seccomp"]["syscalls"];
            rules.as_array_mut().unwrap().push(rule);
        }
    };
    for (launcher, call, refused) in [
        (Launcher::Docker, "unshare", true),
        (Launcher::Docker, "clone", true),
        (Launcher::Docker, "kexec_load", true),
        (Launcher::Docker, "personality", true),
        (Launcher::Docker, "read", false),
        (Launcher::Podman, "unshare", false),
        (Launcher::Podman, "bpf", true),
        (Launcher::Buildah, "add_key", true),
        // they have no filter by default: any is more
        (Launcher::Containerd, "bpf", false),
    ] {
        for action in ["ALLOW", "LOG", "NOTIFY", "TRACE"] {
            let found = match launcher {
                Launcher::Containerd => beyond(launcher, |v| {
                    v["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
                }),
                _ => beyond(launcher, add(rule(call, &format!("SCMP_ACT_{action}")))),
            };
            let expected: Vec<_> = refused
                .then(|| format!("syscall:{call}"))
                .into_iter()
                .collect();
            assert_eq!(found, expected, "{launcher} {call} {action}");
        }
        for action in ["ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP"] {
            if launcher != Launcher::Containerd {
                let denied = add(rule(call, &format!("SCMP_ACT_{action}")));
                assert!(beyond(launcher, denied).is_empty(), "{call} {action}");
            }
        }
    }
    // Only with some arguments is not never.
    let some = json!({"names": ["unshare"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 0x1000_0000, "op": "SCMP_CMP_EQ"}]});
    assert_eq!(beyond(Launcher::Docker, add(some)), ["syscall:unshare"]);
    let new_namespaces = json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 0x1000_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]});
    assert_eq!(
        beyond(Launcher::Docker, add(new_namespaces)),
        ["syscall:clone"]
    );
}

#[test]
fn refuse_filters_that_let_through_what_they_do_not_name() {
    for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"] {
        let found = beyond(Launcher::Docker, |v| {
            v["linux"]["seccomp"]["defaultAction"] = action.into();
        });
        assert_eq!(found[0], "syscall:*", "{found:?}");
        assert!(found.contains(&"syscall:mount".to_owned()));
        // it is denied by name
        assert!(!found.contains(&"syscall:clone3".to_owned()));
    }
}

#[test]
fn accept_calls_that_a_named_capability_opens() {
    let found = beyond(Launcher::Docker, |v| {
        let caps = &mut v["process"]["capabilities"]["bounding"];
        caps.as_array_mut().unwrap().push("CAP_SYS_ADMIN".into());
        let rules = v["linux"]["seccomp"]["syscalls"].as_array_mut().unwrap();
        rules.push(json!({"names": ["mount", "bpf", "unshare"], "action": "SCMP_ACT_ALLOW"}));
        rules.push(json!({"names": ["reboot"], "action": "SCMP_ACT_ALLOW"}));
    });
    assert_eq!(found, ["cap:CAP_SYS_ADMIN", "syscall:reboot"]);
}

#[test]
fn refuse_other_apparmor_profiles_where_the_host_has_apparmor() {
    for (launcher, profile, refused) in [
        (Launcher::Docker, "docker-default", None),
        (Launcher::Podman, "containers-default-0.50.1", None),
        (Launcher::Cri, "cri-containerd.apparmor.d", None),
        (Launcher::Containerd, "", None),
        (Launcher::CriSandbox, "", None),
        (Launcher::Docker, "", Some("apparmor:unconfined")),
        (Launcher::Docker, "unconfined", Some("apparmor:unconfined")),
        (Launcher::Podman, "my-profile", Some("apparmor:my-profile")),
        (
            Launcher::Docker,
            "docker-default-not",
            Some("apparmor:docker-default-not"),
        ),
        (Launcher::Cri, "unconfined", Some("apparmor:unconfined")),
    ] {
        let mut value = config(launcher);
        value["process"]["apparmorProfile"] = profile.into();
        let shared = ["namespace:*"];
        let refused: Vec<_> = refused.into_iter().collect();
        assert_eq!(named(&seen(&value, launcher, true), &shared), refused);
        assert!(named(&seen(&value, launcher, false), &shared).is_empty());
    }
}

#[test]
fn refuse_uncovered_paths() {
    for launcher in [Launcher::Docker, Launcher::Podman, Launcher::Containerd] {
        let without = |list: &'static str, path: &'static str| {
            move |v: &mut Value| {
                let paths = v["linux"][list].as_array_mut().unwrap();
                paths.retain(|p| p != path);
            }
        };
        let found = beyond(launcher, without("maskedPaths", "/proc/kcore"));
        assert_eq!(found, ["shown:/proc/kcore"], "{launcher}");
        let found = beyond(launcher, without("readonlyPaths", "/proc/sys"));
        assert_eq!(found, ["writable:/proc/sys"], "{launcher}");
        let all = beyond(launcher, |v| {
            let linux = v["linux"].as_object_mut().unwrap();
            linux.remove("maskedPaths");
            linux.remove("readonlyPaths");
        });
        assert_eq!(all.len(), 15, "{all:?}");
    }
    let writable = |destination: &'static str| {
        move |v: &mut Value| {
            for mount in v["mounts"].as_array_mut().unwrap() {
                if mount["destination"] == destination {
                    mount["options"] = json!(["nosuid", "rw"]);
                }
            }
        }
    };
    for place in ["/sys", "/sys/fs/cgroup"] {
        let found = beyond(Launcher::Docker, writable(place));
        assert_eq!(found, [format!("writable:{place}")]);
    }
    assert!(beyond(Launcher::Buildah, writable("/sys/fs/cgroup")).is_empty());
    let remapped = beyond(Launcher::Docker, |v| {
        writable("/sys/fs/cgroup")(v);
        writable("/sys")(v);
        let namespaces = &mut v["linux"]["namespaces"];
        namespaces
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
    });
    assert_eq!(remapped, ["writable:/sys"]);
}

#[test]
fn refuse_kernel_file_systems_in_other_places() {
    for kind in ["proc", "sysfs", "cgroup2"] {
        let mount = json!({"destination": "/x", "type": kind, "source": "x", "options": ["ro"]});
        let found = beyond(Launcher::Docker, |v| {
            v["mounts"].as_array_mut().unwrap().push(mount);
        });
        assert_eq!(found, [format!("mount:{kind}")]);
    }
}

#[test]
fn refuse_the_hosts_namespaces() {
    for kind in ["pid", "network", "ipc", "uts"] {
        let found = beyond(Launcher::Docker, |v| {
            let namespaces = v["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|n| n["type"] != kind);
        });
        assert_eq!(found, [format!("namespace:{kind}")]);
        let joined = beyond(Launcher::Docker, |v| {
            let namespaces = v["linux"]["namespaces"].as_array_mut().unwrap();
            let of_kind = namespaces.iter_mut().find(|n| n["type"] == kind).unwrap();
            of_kind["path"] = "/proc/7/ns/x".into();
        });
        // a pod shares the others
        let expected: &[&str] = if kind == "pid" {
            &["namespace:pid"]
        } else {
            &[]
        };
        assert_eq!(joined, expected, "{kind}");
    }
}

#[test]
fn refuse_devices() {
    let found = beyond(Launcher::Docker, |v| {
        let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229});
        v["linux"]["devices"] = json!([fuse]);
        let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"});
        let rules = &mut v["linux"]["resources"]["devices"];
        rules.as_array_mut().unwrap().push(rule);
    });
    assert_eq!(found, ["device:/dev/fuse"]);
    for (rule, refused) in [
        (
            json!({"type": "c", "major": 10, "minor": 229, "access": "r"}),
            true,
        ),
        (
            json!({"type": "b", "major": 8, "minor": 0, "access": "rwm"}),
            true,
        ),
        (
            json!({"type": "b", "major": 1, "minor": 3, "access": "rwm"}),
            true,
        ),
        (json!({"type": "c", "major": 1, "access": "w"}), true),
        (json!({"type": "c", "access": "m"}), false),
        (
            json!({"type": "c", "major": 1, "minor": 11, "access": "m"}),
            false,
        ),
        (json!({"type": "c", "major": 136, "access": "rwm"}), false),
    ] {
        let mut allowed = rule.clone();
        allowed["allow"] = true.into();
        let push = |v: &mut Value, rule: &Value| {
            let rules = &mut v["linux"]["resources"]["devices"];
            rules.as_array_mut().unwrap().push(rule.clone());
        };
        let found = beyond(Launcher::Docker, |v| push(v, &allowed));
        assert_eq!(!found.is_empty(), refused, "{rule}: {found:?}");
        let mended = beyond(Launcher::Docker, |v| {
            push(v, &allowed);
            push(v, &json!({"allow": false, "access": "rwm"}));
        });
        assert!(mended.is_empty(), "{rule}");
    }
}

#[test]
fn refuse_paths_of_the_host() {
    let mount = |source: &'static str, destination: &'static str| {
        move |v: &mut Value| bind(v, source, destination)
    };
    for (source, destination) in [
        ("/srv/data", "/data"),
        ("/etc/shadow", "/etc/hosts"),
        ("/dev/shm", "/dev/shm"),
        ("/proc", "/proc"),
        ("/var/lib/docker/volumes", "/x"),
        ("/var/lib/kubelet/pods/1/x", "/x"),
    ] {
        let found = beyond(Launcher::Docker, mount(source, destination));
        assert_eq!(found, [format!("mount:{source}")]);
    }
    for (launcher, source, destination) in [
        (Launcher::Docker, "/var/lib/docker/volumes/v/_data", "/x"),
        (
            Launcher::Cri,
            "/var/lib/kubelet/pods/1/etc-hosts",
            "/etc/hosts",
        ),
        (Launcher::Cri, "/var/lib/kubelet/pods/1/x", "/x"),
    ] {
        assert!(beyond(launcher, mount(source, destination)).is_empty());
    }
    // A directory's name allows what is in it, and nothing beside it.
    let mut value = config(Launcher::Docker);
    bind(&mut value, "/srv/data/x", "/data");
    let profile = seen(&value, Launcher::Docker, false);
    for (allow, refused) in [
        ("mount:/srv/data/x", false),
        ("mount:/srv", false),
        ("mount:*", false),
        ("mount:/srv/dat", true),
        ("mount:/srv/data/x/y", true),
        ("mount:/", true),
    ] {
        assert_eq!(!named(&profile, &[allow]).is_empty(), refused, "{allow}");
    }
}

#[test]
fn refuse_exec_beyond_the_defaults() {
    let launch = seen(&config(Launcher::Docker), Launcher::Docker, true);
    let process = |apparmor: &str, capability: &str| {
        let mut value = config(Launcher::Docker);
        value["process"]["apparmorProfile"] = apparmor.into();
        value["process"]["capabilities"]["effective"] = json!([capability]);
        seen(&value, Launcher::Docker, true).process
    };
    let rules = LaunchRules::default();
    let judged = |process: ProcessProfile| judge_process(&process, &launch, &rules);
    assert!(judged(process("docker-default", "CAP_CHOWN")).is_ok());
    assert!(judged(process("unconfined", "CAP_CHOWN")).is_err());
    assert!(judged(process("docker-default", "CAP_NET_ADMIN")).is_err());
}

#[test]
fn refuse_what_only_looks_like_a_volume() {
    for source in [
        "/home/x/volumes/v/_data",
        "/var/lib/docker/volumes/v/_data/x",
        "/var/lib/docker/volumes/_data",
        "/var/lib/docker/volumes//_data",
        "/var/lib/docker/volumes/v/w/_data",
        "/var/lib/docker/volumesx/v/_data",
    ] {
        let found = beyond(Launcher::Docker, |v| bind(v, source, "/data"));
        assert_eq!(found.len(), 1, "{source}: {found:?}");
        assert!(found[0].starts_with("mount:/"), "{found:?}");
    }
    // another engine's volume is a directory of the host
    let mut value = config(Launcher::Podman);
    bind(&mut value, "/var/lib/docker/volumes/v/_data", "/data");
    let mut profile = seen(&value, Launcher::Podman, false);
    profile.volume_roots = vec!["/var/lib/containers/storage/volumes".into()];
    assert_eq!(
        named(&profile, &[]),
        ["mount:/var/lib/docker/volumes/v/_data"]
    );
}

#[test]
fn refuse_kernel_parameters() {
    let set = |name: &'static str, value: &'static str| {
        move |v: &mut Value| v["linux"]["sysctl"][name] = json!(value)
    };
    for (launcher, name, value) in [
        (Launcher::Docker, "net.core.somaxconn", "1024"),
        (Launcher::Docker, "net.ipv4.ping_group_range", "0 0"),
        (
            Launcher::Podman,
            "net.ipv4.ping_group_range",
            "0 2147483647",
        ),
        (Launcher::Podman, "net.ipv4.ip_unprivileged_port_start", "0"),
        (Launcher::Podman, "net/ipv4/ip_forward", "1"),
        (Launcher::Containerd, "kernel.shm_rmid_forced", "1"),
        (Launcher::Cri, "kernel.msgmax", "65536"),
        (Launcher::Buildah, "fs.mqueue.msg_max", "100"),
    ] {
        let found = beyond(launcher, set(name, value));
        assert_eq!(found, [format!("sysctl:{name}")], "{launcher}");
    }
    let mut value = config(Launcher::Docker);
    set("net.core.somaxconn", "1024")(&mut value);
    let profile = seen(&value, Launcher::Docker, false);
    assert!(named(&profile, &["sysctl:*"]).is_empty());
    assert_eq!(named(&profile, &["sysctl:net.core"]).len(), 1);
}

#[test]
fn refuse_selinux_labels_that_confine_otherwise() {
    let own = "system_u:system_r:container_t:s0:c1,c2";
    let files = "system_u:object_r:container_file_t:s0:c1,c2";
    let judged = |launcher: Launcher, selinux: bool, process: &str, mount: &str| {
        let mut profile = seen(&config(launcher), launcher, false);
        profile.host_selinux = selinux;
        profile.process.selinux = process.into();
        profile.mount_label = mount.into();
        named(&profile, &[])
    };
    for launcher in [Launcher::Podman, Launcher::Buildah] {
        assert!(judged(launcher, true, own, files).is_empty());
        assert!(judged(launcher, false, "", "").is_empty());
        assert_eq!(judged(launcher, true, "", ""), ["selinux:disabled"]);
    }
    // these label only when they are told to
    for launcher in [Launcher::Docker, Launcher::Containerd] {
        assert!(judged(launcher, true, "", "").is_empty());
        assert!(judged(launcher, true, own, files).is_empty());
    }
    for label in [
        "system_u:system_r:spc_t:s0:c1,c2",
        "system_u:system_r:container_t:s0",
        "system_u:system_r:container_t:s0-s0:c0.c1023",
        "system_u:system_r:container_t:s0:c1,c1",
        "system_u:system_r:container_t:s0:c0.c1023",
        "unconfined_u:unconfined_r:container_t:s0:c1,c2",
        "system_u:object_r:container_t:s0:c1,c2",
        "container_t",
        ":::",
    ] {
        for launcher in [Launcher::Podman, Launcher::Docker, Launcher::Other] {
            let of = match launcher {
                Launcher::Other => Launcher::Containerd,
                launcher => launcher,
            };
            let mut profile = seen(&config(of), launcher, false);
            profile.process.selinux = label.into();
            let name = format!("selinux:{label}");
            assert!(named(&profile, &[]).contains(&name), "{launcher} {label}");
            assert!(!named(&profile, &[&name]).contains(&name), "{label}");
        }
    }
    let other = "system_u:object_r:etc_t:s0:c1,c2";
    let found = judged(Launcher::Podman, true, own, other);
    assert_eq!(found, [format!("selinux:{other}")]);
}

#[test]
fn refuse_the_hosts_cgroup_namespace_where_engines_make_one() {
    for (_, launcher) in ENGINES {
        let mut profile = seen(&config(launcher), launcher, false);
        let cgroup = "namespace:cgroup".to_owned();
        assert!(!named(&profile, &[]).contains(&cgroup), "{launcher}, v1");
        profile.host_unified_cgroups = true;
        assert!(named(&profile, &[]).contains(&cgroup), "{launcher}");
        assert!(!named(&profile, &[&cgroup]).contains(&cgroup), "{launcher}");
        let own = profile.namespaces.iter_mut().find(|n| n.kind == "cgroup");
        own.unwrap().how = How::New;
        assert!(!named(&profile, &[]).contains(&cgroup), "{launcher}");
    }
}

#[test]
fn refuse_volumes_that_are_the_hosts_directories() {
    let volume = "/var/lib/docker/volumes/v/_data";
    let mut value = config(Launcher::Docker);
    bind(&mut value, volume, "/data");
    for (origin, refused) in [
        (None, None),
        (Some("/disk/docker/volumes/v/_data"), None),
        (Some("/etc"), Some("mount:/etc")),
        (Some("/run/containerd"), Some("mount:/run/containerd")),
    ] {
        let mut profile = seen(&value, Launcher::Docker, false);
        let mount = profile.mounts.last_mut().unwrap();
        mount.origins = origin.into_iter().map(str::to_owned).collect();
        let refused: Vec<_> = refused.into_iter().collect();
        assert_eq!(named(&profile, &[]), refused);
    }
    // A directory of the host under its other name: the one that config.json has is judged.
    let mut value = config(Launcher::Docker);
    bind(&mut value, "/home/x", "/data");
    let mut profile = seen(&value, Launcher::Docker, false);
    profile.mounts.last_mut().unwrap().origins = vec!["/disk/home/x".into()];
    assert!(named(&profile, &["mount:/home"]).is_empty());
    profile.mounts.last_mut().unwrap().origins = vec!["/run/crio".into()];
    assert_eq!(named(&profile, &["mount:/home"]), ["mount:/run/crio"]);
}
