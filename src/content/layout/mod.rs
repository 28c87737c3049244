//! Image files for publishers: an OCI image layout (a directory or a tar of it), or what `docker save`
//! and `podman save` write.

mod files;
mod write;

pub use write::write_image;

use crate::{
    layer::LayerSource,
    oci::{Descriptor, IndexFile, MAX_DOCUMENT, REF_NAME},
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use files::Files;
use serde::Deserialize;
use std::path::Path;
use verify::{
    digest::{BlobDigest, ConfigDigest, ImageDigest},
    image::{Config, Index, Manifest},
    rootfs::{RootfsManifest, merge},
};

/// containerd's name of an image in index.json (`ctr image export`).
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// One image of a file: bytes, nothing judged yet.
#[derive(Debug)]
pub struct ImageFile {
    /// The tag or name that the file gives it.
    pub name: Option<String>,
    /// Absent in a docker archive.
    pub manifest_bytes: Option<Vec<u8>>,
    pub config_bytes: Vec<u8>,
    pub index_bytes: Vec<Vec<u8>>,
    /// Lowest first.
    pub layers: Vec<LayerSource>,
}

impl ImageFile {
    /// Opens the image called `name` (a tag, a name, or a digest), or the only one.
    pub fn open(path: &Path, name: Option<&str>) -> Result<Self> {
        let files = Files::open(path)?;
        let image = match (
            files.read("index.json", MAX_DOCUMENT)?,
            files.read("manifest.json", MAX_DOCUMENT)?,
        ) {
            (Some(index), _) => of_layout(&files, &index, name),
            (None, Some(list)) => of_docker(&files, &list, name),
            (None, None) => bail!("neither an OCI image layout nor a docker archive"),
        };
        image.with_context(|| path.display().to_string())
    }

    /// Reads every layer, refuses one that is not what the configuration says, and lays them over
    /// each other.
    pub fn rootfs(&self) -> Result<RootfsManifest> {
        let config = Config::parse(&self.config_bytes)?;
        ensure!(
            config.diff_ids().len() == self.layers.len(),
            "the image has {} layers, its configuration {}",
            self.layers.len(),
            config.diff_ids().len()
        );
        let layers = self.layers.iter().zip(config.diff_ids());
        let layers = layers.map(|(source, diff_id)| source.read_as(*diff_id));
        Ok(merge(layers.collect::<Result<Vec<_>>>()?)?)
    }
}

fn of_layout(files: &Files, index: &[u8], name: Option<&str>) -> Result<ImageFile> {
    let index: IndexFile = serde_json::from_slice(index).context("index.json")?;
    let mut images = index
        .manifests
        .iter()
        .filter(|d| d.is_index() || d.is_manifest());
    let chosen = match name {
        None => match (images.next(), images.next()) {
            (Some(one), None) => one,
            (None, _) => bail!("index.json names no image"),
            _ => bail!(
                "index.json names several images; name one of: {}",
                names(&index)
            ),
        },
        Some(name) => images
            .find(|descriptor| called(descriptor, name))
            .ok_or_else(|| anyhow!("no image is called `{name}`; there are: {}", names(&index)))?,
    };
    let mut index_bytes = Vec::new();
    let mut digest = chosen.image();
    let mut is_index = chosen.is_index();
    while is_index {
        ensure!(index_bytes.len() < 4, "indexes within indexes");
        let content = files.blob(blob(digest))?;
        digest = platform(files, &Index::parse(&content)?)?;
        index_bytes.push(content);
        is_index = Index::parse(&files.blob(blob(digest))?).is_ok();
    }
    let manifest_bytes = files.blob(blob(digest))?;
    let manifest = Manifest::parse(&manifest_bytes)?;
    let config_bytes = files.blob(BlobDigest::from_bytes(*manifest.config().as_bytes()))?;
    let config = Config::parse(&config_bytes)?;
    ensure!(
        manifest.layers().len() == config.diff_ids().len(),
        "the manifest has {} layers, its configuration {}",
        manifest.layers().len(),
        config.diff_ids().len()
    );
    let layers = manifest.layers().iter().zip(config.diff_ids());
    let layers =
        layers.map(|(layer, diff_id)| files.layer(&files::blob_name(layer.digest), *diff_id));
    Ok(ImageFile {
        name: [REF_NAME, CONTAINERD_NAME]
            .iter()
            .find_map(|key| chosen.annotations.get(*key))
            .cloned(),
        manifest_bytes: Some(manifest_bytes),
        config_bytes,
        index_bytes,
        layers: layers.collect::<Result<_>>()?,
    })
}

/// The only manifest of an index that the file holds, or the one for this machine.
fn platform(files: &Files, index: &Index) -> Result<ImageDigest> {
    let here: Vec<_> = (index.manifests().iter())
        .filter(|entry| matches!(files.blob(blob(entry.digest)), Ok(bytes) if is_image(&bytes)))
        .collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let native = format!("linux/{architecture}");
    match here.as_slice() {
        [] => bail!("the file holds no manifest of index {}", index.digest()),
        [one] => Ok(one.digest),
        several => several
            .iter()
            .find(|entry| entry.platform.as_deref() == Some(&native))
            .map(|entry| entry.digest)
            .ok_or_else(|| anyhow!("index {} has no manifest for {native}", index.digest())),
    }
}

fn is_image(bytes: &[u8]) -> bool {
    Manifest::parse(bytes).is_ok() || Index::parse(bytes).is_ok()
}

fn blob(digest: ImageDigest) -> BlobDigest {
    BlobDigest::from_bytes(*digest.as_bytes())
}

fn called(descriptor: &Descriptor, name: &str) -> bool {
    let annotations = [REF_NAME, CONTAINERD_NAME].into_iter();
    annotations
        .filter_map(|key| descriptor.annotations.get(key))
        .any(|known| known == name)
        || descriptor.digest.to_string() == name
}

fn names(index: &IndexFile) -> String {
    let name = |descriptor: &Descriptor| {
        descriptor
            .annotations
            .get(REF_NAME)
            .cloned()
            .unwrap_or(descriptor.digest.to_string())
    };
    index
        .manifests
        .iter()
        .map(name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// manifest.json (moby, image/tarexport).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn of_docker(files: &Files, list: &[u8], name: Option<&str>) -> Result<ImageFile> {
    let images: Vec<DockerImage> = serde_json::from_slice(list).context("manifest.json")?;
    let tags = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
    let image = match name {
        None => match images.as_slice() {
            [one] => one,
            several => bail!("manifest.json names {} images; name one", several.len()),
        },
        Some(name) => images
            .iter()
            .find(|image| tags(image).iter().any(|tag| tag == name))
            .ok_or_else(|| anyhow!("no image is called `{name}`"))?,
    };
    let config_bytes = files
        .read(&image.config, MAX_DOCUMENT)?
        .ok_or_else(|| anyhow!("{} is missing", image.config))?;
    let config = Config::parse(&config_bytes)?;
    ensure!(
        image.layers.len() == config.diff_ids().len(),
        "manifest.json has {} layers, the configuration {}",
        image.layers.len(),
        config.diff_ids().len()
    );
    let layers = image.layers.iter().zip(config.diff_ids());
    Ok(ImageFile {
        name: tags(image).into_iter().next(),
        manifest_bytes: None,
        config_bytes,
        index_bytes: Vec::new(),
        layers: layers
            .map(|(name, diff_id)| files.layer(name, *diff_id))
            .collect::<Result<_>>()?,
    })
}

impl ImageFile {
    /// The image configuration's digest (docker's image ID).
    pub fn config(&self) -> ConfigDigest {
        ConfigDigest::of(&self.config_bytes)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
