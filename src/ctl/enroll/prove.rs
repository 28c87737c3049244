//! That the host's attestation key lives in a TPM that a trusted manufacturer made: the endorsement key's
//! certificate leads to one of its CAs, and a secret for exactly these two keys comes back.

use crate::{
    agent::{self, Agent},
    disk, key,
    report::Refused,
};
use anyhow::{Context as _, anyhow, bail};
use std::{fs, path::Path};
use verify::{
    id::UnixTime,
    tpm2::{CertifiedEk, EndorsementKey, Public, TpmName, certify, make_credential},
    wire::{Activated, Endorsement},
};

/// CAs of manufacturers: those that sign themselves are where a chain may end.
pub struct Manufacturers {
    roots: Vec<Vec<u8>>,
    others: Vec<Vec<u8>>,
}

/// Witness: the key of this name was proved. Only [`prove`] makes one.
pub struct Proved {
    issuer: String,
}

impl Proved {
    /// Who certified the TPM's endorsement key: printable, on one line.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }
}

impl Manufacturers {
    /// Every `.pem`, `.crt`, `.cer` and `.der` file of a directory; one that cannot be read is a failure.
    pub fn read(directory: &Path) -> anyhow::Result<Self> {
        const MAX_BYTES: u64 = 1 << 20;
        let doing = || format!("reading the manufacturers' CAs in {}", directory.display());
        let (mut roots, mut others) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(directory).with_context(doing)? {
            let path = entry.with_context(doing)?.path();
            let kind = path.extension().and_then(|kind| kind.to_str());
            if !kind.is_some_and(|kind| ["pem", "crt", "cer", "der"].contains(&kind)) {
                continue;
            }
            let bytes = disk::read(&path, "a manufacturer's CA", MAX_BYTES)?;
            let certificates = match bytes.starts_with(b"\x30") {
                true => vec![bytes],
                false => verify::cms::certificates_from_pem(&bytes)
                    .with_context(|| path.display().to_string())?,
            };
            for der in certificates {
                match is_root(&der).with_context(|| path.display().to_string())? {
                    true => roots.push(der),
                    false => others.push(der),
                }
            }
        }
        if roots.is_empty() {
            bail!("{}: no root CA is there", doing());
        }
        Ok(Self { roots, others })
    }

    fn certify(
        &self,
        ek: EndorsementKey,
        certificate: &[u8],
        now: UnixTime,
    ) -> anyhow::Result<CertifiedEk> {
        certify(ek, certificate, &self.others, &self.roots, now).map_err(|why| {
            Refused(format!(
                "the certificate of the host's endorsement key: {why}"
            ))
            .into()
        })
    }
}

fn is_root(der: &[u8]) -> anyhow::Result<bool> {
    use der::Decode as _;
    let certificate =
        x509_cert::Certificate::from_der(der).map_err(|e| anyhow!("not a certificate: {e}"))?;
    let tbs = certificate.tbs_certificate;
    Ok(tbs.issuer == tbs.subject)
}

/// Asks the host at `agent` for the proof that the key of this name is where it says.
pub fn prove(agent: &Agent, ak: &TpmName, trusted: &Manufacturers) -> anyhow::Result<Proved> {
    let said = agent::get(agent, "/v1/host/endorsement", "application/json")?;
    let said = Endorsement::parse(&said)
        .with_context(|| format!("reading the endorsement key of the host at {agent}"))?;
    let public = Public::parse_2b(&said.ek).context("reading the host's endorsement key")?;
    let ek = EndorsementKey::check(&public)
        .map_err(|why| Refused(format!("the host's endorsement key: {why}")))?;
    let certificate = said.certificate.ok_or_else(|| {
        Refused(
            "the host's TPM keeps no certificate of its ECC P-256 endorsement key (NV index 0x01c0000a): \
             nothing says who made it; pin the host without --manufacturers, and compare the key by hand"
                .to_owned(),
        )
    })?;
    let now = UnixTime::from_secs(chrono::Utc::now().timestamp());
    let certified = trusted.certify(ek, &certificate, now)?;
    activate(agent, ak, &certified)?;
    let issuer = certified.issuer().chars();
    let issuer = issuer.map(|c| {
        if c.is_ascii_graphic() || c == ' ' {
            c
        } else {
            '?'
        }
    });
    Ok(Proved {
        issuer: issuer.collect(),
    })
}

