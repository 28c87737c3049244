//! The questions to an admission about the rootfs.

use super::*;
use crate::rootfs::{Entry, Kind, LayerBuilder, LayerEntry, RootfsManifest, RootfsPath, merge};
use crate::siglist::Programs;

trait Whole {
    fn check_whole(&self, rootfs: &RootfsManifest) -> Result<CheckedPrograms, Refusal>;
}

impl Whole for Admission {
    fn check_whole(&self, rootfs: &RootfsManifest) -> Result<CheckedPrograms, Refusal> {
        let Ok(checked) = self.check_rootfs(rootfs);
        checked
    }
}

/// A rootfs with these files (path, content) and symbolic links (path, target).
fn rootfs(files: &[(&str, &str)], links: &[(&str, &str)]) -> RootfsManifest {
    let mut layer = LayerBuilder::default();
    let mut add = |path: &str, kind: Kind, mode: u16| {
        let path = RootfsPath::parse(path.as_bytes()).unwrap();
        let entry = Entry {
            kind,
            mode,
            uid: 0,
            gid: 0,
            xattrs: BTreeMap::new(),
        };
        layer.add(path, LayerEntry::Entry(entry)).unwrap();
    };
    for (path, content) in files {
        let (size, digest) = (content.len() as u64, FileDigest::of(content.as_bytes()));
        add(path, Kind::File { size, digest }, 0o755);
    }
    for (path, target) in links {
        let target = target.as_bytes().to_vec();
        add(path, Kind::Symlink { target }, crate::rootfs::SYMLINK_MODE);
    }
    merge([layer.build()]).unwrap()
}

/// The admission of the honest image with `edit` applied to list and profile.
fn admission(edit: impl FnOnce(&mut Draft, &mut LaunchProfile)) -> Admission {
    let mut scene = scene();
    scene.lists.clear();
    let mut profile = scene.profile.clone();
    scene.list(|draft| edit(draft, &mut profile));
    scene.profile = profile;
    scene.decide().unwrap()
}

fn mount(profile: &mut LaunchProfile, destination: &str) {
    let mut mount = profile.mounts[0].clone();
    mount.destination = destination.into();
    mount.kind = "tmpfs".into();
    profile.mounts.push(mount);
}

#[test]
fn accept_rootfs_that_agrees() {
    let tree = rootfs(
        &[("/usr/bin/app", "app"), ("/usr/bin/other", "x")],
        &[("/bin", "usr/bin")],
    );
    let checked = admission(|_, _| ()).check_whole(&tree).unwrap();
    let (path, digest) = checked.resolve(&tree, b"/bin/app").unwrap();
    assert_eq!(
        (path.absolute().as_slice(), digest),
        (&b"/usr/bin/app"[..], FileDigest::of(b"app"))
    );
    for path in ["/usr/bin/none", "/usr/bin/app/x", "/none/app"] {
        assert!(
            matches!(
                checked.resolve(&tree, path.as_bytes()),
                Err(NotStartable::Missing(_))
            ),
            "{path}"
        );
    }
    assert!(matches!(
        checked.resolve(&tree, b"/usr/bin"),
        Err(NotStartable::NotAFile(_))
    ));
    assert!(matches!(
        checked.resolve(&tree, b"/proc/self/exe"),
        Err(NotStartable::Mounted { .. })
    ));
}

#[test]
fn refuse_rootfs_with_other_content() {
    for (files, why) in [
        (
            &[("/usr/bin/app", "evil")][..],
            "/usr/bin/app has content sha256:",
        ),
        (
            &[("/usr/bin/other", "app")][..],
            "/usr/bin/app is in the list, but no regular file",
        ),
    ] {
        let refusal = admission(|_, _| ())
            .check_whole(&rootfs(files, &[]))
            .unwrap_err();
        assert!(refusal.to_string().contains(why), "{refusal}");
        assert!(refusal.to_string().contains("rule demo"), "{refusal}");
    }
    // By a symbolic link is not by itself: the list names real paths.
    let linked = rootfs(&[("/opt/app", "app")], &[("/usr/bin/app", "/opt/app")]);
    assert!(admission(|_, _| ()).check_whole(&linked).is_err());
}

#[test]
fn refuse_mounts_that_hide_programs() {
    let tree = rootfs(
        &[("/usr/bin/app", "app")],
        &[("/bin", "usr/bin"), ("/loop", "loop")],
    );
    for destination in [
        "/usr/bin/app",
        "/usr/bin",
        "/usr",
        "/",
        "/bin",
        "/bin/app",
        "usr/bin/",
    ] {
        let admission = admission(|_, profile| mount(profile, destination));
        let refusal = admission.check_whole(&tree).expect_err(destination);
        assert!(
            refusal
                .to_string()
                .contains("hides the listed program /usr/bin/app"),
            "{refusal}"
        );
    }
    assert!(
        admission(|_, p| mount(p, "/loop/x"))
            .check_whole(&tree)
            .is_err()
    );
    assert!(
        admission(|_, p| mount(p, "/data"))
            .check_whole(&tree)
            .is_ok()
    );
    // A file that is listed but is no program may be replaced by the engine (/etc/hosts).
    let hosts = rootfs(&[("/usr/bin/app", "app"), ("/etc/hosts", "")], &[]);
    let listed = |d: &mut Draft| {
        d.files
            .insert(b"/etc/hosts".to_vec(), [FileDigest::of(b"")].into());
    };
    assert!(admission(|d, _| listed(d)).check_whole(&hosts).is_err());
    let only_app = admission(|d, _| {
        listed(d);
        d.programs = Programs::Only([b"/usr/bin/app".to_vec()].into());
    });
    assert!(only_app.check_whole(&hosts).is_ok());
}

#[test]
fn refuse_programs_that_are_reached_through_mounts() {
    let tree = rootfs(
        &[("/usr/bin/app", "app"), ("/data/real", "x")],
        &[
            ("/data/app", "/usr/bin/app"),
            ("/run-it", "/data/app"),
            ("/a", "/b"),
            ("/b", "/a"),
        ],
    );
    let checked = admission(|_, p| mount(p, "/data"))
        .check_whole(&tree)
        .unwrap();
    assert!(checked.resolve(&tree, b"/usr/bin/app").is_ok());
    for path in ["/data/app", "/run-it", "/data/../data/app", "/data"] {
        assert!(
            matches!(
                checked.resolve(&tree, path.as_bytes()),
                Err(NotStartable::Mounted { .. })
            ),
            "{path}"
        );
    }
    assert!(matches!(
        checked.resolve(&tree, b"/a"),
        Err(NotStartable::Loop(_))
    ));
}
