//! The configurations under which the surface is compared: what engines pass, and changes to it.

use crate::{
    machine::machine,
    runtime::Bundle,
    world::{Rootfs, World},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;

/// One configuration: an engine's, with changes.
pub struct Case {
    pub name: &'static str,
    engine: &'static str,
    change: fn(&mut Value),
    /// What the process of `exec` has that the container's first one has not.
    exec: fn(&mut Value),
}

const fn case(name: &'static str, engine: &'static str, change: fn(&mut Value)) -> Case {
    Case {
        name,
        engine,
        change,
        exec: |_| {},
    }
}

/// The cases of a family, by the first word of their names.
pub fn family(name: &str) -> Vec<&'static Case> {
    let first = |c: &&Case| c.name.split(' ').next() == Some(name);
    CASES.iter().filter(first).collect()
}

const CASES: &[Case] = &[
    case("docker", DOCKER, |_| {}),
    case("docker --user", DOCKER, |c| {
        c["process"]["user"] =
            json!({ "uid": 1000, "gid": 1000, "additionalGids": [7, 1000], "umask": 0o27 });
        let caps = c["process"]["capabilities"].as_object_mut();
        caps.map(|c| (c.remove("effective"), c.remove("permitted")));
    }),
    Case {
        exec: |p| {
            p["user"] = json!({ "uid": 1000, "gid": 1000 });
            p["capabilities"]["effective"] = json!([]);
            p["capabilities"]["permitted"] = json!([]);
        },
        ..case("docker exec --user", DOCKER, |_| {})
    },
    case("docker no-new-privileges", DOCKER, |c| {
        c["process"]["noNewPrivileges"] = json!(true)
    }),
    case("docker explicitly new privileges", DOCKER, |c| {
        c["process"]["noNewPrivileges"] = json!(false)
    }),
    case("docker limits", DOCKER, |c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 67108864, "swap": 67108864 });
        c["linux"]["resources"]["pids"] = json!({ "limit": 20 });
        c["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
                                         { "type": "RLIMIT_NOFILE", "soft": 200, "hard": 200 }]);
    }),
    case("podman", PODMAN, |_| {}),
    case("podman private cgroups", PODMAN, private_cgroups),
    case("ctr", CTR, |_| {}),
    case("cri", CRI, |_| {}),
    case("cri sandbox", SANDBOX, |_| {}),
    case("buildah", BUILDAH, |_| {}),
    case("privileged", DOCKER, privileged),
    case("privileged private cgroups", DOCKER, |c| {
        privileged(c);
        private_cgroups(c);
    }),
    case("readonly", DOCKER, read_only),
    case("readonly dev", CTR, |c| {
        read_only(c);
        for mount in c["mounts"].as_array_mut().into_iter().flatten() {
            if mount["destination"] == "/dev" {
                add(&mut mount["options"], json!("ro"));
            }
        }
    }),
    case("userns podman", PODMAN, user_namespace),
    case("userns docker", DOCKER, |c| {
        user_namespace(c);
        c["linux"]["sysctl"] = json!({ "net.ipv4.ip_unprivileged_port_start": "0" });
    }),
    case("other no capabilities", DOCKER, |c| {
        c["process"]
            .as_object_mut()
            .map(|p| p.remove("capabilities"));
    }),
    case("other inherited and ambient capabilities", DOCKER, |c| {
        c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        let some = json!(["CAP_KILL", "CAP_NET_RAW", "CAP_SETFCAP"]);
        for set in ["effective", "permitted", "inheritable", "ambient"] {
            c["process"]["capabilities"][set] = some.clone();
        }
    }),
    // runc 1.1 refuses a list of flags that is not empty
    case("other no filter flags", DOCKER, |c| {
        c["linux"]["seccomp"]["flags"] = json!([])
    }),
    case("other personality", DOCKER, |c| {
        c["linux"]["personality"] = json!({ "domain": "LINUX32" })
    }),
    case("other no rules for devices", DOCKER, |c| {
        c["linux"]["resources"] = json!({})
    }),
    case("other rules for devices", DOCKER, |c| {
        let rule = json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" });
        add(&mut c["linux"]["resources"]["devices"], rule);
    }),
    case("other propagation", DOCKER, |c| {
        let mounts = c["mounts"].as_array_mut().into_iter().flatten();
        for (mount, option) in mounts
            .filter(|m| m["type"] == "bind")
            .zip(["rslave", "rshared", "private"])
        {
            mount["options"] = json!(["rbind", option]);
        }
    }),
    case("other score", PODMAN, |c| {
        c["process"]["oomScoreAdj"] = json!(500);
    }),
];

