//! Is this the image it claims to be, may it run like this, and is what lies on disk what was signed?
//!
//! From the rootfs outward: the engine's store says which image is mounted, signature and list decide
//! whether it may run, its layers say what the rootfs must hold, and the rootfs is read and compared.

use super::{Application, containerd, view};
use crate::{
    config::{self, Config},
    ipc::Refused,
    programs::{self, Program, Search},
};
use anyhow::{Context, Result, anyhow};
use content::{
    cache::Cache,
    layer::{LayerSource, OtherLayer},
    signatures::Store,
    store::{self, ContainerdRoot, Found, LocateError, Query, Roots},
    tree,
};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags};
use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};
use verify::{
    image::Image,
    policy::{Admission, Material, Policy, decide, plain_text},
    profile::LaunchProfile,
    rootfs::{CheckedRootfs, Kind, RootfsManifest, RootfsPath, Stubs, compare, merge, summary},
};

/// Everything that was found good, with the witnesses that say so.
pub struct Admitted {
    pub admission: Admission,
    pub rootfs: CheckedRootfs,
    pub process: Process,
    /// Where its first argument leads to, before symbolic links are followed.
    pub program: PathBuf,
}

pub fn admit(application: &Application, config: &Config) -> Result<Admitted> {
    let spec: Spec =
        serde_json::from_str(&application.config).context("the sealed config.json is malformed")?;
    let process = spec
        .process()
        .clone()
        .context("config.json has no process")?;
    let policy = std::fs::read(config::POLICY).map_err(|error| {
        anyhow!(
            "cannot read the policy {}: {}",
            config::POLICY,
            error.kind()
        )
    })?;
    let policy = Policy::parse(&policy).with_context(|| format!("policy {}", config::POLICY))?;
    let profile = LaunchProfile::of(&spec, &view::of(&spec)?)?;

    let signatures = Store::open(Path::new(config::SIGNATURES))?;
    let found = locate(application, config, &signatures)?;
    let admission = decided(application, &found, &signatures, &policy, &profile)?;

    let image = admission.image().image();
    let expected = expected_rootfs(image, &found.layers)?;
    let root = open_root(&application.rootfs)?;
    let actual = tree::walk(root.as_fd())
        .with_context(|| format!("rootfs {}", application.rootfs.display()))?;
    let mounts = spec
        .mounts()
        .iter()
        .flatten()
        .map(|m| m.destination().as_path());
    let places: Vec<_> = mounts
        .chain([process.cwd().as_path()])
        .map(|p| p.as_os_str().as_encoded_bytes())
        .collect();
    let rootfs = compare(&expected, &actual, &Stubs::new(found.engine, places)?).map_err(|differences| {
        Refused(plain_text(&format!(
            "refused: image {} ({}): the rootfs {} is not what the signed layers hold: {}; remove the image and pull it again",
            image.name(),
            image.manifest_digest(),
            application.rootfs.display(),
            summary(&differences)
        )))
    })?;
    admission
        .check_rootfs(&expected)
        .map_err(|refusal| Refused(refusal.to_string()))?;

    // the walk has just read every file; only what mounts will bring is not in it (judged at start)
    let walked = |path: &[u8]| match &actual.get(&RootfsPath::parse(path).ok()?)?.kind {
        Kind::File { digest, .. } => Some(*digest),
        _ => None,
    };
    let program = programs::find(root.as_fd(), &Search::of(&process))?;
    let programs = programs::resolve(root.as_fd(), &program, &walked)?;
    let admitted = Admitted {
        admission,
        rootfs,
        process,
        program,
    };
    admitted.judge(&programs)?;
    Ok(admitted)
}

