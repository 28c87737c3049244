//! Which image a rootfs was mounted from: the engine's own store is read, from the mount outward.
//!
//! The answer is a claim. It decides which manifest's signature is looked at and which layers the
//! rootfs is compared with; a store that lies can only cause a refusal, because the layers must have
//! the diff-IDs of the signed image and the rootfs must hold what the layers say.
//!
//! Annotations are not read: engines let users set them. Engines' inspect APIs are not called: Docker
//! and podman hold the container's lock while `create` runs. No lock of an engine is taken.

pub(crate) mod attached; // signatures that engines keep with images
mod blobs;
mod claims;
mod containerd;
pub(crate) mod containers_storage;
mod docker;
mod docker_containerd;
mod drivers; // what is refused by name
mod grpc; // containerd's socket
mod mounted; // the directories that a rootfs is mounted from
mod mountinfo;
mod named; // images by the names that engines have for them
mod place; // files below a store's root
mod rootfs;
mod umoci;

pub use containerd::{ContainerRecord, Containerd, ContainerdMount, Cri, Snapshot};
pub use grpc::Client;
pub use mountinfo::{Mount, MountinfoError, origins, parse as parse_mountinfo};
pub use named::{Named, named};
pub use rootfs::Rootfs;

use crate::{layer::LayerSource, signatures::Store};
use mountinfo::Overlay;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use verify::{
    digest::{ConfigDigest, ImageDigest},
    id::ContainerId,
    image::ClaimedImage,
    profile::Launcher,
    rootfs::Engine,
    signature::StoredSignature,
};

/// The stores that the administrator named (`[stores]` of config.toml): nothing is read from a store that
/// is not in this list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roots {
    /// Graph roots of podman, buildah, CRI-O, and their additional image stores.
    pub containers_storage: Vec<PathBuf>,
    /// Docker data roots.
    pub docker: Vec<PathBuf>,
    #[serde(default)]
    pub containerd: Vec<ContainerdRoot>,
}

/// One containerd.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerdRoot {
    /// Its persistent root, where the content store lies.
    pub root: PathBuf,
    /// Its gRPC socket.
    pub address: PathBuf,
}

/// What the caller of `create` said; every field is the caller's word.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    pub rootfs: &'a Rootfs,
    pub container: &'a ContainerId,
    /// `--root`: containerd's shim appends its namespace.
    pub state_root: &'a Path,
    pub bundle: &'a Path,
}

/// What lies at a rootfs.
#[derive(Debug)]
pub enum Located {
    Image(Box<Found>),
    NoImage(NoImage),
}

/// A directory that no engine's store knows an image for: an OCI bundle made by hand, a build from
/// scratch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoImage {
    pub rootfs: PathBuf,
    pub purpose: Purpose,
    pub launcher: Launcher,
}

/// What the engine makes the container for, by its own records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run the image.
    Run,
    /// To hold a pod's namespaces.
    Sandbox,
    /// A step of building another image, for which this one is the base.
    Build,
}

/// What the engine's store says.
#[derive(Debug)]
pub struct Found {
    pub engine: Engine,
    pub purpose: Purpose,
    /// Whose defaults its launch is judged by.
    pub launcher: Launcher,
    /// The engine's name for the image: a label that can be moved.
    pub name: String,
    pub config: ConfigDigest,
    /// One per manifest that names this configuration (the same image pushed by several tools has
    /// several manifests), the engine's own first; never empty. All have the same configuration.
    pub claims: Vec<ClaimedImage>,
    /// Lowest first.
    pub layers: Vec<LayerSource>,
    /// What the engine keeps of signatures, beside the signature store's.
    pub attached: Vec<Attached>,
}

impl Found {
    /// The signatures and attestations that may be about `digest`: the store's, then what the engine
    /// has.
    pub fn signatures(
        &self,
        digest: &ImageDigest,
        store: &Store,
    ) -> anyhow::Result<Vec<StoredSignature>> {
        attached::beside(store, digest, &self.attached)
    }
}

/// A signature in an engine's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attached {
    Signature(StoredSignature),
    /// Why one cannot be used.
    Unusable(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    #[error("rootfs {path} is mounted from a store that config.toml does not name: {detail}")]
    UnknownStore { path: PathBuf, detail: String },
    #[error(
        "rootfs {path} was made by {driver}, whose layers are not read (overlay2, overlay and overlayfs are)"
    )]
    Driver { path: PathBuf, driver: String },
    #[error(
        "image configuration {config} ({name}) has no manifest in the engine's store or the signature store; import its signature with `attestctl import`"
    )]
    NoManifest { name: String, config: ConfigDigest },
    #[error("the engine's store contradicts itself or the mount: {0}")]
    Inconsistent(String),
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Connects to a containerd, in a namespace.
pub type Connect<'a> = dyn Fn(&ContainerdRoot, &str) -> anyhow::Result<Box<dyn Containerd>> + 'a;

