//! The launch profile (C-…).

use super::super::scene::executed;
use super::*;
use crate::digest::{BundleDigest, FileDigest, ProfileDigest};
use crate::event::How;
use crate::profile::{DeviceNode, How as Namespace, MountUse, NamespaceUse, Peer, Relaxation};

#[test]
fn refuse_launch_that_the_record_does_not_name() {
    let mut scene = Scene::new();
    scene.claim.profile = ProfileDigest::of(b"other");
    let all = [
        "C-ARGS", "C-ENV", "C-CAPS", "C-NS", "C-MOUNT", "C-DEV", "C-HOOK", "C-PEER",
    ];
    let all = all.map(|check| format!("container {check}"));
    assert_refused(&scene, &all.each_ref().map(String::as_str));
    let mut scene = Scene::new();
    scene.claim.bundle_config = BundleDigest::of(b"other");
    assert_refused(&scene, &all.each_ref().map(String::as_str));
}

#[test]
fn refuse_launches_by_their_check() {
    let mut scene = Scene::new();
    scene.relaunch(|profile| profile.process.args_digest = ProfileDigest::of(b"[]").to_string());
    assert_refused(&scene, &["container C-ARGS"]);
    scene.expect.launch.args = ArgsRule::Any(Any::Any);
    assert_eq!(scene.appraise().verdict.word(), "accepted");

    let mut scene = Scene::new();
    scene.relaunch(|profile| profile.process.env_names = vec!["LD_PRELOAD".into(), "PATH".into()]);
    assert_refused(&scene, &["container C-ENV"]);
    scene.expect.launch.env = EnvRule::OneOf(vec!["LD_PRELOAD".into()]);
    assert_refused(&scene, &["container C-ENV"]);
    scene.expect.launch.env = EnvRule::OneOf(vec!["LD_PRELOAD".into(), "PATH".into()]);
    assert_eq!(scene.appraise().verdict.word(), "accepted");

    let mut scene = Scene::new();
    scene.relaunch(|profile| profile.process.capabilities.bounding.push("CAP_BPF".into()));
    assert_refused(&scene, &["container C-CAPS"]);
    scene.expect.launch.allow = vec![Relaxation::parse("cap:CAP_BPF").unwrap()];
    assert_eq!(scene.appraise().verdict.word(), "accepted");

    let mut scene = Scene::new();
    scene.relaunch(|profile| profile.namespaces.retain(|n| n.kind != "mount"));
    assert_refused(&scene, &["container C-NS"]);

    let mut scene = Scene::new();
    scene.relaunch(|profile| {
        profile.mounts.push(MountUse {
            origins: vec![],
            destination: "/run/docker.sock".into(),
            kind: "bind".into(),
            source: "/run/docker.sock".into(),
            real_source: "/run/docker.sock".into(),
            options: vec![],
            program: None,
        });
    });
    assert_refused(&scene, &["container C-MOUNT"]);

    let mut scene = Scene::new();
    scene.relaunch(|profile| {
        let (path, kind) = ("/dev/tpm0".into(), "c".into());
        profile.devices.push(DeviceNode {
            path,
            kind,
            major: 10,
            minor: 224,
            host_tpm: true,
        });
    });
    assert_refused(&scene, &["container C-DEV"]);
}

#[test]
fn joined_namespaces_need_peers() {
    let join = |kind: &str, path: &str| {
        let mut scene = Scene::new();
        let named = Relaxation::parse("namespace:pid").unwrap();
        scene.expect.launch.allow.push(named);
        let (kind, path) = (kind.to_owned(), path.to_owned());
        scene.relaunch(|profile| {
            profile.namespaces.retain(|n| n.kind != kind);
            let (kind, path) = (kind.clone(), path.clone());
            profile.namespaces.push(NamespaceUse {
                kind,
                how: Namespace::Joined,
                path,
                peer: None,
            });
        });
        scene
    };
    assert_eq!(
        join("network", "/run/netns/cni-1")
            .appraise()
            .verdict
            .word(),
        "accepted"
    );
    assert_refused(&join("network", "/proc/1234/ns/net"), &["container C-PEER"]);
    assert_refused(
        &join("network", "/run/netns/../../proc/1/ns/net"),
        &["container C-PEER"],
    );
    assert_refused(&join("ipc", "/run/netns/cni-1"), &["container C-PEER"]);

    let mut scene = join("pid", "/proc/1234/ns/pid");
    scene.claim.peers = vec!["0".repeat(64)];
    assert_refused(&scene, &["container C-PEER"]);
}

