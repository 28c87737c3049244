//! The gate: whoever executes a file inside the container waits until the guard has measured that file,
//! judged it by the list, and recorded it (tier `fanotify`).
//!
//! The kernel asks with a descriptor; nothing here opens a path of the container, so the gate never waits
//! for itself. Fails closed: the keeper holds the group of events too, so that a guard's death answers
//! nobody, and keeps it until all processes of the container are gone.
//!
//! Who executes is asked about each time: a store through a shared mapping changes a file without an event, so no
//! mark that lets a file pass until it is modified could be believed. Only files that nobody can have touched
//! since the start are not read again ([`settled`]).
//!
//! What this tier does not see is in the event's and the README's words for it.

mod identity;
mod judge;
mod memory;
mod places;
mod settled;
mod sys;

use self::{identity::Whose, judge::Judge, places::Own, settled::Settled};
use super::Guarded;
use crate::ending::Holdings;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    collections::VecDeque,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use sys::{Asked, NoGroup};
use verify::{
    event::{Latitude, TierName},
    policy::Admission,
    profile::How,
};

/// The kernel's group of events, held by keeper and guard.
pub enum Group {
    Open(OwnedFd),
    /// This kernel asks nobody, and why.
    Lacking(String),
}

impl Group {
    /// Called by the keeper before it forks the guard. The kernel lets a user have
    /// `fs.fanotify.max_user_groups` of them.
    pub fn open() -> Result<Self> {
        match sys::group() {
            Ok(group) => Ok(Self::Open(group)),
            Err(NoGroup::Lacking(error)) => Ok(Self::Lacking(format!(
                "the kernel gives no permission events of fanotify ({error})"
            ))),
            Err(NoGroup::Failed(error)) => Err(error).context(
                "cannot make a group of fanotify events; are there more containers than fs.fanotify.max_user_groups? \
                 The package has a sysctl file that raises it",
            ),
        }
    }
}

impl Group {
    /// For whoever is to hold it as well.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Open(group) => Some(group.as_fd()),
            Self::Lacking(_) => None,
        }
    }
}

/// What will watch the container, as far as that is known before there is one.
pub enum Gate {
    None {
        lacks: String,
    },
    /// On this overlay.
    Fanotify {
        group: OwnedFd,
        overlay: Own,
        memory_files: Latitude,
    },
}

impl Gate {
    pub fn of(group: Group, rootfs: &Path, admission: &Admission) -> Result<Self> {
        let group = match group {
            Group::Open(group) => group,
            Group::Lacking(lacks) => return Ok(Self::None { lacks }),
        };
        if admission.profile().namespace("mount") != How::New {
            let lacks = "it has no mount namespace of its own".to_owned();
            return Ok(Self::None { lacks });
        }
        Ok(match places::own(rootfs)? {
            Ok(overlay) => Self::Fanotify {
                group,
                overlay,
                memory_files: memory::latitude(admission),
            },
            Err(lacks) => Self::None { lacks },
        })
    }

    pub fn tier(&self) -> TierName {
        match self {
            Self::None { .. } => TierName::None,
            Self::Fanotify { .. } => TierName::Fanotify,
        }
    }

    /// Whether memory files are executed, which no tier here judges.
    pub fn memory_files(&self) -> Latitude {
        match self {
            Self::None { .. } => Latitude::Any,
            Self::Fanotify { memory_files, .. } => *memory_files,
        }
    }

    /// What it would take for more.
    pub fn lacks(&self) -> &str {
        match self {
            Self::None { lacks } => lacks,
            Self::Fanotify { .. } => "this attestrun has no stricter tier",
        }
    }

    /// Begins to watch, before the container's first program is executed.
    pub(super) fn arm(self, guarded: &Guarded, holdings: &Holdings) -> Result<()> {
        let Self::Fanotify {
            group,
            overlay,
            memory_files,
        } = self
        else {
            return Ok(());
        };
        let init = holdings.init()?;
        if memory_files == Latitude::Deny {
            memory::deny(init)?;
        }
        let settled = match overlay.settles {
            true => Settled::on(overlay.device)?,
            false => Settled::Never,
        };
        places::mark(group.as_fd(), init, overlay.device)
            .context("cannot watch the container's files")?;
        let whose = Whose::of(init).context("cannot tell the container's processes")?;
        anyhow::ensure!(
            !crate::ending::has_ended(&holdings.pidfd),
            "the container has ended"
        );
        let admission: Arc<Admission> = guarded.admitted.admission.clone();
        let judge = Judge::new(admission, guarded.journal.clone(), whose, settled);
        let mut watch = Watch {
            group,
            judge,
            held: VecDeque::new(),
        };
        let begin = thread::Builder::new().name("gate".into());
        begin
            .spawn(move || {
                let panicked = std::panic::AssertUnwindSafe(|| watch.run());
                match std::panic::catch_unwind(panicked) {
                    Ok(Err(error)) => eprintln!("attestrun guard: the gate failed: {error:#}"),
                    Ok(Ok(never)) => match never {},
                    Err(_) => eprintln!("attestrun guard: the gate panicked"),
                }
                // nobody has been answered; the keeper ends the container
                crate::sys::exit_now(1);
            })
            .context("cannot start the gate's thread")?;
        Ok(())
    }
}

/// How long a file that was allowed cannot be opened for writing: execve(2) has denied that itself by then.
const HOLD: Duration = Duration::from_millis(100);
const MOST_HELD: usize = 256;

/// The gate at work, in a thread of its own.
struct Watch {
    group: OwnedFd,
    judge: Judge,
    /// Files under a lease, oldest first.
    held: VecDeque<(Instant, File)>,
}

impl Watch {
    fn run(&mut self) -> Result<std::convert::Infallible> {
        loop {
            self.wait()?;
            match sys::asked(self.group.as_fd()) {
                Ok(all) => all.into_iter().try_for_each(|asked| self.answer(asked))?,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR) => {}
                    // the kernel could not open a file for us, and has denied its execution itself
                    Some(code) if ![libc::EBADF, libc::EFAULT, libc::EINVAL].contains(&code) => {
                        eprintln!("attestrun guard: denied, since it cannot be opened: {error}");
                    }
                    _ => bail!("cannot read fanotify's events: {error}"),
                },
            }
        }
    }

    /// Until somebody asks; meanwhile leases end.
    fn wait(&mut self) -> Result<()> {
        let now = Instant::now();
        while self.held.len() > MOST_HELD
            || self.held.front().is_some_and(|(until, _)| *until <= now)
        {
            self.held.pop_front();
        }
        let timeout = self.held.front().map(|(until, _)| {
            let left = until.saturating_duration_since(now);
            Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = [PollFd::new(&self.group, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("poll"),
        }
    }

    fn answer(&mut self, asked: Asked) -> Result<()> {
        let verdict = self.judge.judge(&asked);
        let allow = verdict != judge::Verdict::Denied;
        sys::answer(self.group.as_fd(), &asked.file, allow).context("cannot answer")?;
        if verdict == judge::Verdict::Allowed {
            self.held.push_back((Instant::now() + HOLD, asked.file));
        }
        Ok(())
    }
}