/// Finds the image of `query.rootfs`. `connect` is called only for a container that one of
/// `roots.containerd` may have made.
pub fn locate(
    query: &Query<'_>,
    roots: &Roots,
    signatures: &Store,
    connect: &Connect<'_>,
) -> Result<Located, LocateError> {
    let mount = query.rootfs.mount()?;
    let roots = roots.canonical();
    let located = locate_on(mount.as_ref(), query, &roots, signatures, connect)?;
    Ok(located.launched_with(query.bundle))
}

/// `mount`: what the rootfs is the root of.
fn locate_on(
    mount: Option<&Mount>,
    query: &Query<'_>,
    roots: &Roots,
    signatures: &Store,
    connect: &Connect<'_>,
) -> Result<Located, LocateError> {
    let overlay = match mount {
        Some(mount) => mount
            .overlay(&roots.layer_directories())
            .map_err(|error| inconsistent(error.to_string()))?,
        None => None,
    };
    match overlay {
        Some(overlay) => of_overlay(&overlay, query, roots, signatures, connect),
        None => of_directory(mount, query, roots, signatures, connect),
    }
}

/// By the store that the mount's topmost layer lies in.
fn of_overlay(
    overlay: &Overlay,
    query: &Query<'_>,
    roots: &Roots,
    signatures: &Store,
    connect: &Connect<'_>,
) -> Result<Located, LocateError> {
    let Query {
        rootfs, container, ..
    } = *query;
    let top = overlay.upper.as_ref().or(overlay.lower.first());
    let lies_in = |directory: PathBuf| top.is_some_and(|top| top.starts_with(directory));
    drivers::refuse_nested(rootfs.path(), overlay)?;

    let mut dockers = roots.docker.iter();
    if let Some(root) = dockers.find(|root| lies_in(root.join(docker::OVERLAY2))) {
        return match docker::container(root, container)? {
            Some(record) => {
                docker::find(root, overlay, container, record, signatures).map(Located::image)
            }
            None => no_image_of_docker(root, query),
        };
    }
    let storage = &roots.containers_storage;
    if let Some(root) = storage.iter().find(|root| lies_in(root.join("overlay"))) {
        return containers_storage::find(
            root,
            rootfs.path(),
            query.container,
            overlay,
            storage,
            signatures,
        );
    }
    let mut containerds = roots.containerd.iter();
    let Some(store) = containerds.find(|store| lies_in(store.root.clone())) else {
        let detail = match top {
            Some(top) => format!("an overlay mount of {}", top.display()),
            None => "an overlay mount without layers".into(),
        };
        return Err(LocateError::UnknownStore {
            path: rootfs.path().to_owned(),
            detail,
        });
    };
    let Some(namespace) = containerd_namespace(query)? else {
        return match roots.docker.iter().find(|root| is_buildkits(root, query)) {
            Some(root) => no_image_of_docker(root, query),
            None => Err(inconsistent(format!(
                "bundle {} is none of containerd's",
                query.bundle.display()
            ))),
        };
    };
    let api = connect(store, &namespace)?;
    let record = api.container(container)?;
    if let Some(record) = record.filter(|record| !record.snapshot_key.is_empty()) {
        let (root, overlay) = (&store.root, Some(overlay));
        return containerd::find(root, rootfs, overlay, &*api, &record, signatures)
            .map(Located::image);
    }
    // Docker records no image with containerd, but itself.
    for root in &roots.docker {
        if let Some(record) = docker::container(root, container)? {
            let root = &store.root;
            return docker_containerd::find(
                root, rootfs, overlay, container, record, &*api, signatures,
            )
            .map(Located::image);
        }
    }
    Err(inconsistent(format!(
        "neither containerd's record of {container} nor Docker's names an image for what is mounted"
    )))
}

