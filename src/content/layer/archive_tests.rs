//! Archives by tar's own writer, and archives that are wrong in one way.

use super::*;
use crate::testkit::archive;
use tar::{Builder, EntryType};

fn path(text: &str) -> RootfsPath {
    RootfsPath::parse(text.as_bytes()).unwrap()
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o100_644);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn item(bytes: &[u8], name: &str) -> LayerEntry {
    let (diff_id, layer) = from_tar(bytes).unwrap();
    assert_eq!(diff_id, DiffId::of(bytes));
    layer
        .present()
        .find(|(known, _)| **known == path(name))
        .unwrap()
        .1
        .clone()
}

fn entry(bytes: &[u8], name: &str) -> Entry {
    match item(bytes, name) {
        LayerEntry::Entry(entry) => entry,
        link => panic!("{link:?}"),
    }
}

#[test]
fn accept_file_and_directory() {
    let bytes = archive(&[("bin/", None), ("./bin/app", Some(b"program"))]);
    let app = entry(&bytes, "bin/app");
    assert_eq!(
        app.kind,
        Kind::File {
            size: 7,
            digest: FileDigest::of(b"program")
        }
    );
    // File type bits of the header's mode are not permissions.
    assert_eq!((app.mode, app.uid, app.gid), (0o644, 0, 0));
    assert!(entry(&bytes, "bin").is_directory());
}

#[test]
fn accept_long_names_in_both_dialects() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    // tar's writer uses GNU records for a GNU header.
    let mut builder = Builder::new(Vec::new());
    let mut gnu = Header::new_gnu();
    gnu.set_size(1);
    gnu.set_mode(0o600);
    builder.append_data(&mut gnu, &long, &b"x"[..]).unwrap();
    let mut link = Header::new_gnu();
    link.set_entry_type(EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "link", &long).unwrap();
    let bytes = builder.into_inner().unwrap();
    assert!(matches!(
        entry(&bytes, &long).kind,
        Kind::File { size: 1, .. }
    ));
    assert_eq!(
        entry(&bytes, "link").kind,
        Kind::Symlink {
            target: long.clone().into_bytes()
        }
    );

    let mut builder = Builder::new(Vec::new());
    let records = [
        ("path", long.as_bytes()),
        ("uid", b"3000000"),
        ("SCHILY.xattr.user.a", b"b=c\n"),
    ];
    builder.append_pax_extensions(records).unwrap();
    builder
        .append_data(&mut header(EntryType::Regular, 1), "short", &b"x"[..])
        .unwrap();
    let bytes = builder.into_inner().unwrap();
    let file = entry(&bytes, &long);
    assert_eq!(file.uid, 3_000_000);
    assert_eq!(
        file.xattrs,
        [(b"user.a".to_vec(), b"b=c\n".to_vec())].into()
    );
}

#[test]
fn accept_extended_size() {
    // Files of 8 GiB and more have their size in the pax record; the header may hold 0.
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions([("size", &b"3"[..])])
        .unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    let mut plain = header(EntryType::Regular, 0);
    plain.set_path("big").unwrap();
    plain.set_cksum();
    bytes.extend_from_slice(plain.as_bytes());
    let mut content = vec![0; 512];
    content[..3].copy_from_slice(b"abc");
    bytes.extend_from_slice(&content);
    bytes.extend_from_slice(&[0; 1024]);
    assert_eq!(
        entry(&bytes, "big").kind,
        Kind::File {
            size: 3,
            digest: FileDigest::of(b"abc")
        }
    );
}

