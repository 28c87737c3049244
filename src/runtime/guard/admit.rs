//! Is this the image it claims to be, may it run like this, and is what lies on disk what was signed?
//!
//! From the rootfs outward: the engine's store says which image is mounted, signature and list decide
//! whether it may run, its layers say what the rootfs must hold, and the rootfs is read and compared.

use super::{
    Application, containerd, enter,
    programs::Program,
};
use crate::{
    config::{self, Config},
    ipc::Refused,
};
use anyhow::{Context, Result};
use content::{
    cache, layer::LayerSource,
    signatures::Store,
    store::{self, ContainerdRoot, Found, LocateError, Query, Roots},
    tree,
};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags};
use std::{os::fd::{AsFd, OwnedFd}, path::Path};
use verify::{
    digest::DiffId,
    image::Image,
    policy::{Admission, Material, Policy, StoredList, decide},
    profile::LaunchProfile,
    rootfs::{CheckedRootfs, RootfsManifest, Stubs, compare, merge, summary},
};

/// Everything that was found good, with the witnesses that say so.
pub struct Admitted {
    pub admission: Admission,
    pub rootfs: CheckedRootfs,
    pub profile: LaunchProfile,
    pub process: Process,
    pub image_name: String,
    list: StoredList,
}

pub fn admit(application: &Application, config: &Config) -> Result<Admitted> {
    let spec: Spec = serde_json::from_str(&application.config).context("the sealed config.json is malformed")?;
    let process = spec.process().clone().context("config.json has no process")?;
    let policy = std::fs::read(config::POLICY).with_context(|| format!("cannot read the policy {}", config::POLICY))?;
    let policy = Policy::parse(&policy).with_context(|| format!("policy {}", config::POLICY))?;
    let profile = LaunchProfile::of(&spec)?;

    let signatures = Store::open(Path::new(config::SIGNATURES))?;
    let found = locate(application, config, &signatures)?;
    let (image, admission, list) = decided(application, &found, &signatures, &policy, &profile)?;

    let expected = expected_rootfs(&image, &found.layers)?;
    let root = open_root(&application.rootfs)?;
    let actual = tree::walk(root.as_fd()).with_context(|| format!("rootfs {}", application.rootfs.display()))?;
    let mounts = spec.mounts().iter().flatten().map(|m| m.destination().as_path());
    let places: Vec<_> = mounts.chain([process.cwd().as_path()]).map(|p| p.as_os_str().as_encoded_bytes()).collect();
    let stubs = Stubs::new(found.engine, places)?;
    let rootfs = compare(&expected, &actual, &stubs).map_err(|differences| {
        Refused(format!(
            "refused: image {} ({}): the rootfs {} is not what the signed layers hold: {}; remove and pull the image again",
            image.name(),
            image.manifest_digest(),
            application.rootfs.display(),
            summary(&differences)
        ))
    })?;
    admission.check_rootfs(&expected).map_err(|refusal| Refused(refusal.to_string()))?;

    let admitted = Admitted { admission, rootfs, profile, process, image_name: image.name().to_owned(), list };
    admitted.judge(&enter::find(&root, &admitted.process)?)?;
    Ok(admitted)
}

impl Admitted {
    /// Every file that the kernel would execute must be in the list, by its content.
    pub fn judge(&self, programs: &[Program]) -> Result<(), Refused> {
        for program in programs {
            if self.admission.list().allows_digest(&program.digest).is_err() {
                let list = self.admission.list();
                return Err(Refused(format!(
                    "refused: {} ({}) is not in the signature list {} serial {} ({}) of image {} ({}); rule {} of {}; \
                     if it may run, add it to the list, sign it with a higher serial and import it",
                    String::from_utf8_lossy(&program.path),
                    program.digest,
                    list.name(),
                    list.serial(),
                    list.digest(),
                    self.image_name,
                    self.admission.image().manifest_digest(),
                    self.admission.rule(),
                    config::POLICY,
                )));
            }
        }
        Ok(())
    }

    pub fn siglist(&self) -> &[u8] {
        &self.list.statement
    }

    pub fn siglist_signature(&self) -> &[u8] {
        &self.list.cms
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
            .map(|c| ContainerdRoot { root: c.root.clone(), address: c.address.clone() })
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
        other => Refused(format!("refused: {other}; only images that a rule of {} names may run", config::POLICY)).into(),
    })
}

/// The first of the image's manifests that the policy admits.
fn decided(
    application: &Application,
    found: &Found,
    signatures: &Store,
    policy: &Policy,
    profile: &LaunchProfile,
) -> Result<(Image, Admission, StoredList)> {
    let mut refusal = None;
    for claimed in &found.claims {
        let image = Image::of(claimed).with_context(|| format!("image {}", claimed.name))?;
        let digests = image.digests();
        let material = Material::gather(policy, &image, |path| std::fs::read(path), |digest| signatures.signatures(digest), |digest| signatures.lists(digest))?;
        let _ = digests;
        match decide(policy, &material, profile, application.created) {
            Ok(admission) => {
                let list = material.list(&admission);
                return Ok((image, admission, list));
            }
            Err(refused) => {
                refusal.get_or_insert(refused);
            }
        }
    }
    match refusal {
        Some(refused) => Err(Refused(refused.to_string()).into()),
        None => anyhow::bail!("image {} has no manifest", found.name),
    }
}

/// The tree that the layers make, once each has the diff-ID that the signed configuration says.
fn expected_rootfs(image: &Image, layers: &[LayerSource]) -> Result<RootfsManifest> {
    let wanted = image.diff_ids();
    if layers.len() != wanted.len() {
        return Err(Refused(format!(
            "refused: image {} ({}) has {} layers, the rootfs is mounted from {}",
            image.name(),
            image.manifest_digest(),
            wanted.len(),
            layers.len()
        ))
        .into());
    }
    let mut read = Vec::with_capacity(layers.len());
    for (layer, diff_id) in layers.iter().zip(wanted) {
        read.push(layer_as(image, layer, *diff_id)?);
    }
    Ok(merge(read)?)
}

fn layer_as(image: &Image, layer: &LayerSource, wanted: DiffId) -> Result<verify::rootfs::Layer> {
    let _ = cache::DIR;
    let (found, content) = layer.read()?;
    if found != wanted {
        return Err(Refused(format!(
            "refused: image {} ({}): the layer {layer} has diff-ID {found}, the signed image says {wanted}: its content was \
             changed; remove and pull the image again",
            image.name(),
            image.manifest_digest()
        ))
        .into());
    }
    Ok(content)
}

fn open_root(rootfs: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(rootfs, flags, Mode::empty()).with_context(|| format!("cannot open the rootfs {}", rootfs.display()))
}