const DOCKER: &str = include_str!("../vectors/bundles/docker.json");
const PODMAN: &str = include_str!("../vectors/bundles/podman.json");
const CTR: &str = include_str!("../vectors/bundles/ctr.json");
const CRI: &str = include_str!("../vectors/bundles/cri-container.json");
const SANDBOX: &str = include_str!("../vectors/bundles/cri-sandbox.json");
const BUILDAH: &str = include_str!("../vectors/bundles/buildah.json");

/// Where sources of bind mounts lie: a file system whose mounts are propagated, as on most hosts.
pub const SHARED: &str = "shared";

/// What these launches have beyond the default rules.
pub fn relaxations() -> Vec<&'static str> {
    vec![
        "cap:*",
        "device:*",
        "namespace:*",
        "shown:*",
        "sysctl:*",
        "writable:*",
    ]
}

/// As `docker run --privileged`: every capability there is here, no filter, nothing masked.
fn privileged(c: &mut Value) {
    let all: Vec<_> = capabilities();
    for set in ["bounding", "effective", "permitted"] {
        c["process"]["capabilities"][set] = json!(all);
    }
    if let Some(linux) = c["linux"].as_object_mut() {
        for key in ["seccomp", "maskedPaths", "readonlyPaths"] {
            linux.remove(key);
        }
    }
    c["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    c["linux"]["devices"] = json!([
        { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o20666, "uid": 0, "gid": 0 },
        { "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o20640, "uid": 0, "gid": 5 },
    ]);
    for mount in c["mounts"].as_array_mut().into_iter().flatten() {
        let options = mount["options"].as_array_mut().into_iter().flatten();
        options
            .filter(|o| *o == "ro")
            .for_each(|o| *o = json!("rw"));
    }
}

/// Those that this machine's root has, by their names in order of their numbers.
fn capabilities() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapPrm:\t"));
    let mask = line
        .and_then(|m| u64::from_str_radix(m, 16).ok())
        .unwrap_or(0);
    let names = NAMES.split_whitespace().enumerate();
    names
        .filter(|(n, _)| mask >> n & 1 == 1)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

/// linux/capability.h
const NAMES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE \
    SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL \
    SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

fn read_only(c: &mut Value) {
    c["root"]["readonly"] = json!(true);
}

fn private_cgroups(c: &mut Value) {
    add(&mut c["linux"]["namespaces"], json!({ "type": "cgroup" }));
}

fn add(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

fn user_namespace(c: &mut Value) {
    add(&mut c["linux"]["namespaces"], json!({ "type": "user" }));
    for key in ["uidMappings", "gidMappings"] {
        // root is root, so that the files of the image are its own
        c["linux"][key] = json!([{ "containerID": 0, "hostID": 0, "size": 65_536 }]);
    }
}

impl Case {
    /// The bundle on `rootfs`; namespaces named `@…` are those of `peer`.
    pub fn bundle(&self, world: &World, rootfs: &Rootfs, peer: i32) -> Result<Bundle> {
        let mut bundle = Bundle::make(&world.work, rootfs, &[])?;
        let mut c: Value = serde_json::from_str(self.engine)?;
        c["root"]["path"] = json!(rootfs.path);
        c["process"]["args"] = json!(["/bin/probe"]);
        c["linux"]["cgroupsPath"] = json!(if machine().systemd {
            format!("system.slice:e2e:{}", rootfs.id)
        } else {
            format!("/{}", rootfs.id)
        });
        for namespace in c["linux"]["namespaces"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            let name = namespace["path"].as_str().and_then(|p| p.strip_prefix('@'));
            if let Some(name) = name.map(str::to_owned) {
                namespace["path"] = json!(format!("/proc/{peer}/ns/{name}"));
            }
        }
        for mount in c["mounts"].as_array_mut().into_iter().flatten() {
            let name = mount["source"].as_str().and_then(|s| s.strip_prefix('@'));
            if let Some(name) = name.map(str::to_owned) {
                let source = world.work.join(SHARED).join(&name);
                if name == "shm" {
                    fs::create_dir_all(&source)?;
                } else {
                    fs::write(&source, "")?;
                }
                mount["source"] = json!(source);
            }
        }
        (self.change)(&mut c);
        bundle.config = c;
        bundle.write()?;
        Ok(bundle)
    }

    /// The process of `exec`, as engines pass it.
    pub fn process(&self, bundle: &Bundle) -> Result<Value> {
        let mut process = bundle.config.get("process").context("process")?.clone();
        process["args"] = json!(["/bin/probe"]);
        (self.exec)(&mut process);
        Ok(process)
    }
}
