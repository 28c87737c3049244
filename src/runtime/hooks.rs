//! Hooks: programs of the host that a bundle has run beside its container. What runs is attestrun's own
//! copy of the program that was judged (`copies`): whoever changes the file or its path afterwards
//! changes nothing. The sealed config.json names the copy, so that both backends run it, at any later
//! stage too. startContainer hooks are files of the container, run by its init: see [`StartHook`].

use crate::{
    copies::{HOOKS, Origins, is_elf},
    ipc::Refused,
    programs::{self, Program},
};
use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Hook, Spec};
use std::{
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};
use verify::policy::plain_text;

/// Names the copies in `spec` instead of the programs themselves.
pub fn seal(spec: &mut Spec, origins: &mut Origins) -> Result<()> {
    let Some(mut hooks) = spec.hooks().clone() else {
        return Ok(());
    };
    seal_stage(hooks.prestart_mut(), origins)?;
    seal_stage(hooks.create_runtime_mut(), origins)?;
    seal_stage(hooks.create_container_mut(), origins)?;
    seal_stage(hooks.poststart_mut(), origins)?;
    seal_stage(hooks.poststop_mut(), origins)?;
    spec.set_hooks(Some(hooks));
    Ok(())
}

fn seal_stage(stage: &mut Option<Vec<Hook>>, origins: &mut Origins) -> Result<()> {
    for hook in stage.iter_mut().flatten() {
        let path = hook.path().clone();
        if !is_elf(&path).map_err(|error| error.context("hook"))? {
            return Err(no_program(&path));
        }
        let copy = HOOKS.copy_of(&path)?;
        hook.set_path(copy.clone());
        origins.insert(copy, path);
    }
    Ok(())
}

/// A startContainer hook as it lies in the container's root: judged at `create` in the rootfs, and at
/// `start` once more as init will find it, behind all mounts. In between only hooks of the host and who
/// else may write to the host's files could change it, and are found out. From then until it runs nothing
/// of the container has run but hooks before it, and the embedded backend runs a copy of the judged bytes.
#[derive(Debug)]
pub struct StartHook {
    /// As config.json names it.
    pub path: PathBuf,
    pub args: Vec<String>,
    pub program: Program,
}

/// Those of `spec`, in their order.
pub fn of_start(spec: &Spec, root: BorrowedFd<'_>) -> Result<Vec<StartHook>> {
    let hooks = spec
        .hooks()
        .as_ref()
        .and_then(|h| h.start_container().as_ref());
    let hooks = hooks.into_iter().flatten();
    hooks.map(|hook| start_hook(hook, root)).collect()
}

fn start_hook(hook: &Hook, root: BorrowedFd<'_>) -> Result<StartHook> {
    let path = hook.path().clone();
    ensure!(
        path.is_absolute(),
        "the startContainer hook {} is no absolute path",
        path.display()
    );
    let programs = programs::resolve(root, &path, &|_| None)
        .with_context(|| format!("startContainer hook {}", path.display()))?;
    let Ok([program]) = <[Program; 1]>::try_from(programs) else {
        return Err(no_program(&path));
    };
    Ok(StartHook {
        path,
        args: hook.args().clone().unwrap_or_default(),
        program,
    })
}

/// A script's interpreter would be a second program, which nobody judged.
fn no_program(path: &Path) -> anyhow::Error {
    Refused(plain_text(&format!(
        "refused: the hook {} is no ELF program: what would run is an interpreter, whose input no digest of a rule covers; name a program",
        path.display()
    )))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::{self, File},
        os::fd::AsFd,
    };
    use verify::digest::FileDigest;

    fn spec(hooks: &str) -> Spec {
        let text = format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},"hooks":{hooks}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn refuse_hooks_that_are_no_programs_of_the_host() {
        for (hooks, why) in [
            (r#"{"poststop":[{"path":"/etc/hostname"}]}"#, "no ELF"),
            (r#"{"createRuntime":[{"path":"/nothing"}]}"#, "/nothing"),
        ] {
            let error = format!(
                "{:#}",
                seal(&mut spec(hooks), &mut Origins::new()).unwrap_err()
            );
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn start_hooks_are_files_of_the_container() {
        let dir = std::env::temp_dir().join(format!("attestrun-start-{}", std::process::id()));
        fs::create_dir_all(dir.join("bin")).unwrap();
        fs::write(dir.join("bin/sh"), b"\x7fELF of the container").unwrap();
        fs::write(dir.join("bin/script"), b"#!/bin/sh\n").unwrap();
        let root = File::open(&dir).unwrap();
        let find = |path: &str| {
            let hooks = format!(r#"{{"startContainer":[{{"path":"{path}","args":["x","y"]}}]}}"#);
            let mut spec = spec(&hooks);
            let mut origins = Origins::new();
            seal(&mut spec, &mut origins).unwrap();
            assert!(origins.is_empty());
            of_start(&spec, root.as_fd())
        };
        let found = find("/bin/sh").unwrap();
        assert_eq!(
            found[0].program.digest,
            FileDigest::of(b"\x7fELF of the container")
        );
        assert_eq!(
            (&*found[0].path, &*found[0].args),
            (Path::new("/bin/sh"), &["x".to_owned(), "y".to_owned()][..])
        );
        for (path, why) in [
            ("bin/sh", "absolute"),
            ("/bin/script", "no ELF"),
            ("/bin/true", "no such file"),
            ("/proc/self/exe", "no such file"),
        ] {
            let error = format!("{:#}", find(path).unwrap_err());
            assert!(error.contains(why), "{path}: {error}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
