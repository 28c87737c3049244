//! The caller's bundle, read once; and the sealed one, whose bytes are judged, measured and built from.
//!
//! Sealing writes config.json anew from what was parsed: a second reader (the external backend)
//! cannot find in it what we did not see. Unknown properties are dropped, as the specification
//! demands of a runtime that does not know them.

use crate::{
    backend::{Backend, named},
    brought,
    copies::Origins,
    hooks,
    lending::{Lending, Vtpm, Wish},
    programs::{self, Search},
    state::RunDir,
};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process, Spec};
use rustix::fs::{Mode, OFlags, openat};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
};
use verify::id::ContainerId;

/// The largest config.json that is read; engines write tens of kilobytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// An opened bundle: from here on the path of the root filesystem is resolved and pinned.
#[derive(Debug)]
pub struct Bundle {
    /// As the caller named it, absolute: what `state` reports.
    pub path: PathBuf,
    pub spec: Spec,
    /// What it says of the container's TPM.
    pub wish: Wish,
    /// Where relative paths start: [`Self::path`] without symbolic links.
    bundle: PathBuf,
    /// Canonical: no component is a symbolic link.
    pub rootfs: PathBuf,
    /// The directory behind `rootfs` when the bundle was opened.
    pub rootfs_fd: OwnedFd,
}

impl Bundle {
    pub fn open(path: &Path) -> Result<Self> {
        let dir = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("cannot open the bundle {}", path.display()))?;
        let config = read_config(&dir, path)?;
        let doing = || format!("{}/config.json", path.display());
        let spec = parse(&config).with_context(doing)?;
        let wish = Vtpm::all(&config).and_then(|vtpms| Wish::of(&spec, &vtpms));
        let wish = wish.with_context(doing)?;
        let root = spec.root().as_ref().context("root must be specified")?;
        let named = path.join(root.path());
        let rootfs = match fs::canonicalize(&named) {
            Ok(rootfs) => rootfs,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                bail!("rootfs ({}) does not exist", named.display())
            }
            Err(e) => {
                return Err(e)
                    .with_context(|| format!("cannot resolve the rootfs {}", named.display()));
            }
        };
        // runc's rule (validator, rootfs): what is named is what is mounted, with no link on the way
        let bundle = fs::canonicalize(path)
            .with_context(|| format!("cannot resolve the bundle {}", path.display()))?;
        ensure!(
            plain(&bundle.join(root.path())) == rootfs,
            "invalid rootfs {}: not an absolute path, or a symlink: it leads to {}",
            named.display(),
            rootfs.display()
        );
        ensure!(
            rootfs != Path::new("/"),
            "the host's root directory cannot be a container's rootfs"
        );
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let rootfs_fd = rustix::fs::open(&rootfs, flags, Mode::empty())
            .with_context(|| format!("cannot open the rootfs {}", rootfs.display()))?;
        Ok(Self {
            path: path.to_owned(),
            spec,
            wish,
            bundle,
            rootfs,
            rootfs_fd,
        })
    }

    /// Normalises the configuration for `backend` and writes it into the run directory.
    pub fn seal(
        mut self,
        run_dir: &RunDir,
        id: &ContainerId,
        backend: &Backend,
        systemd_cgroup: bool,
        lending: &Lending,
    ) -> Result<SealedBundle> {
        self.normalise(id, systemd_cgroup)?;
        let mut copies = Origins::new();
        hooks::seal(&mut self.spec, &mut copies)?;
        brought::seal(&mut self.spec, self.rootfs_fd.as_fd(), &mut copies)?;
        lending.carry_out(&mut self.spec, run_dir)?;
        if let Backend::Runc { .. } = backend {
            self.name_program()?;
        }
        // through a Value: its maps are sorted, so equal configurations have equal bytes
        let bytes = serde_json::to_vec(&serde_json::to_value(&self.spec)?)?;
        let spec =
            serde_json::from_slice(&bytes).context("the sealed config.json does not read back")?;
        let dir = run_dir.bundle();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let config = dir.join("config.json");
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&config)
            .and_then(|mut f| f.write_all(&bytes))
            .with_context(|| format!("cannot write {}", config.display()))?;
        Ok(SealedBundle {
            bytes,
            spec,
            copies,
            rootfs: self.rootfs,
            rootfs_fd: self.rootfs_fd,
        })
    }

    /// See [`named`].
    fn name_program(&mut self) -> Result<()> {
        let process = self
            .spec
            .process()
            .clone()
            .context("process property must not be empty")?;
        let path = programs::find(self.rootfs_fd.as_fd(), &Search::of(&process))?;
        self.spec.set_process(Some(named(process, &path)));
        Ok(())
    }

    fn normalise(&mut self, id: &ContainerId, systemd_cgroup: bool) -> Result<()> {
        let spec = &mut self.spec;
        let mut root = spec.root().clone().context("root must be specified")?;
        root.set_path(self.rootfs.clone());
        spec.set_root(Some(root));
        let mut process = spec
            .process()
            .clone()
            .context("process property must not be empty")?;
        check_process(&process)?;
        normalise_process(&mut process);
        spec.set_process(Some(process));
        let mut linux = spec.linux().clone().context("linux must be specified")?;
        if linux
            .cgroups_path()
            .as_ref()
            .is_none_or(|p| p.as_os_str().is_empty())
        {
            // runc's own defaults, made explicit so that both backends agree (cgroups, "getCgroupPath")
            let path = if systemd_cgroup {
                format!(":attestrun:{id}")
            } else {
                format!("/{id}")
            };
            linux.set_cgroups_path(Some(path.into()));
        }
        let unified = linux
            .resources()
            .as_ref()
            .and_then(|r| r.unified().as_ref());
        ensure!(
            unified.is_none_or(HashMap::is_empty) || crate::backend::cgroup::is_unified(),
            "invalid configuration: linux.resources.unified on cgroup v1"
        );
        spec.set_linux(Some(linux));
        // runc takes a relative source from the bundle
        for mount in spec.mounts_mut().iter_mut().flatten() {
            let bind = mount.typ().as_deref() == Some("bind")
                || mount
                    .options()
                    .iter()
                    .flatten()
                    .any(|o| o == "bind" || o == "rbind");
            if let Some(source) = mount.source().clone().filter(|s| bind && s.is_relative()) {
                mount.set_source(Some(plain(&self.bundle.join(source))));
            }
        }
        Ok(())
    }
}

