//! Hooks: programs of the host that a bundle has run beside its container. What runs is attestrun's own
//! copy of the program that was judged (`copies`): whoever changes the file or its path afterwards
//! changes nothing. The sealed config.json names the copy, so that both backends run it, at any later
//! stage too.

use crate::{
    copies::{HOOKS, Origins, is_elf},
    ipc::Refused,
};
use anyhow::Result;
use oci_spec::runtime::{Hook, Spec};
use verify::policy::plain_text;

/// Names the copies in `spec` instead of the programs themselves.
pub fn seal(spec: &mut Spec, origins: &mut Origins) -> Result<()> {
    let Some(mut hooks) = spec.hooks().clone() else {
        return Ok(());
    };
    if hooks
        .start_container()
        .as_ref()
        .is_some_and(|h| !h.is_empty())
    {
        let text = "refused: a startContainer hook runs a file of the container, whatever the host's file \
                    of that name is; use createContainer, or make it part of the image and of its list";
        return Err(Refused(text.to_owned()).into());
    }
    seal_stage(hooks.prestart_mut(), origins)?;
    seal_stage(hooks.create_runtime_mut(), origins)?;
    seal_stage(hooks.create_container_mut(), origins)?;
    seal_stage(hooks.poststart_mut(), origins)?;
    seal_stage(hooks.poststop_mut(), origins)?;
    spec.set_hooks(Some(hooks));
    Ok(())
}

fn seal_stage(stage: &mut Option<Vec<Hook>>, origins: &mut Origins) -> Result<()> {
    for hook in stage.iter_mut().flatten() {
        let path = hook.path().clone();
        // a script's interpreter would be a second program, which nobody judged
        if !is_elf(&path).map_err(|error| error.context("hook"))? {
            let text = format!(
                "refused: the hook {} is no ELF program: what would run is an interpreter, whose input no digest of a rule covers; name a program",
                path.display()
            );
            return Err(Refused(plain_text(&text)).into());
        }
        let copy = HOOKS.copy_of(&path)?;
        hook.set_path(copy.clone());
        origins.insert(copy, path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(hooks: &str) -> Spec {
        let text = format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},"hooks":{hooks}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn refuse_hooks_that_are_no_programs_of_the_host() {
        for (hooks, why) in [
            (
                r#"{"startContainer":[{"path":"/proc/self/exe"}]}"#,
                "startContainer",
            ),
            (r#"{"poststop":[{"path":"/etc/hostname"}]}"#, "no ELF"),
            (r#"{"createRuntime":[{"path":"/nothing"}]}"#, "/nothing"),
        ] {
            let error = format!(
                "{:#}",
                seal(&mut spec(hooks), &mut Origins::new()).unwrap_err()
            );
            assert!(error.contains(why), "{error}");
        }
    }
}
