//! Stores as the engines leave them, made here file by file; the mount itself is a line of text.

use super::*;
use crate::testkit::{Scratch, archive, gzip};
use serde_json::json;
use std::collections::BTreeMap;
use verify::digest::BlobDigest;

/// A signature store, an image of two layers, and where an engine would mount it.
struct Host {
    scratch: Scratch,
    signatures: Store,
    tars: Vec<Vec<u8>>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

const ID: &str = "c0ffee";

impl Host {
    fn new() -> Self {
        let scratch = Scratch::new();
        let tars = vec![archive(&[("a", Some(b"a"))]), archive(&[("b", Some(b"b"))])];
        let diff_ids: Vec<_> = tars.iter().map(|tar| DiffId::of(tar)).collect();
        let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let layers: Vec<_> = tars
            .iter()
            .map(|tar| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": BlobDigest::of(&gzip(tar)), "size": gzip(tar).len()}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": ConfigDigest::of(&config), "size": config.len()},
            "layers": layers,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let signatures = Store::create(&scratch.join("signatures")).unwrap();
        Self {
            scratch,
            signatures,
            tars,
            config,
            manifest,
        }
    }

    fn roots(&self) -> Roots {
        Roots {
            containers_storage: vec![self.scratch.join("graph")],
            docker: vec![self.scratch.join("docker")],
            containerd: vec![ContainerdRoot {
                root: self.scratch.join("containerd"),
                address: "/run/containerd/containerd.sock".into(),
            }],
        }
        .canonical()
    }

    fn diff_ids(&self) -> Vec<DiffId> {
        self.tars.iter().map(|tar| DiffId::of(tar)).collect()
    }

    /// `locate` with this overlay mount, and containerd answering so.
    fn locate(
        &self,
        lower: &[String],
        upper: &str,
        answer: Option<ContainerdAnswer>,
    ) -> Result<Found, LocateError> {
        let rootfs = self.scratch.join("rootfs");
        std::fs::create_dir_all(&rootfs).unwrap();
        let mountinfo = format!(
            "1 2 0:3 / {} rw - overlay overlay rw,lowerdir={},upperdir={upper},workdir=/w\n",
            rootfs.display(),
            lower.join(":")
        );
        let bundle = self
            .scratch
            .join("io.containerd.runtime.v2.task/ns")
            .join(ID);
        let container = ContainerId::parse(ID).unwrap();
        let query = Query {
            rootfs: &rootfs,
            container: &container,
            state_root: Path::new("/run/runc/ns"),
            bundle: &bundle,
        };
        locate_among(
            mountinfo.as_bytes(),
            &query,
            &self.roots(),
            &self.signatures,
            &|asked| {
                assert_eq!(
                    (asked.namespace.as_str(), asked.container.as_str()),
                    ("ns", ID)
                );
                answer
                    .clone()
                    .ok_or_else(|| anyhow::anyhow!("not asked for"))
            },
        )
    }

    /// containers-storage with one container; the arguments of its mount.
    fn graph(&self) -> (Vec<String>, String) {
        let id = ConfigDigest::of(&self.config).hex();
        let layers: Vec<_> = ["one", "two", "own"].into_iter().collect();
        let mut records = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            std::fs::create_dir_all(self.scratch.join(format!("graph/overlay/{layer}/diff")))
                .unwrap();
            std::fs::create_dir_all(self.scratch.join("graph/overlay/l")).unwrap();
            let link = self.scratch.join(format!("graph/overlay/l/L{number}"));
            std::os::unix::fs::symlink(format!("../{layer}/diff"), link).unwrap();
            let parent = number.checked_sub(1).map(|below| layers[below]);
            records.push(json!({"id": layer, "parent": parent.unwrap_or(""), "diff-digest": self.diff_ids().get(number)}));
        }
        let write = |name: &str, value: &serde_json::Value| {
            self.scratch
                .write(&format!("graph/{name}"), serde_json::to_vec(value).unwrap());
        };
        write("overlay-layers/layers.json", &json!(records));
        let metadata = json!({"image-name": "localhost/demo:v1", "image-id": id}).to_string();
        write(
            "overlay-containers/containers.json",
            &json!([{"id": "other-id", "layer": "own", "image": id, "metadata": metadata}]),
        );
        let keys = ["manifest".to_owned(), format!("sha256:{id}")];
        write(
            "overlay-images/images.json",
            &json!([{"id": id, "layer": "two", "names": ["localhost/other:v1"], "big-data-names": keys}]),
        );
        self.scratch.write(
            &format!("graph/overlay-images/{id}/manifest"),
            &self.manifest,
        );
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let name = STANDARD.encode(&keys[1]);
        self.scratch
            .write(&format!("graph/overlay-images/{id}/={name}"), &self.config);
        let at = |name: &str| {
            self.scratch
                .join(format!("graph/overlay/{name}"))
                .display()
                .to_string()
        };
        (vec![at("l/L1"), at("l/L0")], at("own/diff"))
    }

