//! Takes over what `cosign save`, `attestctl` or a registry copy left in an OCI image layout.

use super::{KIND, KIND_SIGNATURES, LIST_ARTIFACT, SIGNATURE, SIMPLE_SIGNING, Store};
use crate::oci::{self, Descriptor, Directory};
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::path::Path;
use verify::{
    digest::{BlobDigest, ImageDigest},
    image::{Index, Manifest},
};

/// What was taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Manifests and indexes.
    pub images: Vec<ImageDigest>,
    pub signatures: usize,
    pub lists: usize,
    /// Media or artifact types that were left out.
    pub ignored: Vec<String>,
}

/// The part of a simple-signing payload that says what it is about (SIGNATURE_SPEC.md).
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}
#[derive(Deserialize)]
struct Critical {
    image: Signed,
}
#[derive(Deserialize)]
struct Signed {
    #[serde(rename = "docker-manifest-digest")]
    digest: ImageDigest,
}

impl Store {
    /// Copies manifests, indexes, configurations, simple signatures and signature lists of the
    /// layout at `path`; layers stay behind. Nothing is judged here.
    pub fn import_layout(&self, path: &Path) -> Result<Imported> {
        let from = Directory::open(path)?;
        let mut imported = Imported::default();
        let descriptors = from.index()?.manifests;
        // Subjects first: a list needs its image.
        for descriptor in &descriptors {
            self.import_image(&from, descriptor, &mut imported)
                .with_context(|| format!("import {} of {}", descriptor.digest, path.display()))?;
        }
        for descriptor in &descriptors {
            self.import_proofs(&from, descriptor, &mut imported)
                .with_context(|| format!("import {} of {}", descriptor.digest, path.display()))?;
        }
        Ok(imported)
    }

    fn import_image(
        &self,
        from: &Directory,
        descriptor: &Descriptor,
        imported: &mut Imported,
    ) -> Result<()> {
        if descriptor.is_index() {
            let content = from.required(descriptor)?;
            for child in Index::parse(&content)?.manifests() {
                // A layout may hold one platform only.
                let digest = BlobDigest::from_bytes(*child.digest.as_bytes());
                if let Some(manifest) = from.blob(digest, oci::MAX_DOCUMENT)? {
                    self.import_manifest(from, &manifest, imported)?;
                }
            }
            imported.images.push(self.put_index(&content)?);
        } else if super::is_image(descriptor) {
            let content = from.required(descriptor)?;
            self.import_manifest(from, &content, imported)?;
        }
        Ok(())
    }

    fn import_manifest(
        &self,
        from: &Directory,
        content: &[u8],
        imported: &mut Imported,
    ) -> Result<()> {
        let manifest = match Manifest::parse(content) {
            Ok(manifest) => manifest,
            // An artifact among the images (an attestation, say).
            Err(error) => {
                imported.ignored.push(error.to_string());
                return Ok(());
            }
        };
        let config = BlobDigest::from_bytes(*manifest.config().as_bytes());
        if let Some(config) = from.blob(config, oci::MAX_DOCUMENT)? {
            self.put_config(&config)?;
        }
        imported.images.push(self.put_manifest(content)?);
        Ok(())
    }

    fn import_proofs(
        &self,
        from: &Directory,
        descriptor: &Descriptor,
        imported: &mut Imported,
    ) -> Result<()> {
        if descriptor.is_index() || !descriptor.is_manifest() {
            return Ok(());
        }
        let manifest = from.manifest(descriptor)?;
        let artifact = manifest
            .artifact_type
            .as_deref()
            .or(descriptor.artifact_type.as_deref());
        if artifact == Some(LIST_ARTIFACT) {
            let subject = manifest
                .subject
                .as_ref()
                .context("the signature list has no subject")?
                .image();
            let list = super::list(from, &manifest)?;
            self.put_list(&[subject], &list.statement, &list.cms)?;
            imported.lists += 1;
        } else if descriptor.annotations.get(KIND).map(String::as_str) == Some(KIND_SIGNATURES) {
            for layer in &manifest.layers {
                let mut annotations = layer.annotations.clone();
                let signature = annotations.remove(SIGNATURE);
                let (SIMPLE_SIGNING, Some(signature)) = (layer.media_type.as_str(), signature)
                else {
                    imported.ignored.push(layer.media_type.clone());
                    continue;
                };
                let payload = from.required(layer)?;
                let about: Payload =
                    serde_json::from_slice(&payload).context("the signature's payload")?;
                self.put_simple_signature(
                    &about.critical.image.digest,
                    &payload,
                    &signature,
                    &annotations,
                )?;
                imported.signatures += 1;
            }
        } else if !super::is_image(descriptor) {
            let kind = descriptor.annotations.get(KIND).cloned();
            imported
                .ignored
                .push(kind.or(artifact.map(str::to_owned)).unwrap_or_default());
        }
        Ok(())
    }
}
