//! The binding record and its log (B-…).

use super::super::scene::BOOT;
use super::*;
use crate::binding::{Kind, LogEntry};
use crate::digest::{ConfigDigest, RecordDigest};
use crate::event::{Event, HostLink};
use crate::tpm2::TpmName;

#[test]
fn refuse_record_that_is_not_in_the_log() {
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| evidence.binding_log.clear());
    assert_refused(
        &scene,
        &["container B-HASH", "container B-LIVE", "host L-REPLAY"],
    );
}

#[test]
fn refuse_ended_containers() {
    for kind in [Kind::Unbind, Kind::Void] {
        let mut scene = Scene::new();
        let r = scene.record().digest().unwrap();
        scene.after = vec![LogEntry::new(kind, &scene.claim.vtpm_ak_name, r)];
        assert_refused(&scene, &["container B-LIVE"]);
    }
}

#[test]
fn accept_among_other_containers() {
    let mut scene = Scene::new();
    let other = |kind, n: &[u8]| LogEntry::new(kind, &TpmName::of_public(n), RecordDigest::of(n));
    scene.before = vec![other(Kind::Bind, b"1"), other(Kind::Bind, b"2")];
    scene.after = vec![other(Kind::Unbind, b"1")];
    scene.host.prev = hex::encode(scene.before[1].value());
    assert_eq!(scene.appraise().verdict.word(), "accepted");
    scene.host.prev = hex::encode(scene.before[0].value());
    assert_refused(&scene, &["container B-HASH"]);
}

#[test]
fn refuse_other_container() {
    let mut scene = Scene::new();
    scene.asked = ContainerId::parse("web-2").unwrap();
    assert_refused(&scene, &["container B-ID"]);
}

#[test]
fn refuse_other_image() {
    let mut scene = Scene::new();
    scene.expect.images = vec![ImageDigest::of(b"other")];
    assert_refused(&scene, &["container B-IMG"]);

    let mut scene = Scene::new();
    scene.edit_event("attestrun.image", |event| {
        if let Event::Image(image) = event {
            image.config = ConfigDigest::of(b"other");
        }
    });
    assert_refused(&scene, &["container B-IMG"]);
}

#[test]
fn refuse_other_host_link() {
    type Change = fn(&mut HostLink);
    let changes: [Change; 3] = [
        |link| link.host_reset = 8,
        |link| link.host_boot = BOOT.replace('0', "1"),
        |link| link.host_ak_name = TpmName::of_public(b"other"),
    ];
    for change in changes {
        let mut scene = Scene::new();
        scene.edit_event("attestrun.host-link", |event| {
            if let Event::HostLink(link) = event {
                change(link);
            }
        });
        assert_refused(&scene, &["container B-EPOCH"]);
    }
}

#[test]
fn refuse_records_that_do_not_parse() {
    let mut scene = Scene::new();
    scene.edit_evidence = Box::new(|evidence| evidence.binding.push(b' '));
    let appraisal = scene.appraise();
    assert_eq!(
        with(&appraisal, "refused"),
        ["host Q-QD", "container B-ORDER", "host L-PARSE"],
        "{:#?}",
        appraisal.findings
    );
    assert!(with(&appraisal, "unknown").contains(&"container B-ID".to_owned()));
}
