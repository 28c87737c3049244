//! Limits of cgroup v1 that libcontainer writes in an order which the kernel refuses, or not at all.

use super::Cgroup;
use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu};
use std::{fs, io, path::Path};

impl Cgroup {
    /// Time in the processor, as runc writes it (libcontainer/cgroups/fs/cpu.go): true if this is v1.
    pub fn set_cpu_time(&self, cpu: &LinuxCpu) -> Result<bool> {
        let Some(dir) = self.dir("cpu") else {
            return Ok(false);
        };
        // the kernel checks the runtime against the period that is set
        put(dir, "cpu.rt_period_us", cpu.realtime_period())?;
        put(dir, "cpu.rt_runtime_us", cpu.realtime_runtime())?;
        put(dir, "cpu.shares", cpu.shares())?;
        let refused = match write(dir, "cpu.cfs_period_us", cpu.period()) {
            // with the old quota it would be more than the parent's share: once more after the new one
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && cpu.quota().is_some() => true,
            result => {
                result.with_context(|| failing(dir, "cpu.cfs_period_us"))?;
                false
            }
        };
        put(dir, "cpu.cfs_quota_us", cpu.quota())?;
        if refused {
            put(dir, "cpu.cfs_period_us", cpu.period())?;
        }
        Ok(true)
    }

    /// Weights of single devices; libcontainer leaves them out.
    pub fn set_device_weights(&self, block: &LinuxBlockIo) -> Result<()> {
        let Some(dir) = self.dir("blkio") else {
            return Ok(());
        };
        for device in block.weight_device().iter().flatten() {
            let line = |weight: Option<u16>| {
                weight.map(|w| format!("{}:{} {w}", device.major(), device.minor()))
            };
            let bfq = dir.join("blkio.bfq.weight_device").exists();
            let file = if bfq {
                "blkio.bfq.weight_device"
            } else {
                "blkio.weight_device"
            };
            put(dir, file, line(device.weight()))?;
            if !bfq {
                put(dir, "blkio.leaf_weight_device", line(device.leaf_weight()))?;
            }
        }
        Ok(())
    }
}

fn put(dir: &Path, file: &str, value: Option<impl ToString>) -> Result<()> {
    write(dir, file, value).with_context(|| failing(dir, file))
}

fn write(dir: &Path, file: &str, value: Option<impl ToString>) -> io::Result<()> {
    value.map_or(Ok(()), |value| fs::write(dir.join(file), value.to_string()))
}

fn failing(dir: &Path, file: &str) -> String {
    format!("cannot write {}", dir.join(file).display())
}
