//! `attestctl image keygen`: a key pair for image signatures.

use crate::{disk, key::SigningKey, report::Report};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Keygen {
    /// Where the private key goes (PKCS#8 PEM, mode 0600, not encrypted)
    #[arg(long)]
    out_key: PathBuf,
    /// Where the public key goes (PEM); name it in policies
    #[arg(long)]
    out_pub: PathBuf,
}

pub fn run(args: &Keygen) -> anyhow::Result<Report> {
    let key = SigningKey::generate()?;
    disk::create_secret(
        &args.out_key,
        "the private key",
        key.private_pem()?.as_bytes(),
    )?;
    disk::create_public(
        &args.out_pub,
        "the public key",
        key.public_pem()?.as_bytes(),
    )?;
    let fingerprint = key.fingerprint()?;
    Ok(Report::done(
        format!(
            "key {fingerprint}\n  public key {}\n  private key {} (keep it secret)",
            args.out_pub.display(),
            args.out_key.display()
        ),
        json!({ "fingerprint": fingerprint, "public_key": args.out_pub, "key": args.out_key }),
    ))
}
