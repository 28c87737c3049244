//! The SignedData structure itself: strictly one signer, detached, and nothing that is not signed.

use super::{CmsRefusal, MAX_SIGNATURE};
use cms::cert::CertificateChoices;
use cms::content_info::ContentInfo;
use cms::signed_data::{SignedData, SignerIdentifier, SignerInfo};
use der::asn1::{ObjectIdentifier, OctetString};
use der::{Decode, Encode};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectKeyIdentifier;

// RFC 5652, sections 4 and 5.1; RFC 5652, sections 11.1 and 11.2; RFC 5754, sections 2.2 and 3.
pub(super) const ID_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
pub(super) const ID_SIGNED_DATA: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
pub(super) const CONTENT_TYPE: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
pub(super) const MESSAGE_DIGEST: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
pub(super) const SHA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
pub(super) const ECDSA_WITH_SHA_256: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SHA_256_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");

/// A user's certificate, its CA's, and room for two between these and the root.
pub(super) const MAX_CERTIFICATES: usize = 8;

/// The signer's certificate and those that came with it; nobody's word yet.
pub(super) struct Certificates {
    pub leaf: Certificate,
    pub leaf_der: Vec<u8>,
    pub others_der: Vec<CertificateDer<'static>>,
}

/// What the key of the first certificate did sign.
pub(super) struct Signed {
    pub certificates: Certificates,
    pub digest: [u8; 32],
    pub signature: Vec<u8>,
}

/// A well-formed signature of which nothing has been believed yet.
pub(super) struct Envelope {
    pub certificates: Certificates,
    pub message_digest: Vec<u8>,
    /// DER of the signed attributes as a SET OF, which is what was signed (RFC 5652, section 5.4).
    signed_attributes: Vec<u8>,
    algorithms: Vec<&'static dyn SignatureVerificationAlgorithm>,
    signature: Vec<u8>,
}

pub(super) fn open(bytes: &[u8]) -> Result<Envelope, CmsRefusal> {
    if bytes.len() > MAX_SIGNATURE {
        return Err(CmsRefusal::TooLong(bytes.len()));
    }
    let signed = signed_data(bytes)?;
    if signed.encap_content_info.econtent.is_some() {
        return Err(CmsRefusal::NotDetached);
    }
    if signed.encap_content_info.econtent_type != ID_DATA {
        return Err(CmsRefusal::Attributes("the content type is not id-data"));
    }
    let signer = match signed.signer_infos.0.as_slice() {
        [one] => one,
        others => return Err(CmsRefusal::Signers(others.len())),
    };
    if signer.unsigned_attrs.is_some() || signed.crls.is_some() {
        return Err(CmsRefusal::Unsigned);
    }
    if signer.digest_alg.oid != SHA_256 {
        return Err(CmsRefusal::DigestAlgorithm(
            signer.digest_alg.oid.to_string(),
        ));
    }
    let algorithms = algorithms(signer.signature_algorithm.oid)?;
    let (signed_attributes, message_digest) = attributes(signer)?;
    let (leaf, others) = certificates(&signed, &signer.sid)?;
    let leaf_der = leaf.to_der().map_err(malformed)?;
    let others_der = others
        .iter()
        .map(|c| c.to_der().map(CertificateDer::from).map_err(malformed))
        .collect::<Result<_, _>>()?;
    Ok(Envelope {
        certificates: Certificates {
            leaf,
            leaf_der,
            others_der,
        },
        message_digest,
        signed_attributes,
        algorithms,
        signature: signer.signature.as_bytes().to_vec(),
    })
}

impl Envelope {
    /// The signed attributes were signed by the key of the signer's certificate.
    pub fn verified(self) -> Result<Signed, CmsRefusal> {
        self.certificates
            .verify(&self.algorithms, &self.signed_attributes, &self.signature)?;
        Ok(Signed {
            certificates: self.certificates,
            digest: Sha256::digest(&self.signed_attributes).into(),
            signature: self.signature,
        })
    }
}

impl Certificates {
    /// The signer's first.
    pub fn of(chain: Vec<Vec<u8>>) -> Result<Self, CmsRefusal> {
        let mut chain = chain.into_iter();
        let leaf_der = chain.next().ok_or(CmsRefusal::SignerCertificate(0))?;
        let leaf = Certificate::from_der(&leaf_der)
            .map_err(|e| CmsRefusal::Bundle(format!("the signer's certificate: {e}")))?;
        Ok(Self {
            leaf,
            leaf_der,
            others_der: chain.map(CertificateDer::from).collect(),
        })
    }

    /// `signature` over `message` by the signer's key, with any of the algorithms that lists may use.
    pub fn verify_any(&self, message: &[u8], signature: &[u8]) -> Result<(), CmsRefusal> {
        use webpki::aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P384_SHA256, RSA_PKCS1_2048_8192_SHA256};
        let algorithms = [
            ECDSA_P256_SHA256,
            ECDSA_P384_SHA256,
            RSA_PKCS1_2048_8192_SHA256,
        ];
        self.verify(&algorithms, message, signature)
    }

    fn verify(
        &self,
        algorithms: &[&'static dyn SignatureVerificationAlgorithm],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), CmsRefusal> {
        let der = CertificateDer::from(self.leaf_der.as_slice());
        let leaf = webpki::EndEntityCert::try_from(&der)
            .map_err(|e| CmsRefusal::Malformed(format!("the signer's certificate: {e}")))?;
        // Each algorithm fits one kind of key; the others refuse it.
        algorithms
            .iter()
            .any(|algorithm| {
                leaf.verify_signature(*algorithm, message, signature)
                    .is_ok()
            })
            .then_some(())
            .ok_or(CmsRefusal::Signature)
    }
}

