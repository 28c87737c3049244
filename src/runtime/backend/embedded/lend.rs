//! Capabilities that a process has until its last steps are done, and gives back before execve.

use crate::sys::Capabilities;
use anyhow::{Context, Result};
use libcontainer::capabilities::CapabilityExt;
use oci_spec::runtime::{Capabilities as CapabilitySet, Capability, Process};

/// What a process needs beyond its own capabilities.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Needs {
    /// Load a filter without no_new_privs.
    pub filter: bool,
    /// Take [`super::Step`]s, as whatever user it is.
    pub steps: bool,
}

/// What a process with lent capabilities gives back, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lent {
    /// After its steps, while it waits for `start`.
    pub waiting: Capabilities,
    /// Its own, before execve.
    pub own: Capabilities,
}

/// Gives a process what it needs for its last steps, and returns what it has to end with; `None` if
/// nothing is lent.
///
/// Without no_new_privs the kernel wants CAP_SYS_ADMIN for a filter. Inheritable capabilities that are
/// not permitted ones want CAP_SETPCAP, which libcontainer has dropped before it comes to them. Only
/// the effective and permitted sets get more; the bounding set stays.
pub(super) fn lend(process: &mut Process, needs: Needs) -> Result<Option<Lent>> {
    let mut caps = process
        .capabilities()
        .clone()
        .context("process without capabilities")?;
    let of = |set: &Option<CapabilitySet>| set.clone().unwrap_or_default();
    let (effective, permitted, inheritable) = (
        of(caps.effective()),
        of(caps.permitted()),
        of(caps.inheritable()),
    );
    let mut more = CapabilitySet::new();
    if needs.filter {
        more.insert(Capability::SysAdmin);
    }
    if !inheritable.is_subset(&permitted) {
        more.insert(Capability::Setpcap);
    }
    let until_exec = more.clone();
    if needs.steps {
        more.extend([
            Capability::SysAdmin,
            Capability::DacOverride,
            Capability::Fowner,
        ]);
    }
    if more.is_empty() {
        return Ok(None);
    }
    caps.set_effective(Some(&effective | &more));
    caps.set_permitted(Some(&permitted | &more));
    // what libcontainer can set; ambient ones are always among them
    let settable = &inheritable & &permitted;
    caps.set_inheritable(Some(settable.clone()));
    process.set_capabilities(Some(caps));
    let mask = |set: &CapabilitySet| set.iter().fold(0u64, |m, c| m | 1 << c.to_cap().index());
    Ok(Some(Lent {
        waiting: Capabilities {
            effective: mask(&(&effective | &until_exec)),
            permitted: mask(&(&permitted | &until_exec)),
            inheritable: mask(&settable),
        },
        own: Capabilities {
            effective: mask(&effective),
            permitted: mask(&permitted),
            inheritable: mask(&inheritable),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::normalise_process;

    #[test]
    fn lent_capabilities_go_back() {
        let process = |caps: &str| -> Process {
            let text = format!(r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/","capabilities":{caps}}}"#);
            let mut process = serde_json::from_str(&text).unwrap();
            normalise_process(&mut process);
            process
        };
        let kill = 1 << 5; // CAP_KILL
        let mut p = process(
            r#"{"effective":["CAP_KILL"],"permitted":["CAP_KILL"],"bounding":["CAP_KILL"]}"#,
        );
        assert_eq!(lend(&mut p, Needs::default()).unwrap(), None);
        let filter = Needs {
            filter: true,
            ..Needs::default()
        };
        let own = lend(&mut p, filter).unwrap().unwrap().own;
        assert_eq!(
            own,
            Capabilities {
                effective: kill,
                permitted: kill,
                inheritable: 0
            }
        );
        let caps = p.capabilities().clone().unwrap();
        assert!(
            caps.effective()
                .as_ref()
                .unwrap()
                .contains(&Capability::SysAdmin)
        );
        assert!(
            !caps
                .bounding()
                .as_ref()
                .unwrap()
                .contains(&Capability::SysAdmin)
        );

        let mut p = process(
            r#"{"effective":["CAP_KILL"],"permitted":["CAP_KILL"],"bounding":["CAP_KILL"]}"#,
        );
        let steps = Needs {
            filter: false,
            steps: true,
        };
        let lent = lend(&mut p, steps).unwrap().unwrap();
        assert_eq!(
            lent.waiting, lent.own,
            "nothing more once the steps are taken"
        );

        let mut p = process(r#"{"inheritable":["CAP_KILL"],"bounding":["CAP_KILL"]}"#);
        let own = lend(&mut p, Needs::default()).unwrap().unwrap().own;
        assert_eq!(
            own,
            Capabilities {
                effective: 0,
                permitted: 0,
                inheritable: kill
            }
        );
        let caps = p.capabilities().clone().unwrap();
        assert!(
            caps.permitted()
                .as_ref()
                .unwrap()
                .contains(&Capability::Setpcap)
        );
        assert!(caps.inheritable().as_ref().unwrap().is_empty());
    }
}
