//! `attestctl image sign`: a signature as cosign makes it, put into a signature store.

use super::{Chosen, Which};
use crate::{
    disk,
    key::SigningKey,
    report::{Report, Usage},
};
use ::verify::{
    digest::ImageDigest,
    signature::{
        SimpleSignature, StoredSignature, key_bundle, sign_statement, simple_payload, to_sign,
    },
};
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
    #[arg(long, required_unless_present = "new_bundle_format")]
    reference: Option<String>,
    /// Sign as cosign 3 does: a Sigstore bundle, which carries no name
    #[arg(long, conflicts_with = "reference")]
    new_bundle_format: bool,
    /// Write the bundle here as well
    #[arg(long, value_name = "FILE", requires = "new_bundle_format")]
    bundle: Option<PathBuf>,
    /// Signature store (an OCI layout); made if absent
    #[arg(long)]
    store: PathBuf,
    #[command(flatten)]
    which: Which,
}

pub fn run(args: &Sign) -> anyhow::Result<Report> {
    let key = SigningKey::read(&args.key)?;
    let chosen = args.which.open()?;
    let digest = chosen.digest();
    let stored = match &args.reference {
        Some(reference) => simple(&key, reference, &digest)?,
        None => bundle(&key, &digest)?,
    };
    if let (Some(path), StoredSignature::Bundle(bundle)) = (&args.bundle, &stored) {
        disk::replace(path, "the bundle", bundle)?;
    }
    let store = Store::create(&args.store)
        .with_context(|| format!("opening the signature store {}", args.store.display()))?;
    let put = || {
        // The manifest goes along: docker keeps none, and finds it here by the configuration's digest.
        if let Chosen::Files(source) = &chosen {
            source.put_into(&store)?;
        }
        store.put(&stored)
    };
    put().with_context(|| format!("writing to the signature store {}", args.store.display()))?;
    let fingerprint = key.fingerprint()?;
    let form = match &args.reference {
        Some(reference) => format!("as {reference}"),
        None => "as a bundle".to_owned(),
    };
    let mut report = Report::done(
        format!(
            "signed {digest}\n  {form}\n  with key {fingerprint}\n  into {}",
            args.store.display()
        ),
        json!({
            "image": digest,
            "reference": args.reference,
            "key": fingerprint,
            "store": args.store,
        }),
    );
    match &stored {
        StoredSignature::Simple(simple) => {
            report.add("payload", String::from_utf8_lossy(&simple.payload));
            report.add("signature", simple.signature_b64.as_str());
        }
        StoredSignature::Bundle(bundle) => {
            report.add("bundle", String::from_utf8_lossy(bundle));
        }
        StoredSignature::Envelope(_) => {}
    }
    Ok(report)
}

fn simple(
    key: &SigningKey,
    reference: &str,
    digest: &ImageDigest,
) -> anyhow::Result<StoredSignature> {
    check_reference(reference)?;
    let payload = simple_payload(reference, digest).context("writing the payload")?;
    Ok(StoredSignature::Simple(SimpleSignature {
        signature_b64: BASE64.encode(key.sign(&payload)?),
        payload,
        annotations: BTreeMap::new(),
    }))
}

fn bundle(key: &SigningKey, digest: &ImageDigest) -> anyhow::Result<StoredSignature> {
    let statement = sign_statement(digest);
    let signature = key.sign(&to_sign(&statement))?;
    let spki = key.public_der()?;
    Ok(StoredSignature::Bundle(key_bundle(
        &statement, &signature, &spki,
    )))
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
        id::UnixTime,
        signature::{self, Demand, KeyLog, PublicKey},
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
    fn accept_own_signatures_and_the_payload_is_cosigns() {
        let key = SigningKey::generate().unwrap();
        let digest = ImageDigest::of(b"manifest");
        let signed = simple(&key, "127.0.0.1:5511/demo", &digest).unwrap();
        let StoredSignature::Simple(simple) = &signed else {
            panic!("{signed:?}");
        };
        assert_eq!(
            String::from_utf8(simple.payload.clone()).unwrap(),
            format!(
                r#"{{"critical":{{"identity":{{"docker-reference":"127.0.0.1:5511/demo"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
            )
        );
        let demand = Demand::Key {
            keys: vec![PublicKey::from_pem(&key.public_pem().unwrap()).unwrap()],
            log: KeyLog::NotAsked,
        };
        let now = UnixTime::from_secs(1_800_000_000);
        let other = ImageDigest::of(b"other");
        for stored in [signed, bundle(&key, &digest).unwrap()] {
            assert!(signature::verify(&demand, &stored, &[digest], now).is_ok());
            assert!(signature::verify(&demand, &stored, &[other], now).is_err());
        }
    }
}