    fn docker(&self) -> (Vec<String>, String) {
        let config = ConfigDigest::of(&self.config);
        let write = |name: &str, content: &[u8]| {
            drop(self.scratch.write(&format!("docker/{name}"), content))
        };
        let container = json!({"ID": ID, "Image": config, "Config": {"Image": "demo:v1"}});
        write(
            &format!("containers/{ID}/config.v2.json"),
            &serde_json::to_vec(&container).unwrap(),
        );
        write(
            &format!("image/overlay2/imagedb/content/sha256/{}", config.hex()),
            &self.config,
        );
        let chain = chain_ids(&self.diff_ids());
        for (number, (chain, diff_id)) in chain.iter().zip(self.diff_ids()).enumerate() {
            let record = format!("image/overlay2/layerdb/sha256/{}", chain.hex());
            write(&format!("{record}/diff"), diff_id.to_string().as_bytes());
            write(
                &format!("{record}/cache-id"),
                format!("cache{number}").as_bytes(),
            );
        }
        let mount = format!("image/overlay2/layerdb/mounts/{ID}");
        write(&format!("{mount}/mount-id"), b"own");
        write(&format!("{mount}/init-id"), b"own-init");
        write(&format!("{mount}/parent"), chain[1].to_string().as_bytes());
        for layer in ["cache0", "cache1", "own-init", "own"] {
            std::fs::create_dir_all(self.scratch.join(format!("docker/overlay2/{layer}/diff")))
                .unwrap();
        }
        let at = |layer: &str| {
            self.scratch
                .join(format!("docker/overlay2/{layer}/diff"))
                .display()
                .to_string()
        };
        (vec![at("own-init"), at("cache1"), at("cache0")], at("own"))
    }

    fn containerd(&self) -> (Vec<String>, String, ContainerdAnswer) {
        let blob = |content: &[u8]| {
            let name = format!(
                "containerd/io.containerd.content.v1.content/blobs/sha256/{}",
                BlobDigest::of(content).hex()
            );
            self.scratch.write(&name, content);
        };
        blob(&self.config);
        blob(&self.manifest);
        self.tars.iter().for_each(|tar| blob(&gzip(tar)));
        let at = |number: u32| {
            let name =
                format!("containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/{number}/fs");
            std::fs::create_dir_all(self.scratch.join(&name)).unwrap();
            self.scratch.join(name).display().to_string()
        };
        let (lower, upper) = (vec![at(2), at(1)], at(3));
        let options = vec![
            "index=off".to_owned(),
            "workdir=/w".to_owned(),
            format!("upperdir={upper}"),
            format!("lowerdir={}", lower.join(":")),
        ];
        let answer = ContainerdAnswer {
            image_name: "localhost/demo:v1".into(),
            target: ImageDigest::of(&self.manifest),
            snapshotter: "overlayfs".into(),
            snapshot_key: ID.into(),
            parent: chain_ids(&self.diff_ids()).last().copied(),
            mounts: vec![ContainerdMount {
                kind: "overlay".into(),
                source: "overlay".into(),
                options,
            }],
            labels: BTreeMap::new(),
            cri_image_ref: None,
        };
        (lower, upper, answer)
    }

