//! Every event's PCR, name and bytes, with the launch profile in full.

use super::{BOOT, TIME, digest, hex_of, name, spelled};
use crate::digest::*;
use crate::event::*;
use crate::imalog::{Entry, Template};
use crate::pcr::{self, PcrIndex};
use crate::profile::{
    CapabilitySets, DeviceNode, HookAdditions, HookProgram, How as Namespace, LaunchProfile,
    Launcher, MountUse, NamespaceUse, ProcessProfile, UserProfile,
};

fn profile() -> LaunchProfile {
    LaunchProfile {
        launcher: Launcher::Podman,
        host_apparmor: true,
        host_selinux: false,
        host_unified_cgroups: true,
        process: ProcessProfile {
            program: "sh".into(),
            args_digest: digest!(ProfileDigest, 1).to_string(),
            env_names: vec!["PATH".into()],
            env_digest: digest!(ProfileDigest, 2).to_string(),
            cwd: "/".into(),
            user: UserProfile {
                uid: 1000,
                gid: 100,
                additional_gids: vec![4],
            },
            capabilities: CapabilitySets {
                bounding: vec!["CAP_KILL".into()],
                effective: vec![],
                inheritable: vec![],
                permitted: vec![],
                ambient: vec![],
            },
            no_new_privileges: true,
            terminal: false,
            apparmor: String::new(),
            selinux: String::new(),
        },
        namespaces: vec![
            NamespaceUse {
                kind: "mount".into(),
                how: Namespace::New,
                path: String::new(),
                peer: None,
            },
            NamespaceUse {
                kind: "network".into(),
                how: Namespace::Joined,
                path: "/run/netns/x".into(),
                peer: None,
            },
            NamespaceUse {
                kind: "user".into(),
                how: Namespace::Host,
                path: String::new(),
                peer: None,
            },
        ],
        mounts: vec![MountUse {
            destination: "/data".into(),
            kind: "bind".into(),
            source: "/srv/d".into(),
            real_source: "/srv/data".into(),
            origins: vec!["/disk/data".into()],
            options: vec!["ro".into()],
            program: None,
        }],
        devices: vec![DeviceNode {
            path: "/dev/fuse".into(),
            kind: "c".into(),
            major: 10,
            minor: 229,
            host_tpm: false,
        }],
        device_rules: vec!["deny a *:* rwm".into()],
        tpm_by_rule: false,
        hooks: vec![HookProgram {
            stage: "createRuntime".into(),
            path: "/usr/bin/hook".into(),
            digest: digest!(FileDigest, 3),
            args_digest: digest!(ProfileDigest, 4).to_string(),
            env_names: vec!["PATH".into()],
        }],
        rootfs_readonly: true,
        seccomp: "none".into(),
        seccomp_opens: vec![],
        masked_paths: vec!["/proc/acpi".into(), "/proc/kcore".into()],
        readonly_paths: vec![],
        volume_roots: vec!["/v".into()],
        mount_label: String::new(),
        sysctls: [("net.ipv4.ping_group_range".into(), "0 0".into())].into(),
        cgroups_path: "/x".into(),
    }
}

const PROFILE: &str = concat!(
    r#"{"cgroups_path":"/x","device_rules":["deny a *:* rwm"],"#,
    r#""devices":[{"host_tpm":false,"major":10,"minor":229,"path":"/dev/fuse","type":"c"}],"#,
    r#""hooks":[{"args_digest":"@4","digest":"@3","env_names":["PATH"],"path":"/usr/bin/hook","stage":"createRuntime"}],"#,
    r#""host_apparmor":true,"host_selinux":false,"host_unified_cgroups":true,"launcher":"podman","#,
    r#""masked_paths":["/proc/acpi","/proc/kcore"],"mount_label":"","#,
    r#""mounts":[{"destination":"/data","options":["ro"],"origins":["/disk/data"],"real_source":"/srv/data","source":"/srv/d","type":"bind"}],"#,
    r#""namespaces":[{"how":"new","path":"","type":"mount"},{"how":"joined","path":"/run/netns/x","type":"network"},"#,
    r#"{"how":"host","path":"","type":"user"}],"#,
    r#""process":{"apparmor":"","args_digest":"@1","#,
    r#""capabilities":{"ambient":[],"bounding":["CAP_KILL"],"effective":[],"inheritable":[],"permitted":[]},"#,
    r#""cwd":"/","env_digest":"@2","env_names":["PATH"],"no_new_privileges":true,"program":"sh","selinux":"","#,
    r#""terminal":false,"user":{"additional_gids":[4],"gid":100,"uid":1000}},"#,
    r#""readonly_paths":[],"rootfs_readonly":true,"seccomp":"none","seccomp_opens":[],"#,
    r#""sysctls":{"net.ipv4.ping_group_range":"0 0"},"tpm_by_rule":false,"volume_roots":["/v"]}"#,
);

