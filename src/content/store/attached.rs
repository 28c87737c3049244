//! Signatures that an engine keeps with an image: containers-storage as "big data", containerd as
//! images of their own. Read only, and beside the signature store's; what cannot be used of them is one
//! candidate less, with a note, never an error.

use super::{Attached, blobs::Blobs, containerd::Containerd};
use crate::oci::{Descriptor, ManifestFile};
use crate::signatures::{
    SIMPLE_SIGNING, Store,
    artifact::{proof_of, simple},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::collections::BTreeMap;
use verify::{
    digest::{BlobDigest, ImageDigest},
    image::{ClaimedImage, Image, Index},
    signature::StoredSignature,
};

/// Behind `<repository>:sha256-<hex>`: signatures, attestations, the list of referrers.
const TAGS: [&str; 3] = [".sig", ".att", ""];

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

/// One signature as containers-storage keeps it.
pub(crate) fn sigstore(blob: &[u8]) -> Result<StoredSignature, String> {
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
    simple(payload, json.annotations).ok_or_else(|| "a signature that has lost its bytes".into())
}

/// What the signature store has about `digest`, then what the engine has.
pub(super) fn beside(
    store: &Store,
    digest: &ImageDigest,
    attached: &[Attached],
) -> anyhow::Result<Vec<StoredSignature>> {
    let mut all = store.signatures_and_attestations(digest)?;
    all.extend(attached.iter().filter_map(|attached| match attached {
        Attached::Signature(signature) => Some(signature.clone()),
        Attached::Unusable(_) => None,
    }));
    Ok(all)
}

/// cosign's tags for what is about a manifest or index, when somebody has pulled them.
pub(super) fn in_content(
    blobs: &Blobs,
    name: &str,
    claims: &[ClaimedImage],
    api: &dyn Containerd,
) -> Vec<Attached> {
    let mut attached = Vec::new();
    let Some(repository) = repository(name) else {
        return attached;
    };
    let images = claims.iter().filter_map(|claim| Image::of(claim).ok());
    let digests: Vec<ImageDigest> = images.flat_map(|image| image.digests()).collect();
    let tag = |digest: &ImageDigest, tag| format!("{repository}:sha256-{}{tag}", digest.hex());
    let names: Vec<_> = (digests.iter().take(MAX))
        .flat_map(|digest| TAGS.map(|kind| tag(digest, kind)))
        .collect();
    let targets = match api.images(&names) {
        Ok(targets) => targets,
        Err(error) => {
            attached.push(Attached::Unusable(format!("{error:#}")));
            return attached;
        }
    };
    for (name, target) in names.iter().zip(targets) {
        let Some(target) = target else { continue };
        if let Err(why) = of_artifact(blobs, target, true, &mut attached) {
            attached.push(Attached::Unusable(format!("{name}: {why}")));
        }
    }
    attached
}

/// The signatures of a manifest, or of the manifests in a list of referrers.
fn of_artifact(
    blobs: &Blobs,
    target: ImageDigest,
    may_be_index: bool,
    attached: &mut Vec<Attached>,
) -> Result<(), String> {
    let bytes = content(blobs, BlobDigest::from_bytes(*target.as_bytes()))?;
    if may_be_index && let Ok(index) = Index::parse(&bytes) {
        for referrer in index.manifests().iter().take(MAX) {
            if let Err(why) = of_artifact(blobs, referrer.digest, false, attached) {
                attached.push(Attached::Unusable(why));
            }
        }
        return Ok(());
    }
    let manifest: ManifestFile =
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    attached.extend(manifest.layers.into_iter().take(MAX).map(|layer| {
        match of_layer(blobs, &layer) {
            Ok(signature) => Attached::Signature(signature),
            Err(why) => Attached::Unusable(why),
        }
    }));
    Ok(())
}

fn of_layer(blobs: &Blobs, layer: &Descriptor) -> Result<StoredSignature, String> {
    // blobs of a content store have one bound for all
    let found = proof_of(layer, |digest, _| content(blobs, digest))?;
    found.ok_or_else(|| {
        format!(
            "a signature of type {}, or without its bytes",
            layer.media_type
        )
    })
}

fn content(blobs: &Blobs, digest: BlobDigest) -> Result<Vec<u8>, String> {
    match blobs.blob(digest) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(format!("{digest} is not in the content store")),
        Err(error) => Err(error.to_string()),
    }
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
