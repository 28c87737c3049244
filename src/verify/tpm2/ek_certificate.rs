//! The endorsement key's certificate (TCG EK Credential Profile 2.5): whose TPM it is that holds the key.

use super::EndorsementKey;
use crate::id::UnixTime;
use der::{Decode as _, SliceReader, asn1::ObjectIdentifier};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime as WebpkiTime};
use std::time::Duration;
use x509_cert::{
    Certificate,
    ext::pkix::{BasicConstraints, ExtendedKeyUsage},
};

/// tcg-kp-EKCertificate.
const EK_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
/// The value of the OBJECT IDENTIFIER above, as webpki takes it.
const EK_PURPOSE_VALUE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// Witness: a manufacturer that is trusted says that this key is in one of its TPMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedEk {
    ek: EndorsementKey,
    issuer: String,
}

impl CertifiedEk {
    pub fn key(&self) -> &EndorsementKey {
        &self.ek
    }
    /// The certificate's issuer (RFC 4514).
    pub fn issuer(&self) -> &str {
        &self.issuer
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EkRefusal {
    #[error("it is not a certificate: {0}")]
    Malformed(String),
    #[error("it is another key's")]
    OtherKey,
    #[error("it is a CA's")]
    Ca,
    #[error("it is not for endorsement keys (extended key usage tcg-kp-EKCertificate)")]
    Purpose,
    #[error("no CA of manufacturers is trusted")]
    NoRoots,
    #[error("a CA of manufacturers cannot be used: {0}")]
    Root(String),
    #[error("no trusted CA of manufacturers vouches for it: {0}")]
    Untrusted(String),
    #[error("the time {0} is before 1970")]
    Time(UnixTime),
}

/// The first certificate in `bytes`, which may be longer: NV indices are padded.
pub fn first_certificate(bytes: &[u8]) -> Result<&[u8], EkRefusal> {
    let malformed = |e: der::Error| EkRefusal::Malformed(e.to_string());
    let mut reader = SliceReader::new(bytes).map_err(malformed)?;
    der::Reader::tlv_bytes(&mut reader).map_err(malformed)
}

/// Whether `certificate` (DER) is `ek`'s and leads to one of `roots`, by way of `others` (RFC 5280).
pub fn certify(
    ek: EndorsementKey,
    certificate: &[u8],
    others: &[Vec<u8>],
    roots: &[Vec<u8>],
    now: UnixTime,
) -> Result<CertifiedEk, EkRefusal> {
    let certificate = first_certificate(certificate)?;
    let malformed = |e: der::Error| EkRefusal::Malformed(e.to_string());
    let leaf = Certificate::from_der(certificate).map_err(malformed)?;
    let tbs = &leaf.tbs_certificate;
    let spki = &tbs.subject_public_key_info;
    if spki.algorithm.oid != EC_PUBLIC_KEY
        || spki.subject_public_key.raw_bytes() != ek.public().point()
    {
        return Err(EkRefusal::OtherKey);
    }
    match tbs.get::<BasicConstraints>() {
        Ok(None) => {}
        Ok(Some((_, constraints))) if !constraints.ca => {}
        _ => return Err(EkRefusal::Ca),
    }
    match tbs.get::<ExtendedKeyUsage>() {
        Ok(Some((_, usage))) if usage.0.contains(&EK_PURPOSE) => {}
        _ => return Err(EkRefusal::Purpose),
    }
    path(certificate, others, roots, now)?;
    let issuer = tbs.issuer.to_string().chars().take(256).collect();
    Ok(CertifiedEk { ek, issuer })
}

fn path(
    certificate: &[u8],
    others: &[Vec<u8>],
    roots: &[Vec<u8>],
    now: UnixTime,
) -> Result<(), EkRefusal> {
    let seconds = u64::try_from(now.secs()).map_err(|_| EkRefusal::Time(now))?;
    let time = WebpkiTime::since_unix_epoch(Duration::from_secs(seconds));
    if roots.is_empty() {
        return Err(EkRefusal::NoRoots);
    }
    let of = |all: &[Vec<u8>]| -> Vec<CertificateDer<'static>> {
        all.iter()
            .map(|der| CertificateDer::from(der.clone()))
            .collect()
    };
    let (roots, others) = (of(roots), of(others));
    let anchors: Vec<TrustAnchor<'_>> = roots
        .iter()
        .map(|der| {
            webpki::anchor_from_trusted_cert(der).map_err(|e| EkRefusal::Root(e.to_string()))
        })
        .collect::<Result<_, _>>()?;
    let untrusted = |e: webpki::Error| EkRefusal::Untrusted(e.to_string());
    let der = CertificateDer::from(certificate);
    let leaf = webpki::EndEntityCert::try_from(&der).map_err(untrusted)?;
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &others,
        time,
        // issuing CAs need not restate the purpose
        webpki::KeyUsage::required_if_present(EK_PURPOSE_VALUE),
        None,
        None,
    )
    .map(drop)
    .map_err(untrusted)
}
