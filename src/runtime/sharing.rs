//! A cgroup that others are in already: runc 1.1 warns and goes on. So do we where the container's end is
//! the end of its own processes alone, and where nobody's device rules change.

use crate::{
    backend::cgroup::Cgroup,
    bundle::SealedBundle,
    ipc::Refused,
    state::{State, Status},
};
use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxNamespaceType, Spec};

/// How many processes are in the cgroup that `state`'s container is to have.
pub fn others_in(planned: &Cgroup, state: &State, sealed: &SealedBundle) -> Result<usize> {
    planned.ensure_not_frozen()?;
    let others = planned.anybody()?.len();
    if others == 0 {
        return Ok(0);
    }
    ensure!(
        has_own_pids(&sealed.spec),
        "container's cgroup is not empty: {others} process(es) found in it, and the container has no pid \
         namespace of its own: its end would be theirs"
    );
    let neighbours = State::every()?.into_iter();
    for neighbour in neighbours.filter(|n| n.run_id != state.run_id && n.cgroup.meets(planned)) {
        if neighbour.status()? != Status::Stopped {
            same_devices(&sealed.spec, &neighbour)?;
        }
    }
    Ok(others)
}

/// The rules belong to the cgroup: the last container that is made would set them for all.
fn same_devices(spec: &Spec, neighbour: &State) -> Result<()> {
    let id = &neighbour.id;
    let theirs = SealedBundle::read_spec(&neighbour.run_dir())
        .with_context(|| format!("container {id}, which is in the same cgroup"))?;
    if device_rules(spec) != device_rules(&theirs) {
        let text = format!(
            "refused: container {id} is in the same cgroup with other device rules, which would change; \
             give each its own linux.cgroupsPath"
        );
        return Err(Refused(text).into());
    }
    Ok(())
}

fn device_rules(spec: &Spec) -> &[LinuxDeviceCgroup] {
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    resources
        .and_then(|r| r.devices().as_deref())
        .unwrap_or_default()
}

fn has_own_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|n| {
        let joined = n.path().as_ref().is_some_and(|p| !p.as_os_str().is_empty());
        n.typ() == LinuxNamespaceType::Pid && !joined
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(linux: &str) -> Spec {
        let text = format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},"linux":{linux}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_pid_namespace_of_its_own() {
        for (namespaces, own) in [
            (r#"[{"type":"pid"}]"#, true),
            (r#"[{"type":"pid","path":""}]"#, true),
            (r#"[{"type":"pid","path":"/proc/1/ns/pid"}]"#, false),
            (r#"[{"type":"mount"}]"#, false),
        ] {
            let spec = spec(&format!(r#"{{"namespaces":{namespaces}}}"#));
            assert_eq!(has_own_pids(&spec), own, "{namespaces}");
        }
        assert!(!has_own_pids(&spec("{}")));
    }
}
