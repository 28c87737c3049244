//! An OCI layout that lives for one fetch: what came from the registry, before the store takes it over.

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use serde_json::json;
use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};
use verify::digest::BlobDigest;

/// Between the store's name and the process that fetches.
const MARK: &str = ".fetch-";

/// Removed when dropped. It is locked meanwhile, so that others tell it from what a fetch that was
/// killed has left.
pub struct Layout {
    path: PathBuf,
    _lock: File,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    media_type: Option<String>,
    manifests: Vec<Part>,
    config: Option<Part>,
    layers: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    digest: BlobDigest,
    #[serde(default)]
    media_type: String,
}

impl Layout {
    /// Beside the store, so that it is as private and on the same file system.
    pub fn beside(store: &Path) -> anyhow::Result<Self> {
        sweep(store)?;
        let mut name = store.as_os_str().to_owned();
        name.push(format!("{MARK}{}", std::process::id()));
        let path = PathBuf::from(name);
        let at = || format!("creating {}", path.display());
        let lock = make_locked(&path).with_context(at)?;
        let layout = Self { path, _lock: lock };
        let at = || format!("creating {}", layout.path.display());
        fs::create_dir_all(layout.path.join("blobs/sha256")).with_context(at)?;
        fs::write(
            layout.path.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .with_context(at)?;
        Ok(layout)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn put(&self, content: &[u8]) -> anyhow::Result<BlobDigest> {
        let digest = BlobDigest::of(content);
        let file = self.path.join("blobs/sha256").join(digest.hex());
        fs::write(&file, content).with_context(|| format!("writing {}", file.display()))?;
        Ok(digest)
    }

    /// The image that was asked for: the layout's only entry.
    pub fn put_image(&self, content: &[u8]) -> anyhow::Result<BlobDigest> {
        let digest = self.put(content)?;
        let document: Document = serde_json::from_slice(content).context("the image's manifest")?;
        let kind = document
            .media_type
            .as_deref()
            .unwrap_or(match document.config {
                Some(_) => "application/vnd.oci.image.manifest.v1+json",
                None => "application/vnd.oci.image.index.v1+json",
            });
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{ "mediaType": kind, "digest": digest, "size": content.len() }],
        });
        let file = self.path.join("index.json");
        fs::write(&file, index.to_string())
            .with_context(|| format!("writing {}", file.display()))?;
        Ok(digest)
    }

    /// The manifests of an index.
    pub fn children(&self, digest: &BlobDigest) -> anyhow::Result<Vec<BlobDigest>> {
        let children = self.document(digest)?.manifests;
        Ok(children.into_iter().map(|part| part.digest).collect())
    }

    /// The configuration of a manifest, and layers that are signatures, not files.
    pub fn blobs_of(&self, digest: &BlobDigest) -> anyhow::Result<Vec<BlobDigest>> {
        let document = self.document(digest)?;
        let layers = document
            .layers
            .into_iter()
            .filter(|layer| content::signatures::is_proof(&layer.media_type));
        Ok(layers
            .chain(document.config)
            .map(|part| part.digest)
            .collect())
    }

    fn document(&self, digest: &BlobDigest) -> anyhow::Result<Document> {
        let file = self.path.join("blobs/sha256").join(digest.hex());
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&content).with_context(|| format!("manifest {digest}"))
    }
}

/// A directory that nobody else has. Who sweeps may have taken it between its making and its lock: then
/// it is made again.
fn make_locked(path: &Path) -> std::io::Result<File> {
    loop {
        fs::create_dir(path)?;
        let gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
        let lock = match File::open(path) {
            Err(error) if gone(&error) => continue,
            opened => opened?,
        };
        flock(&lock, FlockOperation::LockExclusive)?;
        match fs::metadata(path) {
            Ok(found) if found.ino() == lock.metadata()?.ino() => return Ok(lock),
            Err(error) if !gone(&error) => return Err(error),
            _ => {}
        }
    }
}

/// Removes what fetches that were killed have left beside the store: what nobody has locked.
fn sweep(store: &Path) -> anyhow::Result<()> {
    let parent = match store.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let at = || format!("cleaning {}", parent.display());
    let mut prefix = store.file_name().unwrap_or_default().to_owned();
    prefix.push(MARK);
    for entry in fs::read_dir(parent).with_context(at)? {
        let entry = entry.with_context(at)?;
        let name = entry.file_name();
        let number = name.as_bytes().strip_prefix(prefix.as_bytes());
        let ours = number.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit));
        if !ours || !entry.file_type().with_context(at)?.is_dir() {
            continue;
        }
        // Whoever is at work on it, or has just removed it, goes on.
        if let Ok(lock) = File::open(entry.path())
            && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = fs::remove_dir_all(entry.path())
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("removing {}", entry.path().display()));
        }
    }
    Ok(())
}

impl Drop for Layout {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn only_what_nobody_works_on_is_swept() {
        let dir = Scratch::new();
        let store = dir.path().join("store");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("store.fetch-1/blobs")).unwrap();
        fs::create_dir(at("store.fetch-mine")).unwrap();
        fs::create_dir(at("other.fetch-1")).unwrap();
        let working = make_locked(&at("store.fetch-2")).unwrap();
        let layout = Layout::beside(&store).unwrap();
        assert!(!at("store.fetch-1").exists());
        for kept in ["store.fetch-mine", "other.fetch-1", "store.fetch-2"] {
            assert!(at(kept).exists(), "{kept}");
        }
        // The same process twice: the second does not take the first one's away.
        assert!(Layout::beside(&store).is_err());
        assert!(layout.path().exists());
        drop((layout, working));
        Layout::beside(&store).unwrap();
        assert!(!at("store.fetch-2").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
