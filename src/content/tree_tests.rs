//! Walks of real directories.

use super::*;
use crate::testkit::Scratch;
use std::{
    os::{
        fd::AsFd as _,
        unix::fs::{PermissionsExt as _, symlink},
    },
    sync::atomic::{AtomicBool, Ordering},
};

fn walked(path: &std::path::Path) -> Result<Tree, WalkError> {
    walk(beneath::open_directory(path).unwrap().as_fd())
}

fn path(text: &str) -> RootfsPath {
    RootfsPath::parse(text.as_bytes()).unwrap()
}

#[test]
fn accept_every_kind() {
    let scratch = Scratch::new();
    let file = scratch.write("a/file", "content");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("../nowhere", scratch.join("a/link")).unwrap();
    fs::mkfifoat(
        fs::CWD,
        scratch.join("fifo"),
        fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(scratch.join("socket")).unwrap();
    let tree = walked(&scratch).unwrap();
    assert_eq!(tree.count(), 6);
    assert_eq!(tree.bytes(), 7);
    let kind = |name: &str| tree.get(&path(name)).unwrap().kind.clone();
    assert_eq!(
        kind("a/file"),
        Kind::File {
            size: 7,
            digest: FileDigest::of(b"content")
        }
    );
    assert_eq!(tree.get(&path("a/file")).unwrap().mode, 0o4711);
    // Not followed, whether it leads somewhere or not.
    assert_eq!(
        kind("a/link"),
        Kind::Symlink {
            target: b"../nowhere".to_vec()
        }
    );
    assert_eq!((kind("fifo"), kind("socket")), (Kind::Fifo, Kind::Socket));
    assert!(tree.get(&RootfsPath::root()).unwrap().is_directory());
}

#[test]
fn accept_many_files_in_parallel() {
    let scratch = Scratch::new();
    for number in 0..3 * BATCH {
        scratch.write(&format!("d{}/f{number}", number % 7), number.to_string());
    }
    let tree = walked(&scratch).unwrap();
    assert_eq!(tree.count(), 3 * BATCH as u64 + 7 + 1);
    for number in 0..3 * BATCH {
        let entry = tree
            .get(&path(&format!("d{}/f{number}", number % 7)))
            .unwrap();
        let digest = FileDigest::of(number.to_string().as_bytes());
        assert_eq!(
            entry.kind,
            Kind::File {
                size: number.to_string().len() as u64,
                digest
            }
        );
    }
}

#[test]
fn accept_user_attributes() {
    let scratch = Scratch::new();
    let file = scratch.write("file", "");
    match fs::setxattr(&file, "user.a", b"value", fs::XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => return,
        set => set.unwrap(),
    }
    let tree = walked(&scratch).unwrap();
    let xattrs = &tree.get(&path("file")).unwrap().xattrs;
    assert_eq!(
        xattrs.get(b"user.a".as_slice()).map(Vec::as_slice),
        Some(b"value".as_slice())
    );
}

#[test]
fn refuse_too_deep() {
    let scratch = Scratch::new();
    let mut deep = scratch.to_path_buf();
    for _ in 0..=MAX_DEPTH {
        deep.push("d");
    }
    std::fs::create_dir_all(&deep).unwrap();
    assert!(matches!(walked(&scratch), Err(WalkError::TooDeep(_))));
}

#[test]
fn refuse_file_that_changes() {
    let scratch = Scratch::new();
    let file = scratch.write("file", vec![0; 32 << 20]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = 0;
            while !done.load(Ordering::Relaxed) {
                byte += 1;
                let open = std::fs::OpenOptions::new()
                    .append(true)
                    .open(&file)
                    .unwrap();
                std::io::Write::write_all(&mut &open, &[byte as u8]).unwrap();
            }
        });
        let walked = walked(&scratch);
        done.store(true, Ordering::Relaxed);
        match walked {
            Err(WalkError::Changed(changed)) => assert_eq!(changed, path("file")),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn refuse_unreadable_by_name() {
    let scratch = Scratch::new();
    let file = scratch.write("dir/secret", "x");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
    match walked(&scratch) {
        Err(error @ WalkError::Io { .. }) => {
            assert!(error.to_string().contains("/dir/secret"), "{error}");
        }
        // Root reads it all the same.
        Ok(_) if rustix::process::geteuid().is_root() => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn refuse_another_mount() {
    // /proc is a mount in every environment that runs this; its parent is walked no further.
    let root = beneath::open_directory(std::path::Path::new("/")).unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    assert_eq!(
        beneath::openat2(&root, b"proc", flags).unwrap_err(),
        Errno::XDEV
    );
    let failure = failed("open", &path("proc"))(Errno::XDEV);
    assert_eq!(
        failure.to_string(),
        "/proc is a mount point: the tree below it is not part of the rootfs"
    );
}

/// As root, on a file system that lets whiteouts and marks be made.
#[test]
fn accept_a_directory_as_the_overlay_reads_it() {
    let scratch = Scratch::new();
    scratch.write("d/file", "x");
    scratch.write("d/.wh.literal", "on disk it is a name as any other");
    let whiteout = scratch.join("gone");
    let mode = fs::Mode::from_raw_mode(0);
    if fs::mknodat(fs::CWD, &whiteout, FileType::CharacterDevice, mode, 0).is_err() {
        return; // not root: nothing is unpacked without being root either
    }
    let mark = |name: &str, value: &[u8]| {
        fs::setxattr(scratch.join("d"), name, value, fs::XattrFlags::empty())
    };
    if mark("trusted.overlay.opaque", b"y").is_err() {
        return;
    }
    mark("trusted.overlay.origin", b"anything").unwrap();
    let read = || {
        let root = beneath::open_directory(&scratch).unwrap();
        unpacked(root.as_fd(), &FilesRead::default())
    };
    let Unpacked { layer, quiet } = read().unwrap();
    assert!(quiet);
    let whiteouts: Vec<_> = layer.whiteouts().cloned().collect();
    let opaque: Vec<_> = layer.opaque().cloned().collect();
    assert_eq!((whiteouts, opaque), (vec![path("gone")], vec![path("d")]));
    assert_eq!(layer.present().len(), 4);
    for (name, value) in [
        ("trusted.overlay.opaque", &b"x"[..]),
        ("trusted.overlay.redirect", b"/elsewhere"),
        ("trusted.overlay.metacopy", b""),
    ] {
        mark("trusted.overlay.opaque", b"y").unwrap();
        mark(name, value).unwrap();
        let marked = read().unwrap_err();
        assert!(
            matches!(marked, WalkError::Marked { .. }),
            "{name}: {marked}"
        );
        fs::removexattr(scratch.join("d"), name).unwrap();
    }
}

/// What was read of `name` once; its digest is made up, so that a second reading is told from none.
fn read_once(scratch: &Scratch, name: &str, began: crate::seal::Moment) -> FilesRead {
    let root = beneath::open_directory(scratch).unwrap();
    let reading = Reading::begin(&root, name.as_bytes(), View::Unpacked).unwrap();
    let size = reading.before.st_size as u64;
    let entry = reading.end(&path(name), size, FileDigest::of(b"made up"));
    let mut files = FilesRead::default();
    files.add(&reading.before, began, entry.unwrap(), reading.quiet);
    files
}

fn digest_of(scratch: &Scratch, name: &str, read: &FilesRead) -> FileDigest {
    let root = beneath::open_directory(scratch).unwrap();
    let layer = unpacked(root.as_fd(), read).unwrap().layer;
    let found = layer.present().find(|(at, _)| **at == path(name));
    match &found.unwrap().1 {
        LayerEntry::Entry(Entry {
            kind: Kind::File { digest, .. },
            ..
        }) => *digest,
        other => panic!("{other:?}"),
    }
}

const SETTLED: std::time::Duration = std::time::Duration::from_millis(100);

#[test]
fn accept_files_that_were_read_once_under_every_name() {
    let scratch = Scratch::new();
    scratch.write("a/file", "content");
    std::fs::hard_link(scratch.join("a/file"), scratch.join("other")).unwrap();
    scratch.write("unread", "content");
    std::thread::sleep(SETTLED);
    let files = read_once(&scratch, "a/file", crate::seal::Moment::now());
    for name in ["a/file", "other"] {
        assert_eq!(
            digest_of(&scratch, name, &files),
            FileDigest::of(b"made up")
        );
    }
    assert_eq!(
        digest_of(&scratch, "unread", &files),
        FileDigest::of(b"content")
    );
}

/// Whatever changes an inode has the file read again: content, mode, another file in its place.
#[test]
fn refuse_files_that_changed_since_they_were_read() {
    type Change = fn(&Scratch);
    let changes: [(&str, Change); 4] = [
        ("content", |s| drop(s.write("file", "CONTENT"))),
        ("mode", |s| {
            let mode = std::fs::Permissions::from_mode(0o4755);
            std::fs::set_permissions(s.join("file"), mode).unwrap();
        }),
        ("place", |s| {
            let new = s.write("new", "CONTENT");
            std::fs::rename(new, s.join("file")).unwrap();
        }),
        ("names", |s| {
            std::fs::hard_link(s.join("file"), s.join("link")).unwrap();
        }),
    ];
    for (what, change) in changes {
        let scratch = Scratch::new();
        scratch.write("file", "content");
        std::thread::sleep(SETTLED);
        let files = read_once(&scratch, "file", crate::seal::Moment::now());
        change(&scratch);
        let real = std::fs::read(scratch.join("file")).unwrap();
        assert_eq!(
            digest_of(&scratch, "file", &files),
            FileDigest::of(&real),
            "{what}"
        );
    }
}

/// Changed within a tick of the clock: a later change may have the same stamp.
#[test]
fn refuse_files_that_were_read_too_early() {
    let scratch = Scratch::new();
    let before = crate::seal::Moment::now();
    scratch.write("file", "content");
    let files = read_once(&scratch, "file", before);
    assert_eq!(
        digest_of(&scratch, "file", &files),
        FileDigest::of(b"content")
    );
}

/// The kernel's own read error: nothing is mapped at address 0 of this process.
#[test]
fn refuse_what_cannot_be_read_by_name() {
    let process = std::path::Path::new("/proc/self");
    let file = Waiting {
        directory: Arc::new(beneath::open_directory(process).unwrap()),
        path: path("mem"),
    };
    let error = regular(&file, &mut vec![0; BUFFER], View::Mounted, Contents::Read).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read /mem: Input/output error (os error 5)"
    );
}

#[test]
fn refuse_more_than_the_bounds_let() {
    let scratch = Scratch::new();
    for name in ["a", "b", "except/c"] {
        scratch.write(name, [0; 1000]);
    }
    let root = beneath::open_directory(&scratch).unwrap();
    let within = |entries, bytes, except: &[RootfsPath]| {
        walk_within(
            root.as_fd(),
            &Bounds {
                entries,
                bytes,
                except,
            },
        )
    };
    assert_eq!(within(5, 3000, &[]).unwrap().count(), 5);
    assert!(matches!(within(4, 3000, &[]), Err(WalkError::TooMany(4))));
    assert!(matches!(
        within(5, 2999, &[]),
        Err(WalkError::TooLarge(2999))
    ));
    assert_eq!(within(3, 2000, &[path("except")]).unwrap().count(), 3);
}

/// Everything is compared but what the files hold; and that too where a size differs or nothing is
/// expected.
#[test]
fn accept_unread_files_of_the_expected_size_alone() {
    let scratch = Scratch::new();
    let file = scratch.write("file", "content");
    let other = scratch.write("other", "content");
    let expected = walked(&scratch).unwrap();
    std::fs::write(&file, "CONTENT").unwrap();
    std::fs::write(&other, "longer content").unwrap();
    scratch.write("extra", "content");
    let unread = || {
        let root = beneath::open_directory(&scratch).unwrap();
        walk_unread(root.as_fd(), &expected).unwrap()
    };
    let kind = |tree: &Tree, name: &str| tree.get(&path(name)).unwrap().kind.clone();
    let read = walked(&scratch).unwrap();
    assert_eq!(kind(&unread(), "file"), kind(&expected, "file"));
    assert_ne!(kind(&read, "file"), kind(&expected, "file"));
    for name in ["other", "extra"] {
        assert_eq!(kind(&unread(), name), kind(&read, name));
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(unread().get(&path("file")).unwrap().mode, 0o4755);
}
