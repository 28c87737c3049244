//! TPMT_PUBLIC: parsing, the two templates, and which keys may attest.

use super::{Malformed, Reader, TpmName, alg};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};

/// TPMA_OBJECT (Part 2, 8.3).
mod attribute {
    pub const FIXED_TPM: u32 = 1 << 1;
    pub const ST_CLEAR: u32 = 1 << 2;
    pub const FIXED_PARENT: u32 = 1 << 4;
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    pub const NO_DA: u32 = 1 << 10;
    pub const RESTRICTED: u32 = 1 << 16;
    pub const DECRYPT: u32 = 1 << 17;
    pub const SIGN: u32 = 1 << 18;
}
use attribute::{
    ADMIN_WITH_POLICY, DECRYPT, FIXED_PARENT, FIXED_TPM, NO_DA, RESTRICTED, SENSITIVE_DATA_ORIGIN,
    SIGN, ST_CLEAR, USER_WITH_AUTH,
};

/// PolicySecret(TPM_RH_ENDORSEMENT), SHA-256 (TCG EK Credential Profile, template L-2).
const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24,
    0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52, 0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
];
const EK_ATTRIBUTES: u32 =
    FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT;
/// `noDA`: else three unclean stops lock the key out.
const AIK_ATTRIBUTES: u32 =
    FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | RESTRICTED | SIGN;
/// What an attestation key must be: made in its TPM, bound to it, and unable to sign bytes that
/// look like a TPMS_ATTEST unless the TPM itself made them.
const AIK_DEMANDED: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN;
const AIK_ALLOWED: u32 = AIK_DEMANDED | ST_CLEAR | USER_WITH_AUTH | ADMIN_WITH_POLICY | NO_DA;
/// x and y of a P-256 point as the EK template spells them (two TPM2B of 32 zero bytes).
const EK_UNIQUE: usize = 2 * (2 + 32);

/// TPMT_PUBLIC template of an EK: ECC P-256, low range (EK Credential Profile 2.x, L-2).
pub fn ek_template() -> Vec<u8> {
    let mut t = head(EK_ATTRIBUTES, &EK_POLICY);
    for value in [
        alg::AES,
        128,
        alg::CFB,
        alg::NULL,
        alg::NIST_P256,
        alg::NULL,
    ] {
        t.extend(value.to_be_bytes());
    }
    for _coordinate in ["x", "y"] {
        t.extend(32u16.to_be_bytes());
        t.extend([0; 32]);
    }
    t
}

/// TPMT_PUBLIC template of an attestation key: ECC P-256, ECDSA with SHA-256, restricted, noDA.
pub fn aik_template() -> Vec<u8> {
    signing_template(AIK_ATTRIBUTES)
}

/// The same with `unique` in the place of the point: of one seed, another key for each.
pub fn aik_template_of(unique: &[u8; 32]) -> Vec<u8> {
    let mut t = aik_template();
    t.truncate(t.len() - 4); // two empty coordinates
    t.extend(32u16.to_be_bytes());
    t.extend(unique);
    t.extend([0, 0]);
    t
}

/// TPMT_PUBLIC template of a key that signs certificates: the same, not restricted. It is no
/// [`AttestationKey`]: it would sign a forged TPMS_ATTEST as well.
pub fn certifying_template() -> Vec<u8> {
    signing_template(AIK_ATTRIBUTES & !RESTRICTED)
}

/// TPMT_PUBLIC template of data that is sealed below a storage key, used with an authorization value.
pub fn sealed_template() -> Vec<u8> {
    let attributes = FIXED_TPM | FIXED_PARENT | USER_WITH_AUTH | NO_DA;
    [
        &alg::KEYEDHASH.to_be_bytes()[..],
        &alg::SHA256.to_be_bytes(),
        &attributes.to_be_bytes(),
        &[0, 0], // no policy
        &alg::NULL.to_be_bytes(),
        &[0, 0],
    ]
    .concat()
}

fn signing_template(attributes: u32) -> Vec<u8> {
    let mut t = head(attributes, &[]);
    for value in [
        alg::NULL,
        alg::ECDSA,
        alg::SHA256,
        alg::NIST_P256,
        alg::NULL,
        0,
        0,
    ] {
        t.extend(value.to_be_bytes());
    }
    t
}

fn head(attributes: u32, policy: &[u8]) -> Vec<u8> {
    let mut t = Vec::new();
    t.extend(alg::ECC.to_be_bytes());
    t.extend(alg::SHA256.to_be_bytes());
    t.extend(attributes.to_be_bytes());
    t.extend(
        u16::try_from(policy.len())
            .unwrap_or_default()
            .to_be_bytes(),
    );
    t.extend(policy);
    t
}

/// An ECC P-256 key's public area; its bytes are kept, since the Name is their hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    bytes: Vec<u8>,
    attributes: u32,
    /// TPMT_ECC_SCHEME: TPM_ALG_NULL or TPM_ALG_ECDSA with SHA-256.
    scheme: u16,
    /// TPMT_SYM_DEF_OBJECT: TPM_ALG_NULL, or AES-128-CFB of a storage key.
    symmetric: u16,
    point: [u8; 65],
}