/// The private bundle of a run: no caller can change it any more.
#[derive(Debug)]
pub struct SealedBundle {
    /// The whole config.json; [`Self::spec`] is its parse.
    pub bytes: Vec<u8>,
    pub spec: Spec,
    /// Programs of the host that it names copies of.
    pub copies: Origins,
    pub rootfs: PathBuf,
    pub rootfs_fd: OwnedFd,
}

impl SealedBundle {
    pub fn cgroups_path(&self) -> PathBuf {
        self.spec
            .linux()
            .as_ref()
            .and_then(|l| l.cgroups_path().clone())
            .unwrap_or_default()
    }

    /// The sealed configuration of an existing run, for exec and hooks.
    pub fn read_spec(run_dir: &RunDir) -> Result<Spec> {
        let path = run_dir.bundle().join("config.json");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("sealed configuration {}", path.display()))
    }
}

/// What runc says of a process that it does not run (utils_linux.go, validateProcessSpec).
pub fn check_process(process: &Process) -> Result<()> {
    let cwd = process.cwd();
    ensure!(
        !cwd.as_os_str().is_empty(),
        "Cwd property must not be empty"
    );
    ensure!(cwd.is_absolute(), "Cwd must be an absolute path");
    ensure!(
        process.args().as_ref().is_some_and(|a| !a.is_empty()),
        "args must not be empty"
    );
    let strings = process.args().iter().chain(process.env()).flatten();
    for text in strings {
        ensure!(
            !text.contains('\0'),
            "process args and env must not hold a NUL byte"
        );
    }
    Ok(())
}

/// Says explicitly what runc takes an absent property for, where libcontainer takes it otherwise.
pub fn normalise_process(process: &mut Process) {
    if process.no_new_privileges() == Some(false) {
        // an explicit `false` makes libcontainer load the filter after the capabilities are gone
        process.set_no_new_privileges(None);
    }
    // absent sets are empty sets; libcontainer would leave the caller's, that is root's
    let mut caps = process
        .capabilities()
        .clone()
        .unwrap_or_else(no_capabilities);
    let or_empty = |set: &Option<Capabilities>| Some(set.clone().unwrap_or_default());
    caps.set_bounding(or_empty(caps.bounding()));
    caps.set_effective(or_empty(caps.effective()));
    caps.set_permitted(or_empty(caps.permitted()));
    caps.set_inheritable(or_empty(caps.inheritable()));
    caps.set_ambient(or_empty(caps.ambient()));
    process.set_capabilities(Some(caps));
}

fn no_capabilities() -> LinuxCapabilities {
    let mut caps = LinuxCapabilities::default();
    for set in [
        LinuxCapabilities::set_bounding,
        LinuxCapabilities::set_effective,
        LinuxCapabilities::set_permitted,
        LinuxCapabilities::set_inheritable,
        LinuxCapabilities::set_ambient,
    ] {
        set(&mut caps, None);
    }
    caps
}

/// Without `.`, `..` and doubled slashes; symbolic links are left alone.
pub fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain
}

fn read_config(dir: &OwnedFd, path: &Path) -> Result<Vec<u8>> {
    // NONBLOCK: a fifo in place of the file must not hold us
    let fd = match openat(
        dir,
        "config.json",
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT) => bail!(
            "JSON specification file {}/config.json not found",
            path.display()
        ),
        Err(e) => {
            return Err(e).with_context(|| format!("cannot open {}/config.json", path.display()));
        }
    };
    let file = File::from(fd);
    let meta = file.metadata()?;
    ensure!(
        meta.is_file(),
        "{}/config.json is not a regular file",
        path.display()
    );
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= MAX_CONFIG_BYTES,
        "{}/config.json is larger than {MAX_CONFIG_BYTES} bytes",
        path.display()
    );
    Ok(bytes)
}

