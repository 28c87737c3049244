//! What an engine itself puts into a rootfs besides the image: a fixed list, by name.

use super::{Entry, Expected, Kind, PathError, RootfsPath, owners::NOBODY};
use std::fmt;

/// Whose store the rootfs was mounted from; it decides which stubs are to be expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// podman, buildah, CRI-O.
    ContainersStorage,
    /// Docker, with its overlay2 graph driver or with containerd's image store.
    Docker,
    /// containerd: ctr, nerdctl, CRI.
    Containerd,
    /// A bundle that umoci unpacked: no engine puts anything there.
    Umoci,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ContainersStorage => "containers-storage",
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Umoci => "umoci",
        })
    }
}

/// Docker's init layer (moby, daemon/initlayer/setup_unix.go): it replaces a file of the image at
/// these paths by an empty one.
const DOCKER_FILES: [&[u8]; 5] = [
    b".dockerenv",
    b"etc/resolv.conf",
    b"etc/hosts",
    b"etc/hostname",
    b"dev/console",
];
const DOCKER_DIRECTORIES: [&[u8]; 4] = [b"dev/pts", b"dev/shm", b"proc", b"sys"];
/// Docker's init layer and podman (libpod, container_internal_linux.go) make it when it is missing,
/// Docker also when it is a file.
const MTAB: &[u8] = b"etc/mtab";
const MTAB_TARGET: &[u8] = b"/proc/mounts";

/// The stubs that may stand in one rootfs. Every one is an empty directory, an empty file, or
/// `/etc/mtab` -> `/proc/mounts`, owned by root and without set-id bits: nothing that could run or
/// that could be read in place of what the image holds.
#[derive(Debug, Clone)]
pub struct Stubs {
    engine: Engine,
    mount_points: Vec<RootfsPath>,
}

impl Stubs {
    /// `mount_points`: the destinations of the bundle's mounts, and its working directory: the
    /// engine or the runtime makes what is missing there, and leaves it for the next start.
    pub fn new<'a>(
        engine: Engine,
        mount_points: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, PathError> {
        let mount_points = mount_points
            .into_iter()
            .map(RootfsPath::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            engine,
            mount_points,
        })
    }

    /// The same, with the mount points also where the image's symbolic links lead
    /// (`/var/run/x` -> `/run/x`).
    pub(super) fn resolved<E: Expected>(&self, manifest: &E) -> Result<Self, E::Error> {
        let mut mount_points = self.mount_points.clone();
        for point in &self.mount_points {
            mount_points.extend(manifest.resolve(point.as_bytes())?);
        }
        Ok(Self {
            engine: self.engine,
            mount_points,
        })
    }

    /// The name of the rule that explains why `found` stands at `path` instead of `expected`.
    pub(super) fn explain(
        &self,
        path: &RootfsPath,
        expected: Option<&Entry>,
        found: &Entry,
    ) -> Option<String> {
        let stub = match &found.kind {
            Kind::Directory if expected.is_none() => harmless(found, 0o755),
            Kind::File { size: 0, .. } => harmless(found, 0o777),
            Kind::Symlink { target } => {
                path.as_bytes() == MTAB && target == MTAB_TARGET && is_roots_link(found)
            }
            _ => false,
        };
        if !stub {
            return None;
        }
        let replaces_file =
            expected.is_none_or(|e| matches!(e.kind, Kind::File { .. } | Kind::Symlink { .. }));
        match (self.engine, &found.kind) {
            (Engine::Docker, Kind::File { .. })
                if DOCKER_FILES.contains(&path.as_bytes()) && replaces_file =>
            {
                return Some(format!("docker:{path}"));
            }
            (Engine::Docker, Kind::Symlink { .. }) if replaces_file => {
                return Some(format!("docker:{path}"));
            }
            (Engine::ContainersStorage, Kind::Symlink { .. }) if expected.is_none() => {
                return Some(format!("containers-storage:{path}"));
            }
            _ => {}
        }
        if expected.is_some() {
            return None;
        }
        // From here on: something that the image does not have at all.
        let leads_to =
            |stub: &RootfsPath| stub == path || stub.is_below(path) && found.is_directory();
        if self.engine == Engine::Docker {
            let mut fixed = DOCKER_DIRECTORIES
                .iter()
                .chain(&DOCKER_FILES)
                .chain([&MTAB]);
            let at = |stub: &&[u8]| RootfsPath::parse(stub).is_ok_and(|stub| leads_to(&stub));
            if found.is_directory() && fixed.any(at) {
                return Some(format!("docker:{path}"));
            }
        }
        if self.engine == Engine::ContainersStorage
            && found.is_directory()
            && path.as_bytes() == b"etc"
        {
            return Some(format!("containers-storage:{path}"));
        }
        self.mount_points
            .iter()
            .any(leads_to)
            .then(|| format!("mount-point:{path}"))
    }
}

/// Docker's link belongs to the host's root, who is nobody to a container with a user namespace.
fn is_roots_link(link: &Entry) -> bool {
    [(0, 0), (NOBODY, NOBODY)].contains(&(link.uid, link.gid))
}

/// Root's, no xattrs, no special bits, at most these permissions.
fn harmless(entry: &Entry, most: u16) -> bool {
    (entry.uid, entry.gid) == (0, 0) && entry.xattrs.is_empty() && entry.mode & !most == 0
}