/// A secret for the two keys; that it comes back means that both are in one TPM.
fn activate(agent: &Agent, ak: &TpmName, ek: &CertifiedEk) -> anyhow::Result<()> {
    let secret = key::random::<32>()?;
    let credential = loop {
        // one number in 2^32 is none of the curve's
        if let Ok(credential) = make_credential(ek.key(), ak, &secret, &key::random::<32>()?) {
            break credential;
        }
    };
    let body = |_| Ok(credential.encode()?);
    let (answer, _) = agent::post(agent, "/v1/host/activation", &body, "application/json")
        .context("the host's TPM did not open a credential for its endorsement key and this attestation key")?;
    let opened = Activated::parse(&answer).context("reading the secret that the host opened")?;
    match opened.secret == secret {
        true => Ok(()),
        false => Err(Refused(
            "the host gave another secret back than the one that was made for its two keys: the attestation key is \
             not in the TPM of that endorsement key"
                .to_owned(),
        )
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
        Issuer, KeyPair, PublicKeyData as _,
    };
    use verify::tpm2::ek_template;

    const EK_PURPOSE: &[u64] = &[2, 23, 133, 8, 1];

    /// A key pair as an endorsement key.
    fn ek(pair: &KeyPair) -> EndorsementKey {
        let template = ek_template();
        let mut public = template[..template.len() - 68].to_vec();
        for coordinate in pair.der_bytes()[1..].chunks(32) {
            public.extend([0, 32]);
            public.extend(coordinate);
        }
        EndorsementKey::check(&Public::parse(&public).unwrap()).unwrap()
    }

    struct Ca {
        key: KeyPair,
        params: CertificateParams,
        der: Vec<u8>,
    }

    fn ca(name: &str, by: Option<&Ca>) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = match by {
            None => params.self_signed(&key).unwrap(),
            Some(ca) => params
                .signed_by(&key, &Issuer::from_params(&ca.params, &ca.key))
                .unwrap(),
        };
        let der = der.der().to_vec();
        Ca { key, params, der }
    }

    fn certificate(pair: &KeyPair, by: &Ca, purpose: &[u64]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(purpose.to_vec())];
        // TPM makers put what the TPM is into a critical subjectAltName
        let name =
            b"\x30\x15\xa4\x13\x30\x11\x31\x0f\x30\x0d\x06\x05\x67\x81\x05\x02\x01\x0c\x04test";
        let mut alternative = CustomExtension::from_oid_content(&[2, 5, 29, 17], name.to_vec());
        alternative.set_criticality(true);
        params.custom_extensions = vec![alternative];
        let issuer = Issuer::from_params(&by.params, &by.key);
        params.signed_by(pair, &issuer).unwrap().der().to_vec()
    }

    fn directory(files: &[(&str, &[u8])]) -> (Scratch, anyhow::Result<Manufacturers>) {
        let dir = Scratch::new();
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let read = Manufacturers::read(dir.path());
        (dir, read)
    }

    #[test]
    fn only_a_trusted_manufacturers_word_counts() {
        let (root, stranger) = (ca("maker", None), ca("stranger", None));
        let line = ca("maker's line", Some(&root));
        let pair = KeyPair::generate().unwrap();
        let (_dir, trusted) =
            directory(&[("a.der", &root.der), ("b.crt", &line.der), ("note", b"x")]);
        let trusted = trusted.unwrap();
        let now = UnixTime::from_secs(1_800_000_000);
        let judge = |der: &[u8]| {
            let said = trusted.certify(ek(&pair), der, now);
            said.map_err(|error| error.downcast::<Refused>().unwrap().0)
        };
        let good = certificate(&pair, &line, EK_PURPOSE);
        assert!(judge(&good).unwrap().issuer().contains("maker's line"));
        let mut padded = good.clone();
        padded.extend([0xFF; 100]); // as NV indices are
        judge(&padded).unwrap();
        judge(&certificate(&pair, &root, EK_PURPOSE)).unwrap();
        for (der, word) in [
            (certificate(&pair, &stranger, EK_PURPOSE), "vouches"),
            (
                certificate(&pair, &line, &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
                "not for endorsement keys",
            ),
            (
                certificate(&KeyPair::generate().unwrap(), &line, EK_PURPOSE),
                "another key",
            ),
            (good[..good.len() - 1].to_vec(), "not a certificate"),
            (b"nothing".to_vec(), "not a certificate"),
            (Vec::new(), "not a certificate"),
        ] {
            let said = judge(&der).unwrap_err();
            assert!(said.contains(word), "{word}: {said}");
        }
        let later = UnixTime::from_secs(1_000_000_000_000);
        assert!(trusted.certify(ek(&pair), &good, later).is_err());
    }

    #[test]
    fn refuse_directories_without_a_root() {
        let root = ca("maker", None);
        let line = ca("line", Some(&root));
        assert!(directory(&[]).1.is_err());
        assert!(directory(&[("line.der", &line.der)]).1.is_err());
        assert!(
            directory(&[("root.der", &root.der), ("bad.pem", b"x")])
                .1
                .is_err()
        );
        assert!(Manufacturers::read(Path::new("/nonexistent")).is_err());
    }
}
