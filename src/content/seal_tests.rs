//! Every change that is told by a stamp, and the ones that hide from it.

use super::*;
use crate::testkit::Scratch;
use std::{
    fs::File,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
};

fn sealed(path: &Path) -> [u8; 32] {
    let fd = beneath::open_directory(path).unwrap();
    seal(std::os::fd::AsFd::as_fd(&fd)).unwrap().seal
}

fn populated() -> Scratch {
    let scratch = Scratch::new();
    for name in ["a/file", "a/other", "b/c/deep"] {
        scratch.write(name, "content");
    }
    symlink("file", scratch.join("a/link")).unwrap();
    scratch
}

#[test]
fn accept_what_did_not_change() {
    let scratch = populated();
    let before = sealed(&scratch);
    std::fs::read(scratch.join("a/file")).unwrap();
    assert_eq!(sealed(&scratch), before);
}

/// Also when size and modification time are put back: the change time cannot be.
#[test]
fn refuse_every_change() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 10] = [
        ("content", |p| {
            let file = p.join("a/file");
            let modified = file.metadata().unwrap().modified().unwrap();
            std::fs::write(&file, "CONTENT").unwrap();
            let file = File::options().write(true).open(file).unwrap();
            file.set_modified(modified).unwrap();
        }),
        ("mode", |p| {
            let mode = std::fs::Permissions::from_mode(0o4755);
            std::fs::set_permissions(p.join("a/file"), mode).unwrap();
        }),
        ("owner", |p| {
            chown(p.join("a/file"), Some(1), None).unwrap_or_default()
        }),
        ("xattr", |p| {
            let file = p.join("a/file");
            fs::setxattr(&file, "user.x", b"y", fs::XattrFlags::empty()).unwrap();
        }),
        ("extra", |p| {
            std::fs::write(p.join("b/c/extra"), "").unwrap()
        }),
        ("missing", |p| {
            std::fs::remove_file(p.join("a/other")).unwrap()
        }),
        ("renamed", |p| {
            std::fs::rename(p.join("a/other"), p.join("a/o")).unwrap()
        }),
        ("linked", |p| {
            std::fs::hard_link(p.join("a/file"), p.join("l")).unwrap()
        }),
        ("another link", |p| {
            std::fs::remove_file(p.join("a/link")).unwrap();
            symlink("other", p.join("a/link")).unwrap();
        }),
        ("another directory", |p| {
            let (b, away) = (p.join("b"), p.join("away"));
            std::fs::rename(&b, &away).unwrap();
            std::fs::create_dir_all(b.join("c")).unwrap();
            std::fs::rename(away.join("c/deep"), b.join("c/deep")).unwrap();
            std::fs::remove_dir_all(away).unwrap();
        }),
    ];
    for (what, change) in changes {
        let scratch = populated();
        // Beyond the tick that the file was made in.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let before = sealed(&scratch);
        change(&scratch);
        if what != "owner" || scratch.join("a/file").metadata().unwrap().uid() == 1 {
            assert_ne!(sealed(&scratch), before, "{what}");
        }
    }
}

#[test]
fn refuse_what_changed_just_now() {
    let scratch = populated();
    let fd = beneath::open_directory(&scratch).unwrap();
    let fresh = seal(std::os::fd::AsFd::as_fd(&fd)).unwrap();
    assert!(!fresh.settled(Moment(fresh.newest)));
    assert!(!fresh.settled(Moment(fresh.newest + TICKS_NANOS)));
    assert!(fresh.settled(Moment(fresh.newest + TICKS_NANOS + 1)));
}
