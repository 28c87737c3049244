//! From the signer's certificate to a user CA, and what a user's certificate must say.

use super::constraints::Constraints;
use super::envelope::Certificates;
use super::{CmsRefusal, Revocation};
use crate::id::UnixTime;
use der::asn1::UintRef;
use der::{Decode, Encode, Sequence};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime as WebpkiTime};
use std::time::Duration;
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};

/// id-kp-codeSigning, 1.3.6.1.5.5.7.3.3 (RFC 5280, section 4.2.1.12).
const CODE_SIGNING: der::asn1::ObjectIdentifier =
    der::asn1::ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.3");
/// The value of the OBJECT IDENTIFIER above, as webpki takes it.
const CODE_SIGNING_VALUE: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
const RSA_ENCRYPTION: der::asn1::ObjectIdentifier =
    der::asn1::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// NIST SP 800-57 part 1, table 2: 128 bits of strength.
const MIN_RSA_BITS: usize = 3072;
/// User certificate profile; CA/Browser Forum BR 6.3.2 has the same for servers.
pub(super) const MAX_DAYS: u64 = 398;
/// SPIFFE-ID.md, section 2.3: "at most 2048 bytes".
const MAX_TENANT: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("malformed: {0}")]
    Malformed(String),
    #[error("no certificate")]
    Empty,
}

/// The certificates (DER) of a PEM bundle (RFC 7468); at least one.
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<Vec<u8>>, PemError> {
    let chain = Certificate::load_pem_chain(pem).map_err(|e| PemError::Malformed(e.to_string()))?;
    if chain.is_empty() {
        return Err(PemError::Empty);
    }
    chain
        .iter()
        .map(|c| c.to_der().map_err(|e| PemError::Malformed(e.to_string())))
        .collect()
}

/// A revocation list (DER) from DER or PEM (RFC 7468, section 6).
pub fn revocation_list(bytes: &[u8]) -> Result<Vec<u8>, PemError> {
    let malformed = |why: String| PemError::Malformed(why);
    let der = match bytes.starts_with(b"-----BEGIN") {
        false => bytes.to_vec(),
        true => match der::pem::decode_vec(bytes) {
            Ok(("X509 CRL", der)) => der,
            Ok((label, _)) => {
                return Err(malformed(format!("it is a `{label}`, not an `X509 CRL`")));
            }
            Err(e) => return Err(malformed(e.to_string())),
        },
    };
    CertificateList::from_der(&der).map_err(|e| malformed(e.to_string()))?;
    Ok(der)
}

/// The subject's distinguished name (RFC 4514), cut to a length that fits a log.
pub(super) fn subject(certificate: &Certificate) -> String {
    let name = certificate.tbs_certificate.subject.to_string();
    match name.chars().count() {
        0..=256 => name,
        _ => name.chars().take(256).chain("…".chars()).collect(),
    }
}

/// A path that was found (DER): its end at one of the user CAs, and what is below, the signer's last.
pub(super) struct Path {
    pub root: Vec<u8>,
    pub chain: Vec<Vec<u8>>,
}

