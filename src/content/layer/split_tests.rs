//! Recordings made here from archives, as tar-split makes them.

use super::*;
use crate::{
    beneath,
    layer::LayerSource,
    testkit::{Scratch, archive, gzip},
};
use std::os::fd::AsFd as _;
use verify::digest::FileDigest;
use verify::rootfs::{Kind, LayerEntry};

const MEMBERS: [(&str, Option<&[u8]>); 4] = [
    ("bin/", None),
    ("bin/app", Some(b"program")),
    ("empty", Some(b"")),
    ("z", Some(&[9; 700])),
];

/// The recording of a ustar archive of `members`, and the directory.
fn recorded(scratch: &Scratch) -> (Vec<u8>, DiffId) {
    recording_of(scratch, &MEMBERS)
}

fn recording_of(scratch: &Scratch, members: &[(&str, Option<&[u8]>)]) -> (Vec<u8>, DiffId) {
    let bytes = archive(members);
    let mut lines = String::new();
    let mut segment = Vec::new();
    let mut at = 0;
    for (name, content) in members.iter().copied() {
        segment.extend_from_slice(&bytes[at..at + 512]);
        at += 512;
        let content = content.unwrap_or_default();
        let line = |segment: &[u8]| {
            format!(
                "{{\"type\":2,\"payload\":\"{}\",\"position\":0}}\n",
                STANDARD.encode(segment)
            )
        };
        lines += &line(&segment);
        lines += &format!(
            "{{\"type\":1,\"name\":\"{name}\",\"size\":{},\"payload\":\"AAAAAAAAAAA=\",\"position\":1}}\n",
            content.len()
        );
        let end = at + content.len().div_ceil(512) * 512;
        segment = bytes[at + content.len()..end].to_vec();
        at = end;
        if name.ends_with('/') {
            std::fs::create_dir_all(scratch.join("diff").join(name)).unwrap();
        } else {
            scratch.write(&format!("diff/{name}"), content);
        }
    }
    segment.extend_from_slice(&bytes[at..]);
    lines += &format!(
        "{{\"type\":2,\"payload\":\"{}\",\"position\":9}}\n",
        STANDARD.encode(segment)
    );
    (gzip(lines.as_bytes()), DiffId::of(&bytes))
}

fn read(scratch: &Scratch, recording: &[u8]) -> Result<(DiffId, Layer)> {
    let directory = beneath::open_directory(&scratch.join("diff")).unwrap();
    from_tar_split(recording, directory.as_fd(), 2).map(|(found, layer, _)| (found, layer))
}

#[test]
fn accept_gives_the_archive_back() {
    let scratch = Scratch::new();
    let (recording, diff_id) = recorded(&scratch);
    let (found, layer) = read(&scratch, &recording).unwrap();
    assert_eq!(found, diff_id);
    assert_eq!(layer.present().len(), 4);
    let app = layer
        .present()
        .find(|(path, _)| path.as_bytes() == b"bin/app")
        .unwrap()
        .1;
    let LayerEntry::Entry(app) = app else {
        panic!()
    };
    assert_eq!(
        app.kind,
        Kind::File {
            size: 7,
            digest: FileDigest::of(b"program")
        }
    );
    let source = LayerSource::split(
        diff_id,
        scratch.write("split.gz", &recording),
        scratch.join("diff"),
    );
    assert_eq!(source.read_as(diff_id).unwrap(), layer);
}

#[test]
fn refuse_changed_byte_names_the_layer() {
    let scratch = Scratch::new();
    let (recording, diff_id) = recorded(&scratch);
    scratch.write("diff/bin/app", "prograM");
    let (found, _) = read(&scratch, &recording).unwrap();
    assert_ne!(found, diff_id);
    let source = LayerSource::split(
        diff_id,
        scratch.write("split.gz", &recording),
        scratch.join("diff"),
    );
    let error = source.read_as(diff_id).unwrap_err().to_string();
    assert!(
        error.contains("/diff") && error.contains(&diff_id.to_string()),
        "{error}"
    );
}

