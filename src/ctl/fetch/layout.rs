//! An OCI layout that lives for one fetch: what came from the registry, before the store takes it over.

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};
use verify::digest::BlobDigest;

/// Removed when dropped.
pub struct Layout(PathBuf);

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
        let mut name = store.as_os_str().to_owned();
        name.push(format!(".fetch-{}", std::process::id()));
        let path = PathBuf::from(name);
        let layout = Self(path);
        let at = || format!("creating {}", layout.0.display());
        fs::create_dir(&layout.0).with_context(at)?;
        fs::create_dir_all(layout.0.join("blobs/sha256")).with_context(at)?;
        fs::write(
            layout.0.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .with_context(at)?;
        Ok(layout)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn put(&self, content: &[u8]) -> anyhow::Result<BlobDigest> {
        let digest = BlobDigest::of(content);
        let file = self.0.join("blobs/sha256").join(digest.hex());
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
        let file = self.0.join("index.json");
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
        let file = self.0.join("blobs/sha256").join(digest.hex());
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&content).with_context(|| format!("manifest {digest}"))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
