//! Programs of the host that a container's launch brings along: hooks, and an engine's init. What runs
//! is attestrun's own copy of what was judged: whoever changes the file or its path afterwards changes
//! nothing. Copies lie by digest below `/var/lib/attestrun`, root's alone; one is made once the policy
//! has said yes.

use crate::executables;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};
use verify::digest::FileDigest;

/// Where each copy comes from: copy → the path that the engine named.
pub type Origins = BTreeMap<PathBuf, PathBuf>;

/// Copies of one purpose.
pub struct Copies {
    directory: &'static str,
    mode: u32,
}

pub const HOOKS: Copies = Copies {
    directory: "/var/lib/attestrun/hooks",
    mode: 0o500,
};
/// Mounted into containers, whose users must be able to execute them.
pub const PROGRAMS: Copies = Copies {
    directory: "/var/lib/attestrun/programs",
    mode: 0o555,
};

const ELF: [u8; 4] = *b"\x7fELF";

/// A program, and no script.
pub fn is_elf(path: &Path) -> Result<bool> {
    let doing = || format!("cannot read {}", path.display());
    let mut magic = [0; ELF.len()];
    let mut file = File::open(path).with_context(doing)?;
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(magic == ELF),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e).with_context(doing),
    }
}

impl Copies {
    /// Where the copy of what is now at `origin` lies, or will.
    pub fn copy_of(&self, origin: &Path) -> Result<PathBuf> {
        Ok(Path::new(self.directory).join(executables::digest(origin)?.hex()))
    }

    /// The digest that a copy's path stands for; `None`: it is no copy of this purpose.
    fn named(&self, copy: &Path) -> Option<FileDigest> {
        let hex = copy.strip_prefix(self.directory).ok()?.to_str()?;
        format!("sha256:{hex}").parse().ok()
    }
}

/// The digest that a sealed path stands for.
pub fn digest_of(copy: &Path) -> Result<FileDigest> {
    let named = [HOOKS, PROGRAMS]
        .iter()
        .find_map(|copies| copies.named(copy));
    named.with_context(|| format!("{} is not sealed", copy.display()))
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
                format!("cannot copy {} to {}", origin.display(), copy.display())
            })?,
        }
    }
    Ok(())
}

fn make(copy: &Path, origin: &Path, expected: FileDigest) -> Result<()> {
    let all = [HOOKS, PROGRAMS];
    let copies = all.iter().find(|copies| copies.named(copy).is_some());
    let copies = copies.context("not sealed")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(copies.directory)?;
    let new = copy.with_extension(format!("{}.new", std::process::id()));
    let done = write(&new, origin, copies.mode).and_then(|found| {
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
fn write(new: &Path, origin: &Path, mode: u32) -> Result<FileDigest> {
    fs::remove_file(new).ok(); // of a killed process with our number
    let mut from = File::open(origin)?;
    let mut to = File::options().write(true).create_new(true).open(new)?;
    to.set_permissions(fs::Permissions::from_mode(mode))?; // whatever the umask is
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

    #[test]
    fn refuse_a_program_that_was_changed_after_it_was_judged() {
        let dir = std::env::temp_dir().join(format!("attestrun-copies-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (origin, new) = (dir.join("hook"), dir.join("new"));
        fs::write(&origin, b"\x7fELF changed").unwrap();
        let judged = FileDigest::of(b"\x7fELF judged");
        let found = write(&new, &origin, 0o500).unwrap();
        assert_ne!(found, judged);
        assert_eq!(found, FileDigest::of(b"\x7fELF changed"));
        fs::remove_dir_all(&dir).unwrap();
        for path in [
            "/usr/bin/hook",
            "/var/lib/attestrun/hooks/../x",
            "/var/lib/attestrun/hooks",
            "/var/lib/attestrun/programs/hooks",
        ] {
            assert!(digest_of(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn a_script_is_no_program() {
        let path = std::env::temp_dir().join(format!("attestrun-elf-{}", std::process::id()));
        for (text, elf) in [
            (&b"\x7fELF\x02"[..], true),
            (b"#!/bin/sh\n", false),
            (b"", false),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(is_elf(&path).unwrap(), elf);
        }
        fs::remove_file(&path).unwrap();
        assert!(is_elf(&path).is_err());
    }
}