#[test]
fn refuse_missing_short_or_linked_files() {
    let scratch = Scratch::new();
    let (recording, _) = recorded(&scratch);
    scratch.write("diff/bin/app", "short");
    let error = format!("{:#}", read(&scratch, &recording).unwrap_err());
    assert!(
        error.contains("/bin/app is shorter than recorded"),
        "{error}"
    );
    std::fs::remove_file(scratch.join("diff/bin/app")).unwrap();
    assert!(format!("{:#}", read(&scratch, &recording).unwrap_err()).contains("/bin/app"));
    // The same content through a link is not the layer's file.
    scratch.write("elsewhere", "program");
    std::os::unix::fs::symlink(scratch.join("elsewhere"), scratch.join("diff/bin/app")).unwrap();
    assert!(read(&scratch, &recording).is_err());
    std::fs::remove_file(scratch.join("diff/bin/app")).unwrap();
    std::fs::create_dir(scratch.join("diff/bin/app")).unwrap();
    assert!(read(&scratch, &recording).is_err());
}

#[test]
fn refuse_malformed_recordings() {
    let scratch = Scratch::new();
    let (recording, _) = recorded(&scratch);
    assert!(read(&scratch, &recording[..recording.len() / 2]).is_err());
    for bad in [
        "{",
        "{\"type\":3}",
        "{\"type\":2,\"payload\":\"*\"}",
        "{\"type\":1,\"name\":\"../x\",\"size\":1}",
    ] {
        assert!(read(&scratch, &gzip(bad.as_bytes())).is_err(), "{bad}");
    }
}

/// What is read for the archive is known of the directory; a file that goes on after what was recorded
/// is not the file of the archive.
#[test]
fn accept_files_of_the_directory_read_once() {
    let scratch = Scratch::new();
    let (recording, diff_id) = recorded(&scratch);
    let longer = [&[9; 700][..], b"more"].concat();
    scratch.write("diff/z", &longer);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let directory = beneath::open_directory(&scratch.join("diff")).unwrap();
    for readers in [1, 2, 5] {
        let read = from_tar_split(&recording[..], directory.as_fd(), readers);
        let (found, _, files) = read.unwrap();
        assert_eq!(found, diff_id, "{readers} readers");
        let known = |name: &str| {
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statat(&directory, name, flags).unwrap();
            files.get(&stat).map(|(entry, _)| entry.kind.clone())
        };
        let digest = FileDigest::of(b"program");
        assert_eq!(known("bin/app"), Some(Kind::File { size: 7, digest }));
        assert_eq!(known("z"), None);
    }
}

/// More than what is read ahead, in files larger than a piece: all in its order, all hashed.
#[test]
fn accept_many_and_large_files() {
    let scratch = Scratch::new();
    let contents: Vec<Vec<u8>> = (0..200u32)
        .map(|n| {
            vec![
                n as u8;
                if n % 50 == 0 {
                    3_000_001
                } else {
                    n as usize * 7
                }
            ]
        })
        .collect();
    let names: Vec<String> = (0..200).map(|n| format!("f{n}")).collect();
    let members: Vec<_> = names.iter().zip(&contents).collect();
    let members: Vec<_> = members
        .iter()
        .map(|(name, content)| (name.as_str(), Some(content.as_slice())))
        .collect();
    let (recording, diff_id) = recording_of(&scratch, &members);
    let (found, layer) = read(&scratch, &recording).unwrap();
    assert_eq!(found, diff_id);
    for (path, item) in layer.present() {
        let number = std::str::from_utf8(&path.as_bytes()[1..]).unwrap();
        let content = &contents[number.parse::<usize>().unwrap()];
        let LayerEntry::Entry(entry) = item else {
            panic!()
        };
        let (size, digest) = (content.len() as u64, FileDigest::of(content));
        assert_eq!(entry.kind, Kind::File { size, digest });
    }
    // An end before its time, whoever waits for whom.
    scratch.write("diff/f150", "short");
    let error = read(&scratch, &recording).unwrap_err();
    assert!(
        format!("{error:#}").contains("/f150 is shorter than recorded"),
        "{error:#}"
    );
}
