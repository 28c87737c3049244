//! Credentials for registries (containers-auth.json(5)): `auths`, most specific name first.

use crate::disk;
use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use oci_client::{Reference, secrets::RegistryAuth};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    /// `user:password` in base64; absent where a helper program keeps it.
    auth: Option<String>,
}

/// For the image's repository, else for a namespace above it, else for the registry; a registry that
/// the file does not name is asked without credentials.
pub fn of(file: &Path, image: &Reference) -> anyhow::Result<RegistryAuth> {
    let context = || format!("reading the credentials {}", file.display());
    let text = disk::read(file, "the credentials", disk::SMALL)?;
    let parsed: AuthFile = serde_json::from_slice(&text).with_context(context)?;
    find(
        &parsed,
        &format!("{}/{}", image.registry(), image.repository()),
    )
    .with_context(context)
}

fn find(file: &AuthFile, repository: &str) -> anyhow::Result<RegistryAuth> {
    let mut name = repository;
    loop {
        if let Some(found) = file.auths.get(name) {
            let Some(auth) = &found.auth else {
                bail!(
                    "`{name}` has no `auth`: credential helpers are not asked, log in with --authfile"
                );
            };
            let decoded = BASE64
                .decode(auth)
                .ok()
                .and_then(|b| String::from_utf8(b).ok());
            return match decoded.as_deref().and_then(|text| text.split_once(':')) {
                Some((user, password)) => Ok(RegistryAuth::Basic(user.into(), password.into())),
                None => bail!("`{name}`: `auth` is not user:password in base64"),
            };
        }
        match name.rsplit_once('/') {
            Some((above, _)) => name = above,
            None => return Ok(RegistryAuth::Anonymous),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_name_wins() {
        let text = br#"{"auths": {"r.example": {"auth": "YTpi"}, "r.example/x/y": {"auth": "Yzpk"},
            "h.example": {}, "bad.example": {"auth": "%"}}}"#;
        let file: AuthFile = serde_json::from_slice(text).unwrap();
        let basic = |u: &str, p: &str| RegistryAuth::Basic(u.into(), p.into());
        assert!(find(&file, "r.example/x/y/z").unwrap() == basic("c", "d"));
        assert!(find(&file, "r.example/x").unwrap() == basic("a", "b"));
        assert!(find(&file, "other.example/x").unwrap() == RegistryAuth::Anonymous);
        assert!(find(&file, "h.example/x").is_err());
        assert!(find(&file, "bad.example/x").is_err());
    }
}
