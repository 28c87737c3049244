//! Where systemd puts a container whose cgroupsPath is `slice:prefix:name` (runc, docs/systemd.md).

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// The path of the scope below the root of the hierarchy. What runc refuses, is refused.
pub fn path(cgroups_path: &Path) -> Result<PathBuf> {
    let text = cgroups_path.to_str().context("cgroupsPath is not UTF-8")?;
    let parts: Vec<_> = text.split(':').collect();
    let [slice, prefix, name] = parts.as_slice() else {
        bail!(
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead"
        );
    };
    let slice = match *slice {
        "" => "system.slice",
        slice => slice,
    };
    let unit = match *prefix {
        _ if name.ends_with(".slice") => (*name).to_owned(),
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    };
    ensure!(
        !unit.contains('/'),
        "invalid unit name {unit:?} in cgroupsPath {text:?}"
    );
    Ok(expanded(slice)?.join(unit))
}

/// `a-b.slice` lies in `a.slice` (systemd.slice(5)).
fn expanded(slice: &str) -> Result<PathBuf> {
    let invalid = || format!("invalid slice name {slice:?} in cgroupsPath");
    let name = slice.strip_suffix(".slice").with_context(invalid)?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Ok(path);
    }
    let mut unit = String::new();
    for component in name.split('-') {
        ensure!(!component.is_empty() && !component.contains('/'), invalid());
        unit.push_str(component);
        path.push(format!("{unit}.slice"));
        unit.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_found_where_systemd_makes_them() {
        for (text, expected) in [
            (":attestrun:x", "/system.slice/attestrun-x.scope"),
            ("machine.slice:libpod:x", "/machine.slice/libpod-x.scope"),
            (
                "kubepods-besteffort-pod1.slice:cri-containerd:x",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-x.scope",
            ),
            ("-.slice::x", "/x.scope"),
            ("a.slice::a-b.slice", "/a.slice/a-b.slice"),
        ] {
            assert_eq!(path(Path::new(text)).unwrap(), Path::new(expected));
        }
    }

    #[test]
    fn refuse_what_is_no_scope() {
        for text in [
            "/shared",
            "shared",
            "a:b",
            "a.slice:b:c:d",
            "a:b:c",
            "a--b.slice:p:n",
            "../a.slice:p:n",
            "a.slice:p:../n",
            ".slice:p:n",
        ] {
            assert!(path(Path::new(text)).is_err(), "{text}");
        }
    }
}
