//! Storage drivers whose mounts cannot be traced to layers: refused by their name, so that the user
//! knows what to change.

use super::{
    LocateError, Roots,
    mountinfo::{Mount, Overlay},
};
use rustix::fs::statfs;
use std::path::Path;

/// statfs(2).
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

/// Where engines' other drivers keep containers' files, below the engine's root (moby,
/// daemon/graphdriver; containers/storage, drivers).
const DOCKER: [(&str, &str); 6] = [
    ("vfs/dir", "vfs"),
    ("btrfs/subvolumes", "btrfs"),
    ("zfs/graph", "zfs"),
    ("devicemapper/mnt", "devicemapper"),
    ("aufs/mnt", "aufs"),
    ("fuse-overlayfs", "fuse-overlayfs"),
];
const CONTAINERS_STORAGE: [(&str, &str); 4] = [
    ("vfs/dir", "vfs"),
    ("vfs-containers", "vfs"),
    ("btrfs/subvolumes", "btrfs"),
    ("zfs/graph", "zfs"),
];

/// An overlay over another overlay: what its layers show depends on a mount that nobody looks at.
pub(super) fn refuse_nested(rootfs: &Path, overlay: &Overlay) -> Result<(), LocateError> {
    for layer in overlay.upper.iter().chain(&overlay.lower) {
        // a layer that is gone is noticed by whoever looks it up
        let nested = statfs(layer).is_ok_and(|fs| fs.f_type as u64 == OVERLAYFS_SUPER_MAGIC);
        if nested {
            return Err(refused(
                rootfs,
                format!("an overlay over another one ({})", layer.display()),
            ));
        }
    }
    Ok(())
}

/// By the file system that is mounted, or the place in an engine's store.
pub(super) fn refuse_others(
    rootfs: &Path,
    mount: Option<&Mount>,
    roots: &Roots,
) -> Result<(), LocateError> {
    if let Some(mount) = mount.filter(|mount| mount.fs_type.starts_with("fuse")) {
        let driver = mount.fs_type.trim_start_matches("fuse.");
        return Err(refused(rootfs, format!("a FUSE file system ({driver})")));
    }
    let within = |root: &Path, drivers: &[(&str, &str)]| {
        let mut fitting = drivers.iter();
        let found = fitting.find(|(place, _)| rootfs.starts_with(root.join(place)));
        found.map(|(_, driver)| (*driver).to_owned())
    };
    let dockers = roots.docker.iter();
    let docker = dockers.filter_map(|root| Some(("Docker's", within(root, &DOCKER)?)));
    let stores = roots.containers_storage.iter();
    let storage = stores
        .filter_map(|root| Some(("containers-storage's", within(root, &CONTAINERS_STORAGE)?)));
    match docker.chain(storage).next() {
        Some((whose, driver)) => Err(refused(rootfs, format!("{whose} driver {driver}"))),
        None => Ok(()),
    }
}

fn refused(rootfs: &Path, driver: String) -> LocateError {
    LocateError::Driver {
        path: rootfs.to_owned(),
        driver,
    }
}
