//! Files of the rootfs that are measured by themselves, and what stands in bind mounts.

use super::modes::edit_policy;
use super::*;
use crate::digest::{FileDigest, RootfsDigest};
use crate::event::{Event, FilesDone, Measure, MountContent, MountsRule};
use crate::imalog::{EncodedPath, Entry};
use crate::profile::{MountUse, Relaxation};

fn file(path: &str, content: &[u8]) -> Entry {
    let path = EncodedPath::of(path.as_bytes()).unwrap();
    Entry::file(FileDigest::of(content), path)
}

fn done(measure: Measure, files: u64) -> Entry {
    let done = Event::FilesDone(FilesDone { measure, files });
    done.to_entry().unwrap()
}

/// A scene whose PCR 10 begins with these.
fn measured(measure: Measure, entries: Vec<Entry>) -> Scene {
    let mut scene = Scene::new();
    edit_policy(&mut scene, |policy| policy.measure = measure);
    scene.log.splice(1..1, entries);
    scene
}

#[test]
fn accept_files_measured_by_themselves() {
    let all = vec![
        file("/etc/passwd", b"not on the list"),
        file("/usr/bin/app", b"app"),
        done(Measure::Files, 2),
    ];
    let appraisal = measured(Measure::Files, all).appraise();
    assert_eq!(appraisal.verdict.word(), "accepted");
    let measured_ = appraisal.container.measured.as_ref().unwrap();
    assert_eq!((measured_.files, measured_.executed.len()), (2, 1));
    let listed = vec![file("/usr/bin/app", b"app"), done(Measure::Listed, 1)];
    let scene = measured(Measure::Listed, listed);
    assert_eq!(scene.appraise().verdict.word(), "accepted");
}

#[test]
fn refuse_files_measured_otherwise_than_the_policy_says() {
    let (a, b) = (file("/a", b"1"), file("/b", b"2"));
    let end = done(Measure::Files, 2);
    let refused = |measure, entries: Vec<Entry>| {
        assert_refused(&measured(measure, entries), &["container P-ROOTFS"]);
    };
    refused(Measure::Files, vec![]);
    refused(Measure::Listed, vec![]);
    refused(Measure::Manifest, vec![a.clone(), b.clone(), end.clone()]);
    refused(Measure::Listed, vec![done(Measure::Files, 0)]);
    refused(Measure::Files, vec![a.clone(), end.clone()]);
    refused(Measure::Files, vec![b.clone(), a.clone(), end.clone()]);
    refused(Measure::Files, vec![a.clone(), a.clone(), end.clone()]);
    // the program of another list
    refused(Measure::Listed, vec![a.clone(), done(Measure::Listed, 1)]);
}

/// What was executed cannot pass for a file of the rootfs: PCR 10 itself says where these end.
#[test]
fn refuse_unlisted_programs_beside_measured_files() {
    let mut scene = measured(
        Measure::Files,
        vec![file("/a", b"1"), done(Measure::Files, 1)],
    );
    scene.log.push(file("/evil", b"evil"));
    assert_refused(&scene, &["container P-UNLISTED"]);
    scene.log.push(done(Measure::Files, 3));
    assert!(!scene.appraise().verdict.word().starts_with("accepted"));
}

fn mount(destination: &str, content: &[u8]) -> Event {
    Event::Mount(MountContent {
        destination: destination.into(),
        kind: "dir".into(),
        read_only: true,
        manifest: RootfsDigest::of(content),
        entries: 1,
        bytes: 0,
    })
}

/// A scene with a bind mount at /data, under this rule, and these events before its start.
fn bound(rule: MountsRule, events: &[Event]) -> Scene {
    let mut scene = Scene::new();
    let data = Relaxation::parse("mount:/srv/data").unwrap();
    scene.expect.launch.allow.push(data);
    scene.relaunch(|profile| {
        profile.mounts.push(MountUse {
            origins: vec![],
            destination: "/data".into(),
            kind: "bind".into(),
            source: "/srv/data".into(),
            real_source: "/srv/data".into(),
            options: vec!["bind".into(), "ro".into()],
            program: None,
        });
    });
    scene.edit_event("attestrun.grounds", |event| {
        if let Event::Grounds(grounds) = event {
            grounds.mounts = rule;
        }
    });
    let start = Event::Start.to_entry().unwrap();
    let at = scene.log.iter().position(|entry| *entry == start).unwrap();
    let events = events.iter().map(|event| event.to_entry().unwrap());
    scene.log.splice(at..at, events);
    scene
}

#[test]
fn accept_measured_mounts() {
    assert_eq!(
        bound(MountsRule::Programs, &[]).appraise().verdict.word(),
        "accepted"
    );
    let mut scene = bound(MountsRule::Measure, &[mount("/data", b"data")]);
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    let accepted = vec![RootfsDigest::of(b"other"), RootfsDigest::of(b"data")];
    scene.expect.mounts.insert("/data".into(), accepted);
    let appraisal = scene.appraise();
    assert_eq!(appraisal.verdict.word(), "accepted");
    assert_eq!(appraisal.container.measured.unwrap().mounts.len(), 1);
}

#[test]
fn refuse_mounts_that_are_not_measured_or_not_expected() {
    let refused = |scene: &Scene| drop(assert_refused(scene, &["container P-MOUNTS"]));
    let data = mount("/data", b"data");
    refused(&bound(MountsRule::Measure, &[]));
    refused(&bound(MountsRule::Measure, &[data.clone(), data.clone()]));
    refused(&bound(
        MountsRule::Measure,
        &[data.clone(), mount("/else", b"")],
    ));
    refused(&bound(MountsRule::Programs, std::slice::from_ref(&data)));
    for events in [&[data.clone()][..], &[]] {
        let rule = if events.is_empty() {
            MountsRule::Programs
        } else {
            MountsRule::Measure
        };
        let mut scene = bound(rule, events);
        let other = vec![RootfsDigest::of(b"other")];
        scene.expect.mounts.insert("/data".into(), other);
        refused(&scene);
    }
    // After the start it says nothing of what started.
    let mut scene = bound(MountsRule::Measure, &[]);
    scene.log.push(data.to_entry().unwrap());
    assert_refused(&scene, &["container L-FIRST"]);
}
