//! Takes over signatures and lists, with the images that they are about, from where others left them.
//! Nothing is judged here; layers stay behind.

use super::artifact::{self, is_artifact, proof};
use super::{LIST_ARTIFACT, Store, containers_storage};
use crate::oci::{self, Descriptor, Directory, ManifestFile};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use verify::{
    digest::{BlobDigest, ImageDigest},
    image::{Index, Manifest},
    signature::StoredSignature,
};

/// What was taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Manifests and indexes.
    pub images: Vec<ImageDigest>,
    pub signatures: usize,
    pub lists: usize,
    /// What was left out: media types, or why.
    pub ignored: Vec<String>,
}

/// Who told of an import how much is done.
pub type Progress<'p> = &'p dyn Fn(u64, u64);

impl Store {
    /// Imports whatever `path` is: an OCI layout (`cosign save` makes one), a bundle's file,
    /// containerd's content store, or containers-storage.
    pub fn import(&self, path: &Path, progress: Progress<'_>) -> Result<Imported> {
        let has = |name: &str| path.join(name).exists();
        if path.is_file() {
            self.import_file(path)
        } else if has("oci-layout") {
            self.import_layout(path, progress)
        } else if has("blobs/sha256") {
            self.import_blobs(&Directory::open_blobs(path)?, progress)
        } else if containers_storage::is_one(path) {
            containers_storage::import(self, path, progress)
        } else {
            bail!(
                "it is neither an OCI layout, nor a Sigstore bundle, nor containerd's content store \
                 (…/io.containerd.content.v1.content), nor containers-storage (/var/lib/containers/storage)"
            )
        }
    }

    /// A bundle, as `cosign sign --bundle FILE` writes it.
    fn import_file(&self, path: &Path) -> Result<Imported> {
        let bundle = crate::read_bounded(path, artifact::MAX_BUNDLE)?;
        self.put(&StoredSignature::Bundle(bundle))?;
        Ok(Imported {
            signatures: 1,
            ..Imported::default()
        })
    }

    /// The images that a layout's index names, and every signature, attestation and list among its
    /// blobs: cosign leaves referrers there without an entry.
    fn import_layout(&self, path: &Path, progress: Progress<'_>) -> Result<Imported> {
        let from = Directory::open(path)?;
        let mut images = Imported::default();
        for descriptor in &from.index()?.manifests {
            if super::is_image(descriptor)
                && !from.manifest(descriptor).is_ok_and(|m| is_artifact(&m))
            {
                self.import_image(&from, descriptor.digest, &mut images)
                    .with_context(|| format!("import {}", descriptor.digest))?;
            }
        }
        let mut imported = self.import_blobs(&from, progress)?;
        imported.images.extend(images.images);
        imported.ignored.extend(images.ignored);
        imported.images.sort_unstable();
        imported.images.dedup();
        Ok(imported)
    }

    /// Every signature, attestation and list among the blobs, with its image where that is there too.
    fn import_blobs(&self, from: &Directory, progress: Progress<'_>) -> Result<Imported> {
        let mut imported = Imported::default();
        let mut found = Vec::new();
        let blobs = from.documents()?;
        let total = blobs.len() as u64;
        for (done, digest) in blobs.into_iter().enumerate() {
            progress(done as u64, total);
            // Pulled, pruned and half-written blobs come and go under a running engine.
            let Ok(Some(content)) = from.blob(digest, oci::MAX_DOCUMENT) else {
                continue;
            };
            if let Ok(manifest) = serde_json::from_slice::<ManifestFile>(&content)
                && is_artifact(&manifest)
            {
                found.push(manifest);
            }
        }
        progress(total, total);
        let (mut about, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let is_list =
            |manifest: &ManifestFile| manifest.artifact_type.as_deref() == Some(LIST_ARTIFACT);
        for manifest in &found {
            about.extend(manifest.subject.as_ref().map(Descriptor::image));
            if is_list(manifest) {
                continue;
            }
            for layer in &manifest.layers {
                // Sets grow: what was in the former one is in the next.
                if !seen.insert(serde_json::to_string(layer)?) {
                    continue;
                }
                match proof(from, layer).and_then(|stored| stored.map(|s| self.put(&s)).transpose())
                {
                    Ok(None) => {}
                    Ok(Some(images)) => {
                        imported.signatures += 1;
                        about.extend(images);
                    }
                    Err(error) => imported.ignored.push(format!("{error:#}")),
                }
            }
        }
        for image in &about {
            self.import_image(
                from,
                BlobDigest::from_bytes(*image.as_bytes()),
                &mut imported,
            )
            .with_context(|| format!("import {image}"))?;
        }
        // A list needs its image.
        for manifest in &found {
            if is_list(manifest) {
                let subject = manifest.subject.as_ref();
                let subject = subject
                    .context("the signature list has no subject")?
                    .image();
                let list = super::list(from, manifest)?;
                self.put_list(&[subject], &list.statement, &list.signature)?;
                imported.lists += 1;
            }
        }
        Ok(imported)
    }

    /// An image's manifest with its configuration, or an index with those of its manifests that are
    /// there: a layout may hold one platform only.
    fn import_image(
        &self,
        from: &Directory,
        digest: BlobDigest,
        imported: &mut Imported,
    ) -> Result<()> {
        let Some(content) = from.blob(digest, oci::MAX_DOCUMENT)? else {
            return Ok(());
        };
        if let Ok(index) = Index::parse(&content) {
            for child in index.manifests() {
                let digest = BlobDigest::from_bytes(*child.digest.as_bytes());
                if let Some(manifest) = from.blob(digest, oci::MAX_DOCUMENT)? {
                    self.import_manifest(from, &manifest, imported)?;
                }
            }
            imported.images.push(self.put_index(&content)?);
            return Ok(());
        }
        self.import_manifest(from, &content, imported)
    }

    fn import_manifest(
        &self,
        from: &Directory,
        content: &[u8],
        imported: &mut Imported,
    ) -> Result<()> {
        let manifest = match Manifest::parse(content) {
            Ok(manifest) => manifest,
            // An artifact among the images (a build's provenance, say).
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
}