/// Decodes, and demands that encoding again gives the same bytes: nothing trails, nothing is spelt
/// in another way, and what is hashed below is what was read here.
fn signed_data(bytes: &[u8]) -> Result<SignedData, CmsRefusal> {
    let info = ContentInfo::from_der(bytes).map_err(malformed)?;
    if info.content_type != ID_SIGNED_DATA {
        return Err(CmsRefusal::Malformed(format!(
            "content type {} is not SignedData",
            info.content_type
        )));
    }
    let signed: SignedData = info.content.decode_as().map_err(malformed)?;
    let again = ContentInfo {
        content_type: ID_SIGNED_DATA,
        content: der::Any::encode_from(&signed).map_err(malformed)?,
    };
    if again.to_der().map_err(malformed)? != bytes {
        return Err(CmsRefusal::Malformed(
            "not in the canonical form of DER".into(),
        ));
    }
    Ok(signed)
}

fn algorithms(
    oid: ObjectIdentifier,
) -> Result<Vec<&'static dyn SignatureVerificationAlgorithm>, CmsRefusal> {
    use webpki::aws_lc_rs::{ECDSA_P256_SHA256, ECDSA_P384_SHA256, RSA_PKCS1_2048_8192_SHA256};
    match oid {
        ECDSA_WITH_SHA_256 => Ok(vec![ECDSA_P256_SHA256, ECDSA_P384_SHA256]),
        RSA_ENCRYPTION | SHA_256_WITH_RSA => Ok(vec![RSA_PKCS1_2048_8192_SHA256]),
        other => Err(CmsRefusal::SignatureAlgorithm(other.to_string())),
    }
}

/// The bytes that were signed, and the digest of the content that they name (RFC 5652, 5.3 and 5.4).
fn attributes(signer: &SignerInfo) -> Result<(Vec<u8>, Vec<u8>), CmsRefusal> {
    let signed = signer.signed_attrs.as_ref().ok_or(CmsRefusal::Attributes(
        "the signature has no signed attributes",
    ))?;
    let value = |oid: ObjectIdentifier, missing: &'static str| {
        let mut found = signed.iter().filter(|a| a.oid == oid);
        match (found.next(), found.next()) {
            (Some(attribute), None) => match attribute.values.as_slice() {
                [one] => Ok(one),
                _ => Err(CmsRefusal::Attributes(missing)),
            },
            _ => Err(CmsRefusal::Attributes(missing)),
        }
    };
    const NO_TYPE: &str = "the signed attributes do not say once that the content is id-data";
    const NO_DIGEST: &str = "the signed attributes do not have one message digest";
    let content_type: ObjectIdentifier = value(CONTENT_TYPE, NO_TYPE)?
        .decode_as()
        .map_err(|_| CmsRefusal::Attributes(NO_TYPE))?;
    if content_type != ID_DATA {
        return Err(CmsRefusal::Attributes(NO_TYPE));
    }
    let digest: OctetString = value(MESSAGE_DIGEST, NO_DIGEST)?
        .decode_as()
        .map_err(|_| CmsRefusal::Attributes(NO_DIGEST))?;
    Ok((
        signed.to_der().map_err(malformed)?,
        digest.as_bytes().to_vec(),
    ))
}

/// The one certificate that the signer identifier names, and the rest.
fn certificates(
    signed: &SignedData,
    sid: &SignerIdentifier,
) -> Result<(Certificate, Vec<Certificate>), CmsRefusal> {
    let set = signed
        .certificates
        .as_ref()
        .ok_or(CmsRefusal::SignerCertificate(0))?;
    if set.0.len() > MAX_CERTIFICATES {
        return Err(CmsRefusal::Malformed(format!(
            "{} certificates, more than {MAX_CERTIFICATES}",
            set.0.len()
        )));
    }
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for choice in set.0.iter() {
        let CertificateChoices::Certificate(certificate) = choice else {
            return Err(CmsRefusal::Malformed(
                "a certificate that is not X.509".into(),
            ));
        };
        match names(sid, certificate) {
            true => named.push(certificate.clone()),
            false => others.push(certificate.clone()),
        }
    }
    match (named.pop(), named.len()) {
        (Some(leaf), 0) => Ok((leaf, others)),
        (last, rest) => Err(CmsRefusal::SignerCertificate(
            rest + usize::from(last.is_some()),
        )),
    }
}

fn names(sid: &SignerIdentifier, certificate: &Certificate) -> bool {
    let tbs = &certificate.tbs_certificate;
    match sid {
        SignerIdentifier::IssuerAndSerialNumber(id) => {
            id.issuer == tbs.issuer && id.serial_number == tbs.serial_number
        }
        SignerIdentifier::SubjectKeyIdentifier(id) => {
            matches!(tbs.get::<SubjectKeyIdentifier>(), Ok(Some((_, found))) if found == *id)
        }
    }
}

pub(super) fn malformed(error: der::Error) -> CmsRefusal {
    CmsRefusal::Malformed(error.to_string())
}
