//! What a process of `exec` joins: init's namespaces, by descriptors.

use crate::{
    backend::cgroup::{Cgroup, is_unified},
    bundle::normalise_process,
    state::State,
};
use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Process, Spec};
use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
};

/// The container's cgroup, or init's own where init has moved itself below and shares controllers out:
/// on cgroup v2 the container's directory then takes no process (cgroups(7), "no internal processes").
pub(super) fn cgroup_config(state: &State) -> Result<libcgroups::common::CgroupConfig> {
    let mut config = super::cgroup_config(state);
    let shares_out = state
        .cgroup
        .dir("")
        .filter(|_| is_unified())
        .is_some_and(|dir| {
            fs::read_to_string(dir.join("cgroup.subtree_control"))
                .is_ok_and(|c| !c.trim().is_empty())
        });
    if shares_out {
        let init = state.init.context("the container has no init")?;
        config.cgroup_path = Cgroup::unified_path(init.pid)?;
        config.systemd_cgroup = false; // the directory is there
    }
    Ok(config)
}

/// Descriptors of init's namespaces, by type.
pub(super) struct Namespaces(Vec<(LinuxNamespaceType, OwnedFd)>);

impl Namespaces {
    pub(super) fn open(spec: &Spec, pid: i32) -> Result<Self> {
        use LinuxNamespaceType as T;
        let linux = spec.linux().as_ref().context("linux must be specified")?;
        let open = |namespace: &oci_spec::runtime::LinuxNamespace| {
            let name = match namespace.typ() {
                T::Ipc => "ipc",
                T::Uts => "uts",
                T::Network => "net",
                T::Pid => "pid",
                T::Mount => "mnt",
                T::Cgroup => "cgroup",
                T::Time => "time",
                T::User => "user",
            };
            let path = format!("/proc/{pid}/ns/{name}");
            let file = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
            Ok((namespace.typ(), file.into()))
        };
        linux
            .namespaces()
            .iter()
            .flatten()
            .map(open)
            .collect::<Result<_>>()
            .map(Self)
    }
}

/// The container's configuration, cut down to what a further process takes from it.
pub(super) fn tenant_spec(
    sealed: &Spec,
    mut process: Process,
    namespaces: &Namespaces,
) -> Result<Spec> {
    let linux = sealed.linux().as_ref().context("linux must be specified")?;
    let joined = namespaces.0.iter().map(|(typ, fd)| {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Ok(LinuxNamespaceBuilder::default()
            .typ(*typ)
            .path(path)
            .build()?)
    });
    let mut builder = LinuxBuilder::default().namespaces(joined.collect::<Result<Vec<_>>>()?);
    if let Some(path) = linux.cgroups_path() {
        builder = builder.cgroups_path(path.clone());
    }
    if let Some(personality) = linux.personality() {
        builder = builder.personality(personality.clone());
    }
    if let Some(seccomp) = linux.seccomp() {
        builder = builder.seccomp(seccomp.clone());
    }
    // what the process does not say is the container's (runc, newInitConfig)
    let own = sealed
        .process()
        .as_ref()
        .context("Process must be specified")?;
    if process.capabilities().is_none() {
        process.set_capabilities(own.capabilities().clone());
    }
    if process
        .apparmor_profile()
        .as_ref()
        .is_none_or(String::is_empty)
    {
        process.set_apparmor_profile(own.apparmor_profile().clone());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(own.rlimits().clone());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(own.oom_score_adj());
    }
    if process.user().umask().is_none() {
        process.user_mut().set_umask(own.user().umask());
    }
    normalise_process(&mut process);
    let mut spec = sealed.clone();
    spec.set_linux(Some(builder.build()?))
        .set_process(Some(process))
        .set_hooks(None)
        .set_mounts(None);
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Capability;

    #[test]
    fn a_further_process_takes_the_rest_from_the_container() {
        let text = r#"{"ociVersion":"1.0.2","root":{"path":"r"},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}},
            "process":{"user":{"uid":0,"gid":0,"umask":63},"cwd":"/","args":["a"],"oomScoreAdj":7,
                       "capabilities":{"bounding":["CAP_KILL"]}}}"#;
        let sealed: Spec = serde_json::from_str(text).unwrap();
        let process: Process = serde_json::from_str(
            r#"{"user":{"uid":1,"gid":1},"cwd":"/","args":["b"],"noNewPrivileges":false}"#,
        )
        .unwrap();
        let spec = tenant_spec(&sealed, process, &Namespaces(vec![])).unwrap();
        let p = spec.process().as_ref().unwrap();
        assert_eq!((p.user().uid(), p.user().umask()), (1, Some(63)));
        assert_eq!(p.oom_score_adj(), Some(7));
        assert_eq!(p.no_new_privileges(), None);
        assert!(
            p.capabilities()
                .as_ref()
                .unwrap()
                .bounding()
                .as_ref()
                .unwrap()
                .contains(&Capability::Kill)
        );
        assert!(spec.linux().as_ref().unwrap().seccomp().is_some());
    }
}
