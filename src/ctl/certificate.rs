//! X.509 certificates as files: what this program must know of them, without believing them.

use crate::disk;
use anyhow::{Context as _, bail};
use der::{Decode as _, Encode as _};
use std::path::Path;
use verify::cms::certificates_from_pem;
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
    match (all.pop(), all.len()) {
        (Some(one), 0) => Ok(one),
        (_, more) => bail!("{} certificates in it; expected one", more + 1),
    }
}

/// All certificates in `text` (PEM), in order; at least one.
pub fn parse_all(text: &str) -> anyhow::Result<Vec<Unchecked>> {
    certificates_from_pem(text.as_bytes())?
        .into_iter()
        .map(from_der)
        .collect()
}

impl Unchecked {
    /// The distinguished name (RFC 4514), for people.
    pub fn subject(&self) -> String {
        self.parsed.tbs_certificate.subject.to_string()
    }
}

pub fn from_der(der: Vec<u8>) -> anyhow::Result<Unchecked> {
    let parsed = Certificate::from_der(&der).context("not an X.509 certificate")?;
    let tbs = &parsed.tbs_certificate;
    let public_key = tbs
        .subject_public_key_info
        .to_der()
        .context("reading its public key")?;
    let mut uris = Vec::new();
    if let Some((_, san)) = tbs
        .get::<SubjectAltName>()
        .context("reading its alternative names")?
    {
        uris.extend(san.0.iter().filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.to_string()),
            _ => None,
        }));
    }
    Ok(Unchecked {
        public_key,
        uris,
        der,
        parsed,
    })
}

/// The certificates of a file.
pub fn read_all(path: &Path, what: &str) -> anyhow::Result<Vec<Unchecked>> {
    let text = disk::read_text(path, what)?;
    parse_all(&text).with_context(|| format!("reading {what} {}", path.display()))
}
