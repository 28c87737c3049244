//! Memory files (memfd_create(2)): no mark covers them. Where programs that no list names must not run, the
//! kernel is told to execute none of them in the container's pid namespace (`vm.memfd_noexec`).

use super::sys;
use anyhow::{Context, Result, ensure};
use std::{fs::File, os::fd::AsFd};
use verify::{
    event::{Enforce, Latitude, ProgramsRule},
    policy::Admission,
    profile::{How, START_CONTAINER},
};

const SYSCTL: &str = "/proc/sys/vm/memfd_noexec";
/// Whoever does not ask for an executable one gets one that is not; who does is refused. Before Linux 6.6
/// everybody was who did not say so.
const NONE: &[u8] = b"2";
const SINCE: (u32, u32) = (6, 6);

/// What will become of them.
pub fn latitude(admission: &Admission) -> Latitude {
    let judged =
        admission.mode() == Enforce::Enforce && admission.programs().rule() != ProgramsRule::Any;
    let profile = admission.profile();
    let own = profile.namespace("pid") == How::New;
    // init runs startContainer hooks as copies of what was judged: memory files
    let needed = profile.hooks.iter().any(|h| h.stage == START_CONTAINER);
    let release = rustix::system::uname();
    let known = version(&release.release().to_string_lossy()) >= Some(SINCE);
    match judged && own && known && !needed {
        true => Latitude::Deny,
        false => Latitude::Any,
    }
}

/// Before the container's first program; `init` is the first process of a pid namespace of its own.
pub fn deny(init: u32) -> Result<()> {
    let path = format!("/proc/{init}/ns/pid");
    let theirs = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    let host = File::open("/proc/self/ns/pid").context("cannot open /proc/self/ns/pid")?;
    let inode = |file: &File| Ok::<_, anyhow::Error>(rustix::fs::fstat(file)?.st_ino);
    ensure!(
        inode(&theirs)? != inode(&host)?,
        "init is in the guard's pid namespace"
    );
    let sysctl = File::options().write(true).open(SYSCTL);
    let sysctl = sysctl.with_context(|| format!("cannot open {SYSCTL}"))?;
    sys::write_as_member(theirs.as_fd(), sysctl.as_fd(), NONE)
        .with_context(|| format!("cannot write {SYSCTL} in the container's pid namespace"))
}

/// Of uname(2)'s release: `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("6.6"), Some((6, 6)));
        assert!(version("6.1.0-18-amd64") < Some(SINCE));
        assert!(version("strange") < Some(SINCE));
    }

    #[test]
    fn refuse_the_guards_own_namespace() {
        let error = deny(std::process::id()).unwrap_err().to_string();
        assert!(error.contains("guard's pid namespace"), "{error}");
    }
}
