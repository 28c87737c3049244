//! startContainer hooks, which init itself runs before its program: with its rights, under its filter,
//! and exactly the bytes that were judged.

use super::executor::executable;
use crate::spawn;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use oci_spec::runtime::Hook;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::{
    ffi::CString,
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};
use verify::digest::FileDigest;

#[derive(Debug, Clone)]
pub struct StartHooks {
    hooks: Vec<(Hook, FileDigest)>,
    /// What they read at standard input: the container's state.
    state: String,
}

/// Copies of the judged programs in this process's memory: nobody can change them any more.
pub struct Copies(Vec<File>);

impl StartHooks {
    pub fn new(hooks: Vec<(Hook, FileDigest)>, state: String) -> Self {
        Self { hooks, state }
    }

    /// As the container's user, before the filter is loaded: it need not allow what a copy takes.
    pub fn copy(&self) -> Result<Copies, String> {
        let copy = |(n, (hook, judged)): (usize, &(Hook, FileDigest))| {
            copy(hook.path(), *judged).map_err(|e| format!("error running hook #{n}: {e:#}"))
        };
        let copies = self.hooks.iter().enumerate().map(copy);
        copies.collect::<Result<_, _>>().map(Copies)
    }

    /// One after the other; the first that fails is the end.
    pub fn run(&self, copies: &Copies, env: &[CString]) -> Result<(), String> {
        let env: Vec<_> = env
            .iter()
            .map(|e| e.to_string_lossy().into_owned())
            .collect();
        for (n, ((hook, _), copy)) in self.hooks.iter().zip(&copies.0).enumerate() {
            let program = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
            spawn::hook(hook, &program, &env, &self.state)
                .map_err(|e| format!("error running hook #{n}: {e}"))?;
        }
        Ok(())
    }
}

fn copy(path: &Path, judged: FileDigest) -> Result<File> {
    executable(path)
        .map_err(Errno::desc)
        .map_err(|why| anyhow::anyhow!("exec {}: {}", path.display(), why.to_lowercase()))?;
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = FileDigest::of(&bytes);
    ensure!(
        found == judged,
        "{} is {found} now, and was {judged} when it was judged",
        path.display()
    );
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(memfd_create("hook", flags).context("cannot make a copy")?);
    copy.write_all(&bytes).context("cannot write a copy")?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&copy, seals).context("cannot seal a copy")?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(path: &Path, args: &str, judged: FileDigest) -> StartHooks {
        let hook = serde_json::json!({"path": path, "args": ["sh", "-c", args]});
        let hook = serde_json::from_value(hook).unwrap();
        StartHooks::new(vec![(hook, judged)], r#"{"id":"c"}"#.to_owned())
    }

    #[test]
    fn the_judged_bytes_run_whatever_becomes_of_the_file() {
        let dir = std::env::temp_dir().join(format!("attestrun-bytes-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (program, told) = (dir.join("sh"), dir.join("told"));
        fs::copy("/bin/sh", &program).unwrap();
        let judged = FileDigest::of(&fs::read("/bin/sh").unwrap());
        let hooks = hooks(&program, &format!("cat >{}", told.display()), judged);
        let copies = hooks.copy().unwrap();
        assert!(fs::write(format!("/proc/self/fd/{}", copies.0[0].as_raw_fd()), "x").is_err());
        fs::remove_file(&program).unwrap();
        let path = CString::new("PATH=/usr/bin:/bin").unwrap();
        hooks.run(&copies, &[path]).unwrap();
        assert_eq!(fs::read_to_string(&told).unwrap(), r#"{"id":"c"}"#);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn refuse_a_hook_that_is_not_the_judged_one() {
        let hooks = hooks(Path::new("/bin/sh"), "true", FileDigest::of(b"another"));
        let why = hooks.copy().map(drop).unwrap_err();
        assert!(
            why.starts_with("error running hook #0: /bin/sh is sha256:"),
            "{why}"
        );
        let nothing = self::hooks(Path::new("/nothing"), "true", FileDigest::of(b""));
        let why = nothing.copy().map(drop).unwrap_err();
        assert!(why.contains("no such file"), "{why}");
    }
}
