//! OCI and Docker manifests, indexes and image configurations, parsed from bytes whose digest is known.
//!
//! Proves: which layers (diff-IDs) a manifest digest stands for. Says nothing about who made them.

use crate::digest::{BlobDigest, ConfigDigest, DiffId, ImageDigest, NotADigest};
use serde::{Deserialize, de::IgnoredAny};
use std::collections::BTreeMap;

/// A registry takes manifests up to 4 MiB (OCI distribution-spec 1.1, "Pushing Manifests").
pub const MAX_DOCUMENT: usize = 4 * 1024 * 1024;
/// Overlay mounts end far below this; it bounds work on hostile manifests.
const MAX_LAYERS: usize = 1024;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("{what} has {bytes} bytes, more than {MAX_DOCUMENT}")]
    TooLong { what: &'static str, bytes: usize },
    #[error("{what} is malformed: {detail}")]
    Malformed { what: &'static str, detail: String },
    #[error("{what} has schemaVersion {found}; only 2 is known")]
    Schema { what: &'static str, found: u64 },
    #[error("{what} has media type `{found}`")]
    MediaType { what: &'static str, found: String },
    /// One document read as a manifest by one tool and as an index by another (CVE-2021-41190).
    #[error("{what} also has the field `{field}` of another kind of document")]
    Ambiguous {
        what: &'static str,
        field: &'static str,
    },
    #[error("{what}: {source}")]
    Digest {
        what: &'static str,
        source: NotADigest,
    },
    #[error("manifest names config {expected}, the given config is {actual}")]
    OtherConfig {
        expected: ConfigDigest,
        actual: ConfigDigest,
    },
    #[error("manifest has {layers} layers, its config {diff_ids} diff-IDs")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("more than {MAX_LAYERS} layers")]
    TooManyLayers,
    #[error("index {index} does not contain manifest {manifest}")]
    NotInIndex {
        index: ImageDigest,
        manifest: ImageDigest,
    },
}

/// What an engine's store says the container was made from: good enough to find signatures with,
/// never to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedImage {
    /// The engine's name for it, a mutable label (`localhost/demo:latest`).
    pub name: String,
    pub manifest_bytes: Vec<u8>,
    pub config_bytes: Vec<u8>,
    /// Indexes that are said to contain the manifest: a signature may be on these.
    pub index_bytes: Vec<Vec<u8>>,
}

/// A layer of a manifest (OCI image-spec, "descriptor").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: BlobDigest,
    pub size: u64,
}

/// A manifest within an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestDescriptor {
    pub media_type: String,
    pub digest: ImageDigest,
    pub size: u64,
    /// `linux/amd64`, when the index says so.
    pub platform: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    digest: ImageDigest,
    config: ConfigDigest,
    layers: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    digest: ImageDigest,
    manifests: Vec<ManifestDescriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    digest: ConfigDigest,
    diff_ids: Vec<DiffId>,
}

/// A manifest with the config that it names, and the indexes that contain it: one image by content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    name: String,
    manifest: Manifest,
    config: Config,
    indexes: Vec<ImageDigest>,
}

impl Manifest {
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        const WHAT: &str = "image manifest";
        let wire: ManifestWire = json(WHAT, bytes)?;
        schema(WHAT, wire.schema_version)?;
        media_type(
            WHAT,
            wire.media_type.as_deref(),
            &[OCI_MANIFEST, DOCKER_MANIFEST],
        )?;
        unambiguous(WHAT, "manifests", wire.manifests.is_some())?;
        unambiguous(WHAT, "fsLayers", wire.fs_layers.is_some())?;
        media_type(
            "image config descriptor",
            Some(&wire.config.media_type),
            &[OCI_CONFIG, DOCKER_CONFIG],
        )?;
        if wire.layers.len() > MAX_LAYERS {
            return Err(ImageError::TooManyLayers);
        }
        let layers = wire.layers.into_iter().map(|layer| {
            Ok(Descriptor {
                digest: digest("layer digest", &layer.digest)?,
                media_type: layer.media_type,
                size: layer.size,
            })
        });
        Ok(Self {
            digest: ImageDigest::of(bytes),
            config: digest("config digest", &wire.config.digest)?,
            layers: layers.collect::<Result<_, _>>()?,
            annotations: wire.annotations.unwrap_or_default(),
        })
    }
    pub fn digest(&self) -> ImageDigest {
        self.digest
    }
    pub fn config(&self) -> ConfigDigest {
        self.config
    }
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }
}

impl Index {
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        const WHAT: &str = "image index";
        let wire: IndexWire = json(WHAT, bytes)?;
        schema(WHAT, wire.schema_version)?;
        media_type(WHAT, wire.media_type.as_deref(), &[OCI_INDEX, DOCKER_INDEX])?;
        unambiguous(WHAT, "config", wire.config.is_some())?;
        unambiguous(WHAT, "layers", wire.layers.is_some())?;
        unambiguous(WHAT, "fsLayers", wire.fs_layers.is_some())?;
        let manifests = wire.manifests.into_iter().map(|entry| {
            Ok(ManifestDescriptor {
                digest: digest("manifest digest", &entry.digest)?,
                media_type: entry.media_type,
                size: entry.size,
                platform: entry
                    .platform
                    .map(|p| format!("{}/{}", p.os, p.architecture)),
            })
        });
        Ok(Self {
            digest: ImageDigest::of(bytes),
            manifests: manifests.collect::<Result<_, _>>()?,
        })
    }
    pub fn digest(&self) -> ImageDigest {
        self.digest
    }
    pub fn manifests(&self) -> &[ManifestDescriptor] {
        &self.manifests
    }
    pub fn contains(&self, manifest: &ImageDigest) -> bool {
        self.manifests.iter().any(|m| m.digest == *manifest)
    }
}

