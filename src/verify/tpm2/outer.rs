//! What only one TPM can take in: the outer wrapper around a sensitive area or a credential, with a seed
//! that an ECDH key of that TPM recovers (TPM 2.0 Library Part 1, "Protected Storage", "Credential
//! Protection" and annex C.6).

use super::{EndorsementKey, TpmName};
use aws_lc_rs::{
    agreement::{self, ECDH_P256, PrivateKey, UnparsedPublicKey},
    cipher::{AES_128, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey},
    digest::{self, SHA256},
    error::Unspecified,
    hmac,
    iv::FixedLength,
};

/// What the seed is for; no label is another one's beginning.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    Credential,
    Duplicate,
}

impl Purpose {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Credential => b"IDENTITY\0",
            Self::Duplicate => b"DUPLICATE\0",
        }
    }
}

pub(super) struct Wrapped {
    /// The HMAC as a TPM2B, and what it is over, encrypted.
    pub blob: Vec<u8>,
    /// TPMS_ECC_POINT.
    pub seed: Vec<u8>,
}

/// The scalar is not one of P-256's: take another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this number is no private key of NIST P-256")]
pub struct NoScalar;

impl From<Unspecified> for NoScalar {
    fn from(_: Unspecified) -> Self {
        Self
    }
}

/// `content`, a TPM2B, for the holder of `ek` and tied to `name`. `ephemeral`: 32 random bytes, used once.
pub(super) fn wrap(
    ek: &EndorsementKey,
    purpose: Purpose,
    name: &TpmName,
    content: &[u8],
    ephemeral: &[u8; 32],
) -> Result<Wrapped, NoScalar> {
    let private = PrivateKey::from_private_key(&ECDH_P256, ephemeral).map_err(|_| NoScalar)?;
    let public = private.compute_public_key()?;
    let (x, y) = coordinates(public.as_ref()).ok_or(NoScalar)?;
    let point = ek.public().point();
    let (ek_x, _) = coordinates(point).ok_or(NoScalar)?;
    let peer = UnparsedPublicKey::new(&ECDH_P256, point);
    let seed = agreement::agree(&private, peer, NoScalar, |z| {
        Ok(kdf_e(z, purpose.label(), x, ek_x))
    })?;

    let key = kdf_a(&seed, b"STORAGE\0", name.as_bytes(), 128);
    let encrypted = encrypt(key.get(..16).unwrap_or_default(), content)?;
    let key = kdf_a(&seed, b"INTEGRITY\0", &[], 256);
    let mut outer = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key));
    outer.update(&encrypted);
    outer.update(name.as_bytes());
    let mut blob = vec![0, 32];
    blob.extend(outer.sign().as_ref());
    blob.extend(encrypted);
    let mut seed = vec![0, 32];
    seed.extend(x);
    seed.extend([0, 32]);
    seed.extend(y);
    Ok(Wrapped { blob, seed })
}

/// x and y of an uncompressed point.
fn coordinates(point: &[u8]) -> Option<(&[u8], &[u8])> {
    match point.split_first() {
        Some((4, rest)) if rest.len() == 64 => Some(rest.split_at(32)),
        _ => None,
    }
}

/// KDFe for 256 bits of SHA-256 (Part 1, 11.4.10.3).
fn kdf_e(z: &[u8], label: &[u8], party_u: &[u8], party_v: &[u8]) -> [u8; 32] {
    let mut context = digest::Context::new(&SHA256);
    for part in [&[0, 0, 0, 1], z, label, party_u, party_v] {
        context.update(part);
    }
    bytes(context.finish().as_ref())
}

/// KDFa for up to 256 bits with SHA-256, the second context empty (Part 1, 11.4.10.2).
fn kdf_a(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> [u8; 32] {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in [&[0, 0, 0, 1], label, context, &bits.to_be_bytes()] {
        mac.update(part);
    }
    bytes(mac.sign().as_ref())
}

fn bytes(digest: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(digest) {
        *to = *from;
    }
    bytes
}

/// AES-128-CFB with an IV of zero: the key is used once.
fn encrypt(key: &[u8], plain: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let key = UnboundCipherKey::new(&AES_128, key)?;
    let zero = EncryptionContext::Iv128(FixedLength::from([0; 16]));
    let mut cipher = StreamingEncryptingKey::less_safe_cfb128(key, zero)?;
    let mut out = vec![0; plain.len() + AES_128.block_len()];
    let written = cipher.update(plain, &mut out)?.written().len();
    let mut rest = vec![0; AES_128.block_len()];
    let (_, last) = cipher.finish(&mut rest)?;
    out.truncate(written);
    out.extend_from_slice(last.written());
    Ok(out)
}
