//! containerd (ctr, nerdctl, CRI): its records are asked for by the caller, its content store is read
//! from disk, every blob re-hashed.
//!
//! The record of a container has a *name* for its image, which can be moved to another image. So the
//! layers that the name's manifest stands for must be those that the container's snapshot was made
//! from; with CRI the record has the configuration's digest, which is exact, and then it must agree.

use super::{
    Found, LocateError, Purpose, attached,
    blobs::{Blobs, Candidates},
    claims::{chain_ids, with_stored},
    inconsistent,
    mountinfo::{self, Overlay},
    place::Place,
    rootfs::Rootfs,
};
use crate::signatures::Store;
use anyhow::{Context as _, Result};
use rustix::fs;
use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};
use verify::{
    digest::{ConfigDigest, DiffId, ImageDigest},
    id::ContainerId,
    profile::Launcher,
    rootfs::Engine,
};

pub(super) const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// The only snapshotter whose mounts can be traced to layers.
pub(super) const OVERLAYFS: &str = "overlayfs";

/// nerdctl's own word for the manifest or index that a container was made from (nerdctl, pkg/labels).
const NERDCTL_DIGEST: &str = "nerdctl/image-digest";

/// containerd's API at one socket, in one namespace, as far as it is asked. No call waits for the
/// container, and every call has a deadline.
pub trait Containerd {
    /// Containers.Get.
    fn container(&self, id: &ContainerId) -> Result<Option<ContainerRecord>>;
    /// Images.Get for each name: what it stands for at present.
    fn images(&self, names: &[String]) -> Result<Vec<Option<ImageDigest>>>;
    /// Images.List: every name of a manifest or index.
    fn names(&self, target: &ImageDigest) -> Result<Vec<String>>;
    /// Images.List: every name, and what it stands for at present.
    fn all(&self) -> Result<Vec<(String, ImageDigest)>>;
    /// Namespaces.List.
    fn namespaces(&self) -> Result<Vec<String>>;
    /// Snapshots.Stat and Snapshots.Mounts, and Images.Get side by side with them: each wait counts.
    fn snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        image: &str,
    ) -> Result<(Snapshot, Option<ImageDigest>)>;
    /// Snapshots.Stat.
    fn parent(&self, snapshotter: &str, key: &str) -> Result<String>;
}

/// containerd.services.containers.v1.Container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRecord {
    /// The image's name; empty in Docker's records.
    pub image: String,
    pub snapshotter: String,
    pub snapshot_key: String,
    pub labels: BTreeMap<String, String>,
    pub cri: Cri,
}

/// What CRI's plugin recorded beside it (an extension of the record, which no pod can write).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cri {
    /// Not CRI's container.
    None,
    /// A pod's sandbox.
    Sandbox,
    /// A container of a pod, and its image's configuration.
    Container(ConfigDigest),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The snapshot below: for the lowest read-write one its image's chain ID. Empty for none.
    pub parent: String,
    pub mounts: Vec<ContainerdMount>,
}

/// containerd.types.Mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerdMount {
    pub kind: String,
    pub source: PathBuf,
    pub options: Vec<String>,
}

/// `overlay`: what is mounted at `rootfs`; `None` when it is a bind mount.
pub(super) fn find(
    root: &Path,
    rootfs: &Rootfs,
    overlay: Option<&Overlay>,
    api: &dyn Containerd,
    record: &ContainerRecord,
    signatures: &Store,
) -> Result<Found, LocateError> {
    if record.snapshotter != OVERLAYFS {
        return Err(LocateError::Driver {
            path: rootfs.path().to_owned(),
            driver: format!("containerd's snapshotter {}", record.snapshotter),
        });
    }
    let (snapshot, target) =
        api.snapshot(&record.snapshotter, &record.snapshot_key, &record.image)?;
    same_mount(rootfs, overlay, &snapshot.mounts)?;
    let Some(target) = target else {
        return Err(inconsistent(format!(
            "the container's image {} has no record any more: was it removed?",
            record.image
        )));
    };
    if let Some(label) = record.labels.get(NERDCTL_DIGEST)
        && *label != target.to_string()
    {
        return Err(inconsistent(format!(
            "{} was {label} when the container was made and is {target} now",
            record.image
        )));
    }
    let blobs = Blobs::new(Place::open(root)?, BLOBS);
    let parent = chain(&snapshot.parent)?;
    let mut candidates = blobs.candidates(target)?;
    candidates.images.retain(|candidate| {
        let layers = chain_ids(candidate.config.diff_ids()).last().copied() == parent;
        layers
            && match record.cri {
                Cri::Container(config) => config == candidate.config.digest(),
                Cri::None | Cri::Sandbox => true,
            }
    });
    let purpose = match record.cri {
        Cri::Sandbox => Purpose::Sandbox,
        Cri::None | Cri::Container(_) => Purpose::Run,
    };
    let name = label_of(&record.image, &target, api)?;
    let what = format!("the image {} ({target})", record.image);
    let mut found = of_candidates(&blobs, &what, name, candidates, signatures)?;
    found.purpose = purpose;
    found.launcher = match record.cri {
        Cri::Sandbox => Launcher::CriSandbox,
        Cri::Container(_) => Launcher::Cri,
        Cri::None => Launcher::Containerd,
    };
    found.attached = attached::in_content(&blobs, &found.name, &found.claims, api);
    Ok(found)
}