    fn check(&self, found: Found, engine: Engine, name: &str) {
        assert_eq!((found.engine, found.name.as_str()), (engine, name));
        assert_eq!(found.config, ConfigDigest::of(&self.config));
        assert_eq!(found.claims.len(), 1);
        assert_eq!(found.claims[0].manifest_bytes, self.manifest);
        verify::image::Image::of(&found.claims[0]).unwrap();
        let claimed: Vec<_> = found.layers.iter().map(LayerSource::claimed).collect();
        assert_eq!(claimed, self.diff_ids());
    }
}

fn refused(result: Result<Found, LocateError>, part: &str) {
    match result {
        Err(LocateError::Inconsistent(what)) => assert!(what.contains(part), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn accept_containers_storage() {
    let host = Host::new();
    let (lower, upper) = host.graph();
    let found = host.locate(&lower, &upper, None).unwrap();
    host.check(found, Engine::ContainersStorage, "localhost/demo:v1");
    // Many layers: everything relative to the store.
    let lower = ["l/L1".to_owned(), "l/L0".to_owned()];
    let found = host.locate(&lower, "own/diff", None).unwrap();
    host.check(found, Engine::ContainersStorage, "localhost/demo:v1");
}

#[test]
fn refuse_containers_storage_that_contradicts() {
    let host = Host::new();
    let (lower, upper) = host.graph();
    refused(
        host.locate(&lower[..1], &upper, None),
        "the mount shows the layers",
    );
    let own = host
        .scratch
        .join("graph/overlay/two/diff")
        .display()
        .to_string();
    refused(host.locate(&lower, &own, None), "knows no container");
    let id = ConfigDigest::of(&host.config).hex();
    let config =
        std::fs::read_dir(host.scratch.join(format!("graph/overlay-images/{id}"))).unwrap();
    let config = config
        .flatten()
        .find(|file| file.file_name().to_string_lossy().starts_with('='))
        .unwrap();
    std::fs::write(config.path(), b"{}").unwrap();
    refused(host.locate(&lower, &upper, None), "has the configuration");
}

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
    host.scratch.write(
        &format!("docker/image/overlay2/imagedb/content/sha256/{config}"),
        b"{}",
    );
    refused(host.locate(&lower, &upper, None), "has another digest");
}

#[test]
fn accept_containerd() {
    let host = Host::new();
    let (lower, upper, answer) = host.containerd();
    let found = host.locate(&lower, &upper, Some(answer.clone())).unwrap();
    let read: Vec<_> = found
        .layers
        .iter()
        .map(|layer| layer.read().unwrap().0)
        .collect();
    assert_eq!(read, host.diff_ids());
    host.check(found, Engine::Containerd, "localhost/demo:v1");
    let exact = ContainerdAnswer {
        cri_image_ref: Some(ConfigDigest::of(&host.config)),
        ..answer
    };
    host.check(
        host.locate(&lower, &upper, Some(exact)).unwrap(),
        Engine::Containerd,
        "localhost/demo:v1",
    );
}

#[test]
fn accept_containerd_index() {
    let host = Host::new();
    let (lower, upper, answer) = host.containerd();
    let entry = |digest: ImageDigest| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1});
    let index = json!({"schemaVersion": 2, "manifests": [entry(ImageDigest::of(b"not fetched")), entry(answer.target)]});
    let index = serde_json::to_vec(&index).unwrap();
    let name = format!(
        "containerd/io.containerd.content.v1.content/blobs/sha256/{}",
        BlobDigest::of(&index).hex()
    );
    host.scratch.write(&name, &index);
    let answer = ContainerdAnswer {
        target: ImageDigest::of(&index),
        ..answer
    };
    let found = host.locate(&lower, &upper, Some(answer)).unwrap();
    assert_eq!(found.claims[0].index_bytes, [index]);
    host.check(found, Engine::Containerd, "localhost/demo:v1");
}

