//! Docker with its overlay2 graph driver, read from disk (moby, layer/filestore.go, image/fs.go).
//!
//! ```text
//! containers/<id>/config.v2.json: Image = configuration digest
//! image/overlay2/imagedb/content/sha256/<config>
//! image/overlay2/layerdb/mounts/<id>/{mount-id,init-id,parent}     parent = chain ID
//! image/overlay2/layerdb/sha256/<chain>/{diff,cache-id,tar-split.json.gz}
//! overlay2/<cache-id>/diff; overlay2/l/<LINK> -> ../<cache-id>/diff
//! ```
//! No manifest is kept on disk: it comes from the signature store, by the configuration's digest.

use super::{
    Found, LocateError, chain_ids, component_below, inconsistent, mountinfo::Overlay, with_stored,
};
use crate::{beneath, layer::LayerSource, oci::MAX_DOCUMENT, signatures::Store};
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::{path::Path, str::FromStr};
use verify::{
    digest::{ConfigDigest, DiffId},
    id::ContainerId,
    image::Config,
    rootfs::Engine,
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    image: ConfigDigest,
    config: ContainerConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerConfig {
    image: String,
}

pub(super) fn find(
    root: &Path,
    overlay: &Overlay,
    id: &ContainerId,
    signatures: &Store,
) -> Result<Found, LocateError> {
    let file = root
        .join("containers")
        .join(id.as_str())
        .join("config.v2.json");
    let container: Container = serde_json::from_slice(&beneath::read_bounded(&file, MAX_DOCUMENT)?)
        .with_context(|| file.display().to_string())?;
    let (config, name) = (container.image, container.config.image);

    let image = root.join("image/overlay2");
    let config_bytes = beneath::read_bounded(
        &image.join("imagedb/content/sha256").join(config.hex()),
        MAX_DOCUMENT,
    )?;
    if ConfigDigest::of(&config_bytes) != config {
        return Err(inconsistent(format!(
            "the stored configuration {config} has another digest"
        )));
    }
    let parsed = Config::parse(&config_bytes).map_err(|error| inconsistent(error.to_string()))?;
    let chain = chain_ids(parsed.diff_ids());

    let mount = image.join("layerdb/mounts").join(id.as_str());
    let mount_id: String = word(&mount.join("mount-id"))?;
    let parent = mount.join("parent");
    let parent: Option<DiffId> = if parent.exists() {
        Some(word(&parent)?)
    } else {
        None
    };
    if parent != chain.last().copied() {
        return Err(inconsistent(format!(
            "container {id} was mounted over {}, its image {config} has other layers",
            parent.map_or("nothing".to_owned(), |parent| parent.to_string())
        )));
    }

    let mut layers = Vec::new();
    // What the mount has to show, topmost first: the container's own, its init layer, the image's.
    let mut expected = Vec::new();
    for (diff_id, chain) in parsed.diff_ids().iter().zip(&chain) {
        let record = image.join("layerdb/sha256").join(chain.hex());
        let recorded: DiffId = word(&record.join("diff"))?;
        if recorded != *diff_id {
            return Err(inconsistent(format!(
                "layer {chain} is recorded as {recorded}, not {diff_id}"
            )));
        }
        let cache: String = word(&record.join("cache-id"))?;
        let directory = root.join("overlay2").join(&cache).join("diff");
        layers.push(LayerSource::split(
            *diff_id,
            record.join("tar-split.json.gz"),
            directory,
        ));
        expected.push(cache);
    }
    expected.push(word(&mount.join("init-id"))?);
    expected.push(mount_id);
    expected.reverse();

    let mut mounted = Vec::new();
    for directory in overlay.upper.iter().chain(&overlay.lower) {
        let real = std::fs::canonicalize(directory)
            .with_context(|| format!("resolve layer directory {}", directory.display()))?;
        let layer =
            component_below(&real, &root.join("overlay2")).filter(|_| real.ends_with("diff"));
        mounted.push(
            layer.ok_or_else(|| {
                inconsistent(format!("{} is no layer of Docker's", real.display()))
            })?,
        );
    }
    if mounted != expected {
        return Err(inconsistent(format!(
            "the mount shows the layers [{}], container {id} has [{}]",
            mounted.join(", "),
            expected.join(", ")
        )));
    }
    let claims = with_stored(&name, config, config_bytes, Vec::new(), &[], signatures)?;
    Ok(Found {
        engine: Engine::Docker,
        name,
        config,
        claims,
        layers,
    })
}

/// A file that holds one word; it may become part of a path.
fn word<T: FromStr>(path: &Path) -> Result<T, LocateError>
where
    T::Err: std::fmt::Display,
{
    let bytes = beneath::read_bounded(path, 4096)?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let safe = !text.is_empty() && !text.contains('/') && !text.starts_with('.');
    let parsed = text
        .parse()
        .map_err(|error: T::Err| inconsistent(format!("{}: {error}", path.display())))?;
    if safe {
        Ok(parsed)
    } else {
        Err(inconsistent(format!("{}: `{text}`", path.display())))
    }
}
