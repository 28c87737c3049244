//! containers-storage (podman, buildah, CRI-O), read from disk: github.com/containers/storage.
//!
//! ```text
//! overlay/<layer>/{diff,link}; overlay/l/<LINK> -> ../<layer>/diff
//! overlay-containers/containers.json: layer -> image      overlay-images/images.json: image -> top layer
//! overlay-layers/layers.json: layer -> parent, diff-digest  overlay-layers/<layer>.tar-split.gz
//! overlay-images/<image>/: manifests, indexes, configuration ("big data")
//! ```

use super::{Found, LocateError, component_below, inconsistent, mountinfo::Overlay, with_stored};
use crate::{beneath, layer::LayerSource, oci::MAX_DOCUMENT, signatures::Store};
use anyhow::{Context as _, Result, anyhow};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use verify::{
    digest::{ConfigDigest, DiffId},
    image::{Index, Manifest},
    rootfs::Engine,
};

const MAX_RECORDS: u64 = 256 << 20;
/// Where containers of `podman run --rm` are recorded since podman 4.4, for the default run root.
const VOLATILE: &str = "/run/containers/storage/overlay-containers/volatile-containers.json";

#[derive(Deserialize)]
struct Container {
    layer: String,
    #[serde(default)]
    image: String,
    /// JSON within JSON.
    #[serde(default)]
    metadata: String,
}

#[derive(Deserialize)]
struct ContainerMetadata {
    #[serde(rename = "image-name", default)]
    image_name: String,
}

#[derive(Deserialize)]
struct Image {
    id: String,
    #[serde(default)]
    layer: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(rename = "big-data-names", default)]
    big_data: Vec<String>,
}

#[derive(Deserialize)]
struct Layer {
    id: String,
    #[serde(default)]
    parent: String,
    /// Absent for layers of which only parts were fetched (zstd:chunked).
    #[serde(rename = "diff-digest")]
    diff_id: Option<DiffId>,
}

/// `root` is the graph root that the mount lies in; images may lie in any of `roots`.
pub(super) fn find(
    root: &Path,
    overlay: &Overlay,
    roots: &[PathBuf],
    signatures: &Store,
) -> Result<Found, LocateError> {
    let top = overlay
        .upper
        .as_ref()
        .or(overlay.lower.first())
        .ok_or_else(|| inconsistent("no layers"))?;
    let layer = layer_of(top, roots)?;
    let container = container(root, &layer)?;
    let metadata: Option<ContainerMetadata> = serde_json::from_str(&container.metadata).ok();

    let (image_root, image) = image(root, roots, &container.image)?;
    let config = ConfigDigest::of(&big_data(
        &image_root,
        &image,
        &format!("sha256:{}", image.id),
    )?);
    if config.hex() != image.id {
        return Err(inconsistent(format!(
            "image {} has the configuration {config}",
            image.id
        )));
    }
    // What the user typed: a name, or the image's id (or its beginning).
    let typed = metadata
        .map(|metadata| metadata.image_name)
        .unwrap_or_default();
    let is_id = image.id.starts_with(typed.trim_start_matches("sha256:"));
    let name = if is_id {
        image.names.first()
    } else {
        Some(&typed)
    };
    let name = name.unwrap_or(&image.id).clone();

    let layers = layers(root, roots, &image)?;
    let mounted = mounted(overlay, &layer, roots)?;
    let expected: Vec<_> = layers.iter().rev().map(|(id, _)| id.clone()).collect();
    if mounted != expected {
        return Err(inconsistent(format!(
            "the mount shows the layers [{}], the image {} has [{}]",
            mounted.join(", "),
            image.id,
            expected.join(", ")
        )));
    }

    let mut manifests = Vec::new();
    let mut indexes = Vec::new();
    for key in image
        .big_data
        .iter()
        .filter(|key| key.starts_with("manifest"))
    {
        let content = big_data(&image_root, &image, key)?;
        if Manifest::parse(&content).is_ok_and(|manifest| manifest.config() == config) {
            manifests.push(content);
        } else if Index::parse(&content).is_ok() {
            indexes.push(content);
        }
    }
    let config_bytes = big_data(&image_root, &image, &format!("sha256:{}", image.id))?;
    let claims = with_stored(&name, config, config_bytes, manifests, &indexes, signatures)?;
    let layers = layers.into_iter().map(|(_, source)| source).collect();
    Ok(Found {
        engine: Engine::ContainersStorage,
        name,
        config,
        claims,
        layers,
    })
}