/// A path to one of `roots` at `now` (RFC 5280, section 6), by rustls-webpki.
pub(super) fn verify(
    certificates: &Certificates,
    roots: &[Vec<u8>],
    now: UnixTime,
    revocation: &Revocation,
) -> Result<Path, CmsRefusal> {
    let subject = || subject(&certificates.leaf);
    let seconds = u64::try_from(now.secs()).map_err(|_| CmsRefusal::Time(now))?;
    let time = WebpkiTime::since_unix_epoch(Duration::from_secs(seconds));
    if roots.is_empty() {
        return Err(CmsRefusal::NoRoots);
    }
    let roots: Vec<CertificateDer<'_>> = roots
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let constraints = roots.iter().map(|der| Constraints::of(der));
    let constraints: Vec<Constraints> = constraints.collect::<Result<_, _>>()?;
    let anchors: Vec<TrustAnchor<'_>> = roots
        .iter()
        .zip(&constraints)
        .map(|(der, constraints)| {
            let anchor = webpki::anchor_from_trusted_cert(der);
            let anchor = anchor.map_err(|e| CmsRefusal::Root(e.to_string()))?;
            Ok(constraints.without_uris(anchor))
        })
        .collect::<Result<_, _>>()?;

    let crls = revocation_lists(revocation, &subject)?;
    let crls: Vec<&webpki::CertRevocationList<'_>> = crls.iter().collect();
    let options = match revocation {
        Revocation::Unchecked => None,
        Revocation::Crls(_) => Some(
            webpki::RevocationOptionsBuilder::new(&crls)
                .map_err(|_| CmsRefusal::RevocationUnknown {
                    subject: subject(),
                    detail: "no revocation list was given".into(),
                })?
                .with_depth(webpki::RevocationCheckDepth::Chain)
                .with_status_policy(webpki::UnknownStatusPolicy::Deny)
                .with_expiration_policy(webpki::ExpirationPolicy::Enforce)
                .build(),
        ),
    };

    let der = CertificateDer::from(certificates.leaf_der.as_slice());
    let leaf = webpki::EndEntityCert::try_from(&der).map_err(|e| refusal(e, subject()))?;
    let path = leaf
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &certificates.others_der,
            time,
            // Issuing CAs need not restate the purpose; the user's certificate must (user_profile).
            webpki::KeyUsage::required_if_present(CODE_SIGNING_VALUE),
            options,
            None,
        )
        .map_err(|e| refusal(e, subject()))?;
    // webpki leaves keyUsage alone: an issuing CA that states one must state keyCertSign.
    let anchor = anchors.iter().position(|anchor| anchor == path.anchor());
    let root = anchor.and_then(|index| Some((roots.get(index)?, constraints.get(index)?)));
    let untrusted = |detail: String| CmsRefusal::Untrusted {
        subject: subject(),
        detail,
    };
    let (root, constraints) =
        root.ok_or_else(|| untrusted("the chain ends at none of them".into()))?;
    constraints.judge(&certificates.leaf).map_err(untrusted)?;
    let mut chain = vec![certificates.leaf_der.clone()];
    for issuer in path.intermediate_certificates() {
        chain.insert(0, issuer.der().to_vec());
        let issuer = Certificate::from_der(&issuer.der()).map_err(super::envelope::malformed)?;
        constraints.judge(&issuer).map_err(untrusted)?;
        match issuer.tbs_certificate.get::<KeyUsage>() {
            Ok(None) => {}
            Ok(Some((_, usage))) if usage.key_cert_sign() => {}
            _ => {
                return Err(untrusted(
                    "an issuing CA lacks the key usage keyCertSign".into(),
                ));
            }
        }
    }
    Ok(Path {
        root: root.to_vec(),
        chain,
    })
}

fn revocation_lists<'a>(
    revocation: &'a Revocation,
    subject: &dyn Fn() -> String,
) -> Result<Vec<webpki::CertRevocationList<'a>>, CmsRefusal> {
    let Revocation::Crls(lists) = revocation else {
        return Ok(Vec::new());
    };
    lists
        .iter()
        .map(|der| {
            webpki::BorrowedCertRevocationList::from_der(der)
                .map(Into::into)
                .map_err(|e| CmsRefusal::RevocationUnknown {
                    subject: subject(),
                    detail: format!("a revocation list cannot be read: {e}"),
                })
        })
        .collect()
}

fn refusal(error: webpki::Error, subject: String) -> CmsRefusal {
    use webpki::Error;
    let when = |t: WebpkiTime| UnixTime::from_secs(i64::try_from(t.as_secs()).unwrap_or(i64::MAX));
    match error {
        Error::CertExpired { not_after, .. } => CmsRefusal::Expired {
            subject,
            not_after: when(not_after),
        },
        Error::CertNotValidYet { not_before, .. } => CmsRefusal::NotYetValid {
            subject,
            not_before: when(not_before),
        },
        Error::CertRevoked => CmsRefusal::Revoked(subject),
        Error::CaUsedAsEndEntity => CmsRefusal::CaAsUser(subject),
        Error::RequiredEkuNotFoundContext(_) => CmsRefusal::ExtendedKeyUsage(subject),
        Error::UnknownRevocationStatus
        | Error::CrlExpired { .. }
        | Error::InvalidCrlSignatureForPublicKey
        | Error::IssuerNotCrlSigner => CmsRefusal::RevocationUnknown {
            subject,
            detail: error.to_string(),
        },
        other => CmsRefusal::Untrusted {
            subject,
            detail: other.to_string(),
        },
    }
}

