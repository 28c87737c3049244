//! Signatures that an engine keeps with an image: containers-storage as "big data", containerd as
//! images of their own. Read only, and beside the signature store's; what cannot be used of them is one
//! candidate less, with a note, never an error.

use super::{Attached, Found, blobs::Blobs, containerd::Containerd};
use crate::oci::ManifestFile;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::collections::BTreeMap;
use verify::{
    digest::{BlobDigest, ImageDigest},
    image::Image,
    policy::StoredSignature,
};

/// cosign's marks (sigstore/cosign, specs/SIGNATURE_SPEC.md).
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// So many are looked at for one image.
const MAX: usize = 64;

/// Begins a Sigstore signature among those of containers/image (internal/signature).
const SIGSTORE: &[u8] = b"\0sigstore-json\n";

/// containers/image, internal/signature/sigstore.go.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SigstoreJson {
    mime_type: String,
    payload: String,
    annotations: BTreeMap<String, String>,
}

/// `sizes`: how the signatures follow each other in `blob`.
pub(super) fn in_big_data(blob: &[u8], sizes: &[usize], attached: &mut Vec<Attached>) {
    let mut rest = blob;
    for &size in sizes.iter().take(MAX) {
        let Some((one, tail)) = rest.split_at_checked(size) else {
            attached.push(Attached::Unusable("a signature that is cut off".into()));
            return;
        };
        rest = tail;
        attached.push(match sigstore(one) {
            Ok(signature) => Attached::Signature(signature),
            Err(why) => Attached::Unusable(why),
        });
    }
}

fn sigstore(blob: &[u8]) -> Result<StoredSignature, String> {
    let json = blob
        .strip_prefix(SIGSTORE)
        .ok_or("a signature that is not Sigstore's (GPG?)")?;
    let json: SigstoreJson = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if json.mime_type != SIMPLE_SIGNING {
        return Err(format!("a signature of type {}", json.mime_type));
    }
    let payload = STANDARD
        .decode(&json.payload)
        .map_err(|error| error.to_string())?;
    simple(payload, json.annotations)
}

fn simple(
    payload: Vec<u8>,
    mut annotations: BTreeMap<String, String>,
) -> Result<StoredSignature, String> {
    let signature_b64 = annotations
        .remove(SIGNATURE)
        .ok_or_else(|| format!("a signature without the annotation {SIGNATURE}"))?;
    Ok(StoredSignature {
        payload,
        signature_b64,
        annotations,
    })
}

/// cosign's tags for what is about a manifest or index (`<repository>:sha256-<hex>.sig`), when somebody
/// has pulled them.
pub(super) fn in_content(blobs: &Blobs, found: &Found, api: &dyn Containerd) -> Vec<Attached> {
    let mut attached = Vec::new();
    let Some(repository) = repository(&found.name) else {
        return attached;
    };
    let images = found
        .claims
        .iter()
        .filter_map(|claim| Image::of(claim).ok());
    let digests: Vec<ImageDigest> = images.flat_map(|image| image.digests()).collect();
    let tags: Vec<_> = (digests.iter().take(MAX))
        .map(|digest| format!("{repository}:sha256-{}.sig", digest.hex()))
        .collect();
    let targets = match api.images(&tags) {
        Ok(targets) => targets,
        Err(error) => {
            attached.push(Attached::Unusable(format!("{error:#}")));
            return attached;
        }
    };
    for (tag, target) in tags.iter().zip(targets) {
        let Some(target) = target else { continue };
        match of_artifact(blobs, target) {
            Ok(signatures) => attached.extend(signatures),
            Err(why) => attached.push(Attached::Unusable(format!("{tag}: {why}"))),
        }
    }
    attached
}

fn of_artifact(blobs: &Blobs, target: ImageDigest) -> Result<Vec<Attached>, String> {
    let blob = |digest: BlobDigest| match blobs.blob(digest) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(format!("{digest} is not in the content store")),
        Err(error) => Err(error.to_string()),
    };
    let manifest = blob(BlobDigest::from_bytes(*target.as_bytes()))?;
    let manifest: ManifestFile =
        serde_json::from_slice(&manifest).map_err(|error| error.to_string())?;
    let layers = manifest.layers.into_iter().take(MAX);
    let signatures = layers.map(|layer| {
        let signature = match layer.media_type.as_str() {
            SIMPLE_SIGNING => {
                blob(layer.digest).and_then(|payload| simple(payload, layer.annotations))
            }
            other => Err(format!("a signature of type {other}")),
        };
        match signature {
            Ok(signature) => Attached::Signature(signature),
            Err(why) => Attached::Unusable(why),
        }
    });
    Ok(signatures.collect())
}

/// A name without tag and digest; a colon before the last slash belongs to a registry's port.
fn repository(name: &str) -> Option<&str> {
    let name = name.split('@').next()?;
    let repository = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    };
    (!repository.is_empty() && !name.starts_with("sha256:")).then_some(repository)
}
