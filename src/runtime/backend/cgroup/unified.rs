//! Limits of cgroup v2 with which libcontainer 0.7 does not do what runc does (runc 1.1,
//! libcontainer/cgroups/fs2 and systemd/v2.go).

use super::{Cgroup, is_unified};
use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxMemory, LinuxPids, LinuxResources};
use std::{fs, path::Path};

/// 0 says nothing to runc; libcontainer would write it, and for processes 1.
pub fn forget_zeros(resources: &mut LinuxResources) {
    let real = |limit: Option<i64>| limit.filter(|l| *l != 0);
    if let Some(memory) = resources.memory_mut() {
        let (limit, swap) = (real(memory.limit()), real(memory.swap()));
        let reservation = real(memory.reservation());
        memory
            .set_limit(limit)
            .set_swap(swap)
            .set_reservation(reservation);
    }
    if resources.pids().as_ref().is_some_and(no_limit) {
        resources.set_pids(None);
    }
}

fn no_limit(pids: &LinuxPids) -> bool {
    pids.limit() == 0
}

impl Cgroup {
    /// What libcontainer writes otherwise or not at all; after it has written its part.
    pub fn complete_unified(&self, resources: &LinuxResources) -> Result<()> {
        let Some(dir) = self.unified_dir() else {
            return Ok(());
        };
        let no_swap =
            |m: &LinuxMemory| m.limit().is_some_and(|limit| limit > 0) && m.limit() == m.swap();
        if resources.memory().as_ref().is_some_and(no_swap) {
            // libcontainer takes the difference of 0 for no limit
            put(dir, "memory.swap.max", 0)?;
        }
        let weight = resources.block_io().as_ref().and_then(|b| b.weight());
        if let Some(weight) = weight.filter(|w| *w > 0)
            && !dir.join("io.bfq.weight").exists()
        {
            // 10..1000 to 1..10000; libcontainer does so in 16 bits
            let weight = 1 + u32::from(weight).saturating_sub(10) * 9999 / 990;
            put(dir, "io.weight", weight)?;
        }
        Ok(())
    }

    /// For an update: libcontainer tells systemd quota and period whenever it tells anything about the
    /// processor, so it needs those in force, lest it lift them.
    pub fn with_time_in_force(&self, resources: &mut LinuxResources) -> Result<()> {
        let Some(dir) = self.unified_dir() else {
            return Ok(());
        };
        if let Some(cpu) = resources.cpu_mut() {
            let (quota, period) = time(&get(dir, "cpu.max")?)?;
            if cpu.quota().is_none() {
                cpu.set_quota(Some(quota));
            }
            if cpu.period().is_none() {
                cpu.set_period(Some(period));
            }
        }
        Ok(())
    }

    fn unified_dir(&self) -> Option<&Path> {
        self.dir("").filter(|_| is_unified())
    }
}

/// Quota (-1 is none) and period of a `cpu.max`.
fn time(text: &str) -> Result<(i64, u64)> {
    let parsed = || {
        let (quota, period) = text.trim().split_once(' ')?;
        let quota = match quota {
            "max" => -1,
            number => number.parse().ok()?,
        };
        Some((quota, period.parse().ok()?))
    };
    parsed().with_context(|| format!("cpu.max holds {text:?}"))
}

fn get(dir: &Path, file: &str) -> Result<String> {
    let path = dir.join(file);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn put(dir: &Path, file: &str, value: impl ToString) -> Result<()> {
    let path = dir.join(file);
    fs::write(&path, value.to_string()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_say_nothing() {
        let mut resources: LinuxResources = serde_json::from_str(
            r#"{"memory":{"limit":0,"swap":0,"reservation":4096,"disableOOMKiller":false},"pids":{"limit":0}}"#,
        )
        .unwrap();
        forget_zeros(&mut resources);
        assert!(resources.pids().is_none());
        let memory = resources.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (None, None));
        assert_eq!(memory.reservation(), Some(4096));
        let unlimited = r#"{"memory":{"limit":-1},"pids":{"limit":-1}}"#;
        let mut resources: LinuxResources = serde_json::from_str(unlimited).unwrap();
        forget_zeros(&mut resources);
        assert_eq!(resources.pids().as_ref().unwrap().limit(), -1);
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(-1));
    }

    #[test]
    fn a_cpu_max_is_read() {
        assert_eq!(time("max 100000\n").unwrap(), (-1, 100_000));
        assert_eq!(time("20000 50000\n").unwrap(), (20_000, 50_000));
        for wrong in ["", "max", "x 1", "1 x"] {
            assert!(time(wrong).is_err(), "{wrong:?}");
        }
    }
}
