//! The signature store: an OCI image layout without layers that holds manifests, indexes, image
//! configurations, signatures, attestations and signature lists.
//!
//! What it gives is bytes for `verify` to judge. `cosign save` writes the same layout; descriptors
//! that we write carry two annotations more, by which others are skipped without being read.

pub(crate) mod artifact; // manifests that carry signatures
mod containers_storage;
mod import;
mod lookup; // finding entries of index.json
mod put;

pub use artifact::is_proof;
pub use import::{Imported, Progress};

use crate::oci::{self, Descriptor, Directory, IndexFile, ManifestFile};
use anyhow::{Context as _, Result, bail, ensure};
use artifact::{BUNDLE, proof};
use lookup::Entries;
use put::PREDICATE;
use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    sync::{Mutex, PoisonError},
};
use verify::{
    digest::{BlobDigest, ConfigDigest, ImageDigest, ListDigest},
    image::{Config, Index, Manifest},
    policy::{StoredList, StoredSignature},
    siglist::MAX_STATEMENT,
    signature::SIGN_PREDICATE,
};

/// cosign's marks in index.json (sigstore/cosign, pkg/oci/layout).
const KIND: &str = "kind";
const KIND_IMAGE: &str = "dev.cosignproject.cosign/image";
const KIND_INDEX: &str = "dev.cosignproject.cosign/imageIndex";
const KIND_SIGNATURES: &str = "dev.cosignproject.cosign/sigs";
const KIND_ATTESTATIONS: &str = "dev.cosignproject.cosign/atts";
/// Simple signing (sigstore/cosign, specs/SIGNATURE_SPEC.md).
pub(crate) const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// A signature list as an artifact: layer 0 the statement, layer 1 its detached signature (CMS, or a
/// Sigstore bundle), subject the image.
pub const LIST_ARTIFACT: &str = "application/vnd.attestrun.signature-list.v1";
/// in-toto Attestation Framework, "Statement": the payload's media type.
pub const LIST_STATEMENT: &str = "application/vnd.in-toto+json";
/// Detached CMS (RFC 5751, section 3.2.2).
pub const LIST_SIGNATURE: &str = "application/pkcs7-signature";

/// In index.json: which image a signature or list is about; which configuration a manifest names. A
/// wrong one can only hide what it stands on.
const SUBJECT: &str = "dev.attestrun.subject";
const IMAGE_CONFIG: &str = "dev.attestrun.config";

/// A list of a million programs has some 100 MB.
const MAX_LIST: u64 = MAX_STATEMENT as u64;

/// The store's directory.
#[derive(Debug)]
pub struct Store {
    directory: Directory,
    entries: Mutex<Option<Entries>>,
}

impl Store {
    /// Opens a store that exists.
    pub fn open(path: &Path) -> Result<Self> {
        let directory = Directory::open(path)?;
        directory.require_private()?;
        Ok(Self {
            directory,
            entries: Mutex::default(),
        })
    }

    /// Opens a store, or makes an empty one.
    pub fn create(path: &Path) -> Result<Self> {
        let directory = Directory::create(path)?;
        directory.require_private()?;
        Ok(Self {
            directory,
            entries: Mutex::default(),
        })
    }

    /// The image signatures of an image (a manifest or an index).
    pub fn signatures(&self, image: &ImageDigest) -> Result<Vec<StoredSignature>> {
        self.proofs(image, KIND_SIGNATURES, |predicate| {
            predicate == SIGN_PREDICATE
        })
    }

    /// The attestations about an image, whatever they state.
    pub fn attestations(&self, image: &ImageDigest) -> Result<Vec<StoredSignature>> {
        self.proofs(image, KIND_ATTESTATIONS, |predicate| {
            predicate != SIGN_PREDICATE
        })
    }

    /// Both: everything that a policy may ask for.
    pub fn signatures_and_attestations(&self, image: &ImageDigest) -> Result<Vec<StoredSignature>> {
        let mut all = self.signatures(image)?;
        all.extend(self.attestations(image)?);
        Ok(all)
    }

