//! Writing signatures: what cosign 2 wrote in sets, one set per image; bundles as artifacts of their own.

use super::artifact::{BUNDLE, ENVELOPE};
use super::{
    KIND, KIND_ATTESTATIONS, KIND_SIGNATURES, SIGNATURE, SIMPLE_SIGNING, SUBJECT, Store, set,
};
use crate::oci::{self, Descriptor, ManifestFile};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use verify::{
    digest::{BlobDigest, ImageDigest},
    signature::{SIGN_PREDICATE, StoredSignature},
};

/// Annotations of bundles' manifests (sigstore/cosign, `specs/BUNDLE_SPEC.md`).
const CONTENT: &str = "dev.sigstore.bundle.content";
pub(super) const PREDICATE: &str = "dev.sigstore.bundle.predicateType";

impl Store {
    /// Stores a signature or attestation under every image that it names; nothing is verified.
    pub fn put(&self, stored: &StoredSignature) -> Result<Vec<ImageDigest>> {
        let claim = stored
            .claim()
            .context("reading what the signature is about")?;
        ensure!(!claim.images.is_empty(), "the signature names no image");
        for image in &claim.images {
            match stored {
                StoredSignature::Simple(simple) => {
                    let mut layer = Descriptor::new(SIMPLE_SIGNING, &simple.payload);
                    layer.annotations = simple.annotations.clone();
                    let layer = layer.annotated(SIGNATURE, &simple.signature_b64);
                    self.put_into_set(KIND_SIGNATURES, image, &simple.payload, layer)?;
                }
                StoredSignature::Envelope(envelope) => {
                    let mut layer = Descriptor::new(ENVELOPE, &envelope.envelope);
                    layer.annotations = envelope.annotations.clone();
                    self.put_into_set(KIND_ATTESTATIONS, image, &envelope.envelope, layer)?;
                }
                StoredSignature::Bundle(bundle) => {
                    let predicate = claim.predicate_type.as_deref().unwrap_or(SIGN_PREDICATE);
                    self.put_bundle(image, bundle, predicate)?;
                }
            }
        }
        Ok(claim.images)
    }

    /// An artifact whose subject is the image: a referrer (image-spec 1.1).
    fn put_bundle(&self, image: &ImageDigest, bundle: &[u8], predicate: &str) -> Result<()> {
        self.change(|index| {
            let known = index
                .manifests
                .iter()
                .find(|descriptor| descriptor.image() == *image);
            let subject = match known {
                Some(known) => Descriptor {
                    annotations: BTreeMap::new(),
                    ..known.clone()
                },
                // Engines other than docker keep the manifest themselves; its size is not known here.
                None => Descriptor {
                    digest: BlobDigest::from_bytes(*image.as_bytes()),
                    size: 0,
                    ..Descriptor::new(oci::MANIFEST, b"")
                },
            };
            self.directory.put(oci::EMPTY_CONTENT)?;
            self.directory.put(bundle)?;
            let manifest = serde_json::to_vec(&ManifestFile {
                schema_version: 2,
                media_type: oci::MANIFEST.into(),
                artifact_type: Some(BUNDLE.into()),
                config: Descriptor::new(oci::EMPTY, oci::EMPTY_CONTENT),
                layers: vec![Descriptor::new(BUNDLE, bundle)],
                subject: Some(subject),
                annotations: [(CONTENT, "dsse-envelope"), (PREDICATE, predicate)]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            })?;
            self.directory.put(&manifest)?;
            let mut descriptor = Descriptor::new(oci::MANIFEST, &manifest)
                .annotated(PREDICATE, predicate)
                .annotated(SUBJECT, image.to_string());
            descriptor.artifact_type = Some(BUNDLE.into());
            // It may have come before its image, with less known about its subject.
            let same = |known: &&Descriptor| {
                known.artifact_type == descriptor.artifact_type
                    && known.annotations == descriptor.annotations
                    && self.directory.manifest(known).is_ok_and(|manifest| {
                        manifest.layers.first().map(|layer| layer.digest)
                            == Some(BlobDigest::of(bundle))
                    })
            };
            let former = index.manifests.iter().find(same).map(|known| known.digest);
            set(index, descriptor, former);
            Ok(())
        })
    }

    /// Beside those that the image has.
    fn put_into_set(
        &self,
        kind: &str,
        image: &ImageDigest,
        content: &[u8],
        layer: Descriptor,
    ) -> Result<()> {
        self.change(|index| {
            let about = |descriptor: &&Descriptor| {
                descriptor.annotations.get(KIND).map(String::as_str) == Some(kind)
                    && descriptor.annotations.get(SUBJECT) == Some(&image.to_string())
            };
            let former = index.manifests.iter().find(about).cloned();
            let mut layers = match &former {
                Some(descriptor) => self.directory.manifest(descriptor)?.layers,
                None => Vec::new(),
            };
            if !layers.contains(&layer) {
                layers.push(layer.clone());
            }
            self.directory.put(content)?;
            let config = set_config(&layers)?;
            self.directory.put(&config)?;
            let manifest = serde_json::to_vec(&ManifestFile {
                schema_version: 2,
                media_type: oci::MANIFEST.into(),
                artifact_type: None,
                config: Descriptor::new(oci::CONFIG, &config),
                layers,
                subject: None,
                annotations: BTreeMap::new(),
            })?;
            self.directory.put(&manifest)?;
            let descriptor = Descriptor::new(oci::MANIFEST, &manifest)
                .annotated(KIND, kind)
                .annotated(SUBJECT, image.to_string());
            set(index, descriptor, former.map(|former| former.digest));
            Ok(())
        })
    }
}

/// The configuration that cosign gives a set of signatures: the payloads as if they were layers.
fn set_config(layers: &[Descriptor]) -> Result<Vec<u8>> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest).collect();
    let zero = "0001-01-01T00:00:00Z";
    Ok(serde_json::to_vec(&serde_json::json!({
        "architecture": "", "created": zero, "os": "",
        "history": vec![serde_json::json!({"created": zero}); layers.len()],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {},
    }))?)
}
