//! An OCI image layout's files (image-spec 1.1, image-layout.md): index.json and blobs by digest.
//!
//! Every blob that is read is hashed and must be what its name says; every file that is written
//! appears whole or not at all.

use crate::beneath;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::{
    fs::{self, AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use verify::digest::{BlobDigest, ImageDigest};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The config of artifacts that have none: `{}` (image-spec, "Guidance for an Empty Descriptor").
pub(crate) const EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub(crate) const EMPTY_CONTENT: &[u8] = b"{}";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The tag of a manifest in index.json (image-spec, annotations.md).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
pub(crate) const INDEX_FILE: &str = "index.json";
const BLOBS: &str = "blobs/sha256";

/// Manifests, indexes, configs, signatures: registries take no larger manifests either.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// A store of a hundred thousand images has such an index.
const MAX_INDEX: u64 = 256 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IndexFile {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub media_type: String,
    pub digest: BlobDigest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}

/// A manifest, as far as signatures and lists need it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ManifestFile {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl IndexFile {
    /// The file up to its first entry.
    pub fn head(&self) -> Result<Vec<u8>> {
        let mut fields = self.others.clone();
        fields.insert("schemaVersion".into(), self.schema_version.into());
        if let Some(media_type) = &self.media_type {
            fields.insert("mediaType".into(), media_type.as_str().into());
        }
        let mut bytes = serde_json::to_vec(&fields)?;
        bytes.pop();
        bytes.extend(br#","manifests":["#);
        Ok(bytes)
    }
}

impl Descriptor {
    pub fn new(media_type: &str, content: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: BlobDigest::of(content),
            size: content.len() as u64,
            artifact_type: None,
            annotations: BTreeMap::new(),
            others: BTreeMap::new(),
        }
    }

    pub fn annotated(mut self, key: &str, value: impl Into<String>) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    pub fn is_index(&self) -> bool {
        [INDEX, DOCKER_INDEX].contains(&self.media_type.as_str())
    }

    pub fn is_manifest(&self) -> bool {
        [MANIFEST, DOCKER_MANIFEST].contains(&self.media_type.as_str())
    }

    pub fn image(&self) -> ImageDigest {
        ImageDigest::from_bytes(*self.digest.as_bytes())
    }
}

/// What a manifest or index calls itself; old ones do not.
pub(crate) fn media_type_of(content: &[u8], otherwise: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    let typed: Typed = serde_json::from_slice(content).context("malformed JSON")?;
    Ok(typed.media_type.unwrap_or_else(|| otherwise.to_owned()))
}

/// A layout's directory.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    shown: String,
}

