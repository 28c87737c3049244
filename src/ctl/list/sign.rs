//! `attestctl list sign`: a detached CMS signature (RFC 5652), as `openssl cms -sign` makes, or a DSSE
//! envelope in a Sigstore bundle with the certificate beside it.

use super::{read, title};
use crate::{
    certificate, disk,
    key::SigningKey,
    report::{Report, Usage},
};
use ::verify::{
    cms::{build_bundle, build_detached},
    digest::KeyDigest,
};
use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Sign {
    /// The signer's certificate (PEM)
    #[arg(long)]
    cert: PathBuf,
    /// Its private key (ECDSA P-256, PEM)
    #[arg(long)]
    key: PathBuf,
    /// Intermediate CAs between the certificate and the user CA (PEM), which go along
    #[arg(long)]
    chain: Option<PathBuf>,
    /// The list (in-toto statement)
    list: PathBuf,
    /// Sign a DSSE envelope, in a Sigstore bundle (JSON) that holds the list too, in place of CMS
    #[arg(long)]
    dsse: bool,
    /// Where the signature goes (DER; with --dsse JSON)
    #[arg(short, long)]
    output: PathBuf,
}

pub fn run(args: &Sign) -> anyhow::Result<Report> {
    let (bytes, list) = read(&args.list)?;
    let mut certificates = certificate::read_all(&args.cert, "the certificate")?.into_iter();
    let leaf = certificates
        .next()
        .context("the certificate's file is empty")?;
    // A PEM file with leaf and intermediates is usual (`fullchain.pem`).
    let mut intermediates: Vec<Vec<u8>> = certificates.map(|certificate| certificate.der).collect();
    if let Some(path) = &args.chain {
        let chain = certificate::read_all(path, "the chain")?;
        intermediates.extend(chain.into_iter().map(|certificate| certificate.der));
    }
    intermediates.retain(|der| *der != leaf.der);
    let key = SigningKey::read(&args.key)?;
    if leaf.public_key != key.public_der()? {
        bail!(Usage(format!(
            "{} is not the key of the certificate {}",
            args.key.display(),
            args.cert.display()
        )));
    }
    let sign = |message: &[u8]| key.sign(message);
    let signature = match args.dsse {
        true => build_bundle(&bytes, &leaf.der, &intermediates, sign),
        false => build_detached(&bytes, &leaf.der, &intermediates, sign),
    }
    .map_err(|e| anyhow::anyhow!("signing {}: {e}", args.list.display()))?;
    disk::replace(&args.output, "the signature", &signature)?;
    let digest = KeyDigest::of(&leaf.der);
    Ok(Report::done(
        format!(
            "{}\n  signed by {} ({digest})\n  signature in {}",
            title(&list),
            leaf.subject(),
            args.output.display()
        ),
        json!({
            "list": list.digest(),
            "certificate": digest,
            "subject": leaf.subject(),
            "tenant": leaf.uris.first(),
            "output": args.output,
        }),
    ))
}
