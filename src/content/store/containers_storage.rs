//! containers-storage (podman, buildah, CRI-O), read from disk: github.com/containers/storage.
//!
//! ```text
//! overlay/<layer>/{diff,link}; overlay/l/<LINK> -> ../<layer>/diff
//! overlay-containers/containers.json: layer -> image      overlay-images/images.json: image -> top layer
//! overlay-layers/layers.json: layer -> parent, diff-digest  overlay-layers/<layer>.tar-split.gz
//! overlay-images/<image>/: manifests, indexes, configuration ("big data")
//! ```

use super::{
    Attached, Found, LocateError, Located, Named, NoImage, Purpose, attached, claims::with_stored,
    inconsistent, mountinfo::Overlay, named::Typed, place::Place,
};
use crate::{layer::LayerSource, oci::MAX_DOCUMENT, signatures::Store};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use verify::{
    digest::{ConfigDigest, DiffId},
    id::ContainerId,
    image::{ClaimedImage, Index, Manifest},
    profile::Launcher,
    rootfs::Engine,
};

const MAX_RECORDS: u64 = 256 << 20;
/// Where containers of `podman run --rm` are recorded since podman 4.4, for the default run root.
const RUN_ROOT: &str = "/run/containers/storage";
const VOLATILE: &str = "overlay-containers/volatile-containers.json";

#[derive(Deserialize)]
struct Container {
    id: String,
    layer: String,
    #[serde(default)]
    image: String,
    /// JSON within JSON.
    #[serde(default)]
    metadata: String,
}

#[derive(Deserialize, Default)]
struct ContainerMetadata {
    #[serde(rename = "image-name", default)]
    image_name: String,
    /// CRI-O: this is the pod's infrastructure container (internal/storage/runtime.go).
    #[serde(default)]
    pod: bool,
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
    #[serde(default)]
    metadata: String,
}

/// containers/image, storage/storage_dest.go.
#[derive(Deserialize, Default)]
struct ImageMetadata {
    /// Of the signatures in `signatures`.
    #[serde(rename = "signature-sizes", default)]
    sizes: Vec<usize>,
    /// Of those in `signature-<hex>`, by manifest.
    #[serde(rename = "signatures-sizes", default)]
    by_manifest: BTreeMap<String, Vec<usize>>,
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
    rootfs: &Path,
    run_as: &ContainerId,
    overlay: &Overlay,
    roots: &[PathBuf],
    signatures: &Store,
) -> Result<Located, LocateError> {
    let stores: Vec<Place> = ours_first(root, roots)
        .map(Place::open)
        .collect::<Result<_, _>>()?;
    let overlays = overlays(&stores)?;
    let top = overlay
        .upper
        .as_ref()
        .or(overlay.lower.first())
        .ok_or_else(|| inconsistent("no layers"))?;
    let layer = layer_of(top, &overlays)?;
    let container = container(&stores, &layer)?;
    let metadata: ContainerMetadata = serde_json::from_str(&container.metadata).unwrap_or_default();
    let purpose = if is_buildahs(&stores, &container, run_as)? {
        Purpose::Build
    } else if metadata.pod {
        Purpose::Sandbox
    } else {
        Purpose::Run
    };
    let launcher = match purpose {
        Purpose::Build => Launcher::Buildah,
        Purpose::Run | Purpose::Sandbox => Launcher::Podman,
    };
    if container.image.is_empty() {
        return Ok(Located::NoImage(NoImage {
            rootfs: rootfs.to_owned(),
            purpose,
            launcher,
        }));
    }
    let (store, image) = image(&stores, &container.image)?;
    let config_bytes = config(store, &image)?;
    let config = ConfigDigest::of(&config_bytes);
    // What the user typed: a name, or the image's id (or its beginning).
    let typed = metadata.image_name;
    let is_id = image.id.starts_with(typed.trim_start_matches("sha256:"));
    let name = if is_id {
        image.names.first()
    } else {
        Some(&typed)
    };
    let name = name.unwrap_or(&image.id).clone();

    let layers = layers(&stores, &image)?;
    let mounted = mounted(overlay, &layer, &overlays)?;
    let expected: Vec<_> = layers.iter().rev().map(|(id, _)| id.clone()).collect();
    if mounted != expected {
        return Err(inconsistent(format!(
            "the mount shows the layers [{}], the image {} has [{}]",
            mounted.join(", "),
            image.id,
            expected.join(", ")
        )));
    }
    let claims = claims(store, &image, &name, config_bytes, signatures)?;
    let layers = layers.into_iter().map(|(_, source)| source).collect();
    Ok(Located::Image(Box::new(Found {
        engine: Engine::ContainersStorage,
        purpose,
        launcher,
        name,
        config,
        claims,
        layers,
        attached: attached_to(store, &image),
    })))
}