/// A plain directory; or a bind mount, as containerd mounts a snapshot without layers, or a read-only
/// one of one layer.
fn of_directory(
    mount: Option<&Mount>,
    query: &Query<'_>,
    roots: &Roots,
    signatures: &Store,
    connect: &Connect<'_>,
) -> Result<Located, LocateError> {
    let rootfs = query.rootfs;
    drivers::refuse_others(rootfs.path(), mount, roots)?;
    if mount.is_some()
        && let Some(namespace) = containerd_namespace(query)?
    {
        for store in &roots.containerd {
            let api = connect(store, &namespace)?;
            let record = api.container(query.container)?;
            let Some(record) = record.filter(|record| !record.snapshot_key.is_empty()) else {
                continue;
            };
            return containerd::find(&store.root, rootfs, None, &*api, &record, signatures)
                .map(Located::image);
        }
    }
    if rootfs.path().starts_with(query.bundle)
        && let Some(found) = umoci::find(query.bundle, signatures)?
    {
        return Ok(Located::image(found));
    }
    Ok(Located::NoImage(NoImage {
        rootfs: rootfs.path().to_owned(),
        purpose: Purpose::Run,
        launcher: Launcher::Podman,
    }))
}

/// BuildKit within Docker runs its steps on snapshots that no container's record knows.
fn no_image_of_docker(root: &Path, query: &Query<'_>) -> Result<Located, LocateError> {
    if is_buildkits(root, query) {
        return Ok(Located::NoImage(NoImage {
            rootfs: query.rootfs.path().to_owned(),
            purpose: Purpose::Build,
            launcher: Launcher::Docker,
        }));
    }
    Err(inconsistent(format!(
        "Docker in {} knows no container {}",
        root.display(),
        query.container
    )))
}

fn is_buildkits(docker: &Path, query: &Query<'_>) -> bool {
    query.bundle.starts_with(docker.join("buildkit"))
}

impl Located {
    fn image(found: Found) -> Self {
        Self::Image(Box::new(found))
    }

    /// Whoever runs a bundle of his own on what an engine mounted is not that engine.
    fn launched_with(mut self, bundle: &Path) -> Self {
        let launcher = match &mut self {
            Self::Image(found) => &mut found.launcher,
            Self::NoImage(none) => &mut none.launcher,
        };
        if !made_bundle(*launcher, bundle) {
            *launcher = Launcher::Other;
        }
        self
    }
}

/// Engines' bundles lie where only the engine puts them.
fn made_bundle(launcher: Launcher, bundle: &Path) -> bool {
    let mut names = bundle.iter().rev().skip(1);
    let (parent, task) = (names.next(), names.next());
    match launcher {
        // `<root>/overlay-containers/<id>/userdata`
        Launcher::Podman => {
            bundle.ends_with("userdata") && task.is_some_and(|name| name == "overlay-containers")
        }
        // `<state>/io.containerd.runtime.v2.task/<namespace>/<id>`, or BuildKit's own
        Launcher::Docker => {
            task.is_some_and(|name| name == TASKS) && parent.is_some() || is_buildkit(bundle)
        }
        _ => true,
    }
}

fn is_buildkit(bundle: &Path) -> bool {
    bundle.iter().any(|name| name == "buildkit")
}

/// The directory where containerd 1.4 to 2 keep bundles.
const TASKS: &str = "io.containerd.runtime.v2.task";

/// The namespace that containerd's shim names twice: `--root <dir>/<namespace>` and
/// `<state>/io.containerd.runtime.v2.task/<namespace>/<id>` as the bundle. `None` for other callers.
fn containerd_namespace(query: &Query<'_>) -> Result<Option<String>, LocateError> {
    let mut names = query.bundle.iter().rev();
    let (id, namespace, task) = (names.next(), names.next(), names.next());
    let (Some(id), Some(namespace), Some(task)) = (id, namespace, task) else {
        return Ok(None);
    };
    if task != TASKS || id != query.container.as_str() {
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

impl Roots {
    /// As mountinfo shows paths. A store that does not exist holds nothing.
    fn canonical(&self) -> Self {
        let real = |path: &PathBuf| std::fs::canonicalize(path).ok();
        Self {
            containers_storage: self.containers_storage.iter().filter_map(real).collect(),
            docker: (self.docker.iter().filter_map(real))
                .flat_map(docker::with_remapped)
                .collect(),
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

    /// Where this launcher's stores keep volumes of its own, canonical; none is made here.
    pub fn volumes(&self, launcher: Launcher) -> Vec<PathBuf> {
        let roots = self.canonical();
        let stores = match launcher {
            Launcher::Docker => roots.docker,
            Launcher::Podman | Launcher::Buildah => roots.containers_storage,
            Launcher::Containerd | Launcher::Cri | Launcher::CriSandbox | Launcher::Other => {
                Vec::new()
            }
        };
        let volumes = stores.into_iter().map(|root| root.join("volumes"));
        volumes
            .filter_map(|v| std::fs::canonicalize(v).ok())
            .collect()
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

fn inconsistent(what: impl Into<String>) -> LocateError {
    LocateError::Inconsistent(what.into())
}

#[cfg(test)]
mod tests;
