//! Differences by kind, and every stub beside something that is nearly one.

use super::*;
use crate::rootfs::{Engine, Layer, LayerBuilder, LayerEntry, merge};
use std::collections::BTreeMap;

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

fn file(content: &str, mode: u16) -> Entry {
    let digest = FileDigest::of(content.as_bytes());
    entry(
        Kind::File {
            size: content.len() as u64,
            digest,
        },
        mode,
    )
}

fn directory(mode: u16) -> Entry {
    entry(Kind::Directory, mode)
}

fn symlink(target: &str) -> Entry {
    entry(
        Kind::Symlink {
            target: target.as_bytes().to_vec(),
        },
        0o777,
    )
}

fn layer(items: &[(&str, Entry)]) -> Layer {
    let mut builder = LayerBuilder::default();
    for (name, entry) in items {
        builder
            .add(path(name), LayerEntry::Entry(entry.clone()))
            .unwrap();
    }
    builder.build()
}

fn manifest() -> RootfsManifest {
    merge([layer(&[
        ("bin", directory(0o755)),
        ("bin/app", file("app", 0o755)),
        ("etc", directory(0o755)),
        ("etc/hosts", file("127.0.0.1", 0o644)),
        ("sh", symlink("bin/app")),
        ("var", directory(0o755)),
        ("var/run", symlink("/run")),
        (
            "null",
            entry(Kind::CharDevice { major: 1, minor: 3 }, 0o666),
        ),
        ("usr/lib/x", file("x", 0o644)),
    ])])
    .unwrap()
}

/// The manifest's own tree with changes: an entry put, or taken away.
fn judge(
    engine: Engine,
    changes: &[(&str, Option<Entry>)],
) -> Result<CheckedRootfs, Vec<Difference>> {
    let manifest = manifest();
    let mut entries = manifest.tree().clone().entries;
    for (name, change) in changes {
        match change {
            Some(entry) => drop(entries.insert(path(name), entry.clone())),
            None => drop(entries.remove(&path(name))),
        }
    }
    let found = Tree::new(entries.into_iter().collect()).unwrap();
    let points = [
        "/proc",
        "/data/deep",
        "/var/run/secrets",
        "/etc/resolv.conf",
    ];
    let stubs = Stubs::new(engine, points.map(str::as_bytes)).unwrap();
    compare(&manifest, &found, &stubs)
}

fn refused(engine: Engine, changes: &[(&str, Option<Entry>)]) -> What {
    let differences = judge(engine, changes).unwrap_err();
    assert_eq!(differences.len(), 1, "{differences:?}");
    differences[0].what.clone()
}

#[test]
fn accept_equal_tree() {
    let checked = judge(Engine::Containerd, &[]).unwrap();
    assert_eq!(checked.manifest(), manifest().digest());
    assert_eq!(
        (checked.entries(), checked.bytes(), checked.stubs()),
        (12, 13, &[][..])
    );
}

#[test]
fn refuse_each_kind_of_difference() {
    use What::*;
    let app = |change: &dyn Fn(&mut Entry)| {
        let mut app = file("app", 0o755);
        change(&mut app);
        refused(Engine::Docker, &[("bin/app", Some(app))])
    };
    let (good, bad) = (FileDigest::of(b"app"), FileDigest::of(b"bad"));
    assert_eq!(
        app(&|e| e.kind = file("bad", 0).kind),
        Content {
            expected: good,
            found: bad
        }
    );
    assert_eq!(
        app(&|e| e.mode = 0o4755),
        Mode {
            expected: 0o755,
            found: 0o4755
        }
    );
    assert_eq!(
        app(&|e| e.uid = 7),
        Owner {
            expected: (0, 0),
            found: (7, 0)
        }
    );
    assert_eq!(
        app(&|e| *e = directory(0o755)),
        Kind {
            expected: "file",
            found: "dir"
        }
    );
    let capability = || (b"security.capability".to_vec(), b"all".to_vec());
    assert_eq!(
        app(&|e| e.xattrs.extend([capability()])),
        Xattr {
            name: capability().0,
            expected: None,
            found: Some(capability().1)
        }
    );
    let refused = |name, change| refused(Engine::Docker, &[(name, change)]);
    assert_eq!(refused("bin/app", None), Missing);
    assert_eq!(
        refused("bin/evil", Some(file("x", 0o755))),
        Extra { found: "file" }
    );
    let (sh, evil) = (b"bin/app".to_vec(), b"evil".to_vec());
    assert_eq!(
        refused("sh", Some(symlink("evil"))),
        Target {
            expected: sh,
            found: evil
        }
    );
    assert_eq!(
        refused(
            "null",
            Some(entry(super::Kind::CharDevice { major: 1, minor: 1 }, 0o666))
        ),
        Device {
            expected: (1, 3),
            found: (1, 1)
        }
    );
    let lie = super::Kind::File {
        size: 4,
        digest: good,
    };
    assert!(matches!(
        refused("bin/app", Some(entry(lie, 0o755))),
        Kind { .. }
    ));
}

#[test]
fn refuse_reports_every_difference() {
    let differences = judge(
        Engine::Containerd,
        &[
            ("bin/app", Some(file("bad", 0o4755))),
            ("evil", Some(file("", 0o755))),
            ("sh", None),
        ],
    )
    .unwrap_err();
    assert_eq!(differences.len(), 4);
    assert_eq!(
        summary(&differences[1..]),
        "/bin/app has mode 4755, not 0755; /evil (file) is in no layer; /sh is missing"
    );
}

