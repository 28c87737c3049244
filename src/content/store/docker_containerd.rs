//! Docker with containerd's image store (moby, daemon/containerd/image_snapshot.go): the container's
//! files are snapshots of its own over the image's, and config.v2.json has the manifest's digest.
//!
//! ```text
//! config.v2.json: Driver = snapshotter, ImageManifest = the platform's manifest
//! snapshot <id> ─parent▶ <id>-init (Docker's stubs) ─parent▶ the image's chain ID
//! ```

use super::{
    Found, LocateError, attached,
    blobs::Blobs,
    claims::chain_ids,
    containerd::{self, Containerd, OVERLAYFS},
    docker::Container,
    inconsistent,
    mountinfo::Overlay,
    place::Place,
    rootfs::Rootfs,
};
use crate::signatures::Store;
use std::path::Path;
use verify::{id::ContainerId, rootfs::Engine};

/// `root` is containerd's.
pub(super) fn find(
    root: &Path,
    rootfs: &Rootfs,
    overlay: &Overlay,
    id: &ContainerId,
    container: Container,
    api: &dyn Containerd,
    signatures: &Store,
) -> Result<Found, LocateError> {
    if container.driver != OVERLAYFS {
        return Err(LocateError::Driver {
            path: rootfs.path().to_owned(),
            driver: format!("Docker's {}", container.driver),
        });
    }
    let Some(manifest) = container.image_manifest else {
        return Err(inconsistent(format!(
            "Docker has not recorded the manifest of container {id} (made by a Docker before 28, or from another image store?); make it again"
        )));
    };
    let (snapshot, _) = api.snapshot(OVERLAYFS, id.as_str(), &container.config.image)?;
    containerd::same_mount(rootfs, Some(overlay), &snapshot.mounts)?;
    let parent = match snapshot.parent == format!("{id}-init") {
        true => api.parent(OVERLAYFS, &snapshot.parent)?,
        false => snapshot.parent,
    };
    let parent = containerd::chain(&parent)?;
    let blobs = Blobs::new(Place::open(root)?, containerd::BLOBS);
    let mut candidates = blobs.candidates(manifest.digest)?;
    candidates.images.retain(|candidate| {
        candidate.manifest.digest() == manifest.digest
            && chain_ids(candidate.config.diff_ids()).last().copied() == parent
    });
    // Image is the manifest or the index that holds it: a signature may be on either
    if let Ok(target) = container.image.parse()
        && target != manifest.digest
        && let Ok(above) = blobs.candidates(target)
    {
        candidates.indexes.extend(above.indexes);
    }
    let name = container.config.image;
    let what = format!("container {id}'s image {name} ({})", manifest.digest);
    let mut found = containerd::of_candidates(&blobs, &what, name, candidates, signatures)?;
    found.engine = Engine::Docker;
    found.attached = attached::in_content(&blobs, &found.name, &found.claims, api);
    Ok(found)
}