/// CRI records an image under its id too: then any name that stands for the same.
fn label_of(name: &str, target: &ImageDigest, api: &dyn Containerd) -> Result<String, LocateError> {
    if !name.starts_with("sha256:") {
        return Ok(name.to_owned());
    }
    let mut names = api.names(target)?;
    names.retain(|name| !name.starts_with("sha256:"));
    // `repository:tag` says more to a rule than `repository@sha256:…`
    names.sort_by_key(|name| (name.contains('@'), name.clone()));
    Ok(names.into_iter().next().unwrap_or_else(|| name.to_owned()))
}

/// The one image that is left of what a digest leads to.
pub(super) fn of_candidates(
    blobs: &Blobs,
    what: &str,
    name: String,
    candidates: Candidates,
    signatures: &Store,
) -> Result<Found, LocateError> {
    let Some(first) = candidates.images.first() else {
        return Err(inconsistent(format!(
            "{what} has no manifest whose layers are those of the container's snapshot: was its name moved to another image?"
        )));
    };
    let config = first.config.digest();
    let same = |other: &super::blobs::Candidate| other.config.digest() == config;
    if !candidates.images.iter().all(same) {
        return Err(inconsistent(format!(
            "{what} has several configurations with the layers of the container's snapshot"
        )));
    }
    let layers = blobs.layers(first)?;
    let config_bytes = first.config_bytes.clone();
    let manifests = candidates.images.into_iter();
    let manifests = manifests
        .map(|candidate| candidate.manifest_bytes)
        .collect();
    let indexes = &candidates.indexes;
    let claims = with_stored(&name, config, config_bytes, manifests, indexes, signatures)?;
    Ok(Found {
        engine: Engine::Containerd,
        purpose: Purpose::Run,
        launcher: Launcher::Containerd,
        name,
        config,
        claims,
        layers,
        attached: Vec::new(),
    })
}

/// A snapshot that an image's layers were unpacked to is called by their chain ID.
pub(super) fn chain(snapshot: &str) -> Result<Option<DiffId>, LocateError> {
    if snapshot.is_empty() {
        return Ok(None);
    }
    let chain = snapshot.parse();
    chain.map(Some).map_err(|_| {
        inconsistent(format!(
            "the container's snapshot was made over {snapshot}, which is no image's"
        ))
    })
}

/// The mount at the rootfs must be the one that containerd made for this container's snapshot.
pub(super) fn same_mount(
    rootfs: &Rootfs,
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
            let own = mountinfo::overlay_of(&options, &[]);
            let own = own.map_err(|e| inconsistent(e.to_string()))?;
            mount.kind == "overlay" && own.lower == overlay.lower && own.upper == overlay.upper
        }
        None => {
            let at = |path: &Path| format!("stat {}", path.display());
            let here = fs::fstat(rootfs).with_context(|| at(rootfs.path()))?;
            let source = mount.source.symlink_metadata();
            let source = source.with_context(|| at(&mount.source))?;
            mount.kind == "bind" && (source.dev(), source.ino()) == (here.st_dev, here.st_ino)
        }
    };
    if same {
        Ok(())
    } else {
        Err(inconsistent(format!(
            "what is mounted at {} is not the snapshot's {} mount of {}",
            rootfs.path().display(),
            mount.kind,
            mount.source.display()
        )))
    }
}
