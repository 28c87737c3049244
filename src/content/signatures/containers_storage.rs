//! Import from containers-storage (podman, CRI-O, buildah, skopeo): manifests and the simple signatures
//! that a pull with `use-sigstore-attachments: true` (containers-registries.d(5)) left beside them.

use super::Store;
use super::import::{Imported, Progress};
use crate::{
    oci::MAX_DOCUMENT,
    read_bounded,
    store::{attached::sigstore, containers_storage::big_data_name},
};
use anyhow::{Context as _, Error, Result, bail};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};
use verify::signature::StoredSignature;

/// A store of ten thousand images has some 20 MB.
const MAX_IMAGES: u64 = 256 << 20;
#[derive(Deserialize)]
struct Image {
    id: String,
    #[serde(rename = "big-data-names", default)]
    data: Vec<String>,
}

/// The directories of images: one per storage driver.
fn drivers(path: &Path) -> Vec<PathBuf> {
    let names = ["overlay", "vfs", "btrfs", "zfs"];
    let directories = names.map(|driver| path.join(format!("{driver}-images")));
    directories
        .into_iter()
        .filter(|directory| directory.join("images.json").is_file())
        .collect()
}

pub(super) fn is_one(path: &Path) -> bool {
    !drivers(path).is_empty()
}

pub(super) fn import(store: &Store, path: &Path, progress: Progress<'_>) -> Result<Imported> {
    let mut imported = Imported::default();
    for directory in drivers(path) {
        let list = directory.join("images.json");
        let images: Vec<Image> = serde_json::from_slice(&read_bounded(&list, MAX_IMAGES)?)
            .with_context(|| list.display().to_string())?;
        let total = images.len() as u64;
        for (done, image) in images.iter().enumerate() {
            progress(done as u64, total);
            import_one(store, &directory, image, &mut imported)
                .with_context(|| format!("image {} in {}", image.id, directory.display()))?;
        }
        progress(total, total);
    }
    imported.images.sort_unstable();
    imported.images.dedup();
    Ok(imported)
}

fn import_one(
    store: &Store,
    directory: &Path,
    image: &Image,
    imported: &mut Imported,
) -> Result<()> {
    let read = |key: &str| {
        let file = directory.join(&image.id).join(big_data_name(key));
        // The engine may remove an image at any time.
        match fs::exists(&file)? {
            true => read_bounded(&file, MAX_DOCUMENT).map(Some),
            false => Ok(None),
        }
    };
    if image.id.contains(['/', '.']) {
        bail!("`{}` is no image's id", image.id);
    }
    for key in &image.data {
        let manifest = key == "manifest" || key.starts_with("manifest-");
        let signatures = key == "signatures" || key.starts_with("signature-");
        if !manifest && !signatures {
            continue;
        }
        let Some(content) = read(key)? else { continue };
        if signatures {
            for one in split(&content) {
                match parse(&one).and_then(|stored| store.put(&stored)) {
                    Ok(_) => imported.signatures += 1,
                    Err(error) => imported.ignored.push(format!("{error:#}")),
                }
            }
        } else if let Ok(digest) = store.put_manifest(&content) {
            imported.images.push(digest);
        } else if let Ok(digest) = store.put_index(&content) {
            imported.images.push(digest);
        } else {
            imported
                .ignored
                .push(format!("{key}: neither an OCI manifest nor an index"));
        }
    }
    // The configuration's name is its digest.
    if let Some(config) = read(&format!("sha256:{}", image.id))? {
        store.put_config(&config)?;
    }
    Ok(())
}

/// The signatures follow each other; each begins with a NUL, and a JSON text holds none.
fn split(content: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let each = content
        .split(|byte| *byte == 0)
        .filter(|one| !one.is_empty());
    each.map(|one| [b"\0", one].concat())
}

fn parse(one: &[u8]) -> Result<StoredSignature> {
    sigstore(one).map_err(Error::msg)
}
