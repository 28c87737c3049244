//! Writes an image: layers and a configuration to an OCI image layout that skopeo, podman and ctr read.

use super::CONTAINERD_NAME;
use crate::oci::{self, Descriptor, Directory, ManifestFile, REF_NAME};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeMap, io::Write as _, path::Path};
use verify::digest::{DiffId, ImageDigest};

/// Adds the image `name` (a tag, or a whole name like `localhost/demo:v1`) to the layout at `path`, which is made when it does not exist.
/// `layers` are uncompressed tars, lowest first; `config` is the image configuration's `config`
/// object (`Entrypoint`, `Cmd`, `Env`, …). The same input gives the same digest.
pub fn write_image(
    path: &Path,
    name: &str,
    layers: &[Vec<u8>],
    config: &Value,
) -> Result<ImageDigest> {
    ensure!(
        config.is_object(),
        "the image's `config` must be a JSON object"
    );
    let directory = Directory::create(path)?;
    let _lock = directory.lock()?;
    let mut descriptors = Vec::new();
    for layer in layers {
        // No name and no time in the header (flate2's default), so that the bytes repeat.
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(layer)?;
        let compressed = gzip.finish()?;
        directory.put(&compressed)?;
        descriptors.push(Descriptor::new(oci::LAYER_GZIP, &compressed));
    }
    let diff_ids: Vec<_> = layers.iter().map(|layer| DiffId::of(layer)).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": vec![json!({"created_by": "attestctl"}); layers.len()],
    }))?;
    directory.put(&config)?;
    let manifest = serde_json::to_vec(&ManifestFile {
        schema_version: 2,
        media_type: oci::MANIFEST.into(),
        artifact_type: None,
        config: Descriptor::new(oci::CONFIG, &config),
        layers: descriptors,
        subject: None,
        annotations: BTreeMap::new(),
    })?;
    directory.put(&manifest)?;
    let mut index = directory.index()?;
    index.manifests.retain(|known| {
        known
            .annotations
            .get(REF_NAME)
            .is_none_or(|known| known != name)
    });
    let mut descriptor = Descriptor::new(oci::MANIFEST, &manifest).annotated(REF_NAME, name);
    if name.contains('/') {
        // What `ctr image import` calls it; skopeo and podman read the other.
        descriptor = descriptor.annotated(CONTAINERD_NAME, name);
    }
    index.manifests.push(descriptor);
    directory
        .write_index(&index)
        .context("write the layout's index")?;
    Ok(ImageDigest::of(&manifest))
}
