//! Hooks: programs of the host that a bundle has run beside its container. What runs is attestrun's own
//! copy of the program that was judged: whoever changes the file or its path afterwards changes nothing.
//!
//! Copies lie by digest below `/var/lib/attestrun/hooks`, root's alone. The sealed config.json names the
//! copy, so that both backends run it, at any later stage too; it is made once the policy has said yes.

use crate::{executables, ipc::Refused};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Hook, Spec};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use verify::{digest::FileDigest, policy::plain_text};

const COPIES: &str = "/var/lib/attestrun/hooks";
const ELF: [u8; 4] = *b"\x7fELF";

/// Where each copy comes from: copy → the path that the engine named.
pub type Origins = BTreeMap<PathBuf, PathBuf>;

/// Names the copies in `spec` instead of the programs themselves.
pub fn seal(spec: &mut Spec) -> Result<Origins> {
    let mut origins = Origins::new();
    let Some(mut hooks) = spec.hooks().clone() else {
        return Ok(origins);
    };
    if hooks
        .start_container()
        .as_ref()
        .is_some_and(|h| !h.is_empty())
    {
        let text = "refused: a startContainer hook runs a file of the container, whatever the host's file \
                    of that name is; use createContainer, or make it part of the image and of its list";
        return Err(Refused(text.to_owned()).into());
    }
    seal_stage(hooks.prestart_mut(), &mut origins)?;
    seal_stage(hooks.create_runtime_mut(), &mut origins)?;
    seal_stage(hooks.create_container_mut(), &mut origins)?;
    seal_stage(hooks.poststart_mut(), &mut origins)?;
    seal_stage(hooks.poststop_mut(), &mut origins)?;
    spec.set_hooks(Some(hooks));
    Ok(origins)
}

fn seal_stage(stage: &mut Option<Vec<Hook>>, origins: &mut Origins) -> Result<()> {
    for hook in stage.iter_mut().flatten() {
        let path = hook.path().clone();
        // a script's interpreter would be a second program, which nobody judged
        ensure_elf(&path)?;
        let copy = Path::new(COPIES).join(executables::digest(&path).context("hook")?.hex());
        hook.set_path(copy.clone());
        origins.insert(copy, path);
    }
    Ok(())
}

fn ensure_elf(path: &Path) -> Result<()> {
    let doing = || format!("cannot read the hook {}", path.display());
    let mut magic = [0; ELF.len()];
    let mut file = File::open(path).with_context(doing)?;
    match file.read_exact(&mut magic) {
        Ok(()) if magic == ELF => Ok(()),
        Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Err(e).with_context(doing),
        _ => Err(Refused(plain_text(&format!(
            "refused: the hook {} is no ELF program: what would run is an interpreter, whose input no digest of a rule covers; name a program",
            path.display()
        )))
        .into()),
    }
}

/// The digest that a sealed hook's path stands for.
pub fn digest_of(copy: &Path) -> Result<FileDigest> {
    let hex = copy.strip_prefix(COPIES).ok().and_then(Path::to_str);
    hex.and_then(|hex| format!("sha256:{hex}").parse().ok())
        .with_context(|| format!("the hook {} is not sealed", copy.display()))
}

/// Makes the copies that are not there yet; what was judged is what gets copied.
pub fn install(origins: &Origins) -> Result<()> {
    for (copy, origin) in origins {
        let digest = digest_of(copy)?;
        match executables::digest(copy) {
            Ok(found) => ensure!(
                found == digest,
                "{} was changed (it is {found} now); remove it",
                copy.display()
            ),
            Err(_) => make(copy, origin, digest).with_context(|| {
                format!(
                    "cannot copy the hook {} to {}",
                    origin.display(),
                    copy.display()
                )
            })?,
        }
    }
    Ok(())
}

fn make(copy: &Path, origin: &Path, expected: FileDigest) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(COPIES)?;
    let new = copy.with_extension(format!("{}.new", std::process::id()));
    let done = write(&new, origin).and_then(|found| {
        if found != expected {
            bail!("it is {found} now and was {expected} when it was judged");
        }
        Ok(fs::rename(&new, copy)?)
    });
    if done.is_err() {
        fs::remove_file(&new).ok();
    }
    done
}

/// Copies and hashes the same bytes.
fn write(new: &Path, origin: &Path) -> Result<FileDigest> {
    fs::remove_file(new).ok(); // of a killed process with our number
    let mut from = File::open(origin)?;
    let mut to = File::options()
        .write(true)
        .create_new(true)
        .mode(0o500)
        .open(new)?;
    let (mut hasher, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = from.read(&mut block)?;
        if read == 0 {
            break;
        }
        hasher.update(&block[..read]);
        to.write_all(&block[..read])?;
    }
    Ok(FileDigest::from_bytes(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(hooks: &str) -> Spec {
        let text = format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},"hooks":{hooks}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn refuse_hooks_that_are_no_programs_of_the_host() {
        for (hooks, why) in [
            (
                r#"{"startContainer":[{"path":"/proc/self/exe"}]}"#,
                "startContainer",
            ),
            (r#"{"poststop":[{"path":"/etc/hostname"}]}"#, "no ELF"),
            (r#"{"createRuntime":[{"path":"/nothing"}]}"#, "/nothing"),
        ] {
            let error = format!("{:#}", seal(&mut spec(hooks)).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn refuse_a_program_that_was_changed_after_it_was_judged() {
        let dir = std::env::temp_dir().join(format!("attestrun-hooks-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (origin, new) = (dir.join("hook"), dir.join("new"));
        fs::write(&origin, b"\x7fELF changed").unwrap();
        let judged = FileDigest::of(b"\x7fELF judged");
        let found = write(&new, &origin).unwrap();
        assert_ne!(found, judged);
        assert_eq!(found, FileDigest::of(b"\x7fELF changed"));
        fs::remove_dir_all(&dir).unwrap();
        for path in ["/usr/bin/hook", "/var/lib/attestrun/hooks/../x", COPIES] {
            assert!(digest_of(Path::new(path)).is_err(), "{path}");
        }
    }
}
