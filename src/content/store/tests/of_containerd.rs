//! containerd: ctr, nerdctl, CRI.

use super::*;

const OTHER_CONFIG: &[u8] = b"other";

#[test]
fn accept_containerd() {
    let host = Host::new();
    let (lower, upper, mut api) = host.containerd();
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    let found = host.check(found, Engine::Containerd, "localhost/demo:v1");
    let read: Vec<_> = found
        .layers
        .iter()
        .map(|layer| layer.read().unwrap().0)
        .collect();
    assert_eq!(read, host.diff_ids());
    api.record.cri = Cri::Container(ConfigDigest::of(&host.config));
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    let found = host.check(found, Engine::Containerd, "localhost/demo:v1");
    assert_eq!(found.purpose, Purpose::Run);
    api.record.cri = Cri::Sandbox;
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    let found = host.check(found, Engine::Containerd, "localhost/demo:v1");
    assert_eq!(found.purpose, Purpose::Sandbox);
    // CRI calls it by its id: another name of the same image selects the rule
    let id = ConfigDigest::of(&host.config).to_string();
    api.images
        .insert(id.clone(), ImageDigest::of(&host.manifest));
    api.images.insert(
        "a.example/demo@sha256:0".into(),
        ImageDigest::of(&host.manifest),
    );
    api.record.image = id;
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    host.check(found, Engine::Containerd, "localhost/demo:v1");
}

#[test]
fn accept_containerd_index() {
    let host = Host::new();
    let (lower, upper, mut api) = host.containerd();
    let entry = |digest: ImageDigest| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1});
    let index = json!({"schemaVersion": 2, "manifests": [entry(ImageDigest::of(b"not fetched")), entry(ImageDigest::of(&host.manifest))]});
    let index = serde_json::to_vec(&index).unwrap();
    let digest = host.blob(&index);
    api.images.insert(
        "localhost/demo:v1".into(),
        ImageDigest::from_bytes(*digest.as_bytes()),
    );
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    let found = host.check(found, Engine::Containerd, "localhost/demo:v1");
    assert_eq!(found.claims[0].index_bytes, [index]);
}

#[test]
fn accept_signatures_that_were_pulled() {
    let host = Host::new();
    let (lower, upper, mut api) = host.containerd();
    let payload = host.blob(b"payload");
    let layer = |media_type: &str, digest: BlobDigest| {
        json!({"mediaType": media_type, "digest": digest, "size": 7,
        "annotations": {"dev.cosignproject.cosign/signature": "c2ln"}})
    };
    let simple = "application/vnd.dev.cosign.simplesigning.v1+json";
    let artifact = json!({"schemaVersion": 2, "config": layer("c", payload), "layers": [
        layer(simple, payload), layer("something/else", payload), layer(simple, BlobDigest::of(b"not pulled"))]});
    let digest = host.blob(artifact.to_string().as_bytes());
    let tag = format!(
        "localhost/demo:sha256-{}.sig",
        ImageDigest::of(&host.manifest).hex()
    );
    let target = ImageDigest::from_bytes(*digest.as_bytes());
    api.images.insert(tag.clone(), target);
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    let found = host.check(found, Engine::Containerd, "localhost/demo:v1");
    let [
        Attached::Signature(_),
        Attached::Unusable(kind),
        Attached::Unusable(gone),
    ] = &found.attached[..]
    else {
        panic!("{:?}", found.attached)
    };
    assert!(kind.contains("something/else") && gone.contains("not in the content store"));
    // cosign 3: a list of referrers, whose descriptors may call them anything
    let bundle = host.blob(b"{}");
    let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let referrer =
        json!({"schemaVersion": 2, "config": layer("c", payload), "layers": [layer(kind, bundle)]});
    let referrer = host.blob(referrer.to_string().as_bytes());
    let referrers = json!({"schemaVersion": 2, "manifests": [layer("wrong", referrer)]});
    let referrers = host.blob(referrers.to_string().as_bytes());
    let (plain, target) = (
        tag.trim_end_matches(".sig").to_owned(),
        ImageDigest::from_bytes(*referrers.as_bytes()),
    );
    api.images.insert(plain.clone(), target);
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    let found = host.check(found, Engine::Containerd, "localhost/demo:v1");
    let bundle = Attached::Signature(StoredSignature::Bundle(b"{}".to_vec()));
    assert_eq!(found.attached.last(), Some(&bundle));
    api.images.remove(&plain);
    // a tag that leads nowhere
    api.images.insert(tag, ImageDigest::of(b"gone"));
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    let found = host.check(found, Engine::Containerd, "localhost/demo:v1");
    assert!(matches!(&found.attached[..], [Attached::Unusable(_)]));
}

