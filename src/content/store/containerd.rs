//! containerd (ctr, nerdctl, CRI): its records are asked for by the caller, its content store is read
//! from disk, every blob re-hashed.
//!
//! The record of a container has a *name* for its image, which can be moved to another image. So the
//! layers that the name's manifest stands for must be those that the container's snapshot was made
//! from; with CRI the record has the configuration's digest, which is exact, and then it must agree.

use super::{
    Found, LocateError, chain_ids, inconsistent,
    mountinfo::{self, Overlay},
    with_stored,
};
use crate::{beneath, layer::LayerSource, oci::MAX_DOCUMENT, signatures::Store};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};
use verify::{
    digest::{BlobDigest, ConfigDigest, DiffId, ImageDigest},
    image::{Config, Index, Manifest},
    rootfs::Engine,
};

const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// Indexes within indexes.
const MAX_DEPTH: usize = 3;

/// Which container is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerdQuery {
    /// The socket, from config.toml.
    pub address: PathBuf,
    pub namespace: String,
    pub container: String,
}

/// What containerd's API says: Containers.Get, Images.Get, Snapshots.Stat, Snapshots.Mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerdAnswer {
    pub image_name: String,
    /// The image record's target: a manifest or an index.
    pub target: ImageDigest,
    pub snapshotter: String,
    pub snapshot_key: String,
    /// The chain ID of the image's layers, from the snapshot's parent; `None` for no layer at all.
    pub parent: Option<DiffId>,
    pub mounts: Vec<ContainerdMount>,
    /// The container's.
    pub labels: BTreeMap<String, String>,
    /// Of CRI's container metadata: the configuration digest.
    pub cri_image_ref: Option<ConfigDigest>,
}

/// containerd.types.Mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerdMount {
    #[serde(rename = "type")]
    pub kind: String,
    pub source: PathBuf,
    pub options: Vec<String>,
}

/// `overlay`: what is mounted at `rootfs`; `None` when it is a bind mount.
pub(super) fn find(
    root: &Path,
    rootfs: &Path,
    overlay: Option<&Overlay>,
    answer: &ContainerdAnswer,
    signatures: &Store,
) -> Result<Found, LocateError> {
    same_mount(rootfs, overlay, &answer.mounts)?;
    let content = Content {
        blobs: root.join(BLOBS),
    };
    let mut candidates = Candidates::default();
    content.candidates(answer.target, &mut Vec::new(), &mut candidates)?;
    candidates.images.retain(|candidate| {
        chain_ids(candidate.config.diff_ids()).last().copied() == answer.parent
            && answer
                .cri_image_ref
                .is_none_or(|exact| exact == candidate.config.digest())
    });
    let Some(first) = candidates.images.first() else {
        return Err(inconsistent(format!(
            "the image {} ({}) has no manifest whose layers are those of the container's snapshot: was its name moved to another image?",
            answer.image_name, answer.target
        )));
    };
    let config = first.config.digest();
    if candidates
        .images
        .iter()
        .any(|other| other.config.digest() != config)
    {
        return Err(inconsistent(format!(
            "the image {} ({}) has several configurations with the layers of the container's snapshot",
            answer.image_name, answer.target
        )));
    }
    let sources = first.manifest.layers().iter().zip(first.config.diff_ids());
    let layers = sources.map(|(layer, diff_id)| {
        let path = content.path(layer.digest);
        if !path.exists() {
            return Err(inconsistent(format!(
                "layer {} is no longer in the content store (discard_unpacked_layers?)",
                layer.digest
            )));
        }
        Ok(LayerSource::blob(*diff_id, path))
    });
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let config_bytes = first.config_bytes.clone();
    let manifests = candidates
        .images
        .into_iter()
        .map(|candidate| candidate.manifest_bytes)
        .collect();
    let name = answer.image_name.clone();
    let claims = with_stored(
        &name,
        config,
        config_bytes,
        manifests,
        &candidates.indexes,
        signatures,
    )?;
    Ok(Found {
        engine: Engine::Containerd,
        name,
        config,
        claims,
        layers,
    })
}