impl Admitted {
    /// Every file that the kernel would execute must be in the list, by its content.
    pub fn judge(&self, programs: &[Program]) -> Result<(), Refused> {
        let (list, image) = (self.admission.list(), self.admission.image());
        for program in programs {
            if list.allows_digest(&program.digest).is_err() {
                return Err(Refused(plain_text(&format!(
                    "refused: {} ({}) is not in the signature list {} serial {} ({}) of image {} ({}) [policy {} rule {}]; \
                     if it may run, add it to the list, sign that with a higher serial and import it",
                    String::from_utf8_lossy(&program.path),
                    program.digest,
                    list.name(),
                    list.serial(),
                    list.digest(),
                    image.name(),
                    image.manifest_digest(),
                    config::POLICY,
                    self.admission.rule(),
                ))));
            }
        }
        Ok(())
    }
}

fn locate(application: &Application, config: &Config, signatures: &Store) -> Result<Found> {
    let roots = Roots {
        containers_storage: config.stores.containers_storage.clone(),
        docker: config.stores.docker.clone(),
        containerd: config
            .stores
            .containerd
            .iter()
            .map(|c| ContainerdRoot {
                root: c.root.clone(),
                address: c.address.clone(),
            })
            .collect(),
    };
    let query = Query {
        rootfs: &application.rootfs,
        container: &application.container,
        state_root: &application.state_root,
        bundle: &application.bundle,
    };
    store::locate(&query, &roots, signatures, &containerd::ask).map_err(|error| match error {
        LocateError::Failed(error) => error.context("cannot find out the container's image"),
        // no image, or one that contradicts itself, is a no of the policy: unknown images do not run
        other => {
            let text = format!(
                "refused: {other}; only images that a rule of {} names may run",
                config::POLICY
            );
            Refused(plain_text(&text)).into()
        }
    })
}

/// The first of the image's manifests that the policy admits.
fn decided(
    application: &Application,
    found: &Found,
    signatures: &Store,
    policy: &Policy,
    profile: &LaunchProfile,
) -> Result<Admission> {
    let mut refusal = None;
    for claimed in &found.claims {
        let image = Image::of(claimed).with_context(|| format!("image {}", claimed.name))?;
        let material = Material::gather(
            policy,
            &image,
            |path| std::fs::read(path),
            |digest| signatures.signatures(digest),
            |digest| signatures.lists(digest),
        )?;
        match decide(policy, &material, profile, application.created) {
            Ok(admission) => return Ok(admission),
            Err(refused) => drop(refusal.get_or_insert(refused)),
        }
    }
    match refusal {
        Some(refused) => Err(Refused(refused.to_string()).into()),
        None => anyhow::bail!("image {} has no manifest", found.name),
    }
}

/// The tree that the layers make, once each has the diff-ID that the signed configuration says.
fn expected_rootfs(image: &Image, layers: &[LayerSource]) -> Result<RootfsManifest> {
    let refuse = |why: &str| {
        let (name, digest) = (image.name(), image.manifest_digest());
        Refused(plain_text(&format!(
            "refused: image {name} ({digest}): {why}; remove the image and pull it again"
        )))
    };
    if layers.len() != image.diff_ids().len() {
        let (mounted, signed) = (layers.len(), image.diff_ids().len());
        return Err(refuse(&format!(
            "the rootfs is mounted from {mounted} layers, the signed image has {signed}"
        ))
        .into());
    }
    let cache = Cache::open(Path::new(LAYER_CACHE))?;
    let layers = cache.layers(layers, image.diff_ids()).map_err(|error| {
        match error.downcast_ref::<OtherLayer>() {
            Some(other) => refuse(&format!("{other}: its content was changed")).into(),
            None => error.context("cannot read the image's layers"),
        }
    })?;
    Ok(merge(layers)?)
}

/// What layers hold, by diff-ID; counts in this boot alone.
const LAYER_CACHE: &str = "/run/attestrun/cache/layers";

fn open_root(rootfs: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(rootfs, flags, Mode::empty())
        .with_context(|| format!("cannot open the rootfs {}", rootfs.display()))
}