/// What a user's certificate must say (user certificate profile); its tenant.
pub(super) fn user_profile(leaf: &Certificate) -> Result<String, CmsRefusal> {
    let tbs = &leaf.tbs_certificate;
    let subject = || subject(leaf);
    // whoever does not know a critical extension must refuse, so that nobody takes it for another's
    let critical = |is: bool, extension: &'static str| match is {
        true => Ok(()),
        false => Err(CmsRefusal::NotCritical {
            subject: subject(),
            extension,
        }),
    };
    match tbs.get::<BasicConstraints>() {
        Ok(Some((is, constraints))) if !constraints.ca => critical(is, "basicConstraints")?,
        Ok(None) => critical(false, "basicConstraints")?,
        _ => return Err(CmsRefusal::CaAsUser(subject())),
    }
    match tbs.get::<KeyUsage>() {
        Ok(Some((is, usage))) if usage.digital_signature() && !usage.key_cert_sign() => {
            critical(is, "keyUsage")?
        }
        _ => return Err(CmsRefusal::KeyUsage(subject())),
    }
    match tbs.get::<ExtendedKeyUsage>() {
        Ok(Some((_, usage))) if usage.0.contains(&CODE_SIGNING) => {}
        _ => return Err(CmsRefusal::ExtendedKeyUsage(subject())),
    }
    lifetime(leaf)?;
    key_strength(leaf)?;
    tenant(leaf)
}

/// What was signed is out in the world: who may sign changes, and revocation lists get lost.
fn lifetime(leaf: &Certificate) -> Result<(), CmsRefusal> {
    const DAY_SECS: u64 = 24 * 60 * 60;
    let validity = &leaf.tbs_certificate.validity;
    let (from, to) = (
        validity.not_before.to_unix_duration(),
        validity.not_after.to_unix_duration(),
    );
    match to.saturating_sub(from).as_secs() {
        seconds if seconds <= MAX_DAYS * DAY_SECS => Ok(()),
        seconds => Err(CmsRefusal::Lifetime {
            subject: subject(leaf),
            days: seconds.div_ceil(DAY_SECS),
        }),
    }
}

/// Curves are limited by the signature algorithms; RSA needs a look at the modulus.
fn key_strength(leaf: &Certificate) -> Result<(), CmsRefusal> {
    #[derive(Sequence)]
    struct RsaPublicKey<'a> {
        modulus: UintRef<'a>,
        public_exponent: UintRef<'a>,
    }
    let spki = &leaf.tbs_certificate.subject_public_key_info;
    if spki.algorithm.oid != RSA_ENCRYPTION {
        return Ok(());
    }
    let weak = |detail: String| CmsRefusal::WeakKey {
        subject: subject(leaf),
        detail,
    };
    let key = RsaPublicKey::from_der(spki.subject_public_key.raw_bytes())
        .map_err(|e| weak(e.to_string()))?;
    let bits = key
        .modulus
        .as_bytes()
        .iter()
        .position(|b| *b != 0)
        .map_or(0, |zeros| (key.modulus.as_bytes().len() - zeros) * 8);
    if bits < MIN_RSA_BITS {
        return Err(weak(format!(
            "RSA with {bits} bits, fewer than {MIN_RSA_BITS}"
        )));
    }
    Ok(())
}

/// The one URI among the subject's names, of the form `spiffe://<domain>/tenant/<name>`
/// (SPIFFE X509-SVID.md, section 2: exactly one URI).
fn tenant(leaf: &Certificate) -> Result<String, CmsRefusal> {
    let refuse = |detail: &str| CmsRefusal::NoTenant {
        subject: subject(leaf),
        detail: detail.to_owned(),
    };
    let names = match leaf.tbs_certificate.get::<SubjectAltName>() {
        Ok(Some((_, names))) => names.0,
        Ok(None) => return Err(refuse("it has no subjectAltName")),
        Err(_) => return Err(refuse("its subjectAltName is malformed")),
    };
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (None, _) => Err(refuse("its subjectAltName has no URI")),
        (Some(_), Some(_)) => Err(refuse("its subjectAltName has more than one URI")),
        (Some(uri), None) if is_tenant(uri) => Ok(uri.to_owned()),
        (Some(_), None) => Err(refuse("its URI is of another form")),
    }
}

/// `spiffe://<domain>/tenant/<name>` in the alphabets of SPIFFE-ID.md, sections 2.1 and 2.2.
pub(crate) fn is_tenant(uri: &str) -> bool {
    let Some((domain, path)) = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let Some(name) = path.strip_prefix("tenant/") else {
        return false;
    };
    let domain_ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
    let name_ok = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    uri.len() <= MAX_TENANT
        && !domain.is_empty()
        && domain.bytes().all(domain_ok)
        && !matches!(name, "" | "." | "..")
        && name.bytes().all(name_ok)
}
