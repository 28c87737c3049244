//! Docker, with its graph driver and with containerd's image store.

use super::*;

#[test]
fn accept_docker_with_a_stored_manifest() {
    let host = Host::new();
    let (lower, upper) = host.docker();
    match host.locate(&lower, &upper, None) {
        Err(LocateError::NoManifest { name, config }) => {
            assert_eq!(
                (name.as_str(), config),
                ("demo:v1", ConfigDigest::of(&host.config))
            );
        }
        other => panic!("{other:?}"),
    }
    host.signatures.put_manifest(&host.manifest).unwrap();
    host.check(
        host.locate(&lower, &upper, None).unwrap(),
        Engine::Docker,
        "demo:v1",
    );
}

#[test]
fn refuse_docker_that_contradicts() {
    let host = Host::new();
    host.signatures.put_manifest(&host.manifest).unwrap();
    let (lower, upper) = host.docker();
    refused(
        host.locate(&lower[1..], &upper, None),
        "the mount shows the layers",
    );
    let parent = format!("docker/image/overlay2/layerdb/mounts/{ID}/parent");
    host.scratch
        .write(&parent, DiffId::of(b"other").to_string());
    refused(host.locate(&lower, &upper, None), "has other layers");
    let config = ConfigDigest::of(&host.config).hex();
    let content = format!("docker/image/overlay2/imagedb/content/sha256/{config}");
    host.scratch.write(&content, b"{}");
    refused(host.locate(&lower, &upper, None), "has another digest");
    let place = host.scratch.join(&content);
    std::fs::write(host.scratch.join("good"), &host.config).unwrap();
    std::fs::remove_file(&place).unwrap();
    std::os::unix::fs::symlink(host.scratch.join("good"), &place).unwrap();
    refused(host.locate(&lower, &upper, None), "a symbolic link stands");
}

/// As Docker 28 lays it out: two snapshots of the container's own, no image in containerd's record.
fn on_snapshots(host: &Host) -> (Vec<String>, String, Api) {
    let (mut lower, upper, mut api) = host.containerd();
    let init = "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/9/fs";
    std::fs::create_dir_all(host.scratch.join(init)).unwrap();
    lower.insert(0, host.scratch.join(init).display().to_string());
    api.mounts[0].options[3] = format!("lowerdir={}", lower.join(":"));
    api.record.image.clear();
    api.record.snapshot_key.clear();
    let chain = api.parents[ID].clone();
    api.parents = [
        (ID.to_owned(), format!("{ID}-init")),
        (format!("{ID}-init"), chain),
    ]
    .into();
    let manifest = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": ImageDigest::of(&host.manifest), "size": host.manifest.len(),
    });
    let container = json!({
        "ID": ID, "Driver": "overlayfs", "Image": ImageDigest::of(&host.manifest),
        "ImageManifest": manifest, "Config": {"Image": "demo:v1"},
    });
    write_container(host, &container);
    (lower, upper, api)
}

fn write_container(host: &Host, container: &Value) {
    let name = format!("docker/containers/{ID}/config.v2.json");
    host.scratch.write(&name, container.to_string());
}

fn container_of(host: &Host) -> Value {
    let name = format!("docker/containers/{ID}/config.v2.json");
    serde_json::from_slice(&std::fs::read(host.scratch.join(name)).unwrap()).unwrap()
}

#[test]
fn accept_docker_with_containerds_store() {
    let host = Host::new();
    let (lower, upper, api) = on_snapshots(&host);
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    host.check(found, Engine::Docker, "demo:v1");
    // Pulled by an index: that is what Image says, and a signature may be on it.
    let entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": ImageDigest::of(&host.manifest), "size": 1,
    });
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let digest = host.blob(index.as_bytes());
    let mut container = container_of(&host);
    container["Image"] = json!(digest);
    write_container(&host, &container);
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    let found = host.check(found, Engine::Docker, "demo:v1");
    assert_eq!(found.claims[0].index_bytes, [index.into_bytes()]);
}

#[test]
fn refuse_docker_with_containerds_store_that_contradicts() {
    let host = Host::new();
    let (lower, upper, api) = on_snapshots(&host);
    let with = |change: &dyn Fn(&mut Api)| {
        let mut changed = api.clone();
        change(&mut changed);
        host.locate(&lower, &upper, Some(&changed))
    };
    let other = DiffId::of(b"other").to_string();
    let init = format!("{ID}-init");
    refused(
        with(&|api| drop(api.parents.insert(init.clone(), other.clone()))),
        "no manifest whose layers",
    );
    refused(
        with(&|api| drop(api.parents.insert(ID.into(), "some-key".into()))),
        "which is no image's",
    );
    refused(
        with(&|api| api.mounts[0].options[2] = "upperdir=/else/fs".into()),
        "is not the snapshot's",
    );
    let container = container_of(&host);
    for (change, why) in [
        (json!({"Driver": "zfs"}), "Docker's zfs"),
        (json!({"ImageManifest": null}), "not recorded the manifest"),
        (
            json!({"ImageManifest": {"digest": ImageDigest::of(b"gone")}}),
            "is not in",
        ),
    ] {
        let mut container = container.clone();
        for (key, value) in change.as_object().unwrap() {
            container[key] = value.clone();
        }
        write_container(&host, &container);
        refused(host.locate(&lower, &upper, Some(&api)), why);
    }
    std::fs::remove_dir_all(host.scratch.join("docker")).unwrap();
    refused(host.locate(&lower, &upper, Some(&api)), "names an image");
}

#[test]
fn accept_a_step_of_buildkit_as_such() {
    let host = Host::new();
    let (lower, upper) = host.docker();
    let container = host.scratch.join("docker/containers");
    std::fs::remove_dir_all(container).unwrap();
    refused(host.locate(&lower, &upper, None), "knows no container");
    let rootfs = host.scratch.join("docker/buildkit/executor/x/rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    let line = format!(
        "1 2 0:3 / {} rw - overlay overlay rw,lowerdir={},upperdir={upper}\n",
        rootfs.display(),
        lower.join(":")
    );
    let mount = parse_mountinfo(line.as_bytes()).unwrap().remove(0);
    let query = Query {
        rootfs: &Rootfs::open(&rootfs).unwrap(),
        container: &ContainerId::parse("x").unwrap(),
        state_root: Path::new("/run/runc"),
        bundle: rootfs.parent().unwrap(),
    };
    let connect = |_: &ContainerdRoot, _: &str| anyhow::bail!("not asked for");
    let located = super::locate_on(
        Some(&mount),
        &query,
        &host.roots(),
        &host.signatures,
        &connect,
    );
    assert!(
        matches!(&located, Ok(Located::NoImage(none)) if none.purpose == Purpose::Build),
        "{located:?}"
    );
}