/// The mount at the rootfs must be the one that containerd made for this container's snapshot.
fn same_mount(
    rootfs: &Path,
    overlay: Option<&Overlay>,
    mounts: &[ContainerdMount],
) -> Result<(), LocateError> {
    let [mount] = mounts else {
        return Err(inconsistent(format!(
            "the snapshot has {} mounts, not 1",
            mounts.len()
        )));
    };
    let same = match overlay {
        Some(overlay) => {
            let options = mount.options.join(",").into_bytes();
            mount.kind == "overlay"
                && mountinfo::overlay_of(&options, &[]).map_err(|e| inconsistent(e.to_string()))?
                    == *overlay
        }
        None => {
            let identity = |path: &Path| -> Result<(u64, u64)> {
                let data = path
                    .metadata()
                    .with_context(|| format!("stat {}", path.display()))?;
                Ok((data.dev(), data.ino()))
            };
            mount.kind == "bind" && identity(&mount.source)? == identity(rootfs)?
        }
    };
    if same {
        Ok(())
    } else {
        Err(inconsistent(format!(
            "what is mounted at {} is not the snapshot's {} mount of {}",
            rootfs.display(),
            mount.kind,
            mount.source.display()
        )))
    }
}

struct Content {
    blobs: PathBuf,
}

#[derive(Default)]
struct Candidates {
    images: Vec<Candidate>,
    indexes: Vec<Vec<u8>>,
}

struct Candidate {
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
    config_bytes: Vec<u8>,
    config: Config,
}

impl Content {
    /// Every image that `digest` leads to and whose manifest and configuration are here.
    fn candidates(
        &self,
        digest: ImageDigest,
        above: &mut Vec<ImageDigest>,
        found: &mut Candidates,
    ) -> Result<(), LocateError> {
        let Some(bytes) = self.blob(BlobDigest::from_bytes(*digest.as_bytes()))? else {
            // An index names platforms that nobody fetched; the record's own target must be here.
            return match above.is_empty() {
                true => Err(inconsistent(format!(
                    "{digest} is not in the content store"
                ))),
                false => Ok(()),
            };
        };
        if let Ok(manifest) = Manifest::parse(&bytes) {
            let config = BlobDigest::from_bytes(*manifest.config().as_bytes());
            if let Some(config_bytes) = self.blob(config)?
                && let Ok(config) = Config::parse(&config_bytes)
            {
                found.images.push(Candidate {
                    manifest_bytes: bytes,
                    manifest,
                    config_bytes,
                    config,
                });
            }
            return Ok(());
        }
        let index =
            Index::parse(&bytes).map_err(|error| inconsistent(format!("{digest}: {error}")));
        let index = match (index, above.is_empty()) {
            (Err(error), true) => return Err(error),
            // Something else within an index.
            (Err(_), false) => return Ok(()),
            (Ok(index), _) => index,
        };
        if above.len() >= MAX_DEPTH || above.contains(&digest) {
            return Ok(());
        }
        above.push(digest);
        for child in index.manifests() {
            self.candidates(child.digest, above, found)?;
        }
        above.pop();
        found.indexes.push(bytes);
        Ok(())
    }

    fn blob(&self, digest: BlobDigest) -> Result<Option<Vec<u8>>, LocateError> {
        let path = self.path(digest);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = beneath::read_bounded(&path, MAX_DOCUMENT)?;
        if BlobDigest::of(&bytes) != digest {
            return Err(inconsistent(format!(
                "{} has another digest",
                path.display()
            )));
        }
        Ok(Some(bytes))
    }

    fn path(&self, digest: BlobDigest) -> PathBuf {
        self.blobs.join(digest.hex())
    }
}
