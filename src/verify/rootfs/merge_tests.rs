//! Layers and their merging, case by case.

use super::*;

fn path(text: &str) -> RootfsPath {
    RootfsPath::parse(text.as_bytes()).unwrap()
}

fn entry(kind: Kind, mode: u16) -> Entry {
    Entry {
        kind,
        mode,
        uid: 0,
        gid: 0,
        xattrs: BTreeMap::new(),
    }
}

fn file(content: &str) -> LayerEntry {
    let digest = FileDigest::of(content.as_bytes());
    LayerEntry::Entry(entry(
        Kind::File {
            size: content.len() as u64,
            digest,
        },
        0o644,
    ))
}

fn directory(mode: u16) -> LayerEntry {
    LayerEntry::Entry(entry(Kind::Directory, mode))
}

fn symlink(target: &str) -> LayerEntry {
    let target = target.as_bytes().to_vec();
    LayerEntry::Entry(entry(Kind::Symlink { target }, 0o777))
}

fn hardlink(target: &str) -> LayerEntry {
    LayerEntry::Hardlink {
        target: path(target),
    }
}

fn try_layer(items: &[(&str, LayerEntry)]) -> Result<Layer, LayerError> {
    let mut builder = LayerBuilder::default();
    for (name, item) in items {
        builder.add(path(name), item.clone())?;
    }
    Ok(builder.build())
}

fn layer(items: &[(&str, LayerEntry)]) -> Layer {
    try_layer(items).unwrap()
}

fn names(manifest: &RootfsManifest) -> Vec<String> {
    manifest
        .tree()
        .iter()
        .map(|(path, _)| path.to_string())
        .collect()
}

#[test]
fn accept_later_layer_wins() {
    let merged = merge([
        layer(&[
            ("etc", directory(0o700)),
            ("etc/a", file("1")),
            ("etc/b", file("b")),
        ]),
        layer(&[("etc", directory(0o755)), ("etc/a", file("2"))]),
    ])
    .unwrap();
    assert_eq!(names(&merged), ["/", "/etc", "/etc/a", "/etc/b"]);
    assert_eq!(merged.file(b"/etc/a"), Some(FileDigest::of(b"2")));
    assert_eq!(merged.tree().get(&path("etc")).unwrap().mode, 0o755);
}

#[test]
fn accept_no_layer() {
    let merged = merge([]).unwrap();
    assert_eq!(merged.mtree(), "#mtree\n. type=dir mode=0755 uid=0 gid=0\n");
}

#[test]
fn accept_whiteouts() {
    let below = || {
        layer(&[
            ("a", directory(0o755)),
            ("a/x", file("x")),
            ("a/y/z", file("z")),
            ("ab", file("ab")),
            ("b", file("b")),
        ])
    };
    // A file and a whole tree; a sibling whose name begins alike stays.
    let merged = merge([below(), layer(&[(".wh.a", file("")), (".wh.b", file(""))])]).unwrap();
    assert_eq!(names(&merged), ["/", "/ab"]);
    // Opaque: what is below goes, what comes with the same layer stays, in either order.
    for items in [
        [("a/.wh..wh..opq", file("")), ("a/new", file("n"))],
        [("a/new", file("n")), ("a/.wh..wh..opq", file(""))],
    ] {
        let merged = merge([below(), layer(&items)]).unwrap();
        assert_eq!(names(&merged), ["/", "/a", "/a/new", "/ab", "/b"]);
        assert!(merged.is_implied(&path("a")));
    }
    // A whiteout hides nothing of its own layer (image-spec, "Whiteouts").
    let merged = merge([below(), layer(&[("b", file("new")), (".wh.b", file(""))])]).unwrap();
    assert_eq!(merged.file(b"/b"), Some(FileDigest::of(b"new")));
    // The device that overlay stores use, and aufs' own files.
    let device = LayerEntry::Entry(entry(Kind::CharDevice { major: 0, minor: 0 }, 0));
    let merged = merge([
        below(),
        layer(&[("a", device), (".wh..wh.plnk", directory(0o700))]),
    ])
    .unwrap();
    assert_eq!(names(&merged), ["/", "/ab", "/b"]);
}

#[test]
fn accept_kinds_replace_each_other() {
    let below = || layer(&[("a/b/c", file("c")), ("f", file("f"))]);
    let merged = merge([
        below(),
        layer(&[("a", file("now a file")), ("f/g", file("g"))]),
    ])
    .unwrap();
    assert_eq!(names(&merged), ["/", "/a", "/f", "/f/g"]);
    assert!(merged.is_implied(&path("f")) && !merged.is_implied(&path("a")));
    // Within one archive the later member counts.
    let one = layer(&[
        ("d", directory(0o755)),
        ("d/x", file("x")),
        ("d", file("d")),
    ]);
    assert_eq!(names(&merge([one]).unwrap()), ["/", "/d"]);
}

