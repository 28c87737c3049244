//! Docker, read from disk: what it recorded of a container, and its overlay2 graph driver (moby,
//! layer/filestore.go, image/fs.go).
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
    Found, LocateError, Named, Purpose,
    claims::{chain_ids, with_stored},
    inconsistent,
    mountinfo::Overlay,
    named::Typed,
    place::Place,
};
use crate::{layer::LayerSource, oci::MAX_DOCUMENT, signatures::Store};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};
use verify::{
    digest::{ConfigDigest, DiffId, ImageDigest},
    id::ContainerId,
    image::Config,
    profile::Launcher,
    rootfs::Engine,
};

pub(super) const OVERLAY2: &str = "overlay2";
/// Below a data root.
const IMAGES: &str = "image/overlay2";
const MAX_NAMES: u64 = 64 << 20;

/// Of config.v2.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    /// The configuration's digest; with containerd's image store the manifest's or index's.
    pub image: String,
    /// A graph driver, or with containerd's image store a snapshotter.
    #[serde(default)]
    pub driver: String,
    /// With containerd's image store: what was mounted.
    #[serde(default)]
    pub image_manifest: Option<Descriptor>,
    pub config: ContainerConfig,
}

#[derive(Deserialize)]
pub(super) struct Descriptor {
    pub digest: ImageDigest,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ContainerConfig {
    /// What the user called the image.
    pub image: String,
}

/// A data root, and those within it that dockerd has for `userns-remap`, by the users whom it maps root
/// to: `<data root>/<uid>.<gid>` (moby, daemon_unix.go, setupDaemonRoot).
pub(super) fn with_remapped(root: PathBuf) -> Vec<PathBuf> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_pair = |name: &str| {
        name.split_once('.')
            .is_some_and(|(uid, gid)| is_number(uid) && is_number(gid))
    };
    let entries = std::fs::read_dir(&root).into_iter().flatten().flatten();
    let remapped = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_pair))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path());
    let mut all: Vec<_> = remapped.collect();
    all.push(root);
    all
}

/// `None`: this Docker knows no such container.
pub(super) fn container(root: &Path, id: &ContainerId) -> Result<Option<Container>, LocateError> {
    let root = Place::open(root)?;
    let name = format!("containers/{id}/config.v2.json");
    let Some(bytes) = root.optional(&name, MAX_DOCUMENT)? else {
        return Ok(None);
    };
    let container = serde_json::from_slice(&bytes);
    container
        .map(Some)
        .map_err(|error| inconsistent(format!("{}: {error}", root.at(name).display())))
}

pub(super) fn find(
    root: &Path,
    overlay: &Overlay,
    id: &ContainerId,
    container: Container,
    signatures: &Store,
) -> Result<Found, LocateError> {
    let name = container.config.image;
    let config: ConfigDigest = container.image.parse().map_err(|_| {
        inconsistent(format!(
            "container {id} has the image `{}`",
            container.image
        ))
    })?;
    let root = Place::open(root)?;
    let image = IMAGES;
    let config_bytes = configuration(&root, config)?;
    let parsed = Config::parse(&config_bytes).map_err(|error| inconsistent(error.to_string()))?;
    let chain = chain_ids(parsed.diff_ids());

    let mount = format!("{image}/layerdb/mounts/{id}");
    let parent: Option<DiffId> = optional_word(&root, &format!("{mount}/parent"))?;
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
        let record = format!("{image}/layerdb/sha256/{}", chain.hex());
        let recorded: DiffId = word(&root, &format!("{record}/diff"))?;
        if recorded != *diff_id {
            return Err(inconsistent(format!(
                "layer {chain} is recorded as {recorded}, not {diff_id}"
            )));
        }
        let cache: String = word(&root, &format!("{record}/cache-id"))?;
        layers.push(LayerSource::split(
            *diff_id,
            root.at(format!("{record}/tar-split.json.gz")),
            root.at(format!("{OVERLAY2}/{cache}/diff")),
        ));
        expected.push(cache);
    }
    expected.push(word(&root, &format!("{mount}/init-id"))?);
    expected.push(word(&root, &format!("{mount}/mount-id"))?);
    expected.reverse();

    let store = Place::open(&root.at(OVERLAY2))?;
    let mut mounted = Vec::new();
    for directory in overlay.upper.iter().chain(&overlay.lower) {
        mounted.push(store.layer_of(directory)?.ok_or_else(|| {
            inconsistent(format!("{} is no layer of Docker's", directory.display()))
        })?);
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
        purpose: Purpose::Run,
        launcher: Launcher::Docker,
        name,
        config,
        claims,
        layers,
        attached: Vec::new(),
    })
}

fn configuration(root: &Place, config: ConfigDigest) -> Result<Vec<u8>, LocateError> {
    let content = format!("{IMAGES}/imagedb/content/sha256/{}", config.hex());
    let bytes = root.read(content, MAX_DOCUMENT)?;
    match ConfigDigest::of(&bytes) == config {
        true => Ok(bytes),
        false => Err(inconsistent(format!(
            "the stored configuration {config} has another digest"
        ))),
    }
}

/// repositories.json (moby, reference/store.go).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Repositories {
    /// By repository: every name in it, and the configuration that it stands for.
    repositories: BTreeMap<String, BTreeMap<String, ConfigDigest>>,
}

/// The images of this name or id; the names of a repository may stand for several.
pub(super) fn named(
    root: &Path,
    typed: &Typed,
    signatures: &Store,
) -> Result<Vec<Named>, LocateError> {
    let place = Place::open(root)?;
    let file = format!("{IMAGES}/repositories.json");
    let Some(bytes) = place.optional(&file, MAX_NAMES)? else {
        return Ok(Vec::new());
    };
    let parsed: Repositories = serde_json::from_slice(&bytes)
        .map_err(|error| inconsistent(format!("{}: {error}", place.at(file).display())))?;
    let mut found: BTreeMap<ConfigDigest, String> = BTreeMap::new();
    for (name, config) in parsed.repositories.into_values().flatten() {
        if typed.means(&name) || typed.is_id(&config.hex()) {
            found.entry(config).or_insert(name);
        }
    }
    let images = found.into_iter().map(|(config, name)| Named {
        store: format!("Docker {}", root.display()),
        claims: configuration(&place, config)
            .and_then(|bytes| with_stored(&name, config, bytes, Vec::new(), &[], signatures)),
        name,
        attached: Vec::new(),
    });
    Ok(images.collect())
}

fn word<T: FromStr>(root: &Place, name: &str) -> Result<T, LocateError>
where
    T::Err: std::fmt::Display,
{
    optional_word(root, name)?
        .ok_or_else(|| inconsistent(format!("{} is missing", root.at(name).display())))
}

/// A file that holds one word; it may become part of a path.
fn optional_word<T: FromStr>(root: &Place, name: &str) -> Result<Option<T>, LocateError>
where
    T::Err: std::fmt::Display,
{
    let Some(bytes) = root.optional(name, 4096)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let shown = root.at(name);
    if text.is_empty() || text.contains('/') || text.starts_with('.') {
        return Err(inconsistent(format!("{}: `{text}`", shown.display())));
    }
    let parsed = text
        .parse()
        .map_err(|error: T::Err| inconsistent(format!("{}: {error}", shown.display())))?;
    Ok(Some(parsed))
}