/// The images of this name or id in one store.
pub(super) fn named(
    root: &Path,
    typed: &Typed,
    signatures: &Store,
) -> Result<Vec<Named>, LocateError> {
    let store = Place::open(root)?;
    let images: Vec<Image> = records(&store, "overlay-images/images.json")?;
    let mut found = Vec::new();
    for image in images {
        let mut names = image.names.iter();
        let name = match names.find(|name| typed.means(name)) {
            Some(name) => name,
            None if typed.is_id(&image.id) => image.names.first().unwrap_or(&image.id),
            None => continue,
        };
        hex_id("image", &image.id)?;
        let bytes = config(&store, &image);
        let claims = bytes.and_then(|bytes| claims(&store, &image, name, bytes, signatures));
        found.push(Named {
            store: format!("containers-storage {}", root.display()),
            name: name.clone(),
            claims,
            attached: attached_to(&store, &image),
        });
    }
    Ok(found)
}

/// An image's id is its configuration's digest.
fn config(store: &Place, image: &Image) -> Result<Vec<u8>, LocateError> {
    let bytes = big_data(store, image, &format!("sha256:{}", image.id))?;
    let config = ConfigDigest::of(&bytes);
    match config.hex() == image.id {
        true => Ok(bytes),
        false => Err(inconsistent(format!(
            "image {} has the configuration {config}",
            image.id
        ))),
    }
}

/// Every manifest that is kept for it, with the indexes.
fn claims(
    store: &Place,
    image: &Image,
    name: &str,
    config_bytes: Vec<u8>,
    signatures: &Store,
) -> Result<Vec<ClaimedImage>, LocateError> {
    let config = ConfigDigest::of(&config_bytes);
    let (mut manifests, mut indexes) = (Vec::new(), Vec::new());
    let keys = image.big_data.iter();
    for key in keys.filter(|key| key.starts_with("manifest")) {
        let content = big_data(store, image, key)?;
        if Manifest::parse(&content).is_ok_and(|manifest| manifest.config() == config) {
            manifests.push(content);
        } else if Index::parse(&content).is_ok() {
            indexes.push(content);
        }
    }
    with_stored(name, config, config_bytes, manifests, &indexes, signatures)
}

/// The container that was given this read-write layer. Not its id: buildah gives the runtime another.
fn container(stores: &[Place], layer: &str) -> Result<Container, LocateError> {
    let [own, ..] = stores else {
        return Err(inconsistent("no store"));
    };
    let mut containers: Vec<Container> = records(own, "overlay-containers/containers.json")?;
    if Path::new(RUN_ROOT).exists() {
        containers.extend(records(&Place::open(Path::new(RUN_ROOT))?, VOLATILE)?);
    }
    let container = containers.into_iter().find(|one| one.layer == layer);
    container.ok_or_else(|| {
        inconsistent(format!(
            "{} knows no container with the layer {layer}",
            own.at("overlay-containers/containers.json").display()
        ))
    })
}

/// buildah keeps its own state with each working container (buildah, buildah.go: stateFile) and runs it
/// under another id. `podman commit` leaves that state with a container too, which stays podman's.
fn is_buildahs(
    stores: &[Place],
    container: &Container,
    run_as: &ContainerId,
) -> Result<bool, LocateError> {
    if container.id == run_as.as_str() {
        return Ok(false);
    }
    let name = hex_id("container", &container.id)?;
    match stores {
        [own, ..] => own.has(format!("overlay-containers/{name}/userdata/buildah.json")),
        [] => Ok(false),
    }
}

fn image<'a>(stores: &'a [Place], id: &str) -> Result<(&'a Place, Image), LocateError> {
    for store in stores {
        let images: Vec<Image> = records(store, "overlay-images/images.json")?;
        if let Some(image) = images.into_iter().find(|image| image.id == id) {
            hex_id("image", &image.id)?;
            return Ok((store, image));
        }
    }
    Err(inconsistent(format!("no images.json knows the image {id}")))
}