/// Every event: PCR, name, buffer.
fn events() -> Vec<(Event, u8, &'static str, String)> {
    let executable = |version: &str, sha256| Executable {
        version: version.into(),
        sha256,
    };
    vec![
        (
            Event::HostLink(HostLink { host_ak_name: name(1), host_reset: 7, host_boot: BOOT.into() }),
            0,
            "attestrun.host-link",
            format!(r#"{{"host_ak_name":"000b{}","host_boot":"{BOOT}","host_reset":7}}"#, hex_of(1)),
        ),
        (
            Event::Runtime(Runtime {
                attestrun: executable("0.1.0", digest!(FileDigest, 1)),
                swtpm: executable("0.7.1", digest!(FileDigest, 2)),
            }),
            0,
            "attestrun.runtime",
            r#"{"attestrun":{"sha256":"@1","version":"0.1.0"},"swtpm":{"sha256":"@2","version":"0.7.1"}}"#.into(),
        ),
        (
            Event::Launch(Box::new(Launch {
                bundle_config: digest!(BundleDigest, 7),
                backend: Backend {
                    name: "runc".into(),
                    version: "1.1.5".into(),
                    sha256: Some(digest!(FileDigest, 8)),
                },
                profile: profile(),
            })),
            1,
            "attestrun.launch",
            format!(
                r#"{{"backend":{{"name":"runc","sha256":"@8","version":"1.1.5"}},"bundle_config":"@7","profile":{PROFILE}}}"#
            ),
        ),
        (
            Event::Image(Image {
                manifest: digest!(ImageDigest, 1),
                config: digest!(ConfigDigest, 2),
                name: "localhost/demo:1".into(),
                verdict: Verdict::Key {
                    fingerprint: digest!(KeyDigest, 3),
                    docker_reference: Some("localhost/demo".into()),
                },
                rule: "demo".into(),
            }),
            2,
            "attestrun.image",
            concat!(
                r#"{"config":"@2","manifest":"@1","name":"localhost/demo:1","rule":"demo","#,
                r#""verdict":{"docker_reference":"localhost/demo","fingerprint":"@3","kind":"key"}}"#
            )
            .into(),
        ),
        (
            Event::NoImage(NoImage { rootfs: "/srv/bundle/rootfs".into(), rule: "demo".into() }),
            2,
            "attestrun.no-image",
            r#"{"rootfs":"/srv/bundle/rootfs","rule":"demo"}"#.into(),
        ),
        (
            Event::Rootfs(Rootfs {
                manifest: digest!(RootfsDigest, 1),
                check: RootfsCheck::Full,
                entries: 12,
                bytes: 9_007_199_254_740_991,
                stubs: vec!["etc/hosts".into()],
            }),
            4,
            "attestrun.rootfs",
            r#"{"bytes":9007199254740991,"check":"full","entries":12,"manifest":"@1","stubs":["etc/hosts"]}"#.into(),
        ),
        (
            Event::RootfsDone(RootfsDone { manifest: digest!(RootfsDigest, 1) }),
            4,
            "attestrun.rootfs-done",
            r#"{"manifest":"@1"}"#.into(),
        ),
        (
            Event::FilesDone(FilesDone { measure: Measure::Listed, files: 3 }),
            10,
            "attestrun.files-done",
            r#"{"files":3,"measure":"listed"}"#.into(),
        ),
        (
            Event::Mount(MountContent {
                destination: "/data".into(),
                kind: "dir".into(),
                read_only: true,
                manifest: digest!(RootfsDigest, 1),
                entries: 2,
                bytes: 5,
            }),
            11,
            "attestrun.mount",
            r#"{"bytes":5,"destination":"/data","entries":2,"manifest":"@1","read_only":true,"type":"dir"}"#.into(),
        ),
        (
            Event::Policy(Policy {
                digest: digest!(PolicyDigest, 1),
                enforce: Enforce::Enforce,
                tier: TierName::None,
                rootfs: RootfsCheck::Full,
                measure: Measure::Manifest,
                scripts: Latitude::Any,
                inject: Latitude::Deny,
                anonymous_exec: Latitude::Any,
                enter: EnterMode::Listed,
                exec_log: ExecLog::First,
                rule: "demo".into(),
                decided_at: TIME,
            }),
            5,
            "attestrun.policy",
            concat!(
                r#"{"anonymous_exec":"any","decided_at":"2026-11-23T15:00:00Z","digest":"@1","enforce":"enforce","#,
                r#""enter":"listed","exec_log":"first","inject":"deny","measure":"manifest","rootfs":"full","#,
                r#""rule":"demo","scripts":"any","tier":"none"}"#
            )
            .into(),
        ),
        (
            Event::Grounds(Grounds {
                origin: Origin::Image,
                programs: ProgramsRule::Listed,
                mounts: MountsRule::Programs,
                upper: UpperRule::Pristine,
                relaxations: vec!["device:/dev/fuse".into()],
                sources: vec![Source {
                    kind: "key".into(),
                    path: "/k.pub".into(),
                    sha256: digest!(FileDigest, 1),
                }],
                audited: vec!["it is not signed".into()],
            }),
            5,
            "attestrun.grounds",
            concat!(
                r#"{"audited":["it is not signed"],"mounts":"programs","origin":"image","programs":"listed","#,
                r#""relaxations":["device:/dev/fuse"],"sources":[{"kind":"key","path":"/k.pub","sha256":"@1"}],"#,
                r#""upper":"pristine"}"#
            )
            .into(),
        ),
        (
            Event::NoList(NoList { programs: ProgramsRule::Any, rule: "demo".into() }),
            7,
            "attestrun.no-list",
            r#"{"programs":"any","rule":"demo"}"#.into(),
        ),
        (
            Event::User(User {
                certificate: digest!(KeyDigest, 1),
                subject: "CN=Demo User".into(),
                tenant: "spiffe://demo.example/tenant/demo".into(),
            }),
            7,
            "attestrun.user",
            r#"{"certificate":"@1","subject":"CN=Demo User","tenant":"spiffe://demo.example/tenant/demo"}"#.into(),
        ),
        (
            Event::List(List { digest: digest!(ListDigest, 1), name: "demo".into(), serial: 7 }),
            7,
            "attestrun.list",
            r#"{"digest":"@1","name":"demo","serial":7}"#.into(),
        ),
        (
            Event::Separator(PcrIndex::new(3).unwrap()),
            3,
            "separator",
            "\0\0\0\0".into(),
        ),
        (
            Event::Fault(Fault { kind: "exec-denied".into(), detail: "/bin/x".into() }),
            8,
            "attestrun.fault",
            r#"{"detail":"/bin/x","kind":"exec-denied"}"#.into(),
        ),
        (
            Event::Tier(Tier {
                tier: TierName::None,
                kernel: "6.1.0-18-amd64".into(),
                memory_files: Latitude::Any,
            }),
            11,
            "attestrun.tier",
            r#"{"kernel":"6.1.0-18-amd64","tier":"none"}"#.into(),
        ),
        (
            Event::Tier(Tier {
                tier: TierName::Fanotify,
                kernel: "6.12.9".into(),
                memory_files: Latitude::Deny,
            }),
            11,
            "attestrun.tier",
            r#"{"kernel":"6.12.9","memory_files":"deny","tier":"fanotify"}"#.into(),
        ),
        (
            Event::KernelKeys(KernelKeys { checked: KernelCheck::Chain, why: "no RSA".into() }),
            11,
            "attestrun.kernel-keys",
            r#"{"checked":"chain","why":"no RSA"}"#.into(),
        ),
        (Event::Start, 11, "attestrun.start", "{}".into()),
        (
            Event::Hooked(HookAdditions {
                mounts: vec!["/usr/lib/libgpu.so.1".into()],
                devices: vec!["/dev/gpu0".into()],
            }),
            11,
            "attestrun.hooked",
            r#"{"devices":["/dev/gpu0"],"mounts":["/usr/lib/libgpu.so.1"]}"#.into(),
        ),
        (
            Event::Exec(Exec {
                path: "/bin/sh".into(),
                digest: digest!(FileDigest, 1),
                args_digest: hex_of(2),
                uid: 1000,
                gid: 100,
                how: How::Entrypoint,
            }),
            11,
            "attestrun.exec",
            format!(
                r#"{{"args_digest":"{}","digest":"@1","gid":100,"how":"entrypoint","path":"/bin/sh","uid":1000}}"#,
                hex_of(2)
            ),
        ),
        (
            Event::Enter(Enter {
                verdict: EnterVerdict::Denied,
                path: "/bin/x".into(),
                digest: None,
                user: Ids { uid: 0, gid: 0 },
                capabilities: vec!["CAP_KILL".into()],
                tty: true,
                reason: "not listed".into(),
            }),
            11,
            "attestrun.enter",
            concat!(
                r#"{"capabilities":["CAP_KILL"],"digest":null,"path":"/bin/x","reason":"not listed","tty":true,"#,
                r#""user":{"gid":0,"uid":0},"verdict":"denied"}"#
            )
            .into(),
        ),
        (
            Event::Inside(Inside {
                verdict: EnterVerdict::Allowed,
                path: "/bin/ls".into(),
                digest: digest!(FileDigest, 1),
                caller: Some(Caller {
                    pid: 20,
                    ppid: 10,
                    uid: 1000,
                    gid: 100,
                    mount_namespace: 4_026_531_841,
                    pid_namespace: 4_026_531_836,
                }),
            }),
            11,
            "attestrun.inside",
            concat!(
                r#"{"caller":{"gid":100,"mount_namespace":4026531841,"pid":20,"pid_namespace":4026531836,"#,
                r#""ppid":10,"uid":1000},"digest":"@1","path":"/bin/ls","verdict":"allowed"}"#
            )
            .into(),
        ),
    ]
}

#[test]
fn events_have_these_names_and_bytes() {
    for (event, pcr, name, text) in events() {
        let entry = event.to_entry().unwrap();
        assert_eq!((entry.pcr().get(), event.name()), (pcr, name));
        let Template::ImaBuf { name: written, buf } = entry.template() else {
            panic!("{name} is not a buffer");
        };
        assert_eq!(written, name);
        assert_eq!(String::from_utf8_lossy(buf), spelled(&text), "{name}");
        assert_eq!(Event::from_entry(&entry), Ok(event));
    }
}

#[test]
fn refuse_events_with_other_bytes() {
    for (event, pcr, name, text) in events() {
        let text = spelled(&text);
        let pcr = PcrIndex::new(pcr.into()).unwrap();
        let parse = |pcr, text: &str| {
            let entry = Entry::buffer(pcr, name, text.as_bytes().to_vec()).unwrap();
            Event::from_entry(&entry)
        };
        assert_eq!(parse(pcr, &text), Ok(event.clone()));
        let mut bad = vec![
            format!("{text} "),
            format!(" {text}"),
            String::new(),
            "null".into(),
        ];
        if let Some(members) = text.strip_prefix('{') {
            bad.push(text.replacen('{', r#"{"zz":1,"#, 1).replace(",}", "}"));
            if let Some((first, rest)) = members.split_once(',') {
                // Without the first member, and with it last.
                bad.push(format!("{{{rest}"));
                bad.push(format!("{{{},{first}}}", rest.trim_end_matches('}')));
            }
        }
        for text in bad {
            assert!(parse(pcr, &text).is_err(), "{name}: {text}");
        }
        for other in (0..=11)
            .filter(|n| *n != 10)
            .map(|n| PcrIndex::new(n).unwrap())
        {
            let same_kind = name == SEPARATOR && other <= pcr::LAST_CLOSED;
            assert!(
                other == pcr || same_kind || parse(other, &text).is_err(),
                "{name} in {other}"
            );
        }
    }
    let too_large = Event::List(List {
        digest: digest!(ListDigest, 1),
        name: "x".into(),
        serial: 1 << 53,
    });
    assert!(too_large.to_entry().is_err());
    assert!(Event::Separator(pcr::FAULTS).to_entry().is_err());
}
