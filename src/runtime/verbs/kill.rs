//! `kill`: any signal, by descriptor, to exactly the recorded init; it needs no guard.

use crate::{
    cli::Globals,
    ending::Extent,
    state::{State, Status},
    sys,
};
use anyhow::{Context, Result, bail};
use std::os::fd::AsFd;
use verify::id::ContainerId;

pub fn run(id: &ContainerId, signal: &str, all: bool, globals: &Globals) -> Result<()> {
    let signal = parse(signal)?;
    let state = State::find(&globals.root, id)?;
    let status = state.status()?;
    if all {
        kill_all(&state, signal)?;
    } else {
        let pidfd = state.init.map(|init| init.pidfd()).transpose()?.flatten();
        let Some(pidfd) = pidfd.filter(|_| status != Status::Stopped) else {
            bail!("container not running")
        };
        sys::pidfd_signal(pidfd.as_fd(), signal).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => anyhow::anyhow!("container not running"),
            _ => anyhow::Error::from(e).context("cannot signal init"),
        })?;
    }
    if signal == libc::SIGKILL && status == Status::Paused {
        // a frozen v1 cgroup holds even SIGKILL back
        state.cgroup.freeze(false)?;
    }
    Ok(())
}

/// Others in a shared cgroup are not meant.
fn kill_all(state: &State, signal: i32) -> Result<()> {
    let (Extent::PidNamespace, Some(init)) = (state.extent, state.init) else {
        // on a stopped container too: processes may outlive init in a shared pid namespace
        return state.cgroup.signal_all(signal);
    };
    let namespace = sys::PidNamespace::of(init.pid);
    if !init.is_alive()? {
        return Ok(()); // nobody outlives it
    }
    let namespace = namespace.context("cannot look up the container's pid namespace")?;
    state.cgroup.signal_all_in(&namespace, signal)
}

/// A number, or a name with or without SIG; real-time signals as RTMIN+n and RTMAX-n.
fn parse(text: &str) -> Result<i32> {
    let wrong = || format!("unknown signal {text:?}");
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) {
            Ok(number)
        } else {
            bail!(wrong())
        };
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |rest: &str, sign: char| -> Option<i32> {
        if rest.is_empty() {
            Some(0)
        } else {
            rest.strip_prefix(sign)?.parse().ok()
        }
    };
    let (min, max) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => Some(min + offset(rest, '+').with_context(wrong)?),
        (_, Some(rest)) => Some(max - offset(rest, '-').with_context(wrong)?),
        _ => None,
    };
    if let Some(number) = real_time {
        return if (min..=max).contains(&number) {
            Ok(number)
        } else {
            bail!(wrong())
        };
    }
    let known: nix::sys::signal::Signal = format!("SIG{name}").parse().ok().with_context(wrong)?;
    Ok(known as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("9", 9),
            ("0", 0),
            ("34", 34),
            ("64", 64),
            ("RTMIN+3", libc::SIGRTMIN() + 3),
            ("SIGRTMAX", libc::SIGRTMAX()),
            ("WINCH", 28),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in [
            "", "65", "-1", "NOPE", "RTMIN+99", "RTMINX", "RTMAX+1", "SIG",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
