//! Which image a rootfs was mounted from: the engine's own store is read, from the mount outward.
//!
//! The answer is a claim. It decides which manifest's signature is looked at and which layers the
//! rootfs is compared with; a store that lies can only cause a refusal, because the layers must have
//! the diff-IDs of the signed image and the rootfs must hold what the layers say.
//!
//! Annotations are not read: engines let users set them. Engines' inspect APIs are not called: Docker
//! and podman hold the container's lock while `create` runs.

mod containerd;
mod containers_storage;
mod docker;
mod mountinfo;

pub use containerd::{ContainerdAnswer, ContainerdMount, ContainerdQuery};
pub use mountinfo::{Mount, MountinfoError, parse as parse_mountinfo};

use crate::{beneath, layer::LayerSource, signatures::Store};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use verify::{
    digest::{ConfigDigest, DiffId, ImageDigest},
    id::ContainerId,
    image::{ClaimedImage, Index},
    rootfs::Engine,
};

/// The stores that the administrator named: nothing is read from a store that is not in this list.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// Graph roots of podman, buildah, CRI-O, and their additional image stores.
    pub containers_storage: Vec<PathBuf>,
    /// Docker data roots.
    pub docker: Vec<PathBuf>,
    pub containerd: Vec<ContainerdRoot>,
}

/// One containerd: its `root` directory and its socket.
#[derive(Debug, Clone)]
pub struct ContainerdRoot {
    pub root: PathBuf,
    pub address: PathBuf,
}

/// What the caller of `create` said; every field is the caller's word.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// `root.path` of config.json, made absolute.
    pub rootfs: &'a Path,
    pub container: &'a ContainerId,
    /// `--root`: containerd's shim appends its namespace.
    pub state_root: &'a Path,
    pub bundle: &'a Path,
}

/// What the engine's store says.
#[derive(Debug)]
pub struct Found {
    pub engine: Engine,
    /// The engine's name for the image: a label that can be moved.
    pub name: String,
    pub config: ConfigDigest,
    /// One per manifest that names this configuration (the same image pushed by several tools has
    /// several manifests), the engine's own first; never empty. All have the same configuration.
    pub claims: Vec<ClaimedImage>,
    /// Lowest first.
    pub layers: Vec<LayerSource>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    #[error("rootfs {0} is a plain directory: no engine's store knows an image for it")]
    NoImage(PathBuf),
    #[error("rootfs {path} is mounted from a store that config.toml does not name: {detail}")]
    UnknownStore { path: PathBuf, detail: String },
    #[error(
        "image configuration {config} ({name}) has no manifest in the engine's store or the signature store; import its signature with `attestctl import`"
    )]
    NoManifest { name: String, config: ConfigDigest },
    #[error("the engine's store contradicts itself or the mount: {0}")]
    Inconsistent(String),
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Finds the image of `query.rootfs`. `containerd` asks containerd about one container; it is called
/// only for a rootfs that lies in one of `roots.containerd`.
pub fn locate(
    query: &Query<'_>,
    roots: &Roots,
    signatures: &Store,
    containerd: &dyn Fn(&ContainerdQuery) -> anyhow::Result<ContainerdAnswer>,
) -> Result<Found, LocateError> {
    let mountinfo = beneath::read_bounded_proc(Path::new("/proc/self/mountinfo"))?;
    locate_among(
        &mountinfo,
        query,
        &roots.canonical(),
        signatures,
        containerd,
    )
}

fn locate_among(
    mountinfo: &[u8],
    query: &Query<'_>,
    roots: &Roots,
    signatures: &Store,
    containerd: &dyn Fn(&ContainerdQuery) -> anyhow::Result<ContainerdAnswer>,
) -> Result<Found, LocateError> {
    let mounts = mountinfo::parse(mountinfo).map_err(|error| inconsistent(error.to_string()))?;
    let rootfs = std::fs::canonicalize(query.rootfs)
        .with_context(|| format!("resolve rootfs {}", query.rootfs.display()))?;
    // Of several mounts at one place the last one is seen.
    let Some(mount) = mounts.iter().rfind(|mount| mount.mount_point == rootfs) else {
        return Err(LocateError::NoImage(rootfs));
    };
    let overlay = mount
        .overlay(&roots.layer_directories())
        .map_err(|error| inconsistent(error.to_string()))?;
    let Some(overlay) = overlay else {
        // A read-only snapshot of one layer, or one without layers, is a bind mount.
        let Some(namespace) = containerd_namespace(query)? else {
            let detail = format!("a {} mount, no overlay", mount.fs_type);
            return Err(LocateError::UnknownStore {
                path: rootfs,
                detail,
            });
        };
        for store in &roots.containerd {
            let answer = containerd(&store.query(&namespace, query.container))?;
            let inside = answer
                .mounts
                .iter()
                .any(|mount| mount.source.starts_with(&store.root));
            if inside {
                return containerd::find(&store.root, &rootfs, None, &answer, signatures);
            }
        }
        let detail = "a bind mount that no configured containerd made".into();
        return Err(LocateError::UnknownStore {
            path: rootfs,
            detail,
        });
    };
    let top = overlay.upper.as_ref().or(overlay.lower.first());
    let lies_in = |directory: PathBuf| top.is_some_and(|top| top.starts_with(directory));
    if let Some(root) = roots
        .docker
        .iter()
        .find(|root| lies_in(root.join("overlay2")))
    {
        return docker::find(root, &overlay, query.container, signatures);
    }
    let storage = &roots.containers_storage;
    if let Some(root) = storage.iter().find(|root| lies_in(root.join("overlay"))) {
        return containers_storage::find(root, &overlay, storage, signatures);
    }
    if let Some(store) = roots
        .containerd
        .iter()
        .find(|store| lies_in(store.root.clone()))
    {
        let namespace = containerd_namespace(query)?.ok_or_else(|| {
            inconsistent(format!(
                "bundle {} is none of containerd's",
                query.bundle.display()
            ))
        })?;
        let answer = containerd(&store.query(&namespace, query.container))?;
        return containerd::find(&store.root, &rootfs, Some(&overlay), &answer, signatures);
    }
    let detail = match top {
        Some(top) => format!("an overlay mount of {}", top.display()),
        None => "an overlay mount without layers".into(),
    };
    Err(LocateError::UnknownStore {
        path: rootfs,
        detail,
    })
}

