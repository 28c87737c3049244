//! What a container begins with: its entry point; and where that is an engine's init, brought by a bind
//! mount (`docker run --init`), also what the init is told to execute.
//!
//! The init is judged by its digest, which policy and challenger must name, the program behind it as an
//! entry point. That the init executes this program first is the init's word; a tier that watches
//! executions sees to it that it is a listed one.

use super::admit::judge;
use crate::{
    ipc::Refused,
    programs::{self, Known, Program, Search},
};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::Process;
use std::{
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};
use verify::{
    digest::FileDigest,
    event::How,
    policy::{Admission, plain_text},
};

/// Where mounts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// At `create`: the rootfs alone; what a mount will bring is known by its sealed copy.
    Rootfs,
    /// At `start`: as the container's init sees it.
    Inside,
}

#[derive(Debug)]
pub struct Entry {
    /// Where the first argument leads to, before symbolic links are followed.
    pub path: PathBuf,
    /// The program and its interpreters.
    pub programs: Vec<Program>,
    /// What an init of the engine is told to execute.
    pub behind: Option<Behind>,
}

#[derive(Debug)]
pub struct Behind {
    pub programs: Vec<Program>,
    pub args: Vec<String>,
}

impl Entry {
    /// `brought`: the digest of the program that a mount brings as the first one, by the launch profile.
    pub fn find(
        root: BorrowedFd<'_>,
        process: &Process,
        brought: Option<FileDigest>,
        seen: Seen,
        known: &Known<'_>,
    ) -> Result<Self> {
        let path = programs::find(root, &Search::of(process))?;
        let Some(digest) = brought else {
            let programs = programs::resolve(root, &path, known)?;
            return Ok(Self {
                path,
                programs,
                behind: None,
            });
        };
        let program = match seen {
            Seen::Rootfs => Program {
                path: path.as_os_str().as_bytes().to_vec(),
                digest,
            },
            Seen::Inside => mounted(root, &path, digest)?,
        };
        let (search, args) = behind(process)?;
        let second = programs::find(root, &search).context("the program behind the init")?;
        Ok(Self {
            path,
            programs: vec![program],
            behind: Some(Behind {
                programs: programs::resolve(root, &second, known)?,
                args,
            }),
        })
    }

    /// An init was judged with the launch, by its name in the rules; all other programs are here.
    pub fn judge(&self, admission: &Admission) -> Result<(), Refused> {
        match &self.behind {
            None => judge(admission, How::Entrypoint, &self.programs),
            Some(behind) => judge(admission, How::Behind, &behind.programs),
        }
    }
}

/// The init as it is mounted.
fn mounted(root: BorrowedFd<'_>, path: &Path, judged: FileDigest) -> Result<Program> {
    let found = programs::resolve(root, path, &|_| None)?;
    match <[Program; 1]>::try_from(found) {
        Ok([program]) if program.digest == judged => Ok(program),
        _ => {
            let text = format!(
                "refused: {} in the container is not the program {judged} that was judged when it was created",
                path.display()
            );
            Err(Refused(plain_text(&text)).into())
        }
    }
}

/// What `<init> -- <program> [argument…]` executes, found as execvp(3) finds it.
fn behind(process: &Process) -> Result<(Search<'_>, Vec<String>)> {
    let no = |why: &str| -> Result<_> {
        let text = format!("refused: what the engine's init would execute cannot be judged: {why}");
        bail!(Refused(text))
    };
    let args = process.args().as_deref().unwrap_or_default();
    let [_, dashes, program, ..] = args else {
        return no("it is told no program");
    };
    if dashes != "--" {
        return no("its first argument is not `--`");
    }
    let search = Search {
        argument: program,
        ..Search::of(process)
    };
    // execvp takes the first PATH and its relative entries, runc the last and none of these
    let mut paths = search.env.iter().filter_map(|v| v.strip_prefix("PATH="));
    let (path, second) = (paths.next(), paths.next());
    let plain = |path: &str| path.split(':').all(|entry| entry.starts_with('/'));
    if !program.contains('/') && (second.is_some() || !path.is_some_and(plain)) {
        return no("PATH is not one list of absolute directories");
    }
    Ok((search, args.get(2..).unwrap_or_default().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(args: &[&str], env: &[&str]) -> Process {
        let json = serde_json::json!({
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": args, "env": env,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_program_behind_an_init() {
        let run = process(
            &["/sbin/docker-init", "--", "sh", "-c", "x"],
            &["PATH=/bin"],
        );
        let (search, args) = behind(&run).unwrap();
        assert_eq!(
            (search.argument, args),
            ("sh", vec!["sh".into(), "-c".into(), "x".into()])
        );
        let absolute = process(&["/dev/init", "--", "/bin/sh"], &[]);
        assert_eq!(behind(&absolute).unwrap().0.argument, "/bin/sh");
    }

    #[test]
    fn refuse_an_init_whose_program_is_not_certain() {
        for (args, env) in [
            (&["/init"][..], &["PATH=/bin"][..]),
            (&["/init", "--"], &["PATH=/bin"]),
            (&["/init", "-s", "--", "sh"], &["PATH=/bin"]),
            (&["/init", "sh", "--"], &["PATH=/bin"]),
            (&["/init", "--", "sh"], &[]),
            (&["/init", "--", "sh"], &["PATH=/bin", "PATH=/evil"]),
            (&["/init", "--", "sh"], &["PATH=/bin:."]),
            (&["/init", "--", "sh"], &["PATH=/bin:"]),
        ] {
            let error = behind(&process(args, env)).map(drop).unwrap_err();
            assert!(error.is::<Refused>(), "{args:?} {env:?}: {error:#}");
        }
    }
}