    /// cosign's sets of `kind`, and bundles whose predicate is `wanted`, as far as the index says.
    fn proofs(
        &self,
        image: &ImageDigest,
        kind: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<StoredSignature>> {
        let mut found = Vec::new();
        self.each(blob(image), |descriptor| {
            let said = |name: &str| descriptor.annotations.get(name).map(String::as_str);
            let bundle = descriptor.artifact_type.as_deref() == Some(BUNDLE)
                && said(PREDICATE).is_none_or(&wanted);
            if is_about_another(descriptor, image) || (said(KIND) != Some(kind) && !bundle) {
                return Ok(());
            }
            for layer in self.directory.manifest(descriptor)?.layers {
                let stored = proof(&self.directory, &layer)?;
                // Sets of cosign's own do not say in the index what they are about.
                let about = |stored: &StoredSignature| {
                    said(SUBJECT).is_some()
                        || stored
                            .claim()
                            .is_ok_and(|claim| claim.images.contains(image))
                };
                found.extend(stored.filter(about));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The signature lists whose subject is an image (a manifest or an index).
    pub fn lists(&self, image: &ImageDigest) -> Result<Vec<StoredList>> {
        let mut found = Vec::new();
        self.each(blob(image), |descriptor| {
            if descriptor.artifact_type.as_deref() == Some(LIST_ARTIFACT)
                && !is_about_another(descriptor, image)
            {
                let manifest = self.directory.manifest(descriptor)?;
                if manifest
                    .subject
                    .as_ref()
                    .is_some_and(|subject| subject.image() == *image)
                {
                    found.push(list(&self.directory, &manifest)?);
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The file of a list's statement, opened and not read again; `None` if the store does not have it.
    pub fn list_file(&self, list: &ListDigest) -> Result<Option<File>> {
        let digest = BlobDigest::from_bytes(*list.as_bytes());
        self.directory.blob_file(digest)
    }

    /// The manifests that name this image configuration.
    pub fn manifest_by_config(&self, config: &ConfigDigest) -> Result<Vec<(ImageDigest, Vec<u8>)>> {
        let mut found = Vec::new();
        let wanted = config.to_string();
        self.each(BlobDigest::from_bytes(*config.as_bytes()), |descriptor| {
            let hint = descriptor.annotations.get(IMAGE_CONFIG);
            if !is_image(descriptor)
                || descriptor.is_index()
                || hint.is_some_and(|hint| *hint != wanted)
            {
                return Ok(());
            }
            let content = self.directory.required(descriptor)?;
            if Manifest::parse(&content).is_ok_and(|manifest| manifest.config() == *config) {
                found.push((descriptor.image(), content));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The indexes that contain this manifest.
    pub fn indexes_containing(
        &self,
        manifest: &ImageDigest,
    ) -> Result<Vec<(ImageDigest, Vec<u8>)>> {
        let mut found = Vec::new();
        self.each(blob(manifest), |descriptor| {
            if is_image(descriptor) && descriptor.is_index() {
                let content = self.directory.required(descriptor)?;
                if Index::parse(&content).is_ok_and(|index| index.contains(manifest)) {
                    found.push((descriptor.image(), content));
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Stores an image manifest.
    pub fn put_manifest(&self, content: &[u8]) -> Result<ImageDigest> {
        let manifest = Manifest::parse(content)?;
        let media_type = oci::media_type_of(content, oci::MANIFEST)?;
        let descriptor = Descriptor::new(&media_type, content)
            .annotated(KIND, KIND_IMAGE)
            .annotated(IMAGE_CONFIG, manifest.config().to_string());
        self.change(|index| {
            self.directory.put(content)?;
            set(index, descriptor, None);
            Ok(())
        })?;
        Ok(manifest.digest())
    }

    /// Stores an image index.
    pub fn put_index(&self, content: &[u8]) -> Result<ImageDigest> {
        let parsed = Index::parse(content)?;
        let media_type = oci::media_type_of(content, oci::INDEX)?;
        let manifests: Vec<_> = parsed
            .manifests()
            .iter()
            .map(|m| m.digest.to_string())
            .collect();
        let descriptor = Descriptor::new(&media_type, content)
            .annotated(KIND, KIND_INDEX)
            .annotated(lookup::MANIFESTS, manifests.join(","));
        self.change(|index| {
            self.directory.put(content)?;
            set(index, descriptor, None);
            Ok(())
        })?;
        Ok(parsed.digest())
    }

    /// Stores an image configuration.
    pub fn put_config(&self, content: &[u8]) -> Result<ConfigDigest> {
        let config = Config::parse(content)?;
        let _lock = self.directory.lock()?;
        self.directory.put(content)?;
        Ok(config.digest())
    }

    /// An image configuration that was stored.
    pub fn config(&self, digest: &ConfigDigest) -> Result<Option<Vec<u8>>> {
        self.directory.blob(
            BlobDigest::from_bytes(*digest.as_bytes()),
            oci::MAX_DOCUMENT,
        )
    }

    /// Stores a signature list for images whose manifests or indexes are stored already.
    pub fn put_list(
        &self,
        images: &[ImageDigest],
        statement: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        ensure!(
            !images.is_empty(),
            "a signature list needs an image as its subject"
        );
        self.change(|index| {
            self.directory.put(oci::EMPTY_CONTENT)?;
            self.directory.put(statement)?;
            self.directory.put(signature)?;
            for image in images {
                let subject = index
                    .manifests
                    .iter()
                    .find(|descriptor| descriptor.image() == *image);
                let subject = subject.with_context(|| {
                    format!("the store has no manifest {image}; import the image's manifest first")
                })?;
                let manifest = serde_json::to_vec(&ManifestFile {
                    schema_version: 2,
                    media_type: oci::MANIFEST.into(),
                    artifact_type: Some(LIST_ARTIFACT.into()),
                    config: Descriptor::new(oci::EMPTY, oci::EMPTY_CONTENT),
                    layers: vec![
                        Descriptor::new(LIST_STATEMENT, statement),
                        Descriptor::new(envelope_of(signature), signature),
                    ],
                    subject: Some(Descriptor {
                        annotations: BTreeMap::new(),
                        ..subject.clone()
                    }),
                    annotations: BTreeMap::new(),
                })?;
                self.directory.put(&manifest)?;
                let mut descriptor =
                    Descriptor::new(oci::MANIFEST, &manifest).annotated(SUBJECT, image.to_string());
                descriptor.artifact_type = Some(LIST_ARTIFACT.into());
                set(index, descriptor, None);
            }
            Ok(())
        })
    }

    /// The entries that may be about `digest`; index.json is read when it has changed since.
    fn each(
        &self,
        digest: BlobDigest,
        mut look: impl FnMut(&Descriptor) -> Result<()>,
    ) -> Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match entries.take() {
            Some(known) if known.is_current(&self.directory)? => known,
            _ => Entries::open(&self.directory)?,
        };
        let about = current.about(&digest)?;
        *entries = Some(current);
        drop(entries);
        about.iter().try_for_each(&mut look)
    }

    fn change(&self, change: impl FnOnce(&mut IndexFile) -> Result<()>) -> Result<()> {
        let _lock = self.directory.lock()?;
        let mut index = self.directory.index()?;
        change(&mut index)?;
        lookup::write(&self.directory, &index)
    }
}

/// The statement and the signature of a list's artifact.
fn list(directory: &Directory, manifest: &ManifestFile) -> Result<StoredList> {
    let layer = |media_types: &[&str]| {
        let mut layers = manifest
            .layers
            .iter()
            .filter(|layer| media_types.contains(&layer.media_type.as_str()));
        match (layers.next(), layers.next()) {
            (Some(layer), None) => directory
                .blob(layer.digest, MAX_LIST)?
                .with_context(|| format!("signature list: {} is missing", layer.digest)),
            _ => bail!(
                "signature list: not exactly one layer of type {}",
                media_types.join(" or ")
            ),
        }
    };
    Ok(StoredList {
        statement: layer(&[LIST_STATEMENT])?.into(),
        signature: layer(&[LIST_SIGNATURE, BUNDLE])?,
    })
}

/// Which of the two envelopes a list's signature is in: DER never begins with a brace.
fn envelope_of(signature: &[u8]) -> &'static str {
    match signature.first() {
        Some(b'{') => BUNDLE,
        _ => LIST_SIGNATURE,
    }
}

fn blob(image: &ImageDigest) -> BlobDigest {
    BlobDigest::from_bytes(*image.as_bytes())
}

/// Puts `descriptor` where `former` or the same digest stands, or at the end.
fn set(index: &mut IndexFile, descriptor: Descriptor, former: Option<BlobDigest>) {
    let same =
        |known: &&mut Descriptor| known.digest == descriptor.digest || Some(known.digest) == former;
    match index.manifests.iter_mut().find(same) {
        Some(known) => *known = descriptor,
        None => index.manifests.push(descriptor),
    }
}

fn is_about_another(descriptor: &Descriptor, image: &ImageDigest) -> bool {
    descriptor
        .annotations
        .get(SUBJECT)
        .is_some_and(|subject| *subject != image.to_string())
}

/// An image's manifest or index, not a signature or an artifact.
fn is_image(descriptor: &Descriptor) -> bool {
    let kind = descriptor.annotations.get(KIND).map(String::as_str);
    matches!(kind, None | Some(KIND_IMAGE | KIND_INDEX))
        && descriptor.artifact_type.is_none()
        && (descriptor.is_index() || descriptor.is_manifest())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
