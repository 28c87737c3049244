//! `spec`: a config.json to begin with.

use crate::backend::cgroup::is_unified;
use anyhow::{Context, Result, ensure};
use std::{fs::File, io::Write, path::Path};

const TEMPLATE: &str = include_str!("spec.json");

pub fn run(bundle: &Path, rootless: bool) -> Result<()> {
    ensure!(
        !rootless,
        "rootless containers are not attested, so there is no configuration for one"
    );
    let path = bundle.join("config.json");
    let mut file = match File::options().write(true).create_new(true).open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            anyhow::bail!("File config.json exists. Remove it first")
        }
        result => result.with_context(|| format!("cannot write {}", path.display()))?,
    };
    file.write_all(text(is_unified()).as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// As runc's: where cgroup v2 is all there is, a cgroup namespace too.
fn text(unified: bool) -> String {
    const LAST: &str = "{\n\t\t\t\t\"type\": \"mount\"\n\t\t\t}";
    match unified {
        false => TEMPLATE.to_owned(),
        true => TEMPLATE.replace(
            LAST,
            &format!("{LAST},\n\t\t\t{}", LAST.replace("mount", "cgroup")),
        ),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_template_is_a_configuration() {
        for (unified, count) in [(false, 5), (true, 6)] {
            let spec: oci_spec::runtime::Spec =
                serde_json::from_str(&super::text(unified)).unwrap();
            crate::bundle::check_process(spec.process().as_ref().unwrap()).unwrap();
            let namespaces = spec
                .linux()
                .as_ref()
                .unwrap()
                .namespaces()
                .as_ref()
                .unwrap();
            assert_eq!(namespaces.len(), count);
        }
    }
}
