//! What config.json only points at, looked up on the host: where bind mounts come from, what hooks
//! are, whose namespaces are joined, which devices are TPMs.

use super::{Application, inside::Joined};
use crate::backend::cgroup::is_unified;
use crate::{copies, hooks::StartHook};
use anyhow::{Context, Result};
use content::store::{self, Mount, Roots};
use oci_spec::runtime::Spec;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use verify::profile::{HostProgram, HostView, Launcher, NamespaceOwner, needs};

pub fn of(
    spec: &Spec,
    application: &Application,
    start_hooks: &[StartHook],
    joined: &Joined,
    launcher: Launcher,
    stores: &Roots,
) -> Result<HostView> {
    let origins = &application.copies;
    let needs = needs(spec);
    let mut view = HostView {
        launcher,
        apparmor: apparmor()?,
        selinux: Path::new(SELINUX).exists(),
        unified_cgroups: is_unified(),
        tpm_devices: tpm_devices()?,
        ..HostView::default()
    };
    let mounts = fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mounts = store::parse_mountinfo(&mounts).context("/proc/self/mountinfo")?;
    view.volume_roots = volume_roots(stores.volumes(launcher), &mounts);
    for source in needs.sources {
        // the copy of a program is made once the policy has said yes; whose it is, is said in its place
        let named = origins.get(&source).unwrap_or(&source);
        let real = fs::canonicalize(named).with_context(|| {
            format!("cannot resolve the bind mount's source {}", named.display())
        })?;
        if let Some(path) = origins.get(&source) {
            let (path, digest) = (path.clone(), copies::digest_of(&source)?);
            view.programs
                .insert(source.clone(), HostProgram { path, digest });
        }
        let places = store::origins(&real, &mounts);
        view.origins.insert(real.clone(), places);
        view.sources.insert(source, real);
    }
    for hook in needs.hooks {
        let digest = copies::digest_of(&hook)?;
        let path = origins.get(&hook).context("a hook without origin")?.clone();
        view.hooks.insert(hook, HostProgram { path, digest });
    }
    for hook in start_hooks {
        let digest = hook.program.digest;
        view.start_hooks.insert(hook.path.clone(), digest);
    }
    for namespace in needs.namespaces {
        // only the very namespace that was looked up and will be demanded at the start
        let here = joined.get(&namespace);
        let mut peers = application.peers.iter();
        let peer = peers.find(|p| p.path == namespace && here == Some(&p.namespace));
        let owner = match (owner(&namespace)?, peer) {
            (NamespaceOwner::Other, Some(joins)) => NamespaceOwner::Peer(joins.peer.clone()),
            (owner, _) => owner,
        };
        view.namespaces.insert(namespace, owner);
    }
    Ok(view)
}

/// There once a policy is loaded (selinuxfs).
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// With their other names, where they were bind-mounted themselves.
fn volume_roots(roots: Vec<PathBuf>, mounts: &[Mount]) -> Vec<PathBuf> {
    let others: Vec<_> = (roots.iter())
        .flat_map(|root| store::origins(root, mounts))
        .collect();
    roots.into_iter().chain(others).collect()
}

/// Whether the kernel has AppArmor and it is on; a kernel without the module has no such file.
fn apparmor() -> Result<bool> {
    const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
    match fs::read_to_string(ENABLED) {
        Ok(text) => Ok(text.starts_with('Y')),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot read {ENABLED}")),
    }
}

/// A namespace is the host's if the first process or this one, which stands for the engine, is in it.
fn owner(path: &Path) -> Result<NamespaceOwner> {
    let identity = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let joined = identity(path)
        .with_context(|| format!("cannot look up the namespace {}", path.display()))?;
    for process in ["1", "self"] {
        let directory = PathBuf::from(format!("/proc/{process}/ns"));
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            if identity(&entry?.path()).is_ok_and(|host| host == joined) {
                return Ok(NamespaceOwner::Host);
            }
        }
    }
    Ok(NamespaceOwner::Other)
}

/// Major and minor numbers below /sys/class/tpm and /sys/class/tpmrm; a kernel without TPMs has none.
pub fn tpm_devices() -> Result<Vec<(i64, i64)>> {
    let mut devices = Vec::new();
    for class in ["/sys/class/tpm", "/sys/class/tpmrm"] {
        let entries = match fs::read_dir(class) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| format!("cannot read {class}")),
        };
        for entry in entries {
            let dev = entry?.path().join("dev");
            let text = fs::read_to_string(&dev)
                .with_context(|| format!("cannot read {}", dev.display()))?;
            let numbers = text
                .trim()
                .split_once(':')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
            devices.push(
                numbers.with_context(|| format!("{} holds `{}`", dev.display(), text.trim()))?,
            );
        }
    }
    Ok(devices)
}