#[test]
fn accept_joined_namespaces_of_an_accepted_peer() {
    let other = Scene::new();
    let Verdict::Accepted(trusted) = other.appraise().verdict else {
        panic!("the peer is accepted");
    };
    let peer = Peer {
        container: trusted.container().clone(),
        record: trusted.record(),
    };
    let mut scene = Scene::new();
    scene.relaunch(|profile| {
        profile.namespaces.retain(|n| n.kind != "ipc");
        profile.namespaces.push(NamespaceUse {
            kind: "ipc".into(),
            how: Namespace::Joined,
            path: "/proc/1234/ns/ipc".into(),
            peer: Some(peer.clone()),
        });
    });
    scene.peers = vec![trusted.clone()];
    assert_refused(&scene, &["container C-PEER"]); // the record does not name it
    scene.claim.peers = vec![peer.record.hex()];
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    scene.peers = vec![];
    assert_eq!(with(&scene.appraise(), "unknown"), ["container C-PEER"]);
    let Verdict::Accepted(another) = Scene::new().appraise().verdict else {
        panic!("another container is accepted");
    };
    scene.peers = vec![another];
    assert_eq!(with(&scene.appraise(), "unknown"), ["container C-PEER"]);
}

/// A scene whose container begins with an engine's init.
fn begun_by_an_init() -> Scene {
    let mut scene = Scene::new();
    scene.relaunch(|profile| {
        profile.mounts.push(MountUse {
            origins: vec![],
            destination: "/sbin/docker-init".into(),
            kind: "bind".into(),
            source: "/var/lib/attestrun/programs/x".into(),
            real_source: "/usr/bin/docker-init".into(),
            options: vec!["ro".into()],
            program: Some(FileDigest::of(b"init")),
        });
    });
    scene
        .log
        .truncate(scene.log.len() - scene.entrypoint().len());
    let init = executed(b"/usr/sbin/docker-init", b"init", How::Entrypoint);
    scene.log.extend(init);
    scene
        .log
        .extend(executed(b"/usr/bin/app", b"app", How::Behind));
    scene
}

#[test]
fn accept_an_init_by_its_name_alone() {
    let mut scene = begun_by_an_init();
    assert_refused(&scene, &["container P-UNLISTED", "container C-MOUNT"]);
    let name = |content: &[u8]| {
        let name = format!("program:{}", FileDigest::of(content));
        vec![Relaxation::parse(&name).unwrap()]
    };
    scene.expect.launch.allow = name(b"other");
    assert_refused(&scene, &["container P-UNLISTED", "container C-MOUNT"]);
    scene.expect.launch.allow = name(b"init");
    assert_eq!(scene.appraise().verdict.word(), "accepted");
}

#[test]
fn refuse_an_unlisted_program_behind_an_init_or_without_its_mount() {
    let init = Relaxation::parse(&format!("program:{}", FileDigest::of(b"init"))).unwrap();
    let mut scene = begun_by_an_init();
    scene.expect.launch.allow = vec![init.clone()];
    scene
        .log
        .extend(executed(b"/usr/bin/other", b"other", How::Behind));
    assert_refused(&scene, &["container P-UNLISTED"]);

    let mut scene = Scene::new();
    scene.expect.launch.allow = vec![init];
    scene
        .log
        .extend(executed(b"/sbin/docker-init", b"init", How::Enter));
    assert_refused(&scene, &["container P-UNLISTED"]);
}
