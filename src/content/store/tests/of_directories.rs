//! Roots that no engine's overlay made: plain directories, umoci's bundles, other drivers.

use super::*;

#[test]
fn refuse_overlays_of_no_store() {
    let host = Host::new();
    let other = host.scratch.join("else/l/fs").display().to_string();
    refused(
        host.locate(std::slice::from_ref(&other), &other, None),
        "config.toml does not name",
    );
    let (lower, upper) = host.graph();
    let rootfs = host.scratch.join("rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    let line = format!(
        "1 2 0:3 /bin {} rw - overlay overlay rw,lowerdir={},upperdir={upper}\n",
        rootfs.display(),
        lower.join(":")
    );
    refused(
        host.locate_on(Some(&line), &rootfs, "x", None),
        "only /bin of an overlay",
    );
}

#[test]
fn accept_directories_as_such() {
    let host = Host::new();
    let rootfs = host.scratch.join("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    let expected = NoImage {
        rootfs: rootfs.clone(),
        purpose: Purpose::Run,
        launcher: Launcher::Podman,
    };
    let bundle = host.scratch.join("bundle");
    let line = format!("1 2 8:1 / {} rw - ext4 /dev/sda rw\n", rootfs.display());
    for mount in [None, Some(line.as_str())] {
        let mount = mount.map(|line| parse_mountinfo(line.as_bytes()).unwrap().remove(0));
        let located = locate_bundle(&host, mount.as_ref(), &rootfs, &bundle).unwrap();
        assert!(
            matches!(&located, Located::NoImage(none) if *none == expected),
            "{located:?}"
        );
    }
}

fn locate_bundle(
    host: &Host,
    mount: Option<&Mount>,
    rootfs: &Path,
    bundle: &Path,
) -> Result<Located, LocateError> {
    let query = Query {
        rootfs: &Rootfs::open(rootfs).unwrap(),
        container: &ContainerId::parse(ID).unwrap(),
        state_root: Path::new("/run/runc"),
        bundle,
    };
    let connect = |_: &ContainerdRoot, _: &str| anyhow::bail!("not asked for");
    super::locate_on(mount, &query, &host.roots(), &host.signatures, &connect)
}

#[test]
fn refuse_other_drivers_by_name() {
    let host = Host::new();
    for (place, name) in [
        ("docker/vfs/dir/x", "Docker's driver vfs"),
        ("docker/btrfs/subvolumes/x", "Docker's driver btrfs"),
        ("graph/vfs/dir/x", "containers-storage's driver vfs"),
    ] {
        for root in ["docker", "graph", "containerd"] {
            std::fs::create_dir_all(host.scratch.join(root)).unwrap();
        }
        let rootfs = host.scratch.join(place);
        std::fs::create_dir_all(&rootfs).unwrap();
        refused(locate_bundle(&host, None, &rootfs, &host.scratch), name);
    }
    let rootfs = host.scratch.join("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    let line = format!(
        "1 2 0:3 / {} rw - fuse.fuse-overlayfs fuse-overlayfs rw\n",
        rootfs.display()
    );
    refused(
        host.locate_on(Some(&line), &rootfs, "x", None),
        "FUSE file system (fuse-overlayfs)",
    );
}

/// `umoci unpack --image layout:v1 bundle`.
fn umoci(host: &Host) -> PathBuf {
    let blob = |content: &[u8]| {
        let name = format!("work/layout/blobs/sha256/{}", BlobDigest::of(content).hex());
        host.scratch.write(&name, content);
    };
    blob(&host.config);
    blob(&host.manifest);
    host.tars.iter().for_each(|tar| blob(&gzip(tar)));
    host.scratch.write(
        "work/layout/oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    let bundle = host.scratch.join("work/bundle");
    std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
    meta(host, "2", ImageDigest::of(&host.manifest));
    bundle
}

fn meta(host: &Host, version: &str, digest: ImageDigest) {
    let walk = json!([{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1}]);
    let meta = json!({"umoci_version": version, "from_descriptor_path": {"descriptor_walk": walk}, "map_options": {}});
    host.scratch
        .write("work/bundle/umoci.json", meta.to_string());
}

#[test]
fn accept_umocis_bundle() {
    let host = Host::new();
    let bundle = umoci(&host);
    let rootfs = bundle.join("rootfs");
    let found = locate_bundle(&host, None, &rootfs, &bundle).unwrap();
    let name = ImageDigest::of(&host.manifest).to_string();
    let found = host.check(found, Engine::Umoci, &name);
    let read = found.layers.iter().map(|layer| layer.read().unwrap().0);
    assert_eq!(read.collect::<Vec<_>>(), host.diff_ids());
    // its word is for the directory in it alone
    let other = host.scratch.join("other");
    std::fs::create_dir(&other).unwrap();
    let located = locate_bundle(&host, None, &other, &bundle).unwrap();
    assert!(matches!(located, Located::NoImage(_)), "{located:?}");
}

#[test]
fn refuse_umocis_bundle_that_leads_nowhere() {
    let host = Host::new();
    let bundle = umoci(&host);
    let refuse = |why: &str| {
        refused(
            locate_bundle(&host, None, &bundle.join("rootfs"), &bundle),
            why,
        )
    };
    meta(&host, "3", ImageDigest::of(&host.manifest));
    refuse("only 2 is known");
    meta(&host, "2", ImageDigest::of(b"gone"));
    refuse("no OCI layout beside");
    meta(&host, "2", ImageDigest::of(&host.manifest));
    let layer = BlobDigest::of(&gzip(&host.tars[0])).hex();
    let place = host
        .scratch
        .join(format!("work/layout/blobs/sha256/{layer}"));
    std::fs::remove_file(&place).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &place).unwrap();
    refuse("a symbolic link stands");
    std::fs::remove_file(bundle.join("umoci.json")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", bundle.join("umoci.json")).unwrap();
    refuse("a symbolic link stands");
}

#[test]
fn accept_as_an_engines_only_what_lies_in_its_bundles() {
    let of = |launcher: Launcher, bundle: &str| {
        let located = Located::NoImage(NoImage {
            rootfs: "/r".into(),
            purpose: Purpose::Run,
            launcher,
        });
        match located.launched_with(Path::new(bundle)) {
            Located::NoImage(none) => none.launcher,
            Located::Image(_) => unreachable!(),
        }
    };
    for (launcher, own) in [
        (Launcher::Podman, "/s/overlay-containers/1/userdata"),
        (
            Launcher::Docker,
            "/run/c/io.containerd.runtime.v2.task/moby/1",
        ),
        (Launcher::Docker, "/var/lib/docker/buildkit/executor/1"),
        (Launcher::Containerd, "/anywhere"),
    ] {
        assert_eq!(of(launcher, own), launcher, "{own}");
    }
    for (launcher, other) in [
        (Launcher::Podman, "/s/overlay-containers/1"),
        (Launcher::Podman, "/s/overlay-containers/userdata"),
        (Launcher::Podman, "/root/userdata"),
        (Launcher::Docker, "/root/bundle"),
        (Launcher::Docker, "/io.containerd.runtime.v2.task/x"),
    ] {
        assert_eq!(of(launcher, other), Launcher::Other, "{other}");
    }
}