#[test]
fn accept_links_and_devices() {
    let mut builder = Builder::new(Vec::new());
    builder
        .append_link(&mut header(EntryType::Symlink, 0), "s", "../target")
        .unwrap();
    builder
        .append_link(&mut header(EntryType::Link, 0), "h", "./below")
        .unwrap();
    let mut device = header(EntryType::Char, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    builder.append_data(&mut device, "null", &b""[..]).unwrap();
    builder
        .append_data(&mut header(EntryType::Fifo, 0), "fifo", &b""[..])
        .unwrap();
    let bytes = builder.into_inner().unwrap();
    let symlink = entry(&bytes, "s");
    assert_eq!(
        (symlink.kind, symlink.mode),
        (
            Kind::Symlink {
                target: b"../target".to_vec()
            },
            0o777
        )
    );
    assert_eq!(
        item(&bytes, "h"),
        LayerEntry::Hardlink {
            target: path("below")
        }
    );
    assert_eq!(
        entry(&bytes, "null").kind,
        Kind::CharDevice { major: 1, minor: 3 }
    );
    assert_eq!(entry(&bytes, "fifo").kind, Kind::Fifo);
}

#[test]
fn every_byte_counts_for_the_diff_id() {
    let mut bytes = archive(&[("a", Some(b"a"))]);
    bytes.extend_from_slice(b"after the end mark");
    let (diff_id, layer) = from_tar(bytes.as_slice()).unwrap();
    assert_eq!(diff_id, DiffId::of(&bytes));
    assert_eq!(layer.present().len(), 1);
    // No end mark at all: Go reads it.
    let bytes = archive(&[("a", Some(b"a"))]);
    assert!(from_tar(&bytes[..1024]).is_ok());
}

#[test]
fn refuse_truncated() {
    let bytes = archive(&[("a", Some(&[7; 700]))]);
    for length in [1, 511, 513, 1024, 512 + 700, 512 + 1023] {
        let result = from_tar(&bytes[..length]);
        assert!(
            matches!(result, Err(ArchiveError::Truncated(_))),
            "{length}: {result:?}"
        );
    }
}

#[test]
fn refuse_changed_headers() {
    let bytes = archive(&[("a", Some(b"a"))]);
    for at in [0, 100, 124, 156] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let result = from_tar(bad.as_slice());
        assert!(
            matches!(result, Err(ArchiveError::Checksum { number: 1 })),
            "{at}: {result:?}"
        );
    }
    let mut bad = bytes;
    let end = bad.len() - 512;
    bad[end] = 1;
    assert!(matches!(
        from_tar(bad.as_slice()),
        Err(ArchiveError::Field {
            field: "end mark",
            ..
        })
    ));
}

#[test]
fn refuse_what_others_may_read_otherwise() {
    let with = |kind: EntryType| {
        let mut builder = Builder::new(Vec::new());
        builder
            .append_data(&mut header(kind, 0), "a", &b""[..])
            .unwrap();
        from_tar(builder.into_inner().unwrap().as_slice())
    };
    for kind in [EntryType::GNUSparse, EntryType::new(b'Z')] {
        assert!(
            matches!(with(kind), Err(ArchiveError::Unsupported { .. })),
            "{kind:?}"
        );
    }
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions([("GNU.sparse.major", &b"1"[..])])
        .unwrap();
    builder
        .append_data(&mut header(EntryType::Regular, 0), "a", &b""[..])
        .unwrap();
    let sparse = from_tar(builder.into_inner().unwrap().as_slice());
    assert!(matches!(sparse, Err(ArchiveError::Unsupported { .. })));
}

#[test]
fn refuse_malformed_pax_and_large_records() {
    let pax = |records: &[u8]| {
        let mut builder = Builder::new(Vec::new());
        builder
            .append_data(
                &mut header(EntryType::XHeader, records.len() as u64),
                "x",
                records,
            )
            .unwrap();
        builder
            .append_data(&mut header(EntryType::Regular, 0), "a", &b""[..])
            .unwrap();
        from_tar(builder.into_inner().unwrap().as_slice())
    };
    assert!(pax(b"10 path=b\n").is_ok());
    for bad in [
        &b"path=b\n"[..],
        b"99 path=b\n",
        b"10 path=b ",
        b"9 uid=-1\n",
        b"6 pat\n",
        b"0 \n",
        b"-1 a=b\n",
    ] {
        let result = pax(bad);
        assert!(
            matches!(result, Err(ArchiveError::Field { .. })),
            "{bad:?}: {result:?}"
        );
    }
    assert!(matches!(
        pax(&vec![b' '; 1 << 20 | 1]),
        Err(ArchiveError::Field { .. })
    ));
}

#[test]
fn refuse_paths_that_leave() {
    let mut bytes = archive(&[("aa/aa", Some(b""))]);
    bytes[..5].copy_from_slice(b"../aa");
    let mut fixed = Header::from_byte_slice(&bytes[..512]).clone();
    fixed.set_cksum();
    bytes[..512].copy_from_slice(fixed.as_bytes());
    assert!(matches!(
        from_tar(bytes.as_slice()),
        Err(ArchiveError::Path(_))
    ));
}
