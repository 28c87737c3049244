//! Hits, and everything that must be a miss.

use super::*;
use crate::testkit::{Scratch, archive, gzip};
use std::os::unix::fs::PermissionsExt as _;

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
    let cache = Cache::open(&scratch.join("cache")).unwrap();
    let layers: Vec<_> = (0..4)
        .map(|n| source(&scratch, &format!("f{n}"), &[n]))
        .collect();
    let (sources, wanted): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
    let first = cache.layers(&sources, &wanted).unwrap();
    // Now the archives are gone: only the cache can answer.
    for number in 0..4 {
        std::fs::remove_file(scratch.join(format!("f{number}"))).unwrap();
    }
    assert_eq!(cache.layers(&sources, &wanted).unwrap(), first);
    assert_eq!(first[0].whiteouts().len() + first[0].opaque().len(), 2);
}

#[test]
fn every_kind_survives() {
    let path = |text: &str| RootfsPath::parse(text.as_bytes()).unwrap();
    let mut builder = LayerBuilder::default();
    let kinds = [
        Kind::File {
            size: 5,
            digest: FileDigest::of(b"x"),
        },
        Kind::Directory,
        Kind::Symlink {
            target: b"t".to_vec(),
        },
        Kind::CharDevice { major: 1, minor: 2 },
        Kind::BlockDevice { major: 3, minor: 4 },
        Kind::Fifo,
        Kind::Socket,
    ];
    for (number, kind) in kinds.into_iter().enumerate() {
        let xattrs = [(b"user.a".to_vec(), vec![0, 1])].into();
        let entry = Entry {
            kind,
            mode: 0o4755,
            uid: 1,
            gid: u32::MAX,
            xattrs,
        };
        builder
            .add(path(&format!("e{number}")), LayerEntry::Entry(entry))
            .unwrap();
    }
    builder
        .add(
            path("h"),
            LayerEntry::Hardlink {
                target: path("lower"),
            },
        )
        .unwrap();
    builder.whiteout(path("w")).unwrap();
    builder.opaque(path("o")).unwrap();
    let layer = builder.build();
    let mut bytes = Vec::new();
    encode(&layer, &mut bytes);
    assert_eq!(decode(&bytes), Some(layer));
    for length in 0..bytes.len() {
        assert_eq!(decode(&bytes[..length]), None, "{length}");
    }
}

#[test]
fn refuse_corrupt_or_foreign_entries() {
    let scratch = Scratch::new();
    let mut cache = Cache::open(&scratch.join("cache")).unwrap();
    let (source, diff_id) = source(&scratch, "f", b"x");
    cache
        .layers(std::slice::from_ref(&source), &[diff_id])
        .unwrap();
    let file = scratch.join("cache").join(diff_id.hex());
    let good = std::fs::read(&file).unwrap();
    assert!(cache.get(diff_id).is_some());
    for at in (0..good.len()).step_by(7).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&file, bad).unwrap();
        assert!(cache.get(diff_id).is_none(), "byte {at}");
    }
    std::fs::write(&file, b"").unwrap();
    assert!(cache.get(diff_id).is_none());
    // Under another layer's name.
    let other = DiffId::of(b"other");
    std::fs::write(scratch.join("cache").join(other.hex()), &good).unwrap();
    assert!(cache.get(other).is_none());
    // Of another boot.
    std::fs::write(&file, &good).unwrap();
    assert!(cache.get(diff_id).is_some());
    cache.boot = b"another boot".to_vec();
    assert!(cache.get(diff_id).is_none());
    // A miss is read anew.
    assert!(cache.layers(&[source], &[diff_id]).is_ok());
    assert!(cache.get(diff_id).is_some());
}

#[test]
fn refuse_layers_that_are_not_wanted() {
    let scratch = Scratch::new();
    let cache = Cache::open(&scratch.join("cache")).unwrap();
    let (source, diff_id) = source(&scratch, "f", b"x");
    let other = DiffId::of(b"other");
    assert!(
        cache
            .layers(std::slice::from_ref(&source), &[other])
            .is_err()
    );
    assert!(cache.get(other).is_none());
    assert!(cache.layers(std::slice::from_ref(&source), &[]).is_err());
    assert!(cache.layers(&[source], &[diff_id, other]).is_err());
}

#[test]
fn refuse_directories_of_others() {
    let scratch = Scratch::new();
    let path = scratch.join("cache");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Cache::open(&path).is_err());
    let link = scratch.join("link");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(Cache::open(&link).is_err());
    assert!(Cache::open(&path).is_ok());
}
