//! What a container has of its own TPM: a directory at [`PLACE`], read-only, with a socket where the guard
//! answers, the event log, the list and the certificate behind it; and variables that name the socket to
//! programs. It is in the sealed configuration like any mount, and in none of what is judged: who else
//! mounts anything there is refused.
//!
//! The mount's place is made in the rootfs where the image has none, as for every mount, and taken away
//! when the container is deleted. Where it cannot be made the container is without: see [`Lending::of`].

use crate::state::RunDir;
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, MountBuilder, Process, Spec};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstatvfs, openat2, statat, unlinkat},
    io::Errno,
};
use serde::Deserialize;
use std::{
    fmt,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

/// Where the container finds it.
pub const PLACE: &str = "/run/attestrun";
/// The socket's name; its control socket, as swtpm has one, is beside it with `.ctrl` behind.
pub const SOCKET: &str = "tpm.sock";

/// A caller says by it what it wants, and `state` what there is.
const ANNOTATION: &str = "dev.attestrun.vtpm";

/// What tpm2-tools, OpenSSL's provider and the PKCS#11 module ask for their TPM.
const VARIABLES: [&str; 3] = ["TPM2TOOLS_TCTI", "TPM2OPENSSL_TCTI", "TPM2_PKCS11_TCTI"];

fn tcti() -> String {
    format!("swtpm:path={PLACE}/{SOCKET}")
}

/// Whom the container's first user is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// How a container comes by its TPM, or why it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lending {
    To {
        owner: Owner,
        /// Directories of the rootfs that have to be made, the outer one first.
        stubs: Vec<PathBuf>,
    },
    Not(&'static str),
}

/// What a caller says about its container's TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Unsaid,
    /// It is to have none: annotation `dev.attestrun.vtpm = "none"`.
    Without,
    /// It is to have one, or not to start: `"socket"`, or an entry in `linux.resources.vtpms`.
    Demanded,
}

/// An entry of `linux.resources.vtpms` (opencontainers/runtime-spec, proposal 920).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Vtpm {
    state_path: String,
    state_path_is_managed: bool,
    vtpm_version: String,
    create_certs: bool,
    run_as: String,
    pcr_banks: String,
    encryption_password: String,
    vtpm_name: String,
    vtpm_major: u32,
    vtpm_minor: u32,
}

impl Wish {
    /// A wish that cannot be fulfilled is an error, never something else.
    pub fn of(spec: &Spec, vtpms: &[Vtpm]) -> Result<Self> {
        let annotations = spec.annotations().as_ref();
        let said = annotations.and_then(|all| all.get(ANNOTATION));
        let by_annotation = match said.map(String::as_str) {
            None => Self::Unsaid,
            Some("none") => Self::Without,
            Some("socket") => Self::Demanded,
            Some(other) => {
                bail!("annotation {ANNOTATION}: `{other}` is neither `none` nor `socket`")
            }
        };
        match vtpms {
            [] => Ok(by_annotation),
            [_] if by_annotation == Self::Without => {
                bail!("annotation {ANNOTATION} says `none`, and linux.resources.vtpms names one")
            }
            [vtpm] => vtpm.check().map(|()| Self::Demanded),
            _ => bail!(
                "linux.resources.vtpms: a container has one vTPM, not {}",
                vtpms.len()
            ),
        }
    }
}

impl Vtpm {
    /// The entries of a config.json; absent ones are none.
    pub fn all(config: &[u8]) -> Result<Vec<Self>> {
        /// The way to them; all else is skipped, however deeply nested it is.
        #[derive(Default, Deserialize)]
        struct Config {
            linux: Option<Linux>,
        }
        #[derive(Default, Deserialize)]
        struct Linux {
            resources: Option<Resources>,
        }
        #[derive(Default, Deserialize)]
        struct Resources {
            vtpms: Option<Vec<Vtpm>>,
        }
        let config: Config = serde_json::from_slice(config).context("linux.resources.vtpms")?;
        let resources = config.linux.unwrap_or_default().resources;
        Ok(resources.unwrap_or_default().vtpms.unwrap_or_default())
    }