#[test]
fn refuse_containerd_that_contradicts() {
    let host = Host::new();
    let (lower, upper, api) = host.containerd();
    let with = |change: &dyn Fn(&mut Api)| {
        let mut changed = api.clone();
        change(&mut changed);
        host.locate(&lower, &upper, Some(&changed))
    };
    let parent = |parent: String| with(&|api| drop(api.parents.insert(ID.into(), parent.clone())));
    // The name was moved to an image with other layers.
    refused(
        parent(DiffId::of(b"other").to_string()),
        "was its name moved",
    );
    refused(parent(String::new()), "was its name moved");
    refused(parent("some-key".into()), "which is no image's");
    // Same layers, another configuration: CRI's record tells.
    refused(
        with(&|api| api.record.cri = Cri::Container(ConfigDigest::of(OTHER_CONFIG))),
        "was its name moved",
    );
    // nerdctl's label tells
    refused(
        with(&|api| {
            let label = ImageDigest::of(b"former").to_string();
            api.record
                .labels
                .insert("nerdctl/image-digest".into(), label);
        }),
        "when the container was made",
    );
    let name = "localhost/demo:v1";
    refused(
        with(&|api| {
            api.images.insert(name.into(), ImageDigest::of(b"gone"));
        }),
        "is not in",
    );
    refused(with(&|api| api.images.clear()), "no record any more");
    refused(with(&|api| api.mounts.clear()), "0 mounts");
    refused(
        with(&|api| api.record.snapshotter = "native".into()),
        "snapshotter native",
    );
    refused(
        with(&|api| api.mounts[0].options[2] = "upperdir=/else/where/fs".into()),
        "is not the snapshot's",
    );
    refused(
        host.locate(&lower[..1], &upper, Some(&api)),
        "is not the snapshot's",
    );
    let blob = BlobDigest::of(&host.manifest).hex();
    let name = format!("containerd/{}/{blob}", super::super::containerd::BLOBS);
    host.scratch.write(&name, b"{}");
    refused(host.locate(&lower, &upper, Some(&api)), "another digest");
}

#[test]
fn accept_equal_layers_by_their_own_configuration() {
    // Two images with the same layers, so with one chain ID: the name's manifest decides.
    let host = Host::new();
    let (lower, upper, mut api) = host.containerd();
    let mut twin: Value = serde_json::from_slice(&host.config).unwrap();
    twin["author"] = json!("somebody else");
    let twin = twin.to_string().into_bytes();
    let mut manifest: Value = serde_json::from_slice(&host.manifest).unwrap();
    manifest["config"]["digest"] = json!(host.blob(&twin));
    let manifest = manifest.to_string().into_bytes();
    host.blob(&manifest);
    api.images
        .insert("localhost/twin:v1".into(), ImageDigest::of(&manifest));
    let found = host.locate(&lower, &upper, Some(&api)).unwrap();
    host.check(found, Engine::Containerd, "localhost/demo:v1");
    api.record.image = "localhost/twin:v1".into();
    let Located::Image(found) = host.locate(&lower, &upper, Some(&api)).unwrap() else {
        panic!("no image")
    };
    assert_eq!(found.config, ConfigDigest::of(&twin));
    // one index with both: nobody can say which of them it is
    let entry = |bytes: &[u8]| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": ImageDigest::of(bytes), "size": 1});
    let index = json!({"schemaVersion": 2, "manifests": [entry(&host.manifest), entry(&manifest)]});
    let digest = host.blob(index.to_string().as_bytes());
    let target = ImageDigest::from_bytes(*digest.as_bytes());
    api.images.insert("localhost/twin:v1".into(), target);
    refused(
        host.locate(&lower, &upper, Some(&api)),
        "several configurations",
    );
    api.record.cri = Cri::Container(ConfigDigest::of(&twin));
    assert!(host.locate(&lower, &upper, Some(&api)).is_ok());
}

#[test]
fn accept_bind_mounted_snapshot() {
    let host = Host::new();
    let (_, _, mut api) = host.containerd();
    // The rootfs *is* the snapshot's directory, as a bind mount shows it.
    let snapshot = host
        .scratch
        .join("containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs");
    api.mounts = vec![ContainerdMount {
        kind: "bind".into(),
        source: snapshot.clone(),
        options: vec!["ro".into(), "rbind".into()],
    }];
    let line = format!("1 2 8:1 /x {} rw - ext4 /dev/sda rw\n", snapshot.display());
    let located =
        |namespace: &str, api: &Api| host.locate_on(Some(&line), &snapshot, namespace, Some(api));
    let found = located("ns", &api).unwrap();
    host.check(found, Engine::Containerd, "localhost/demo:v1");
    api.mounts[0].source = snapshot.with_file_name("other");
    std::fs::create_dir(&api.mounts[0].source).unwrap();
    refused(located("ns", &api), "is not the snapshot's");
    refused(located("other", &api), "different namespaces");
}

#[test]
fn accept_images_without_layers() {
    let mut host = Host::new();
    host.tars.clear();
    let config = json!({"rootfs": {"type": "layers", "diff_ids": []}});
    host.config = serde_json::to_vec(&config).unwrap();
    let manifest = json!({
        "schemaVersion": 2, "layers": [],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": ConfigDigest::of(&host.config), "size": 1},
    });
    host.manifest = serde_json::to_vec(&manifest).unwrap();
    host.tars = vec![];
    for content in [&host.config, &host.manifest] {
        host.blob(content);
    }
    let snapshot = host
        .scratch
        .join("containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/4/fs");
    std::fs::create_dir_all(&snapshot).unwrap();
    let api = Api {
        record: ContainerRecord {
            image: "localhost/empty:v1".into(),
            snapshotter: "overlayfs".into(),
            snapshot_key: ID.into(),
            labels: BTreeMap::new(),
            cri: Cri::None,
        },
        images: [("localhost/empty:v1".into(), ImageDigest::of(&host.manifest))].into(),
        parents: [(ID.to_owned(), String::new())].into(),
        mounts: vec![ContainerdMount {
            kind: "bind".into(),
            source: snapshot.clone(),
            options: vec!["rw".into(), "rbind".into()],
        }],
    };
    let line = format!("1 2 8:1 /x {} rw - ext4 /dev/sda rw\n", snapshot.display());
    let found = host
        .locate_on(Some(&line), &snapshot, "ns", Some(&api))
        .unwrap();
    host.check(found, Engine::Containerd, "localhost/empty:v1");
}
