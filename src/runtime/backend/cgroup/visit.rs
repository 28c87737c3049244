//! A stay of this process in a container's cgroups.

use super::{Cgroup, is_unified};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// libcontainer's v1 manager leaves these out: named hierarchies, the unified one of a hybrid host,
/// and controllers that it does not know. What this process forks during its visit is in them from the
/// first moment on, as under runc, so that a cgroup namespace has its root there.
///
/// It ends before anybody may kill the container's cgroups.
pub struct Visit(Vec<PathBuf>);

impl Visit {
    pub fn begin(cgroups_path: &Path) -> Result<Self> {
        let mut visit = Self(Vec::new());
        if is_unified() {
            return Ok(visit);
        }
        let home = Cgroup::of("self")?;
        for (name, dir) in Cgroup::at(cgroups_path)?.0 {
            let left_out = name.is_empty() || name.starts_with("name=");
            if !left_out && !["rdma", "misc"].contains(&name.as_str()) {
                continue;
            }
            let Some(back) = home.0.get(&name).filter(|back| **back != dir) else {
                continue;
            };
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            visit.0.push(back.clone());
            enter(&dir)?;
        }
        Ok(visit)
    }

    pub fn end(mut self) -> Result<()> {
        self.0.drain(..).try_for_each(|dir| enter(&dir))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        for dir in &self.0 {
            enter(dir).ok(); // an error is on its way already
        }
    }
}

/// 0 is the writer itself.
fn enter(dir: &Path) -> Result<()> {
    let procs = dir.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("cannot enter {}", procs.display()))
}
