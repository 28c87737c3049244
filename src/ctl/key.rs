//! Private keys of publishers: made here or by openssl, read for one signature.
//!
//! `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem` makes the same.

use crate::disk;
use anyhow::{Context as _, anyhow, bail};
use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rand::{SecureRandom as _, SystemRandom},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use der::pem::{self, LineEnding};
use std::path::Path;
use verify::digest::KeyDigest;

/// An ECDSA P-256 key that signs SHA-256 digests (FIPS 186-5), the one kind that cosign, CMS and
/// every TPM have in common.
pub struct SigningKey(EcdsaKeyPair);

impl SigningKey {
    pub fn generate() -> anyhow::Result<Self> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(Self)
            .map_err(|_| anyhow!("making a P-256 key: the random generator failed"))
    }

    /// From a PEM file: PKCS#8 (RFC 5208) or the older `EC PRIVATE KEY` (RFC 5915).
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = disk::read_text(path, "the private key")?;
        Self::from_pem(&text).with_context(|| format!("reading the private key {}", path.display()))
    }

    pub fn from_pem(text: &str) -> anyhow::Result<Self> {
        // openssl's `ecparam -genkey` writes the curve's name in a block of its own first.
        let start = text.find("-----BEGIN EC PRIVATE KEY").unwrap_or(0);
        let (label, der) = pem::decode_vec(text[start..].trim_end().as_bytes())
            .map_err(|e| anyhow!("not a PEM file with one private key: {e}"))?;
        match label {
            "PRIVATE KEY" | "EC PRIVATE KEY" => {}
            "ENCRYPTED PRIVATE KEY" => bail!(
                "the key is encrypted; decrypt it into a file of your own with `openssl pkcs8 -in KEY -out PLAIN`"
            ),
            "ENCRYPTED SIGSTORE PRIVATE KEY" | "ENCRYPTED COSIGN PRIVATE KEY" => bail!(
                "the key is in cosign's own encrypted form; sign with cosign and use `attestctl import`, \
                 or make a key with `attestctl image keygen`"
            ),
            other => bail!("a PEM block `{other}`, not `PRIVATE KEY` (PKCS#8)"),
        }
        EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, &der)
            .map(Self)
            .map_err(|e| anyhow!("not an ECDSA P-256 key ({e})"))
    }

    /// ECDSA signature, DER (RFC 3279, section 2.2.3), over SHA-256 of `message`.
    pub fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.0
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| anyhow!("the signing operation failed"))
    }

    /// PKCS#8, PEM.
    pub fn private_pem(&self) -> anyhow::Result<String> {
        let der = self
            .0
            .to_pkcs8v1()
            .map_err(|_| anyhow!("encoding the private key failed"))?;
        encode("PRIVATE KEY", der.as_ref())
    }

    /// SubjectPublicKeyInfo, DER (RFC 5280, section 4.1).
    pub fn public_der(&self) -> anyhow::Result<Vec<u8>> {
        let der: PublicKeyX509Der<'_> = self
            .0
            .public_key()
            .as_der()
            .map_err(|_| anyhow!("encoding the public key failed"))?;
        Ok(der.as_ref().to_vec())
    }

    pub fn public_pem(&self) -> anyhow::Result<String> {
        encode("PUBLIC KEY", &self.public_der()?)
    }

    /// What policies and verdicts call this key.
    pub fn fingerprint(&self) -> anyhow::Result<KeyDigest> {
        Ok(KeyDigest::of(&self.public_der()?))
    }
}

pub fn encode(label: &str, der: &[u8]) -> anyhow::Result<String> {
    pem::encode_string(label, LineEnding::LF, der).map_err(|e| anyhow!("writing PEM: {e}"))
}

/// `N` bytes from the operating system.
pub fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow!("reading {N} random bytes from the operating system failed"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{scratch::Scratch, spawn::openssl};

    #[test]
    fn accept_own_keys() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pem(&key.private_pem().unwrap()).unwrap();
        assert_eq!(key.fingerprint().unwrap(), again.fingerprint().unwrap());
    }

    #[test]
    fn accept_keys_of_openssl_and_make_keys_for_it() {
        let dir = Scratch::new();
        let path = |name: &str| dir.path().join(name).display().to_string();
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            &path("a"),
        ]);
        openssl(&[
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-out",
            &path("b"),
        ]);
        for name in ["a", "b"] {
            let key = SigningKey::read(&dir.path().join(name)).unwrap();
            let public = openssl(&["pkey", "-in", &path(name), "-pubout"]);
            assert_eq!(public, key.public_pem().unwrap(), "{name}");
            // openssl reads back what we write.
            std::fs::write(path("c"), key.private_pem().unwrap()).unwrap();
            assert_eq!(
                openssl(&["pkey", "-in", &path("c"), "-pubout"]),
                public,
                "{name}"
            );
        }
    }

    #[test]
    fn refuse_other_keys_and_say_why() {
        let dir = Scratch::new();
        let path = |name: &str| dir.path().join(name).display().to_string();
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-384",
            "-out",
            &path("p384"),
        ]);
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-aes256",
            "-pass",
            "pass:secret",
            "-out",
            &path("encrypted"),
        ]);
        std::fs::write(path("text"), "hello").unwrap();
        let public = SigningKey::generate().unwrap().public_pem().unwrap();
        std::fs::write(path("public"), public).unwrap();
        for (name, reason) in [
            ("p384", "not an ECDSA P-256 key"),
            ("encrypted", "openssl pkcs8"),
            ("text", "not a PEM file"),
            ("public", "PUBLIC KEY"),
            ("absent", "reading the private key"),
        ] {
            let error = format!(
                "{:#}",
                SigningKey::read(&dir.path().join(name)).err().unwrap()
            );
            assert!(error.contains(reason), "{name}: {error}");
            assert!(error.contains(&path(name)), "{name}: {error}");
        }
    }
}
