//! Files that decisions rest on: policies, keys, certificates, revocation lists, pinned roots. They are
//! read only where nobody but root, or whoever reads, can have written or replaced them.
//!
//! From `/` on each directory and symbolic link is opened below the one before it and looked at there:
//! who could rename one of them could put another file in place.

use crate::beneath::read_at_most;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::{
    fs::{self, FileType, Mode, OFlags, Stat},
    io::Errno,
};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Component, Path, PathBuf},
};

/// What a trust file may have: lists of revoked certificates are long.
pub const MAX_TRUST_FILE: u64 = 64 << 20;
/// path_resolution(7) allows as many.
const MAX_LINKS: usize = 40;

/// The content of the file at `path`, which is absolute: a regular file of at most `max` bytes, that
/// others can neither write nor replace. Errors name what is wrong, with the remedy, in no words of the
/// system's that engines take for something else ("no such file").
pub fn read_trusted(path: &Path, max: u64) -> Result<Vec<u8>> {
    match walk(path)? {
        End::File(file, shown) => {
            read_at_most(file, max).with_context(|| shown.display().to_string())
        }
        End::Directory(_) => bail!("{} is a directory", path.display()),
    }
}

/// The same demand on a directory: what is in it is its reader's matter.
pub fn require_trusted_directory(path: &Path) -> Result<()> {
    match walk(path)? {
        End::Directory(place) => {
            let stat = fs::fstat(&place.fd).with_context(|| place.shown.display().to_string())?;
            require_private(&stat, &place.shown)
        }
        End::File(_, shown) => bail!("{} is no directory", shown.display()),
    }
}

/// What is at the end of a path that nobody else can lead elsewhere.
fn walk(path: &Path) -> Result<End> {
    ensure!(path.is_absolute(), "{} is not absolute", path.display());
    let mut links = 0;
    let mut here = Place::root()?;
    let mut waiting = names(path)?;
    while let Some(name) = waiting.pop() {
        match here.step(&name)? {
            Step::Directory(below) => here = below,
            Step::Up => here = here.up()?,
            Step::Link(target) => {
                links += 1;
                ensure!(links <= MAX_LINKS, "too many symbolic links");
                if target.is_absolute() {
                    here = Place::root()?;
                }
                waiting.extend(names(&target)?);
            }
            Step::File(file, shown) => {
                ensure!(waiting.is_empty(), "{} is no directory", shown.display());
                return Ok(End::File(file, shown));
            }
        }
    }
    Ok(End::Directory(here))
}

/// The names on a way, last one first.
fn names(path: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => names.push("..".into()),
            Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) => bail!("{} is no path", path.display()),
        }
    }
    Ok(names)
}

/// A directory that nobody else can write to.
struct Place {
    fd: OwnedFd,
    shown: PathBuf,
}

enum End {
    File(File, PathBuf),
    Directory(Place),
}

enum Step {
    Directory(Place),
    Up,
    Link(PathBuf),
    File(File, PathBuf),
}

impl Place {
    fn root() -> Result<Self> {
        let fd = fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open /")?;
        Self::checked(fd, PathBuf::from("/"))
    }

    fn checked(fd: OwnedFd, shown: PathBuf) -> Result<Self> {
        let stat = fs::fstat(&fd).with_context(|| shown.display().to_string())?;
        // in a sticky directory (/tmp) nobody replaces what belongs to somebody else
        if stat.st_mode & 0o1000 == 0 {
            require_private(&stat, &shown)?;
        }
        Ok(Self { fd, shown })
    }

    fn up(&self) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::openat(&self.fd, "..", flags, Mode::empty())
            .map_err(|errno| failed(errno, &self.shown))?;
        let mut shown = self.shown.clone();
        shown.pop();
        Self::checked(fd, shown)
    }

    fn step(&self, name: &OsStr) -> Result<Step> {
        if name == ".." {
            return Ok(Step::Up);
        }
        let shown = self.shown.join(name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&self.fd, name, flags, Mode::empty())
            .map_err(|errno| failed(errno, &shown))?;
        let stat = fs::fstat(&fd).map_err(|errno| failed(errno, &shown))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Self::checked(fd, shown).map(Step::Directory),
            FileType::Symlink => {
                require_owner(&stat, &shown)?;
                let target = fs::readlinkat(&fd, "", Vec::new());
                let target = target.map_err(|errno| failed(errno, &shown))?;
                Ok(Step::Link(OsString::from_vec(target.into_bytes()).into()))
            }
            FileType::RegularFile => Ok(Step::File(self.open(name, &shown)?, shown)),
            _ => bail!("{} is not a regular file", shown.display()),
        }
    }

    fn open(&self, name: &OsStr, shown: &Path) -> Result<File> {
        // NONBLOCK: a FIFO that stands there by now must not stop us; it is refused below.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = fs::openat(&self.fd, name.as_bytes(), flags, Mode::empty())
            .map_err(|errno| failed(errno, shown))?;
        let stat = fs::fstat(&fd).map_err(|errno| failed(errno, shown))?;
        ensure!(
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
            "{} is not a regular file",
            shown.display()
        );
        require_private(&stat, shown)?;
        Ok(File::from(fd))
    }
}