/// The container that was given this read-write layer. Not its id: buildah gives the runtime another.
fn container(root: &Path, layer: &str) -> Result<Container, LocateError> {
    let stable = root.join("overlay-containers/containers.json");
    for file in [stable.as_path(), Path::new(VOLATILE)] {
        if !file.exists() {
            continue;
        }
        let containers: Vec<Container> = records(file)?;
        if let Some(container) = containers
            .into_iter()
            .find(|container| container.layer == layer)
        {
            return Ok(container);
        }
    }
    Err(inconsistent(format!(
        "{} knows no container with the layer {layer}",
        stable.display()
    )))
}

fn image(root: &Path, roots: &[PathBuf], id: &str) -> Result<(PathBuf, Image), LocateError> {
    if id.is_empty() {
        return Err(LocateError::NoImage(root.to_owned()));
    }
    for root in ours_first(root, roots) {
        let file = root.join("overlay-images/images.json");
        if !file.exists() {
            continue;
        }
        let images: Vec<Image> = records(&file)?;
        if let Some(image) = images.into_iter().find(|image| image.id == id) {
            // It becomes part of paths.
            if image.id.len() != 64 || !image.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(inconsistent(format!(
                    "image id `{}` is not a digest",
                    image.id
                )));
            }
            return Ok((root.to_owned(), image));
        }
    }
    Err(inconsistent(format!("no images.json knows the image {id}")))
}

/// The image's layers by id, lowest first.
fn layers(
    root: &Path,
    roots: &[PathBuf],
    image: &Image,
) -> Result<Vec<(String, LayerSource)>, LocateError> {
    let mut known = BTreeMap::new();
    for root in ours_first(root, roots) {
        let file = root.join("overlay-layers/layers.json");
        if file.exists() {
            for layer in records::<Layer>(&file)? {
                known.entry(layer.id.clone()).or_insert((root, layer));
            }
        }
    }
    let mut chain = Vec::new();
    let mut id = image.layer.clone();
    while !id.is_empty() {
        let (root, layer) = known.remove(&id).ok_or_else(|| {
            inconsistent(format!(
                "no layers.json knows the layer {id}, or it is its own parent"
            ))
        })?;
        if id.contains('/') || id.starts_with('.') {
            return Err(inconsistent(format!("layer id `{id}`")));
        }
        let diff_id = layer.diff_id.ok_or_else(|| {
            inconsistent(format!(
                "layer {id} has no diff-digest: it was fetched in parts only"
            ))
        })?;
        let recording = root
            .join("overlay-layers")
            .join(format!("{id}.tar-split.gz"));
        let directory = root.join("overlay").join(&id).join("diff");
        chain.push((id, LayerSource::split(diff_id, recording, directory)));
        id = layer.parent;
    }
    chain.reverse();
    Ok(chain)
}

/// The ids of the layers that the mount shows below the container's own, topmost first.
fn mounted(overlay: &Overlay, own: &str, roots: &[PathBuf]) -> Result<Vec<String>, LocateError> {
    let mut ids = Vec::new();
    for lower in &overlay.lower {
        // For an image without layers, an empty directory beside the container's own layer.
        let beside_own = |upper: &PathBuf| upper.with_file_name("empty") == *lower;
        if overlay.upper.as_ref().is_some_and(beside_own) {
            continue;
        }
        let id = layer_of(lower, roots)?;
        if id != own {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// `<root>/overlay/<id>/diff`, also through `<root>/overlay/l/<LINK>`.
fn layer_of(directory: &Path, roots: &[PathBuf]) -> Result<String, LocateError> {
    let real = std::fs::canonicalize(directory)
        .with_context(|| format!("resolve layer directory {}", directory.display()))?;
    roots
        .iter()
        .find_map(|root| component_below(&real, &root.join("overlay")))
        .filter(|_| real.ends_with("diff"))
        .ok_or_else(|| {
            inconsistent(format!(
                "{} is no layer of a configured store",
                real.display()
            ))
        })
}

fn ours_first<'a>(root: &'a Path, roots: &'a [PathBuf]) -> impl Iterator<Item = &'a Path> {
    std::iter::once(root).chain(
        roots
            .iter()
            .map(PathBuf::as_path)
            .filter(move |other| *other != root),
    )
}

fn big_data(root: &Path, image: &Image, key: &str) -> Result<Vec<u8>> {
    let path = root
        .join("overlay-images")
        .join(&image.id)
        .join(big_data_name(key));
    beneath::read_bounded(&path, MAX_DOCUMENT)
}

/// containers/storage, images.go, makeBigDataBaseName.
fn big_data_name(key: &str) -> String {
    let plain =
        |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || b"-_.".contains(&byte);
    if key.bytes().all(plain) {
        key.to_owned()
    } else {
        format!("={}", STANDARD.encode(key))
    }
}

fn records<T: DeserializeOwned>(file: &Path) -> Result<Vec<T>> {
    let bytes = beneath::read_bounded(file, MAX_RECORDS)?;
    serde_json::from_slice(&bytes).map_err(|error| anyhow!("{}: {error}", file.display()))
}
