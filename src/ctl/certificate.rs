//! X.509 certificates as files: what this program must know of them, without believing them.

use crate::disk;
use anyhow::{Context as _, anyhow, bail};
use der::{Decode as _, Encode as _, pem};
use std::path::Path;
use x509_cert::{
    Certificate,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// A certificate whose claims nobody has checked yet.
#[derive(Debug)]
pub struct Unchecked {
    pub der: Vec<u8>,
    pub parsed: Certificate,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// URIs of the subject alternative name.
    pub uris: Vec<String>,
}

/// The one certificate in `text` (PEM).
pub fn parse(text: &str) -> anyhow::Result<Unchecked> {
    let mut all = parse_all(text)?;
    match (all.pop(), all.pop()) {
        (Some(one), None) => Ok(one),
        (None, _) => bail!("no certificate in it"),
        (Some(_), Some(_)) => bail!("more than one certificate in it; expected one"),
    }
}

/// All certificates in `text` (PEM), in order.
pub fn parse_all(text: &str) -> anyhow::Result<Vec<Unchecked>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut all = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let block = &rest[begin..];
        let end = block.find(END).context("a certificate without its END line")? + END.len();
        let (_, der) = pem::decode_vec(block[..end].as_bytes()).map_err(|e| anyhow!("not PEM: {e}"))?;
        all.push(from_der(der)?);
        rest = &block[end..];
    }
    Ok(all)
}

pub fn from_der(der: Vec<u8>) -> anyhow::Result<Unchecked> {
    let parsed = Certificate::from_der(&der).context("not an X.509 certificate")?;
    let tbs = &parsed.tbs_certificate;
    let public_key = tbs.subject_public_key_info.to_der().context("reading its public key")?;
    let mut uris = Vec::new();
    if let Some((_, san)) = tbs.get::<SubjectAltName>().context("reading its alternative names")? {
        uris.extend(san.0.iter().filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
            _ => None,
        }));
    }
    Ok(Unchecked { public_key, uris, der, parsed })
}

/// The certificates of a file, at least one.
pub fn read_all(path: &Path, what: &str) -> anyhow::Result<Vec<Unchecked>> {
    let text = disk::read_text(path, what)?;
    let all = parse_all(&text).with_context(|| format!("reading {what} {}", path.display()))?;
    if all.is_empty() {
        bail!("reading {what} {}: no `BEGIN CERTIFICATE` in it", path.display());
    }
    Ok(all)
}