fn require_owner(stat: &Stat, shown: &Path) -> Result<()> {
    let reader = rustix::process::geteuid().as_raw();
    ensure!(
        [0, reader].contains(&stat.st_uid),
        "{} belongs to uid {}, who can change it: see that it is right, then `chown root` it",
        shown.display(),
        stat.st_uid
    );
    Ok(())
}

fn require_private(stat: &Stat, shown: &Path) -> Result<()> {
    require_owner(stat, shown)?;
    ensure!(
        stat.st_mode & 0o022 == 0,
        "{} can be written by others than its owner (mode {:04o}): see that it is right, then `chmod go-w` it",
        shown.display(),
        stat.st_mode & 0o7777
    );
    Ok(())
}

fn failed(errno: Errno, shown: &Path) -> anyhow::Error {
    let kind = std::io::Error::from(errno).kind();
    match errno {
        Errno::NOENT => anyhow!("{} does not exist", shown.display()),
        _ => anyhow!("{}: {kind}", shown.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::Scratch;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(path: &Path) -> Result<Vec<u8>, String> {
        read_trusted(path, 16).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn accept_files_that_nobody_else_can_change() {
        let scratch = Scratch::new();
        let file = scratch.write("trust/a.pub", "key");
        assert_eq!(read(&file).unwrap(), b"key");
        symlink("trust/a.pub", scratch.join("relative")).unwrap();
        symlink(&file, scratch.join("absolute")).unwrap();
        symlink("../relative", scratch.join("trust/up")).unwrap();
        for link in ["relative", "absolute", "trust/up", "trust/../trust/a.pub"] {
            assert_eq!(read(&scratch.join(link)).unwrap(), b"key", "{link}");
        }
    }

    #[test]
    fn refuse_files_that_others_can_write() {
        let scratch = Scratch::new();
        let file = scratch.write("trust/a.pub", "key");
        for bits in [0o664, 0o646, 0o777] {
            mode(&file, bits);
            let why = read(&file).unwrap_err();
            assert!(why.contains("chmod go-w") && why.contains("a.pub"), "{why}");
        }
        mode(&file, 0o644);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
            let why = read(&file).unwrap_err();
            assert!(why.contains("uid 12345"), "{why}");
        }
    }

    #[test]
    fn refuse_files_that_others_can_replace() {
        let scratch = Scratch::new();
        let file = scratch.write("trust/deep/a.pub", "key");
        symlink(&file, scratch.join("link")).unwrap();
        mode(&scratch.join("trust"), 0o777);
        for path in [&file, &scratch.join("link")] {
            let why = read(path).unwrap_err();
            assert!(why.contains("trust can be written by others"), "{why}");
        }
        // what belongs to root in a sticky directory stays what it is
        mode(&scratch.join("trust"), 0o1777);
        assert_eq!(read(&file).unwrap(), b"key");
    }

    #[test]
    fn refuse_directories_that_others_can_fill_or_replace() {
        let scratch = Scratch::new();
        let file = scratch.write("store/deep/index", "x");
        let deep = scratch.join("store/deep");
        require_trusted_directory(&deep).unwrap();
        for (spoilt, bits) in [
            ("store", 0o777),
            ("store/deep", 0o775),
            ("store/deep", 0o1777),
        ] {
            mode(&scratch.join(spoilt), bits);
            let why = require_trusted_directory(&deep).unwrap_err().to_string();
            assert!(why.contains(spoilt) && why.contains("chmod go-w"), "{why}");
            mode(&scratch.join(spoilt), 0o755);
        }
        assert!(require_trusted_directory(&file).is_err());
        assert!(require_trusted_directory(&scratch.join("absent")).is_err());
    }

    #[test]
    fn refuse_what_is_no_file_of_that_size() {
        let scratch = Scratch::new();
        let long = scratch.write("long", [b'x'; 17]);
        symlink("loop", scratch.join("loop")).unwrap();
        let fifo = scratch.join("fifo");
        fs::mknodat(
            fs::CWD,
            &fifo,
            FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        for (path, why) in [
            (long.clone(), "17 bytes, more than 16"),
            (scratch.join("loop"), "symbolic links"),
            (fifo, "not a regular file"),
            (scratch.join("."), "a directory"),
            (scratch.join("absent"), "does not exist"),
            (long.join("below"), "no directory"),
            (PathBuf::from("relative"), "not absolute"),
        ] {
            let told = read(&path).unwrap_err();
            assert!(told.contains(why), "{}: {told}", path.display());
            assert!(!told.to_lowercase().contains("no such file"), "{told}");
        }
    }
}
