//! Stores as the engines leave them, made here file by file; the mount itself is a line of text, and
//! containerd's answers are values.

mod of_containerd;
mod of_directories;
mod of_docker;
mod of_names;
mod of_storage;

use super::{claims::chain_ids, *};
use crate::testkit::{Scratch, archive, gzip};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use verify::digest::{BlobDigest, DiffId, ImageDigest};

/// A signature store, an image of two layers, and where an engine would mount it.
struct Host {
    scratch: Scratch,
    signatures: Store,
    tars: Vec<Vec<u8>>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

const ID: &str = "c0ffee";
/// containers-storage's ids are digests.
const STORAGE_ID: &str = "aa11bb22cc33dd44aa11bb22cc33dd44aa11bb22cc33dd44aa11bb22cc33dd44";

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
        api: Option<&Api>,
    ) -> Result<Located, LocateError> {
        let rootfs = self.scratch.join("rootfs");
        std::fs::create_dir_all(&rootfs).unwrap();
        let line = format!(
            "1 2 0:3 / {} rw - overlay overlay rw,lowerdir={},upperdir={upper},workdir=/w\n",
            rootfs.display(),
            lower.join(":")
        );
        self.locate_on(Some(&line), &rootfs, "ns", api)
    }

    /// With this line of mountinfo, this root, and a bundle of containerd's in `namespace`.
    fn locate_on(
        &self,
        line: Option<&str>,
        rootfs: &Path,
        namespace: &str,
        api: Option<&Api>,
    ) -> Result<Located, LocateError> {
        let mount = line.map(|line| parse_mountinfo(line.as_bytes()).unwrap().remove(0));
        let container = ContainerId::parse(ID).unwrap();
        let query = Query {
            rootfs: &Rootfs::open(rootfs).unwrap(),
            container: &container,
            state_root: Path::new("/run/runc/ns"),
            bundle: &self
                .scratch
                .join("io.containerd.runtime.v2.task")
                .join(namespace)
                .join(ID),
        };
        let connect = |_: &ContainerdRoot, asked: &str| -> anyhow::Result<Box<dyn Containerd>> {
            assert_eq!(asked, "ns");
            let api = api
                .cloned()
                .ok_or_else(|| anyhow::anyhow!("not asked for"))?;
            Ok(Box::new(api))
        };
        locate_on(
            mount.as_ref(),
            &query,
            &self.roots(),
            &self.signatures,
            &connect,
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
            &json!([{"id": STORAGE_ID, "layer": "own", "image": id, "metadata": metadata}]),
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
        let container = json!({"ID": ID, "Image": config, "Driver": "overlay2", "Config": {"Image": "demo:v1"}});
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

    /// A blob of containerd's content store.
    fn blob(&self, content: &[u8]) -> BlobDigest {
        let digest = BlobDigest::of(content);
        let name = format!("containerd/{}/{}", super::containerd::BLOBS, digest.hex());
        self.scratch.write(&name, content);
        digest
    }

    fn containerd(&self) -> (Vec<String>, String, Api) {
        self.blob(&self.config);
        self.blob(&self.manifest);
        for tar in &self.tars {
            self.blob(&gzip(tar));
        }
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
        let chain = chain_ids(&self.diff_ids());
        let api = Api {
            record: ContainerRecord {
                image: "localhost/demo:v1".into(),
                snapshotter: "overlayfs".into(),
                snapshot_key: ID.into(),
                labels: BTreeMap::new(),
                cri: Cri::None,
            },
            images: [(
                "localhost/demo:v1".to_owned(),
                ImageDigest::of(&self.manifest),
            )]
            .into(),
            parents: [(ID.to_owned(), chain[1].to_string())].into(),
            mounts: vec![ContainerdMount {
                kind: "overlay".into(),
                source: "overlay".into(),
                options,
            }],
        };
        (lower, upper, api)
    }

    fn check(&self, located: Located, engine: Engine, name: &str) -> Box<Found> {
        let Located::Image(found) = located else {
            panic!("{located:?}")
        };
        assert_eq!((found.engine, found.name.as_str()), (engine, name));
        assert_eq!(found.config, ConfigDigest::of(&self.config));
        assert_eq!(found.claims.len(), 1);
        assert_eq!(found.claims[0].manifest_bytes, self.manifest);
        verify::image::Image::of(&found.claims[0]).unwrap();
        let claimed: Vec<_> = found.layers.iter().map(LayerSource::claimed).collect();
        assert_eq!(claimed, self.diff_ids());
        found
    }
}

/// containerd's answers.
#[derive(Clone)]
struct Api {
    record: ContainerRecord,
    images: BTreeMap<String, ImageDigest>,
    parents: BTreeMap<String, String>,
    mounts: Vec<ContainerdMount>,
}

impl Containerd for Api {
    fn container(&self, id: &ContainerId) -> anyhow::Result<Option<ContainerRecord>> {
        assert_eq!(id.as_str(), ID);
        Ok(Some(self.record.clone()))
    }
    fn images(&self, names: &[String]) -> anyhow::Result<Vec<Option<ImageDigest>>> {
        let targets = names.iter().map(|name| self.images.get(name).copied());
        Ok(targets.collect())
    }
    fn names(&self, target: &ImageDigest) -> anyhow::Result<Vec<String>> {
        let same = self.images.iter().filter(|(_, digest)| *digest == target);
        Ok(same.map(|(name, _)| name.clone()).collect())
    }
    fn all(&self) -> anyhow::Result<Vec<(String, ImageDigest)>> {
        let each = self.images.iter();
        Ok(each.map(|(name, target)| (name.clone(), *target)).collect())
    }
    fn namespaces(&self) -> anyhow::Result<Vec<String>> {
        Ok(vec!["ns".into()])
    }
    fn snapshot(
        &self,
        _: &str,
        key: &str,
        image: &str,
    ) -> anyhow::Result<(Snapshot, Option<ImageDigest>)> {
        let snapshot = Snapshot {
            parent: self.parent("", key)?,
            mounts: self.mounts.clone(),
        };
        Ok((snapshot, self.images.get(image).copied()))
    }
    fn parent(&self, _: &str, key: &str) -> anyhow::Result<String> {
        let parent = self.parents.get(key).cloned();
        parent.ok_or_else(|| anyhow::anyhow!("no snapshot {key}"))
    }
}

fn refused(result: Result<Located, LocateError>, part: &str) {
    match result {
        Err(
            error @ (LocateError::Inconsistent(_)
            | LocateError::Driver { .. }
            | LocateError::UnknownStore { .. }),
        ) => assert!(error.to_string().contains(part), "{error}"),
        other => panic!("{other:?}"),
    }
}

/// What containers/image writes for one Sigstore signature.
fn sigstore_json(payload: &[u8]) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let json = json!({
        "mimeType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "payload": STANDARD.encode(payload),
        "annotations": {"dev.cosignproject.cosign/signature": "c2ln"},
    });
    [b"\0sigstore-json\n".as_slice(), json.to_string().as_bytes()].concat()
}

fn changed(value: &Value, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = value.clone();
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}