#[test]
fn accept_implied_directories() {
    let merged = merge([
        layer(&[("a/b/c", file("c")), ("n", directory(0o711))]),
        layer(&[("a", directory(0o700)), ("n/x", file("x"))]),
    ])
    .unwrap();
    // `a` was named later; `n` was named, but not by the layer that last needed it.
    assert!(!merged.is_implied(&path("a")) && merged.is_implied(&path("a/b")));
    assert!(merged.is_implied(&path("n")));
    assert_eq!(merged.tree().get(&path("n")).unwrap().mode, 0o711);
    assert_eq!(
        merged.tree().get(&path("a/b")).unwrap(),
        &Entry::implied_directory()
    );
}

#[test]
fn accept_hardlinks() {
    let merged = merge([
        layer(&[("bin/a", file("a")), ("bin/b", hardlink("bin/a"))]),
        // Into the layer below, even when this layer takes the other name away.
        layer(&[("bin/c", hardlink("bin/a")), ("bin/.wh.a", file(""))]),
    ])
    .unwrap();
    assert_eq!(names(&merged), ["/", "/bin", "/bin/b", "/bin/c"]);
    for name in ["/bin/b", "/bin/c"] {
        assert_eq!(merged.file(name.as_bytes()), Some(FileDigest::of(b"a")));
    }
}

#[test]
fn refuse_hardlink_without_file() {
    let dangling = merge([layer(&[("b", hardlink("a"))])]);
    assert!(matches!(
        dangling,
        Err(MergeError::NoLinkTarget { layer: 0, .. })
    ));
    let below = layer(&[("a", directory(0o755))]);
    assert!(merge([below, layer(&[("b", hardlink("a"))])]).is_err());
    let same = try_layer(&[("a", directory(0o755)), ("b", hardlink("a"))]);
    assert_eq!(same, Err(LayerError::LinkToDirectory(path("b"), path("a"))));
}

#[test]
fn refuse_path_through_link() {
    // An unpacker that followed the link would write elsewhere.
    for item in [symlink("/etc"), file("")] {
        let through = try_layer(&[("a", item), ("a/passwd", file("x"))]);
        assert_eq!(
            through,
            Err(LayerError::BelowNonDirectory(path("a/passwd"), path("a")))
        );
    }
}

#[test]
fn refuse_malformed_whiteouts_and_root() {
    for bad in [".wh.", "a/.wh.", ".wh..", "a/.wh..."] {
        let whiteout = try_layer(&[(bad, file(""))]);
        assert!(
            matches!(whiteout, Err(LayerError::EmptyWhiteout(_))),
            "{bad}"
        );
    }
    assert_eq!(
        try_layer(&[("./", file("x"))]),
        Err(LayerError::RootNotDirectory)
    );
}

#[test]
fn resolves_links_inside_the_rootfs() {
    let merged = merge([layer(&[
        ("bin", symlink("usr/bin")),
        ("usr/bin/sh", symlink("../../bin/busybox")),
        ("usr/bin/busybox", file("b")),
        ("var/run", symlink("/run")),
        ("up", symlink("../../../etc")),
        ("loop", symlink("loop")),
    ])])
    .unwrap();
    for (given, leads) in [
        ("/bin/sh", Some("usr/bin/busybox")),
        ("bin/../etc/x", Some("usr/etc/x")),
        ("/var/run/secrets", Some("run/secrets")),
        ("/up/passwd", Some("etc/passwd")),
        ("/../../a", Some("a")),
        ("/loop/x", None),
    ] {
        assert_eq!(merged.resolve(given.as_bytes()), leads.map(path), "{given}");
    }
    assert_eq!(merged.file(b"/bin/sh"), None);
}

#[test]
fn digest_covers_every_attribute() {
    let with = |change: &dyn Fn(&mut Entry)| {
        let mut one = entry(
            Kind::File {
                size: 1,
                digest: FileDigest::of(b"a"),
            },
            0o755,
        );
        change(&mut one);
        merge([layer(&[("f", LayerEntry::Entry(one))])])
            .unwrap()
            .digest()
    };
    let digests = [
        with(&|_| ()),
        with(&|e| e.mode = 0o4755),
        with(&|e| e.uid = 1),
        with(&|e| e.gid = 1),
        with(&|e| {
            e.kind = Kind::File {
                size: 2,
                digest: FileDigest::of(b"a"),
            }
        }),
        with(&|e| {
            e.kind = Kind::File {
                size: 1,
                digest: FileDigest::of(b"b"),
            }
        }),
        with(&|e| {
            e.kind = Kind::Symlink {
                target: b"a".to_vec(),
            }
        }),
        with(&|e| e.kind = Kind::Fifo),
        with(&|e| e.kind = Kind::BlockDevice { major: 1, minor: 2 }),
        with(&|e| drop(e.xattrs.insert(b"user.a".to_vec(), b"b".to_vec()))),
    ];
    let distinct: BTreeSet<_> = digests.iter().collect();
    assert_eq!(distinct.len(), digests.len());
}
