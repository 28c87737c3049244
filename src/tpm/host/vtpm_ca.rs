//! The CA that certifies the endorsement keys of this host's vTPMs. Its key is a child of the host TPM's
//! endorsement key, so it never leaves that TPM, and signs only with an authorization value that is root's;
//! its certificate allows endorsement keys and nothing else, no CA below it among them.
//!
//! A certificate of it says: this key is in a vTPM that this host started. It does not say what runs beside
//! it, nor that it still does: that is what quotes and the binding record are for. Form: TCG EK Credential
//! Profile for TPM Family 2.0, level 0, 2.x.

use super::{HostError, HostTpm, Root, VtpmCaBlob, command::Step, random};
use crate::Make;
use der::{
    Decode as _, Encode, Sequence,
    asn1::{
        Any, BitString, GeneralizedTime, ObjectIdentifier, OctetString, SetOfVec, UintRef, UtcTime,
        Utf8StringRef,
    },
};
use sha2::{Digest as _, Sha256};
use std::{str::FromStr as _, time::Duration};
use tss_esapi::{
    handles::KeyHandle,
    structures::{Digest, HashcheckTicket, Signature, SignatureScheme},
    tss2_esys::{TPM2B_DIGEST, TPMT_TK_HASHCHECK},
};
use verify::id::{ContainerId, UnixTime};
use verify::tpm2::{self, EndorsementKey, Public};
use x509_cert::{
    Certificate, TbsCertificate, Version,
    attr::{Attribute, AttributeTypeAndValue},
    ext::{
        Extension,
        pkix::{
            AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages,
            SubjectAltName, SubjectKeyIdentifier, name::GeneralName,
        },
    },
    name::{Name, RdnSequence, RelativeDistinguishedName},
    serial_number::SerialNumber,
    spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned},
    time::{Time, Validity},
};

const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
/// SubjectPublicKeyInfo of a P-256 key up to its point (RFC 5480).
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01, 0x06, 0x08, 0x2A,
    0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The TCG's: tcg-kp-EKCertificate, and the attributes of a TPM.
const EK_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
const TPM_MANUFACTURER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.1");
const TPM_MODEL: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.2");
const TPM_VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.3");
const TPM_SPECIFICATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.16");

const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const SUBJECT_DIRECTORY_ATTRIBUTES: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.9");
const SUBJECT_KEY_IDENTIFIER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.14");
const AUTHORITY_KEY_IDENTIFIER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");

/// What every vTPM is.
const MODEL: &str = "swtpm";

/// The CA's key, loaded.
pub(super) struct Loaded {
    handle: KeyHandle,
    public: Public,
}

/// Ecdsa-Sig-Value (RFC 3279, 2.2.3).
#[derive(Sequence)]
struct EcdsaSignature<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

/// TPMSpecification (TCG EK Credential Profile).
#[derive(Sequence)]
struct Specification<'a> {
    family: Utf8StringRef<'a>,
    level: u32,
    revision: u32,
}

/// Whose certificate it is: all that differs between the two kinds.
struct Subject<'a> {
    name: Name,
    key: &'a Public,
    extensions: Vec<Extension>,
}

impl HostTpm {
    /// Makes the CA's key. It is not loaded yet.
    pub fn create_vtpm_ca(&mut self) -> Result<VtpmCaBlob, HostError> {
        let blob = self.create_child(Step::CreateCa, &tpm2::certifying_template(), None)?;
        Public::parse(blob.public()).map_err(HostError::KeyPublic)?;
        Ok(blob)
    }

    /// Loads the CA's key; it stays loaded until this value is dropped.
    pub fn load_vtpm_ca(&mut self, blob: &VtpmCaBlob) -> Result<(), HostError> {
        let public = Public::parse(blob.public()).map_err(HostError::KeyPublic)?;
        if let Some(old) = self.ca.take() {
            let flushed = self.context.flush_context(old.handle.into());
            flushed.map_err(Step::LoadCa.failed())?;
        }
        let handle = self.load_child(Step::LoadCa, blob)?;
        self.ca = Some(Loaded { handle, public });
        Ok(())
    }

    /// The CA's own certificate (DER).
    pub fn vtpm_ca_certificate(&mut self, now: UnixTime) -> Result<Vec<u8>, HostError> {
        let key = self.ca()?.public.clone();
        let extensions = ca_extensions(&key).map_err(HostError::Certificate)?;
        let name = self.ca_name().map_err(HostError::Certificate)?;
        let subject = Subject {
            name,
            key: &key,
            extensions,
        };
        self.issue(subject, now)
    }

