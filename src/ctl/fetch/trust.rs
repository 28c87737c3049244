//! Whose word a registry's certificate needs: the CAs that the host trusts, and those that
//! containers-certs.d(5) names for the registry. No variable of the environment adds or replaces any.

use anyhow::{Context as _, bail, ensure};
use content::{MAX_TRUST_FILE, read_trusted};
use oci_client::client::{Certificate, CertificateEncoding};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// What the host trusts: Debian's, Fedora's, openSUSE's place; the first that is there.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];
/// As podman and Docker look (containers/image, systemPerHostCertDirPaths).
const DIRECTORIES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

pub struct Trust {
    /// In PEM; never empty, since the client takes an empty list for another one.
    pub roots: Vec<Certificate>,
    /// One of the files that they are from.
    pub file: PathBuf,
    /// The registry has a directory of its own: it speaks TLS, wherever it is.
    pub named: bool,
}

/// For the registry at `host`, with its port where it has one.
pub fn of(host: &str) -> anyhow::Result<Trust> {
    let mut files: Vec<PathBuf> = BUNDLES.iter().map(PathBuf::from).collect();
    files.retain(|bundle| bundle.exists());
    files.truncate(1);
    let directory = directory(host);
    if let Some(directory) = &directory {
        files.extend(authorities(directory)?);
    }
    let Some(first) = files.first().cloned() else {
        bail!(
            "this host trusts no CA at all: install ca-certificates, or put the registry's CA into {}/{host}/ca.crt",
            DIRECTORIES[0]
        );
    };
    let roots = files.iter().map(|file| {
        let data = read_trusted(file, MAX_TRUST_FILE)
            .with_context(|| format!("reading the CAs {}", file.display()))?;
        ensure!(
            String::from_utf8_lossy(&data).contains("-----BEGIN CERTIFICATE-----"),
            "reading the CAs {}: there is no certificate in it",
            file.display()
        );
        Ok(Certificate {
            encoding: CertificateEncoding::Pem,
            data,
        })
    });
    Ok(Trust {
        roots: roots.collect::<anyhow::Result<_>>()?,
        file: first,
        named: directory.is_some(),
    })
}

fn directory(host: &str) -> Option<PathBuf> {
    // it becomes part of a path
    let host = Path::new(host).file_name()?;
    let mut directories = DIRECTORIES.iter().map(|d| Path::new(d).join(host));
    directories.find(|directory| directory.is_dir())
}

/// `*.crt`; a certificate for us (`*.cert`) is one that the client cannot show.
fn authorities(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("reading {}", directory.display());
    let mut found = Vec::new();
    for entry in directory.read_dir().with_context(context)? {
        let file = match entry {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entry => entry.with_context(context)?.path(),
        };
        match file.extension().and_then(|end| end.to_str()) {
            Some("crt") => found.push(file),
            Some("cert" | "key") => bail!(
                "{}: this registry is to be shown a client's certificate, which `attestctl fetch` does not do; \
                 take what it has with `cosign save`, then `attestctl import`",
                file.display()
            ),
            _ => {}
        }
    }
    found.sort();
    Ok(found)
}
