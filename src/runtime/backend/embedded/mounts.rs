//! Mounts that libcontainer makes otherwise than runc, said in words that it understands; and what
//! is left to be done inside, when all are there.

use super::super::cgroup::{Cgroup, is_unified};
use crate::sys;
use anyhow::{Context, Result};
use oci_spec::runtime::{Mount, MountBuilder, Spec};
use rustix::mount::{MountPropagationFlags, mount_change};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

/// A last change inside the container's root, made by its own process while it still may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Symlink {
        path: PathBuf,
        target: PathBuf,
    },
    Mode {
        path: PathBuf,
        mode: u32,
    },
    /// libcontainer 0.7 makes `/dev/kcore`, where runc and everybody else have `/dev/core`.
    NameOfCore,
    /// libcontainer makes directories for devices that anybody may write to.
    NotForAll(PathBuf),
    /// The mount at this path; those below it stay as they are.
    ReadOnly(PathBuf),
    /// libcontainer 0.7 leaves each mount as its source is propagated, whatever the options say.
    Propagation {
        path: PathBuf,
        flags: MountPropagationFlags,
    },
}

impl Step {
    pub fn take(&self) -> Result<()> {
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        match self {
            Self::Symlink { path, target } => symlink(target, path)
                .with_context(|| format!("cannot make the symbolic link {}", path.display())),
            Self::Mode { path, mode } => {
                set(path, *mode).with_context(|| format!("cannot change {}", path.display()))
            }
            Self::NameOfCore => match fs::read_link("/dev/kcore") {
                Ok(target) if target == Path::new("/proc/kcore") => {
                    fs::rename("/dev/kcore", "/dev/core").context("cannot rename /dev/kcore")
                }
                _ => Ok(()), // this kernel has no such file
            },
            Self::NotForAll(path) => {
                let doing = || format!("cannot change {}", path.display());
                let now = fs::metadata(path).with_context(doing)?.permissions().mode();
                match now & 0o7777 {
                    0o777 => set(path, 0o755).with_context(doing),
                    _ => Ok(()), // the image's, or a mount's
                }
            }
            Self::Propagation { path, flags } => mount_change(path, *flags)
                .with_context(|| format!("cannot change the propagation of {}", path.display())),
            Self::ReadOnly(path) => sys::make_read_only(path)
                .with_context(|| format!("cannot make the mount {} read-only", path.display())),
        }
    }
}

/// Changes the mounts of a specification for libcontainer.
pub(super) fn adapt(spec: &mut Spec, cgroups_path: &Path) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let has = |option: &str| mount.options().iter().flatten().any(|o| o == option);
        steps.extend(propagation(mount));
        if mount.typ().as_deref() == Some("cgroup") && !is_unified() {
            mounts.extend(cgroup_v1(mount, has("ro"), cgroups_path, &mut steps)?);
            continue;
        }
        if mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs") {
            steps.push(Step::NameOfCore);
        }
        // libcontainer leaves it writable, since it has yet to fill it
        if mount.destination() == Path::new("/dev") && has("ro") {
            steps.push(Step::ReadOnly("/dev".into()));
        }
        mounts.push(mount.clone());
    }
    let devices = spec.linux().as_ref().and_then(|l| l.devices().as_ref());
    for device in devices.into_iter().flatten() {
        let between = device.path().ancestors().skip(1);
        let between = between.take_while(|d| d.starts_with("/dev") && *d != Path::new("/dev"));
        steps.splice(..0, between.map(|d| Step::NotForAll(d.to_owned())));
    }
    spec.set_mounts(Some(mounts));
    Ok(steps)
}

/// The changes that a mount's options ask for (mount(8), "Shared subtrees").
fn propagation(mount: &Mount) -> impl Iterator<Item = Step> + '_ {
    use MountPropagationFlags as F;
    let flags = |option: &str| {
        let (name, recursive) = match option.strip_prefix('r') {
            Some(name) => (name, F::REC),
            None => (option, F::empty()),
        };
        let flags = match name {
            "private" => F::PRIVATE,
            "slave" => F::DOWNSTREAM,
            "shared" => F::SHARED,
            "unbindable" => F::UNBINDABLE,
            _ => return None,
        };
        Some(flags | recursive)
    };
    let options = mount.options().iter().flatten();
    options
        .filter_map(move |o| flags(o))
        .map(|flags| Step::Propagation {
            path: mount.destination().clone(),
            flags,
        })
}

