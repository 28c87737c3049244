//! `attestctl list verify`: what a host will say about a list, before it is shipped.

use super::{read, title};
use crate::{
    challenge::now,
    disk,
    report::{Refused, Report},
};
use ::verify::{
    cms::{self, Revocation},
    digest::ImageDigest,
    siglist::{ListRule, verify_list},
};
use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Verify {
    /// The list (in-toto statement)
    list: PathBuf,
    /// Its signature (CMS in DER, or a Sigstore bundle)
    #[arg(long)]
    sig: PathBuf,
    /// User CA (PEM)
    #[arg(long)]
    ca: PathBuf,
    /// Tenant that must have signed
    #[arg(long)]
    tenant: String,
    /// Name that the list must have
    #[arg(long)]
    name: String,
    /// Lowest serial that counts
    #[arg(long, default_value_t = 1)]
    min_serial: u64,
    /// Image that the list must be about
    #[arg(long)]
    digest: ImageDigest,
    /// Revocation lists (DER or PEM); every certificate of the chain must be covered
    #[arg(long, required_unless_present = "unchecked_revocation")]
    crl: Vec<PathBuf>,
    /// Do not ask whether certificates were revoked
    #[arg(long, conflicts_with = "crl")]
    unchecked_revocation: bool,
}

pub fn run(args: &Verify) -> anyhow::Result<Report> {
    let (statement, list) = read(&args.list)?;
    let signature = super::read_signature(&args.sig, &statement)?;
    let pem = disk::read(&args.ca, "the user CA", disk::SMALL)?;
    let roots = cms::certificates_from_pem(&pem)
        .with_context(|| format!("reading the user CA {}", args.ca.display()))?;
    let revocation = match args.unchecked_revocation {
        true => Revocation::Unchecked,
        false => Revocation::Crls(
            args.crl
                .iter()
                .map(|path| disk::read_crl(path))
                .collect::<anyhow::Result<_>>()?,
        ),
    };
    let rule = ListRule {
        roots: &roots,
        tenant: &args.tenant,
        name: &args.name,
        min_serial: args.min_serial,
        revocation: &revocation,
    };
    let verified = verify_list(&statement, &signature, &rule, &[args.digest], now())
        .map_err(|e| Refused(e.to_string()))
        .with_context(|| {
            format!(
                "verifying {} with {}",
                args.list.display(),
                args.sig.display()
            )
        })?;
    let signer = verified.signer();
    Ok(Report::done(
        format!(
            "{}\n  accepted: signed by {} for {}{}",
            title(&list),
            signer.subject(),
            signer.tenant(),
            if args.unchecked_revocation {
                " (revocation not checked)"
            } else {
                ""
            }
        ),
        json!({
            "outcome": "accepted",
            "list": verified.digest(),
            "name": verified.name(),
            "serial": verified.serial(),
            "certificate": signer.certificate(),
            "subject": signer.subject(),
            "tenant": signer.tenant(),
            "revocation": if args.unchecked_revocation { "unchecked" } else { "crl" },
        }),
    ))
}