#[test]
fn refuse_containerd_that_contradicts() {
    let host = Host::new();
    let (lower, upper, answer) = host.containerd();
    let with = |change: &dyn Fn(&mut ContainerdAnswer)| {
        let mut changed = answer.clone();
        change(&mut changed);
        host.locate(&lower, &upper, Some(changed))
    };
    // The name was moved to an image with other layers.
    refused(
        with(&|a| a.parent = Some(DiffId::of(b"other"))),
        "was its name moved",
    );
    refused(with(&|a| a.parent = None), "was its name moved");
    // Same layers, another configuration: only CRI's record tells.
    refused(
        with(&|a| a.cri_image_ref = Some(ConfigDigest::of(b"other"))),
        "was its name moved",
    );
    refused(
        with(&|a| a.target = ImageDigest::of(b"gone")),
        "not in the content store",
    );
    refused(with(&|a| a.mounts.clear()), "0 mounts");
    refused(
        with(&|a| a.mounts[0].options[2] = "upperdir=/else/where/fs".into()),
        "is not the snapshot's",
    );
    refused(
        host.locate(&lower[..1], &upper, Some(answer.clone())),
        "is not the snapshot's",
    );
    let blob = BlobDigest::of(&host.manifest).hex();
    host.scratch.write(
        &format!("containerd/io.containerd.content.v1.content/blobs/sha256/{blob}"),
        b"{}",
    );
    refused(host.locate(&lower, &upper, Some(answer)), "another digest");
}

#[test]
fn refuse_rootfs_of_no_store() {
    let host = Host::new();
    let other = host.scratch.join("else/l/fs").display().to_string();
    let unknown = host.locate(std::slice::from_ref(&other), &other, None);
    assert!(
        matches!(unknown, Err(LocateError::UnknownStore { .. })),
        "{unknown:?}"
    );
    // No mount at all.
    let container = ContainerId::parse(ID).unwrap();
    let bundle = host.scratch.to_path_buf();
    let rootfs = host.scratch.join("rootfs");
    let query = Query {
        rootfs: &rootfs,
        container: &container,
        state_root: Path::new("/r"),
        bundle: &bundle,
    };
    let ask = |_: &ContainerdQuery| anyhow::bail!("not asked for");
    let plain = locate_among(b"", &query, &host.roots(), &host.signatures, &ask);
    assert!(matches!(plain, Err(LocateError::NoImage(_))), "{plain:?}");
    // Something else is mounted there.
    let mount = format!("1 2 8:1 / {} rw - ext4 /dev/sda rw\n", rootfs.display());
    let bind = locate_among(
        mount.as_bytes(),
        &query,
        &host.roots(),
        &host.signatures,
        &ask,
    );
    assert!(
        matches!(bind, Err(LocateError::UnknownStore { .. })),
        "{bind:?}"
    );
}

#[test]
fn accept_bind_mounted_snapshot() {
    let host = Host::new();
    let (_, _, mut answer) = host.containerd();
    // The rootfs *is* the snapshot's directory, as a bind mount shows it.
    let snapshot = host
        .scratch
        .join("containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs");
    answer.mounts = vec![ContainerdMount {
        kind: "bind".into(),
        source: snapshot.clone(),
        options: vec!["ro".into(), "rbind".into()],
    }];
    let mount = format!("1 2 8:1 /x {} rw - ext4 /dev/sda rw\n", snapshot.display());
    let bundle = host
        .scratch
        .join("io.containerd.runtime.v2.task/ns")
        .join(ID);
    let container = ContainerId::parse(ID).unwrap();
    let query = Query {
        rootfs: &snapshot,
        container: &container,
        state_root: Path::new("/run/runc/ns"),
        bundle: &bundle,
    };
    let found = |answer: ContainerdAnswer| {
        locate_among(
            mount.as_bytes(),
            &query,
            &host.roots(),
            &host.signatures,
            &move |_| Ok(answer.clone()),
        )
    };
    host.check(
        found(answer.clone()).unwrap(),
        Engine::Containerd,
        "localhost/demo:v1",
    );
    answer.mounts[0].source = snapshot.with_file_name("other");
    std::fs::create_dir(&answer.mounts[0].source).unwrap();
    refused(found(answer), "is not the snapshot's");
    let other = Query {
        state_root: Path::new("/run/runc/other"),
        ..query
    };
    let result = locate_among(
        mount.as_bytes(),
        &other,
        &host.roots(),
        &host.signatures,
        &|_| anyhow::bail!(""),
    );
    refused(result, "different namespaces");
}