    /// The certificate (DER) of a vTPM's endorsement key.
    pub fn certify_vtpm(
        &mut self,
        ek: &EndorsementKey,
        container: &ContainerId,
        make: &Make,
        now: UnixTime,
    ) -> Result<Vec<u8>, HostError> {
        let ca = self.ca()?.public.clone();
        let extensions = ek_extensions(&ca, make).map_err(HostError::Certificate)?;
        let subject = Subject {
            name: container_name(container).map_err(HostError::Certificate)?,
            key: ek.public(),
            extensions,
        };
        self.issue(subject, now)
    }

    fn issue(&mut self, subject: Subject<'_>, now: UnixTime) -> Result<Vec<u8>, HostError> {
        let mut serial: [u8; 16] = random::bytes().map_err(HostError::Random)?;
        // positive, and as long as it looks
        serial[0] = serial[0] & 0x7F | 0x40;
        let issuer = self.ca_name().map_err(HostError::Certificate)?;
        let body = body(subject, issuer, &serial, now).map_err(HostError::Certificate)?;
        let signed = body.to_der().map_err(HostError::Certificate)?;
        let signature = self.sign_as_ca(&signed)?;
        let whole = |signature: &[u8]| -> der::Result<Vec<u8>> {
            Certificate {
                signature_algorithm: body.signature.clone(),
                signature: BitString::from_bytes(signature)?,
                tbs_certificate: body,
            }
            .to_der()
        };
        whole(&signature).map_err(HostError::Certificate)
    }

    /// Ecdsa-Sig-Value over SHA-256 of `text`.
    fn sign_as_ca(&mut self, text: &[u8]) -> Result<Vec<u8>, HostError> {
        const STEP: Step = Step::Sign;
        let handle = self.ca()?.handle;
        let digest = Digest::try_from(Sha256::digest(text).as_slice()).map_err(STEP.failed())?;
        let session = self.start_session(STEP, tss_esapi::constants::SessionType::Hmac, None)?;
        let signed = no_ticket().and_then(|ticket| {
            self.context.execute_with_session(Some(session), |context| {
                context.sign(handle, digest, SignatureScheme::Null, ticket)
            })
        });
        match self.end_session(STEP, session, signed)? {
            Signature::EcDsa(signature) => EcdsaSignature {
                r: UintRef::new(signature.signature_r().value()).map_err(HostError::Certificate)?,
                s: UintRef::new(signature.signature_s().value()).map_err(HostError::Certificate)?,
            }
            .to_der()
            .map_err(HostError::Certificate),
            _ => Err(STEP.malformed("it is no ECDSA signature")),
        }
    }

    fn ca(&self) -> Result<&Loaded, HostError> {
        self.ca.as_ref().ok_or(HostError::NoCa)
    }

    /// A name for each key, so that two hosts' CAs are never taken for one. A software root is named.
    fn ca_name(&self) -> der::Result<Name> {
        let public = self.ca.as_ref().map(|ca| ca.public.point());
        let id = key_id(public.map_or(&[][..], |point| &point[..]));
        let unit = match self.root {
            Root::Hardware => "",
            Root::Software => ",OU=software root",
        };
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        RdnSequence::from_str(&format!("CN=attestrun vTPM CA {id}{unit}"))
    }
}

/// The key signs whatever digest it is given: it is not restricted.
fn no_ticket() -> tss_esapi::Result<HashcheckTicket> {
    const ST_HASHCHECK: u16 = 0x8024;
    HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
        tag: ST_HASHCHECK,
        hierarchy: crate::wire::RH_NULL,
        digest: TPM2B_DIGEST::default(),
    })
}

fn body(
    subject: Subject<'_>,
    issuer: Name,
    serial: &[u8],
    now: UnixTime,
) -> der::Result<TbsCertificate> {
    let spki = [&P256_SPKI[..], subject.key.point()].concat();
    Ok(TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(serial)?,
        signature: AlgorithmIdentifierOwned {
            oid: ECDSA_WITH_SHA256,
            parameters: None,
        },
        issuer,
        // RFC 5280, 4.1.2.5: a device's certificate without a known end; the key ends with its container
        validity: Validity {
            not_before: time(now)?,
            not_after: Time::INFINITY,
        },
        subject: subject.name,
        subject_public_key_info: SubjectPublicKeyInfoOwned::from_der(&spki)?,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(subject.extensions),
    })
}

