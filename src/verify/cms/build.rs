//! Building a detached signature around a key that somebody else holds (a file, a token, an HSM).

use super::envelope::{
    CONTENT_TYPE, ECDSA_WITH_SHA_256, ID_DATA, ID_SIGNED_DATA, MESSAGE_DIGEST, SHA_256,
};
use cms::cert::{CertificateChoices, IssuerAndSerialNumber};
use cms::content_info::{CmsVersion, ContentInfo};
use cms::signed_data::{
    CertificateSet, EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo, SignerInfos,
};
use der::asn1::{ObjectIdentifier, OctetString, SetOfVec};
use der::{Any, Decode, Encode};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::attr::Attribute;
use x509_cert::spki::AlgorithmIdentifierOwned;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError<E> {
    #[error("a certificate cannot be read: {0}")]
    Certificate(String),
    #[error("the signature cannot be encoded: {0}")]
    Encoding(String),
    #[error("cannot sign: {0}")]
    Sign(E),
    #[error("the signing key is not the one in the certificate (ECDSA P-256 is expected)")]
    OtherKey,
}

/// A detached SignedData over `content`, with the signer's certificate and its intermediates inside.
///
/// `sign` gets the DER of the signed attributes and returns an ECDSA P-256 signature with SHA-256 over
/// these bytes, as an ASN.1 SEQUENCE (RFC 5753, section 2.1.1). The result is checked against the
/// certificate before it is handed out.
pub fn build_detached<E>(
    content: &[u8],
    leaf_der: &[u8],
    intermediates: &[Vec<u8>],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, BuildError<E>> {
    let read =
        |der: &[u8]| Certificate::from_der(der).map_err(|e| BuildError::Certificate(e.to_string()));
    let leaf = read(leaf_der)?;
    let mut certificates = SetOfVec::new();
    insert(
        &mut certificates,
        CertificateChoices::Certificate(leaf.clone()),
    )?;
    for der in intermediates {
        insert(
            &mut certificates,
            CertificateChoices::Certificate(read(der)?),
        )?;
    }

    let digest = OctetString::new(Sha256::digest(content).as_slice()).map_err(encoding)?;
    let mut signed_attrs = SetOfVec::new();
    insert(&mut signed_attrs, attribute(CONTENT_TYPE, &ID_DATA)?)?;
    insert(&mut signed_attrs, attribute(MESSAGE_DIGEST, &digest)?)?;
    let to_sign = signed_attrs.to_der().map_err(encoding)?;

    let signature = sign(&to_sign).map_err(BuildError::Sign)?;
    let key_fits = webpki::EndEntityCert::try_from(&leaf_der.into()).is_ok_and(|leaf| {
        leaf.verify_signature(webpki::aws_lc_rs::ECDSA_P256_SHA256, &to_sign, &signature)
            .is_ok()
    });
    if !key_fits {
        return Err(BuildError::OtherKey);
    }

    let sha_256 = algorithm(SHA_256);
    let signer = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
            issuer: leaf.tbs_certificate.issuer.clone(),
            serial_number: leaf.tbs_certificate.serial_number.clone(),
        }),
        digest_alg: sha_256.clone(),
        signed_attrs: Some(signed_attrs),
        signature_algorithm: algorithm(ECDSA_WITH_SHA_256),
        signature: OctetString::new(signature).map_err(encoding)?,
        unsigned_attrs: None,
    };
    let mut digest_algorithms = SetOfVec::new();
    insert(&mut digest_algorithms, sha_256)?;
    let mut signer_infos = SetOfVec::new();
    insert(&mut signer_infos, signer)?;
    let signed = SignedData {
        version: CmsVersion::V1,
        digest_algorithms,
        encap_content_info: EncapsulatedContentInfo {
            econtent_type: ID_DATA,
            econtent: None,
        },
        certificates: Some(CertificateSet(certificates)),
        crls: None,
        signer_infos: SignerInfos(signer_infos),
    };
    ContentInfo {
        content_type: ID_SIGNED_DATA,
        content: Any::encode_from(&signed).map_err(encoding)?,
    }
    .to_der()
    .map_err(encoding)
}

fn algorithm(oid: ObjectIdentifier) -> AlgorithmIdentifierOwned {
    // RFC 5754, sections 2 and 3.3: no parameters.
    AlgorithmIdentifierOwned {
        oid,
        parameters: None,
    }
}

fn attribute<E>(
    oid: ObjectIdentifier,
    value: &(impl der::EncodeValue + der::Tagged),
) -> Result<Attribute, BuildError<E>> {
    let mut values = SetOfVec::new();
    insert(&mut values, Any::encode_from(value).map_err(encoding)?)?;
    Ok(Attribute { oid, values })
}

fn insert<T: der::DerOrd, E>(set: &mut SetOfVec<T>, item: T) -> Result<(), BuildError<E>> {
    set.insert(item).map_err(encoding)
}

fn encoding<E>(error: der::Error) -> BuildError<E> {
    BuildError::Encoding(error.to_string())
}
