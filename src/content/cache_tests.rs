//! Hits, and everything that must be a miss.

use super::*;
use crate::testkit::{Scratch, archive, gzip};
use std::{cell::Cell, os::unix::fs::PermissionsExt as _};
use verify::rootfs::{compare_layers, merge};

thread_local! {
    static WARNINGS: Cell<usize> = const { Cell::new(0) };
}

fn heard(_: &str) {
    WARNINGS.set(WARNINGS.get() + 1);
}

fn source(scratch: &Scratch, name: &str, content: &[u8]) -> (LayerSource, DiffId) {
    let tar = archive(&[
        ("d/", None),
        (name, Some(content)),
        (".wh.gone", Some(b"")),
        ("d/.wh..wh..opq", Some(b"")),
    ]);
    let path = scratch.write(name, gzip(&tar));
    let diff_id = DiffId::of(&tar);
    (LayerSource::blob(diff_id, path), diff_id)
}

#[test]
fn accept_the_same_layer_again() {
    let scratch = Scratch::new();
    let cache = Cache::open(&scratch.join("cache"), heard).unwrap();
    let layers: Vec<_> = (0..4)
        .map(|n| source(&scratch, &format!("f{n}"), &[n]))
        .collect();
    let (sources, wanted): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
    let (first, _) = cache.layers(&sources, &wanted).unwrap();
    // Now the archives are gone: only the cache can answer.
    for number in 0..4 {
        std::fs::remove_file(scratch.join(format!("f{number}"))).unwrap();
    }
    assert_eq!(cache.layers(&sources, &wanted).unwrap().0, first);
    assert_eq!(first[0].whiteouts().len() + first[0].opaque().len(), 2);
}

#[test]
fn refuse_corrupt_or_foreign_entries() {
    let scratch = Scratch::new();
    let mut cache = Cache::open(&scratch.join("cache"), heard).unwrap();
    let (source, diff_id) = source(&scratch, "f", b"x");
    cache
        .layers(std::slice::from_ref(&source), &[diff_id])
        .unwrap();
    let file = scratch
        .join("cache")
        .join(format!("layer-{}", diff_id.hex()));
    let good = std::fs::read(&file).unwrap();
    assert!(cache.layer(&diff_id).is_some());
    for at in (0..good.len()).step_by(7).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&file, bad).unwrap();
        WARNINGS.set(0);
        assert!(cache.layer(&diff_id).is_none(), "byte {at}");
        assert_eq!(WARNINGS.get(), 1, "byte {at}: a miss, and a warning");
    }
    std::fs::write(&file, b"").unwrap();
    assert!(cache.layer(&diff_id).is_none());
    // Under another layer's name.
    let other = DiffId::of(b"other");
    std::fs::write(
        scratch.join("cache").join(format!("layer-{}", other.hex())),
        &good,
    )
    .unwrap();
    assert!(cache.layer(&other).is_none());
    // Of another boot.
    std::fs::write(&file, &good).unwrap();
    assert!(cache.layer(&diff_id).is_some());
    cache.boot = b"another boot".to_vec();
    assert!(cache.layer(&diff_id).is_none());
    // A miss is read anew.
    assert!(cache.layers(&[source], &[diff_id]).is_ok());
    assert!(cache.layer(&diff_id).is_some());
}

#[test]
fn refuse_layers_that_are_not_wanted() {
    let scratch = Scratch::new();
    let cache = Cache::open(&scratch.join("cache"), heard).unwrap();
    let (source, diff_id) = source(&scratch, "f", b"x");
    let other = DiffId::of(b"other");
    assert!(
        cache
            .layers(std::slice::from_ref(&source), &[other])
            .is_err()
    );
    assert!(cache.layer(&other).is_none());
    assert!(cache.layers(std::slice::from_ref(&source), &[]).is_err());
    assert!(cache.layers(&[source], &[diff_id, other]).is_err());
}

#[test]
fn refuse_directories_of_others() {
    let scratch = Scratch::new();
    let path = scratch.join("cache");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Cache::open(&path, heard).is_err());
    let link = scratch.join("link");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(Cache::open(&link, heard).is_err());
    assert!(Cache::open(&path, heard).is_ok());
}

