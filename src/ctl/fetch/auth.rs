//! Credentials for registries (containers-auth.json(5)): `auths`, most specific name first.

use crate::disk;
use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use oci_client::{Reference, secrets::RegistryAuth};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

/// Under which name `docker login` keeps Docker Hub.
const DOCKER_HUB: &str = "index.docker.io";

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
            return found.decoded(name);
        }
        match name.rsplit_once('/') {
            Some((above, _)) => name = above,
            None => break,
        }
    }
    // `docker login` has written addresses: https://index.docker.io/v1/
    let whole = |key: &str| key.contains("://") || !key.contains('/');
    let mut addresses = file.auths.iter();
    match addresses.find(|(key, _)| whole(key) && host(key) == host(name)) {
        Some((key, found)) => found.decoded(key),
        None => Ok(RegistryAuth::Anonymous),
    }
}

/// The registry that an address, or one of Docker Hub's names, means.
fn host(name: &str) -> &str {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    match name.split('/').next().unwrap_or(name) {
        "docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

impl Auth {
    fn decoded(&self, name: &str) -> anyhow::Result<RegistryAuth> {
        let Some(auth) = &self.auth else {
            bail!(
                "`{name}` has no `auth`: credential helpers are not asked, log in with --authfile"
            );
        };
        let decoded = BASE64
            .decode(auth)
            .ok()
            .and_then(|b| String::from_utf8(b).ok());
        match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((user, password)) => Ok(RegistryAuth::Basic(user.into(), password.into())),
            None => bail!("`{name}`: `auth` is not user:password in base64"),
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

    #[test]
    fn addresses_that_docker_login_writes() {
        let text = br#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"},
            "https://r.example:5000/v1/": {"auth": "Yzpk"}, "s.example/x": {"auth": "ZTpm"}}}"#;
        let file: AuthFile = serde_json::from_slice(text).unwrap();
        let basic = |u: &str, p: &str| RegistryAuth::Basic(u.into(), p.into());
        assert!(find(&file, "docker.io/library/x").unwrap() == basic("a", "b"));
        assert!(find(&file, "r.example:5000/x").unwrap() == basic("c", "d"));
        // Another port is another registry, and a repository's credentials are its own.
        assert!(find(&file, "r.example/x").unwrap() == RegistryAuth::Anonymous);
        assert!(find(&file, "s.example/y").unwrap() == RegistryAuth::Anonymous);
    }
}
