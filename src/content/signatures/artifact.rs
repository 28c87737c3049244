//! Manifests that carry signatures, attestations and lists, whoever wrote them and wherever they lie.

use super::{LIST_ARTIFACT, SIGNATURE, SIMPLE_SIGNING};
use crate::oci::{self, Descriptor, Directory, ManifestFile};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use verify::digest::BlobDigest;
use verify::signature::{SimpleSignature, StoredEnvelope, StoredSignature};

/// An attestation of cosign 1 and 2 (sigstore/cosign, `specs/SIGNATURE_SPEC.md`; DSSE).
pub(super) const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";
/// A Sigstore bundle (sigstore/cosign, `specs/BUNDLE_SPEC.md`), as cosign 3 writes it.
pub(super) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// All versions of it, in both spellings.
const BUNDLES: &str = "application/vnd.dev.sigstore.bundle";
/// Scanners' reports are long.
pub(super) const MAX_BUNDLE: u64 = 16 << 20;

/// Does a blob of this type hold a signature or an attestation?
pub fn is_proof(media_type: &str) -> bool {
    media_type == SIMPLE_SIGNING || media_type == ENVELOPE || media_type.starts_with(BUNDLES)
}

/// Is this a manifest of ours or of cosign's, not an image's?
pub(super) fn is_artifact(manifest: &ManifestFile) -> bool {
    manifest.artifact_type.as_deref() == Some(LIST_ARTIFACT)
        || manifest
            .layers
            .iter()
            .any(|layer| is_proof(&layer.media_type))
}

/// The signature or attestation in a layer; `None` when it is neither, or has lost its signature.
pub(super) fn proof(from: &Directory, layer: &Descriptor) -> Result<Option<StoredSignature>> {
    proof_of(layer, |digest, max| {
        from.blob(digest, max)?
            .with_context(|| format!("the signature's blob {digest} is missing"))
    })
}

/// The same wherever blobs come from: `blob` gives one of at most so many bytes.
pub(crate) fn proof_of<E>(
    layer: &Descriptor,
    blob: impl FnOnce(BlobDigest, u64) -> Result<Vec<u8>, E>,
) -> Result<Option<StoredSignature>, E> {
    let content = || {
        let max = match layer.media_type.as_str() {
            SIMPLE_SIGNING => oci::MAX_DOCUMENT,
            _ => MAX_BUNDLE,
        };
        blob(layer.digest, max)
    };
    let annotations = layer.annotations.clone();
    Ok(match layer.media_type.as_str() {
        SIMPLE_SIGNING if annotations.contains_key(SIGNATURE) => simple(content()?, annotations),
        ENVELOPE => Some(StoredSignature::Envelope(StoredEnvelope {
            envelope: content()?,
            annotations,
        })),
        kind if kind.starts_with(BUNDLES) => Some(StoredSignature::Bundle(content()?)),
        _ => None,
    })
}

/// A payload with the annotations that came with it; `None` where its signature is not among them.
pub(crate) fn simple(
    payload: Vec<u8>,
    mut annotations: BTreeMap<String, String>,
) -> Option<StoredSignature> {
    let signature_b64 = annotations.remove(SIGNATURE)?;
    Some(StoredSignature::Simple(SimpleSignature {
        payload,
        signature_b64,
        annotations,
    }))
}