/// It becomes part of paths.
fn hex_id<'a>(what: &str, id: &'a str) -> Result<&'a str, LocateError> {
    match id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(id),
        false => Err(inconsistent(format!("{what} id `{id}` is not a digest"))),
    }
}

/// What podman kept of `use-sigstore-attachments` when it pulled the image.
fn attached_to(store: &Place, image: &Image) -> Vec<Attached> {
    let metadata: ImageMetadata = serde_json::from_str(&image.metadata).unwrap_or_default();
    let of_manifests = metadata.by_manifest.iter().map(|(manifest, sizes)| {
        let hex = manifest.trim_start_matches("sha256:");
        (format!("signature-{hex}"), sizes)
    });
    let mut attached = Vec::new();
    for (key, sizes) in of_manifests.chain([("signatures".to_owned(), &metadata.sizes)]) {
        if sizes.is_empty() {
            continue;
        }
        match big_data(store, image, &key) {
            Ok(blob) => attached::in_big_data(&blob, sizes, &mut attached),
            Err(error) => attached.push(Attached::Unusable(error.to_string())),
        }
    }
    attached
}

/// The image's layers by id, lowest first.
fn layers(stores: &[Place], image: &Image) -> Result<Vec<(String, LayerSource)>, LocateError> {
    let mut known = BTreeMap::new();
    for store in stores {
        for layer in records::<Layer>(store, "overlay-layers/layers.json")? {
            known.entry(layer.id.clone()).or_insert((store, layer));
        }
    }
    let mut chain = Vec::new();
    let mut id = image.layer.clone();
    while !id.is_empty() {
        let (store, layer) = known.remove(&id).ok_or_else(|| {
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
        let recording = store.at(format!("overlay-layers/{id}.tar-split.gz"));
        let directory = store.at(format!("overlay/{id}/diff"));
        chain.push((id, LayerSource::split(diff_id, recording, directory)));
        id = layer.parent;
    }
    chain.reverse();
    Ok(chain)
}

/// The ids of the layers that the mount shows below the container's own, topmost first.
fn mounted(overlay: &Overlay, own: &str, stores: &[Place]) -> Result<Vec<String>, LocateError> {
    let mut ids = Vec::new();
    for lower in &overlay.lower {
        // For an image without layers, an empty directory beside the container's own layer.
        let beside_own = |upper: &PathBuf| upper.with_file_name("empty") == *lower;
        if overlay.upper.as_ref().is_some_and(beside_own) {
            continue;
        }
        let id = layer_of(lower, stores)?;
        if id != own {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// `<root>/overlay` of each store that has one.
fn overlays(stores: &[Place]) -> Result<Vec<Place>, LocateError> {
    let mut overlays = Vec::new();
    for store in stores {
        if store.has("overlay")? {
            overlays.push(Place::open(&store.at("overlay"))?);
        }
    }
    Ok(overlays)
}

fn layer_of(directory: &Path, overlays: &[Place]) -> Result<String, LocateError> {
    for overlay in overlays {
        if let Some(id) = overlay.layer_of(directory)? {
            return Ok(id);
        }
    }
    Err(inconsistent(format!(
        "{} is no layer of a configured store",
        directory.display()
    )))
}

fn ours_first<'a>(root: &'a Path, roots: &'a [PathBuf]) -> impl Iterator<Item = &'a Path> {
    std::iter::once(root).chain(
        roots
            .iter()
            .map(PathBuf::as_path)
            .filter(move |other| *other != root),
    )
}

fn big_data(store: &Place, image: &Image, key: &str) -> Result<Vec<u8>, LocateError> {
    let name = format!("overlay-images/{}/{}", image.id, big_data_name(key));
    store.read(name, MAX_DOCUMENT)
}

/// containers/storage, images.go, makeBigDataBaseName.
pub(crate) fn big_data_name(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || byte == b'.';
    if key.bytes().all(plain) {
        key.to_owned()
    } else {
        format!("={}", STANDARD.encode(key))
    }
}

/// The records of a store; one that has no such file has none.
fn records<T: DeserializeOwned>(store: &Place, name: &str) -> Result<Vec<T>, LocateError> {
    let Some(bytes) = store.optional(name, MAX_RECORDS)? else {
        return Ok(Vec::new());
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| inconsistent(format!("{}: {error}", store.at(name).display())))
}
