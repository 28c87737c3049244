//! `attestctl list verify`: what a host will say about a list, before it is shipped.

use super::title;
use crate::{
    challenge::now,
    disk,
    report::{Refused, Report},
};
use ::verify::{
    cms::{self, Revocation},
    digest::ImageDigest,
    siglist::{ListRule, VerifiedList, verify_list},
};
use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    demands: Demands,
}

/// What a list must be.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("subject").required(true).args(["digest", "hosts"])))]
pub struct Demands {
    /// The list (in-toto statement)
    pub list: PathBuf,
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
    digest: Option<ImageDigest>,
    /// Class of hosts that the list must be about
    #[arg(long, value_name = "CLASS")]
    pub hosts: Option<String>,
    /// Revocation lists (DER or PEM); every certificate of the chain must be covered
    #[arg(long, required_unless_present = "unchecked_revocation")]
    crl: Vec<PathBuf>,
    /// Do not ask whether certificates were revoked
    #[arg(long, conflicts_with = "crl")]
    unchecked_revocation: bool,
}

impl Demands {
    pub fn verified(&self) -> anyhow::Result<VerifiedList> {
        let statement = disk::read(&self.list, "the signature list", disk::LARGE)?;
        let signature = super::read_signature(&self.sig, &statement)?;
        let pem = disk::read(&self.ca, "the user CA", disk::SMALL)?;
        let roots = cms::certificates_from_pem(&pem)
            .with_context(|| format!("reading the user CA {}", self.ca.display()))?;
        let revocation = match self.unchecked_revocation {
            true => Revocation::Unchecked,
            false => Revocation::Crls(
                self.crl
                    .iter()
                    .map(|path| disk::read_crl(path))
                    .collect::<anyhow::Result<_>>()?,
            ),
        };
        let rule = ListRule {
            roots: &roots,
            tenant: &self.tenant,
            name: &self.name,
            min_serial: self.min_serial,
            revocation: &revocation,
        };
        let mut about: Vec<_> = self.digest.into_iter().collect();
        if let Some(class) = &self.hosts {
            about.push(super::hosts(class)?);
        }
        verify_list(&statement, &signature, &rule, &about, now())
            .map_err(|e| Refused(e.to_string()))
            .with_context(|| {
                format!(
                    "verifying {} with {}",
                    self.list.display(),
                    self.sig.display()
                )
            })
    }
}

pub fn run(args: &Verify) -> anyhow::Result<Report> {
    let unchecked = args.demands.unchecked_revocation;
    let verified = args.demands.verified()?;
    let signer = verified.signer();
    Ok(Report::done(
        format!(
            "{}\n  accepted: signed by {} for {}{}",
            title(verified.list()),
            signer.subject(),
            signer.tenant(),
            if unchecked {
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
            "revocation": if unchecked { "unchecked" } else { "crl" },
        }),
    ))
}
