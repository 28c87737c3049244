//! A registry (OCI distribution-spec 1.1), as far as signatures need it. Everything that it sends is
//! bounded and hashed; what it says about it is a hint.

use super::{auth, trust};
use crate::sys;
use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    manifest::{OciDescriptor, OciManifest},
    secrets::RegistryAuth,
};
use std::{net::IpAddr, path::Path, time::Duration};
use verify::digest::BlobDigest;

const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Registries take no larger manifests either.
const MAX_MANIFEST: usize = 4 << 20;
/// Scanners' reports are long.
const MAX_BLOB: usize = 16 << 20;
/// So many artifacts about one manifest are fetched.
const MAX_REFERRERS: usize = 256;

pub struct Registry {
    client: Client,
    auth: RegistryAuth,
}

impl Registry {
    /// Before any thread is started: the client makes itself another one on its way, which it never uses,
    /// and which panics where the environment names no CAs.
    pub fn new(image: &Reference, authfile: Option<&Path>) -> anyhow::Result<Self> {
        let host = image.resolve_registry();
        let trust = trust::of(host)?;
        sys::trust_only(&trust.file);
        let protocol = match is_loopback(host) && !trust.named {
            true => ClientProtocol::Http,
            false => ClientProtocol::Https,
        };
        let client = Client::try_from(ClientConfig {
            protocol,
            // and not whom SSL_CERT_FILE and SSL_CERT_DIR name
            tls_certs_only: trust.roots,
            connect_timeout: Some(Duration::from_secs(15)),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: concat!("attestctl/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .context("setting up the registry's client")?;
        let auth = match authfile {
            Some(file) => auth::of(file, image)?,
            None => RegistryAuth::Anonymous,
        };
        Ok(Self { client, auth })
    }

    /// The manifest or index behind a name, or behind a digest; `None` when there is none.
    pub async fn manifest(&self, image: &Reference) -> anyhow::Result<Option<Vec<u8>>> {
        let pulled = self.client.pull_manifest_raw(image, &self.auth, &ACCEPTED);
        let content = match pulled.await {
            Ok((content, _)) => content,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => {
                return Err(advised(error)).with_context(|| format!("asking for {image}"));
            }
        };
        ensure!(
            content.len() <= MAX_MANIFEST,
            "{image}: {} bytes, more than {MAX_MANIFEST}",
            content.len()
        );
        if let Some(digest) = image.digest() {
            let found = BlobDigest::of(&content).to_string();
            ensure!(found == digest, "{image}: the registry sent {found}");
        }
        Ok(Some(content.to_vec()))
    }

    pub async fn by_digest(
        &self,
        image: &Reference,
        digest: &BlobDigest,
    ) -> anyhow::Result<Option<Vec<u8>>> {
        let (host, repository) = (image.registry(), image.repository());
        self.manifest(&Reference::with_digest(
            host.to_owned(),
            repository.to_owned(),
            digest.to_string(),
        ))
        .await
    }

    pub async fn blob(&self, image: &Reference, digest: &BlobDigest) -> anyhow::Result<Vec<u8>> {
        let asked = OciDescriptor {
            digest: digest.to_string(),
            ..OciDescriptor::default()
        };
        let context = || format!("asking for blob {digest} of {image}");
        let mut stream = self
            .client
            .pull_blob_stream(image, &asked)
            .await
            .map_err(advised)
            .with_context(context)?;
        let mut content = Vec::new();
        while let Some(part) = stream.stream.next().await {
            content.extend_from_slice(&part.with_context(context)?);
            ensure!(
                content.len() <= MAX_BLOB,
                "blob {digest}: more than {MAX_BLOB} bytes"
            );
        }
        let found = BlobDigest::of(&content);
        ensure!(found == *digest, "{}: the registry sent {found}", context());
        Ok(content)
    }

    /// The manifests of what was said about `digest`: cosign's tags, referrers, and the tag of
    /// referrers of registries that do not know them (distribution-spec, "Referrers Tag Schema").
    pub async fn about(
        &self,
        image: &Reference,
        digest: &BlobDigest,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        let (host, repository) = (image.registry(), image.repository());
        let tagged = |suffix: &str| {
            let tag = format!("sha256-{}{suffix}", digest.hex());
            Reference::with_tag(host.to_owned(), repository.to_owned(), tag)
        };
        let mut found = Vec::new();
        for suffix in [".sig", ".att"] {
            found.extend(self.manifest(&tagged(suffix)).await?);
        }
        let subject =
            Reference::with_digest(host.to_owned(), repository.to_owned(), digest.to_string());
        // Without this nothing has asked for credentials yet on registries that want them.
        let referrers = self.client.pull_referrers(&subject, None).await;
        let referrers = referrers
            .map_err(advised)
            .with_context(|| format!("asking for what refers to {subject}"))?;
        let mut names: Vec<_> = referrers.manifests.into_iter().map(|m| m.digest).collect();
        // The client takes every failure here for "none"; a failure is none of ours.
        if let Some(index) = self.manifest(&tagged("")).await? {
            match serde_json::from_slice(&index) {
                Ok(OciManifest::ImageIndex(index)) => {
                    names.extend(index.manifests.into_iter().map(|m| m.digest));
                }
                Ok(OciManifest::Image(_)) => found.push(index),
                Err(error) => bail!("{}: {error}", tagged("")),
            }
        }
        names.sort_unstable();
        names.dedup();
        ensure!(
            names.len() <= MAX_REFERRERS,
            "{subject}: {} referrers, more than {MAX_REFERRERS}",
            names.len()
        );
        for name in names {
            let name = name.parse().context("a referrer's digest")?;
            found.extend(self.by_digest(image, &name).await?);
        }
        Ok(found)
    }
}

/// Nobody else can answer there.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_absence(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_)
        | OciDistributionError::ServerError { code: 404, .. } => true,
        // An answer that names no error does not say that there is nothing.
        OciDistributionError::RegistryError { envelope, .. } => {
            !envelope.errors.is_empty()
                && envelope.errors.iter().all(|e| {
                    matches!(
                        e.code,
                        OciErrorCode::ManifestUnknown | OciErrorCode::NotFound
                    )
                })
        }
        _ => false,
    }
}

/// With what to do, where that is known.
fn advised(error: OciDistributionError) -> anyhow::Error {
    let unauthorized = matches!(
        error,
        OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
    );
    let error = anyhow::Error::from(error);
    if unauthorized {
        return error.context(
            "the registry does not take these credentials, or wants some: name a file that has them with \
             --authfile (`podman login --authfile FILE` writes one)",
        );
    }
    // rustls tells it in its own words, far down.
    match error
        .chain()
        .any(|e| e.to_string().ends_with("UnknownIssuer"))
    {
        true => error.context(
            "no CA that this host trusts vouches for the registry's certificate: \
             install its CA with update-ca-certificates, or as /etc/containers/certs.d/HOST[:PORT]/ca.crt",
        ),
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_named_error_is_absence() {
        let answer = |errors: &str| {
            let envelope = serde_json::from_str(&format!(r#"{{"errors": [{errors}]}}"#)).unwrap();
            OciDistributionError::RegistryError {
                envelope,
                url: String::new(),
            }
        };
        let unknown = r#"{"code": "MANIFEST_UNKNOWN"}"#;
        assert!(is_absence(&answer(unknown)));
        assert!(!is_absence(&answer(&format!(
            r#"{unknown}, {{"code": "DENIED"}}"#
        ))));
        assert!(!is_absence(&answer("")));
    }

    #[test]
    fn only_loopback_goes_without_tls() {
        for own in [
            "localhost:5000",
            "localhost",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
        ] {
            assert!(is_loopback(own), "{own}");
        }
        for other in [
            "docker.io",
            "localhost.example:5000",
            "10.0.0.1:5000",
            "127.0.0.1.example",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