/// runc's emulation of a cgroup namespace (rootfs_linux.go, mountCgroupV1): a tmpfs with a bind mount of
/// the container's own directory in each hierarchy. libcontainer 0.7 makes these writable whatever the
/// configuration says, and shows the whole of hierarchies that it does not know.
fn cgroup_v1(
    mount: &Mount,
    read_only: bool,
    cgroups_path: &Path,
    steps: &mut Vec<Step>,
) -> Result<Vec<Mount>> {
    let strings = |list: &[&str]| list.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
    let place = mount.destination();
    let tmpfs = MountBuilder::default()
        .destination(place)
        .typ("tmpfs")
        .source("tmpfs")
        .options(strings(&["nosuid", "noexec", "nodev", "mode=755"]))
        .build()?;
    let mut all = vec![tmpfs];
    for (name, dir) in Cgroup::v1_directories(cgroups_path)? {
        let access = if read_only { "ro" } else { "rw" };
        let bind = MountBuilder::default()
            .destination(place.join(&name))
            .typ("bind")
            .source(dir)
            .options(strings(&["bind", access, "nosuid", "noexec", "nodev"]))
            .build()?;
        all.push(bind);
        steps.extend(propagation(mount).map(|step| match step {
            Step::Propagation { flags, .. } => Step::Propagation {
                path: place.join(&name),
                flags,
            },
            other => other,
        }));
        let combined = name.split(',').filter(|_| name.contains(','));
        steps.extend(combined.map(|controller| Step::Symlink {
            path: place.join(controller),
            target: (&name).into(),
        }));
    }
    // runc gives a tmpfs the mode of the directory beneath it, which is sysfs's here
    steps.push(Step::Mode {
        path: place.to_owned(),
        mode: 0o555,
    });
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_dev_is_finished_inside() {
        let text = r#"{"ociVersion":"1.0.2","root":{"path":"r"},"mounts":[{"destination":"/dev","type":"tmpfs","options":["ro"]}],
            "linux":{"devices":[{"path":"/dev/net/tun","type":"c","major":10,"minor":200},{"path":"/dev/x","type":"c","major":1,"minor":3}]}}"#;
        let mut spec: Spec = serde_json::from_str(text).unwrap();
        let steps = adapt(&mut spec, Path::new("/x")).unwrap();
        assert_eq!(
            steps,
            [
                Step::NotForAll("/dev/net".into()),
                Step::NameOfCore,
                Step::ReadOnly("/dev".into())
            ]
        );
    }

    #[test]
    fn propagation_is_as_the_options_say() {
        let of = |options: &str| {
            let text = format!(r#"{{"destination":"/a","source":"/b","options":{options}}}"#);
            let mount: Mount = serde_json::from_str(&text).unwrap();
            propagation(&mount).collect::<Vec<_>>()
        };
        let step = |flags| Step::Propagation {
            path: "/a".into(),
            flags,
        };
        use MountPropagationFlags as F;
        assert_eq!(
            of(r#"["rbind","rprivate","ro"]"#),
            [step(F::PRIVATE | F::REC)]
        );
        assert_eq!(of(r#"["bind","shared"]"#), [step(F::SHARED)]);
        assert_eq!(of(r#"["bind","relatime","rw"]"#), []);
    }

    #[test]
    fn only_what_everybody_may_write_is_closed() {
        let dir = std::env::temp_dir().join(format!("attestrun-step-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let mode = |mode| {
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
            Step::NotForAll(dir.clone()).take().unwrap();
            fs::metadata(&dir).unwrap().permissions().mode() & 0o7777
        };
        assert_eq!(
            (mode(0o777), mode(0o1777), mode(0o700)),
            (0o755, 0o1777, 0o700)
        );
        fs::remove_dir(&dir).unwrap();
    }
}
