//! The process's working directory, made in a root file system that lacks it.

use crate::bundle::SealedBundle;
use anyhow::{Context, Result};
use oci_spec::runtime::{Mount, Spec};
use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat2},
    io::Errno,
};
use std::path::{Component, Path, PathBuf};

/// runc makes a working directory that the image lacks; engines rely on it. Below a mount it is not
/// made: what lies there is another file system's.
pub(super) fn make_cwd(sealed: &SealedBundle) -> Result<()> {
    let spec = &sealed.spec;
    let cwd = spec
        .process()
        .as_ref()
        .map(|p| p.cwd().clone())
        .unwrap_or_default();
    let below_mount =
        |m: &Mount| cwd.starts_with(m.destination()) && m.destination() != Path::new("/");
    if spec.mounts().iter().flatten().any(below_mount) {
        return Ok(());
    }
    let owner = host_id(spec, 0);
    // symbolic links of the image end inside the image
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |path: &Path| {
        let path = path
            .strip_prefix("/")
            .ok()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        openat2(
            &sealed.rootfs_fd,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    };
    let mut parent = open(Path::new("/"))?;
    let mut path = PathBuf::from("/");
    for part in cwd.components() {
        path.push(part);
        let next = match (open(&path), part) {
            (Err(Errno::NOENT), Component::Normal(name)) => {
                let mode = Mode::from_raw_mode(0o755);
                mkdirat(&parent, name, mode)
                    .with_context(|| format!("cannot make {}", path.display()))?;
                let made = open(&path)?;
                chownat(
                    &made,
                    "",
                    Some(Uid::from_raw(owner)),
                    Some(Gid::from_raw(owner)),
                    AtFlags::EMPTY_PATH,
                )?;
                made
            }
            (result, _) => result.with_context(|| format!("cannot open {}", path.display()))?,
        };
        parent = next;
    }
    Ok(())
}

/// A uid of the container as the host sees it.
pub(super) fn host_id(spec: &Spec, uid: u32) -> u32 {
    let linux = spec.linux().as_ref();
    let mappings = linux
        .and_then(|l| l.uid_mappings().clone())
        .unwrap_or_default();
    let found = mappings.iter().find_map(|m| {
        let offset = uid
            .checked_sub(m.container_id())
            .filter(|o| *o < m.size())?;
        m.host_id().checked_add(offset)
    });
    found.unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_for_the_host() {
        let text = r#"{"ociVersion":"1.0.2","root":{"path":"r"},"linux":{"uidMappings":[
            {"containerID":0,"hostID":100000,"size":10},{"containerID":1000,"hostID":5,"size":1}]}}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        assert_eq!(host_id(&spec, 0), 100_000);
        assert_eq!(host_id(&spec, 9), 100_009);
        assert_eq!(host_id(&spec, 1000), 5);
        assert_eq!(host_id(&spec, 77), 77);
    }
}
