//! What would run: from a process's first argument to the files that the kernel would execute, found
//! and hashed by descriptors inside the container's root, never by a path of the host.

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::Process;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, readlinkat, statat};
use sha2::{Digest, Sha256};
use std::{
    ffi::OsStr,
    fs::File,
    io::{ErrorKind, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
};
use verify::digest::FileDigest;

/// The kernel gives up after four interpreters (fs/exec.c, `exec_binprm`).
const MAX_INTERPRETERS: usize = 5;
/// How much of a script the kernel reads (BINPRM_BUF_SIZE).
const SCRIPT_HEAD: usize = 256;
/// One file that the kernel executes: the program, or a script's interpreter after the script.
#[derive(Debug)]
pub struct Program {
    /// Absolute, inside the container, symbolic links resolved.
    pub path: Vec<u8>,
    pub digest: FileDigest,
}

/// The digest of a file that was hashed already, by its path inside the container.
pub type Known<'a> = dyn Fn(&[u8]) -> Option<FileDigest> + 'a;

/// Where a process looks for its program.
pub struct Search<'a> {
    pub argument: &'a str,
    pub cwd: &'a Path,
    pub env: &'a [String],
}

impl<'a> Search<'a> {
    pub fn of(process: &'a Process) -> Self {
        let args = process.args().as_deref().unwrap_or_default();
        Self {
            argument: args.first().map(String::as_str).unwrap_or_default(),
            cwd: process.cwd(),
            env: process.env().as_deref().unwrap_or_default(),
        }
    }
}

/// The program and then each interpreter, as exec would load them under `root`.
///
/// The file may be replaced by another one between this and exec: with tier `none` this is a check at the
/// door, and evidence says so; with any other the file is judged again when the kernel opens it.
///
/// `known` spares reading a file again whose content this process has just hashed.
pub fn resolve(root: BorrowedFd<'_>, path: &Path, known: &Known<'_>) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    let mut next = path.to_owned();
    loop {
        ensure!(
            programs.len() < MAX_INTERPRETERS,
            "{} is a chain of too many interpreters",
            path.display()
        );
        let (program, interpreter) = read(root, &next, known)?;
        programs.push(program);
        match interpreter {
            Some(path) => next = path,
            None => return Ok(programs),
        }
    }
}

/// Which file `search` leads to, by Go's exec.LookPath, which runc uses: of several PATHs the last one
/// counts, and of its entries the absolute ones. Who executes must execute this file and no other that
/// it might find by a rule of its own: the path goes with the guard's word.
pub fn find(root: BorrowedFd<'_>, search: &Search<'_>) -> Result<PathBuf> {
    let argument = search.argument;
    ensure!(
        !argument.is_empty(),
        "the process has no program (args[0] is empty)"
    );
    if argument.contains('/') {
        return Ok(search.cwd.join(argument));
    }
    let paths = search.env.iter().rev();
    let path = paths.filter_map(|v| v.strip_prefix("PATH=")).next();
    for directory in path
        .unwrap_or_default()
        .split(':')
        .filter(|d| d.starts_with('/'))
    {
        let candidate = Path::new(directory).join(argument);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = openat2(
            root,
            &candidate,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        );
        if let Ok(fd) = opened {
            let stat = statat(&fd, "", AtFlags::EMPTY_PATH)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && stat.st_mode & 0o111 != 0
            {
                return Ok(candidate);
            }
        }
    }
    bail!("exec: \"{argument}\": executable file not found in $PATH")
}

fn read(
    root: BorrowedFd<'_>,
    path: &Path,
    known: &Known<'_>,
) -> Result<(Program, Option<PathBuf>)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let fd = match openat2(root, path, flags, Mode::empty(), resolve) {
        // the words that engines turn into their exit codes, as runc has them
        Err(e @ (rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR)) => {
            bail!(
                "exec: {path:?}: stat {}: {}",
                path.display(),
                std::io::Error::from(e).kind().words()
            )
        }
        result => {
            result.with_context(|| format!("cannot open {} in the container", path.display()))?
        }
    };
    let stat = statat(&fd, "", AtFlags::EMPTY_PATH)?;
    ensure!(
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
        "exec: {path:?}: permission denied: not a regular file"
    );
    let resolved = path_inside(root, &fd)?;
    let mut file = File::from(fd);
    let digest = match known(&resolved) {
        Some(digest) => digest,
        None => hash(&mut file)
            .with_context(|| format!("cannot read {} in the container", path.display()))?,
    };
    let mut head = [0; SCRIPT_HEAD];
    let n = file.read_at(&mut head, 0)?;
    let interpreter = interpreter(head.get(..n).unwrap_or_default());
    Ok((
        Program {
            path: resolved,
            digest,
        },
        interpreter,
    ))
}