impl Directory {
    pub fn open(path: &Path) -> Result<Self> {
        let fd = beneath::open_directory(path)?;
        let directory = Self {
            fd,
            shown: path.display().to_string(),
        };
        let layout = directory.file(LAYOUT_FILE, MAX_DOCUMENT)?;
        let layout: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&layout).with_context(|| directory.named(LAYOUT_FILE))?;
        ensure!(
            layout.get("imageLayoutVersion").and_then(|v| v.as_str()) == Some("1.0.0"),
            "{}: not an OCI image layout 1.0.0",
            directory.named(LAYOUT_FILE)
        );
        Ok(directory)
    }

    /// Opens a directory that has a layout's blobs but no index: containerd's content store.
    pub fn open_blobs(path: &Path) -> Result<Self> {
        Ok(Self {
            fd: beneath::open_directory(path)?,
            shown: path.display().to_string(),
        })
    }

    /// The blobs that may be documents, by their size; unhashed.
    pub fn documents(&self) -> Result<Vec<BlobDigest>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let context = || format!("list {}", self.named(BLOBS));
        let fd = beneath::openat2(&self.fd, BLOBS.as_bytes(), flags).with_context(context)?;
        let mut found = Vec::new();
        for entry in fs::Dir::read_from(&fd).with_context(context)? {
            let entry = entry.with_context(context)?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let Ok(digest) = format!("sha256:{name}").parse::<BlobDigest>() else {
                continue;
            };
            // What goes away meanwhile is not there.
            let stat = fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            if stat.is_ok_and(|stat| stat.st_size.unsigned_abs() <= MAX_DOCUMENT) {
                found.push(digest);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Opens the layout, or makes an empty one; the parent directory must exist.
    pub fn create(path: &Path) -> Result<Self> {
        for part in [path.to_owned(), path.join("blobs"), path.join(BLOBS)] {
            match std::fs::create_dir(&part) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("create {}", part.display()));
                }
                _ => {}
            }
        }
        let fd = beneath::open_directory(path)?;
        let directory = Self {
            fd,
            shown: path.display().to_string(),
        };
        let _lock = directory.lock()?;
        directory.sweep()?;
        let empty = IndexFile {
            schema_version: 2,
            media_type: Some(INDEX.into()),
            manifests: Vec::new(),
            others: BTreeMap::new(),
        };
        for (name, content) in [
            (INDEX_FILE, serde_json::to_vec(&empty)?),
            (LAYOUT_FILE, LAYOUT.to_vec()),
        ] {
            if beneath::read_optional(&directory.fd, name, MAX_INDEX)?.is_none() {
                directory.replace(name, &content)?;
            }
        }
        Self::open(path)
    }

    /// Refuses a directory that others than its owner (root, or whoever we are) can write to.
    pub fn require_private(&self) -> Result<()> {
        for name in [".", "blobs", BLOBS] {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = beneath::openat2(&self.fd, name.as_bytes(), flags)
                .with_context(|| format!("open {}", self.named(name)))?;
            let stat = fs::fstat(&fd)?;
            let owner = rustix::process::geteuid().as_raw();
            ensure!(
                [0, owner].contains(&stat.st_uid) && stat.st_mode & 0o022 == 0,
                "{} can be written by others than its owner (uid {}, mode {:04o})",
                self.named(name),
                stat.st_uid,
                stat.st_mode & 0o7777
            );
        }
        Ok(())
    }

    /// Held until dropped: one writer at a time. Readers need no lock, since files appear whole and
    /// blobs before what names them.
    pub fn lock(&self) -> Result<OwnedFd> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = beneath::openat2(&self.fd, b".", flags)?;
        let since = Instant::now();
        loop {
            match fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(fd),
                Err(Errno::WOULDBLOCK | Errno::INTR) if since.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::WOULDBLOCK) => bail!(
                    "somebody else has held the lock of {} for {} s; see who with `lslocks` and try again",
                    self.shown,
                    PATIENCE.as_secs()
                ),
                Err(errno) => return Err(errno).with_context(|| format!("lock {}", self.shown)),
            }
        }
    }

    pub fn index(&self) -> Result<IndexFile> {
        self.index_of(self.open_index()?)
    }

    pub fn open_index(&self) -> Result<File> {
        let file = beneath::open_file(&self.fd, INDEX_FILE.as_bytes());
        file.with_context(|| format!("open {}", self.named(INDEX_FILE)))
    }

    pub fn index_of(&self, file: File) -> Result<IndexFile> {
        let bytes = beneath::read_at_most(file, MAX_INDEX)
            .with_context(|| format!("read {}", self.named(INDEX_FILE)))?;
        let index: IndexFile =
            serde_json::from_slice(&bytes).with_context(|| self.named(INDEX_FILE))?;
        ensure!(
            index.schema_version == 2,
            "{}: schemaVersion is not 2",
            self.named(INDEX_FILE)
        );
        Ok(index)
    }

    pub fn write_index(&self, index: &IndexFile) -> Result<()> {
        self.replace(INDEX_FILE, &serde_json::to_vec(index)?)
    }

    /// The blob, hashed; `None` when the layout does not have it.
    pub fn blob(&self, digest: BlobDigest, max: u64) -> Result<Option<Vec<u8>>> {
        let name = blob_name(digest);
        let Some(content) =
            beneath::read_optional(&self.fd, &name, max).with_context(|| self.shown.clone())?
        else {
            return Ok(None);
        };
        let found = BlobDigest::of(&content);
        ensure!(
            found == digest,
            "{} has the digest {found}",
            self.named(&name)
        );
        Ok(Some(content))
    }

    /// The blob's file, which is not read here; `None` when the layout does not have it.
    pub fn blob_file(&self, digest: BlobDigest) -> Result<Option<File>> {
        let name = blob_name(digest);
        beneath::open_optional(&self.fd, &name).with_context(|| self.shown.clone())
    }

    /// The same for a blob that must be there.
    pub fn required(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let content = self.blob(descriptor.digest, MAX_DOCUMENT)?;
        content.ok_or_else(|| anyhow!("{} is missing", self.named(&blob_name(descriptor.digest))))
    }

    pub fn manifest(&self, descriptor: &Descriptor) -> Result<ManifestFile> {
        let content = self.required(descriptor)?;
        serde_json::from_slice(&content).with_context(|| self.named(&blob_name(descriptor.digest)))
    }

    pub fn put(&self, content: &[u8]) -> Result<BlobDigest> {
        let digest = BlobDigest::of(content);
        // A blob that is damaged is written again.
        if !matches!(self.blob(digest, content.len() as u64), Ok(Some(_))) {
            self.replace(&blob_name(digest), content)?;
        }
        Ok(digest)
    }

    pub fn optional(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>> {
        beneath::read_optional(&self.fd, name, max).with_context(|| self.shown.clone())
    }

    fn file(&self, name: &str, max: u64) -> Result<Vec<u8>> {
        beneath::read(&self.fd, name, max).with_context(|| self.shown.clone())
    }

    /// Writes beside, flushes, renames over, flushes the directory (rename(2) is atomic).
    pub fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let parent_name = name.rsplit_once('/').map_or(".", |(parent, _)| parent);
        let base = name.rsplit('/').next().unwrap_or(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = beneath::openat2(&self.fd, parent_name.as_bytes(), flags)
            .with_context(|| format!("open {}", self.named(parent_name)))?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".{base}.{}.{number}", std::process::id());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let write = || -> Result<()> {
            let mut file = File::from(fs::openat(
                &parent,
                &temporary,
                flags,
                Mode::from_raw_mode(0o644),
            )?);
            file.write_all(content)?;
            file.sync_all()?;
            fs::renameat(&parent, &temporary, &parent, base)?;
            fs::fsync(&parent)?;
            Ok(())
        };
        write()
            .with_context(|| format!("write {}", self.named(name)))
            .inspect_err(|_| {
                let _ = fs::unlinkat(parent.as_fd(), &temporary, AtFlags::empty());
            })
    }

    /// Removes what writers that were killed have left half-written; for the lock's holder, who alone
    /// writes.
    fn sweep(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for part in [".", BLOBS] {
            let context = || format!("clean {}", self.named(part));
            let fd = beneath::openat2(&self.fd, part.as_bytes(), flags).with_context(context)?;
            for entry in fs::Dir::read_from(&fd).with_context(context)? {
                let entry = entry.with_context(context)?;
                if is_temporary(entry.file_name().to_bytes()) {
                    fs::unlinkat(&fd, entry.file_name(), AtFlags::empty()).with_context(context)?;
                }
            }
        }
        Ok(())
    }

    fn named(&self, name: &str) -> String {
        format!("{}/{name}", self.shown)
    }
}

/// A name that `replace` writes under: `.NAME.PID.NUMBER`.
fn is_temporary(name: &[u8]) -> bool {
    let number = |part: Option<&[u8]>| {
        part.is_some_and(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit))
    };
    let mut parts = name.rsplitn(3, |byte| *byte == b'.');
    number(parts.next())
        && number(parts.next())
        && parts
            .next()
            .is_some_and(|rest| rest.len() > 1 && rest.starts_with(b"."))
}

fn blob_name(digest: BlobDigest) -> String {
    format!("{BLOBS}/{}", digest.hex())
}