#[test]
fn accept_docker_init_layer() {
    let checked = judge(
        Engine::Docker,
        &[
            (".dockerenv", Some(file("", 0o755))),
            ("dev", Some(directory(0o755))),
            ("dev/console", Some(file("", 0o755))),
            ("dev/pts", Some(directory(0o755))),
            // Replaces the image's own.
            ("etc/hosts", Some(file("", 0o755))),
            ("etc/mtab", Some(symlink("/proc/mounts"))),
            ("sys", Some(directory(0o755))),
        ],
    )
    .unwrap();
    assert_eq!(checked.manifest(), manifest().digest());
    assert_eq!(
        checked.stubs(),
        [
            "docker:/.dockerenv",
            "docker:/dev",
            "docker:/dev/console",
            "docker:/dev/pts",
            "docker:/etc/hosts",
            "docker:/etc/mtab",
            "docker:/sys"
        ]
    );
}

#[test]
fn refuse_what_only_resembles_docker_stubs() {
    for (name, found) in [
        (".dockerenv", file("content", 0o755)),
        (".dockerenv", file("", 0o4755)),
        (".dockerenv", symlink("/proc/mounts")),
        ("dockerenv", file("", 0o755)),
        ("etc/mtab", symlink("/proc/self/root")),
        ("etc/passwd", file("", 0o644)),
        ("sys", directory(0o1777)),
        (
            "sys",
            Entry {
                uid: 1000,
                ..directory(0o755)
            },
        ),
        ("bin/app", file("", 0o755)),
        ("sh", file("", 0o755)),
        ("dev/", entry(Kind::Fifo, 0o600)),
    ] {
        assert!(
            judge(Engine::Docker, &[(name, Some(found.clone()))]).is_err(),
            "{name} {found:?}"
        );
        let other = judge(Engine::Containerd, &[(name, Some(found.clone()))]);
        assert!(other.is_err(), "{name} {found:?}");
    }
    // Another engine has no init layer.
    for engine in [Engine::Containerd, Engine::ContainersStorage] {
        assert!(judge(engine, &[(".dockerenv", Some(file("", 0o755)))]).is_err());
        assert!(judge(engine, &[("etc/hosts", Some(file("", 0o755)))]).is_err());
    }
}

#[test]
fn accept_podman_and_mount_points() {
    let checked = judge(
        Engine::ContainersStorage,
        &[
            ("", Some(directory(0o555))),
            ("data", Some(directory(0o755))),
            ("data/deep", Some(directory(0o755))),
            ("etc/mtab", Some(symlink("/proc/mounts"))),
            ("etc/resolv.conf", Some(file("", 0o644))),
            ("proc", Some(directory(0o755))),
            // Where the image's /var/run leads.
            ("run", Some(directory(0o755))),
            ("run/secrets", Some(directory(0o755))),
        ],
    )
    .unwrap();
    assert_eq!(
        checked.stubs(),
        [
            "root-directory:/:0555",
            "mount-point:/data",
            "mount-point:/data/deep",
            "containers-storage:/etc/mtab",
            "mount-point:/etc/resolv.conf",
            "mount-point:/proc",
            "mount-point:/run",
            "mount-point:/run/secrets"
        ]
    );
}

#[test]
fn refuse_beside_mount_points() {
    let podman = Engine::ContainersStorage;
    assert!(
        judge(
            podman,
            &[("etc/resolv.conf", Some(file("nameserver", 0o644)))]
        )
        .is_err()
    );
    assert!(judge(podman, &[("etc/resolv.conf", Some(symlink("/evil")))]).is_err());
    assert!(judge(podman, &[("data", Some(file("", 0o644)))]).is_err());
    assert!(judge(podman, &[("proc", Some(directory(0o777)))]).is_err());
    let proc = Some(directory(0o755));
    assert!(judge(podman, &[("proc", proc.clone()), ("proc/x", proc)]).is_err());
    assert!(
        judge(
            Engine::Containerd,
            &[("etc/mtab", Some(symlink("/proc/mounts")))]
        )
        .is_err()
    );
}

#[test]
fn engines_choose_attributes_that_no_layer_names() {
    let usr = |entry| judge(Engine::Docker, &[("usr", Some(entry))]);
    assert_eq!(
        usr(directory(0o700)).unwrap().stubs(),
        ["implied-directory:/usr:0700"]
    );
    assert!(usr(directory(0o1777)).is_err());
    assert!(
        usr(Entry {
            uid: 5,
            ..directory(0o755)
        })
        .is_err()
    );
    // Named by a layer: exact.
    assert!(judge(Engine::Docker, &[("bin", Some(directory(0o700)))]).is_err());
    assert!(judge(Engine::Docker, &[("", Some(directory(0o777)))]).is_err());
}

#[test]
fn refuse_trees_that_are_none() {
    use crate::rootfs::TreeError;
    let tree = |items: &[(&str, Entry)]| {
        Tree::new(
            items
                .iter()
                .map(|(name, entry)| (path(name), entry.clone()))
                .collect(),
        )
    };
    let root = ("", directory(0o755));
    assert_eq!(tree(&[]), Err(TreeError::NoRoot));
    assert_eq!(tree(&[("", file("", 0o644))]), Err(TreeError::NoRoot));
    let orphan = tree(&[root.clone(), ("a/b", file("", 0o644))]);
    assert_eq!(orphan, Err(TreeError::NoParent(path("a/b"))));
    let twice = tree(&[root, ("a", file("", 0o644)), ("a", file("x", 0o644))]);
    assert_eq!(twice, Err(TreeError::Twice(path("a"))));
}
