//! One execution: measured through the kernel's descriptor, judged by its content, recorded at its first
//! use, and only then allowed.

use super::{
    identity::{Whose, caller},
    settled::{Settled, Stamp},
    sys::{self, Asked, Lease},
};
use crate::{
    guard::{admit, journal::Journal},
    ipc::Refused,
    programs::Program,
};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStringExt, fs::FileExt},
    },
    sync::Arc,
};
use verify::{
    digest::FileDigest,
    event::{AUDITED, Enforce, EnterVerdict, Event, ExecLog, Fault, How, Inside, ProgramsRule},
    imalog::EncodedPath,
    policy::{Admission, plain_text},
};

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// A process of the host: none of this container's business.
    Unseen,
    Denied,
}

pub struct Judge {
    admission: Arc<Admission>,
    journal: Arc<Journal>,
    whose: Whose,
    settled: Settled,
    /// Denials that are in the log: only the first of a content at a path is news.
    denied: HashSet<(Vec<u8>, FileDigest)>,
}

/// What was read, and whether it stays so until it is executed.
struct Measured {
    program: Program,
    steady: bool,
}

impl Judge {
    pub fn new(
        admission: Arc<Admission>,
        journal: Arc<Journal>,
        whose: Whose,
        settled: Settled,
    ) -> Self {
        Self {
            admission,
            journal,
            whose,
            settled,
            denied: HashSet::new(),
        }
    }

    /// A failure to find out is a denial.
    pub fn judge(&mut self, asked: &Asked) -> Verdict {
        if self.whose.is_hosts(asked.pid) {
            return Verdict::Unseen;
        }
        let verdict = match self.measure(&asked.file) {
            Ok(Some(measured)) => self.decide(&measured, asked.pid),
            // execve would fail with ETXTBSY; if the writer closes it meanwhile, what he wrote was not read
            Ok(None) => return Verdict::Denied,
            Err(error) => Err(error),
        };
        verdict.unwrap_or_else(|error| {
            eprintln!("attestrun guard: an execution is denied: {error:#}");
            Verdict::Denied
        })
    }

    /// `None`: somebody has the file open for writing.
    fn measure(&mut self, file: &File) -> Result<Option<Measured>> {
        let steady = match sys::lease(file).context("cannot take a lease on it")? {
            Lease::Held => true,
            Lease::None => false,
            Lease::Busy => return Ok(None),
        };
        let path = path_of(file)?;
        let digest = self.digest(file, steady).with_context(|| {
            format!(
                "cannot read {} in the container",
                String::from_utf8_lossy(&path)
            )
        })?;
        let program = Program { path, digest };
        Ok(Some(Measured { program, steady }))
    }

    fn digest(&mut self, file: &File, steady: bool) -> Result<FileDigest> {
        let before = Stamp::of(file)?;
        if steady && let Some(known) = self.settled.digest(&before) {
            return Ok(known);
        }
        let digest = hash(file)?;
        if steady && Stamp::of(file)? == before {
            self.settled.remember(before, digest);
        }
        Ok(digest)
    }

    fn decide(&mut self, measured: &Measured, pid: i32) -> Result<Verdict> {
        let program = &measured.program;
        let (verdict, reason) = match (self.may_run(measured), self.admission.mode()) {
            (Ok(()), _) => (EnterVerdict::Allowed, String::new()),
            (Err(refused), Enforce::Enforce) => (EnterVerdict::Denied, refused.to_string()),
            (Err(refused), Enforce::Audit) => (EnterVerdict::Audited, refused.to_string()),
        };
        let first = match verdict {
            EnterVerdict::Denied => {
                let denied = (program.path.clone(), program.digest);
                self.denied.insert(denied)
            }
            EnterVerdict::Allowed | EnterVerdict::Audited => {
                self.journal.execution(&program.path, program.digest)?
            }
        };
        let every = self.admission.terms().exec_log == ExecLog::Every;
        if first || every && verdict != EnterVerdict::Denied {
            self.journal.record(&Event::Inside(Inside {
                verdict,
                path: EncodedPath::of(&program.path)?.as_str().to_owned(),
                digest: program.digest,
                caller: caller(pid),
            }))?;
        }
        if first {
            let kind = match verdict {
                EnterVerdict::Allowed => None,
                EnterVerdict::Denied => Some("exec"),
                EnterVerdict::Audited => Some(AUDITED),
            };
            if let Some(kind) = kind {
                self.journal.record(&Event::Fault(Fault {
                    kind: kind.to_owned(),
                    detail: reason,
                }))?;
            }
        }
        Ok(match verdict {
            EnterVerdict::Denied => Verdict::Denied,
            EnterVerdict::Allowed | EnterVerdict::Audited => Verdict::Allowed,
        })
    }

    fn may_run(&self, measured: &Measured) -> Result<(), Refused> {
        let program = &measured.program;
        let digest = program.digest;
        if !measured.steady && self.admission.programs().rule() != ProgramsRule::Any {
            return Err(Refused(plain_text(&format!(
                "refused: {} ({digest}) may change before it is executed: its file system has no leases",
                String::from_utf8_lossy(&program.path),
            ))));
        }
        // what attestrun itself was asked to start was judged then, by the rules for that
        let started = || {
            self.admission.profile().brought() == Some(digest) || self.journal.has_executed(&digest)
        };
        match admit::judge(&self.admission, How::Inside, std::slice::from_ref(program)) {
            Err(_) if started() => Ok(()),
            judged => judged,
        }
    }
}

/// As the container sees it: the file was opened in its mount namespace.
fn path_of(file: &File) -> Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = fs::read_link(&link).with_context(|| format!("cannot read {link}"))?;
    let path = path.into_os_string().into_vec();
    Ok(match path.first() {
        Some(b'/') => path,
        // a mount that was taken away has no place: "(unreachable)/…"
        _ => [b"/", path.as_slice()].concat(),
    })
}

fn hash(file: &File) -> std::io::Result<FileDigest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(FileDigest::from_bytes(hasher.finalize().into())),
            Ok(n) => {
                hasher.update(buffer.get(..n).unwrap_or_default());
                at += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
