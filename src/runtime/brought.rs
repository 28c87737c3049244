//! The program that a container begins with, where an engine brings it from the host: `docker run --init`
//! and `podman run --init` mount their init over nothing and make it the first argument. What is mounted
//! is attestrun's own copy of it (`copies`), so that what was judged is what runs.

use crate::{
    bundle::plain,
    copies::{Origins, PROGRAMS, is_elf},
};
use anyhow::{Context, Result};
use oci_spec::runtime::{Mount, Spec};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, statat},
    io::Errno,
};
use std::{
    fs,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

/// Names the copy in `spec` as the mount's source. A mount over a file of the image is none of this: what
/// is there is judged like the image's own.
pub fn seal(spec: &mut Spec, root: BorrowedFd<'_>, origins: &mut Origins) -> Result<()> {
    let Some(first) = first_argument(spec) else {
        return Ok(());
    };
    // of two at one place the later one is seen
    let mounts = spec.mounts_mut().iter_mut().flatten();
    let Some(mount) = mounts
        .filter(|mount| plain(mount.destination()) == first)
        .last()
    else {
        return Ok(());
    };
    let Some(source) = program_of(mount)? else {
        return Ok(());
    };
    if !is_vacant(root, &first)? {
        return Ok(());
    }
    let copy = PROGRAMS.copy_of(&source)?;
    mount.set_source(Some(copy.clone()));
    origins.insert(copy, source);
    Ok(())
}

fn first_argument(spec: &Spec) -> Option<PathBuf> {
    let first = spec.process().as_ref()?.args().as_ref()?.first()?;
    first.starts_with('/').then(|| plain(Path::new(first)))
}

/// The source of a bind mount of a single program.
fn program_of(mount: &Mount) -> Result<Option<PathBuf>> {
    let options = mount.options().iter().flatten();
    let is_bind = mount.typ().as_deref() == Some("bind")
        || options.into_iter().any(|o| o == "bind" || o == "rbind");
    let Some(source) = mount.source().clone().filter(|_| is_bind) else {
        return Ok(None);
    };
    let found = fs::metadata(&source)
        .with_context(|| format!("cannot look up the mount's source {}", source.display()))?;
    Ok((found.is_file() && is_elf(&source)?).then_some(source))
}

/// Whether the rootfs has nothing at `place`, or the empty file that engines put where they mount.
fn is_vacant(root: BorrowedFd<'_>, place: &Path) -> Result<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let doing = || format!("cannot look up {} in the rootfs", place.display());
    match openat2(root, place, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(found) => {
            let stat = statat(&found, "", AtFlags::EMPTY_PATH).with_context(doing)?;
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            Ok(is_file && stat.st_size == 0)
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(true),
        Err(error) => Err(error).with_context(doing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn seals_a_program_over_nothing_and_nothing_else() {
        let dir = std::env::temp_dir().join(format!("attestrun-brought-{}", std::process::id()));
        fs::create_dir_all(dir.join("root/sbin")).unwrap();
        fs::write(dir.join("root/sbin/stub"), "").unwrap();
        fs::write(dir.join("root/sbin/there"), "of the image").unwrap();
        fs::write(dir.join("init"), b"\x7fELF of the engine").unwrap();
        fs::write(dir.join("script"), "#!/bin/sh").unwrap();
        let root = fs::File::open(dir.join("root")).unwrap();
        let sealed = |source: &str, destination: &str, first: &str| {
            let source = dir.join(source);
            let mut spec: Spec = serde_json::from_value(serde_json::json!({
                "ociVersion": "1.0.2", "root": { "path": "r" },
                "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": [first, "--", "sh"] },
                "mounts": [{ "destination": destination, "type": "bind", "source": source, "options": ["ro"] }],
            }))
            .unwrap();
            let mut origins = Origins::new();
            seal(&mut spec, root.as_fd(), &mut origins).unwrap();
            let mounted = spec.mounts().as_ref().unwrap()[0].source().clone().unwrap();
            match origins.pop_first() {
                Some((copy, origin)) => {
                    assert_eq!((copy, origin), (mounted, source));
                    true
                }
                None => {
                    assert_eq!(mounted, source);
                    false
                }
            }
        };
        assert!(sealed("init", "/sbin/init", "/sbin/init"));
        assert!(sealed("init", "/sbin/../new/init", "/new//init"));
        assert!(sealed("init", "/sbin/stub", "/sbin/stub"));
        for (source, destination, first) in [
            ("init", "/sbin/there", "/sbin/there"),
            ("init", "/sbin/init", "/sbin/other"),
            ("init", "/sbin", "/sbin"),
            ("init", "/sbin/init", "init"),
            ("script", "/sbin/init", "/sbin/init"),
            ("root", "/sbin/init", "/sbin/init"),
        ] {
            assert!(
                !sealed(source, destination, first),
                "{source} {destination} {first}"
            );
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
