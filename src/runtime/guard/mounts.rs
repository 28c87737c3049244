//! What stands where config.json binds something of the host, as the container sees it before its
//! start: read whole, for a policy with `mounts = "measure"`.
//!
//! Through init's own root, after the backend made the mounts: so it is what is mounted that is read,
//! wherever its name on the host leads meanwhile. Who has a writable source may change it afterwards.

use super::inside::Inside;
use crate::ipc::Refused;
use anyhow::{Context, Result, anyhow};
use content::tree::{self, Bounds, WalkError};
use rustix::fs::{
    FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, fstat, fstatvfs, openat2,
};
use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};
use verify::{
    digest::RootfsDigest, event::MountContent, policy::plain_text, profile::MountUse,
    rootfs::RootfsPath,
};

/// Of one mount: more belongs into an image, and would make a start wait.
const MAX_ENTRIES: usize = 100_000;
const MAX_BYTES: u64 = 1 << 30;

/// One for each bind mount, in the order of the profile.
pub fn measure(root: &OwnedFd, mounts: &[MountUse]) -> Result<Vec<MountContent>> {
    let inside = Inside::of(root)?;
    let place = |mount: &MountUse| inside.place(Path::new(&mount.destination));
    let places: Vec<Option<PathBuf>> = mounts.iter().map(place).collect();
    let bound = mounts.iter().zip(&places).filter(|(m, _)| m.kind == "bind");
    bound
        .map(|(mount, place)| {
            let place = place
                .as_ref()
                .ok_or_else(|| anyhow!("cannot find the mount at {}", mount.destination))?;
            let others = places.iter().flatten();
            let below: Vec<RootfsPath> = others
                .filter(|other| *other != place)
                .filter_map(|other| other.strip_prefix(place).ok())
                .map(|rest| RootfsPath::parse(rest.as_os_str().as_bytes()))
                .collect::<Result<_, _>>()?;
            content_of(root, mount, place, &below)
        })
        .collect()
}

fn content_of(
    root: &OwnedFd,
    mount: &MountUse,
    place: &Path,
    below: &[RootfsPath],
) -> Result<MountContent> {
    let doing = || format!("cannot measure the mount at {}", mount.destination);
    let open = |flags: OFlags| {
        let place = place.strip_prefix("/").unwrap_or(place);
        let place = match place.as_os_str().is_empty() {
            true => Path::new("."),
            false => place,
        };
        openat2(
            root,
            place,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )
    };
    let at = open(OFlags::PATH).with_context(doing)?;
    let stat = fstat(&at).with_context(doing)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let opened = match kind {
        FileType::RegularFile => {
            let file = open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY);
            let file = File::from(file.with_context(doing)?);
            let now = fstat(&file).with_context(doing)?;
            anyhow::ensure!(
                (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino),
                "{}: it is being replaced",
                doing()
            );
            Some(file)
        }
        _ => None,
    };
    let refuse = |error: WalkError| refusal(mount, &error);
    let (kind, mtree, entries, bytes) = match kind {
        FileType::Directory => {
            let bounds = Bounds {
                entries: MAX_ENTRIES,
                bytes: MAX_BYTES,
                except: below,
            };
            let tree = tree::walk_within(at.as_fd(), &bounds).map_err(refuse)?;
            ("dir", tree.mtree(), tree.count(), tree.bytes())
        }
        _ => {
            let size = opened.as_ref().map_or(0, |_| stat.st_size as u64);
            let entry = tree::single(at.as_fd(), opened, MAX_BYTES).map_err(refuse)?;
            (entry.kind.name(), entry.mtree(), 1, size)
        }
    };
    let options = fstatvfs(&at).with_context(doing)?.f_flag;
    Ok(MountContent {
        destination: mount.destination.clone(),
        kind: kind.to_owned(),
        read_only: options.contains(StatVfsMountFlags::RDONLY),
        manifest: RootfsDigest::of(mtree.as_bytes()),
        entries,
        bytes,
    })
}

/// What cannot be measured is no permission.
fn refusal(mount: &MountUse, error: &WalkError) -> Refused {
    Refused(plain_text(&format!(
        "refused: the mount at {} (from {}) cannot be measured, which the policy demands (mounts = \"measure\"): {error}; \
         start it without the mount, bind less, or let the policy have mounts = \"programs\"",
        mount.destination, mount.real_source
    )))
}