/// The `#!` line's program (execve(2), "Interpreter scripts").
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let word = line
        .split(|b| matches!(b, b' ' | b'\t' | 0))
        .find(|w| !w.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(word)))
}

fn hash(file: &mut File) -> Result<FileDigest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(FileDigest::from_bytes(hasher.finalize().into())),
            Ok(n) => hasher.update(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The file's own path below `root`, which may be in another mount namespace.
fn path_inside(root: BorrowedFd<'_>, file: &OwnedFd) -> Result<Vec<u8>> {
    let of = |fd: BorrowedFd<'_>| -> Result<Vec<u8>> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Ok(readlinkat(rustix::fs::CWD, &link, Vec::new())
            .with_context(|| format!("cannot read {link}"))?
            .into_bytes())
    };
    let (root, file) = (of(root)?, of(file.as_fd())?);
    match file.strip_prefix(root.as_slice()) {
        _ if root == b"/" => Ok(file),
        Some(inside) if inside.first() == Some(&b'/') => Ok(inside.to_vec()),
        _ => bail!(
            "{} is not below {}",
            String::from_utf8_lossy(&file),
            String::from_utf8_lossy(&root)
        ),
    }
}

trait Words {
    fn words(self) -> &'static str;
}
impl Words for ErrorKind {
    fn words(self) -> &'static str {
        match self {
            ErrorKind::NotADirectory => "not a directory",
            _ => "no such file or directory",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn rootfs(test: &str) -> (PathBuf, OwnedFd) {
        let dir =
            std::env::temp_dir().join(format!("attestrun-programs-{test}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        fs::create_dir_all(dir.join("bin")).unwrap();
        for (name, text) in [
            ("bin/elf", "ELF"),
            ("bin/script", "#! /bin/sh -e\n"),
            ("bin/loop", "#!/bin/loop\n"),
        ] {
            fs::write(dir.join(name), text).unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::os::unix::fs::symlink("/bin/elf", dir.join("bin/sh")).unwrap();
        std::os::unix::fs::symlink("/../../../etc/passwd", dir.join("bin/escape")).unwrap();
        let fd = rustix::fs::open(&dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn resolves_inside_the_root_only() {
        let (dir, root) = rootfs("resolve");
        let env = vec!["PATH=/sbin:/bin".to_owned()];
        let go = |argument: &'static str| {
            let search = Search {
                argument,
                cwd: Path::new("/"),
                env: &env,
            };
            resolve(root.as_fd(), &find(root.as_fd(), &search)?, &|_| None)
        };
        let paths = |argument: &'static str| {
            go(argument)
                .unwrap()
                .into_iter()
                .map(|p| p.path)
                .collect::<Vec<_>>()
        };

        assert_eq!(paths("elf"), [b"/bin/elf"]);
        assert_eq!(
            paths("/bin/sh"),
            [b"/bin/elf"],
            "a link inside the root, absolute in the container"
        );
        assert_eq!(
            paths("script"),
            [b"/bin/script".to_vec(), b"/bin/elf".to_vec()]
        );
        assert_eq!(go("elf").unwrap()[0].digest, FileDigest::of(b"ELF"));
        for bad in [
            "",
            "nothing",
            "/bin",
            "/bin/loop",
            "/bin/escape",
            "../bin/none",
        ] {
            assert!(go(bad).is_err(), "{bad:?}");
        }
        let missing = go("nothing").unwrap_err().to_string();
        assert!(
            missing.contains("executable file not found in $PATH"),
            "{missing}"
        );
        fs::remove_dir_all(dir).unwrap();
    }

    /// Two PATHs, or a relative entry, once made the guard judge one file and the backend run another.
    #[test]
    fn finds_what_the_backend_would() {
        let (dir, root) = rootfs("find");
        fs::create_dir_all(dir.join("sbin")).unwrap();
        fs::copy(dir.join("bin/elf"), dir.join("sbin/elf")).unwrap();
        let find = |env: &[&str]| {
            let env: Vec<String> = env.iter().map(|e| (*e).to_owned()).collect();
            let search = Search {
                argument: "elf",
                cwd: Path::new("/"),
                env: &env,
            };
            find(root.as_fd(), &search).ok()
        };
        assert_eq!(find(&["PATH=/sbin:/bin"]), Some("/sbin/elf".into()));
        assert_eq!(find(&["PATH=/sbin", "PATH=/bin"]), Some("/bin/elf".into()));
        assert_eq!(find(&["PATH=sbin:/bin"]), Some("/bin/elf".into()));
        assert_eq!(find(&["PATH="]), None);
        assert_eq!(find(&[]), None);
        fs::remove_dir_all(dir).unwrap();
    }
}