    /// Whether it asks for what there is: TPM 2.0, fresh at each start, at a socket.
    fn check(&self) -> Result<()> {
        let banks = self.pcr_banks.split(',').filter(|bank| !bank.is_empty());
        let unknown = |bank: &str| !["sha1", "sha256", "sha384", "sha512"].contains(&bank.trim());
        for (asked, what) in [
            (
                !["", "2"].contains(&self.vtpm_version.as_str()),
                "vtpmVersion: it is a TPM 2.0",
            ),
            (
                !self.state_path.is_empty(),
                "statePath: the host knows its place (annotation dev.attestrun.vtpm.persistent)",
            ),
            (
                self.state_path_is_managed,
                "statePathIsManaged: annotation dev.attestrun.vtpm.persistent says it",
            ),
            (
                !self.encryption_password.is_empty(),
                "encryptionPassword: the host's TPM has the key of a state that is kept",
            ),
            (
                self.create_certs,
                "createCerts: the host decides for all its containers (vtpm.ek_certificate)",
            ),
            (
                !self.run_as.is_empty(),
                "runAs: each vTPM has a user of its own (vtpm.uid_range)",
            ),
            (
                !self.vtpm_name.is_empty(),
                "vtpmName: it is at a socket, not a device",
            ),
            (
                self.vtpm_major != 0 || self.vtpm_minor != 0,
                "vtpmMajor: it is at a socket, not a device",
            ),
            (
                banks.into_iter().any(unknown),
                "pcrBanks: it has sha1, sha256, sha384 and sha512",
            ),
        ] {
            ensure!(!asked, "linux.resources.vtpms: {what}");
        }
        Ok(())
    }
}

impl Lending {
    /// What the host's configuration, the caller and the container's mounts make of it.
    pub fn choose(spec: &Spec, wish: Wish, rootfs: BorrowedFd<'_>, allowed: bool) -> Result<Self> {
        let lending = match (wish, allowed) {
            (Wish::Without, _) => Self::Not("its configuration does not want it"),
            (_, false) => Self::Not("vtpm.in_containers = false"),
            (_, true) => Self::of(spec, rootfs)?,
        };
        match (&lending, wish) {
            (Self::Not(why), Wish::Demanded) => {
                bail!("the container is to have its TPM at {PLACE}, and cannot: {why}")
            }
            _ => Ok(lending),
        }
    }

    /// Nothing that a container would have under runc is given up for it: where its own mounts or a
    /// read-only rootfs leave no place, it has no socket.
    fn of(spec: &Spec, rootfs: BorrowedFd<'_>) -> Result<Self> {
        let owner = match owner(spec) {
            Ok(owner) => owner,
            Err(why) => return Ok(Self::Not(why)),
        };
        let place = Path::new(PLACE);
        let mut mounts = spec.mounts().iter().flatten();
        let at = |mount: &&Mount| {
            let there = crate::bundle::plain(mount.destination());
            place.starts_with(&there) && there != Path::new("/") || there.starts_with(place)
        };
        // of several the last one is seen
        if let Some(mount) = mounts.rfind(at) {
            let tmpfs = mount.typ().as_deref() == Some("tmpfs");
            let there = crate::bundle::plain(mount.destination());
            let above = place.starts_with(&there) && there != place;
            let writable = !mount
                .options()
                .iter()
                .flatten()
                .any(|option| option == "ro");
            return Ok(match tmpfs && above && writable {
                true => Self::To {
                    owner,
                    stubs: Vec::new(),
                },
                false => Self::Not("it has a mount of its own there"),
            });
        }
        Self::in_rootfs(rootfs, owner, has_user_namespace(spec))
    }

    fn in_rootfs(rootfs: BorrowedFd<'_>, owner: Owner, mapped: bool) -> Result<Self> {
        let mut stubs = Vec::new();
        for path in ["run", &PLACE[1..]] {
            match look(rootfs, path) {
                Ok(FileType::Directory) => {}
                Ok(_) | Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Ok(Self::Not("the image has no directory there"));
                }
                // a link to nothing leads somewhere else for each who makes what is missing
                Err(Errno::NOENT) if is_link(rootfs, path) => {
                    return Ok(Self::Not("the image has no directory there"));
                }
                Err(Errno::NOENT) => stubs.push(PathBuf::from(path)),
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot look up {path} in the rootfs"));
                }
            }
        }
        let flags = fstatvfs(rootfs)
            .context("cannot look at the rootfs")?
            .f_flag;
        if !stubs.is_empty() && flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Ok(Self::Not(
                "the rootfs is read-only and has no directory there",
            ));
        }
        // in a user namespace the container's root user makes it, where that user may
        if let Some(parent) = stubs.first().and_then(|stub| stub.parent())
            && mapped
            && !owns(rootfs, parent, owner)?
        {
            return Ok(Self::Not(
                "the image has no directory there, and the container's root user cannot make one",
            ));
        }
        Ok(Self::To { owner, stubs })
    }

    /// Lays the directory below `run_dir` and names it in `spec`.
    pub fn carry_out(&self, spec: &mut Spec, run_dir: &RunDir) -> Result<()> {
        let Self::To { owner, .. } = self else {
            return Ok(());
        };
        run_dir.lay_inside(*owner, has_user_namespace(spec))?;
        let mount = mount(run_dir, spec)?;
        spec.mounts_mut().get_or_insert_default().push(mount);
        if let Some(process) = spec.process_mut() {
            name_in(process);
        }
        Ok(())
    }
}

