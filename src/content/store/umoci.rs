//! Bundles that umoci(1) unpacked: umoci.json says from which manifest, an OCI layout beside the bundle
//! has it.
//!
//! Both are only a hint: what counts is that the manifest's signature holds and that the directory
//! has, file by file, what its layers say.

use super::{
    Found, LocateError, Purpose, blobs::Blobs, containerd::of_candidates, inconsistent,
    place::Place,
};
use crate::{oci::MAX_DOCUMENT, signatures::Store};
use serde::Deserialize;
use std::path::Path;
use verify::{
    digest::{BlobDigest, ImageDigest},
    profile::Launcher,
    rootfs::Engine,
};

const META: &str = "umoci.json";
const BLOBS: &str = "blobs/sha256";
/// A directory with more neighbours is no place for bundles.
const MAX_NEIGHBOURS: usize = 4096;

/// umoci's Meta (umoci, utils.go).
#[derive(Deserialize)]
struct Meta {
    umoci_version: String,
    from_descriptor_path: Walk,
}

#[derive(Deserialize)]
struct Walk {
    /// From the layout's index.json down to the manifest.
    descriptor_walk: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: ImageDigest,
}

/// `None` when `bundle` is not umoci's.
pub(super) fn find(bundle: &Path, signatures: &Store) -> Result<Option<Found>, LocateError> {
    let Some(meta) = Place::open(bundle)?.optional(META, MAX_DOCUMENT)? else {
        return Ok(None);
    };
    let shown = bundle.join(META);
    let meta: Meta = serde_json::from_slice(&meta)
        .map_err(|error| inconsistent(format!("{}: {error}", shown.display())))?;
    if meta.umoci_version != "2" {
        return Err(inconsistent(format!(
            "{} has version {}, only 2 is known",
            shown.display(),
            meta.umoci_version
        )));
    }
    let walk = meta.from_descriptor_path.descriptor_walk;
    let Some(manifest) = walk.last().map(|descriptor| descriptor.digest) else {
        return Err(inconsistent(format!(
            "{} names no manifest",
            shown.display()
        )));
    };
    let Some(blobs) = layout_with(bundle, manifest)? else {
        return Err(inconsistent(format!(
            "no OCI layout beside the bundle {} has the manifest {manifest} that umoci unpacked; keep the layout beside it",
            bundle.display()
        )));
    };
    let mut candidates = blobs.candidates(manifest)?;
    for index in walk.iter().rev().skip(1) {
        candidates.indexes.extend(blobs.blob(blob(index.digest))?);
    }
    let what = format!("the manifest {manifest} that umoci unpacked");
    // umoci.json has no name, and a tag of the layout would be anybody's word
    let name = manifest.to_string();
    let mut found = of_candidates(&blobs, &what, name, candidates, signatures)?;
    (found.engine, found.purpose) = (Engine::Umoci, Purpose::Run);
    found.launcher = Launcher::Other;
    Ok(Some(found))
}

fn layout_with(bundle: &Path, manifest: ImageDigest) -> Result<Option<Blobs>, LocateError> {
    let Some(beside) = bundle.parent() else {
        return Ok(None);
    };
    let neighbours = std::fs::read_dir(beside).map_err(anyhow::Error::new)?;
    for neighbour in neighbours.take(MAX_NEIGHBOURS).flatten() {
        // not a symbolic link's target, and nothing that cannot be opened
        if !neighbour.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(place) = Place::open(&neighbour.path()) else {
            continue;
        };
        let name = format!("{BLOBS}/{}", manifest.hex());
        if place.has("oci-layout").unwrap_or(false) && place.has(name).unwrap_or(false) {
            return Ok(Some(Blobs::new(place, BLOBS)));
        }
    }
    Ok(None)
}

fn blob(image: ImageDigest) -> BlobDigest {
    BlobDigest::from_bytes(*image.as_bytes())
}