impl Config {
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        const WHAT: &str = "image config";
        let wire: ConfigWire = json(WHAT, bytes)?;
        if wire.rootfs.kind != "layers" {
            return Err(ImageError::Malformed {
                what: WHAT,
                detail: format!("rootfs.type is `{}`, not `layers`", clip(&wire.rootfs.kind)),
            });
        }
        if wire.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(ImageError::TooManyLayers);
        }
        let diff_ids = wire.rootfs.diff_ids.iter().map(|d| digest("diff-ID", d));
        Ok(Self {
            digest: ConfigDigest::of(bytes),
            diff_ids: diff_ids.collect::<Result<_, _>>()?,
        })
    }
    pub fn digest(&self) -> ConfigDigest {
        self.digest
    }
    pub fn diff_ids(&self) -> &[DiffId] {
        &self.diff_ids
    }
}

impl Image {
    /// Parses the claim and checks that its parts belong together, each by its own bytes.
    pub fn of(claimed: &ClaimedImage) -> Result<Self, ImageError> {
        let manifest = Manifest::parse(&claimed.manifest_bytes)?;
        let config = Config::parse(&claimed.config_bytes)?;
        if manifest.config != config.digest {
            return Err(ImageError::OtherConfig {
                expected: manifest.config,
                actual: config.digest,
            });
        }
        if manifest.layers.len() != config.diff_ids.len() {
            return Err(ImageError::LayerCount {
                layers: manifest.layers.len(),
                diff_ids: config.diff_ids.len(),
            });
        }
        let mut indexes = Vec::new();
        for bytes in &claimed.index_bytes {
            let index = Index::parse(bytes)?;
            if !index.contains(&manifest.digest) {
                return Err(ImageError::NotInIndex {
                    index: index.digest,
                    manifest: manifest.digest,
                });
            }
            if !indexes.contains(&index.digest) {
                indexes.push(index.digest);
            }
        }
        Ok(Self {
            name: claimed.name.clone(),
            manifest,
            config,
            indexes,
        })
    }
    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn manifest_digest(&self) -> ImageDigest {
        self.manifest.digest
    }
    pub fn config_digest(&self) -> ConfigDigest {
        self.config.digest
    }
    pub fn diff_ids(&self) -> &[DiffId] {
        &self.config.diff_ids
    }
    pub fn layers(&self) -> &[Descriptor] {
        &self.manifest.layers
    }
    /// Every digest that speaks for this image: the manifest's, then those of the indexes.
    pub fn digests(&self) -> Vec<ImageDigest> {
        let mut all = vec![self.manifest.digest];
        all.extend(&self.indexes);
        all
    }
}

// What is read of each document. Unknown fields are ignored, as the image-spec demands; a field that
// is read and occurs twice is an error (serde derive).

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestWire {
    schema_version: u64,
    media_type: Option<String>,
    config: DescriptorWire,
    layers: Vec<DescriptorWire>,
    annotations: Option<BTreeMap<String, String>>,
    manifests: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexWire {
    schema_version: u64,
    media_type: Option<String>,
    manifests: Vec<DescriptorWire>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DescriptorWire {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<PlatformWire>,
}

#[derive(Deserialize)]
struct PlatformWire {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct ConfigWire {
    rootfs: RootfsWire,
}

#[derive(Deserialize)]
struct RootfsWire {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<String>,
}

fn json<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, ImageError> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(ImageError::TooLong {
            what,
            bytes: bytes.len(),
        });
    }
    serde_json::from_slice(bytes).map_err(|e| ImageError::Malformed {
        what,
        detail: e.to_string(),
    })
}

fn schema(what: &'static str, found: u64) -> Result<(), ImageError> {
    match found {
        2 => Ok(()),
        found => Err(ImageError::Schema { what, found }),
    }
}

/// A document may leave its media type out (OCI); if it names one, it is one of `known`.
fn media_type(what: &'static str, found: Option<&str>, known: &[&str]) -> Result<(), ImageError> {
    match found {
        Some(found) if !known.contains(&found) => Err(ImageError::MediaType {
            what,
            found: clip(found),
        }),
        _ => Ok(()),
    }
}

fn unambiguous(what: &'static str, field: &'static str, found: bool) -> Result<(), ImageError> {
    if found {
        return Err(ImageError::Ambiguous { what, field });
    }
    Ok(())
}

fn digest<D: std::str::FromStr<Err = NotADigest>>(
    what: &'static str,
    text: &str,
) -> Result<D, ImageError> {
    text.parse()
        .map_err(|source| ImageError::Digest { what, source })
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests;