#[test]
fn accept_checked_layers_under_their_key_alone() {
    let scratch = Scratch::new();
    scratch.write("layer/file", "x");
    let directory = beneath::open_directory(&scratch.join("layer")).unwrap();
    let stack = crate::stack::Stack::new(vec![directory], Vec::new());
    let (layers, quiet) = stack.unpacked(&FilesRead::default()).unwrap();
    assert!(quiet);
    let found = merge(layers).unwrap();
    let checked = compare_layers(&found, &found).unwrap();
    let cache = Cache::open(&scratch.join("cache"), heard).unwrap();
    let wanted = [DiffId::of(b"one")];
    let key = stack.seal().unwrap().key(&wanted);
    cache.keep_checked(&key, &checked);
    assert_eq!(cache.checked(&key), Some(checked));
    assert_eq!(stack.seal().unwrap().key(&wanted), key);
    let other = stack.seal().unwrap().key(&[DiffId::of(b"two")]);
    assert_eq!(cache.checked(&other), None);
    // Its nodes are checked when they are looked at.
    let kept = cache.checked(&key).unwrap();
    assert_eq!(kept.manifest(), Ok(found));
    let file = scratch.join("cache").join(format!("stack-{}", key.hex()));
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    assert!(cache.checked(&key).unwrap().manifest().is_err());
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert!(cache.checked(&key).unwrap().manifest().is_err());
    scratch.write("layer/file", "y");
    let changed = stack.seal().unwrap().key(&wanted);
    assert_eq!(cache.checked(&changed), None);
}

#[test]
fn what_was_not_used_for_long_goes() {
    let scratch = Scratch::new();
    let cache = Cache::open(&scratch.join("cache"), heard).unwrap();
    let (source, diff_id) = source(&scratch, "f", b"x");
    let old = |name: &str, days: u64| {
        let path = scratch.write(&format!("cache/{name}"), "");
        let file = File::options().write(true).open(path).unwrap();
        let when = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        file.set_modified(when).unwrap();
    };
    old("stack-old", 8);
    old("stack-used", 6);
    old(".new.1.1", 1);
    cache.layers(&[source], &[diff_id]).unwrap();
    let left = |name: &str| scratch.join("cache").join(name).exists();
    assert!(!left("stack-old") && !left(".new.1.1"));
    assert!(left("stack-used") && left(&format!("layer-{}", diff_id.hex())));
}

/// What was used last stays, as far as it is not too much alone.
#[test]
fn what_is_too_much_goes() {
    let scratch = Scratch::new();
    let cache = Cache::open(&scratch.join("cache"), heard).unwrap();
    let (source, diff_id) = source(&scratch, "f", b"x");
    for (name, minutes) in [("stack-a", 1), ("stack-b", 2), ("stack-c", 3)] {
        let path = scratch.write(&format!("cache/{name}"), "");
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(MAX_BYTES / 2 - 4096).unwrap(); // sparse
        let when = SystemTime::now() - Duration::from_secs(minutes * 60);
        file.set_modified(when).unwrap();
    }
    cache.layers(&[source], &[diff_id]).unwrap();
    let left = |name: &str| scratch.join("cache").join(name).exists();
    assert!(left("stack-a") && left("stack-b") && !left("stack-c"));
    assert!(left(&format!("layer-{}", diff_id.hex())));
}

/// No space left: the layers are read all the same, with a warning.
#[test]
fn what_cannot_be_kept_is_only_slower() {
    let scratch = Scratch::new();
    let cache = Cache::open(&scratch.join("cache"), heard).unwrap();
    let (source, diff_id) = source(&scratch, "f", b"x");
    // Renaming over a directory fails, whoever tries it.
    std::fs::create_dir(
        scratch
            .join("cache")
            .join(format!("layer-{}", diff_id.hex())),
    )
    .unwrap();
    WARNINGS.set(0);
    assert!(cache.layers(&[source], &[diff_id]).is_ok());
    assert!(WARNINGS.get() >= 1);
    let temporary = |name: String| name.starts_with(TEMPORARY);
    let entries = std::fs::read_dir(scratch.join("cache")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(temporary));
}