/// For `state`.
impl fmt::Display for Lending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To { .. } => write!(f, "{PLACE}/{SOCKET}"),
            Self::Not(why) => write!(f, "not in the container: {why}"),
        }
    }
}

/// What there is, symbolic links followed as the container does.
fn look(rootfs: BorrowedFd<'_>, path: &str) -> Result<FileType, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(rootfs, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let stat = statat(&found, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// Whether `directory` of the rootfs, which is there, is the container's root user's.
fn owns(rootfs: BorrowedFd<'_>, directory: &Path, owner: Owner) -> Result<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = Path::new(".").join(directory);
    let found = openat2(rootfs, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
        .and_then(|found| statat(&found, "", AtFlags::EMPTY_PATH));
    let found =
        found.with_context(|| format!("cannot look at /{} in the rootfs", directory.display()))?;
    Ok(found.st_uid == owner.uid)
}

fn is_link(rootfs: BorrowedFd<'_>, path: &str) -> bool {
    let found = statat(rootfs, path, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink)
}

/// Adds the variables that the process does not have yet.
pub fn name_in(process: &mut Process) {
    let mut env = process.env().clone().unwrap_or_default();
    for name in VARIABLES {
        if !env
            .iter()
            .any(|entry| entry.split('=').next() == Some(name))
        {
            env.push(format!("{name}={}", tcti()));
        }
    }
    process.set_env(Some(env));
}

/// The mount, as it stands in the sealed configuration of the run.
fn mount(run_dir: &RunDir, spec: &Spec) -> Result<Mount> {
    let options = ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"];
    let mount = MountBuilder::default()
        .destination(PLACE)
        .typ("bind")
        .source(run_dir.inside(has_user_namespace(spec)))
        .options(options.map(str::to_owned).to_vec())
        .build()?;
    Ok(mount)
}

/// The configuration as its caller wrote it: without what [`Lending::carry_out`] added, which only that
/// can have, since nobody else knows the run's name.
pub fn as_called(sealed: &Spec, run_dir: &RunDir) -> Result<(Spec, Option<Owner>)> {
    let mut spec = sealed.clone();
    let ours = mount(run_dir, sealed)?;
    let mounts = spec.mounts_mut().get_or_insert_default();
    let before = mounts.len();
    mounts.retain(|mount| *mount != ours);
    if mounts.len() == before {
        return Ok((spec, None));
    }
    let owner = owner(sealed).map_err(anyhow::Error::msg)?;
    if let Some(process) = spec.process_mut() {
        let ours = VARIABLES.map(|name| format!("{name}={}", tcti()));
        let env = process.env().clone().unwrap_or_default();
        let env = env.into_iter().filter(|entry| !ours.contains(entry));
        process.set_env(Some(env.collect()));
    }
    Ok((spec, Some(owner)))
}

/// Takes the directories away that were made for the mount, if nothing is in them.
pub fn take_back(rootfs: &Path, stubs: &[PathBuf]) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(rootfs, flags, Mode::empty()) else {
        return; // unmounted: it is the engine's matter
    };
    for stub in stubs.iter().rev() {
        let (parent, name) = (stub.parent(), stub.file_name());
        let parent = parent.filter(|p| !p.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let resolve = ResolveFlags::IN_ROOT;
        let opened = openat2(&root, parent, flags, Mode::empty(), resolve);
        if let (Ok(parent), Some(name)) = (opened, name) {
            unlinkat(&parent, name, AtFlags::REMOVEDIR).ok();
        }
    }
}

fn has_user_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    let mut namespaces = namespaces.into_iter().flatten();
    namespaces.any(|n| n.typ() == LinuxNamespaceType::User)
}

fn owner(spec: &Spec) -> Result<Owner, &'static str> {
    if !has_user_namespace(spec) {
        return Ok(Owner { uid: 0, gid: 0 });
    }
    let linux = spec.linux().as_ref();
    let first = |maps: Option<&Vec<LinuxIdMapping>>| {
        let map = maps?.iter().find(|map| map.container_id() == 0)?;
        Some(map.host_id())
    };
    let uid = first(linux.and_then(|l| l.uid_mappings().as_ref()));
    let gid = first(linux.and_then(|l| l.gid_mappings().as_ref()));
    match (uid, gid) {
        (Some(uid), Some(gid)) => Ok(Owner { uid, gid }),
        _ => Err("who its root is on the host is not in its configuration"),
    }
}

#[cfg(test)]
mod tests;
