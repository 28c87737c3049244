//! Whose process it is that executes a file of the container's: the container's own, or the host's (an
//! engine that looks after its mounts).
//!
//! A process cannot leave its pid namespace, and enters only those below it (pid_namespaces(7)); so that
//! namespace tells, and where a container has none of its own, its mount namespace does. Whoever cannot
//! be told is taken for the container's.

use anyhow::{Context, Result};
use std::{fs, os::unix::fs::MetadataExt};
use verify::event::Caller;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Namespaces {
    pid: u64,
    mount: u64,
}

impl Namespaces {
    fn of(process: impl std::fmt::Display) -> std::io::Result<Self> {
        // all namespaces' inodes are of one file system (nsfs)
        let inode = |kind: &str| fs::metadata(format!("/proc/{process}/ns/{kind}"));
        Ok(Self {
            pid: inode("pid")?.ino(),
            mount: inode("mnt")?.ino(),
        })
    }
}

pub struct Whose {
    host: Namespaces,
    container: Namespaces,
}

impl Whose {
    pub fn of(init: u32) -> Result<Self> {
        let doing = |who: &str| format!("cannot look up the namespaces of {who}");
        Ok(Self {
            host: Namespaces::of("self").with_context(|| doing("the guard"))?,
            container: Namespaces::of(init).with_context(|| doing("init"))?,
        })
    }

    pub fn is_hosts(&self, pid: i32) -> bool {
        Namespaces::of(pid).is_ok_and(|found| self.are_hosts(found))
    }

    fn are_hosts(&self, found: Namespaces) -> bool {
        found.pid == self.host.pid
            && found.mount != self.container.mount
            && (self.container.pid != self.host.pid || found.mount == self.host.mount)
    }
}

/// For the record; `None` if the process has ended.
pub fn caller(pid: i32) -> Option<Caller> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let namespaces = Namespaces::of(pid).ok()?;
    // of four ids the second is the effective one (proc_pid_status(5))
    let field = |name: &str, index: usize| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().nth(index)?.parse().ok()
    };
    Some(Caller {
        pid: pid.cast_unsigned(),
        ppid: field("PPid:", 0)?,
        uid: field("Uid:", 1)?,
        gid: field("Gid:", 1)?,
        mount_namespace: namespaces.mount,
        pid_namespace: namespaces.pid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pid: u64, mount: u64) -> Namespaces {
        Namespaces { pid, mount }
    }

    #[test]
    fn the_hosts_processes_are_known_by_their_namespaces() {
        let own = Whose {
            host: at(1, 1),
            container: at(2, 2),
        };
        assert!(own.are_hosts(at(1, 1)));
        assert!(own.are_hosts(at(1, 9)), "an engine in a mount namespace");
        for (inside, why) in [
            (at(2, 2), "the container's"),
            (at(2, 9), "unshare -m"),
            (at(9, 9), "a pid namespace below"),
            (at(1, 2), "nsenter -m"),
            (at(2, 1), "nsenter -p"),
        ] {
            assert!(!own.are_hosts(inside), "{why}");
        }
        let shared = Whose {
            host: at(1, 1),
            container: at(1, 2),
        };
        assert!(shared.are_hosts(at(1, 1)));
        assert!(!shared.are_hosts(at(1, 2)));
        assert!(!shared.are_hosts(at(1, 9)), "unshare -m");
    }

    #[test]
    fn a_caller_is_described() {
        let me = std::process::id();
        let caller = caller(me.cast_signed()).unwrap();
        assert_eq!(caller.pid, me);
        assert_eq!(caller.uid, rustix::process::geteuid().as_raw());
        assert_eq!(
            caller.ppid.cast_signed(),
            rustix::process::getppid().unwrap().as_raw_pid()
        );
        assert!(super::caller(i32::MAX).is_none());
    }
}