/// The namespace that containerd's shim names twice: `--root <dir>/<namespace>` and
/// `<state>/io.containerd.runtime.v2.task/<namespace>/<id>` as the bundle. `None` for other callers.
fn containerd_namespace(query: &Query<'_>) -> Result<Option<String>, LocateError> {
    let mut names = query.bundle.iter().rev();
    let (id, namespace, task) = (names.next(), names.next(), names.next());
    let (Some(id), Some(namespace), Some(task)) = (id, namespace, task) else {
        return Ok(None);
    };
    if task != "io.containerd.runtime.v2.task" || id != query.container.as_str() {
        return Ok(None);
    }
    if query.state_root.file_name() != Some(namespace) {
        return Err(inconsistent(format!(
            "--root {} and the bundle {} name different namespaces",
            query.state_root.display(),
            query.bundle.display()
        )));
    }
    Ok(namespace.to_str().map(str::to_owned))
}

impl ContainerdRoot {
    fn query(&self, namespace: &str, container: &ContainerId) -> ContainerdQuery {
        ContainerdQuery {
            address: self.address.clone(),
            namespace: namespace.to_owned(),
            container: container.to_string(),
        }
    }
}

impl Roots {
    /// As mountinfo shows paths. A store that does not exist holds nothing.
    fn canonical(&self) -> Self {
        let real = |path: &PathBuf| std::fs::canonicalize(path).ok();
        Self {
            containers_storage: self.containers_storage.iter().filter_map(real).collect(),
            docker: self.docker.iter().filter_map(real).collect(),
            containerd: (self.containerd.iter())
                .filter_map(|store| {
                    Some(ContainerdRoot {
                        root: real(&store.root)?,
                        ..store.clone()
                    })
                })
                .collect(),
        }
    }

    /// Where the stores keep layers: what a mount's relative paths start from.
    fn layer_directories(&self) -> Vec<PathBuf> {
        const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";
        let storage = self
            .containers_storage
            .iter()
            .map(|root| root.join("overlay"));
        let docker = self.docker.iter().map(|root| root.join("overlay2"));
        let containerd = self
            .containerd
            .iter()
            .map(|store| store.root.join(SNAPSHOTS));
        storage.chain(docker).chain(containerd).collect()
    }
}

/// The first name of `path` below `directory`.
fn component_below(path: &Path, directory: &Path) -> Option<String> {
    path.strip_prefix(directory)
        .ok()?
        .iter()
        .next()?
        .to_str()
        .map(str::to_owned)
}

/// OCI image-spec, config.md, "Layer ChainID".
fn chain_ids(diff_ids: &[DiffId]) -> Vec<DiffId> {
    let mut chain: Vec<DiffId> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(below) => DiffId::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// The claims: the engine's manifests, then those of the signature store, each with the indexes that
/// contain it.
fn with_stored(
    name: &str,
    config: ConfigDigest,
    config_bytes: Vec<u8>,
    mut manifests: Vec<Vec<u8>>,
    indexes: &[Vec<u8>],
    signatures: &Store,
) -> Result<Vec<ClaimedImage>, LocateError> {
    manifests.extend(
        signatures
            .manifest_by_config(&config)?
            .into_iter()
            .map(|(_, content)| content),
    );
    let mut claims: Vec<ClaimedImage> = Vec::new();
    for manifest_bytes in manifests {
        if claims
            .iter()
            .any(|claim| claim.manifest_bytes == manifest_bytes)
        {
            continue;
        }
        let digest = ImageDigest::of(&manifest_bytes);
        let contains =
            |content: &&Vec<u8>| Index::parse(content).is_ok_and(|index| index.contains(&digest));
        let mut index_bytes: Vec<_> = indexes.iter().filter(contains).cloned().collect();
        index_bytes.extend(
            signatures
                .indexes_containing(&digest)?
                .into_iter()
                .map(|(_, content)| content),
        );
        index_bytes.sort();
        index_bytes.dedup();
        let (name, config_bytes) = (name.to_owned(), config_bytes.clone());
        claims.push(ClaimedImage {
            name,
            manifest_bytes,
            config_bytes,
            index_bytes,
        });
    }
    if claims.is_empty() {
        return Err(LocateError::NoManifest {
            name: name.to_owned(),
            config,
        });
    }
    Ok(claims)
}

fn inconsistent(what: impl Into<String>) -> LocateError {
    LocateError::Inconsistent(what.into())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