/// Users that are left out are root, as they are for runc (Go's zero values); here that is written out,
/// to be seen by whoever judges.
pub fn parse_process(mut process: serde_json::Value) -> serde_json::Result<Process> {
    name_user(&mut process);
    serde_json::from_value(process)
}

fn lacks_user(error: &serde_json::Error) -> bool {
    let text = error.to_string();
    ["user", "uid", "gid"]
        .iter()
        .any(|field| text.starts_with(&format!("missing field `{field}`")))
}

fn name_user(process: &mut serde_json::Value) {
    let Some(process) = process.as_object_mut() else {
        return;
    };
    let user = process
        .entry("user")
        .or_insert_with(|| serde_json::json!({}));
    for id in ["uid", "gid"] {
        if let Some(user) = user.as_object_mut() {
            user.entry(id).or_insert(0.into());
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Spec> {
    let spec: Spec = match serde_json::from_slice(bytes) {
        Err(error) if lacks_user(&error) => {
            let mut value: serde_json::Value = serde_json::from_slice(bytes)?;
            if let Some(process) = value.get_mut("process") {
                name_user(process);
            }
            serde_json::from_value(value)?
        }
        result => result?,
    };
    ensure!(
        spec.version().starts_with("1."),
        "ociVersion {:?} is not supported; attestrun knows 1.x",
        spec.version()
    );
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(process: &str, rest: &str) -> Spec {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","root":{{"path":"rootfs"}},"linux":{{}},
               "process":{{"user":{{"uid":0,"gid":0}},"cwd":"/","args":["sh"]{process}}}{rest}}}"#
        );
        parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn an_explicit_false_is_an_absent_one() {
        let mut p = spec(r#","noNewPrivileges":false"#, "")
            .process()
            .clone()
            .unwrap();
        normalise_process(&mut p);
        assert_eq!(p.no_new_privileges(), None);
        let mut p = spec(r#","noNewPrivileges":true"#, "")
            .process()
            .clone()
            .unwrap();
        normalise_process(&mut p);
        assert_eq!(p.no_new_privileges(), Some(true));
    }

    #[test]
    fn absent_capabilities_are_none() {
        for text in [
            "",
            r#","capabilities":{}"#,
            r#","capabilities":{"bounding":["CAP_KILL"]}"#,
        ] {
            let mut p = spec(text, "").process().clone().unwrap();
            normalise_process(&mut p);
            let caps = p.capabilities().clone().unwrap();
            for set in [
                caps.effective(),
                caps.permitted(),
                caps.inheritable(),
                caps.ambient(),
            ] {
                assert!(set.as_ref().is_some_and(|s| s.is_empty()), "{text}");
            }
            assert_eq!(
                caps.bounding().as_ref().unwrap().len(),
                usize::from(text.contains("KILL"))
            );
        }
    }

    #[test]
    fn refuse_a_rootfs_that_is_a_symbolic_link() {
        let dir = std::env::temp_dir().join(format!("attestrun-bundle-{}", std::process::id()));
        fs::create_dir_all(dir.join("real/rootfs")).unwrap();
        std::os::unix::fs::symlink("real", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("rootfs", dir.join("real/other")).unwrap();
        let open = |bundle: &str, root: &str| {
            let text = format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"{root}"}}}}"#);
            fs::write(dir.join("real/config.json"), text).unwrap();
            Bundle::open(&dir.join(bundle)).map(drop)
        };
        open("real", "rootfs").unwrap();
        open("real", "./x/../rootfs/").unwrap_err(); // x does not exist
        open("real", "../real//rootfs/").unwrap();
        open("link", "rootfs").unwrap(); // the bundle may be reached by a link
        for root in ["other", "../link/rootfs"] {
            let error = open("real", root).unwrap_err().to_string();
            assert!(error.contains("or a symlink"), "{error}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn refuse_processes_that_runc_refuses() {
        let good = spec("", "").process().clone().unwrap();
        assert!(check_process(&good).is_ok());
        for (cwd, args) in [
            ("", vec!["sh"]),
            ("rel", vec!["sh"]),
            ("/", vec![]),
            ("/", vec!["a\0b"]),
        ] {
            let mut p = good.clone();
            p.set_cwd(cwd.into());
            p.set_args(Some(args.iter().map(|a| (*a).to_owned()).collect()));
            assert!(check_process(&p).is_err(), "{cwd} {args:?}");
        }
    }

    #[test]
    fn refuse_a_second_spelling_of_a_key() {
        let text = r#"{"ociVersion":"1.0.2","ociVersion":"1.0.2","root":{"path":"r"}}"#;
        assert!(parse(text.as_bytes()).is_err());
        assert!(parse(br#"{"ociVersion":"2.0.0","root":{"path":"r"}}"#).is_err());
        // Go would read "Hostname" as hostname; what we do not see is not written for it
        let mut s = spec("", r#","Hostname":"evil""#);
        s.set_hostname(None);
        assert!(!serde_json::to_string(&s).unwrap().contains("evil"));
    }
}
