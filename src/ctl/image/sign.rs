//! `attestctl image sign`: a cosign simple-signing signature, put into a signature store.

use super::{Chosen, Which};
use crate::{
    key::SigningKey,
    report::{Report, Usage},
};
use ::verify::signature::simple_payload;
use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use clap::Args;
use content::signatures::Store;
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf};

#[derive(Args)]
pub struct Sign {
    /// Private key (ECDSA P-256, PEM)
    #[arg(long)]
    key: PathBuf,
    /// Repository that the image goes by, without tag (`localhost/demo`); it is signed too
    #[arg(long)]
    reference: String,
    /// Signature store (an OCI layout); made if absent
    #[arg(long)]
    store: PathBuf,
    #[command(flatten)]
    which: Which,
}

pub fn run(args: &Sign) -> anyhow::Result<Report> {
    check_reference(&args.reference)?;
    let key = SigningKey::read(&args.key)?;
    let chosen = args.which.open()?;
    let digest = chosen.digest();
    let payload = simple_payload(&args.reference, &digest).context("writing the payload")?;
    let signature = BASE64.encode(key.sign(&payload)?);
    let store = Store::create(&args.store)
        .with_context(|| format!("opening the signature store {}", args.store.display()))?;
    let put = || {
        // The manifest goes along: docker keeps none, and finds it here by the configuration's digest.
        if let Chosen::Files(source) = &chosen {
            source.put_into(&store)?;
        }
        store.put_simple_signature(&digest, &payload, &signature, &BTreeMap::new())
    };
    put().with_context(|| format!("writing to the signature store {}", args.store.display()))?;
    let fingerprint = key.fingerprint()?;
    Ok(Report::done(
        format!(
            "signed {digest}\n  as {}\n  with key {fingerprint}\n  into {}",
            args.reference,
            args.store.display()
        ),
        json!({
            "image": digest,
            "reference": args.reference,
            "key": fingerprint,
            "store": args.store,
            "payload": String::from_utf8_lossy(&payload),
            "signature": signature,
        }),
    ))
}

/// cosign signs the repository (distribution/reference, grammar "name"); a tag would move.
fn check_reference(text: &str) -> anyhow::Result<()> {
    let refuse = |why: &str| {
        Usage(format!(
            "--reference `{text}`: {why}; name the repository, as in localhost/demo"
        ))
    };
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"-._:/[]".contains(&b);
    if text.is_empty() || text.len() > 255 || !text.bytes().all(ok) {
        bail!(refuse("not a repository's name"));
    }
    if text
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'))
    {
        bail!(refuse("it has a tag"));
    }
    if text.split('/').any(str::is_empty) {
        bail!(refuse("it has an empty part"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::verify::{
        digest::ImageDigest,
        id::UnixTime,
        signature::{self, Demand, KeyLog, PublicKey, SimpleSignature, StoredSignature},
    };

    #[test]
    fn accept_repositories_refuse_tags_and_digests() {
        for good in [
            "localhost/demo",
            "demo",
            "127.0.0.1:5000/a/b",
            "[::1]:5000/a",
        ] {
            assert!(check_reference(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "demo:v1",
            "a/demo:v1",
            "a//b",
            "/a",
            "a@sha256:00",
            "a b",
            "a<b",
            "ä",
        ] {
            assert!(check_reference(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn accept_own_signature_and_the_payload_is_cosigns() {
        let key = SigningKey::generate().unwrap();
        let digest = ImageDigest::of(b"manifest");
        let payload = simple_payload("127.0.0.1:5511/demo", &digest).unwrap();
        assert_eq!(
            String::from_utf8(payload.clone()).unwrap(),
            format!(
                r#"{{"critical":{{"identity":{{"docker-reference":"127.0.0.1:5511/demo"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
            )
        );
        let signature = BASE64.encode(key.sign(&payload).unwrap());
        let demand = Demand::Key {
            keys: vec![PublicKey::from_pem(&key.public_pem().unwrap()).unwrap()],
            log: KeyLog::NotAsked,
        };
        let stored = StoredSignature::Simple(SimpleSignature {
            payload,
            signature_b64: signature,
            annotations: BTreeMap::new(),
        });
        let now = UnixTime::from_secs(1_800_000_000);
        assert!(signature::verify(&demand, &stored, &[digest], now).is_ok());
        let other = ImageDigest::of(b"other");
        assert!(signature::verify(&demand, &stored, &[other], now).is_err());
    }
}