impl Public {
    /// Parses a TPMT_PUBLIC (Part 2, 12.2.4).
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes, "TPMT_PUBLIC");
        match r.u16()? {
            alg::ECC => {}
            alg::RSA => return Err(wrong("key type", "RSA", "ECC P-256")),
            other => return Err(wrong("key type", &format!("{other:#06x}"), "ECC P-256")),
        }
        r.exactly("nameAlg", alg::SHA256, "SHA-256")?;
        let attributes = r.u32()?;
        match r.sized()?.len() {
            0 | 32 => {}
            n => return Err(wrong("authPolicy", &format!("{n} bytes"), "0 or 32")),
        }
        let symmetric = r.u16()?;
        match symmetric {
            alg::NULL => {}
            alg::AES => {
                r.exactly("key bits", 128, "128")?;
                r.exactly("mode", alg::CFB, "CFB")?;
            }
            other => {
                return Err(wrong(
                    "symmetric algorithm",
                    &format!("{other:#06x}"),
                    "none or AES",
                ));
            }
        }
        let scheme = r.u16()?;
        match scheme {
            alg::NULL => {}
            alg::ECDSA => r.exactly("scheme's hash", alg::SHA256, "SHA-256")?,
            other => return Err(wrong("scheme", &format!("{other:#06x}"), "none or ECDSA")),
        }
        r.exactly("curve", alg::NIST_P256, "NIST P-256")?;
        r.exactly("kdf", alg::NULL, "none")?;
        let (x, y) = (r.p256_number("x")?, r.p256_number("y")?);
        r.end()?;
        // SEC 1, 2.3.3: uncompressed point.
        let mut point = [4; 65];
        for (to, from) in point.iter_mut().skip(1).zip(x.iter().chain(&y)) {
            *to = *from;
        }
        Ok(Self {
            bytes: bytes.to_vec(),
            attributes,
            scheme,
            symmetric,
            point,
        })
    }

    /// Parses a TPM2B_PUBLIC: size and TPMT_PUBLIC.
    pub fn parse_2b(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes, "TPM2B_PUBLIC");
        let inner = r.sized()?;
        r.end()?;
        Self::parse(inner)
    }

    /// The TPMT_PUBLIC that was parsed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// As TPM2B_PUBLIC.
    pub fn to_2b(&self) -> Vec<u8> {
        // Parsed from fields whose sizes sum up to far less than 64 KiB.
        let mut out = u16::try_from(self.bytes.len())
            .unwrap_or(u16::MAX)
            .to_be_bytes()
            .to_vec();
        out.extend(&self.bytes);
        out
    }
    pub fn name(&self) -> TpmName {
        TpmName::of_public(&self.bytes)
    }
    /// TPMA_OBJECT.
    pub fn attributes(&self) -> u32 {
        self.attributes
    }
    /// The point in SEC 1 uncompressed form.
    pub fn point(&self) -> &[u8; 65] {
        &self.point
    }
}

fn wrong(what: &'static str, found: &str, expected: &'static str) -> Malformed {
    Malformed::Value {
        what,
        found: found.to_owned(),
        expected,
    }
}

/// Why a key may not play the role it claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    #[error("attributes {found:#010x}: {problem}")]
    Attributes { found: u32, problem: &'static str },
    #[error("the key's own scheme is not ECDSA with SHA-256")]
    Scheme,
    #[error("a signing key must not have a symmetric algorithm")]
    Symmetric,
    #[error("the point is not on the curve NIST P-256")]
    Point,
    #[error("the key is not an endorsement key of template L-2")]
    NotAnEk,
}

/// Witness: a restricted signing key that never leaves its TPM (check Q-AKATTR).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationKey(Public);

impl AttestationKey {
    pub fn check(public: &Public) -> Result<Self, KeyRefusal> {
        let found = public.attributes;
        let refuse = |problem| Err(KeyRefusal::Attributes { found, problem });
        if found & RESTRICTED == 0 {
            return refuse("not restricted, so it signs forged TPMS_ATTEST structures");
        }
        if found & DECRYPT != 0 {
            return refuse("a decryption key");
        }
        if found & AIK_DEMANDED != AIK_DEMANDED {
            return refuse("fixedTPM, fixedParent, sensitiveDataOrigin and sign are demanded");
        }
        if found & !AIK_ALLOWED != 0 {
            return refuse("has attributes that an attestation key does not need");
        }
        if public.scheme != alg::ECDSA {
            return Err(KeyRefusal::Scheme);
        }
        if public.symmetric != alg::NULL {
            return Err(KeyRefusal::Symmetric);
        }
        on_curve(public)?;
        Ok(Self(public.clone()))
    }
    pub fn public(&self) -> &Public {
        &self.0
    }
    pub fn name(&self) -> TpmName {
        self.0.name()
    }
}

/// Witness: a key of the EK template L-2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndorsementKey(Public);

impl EndorsementKey {
    pub fn check(public: &Public) -> Result<Self, KeyRefusal> {
        let template = ek_template();
        let fixed = template
            .len()
            .checked_sub(EK_UNIQUE)
            .and_then(|n| template.get(..n));
        match fixed {
            Some(fixed) if public.bytes.starts_with(fixed) => {
                on_curve(public)?;
                Ok(Self(public.clone()))
            }
            _ => Err(KeyRefusal::NotAnEk),
        }
    }
    pub fn public(&self) -> &Public {
        &self.0
    }
    pub fn name(&self) -> TpmName {
        self.0.name()
    }
}

fn on_curve(public: &Public) -> Result<(), KeyRefusal> {
    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public.point)
        .map(drop)
        .map_err(|_| KeyRefusal::Point)
}
