//! `spec`: a config.json to begin with.

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
    file.write_all(TEMPLATE.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_template_is_a_configuration() {
        let spec: oci_spec::runtime::Spec = serde_json::from_str(super::TEMPLATE).unwrap();
        crate::bundle::check_process(spec.process().as_ref().unwrap()).unwrap();
    }
}