/// RFC 5280, 4.1.2.5: two digits of the year until 2049.
fn time(now: UnixTime) -> der::Result<Time> {
    let since_1970 = Duration::from_secs(u64::try_from(now.secs()).unwrap_or_default());
    UtcTime::from_unix_duration(since_1970)
        .map(Time::UtcTime)
        .or_else(|_| GeneralizedTime::from_unix_duration(since_1970).map(Time::GeneralTime))
}

/// The container's id as common name; that may have 64 characters (RFC 5280, A.1), so a longer id is
/// named by its SHA-256.
fn container_name(container: &ContainerId) -> der::Result<Name> {
    let id = container.as_str();
    let name = match id.len() {
        0..=64 => id.to_owned(),
        _ => format!("{:x}", Sha256::digest(id)),
    };
    const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
    names(&[(COMMON_NAME, &name)])
}

fn names(parts: &[(ObjectIdentifier, &str)]) -> der::Result<Name> {
    let one = |(oid, value): &(ObjectIdentifier, &str)| {
        let value = Any::from(Utf8StringRef::new(value)?);
        let part = AttributeTypeAndValue { oid: *oid, value };
        Ok(RelativeDistinguishedName(SetOfVec::try_from(vec![part])?))
    };
    parts
        .iter()
        .map(one)
        .collect::<der::Result<_>>()
        .map(RdnSequence)
}

/// RFC 5280, 4.2.1.2: SHA-1 is its example; any unique value will do.
fn key_id(point: &[u8]) -> [u8; 20] {
    let mut id = [0; 20];
    id.iter_mut()
        .zip(Sha256::digest(point))
        .for_each(|(to, from)| *to = from);
    id
}

fn extension(
    extn_id: ObjectIdentifier,
    critical: bool,
    value: &impl Encode,
) -> der::Result<Extension> {
    Ok(Extension {
        extn_id,
        critical,
        extn_value: OctetString::new(value.to_der()?)?,
    })
}

fn basic(ca: bool) -> BasicConstraints {
    BasicConstraints {
        ca,
        path_len_constraint: ca.then_some(0),
    }
}

fn ca_extensions(key: &Public) -> der::Result<Vec<Extension>> {
    let usage = KeyUsage(KeyUsages::KeyCertSign.into());
    let own = SubjectKeyIdentifier(OctetString::new(key_id(key.point()))?);
    Ok(vec![
        extension(BASIC_CONSTRAINTS, true, &basic(true))?,
        extension(KEY_USAGE, true, &usage)?,
        extension(
            EXTENDED_KEY_USAGE,
            false,
            &ExtendedKeyUsage(vec![EK_PURPOSE]),
        )?,
        extension(SUBJECT_KEY_IDENTIFIER, false, &own)?,
    ])
}

fn ek_extensions(ca: &Public, make: &Make) -> der::Result<Vec<Extension>> {
    let issuer = AuthorityKeyIdentifier {
        key_identifier: Some(OctetString::new(key_id(ca.point()))?),
        authority_cert_issuer: None,
        authority_cert_serial_number: None,
    };
    let tpm = names(&[
        (TPM_MANUFACTURER, &format!("id:{:08X}", make.manufacturer)),
        (TPM_MODEL, MODEL),
        (TPM_VERSION, &format!("id:{:08X}", make.firmware)),
    ])?;
    let specification = Specification {
        family: Utf8StringRef::new("2.0")?,
        level: make.level,
        revision: make.revision,
    };
    let specification = Attribute {
        oid: TPM_SPECIFICATION,
        values: SetOfVec::try_from(vec![Any::encode_from(&specification)?])?,
    };
    // an elliptic key that decrypts agrees upon keys (RFC 5480, 3)
    let usage = KeyUsage(KeyUsages::KeyAgreement.into());
    Ok(vec![
        extension(AUTHORITY_KEY_IDENTIFIER, false, &issuer)?,
        extension(
            SUBJECT_ALT_NAME,
            false,
            &SubjectAltName(vec![GeneralName::DirectoryName(tpm)]),
        )?,
        extension(BASIC_CONSTRAINTS, true, &basic(false))?,
        extension(KEY_USAGE, true, &usage)?,
        extension(
            EXTENDED_KEY_USAGE,
            false,
            &ExtendedKeyUsage(vec![EK_PURPOSE]),
        )?,
        extension(SUBJECT_DIRECTORY_ATTRIBUTES, false, &vec![specification])?,
    ])
}
