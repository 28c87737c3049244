//! What `attestctl image verify` asks of a signature; flags are called as cosign's.

use crate::{disk, report::Usage};
use ::verify::signature::{
    Demand, Identity, KeyLog, Need, Pattern, PatternError, Proofs, PublicKey, Subject, TrustRoot,
};
use anyhow::{Context as _, bail};
use clap::Args;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Args)]
pub struct DemandArgs {
    /// Public key (PEM); several: any one of them
    #[arg(long)]
    key: Vec<PathBuf>,
    /// Email address or URI in the signer's certificate (keyless)
    #[arg(long, value_name = "IDENTITY", conflicts_with = "key")]
    certificate_identity: Option<String>,
    /// The same as a regular expression for the whole identity
    #[arg(long, value_name = "REGEXP", conflicts_with_all = ["key", "certificate_identity"])]
    certificate_identity_regexp: Option<String>,
    /// Who vouched for the identity
    #[arg(long, value_name = "URL", conflicts_with = "key")]
    certificate_oidc_issuer: Option<String>,
    /// The same as a regular expression for the whole of it
    #[arg(long, value_name = "REGEXP", conflicts_with_all = ["key", "certificate_oidc_issuer"])]
    certificate_oidc_issuer_regexp: Option<String>,
    /// trusted_root.json of the Sigstore instance, pinned; with --key the signature must be in one of
    /// its logs
    #[arg(long, value_name = "FILE")]
    trusted_root: Option<PathBuf>,
    /// Keyless: no entry in a transparency log is needed (a timestamp then is)
    #[arg(long, conflicts_with = "key")]
    insecure_ignore_tlog: bool,
    /// Keyless: the certificate needs no entry in a certificate log
    #[arg(long, conflicts_with = "key")]
    insecure_ignore_sct: bool,
    /// Keyless: an RFC 3161 timestamp is needed too
    #[arg(long, conflicts_with = "key")]
    use_signed_timestamps: bool,
}

impl DemandArgs {
    pub fn demand(&self) -> anyhow::Result<Demand> {
        let root = self
            .trusted_root
            .as_ref()
            .map(|path| read_root(path))
            .transpose()?;
        if !self.key.is_empty() {
            let keys: anyhow::Result<_> = self.key.iter().map(|path| read_key(path)).collect();
            return Ok(Demand::Key {
                keys: keys?,
                log: root.map_or(KeyLog::NotAsked, KeyLog::Demanded),
            });
        }
        let subject = pattern(
            "certificate-identity",
            self.certificate_identity.as_deref(),
            self.certificate_identity_regexp.as_deref(),
        )?;
        let issuer = pattern(
            "certificate-oidc-issuer",
            self.certificate_oidc_issuer.as_deref(),
            self.certificate_oidc_issuer_regexp.as_deref(),
        )?;
        let Some(root) = root else {
            bail!(Usage(
                "name the trusted root of the Sigstore instance: --trusted-root FILE".to_owned()
            ))
        };
        let need = |ignored| match ignored {
            true => Need::NotAsked,
            false => Need::Demanded,
        };
        Ok(Demand::Keyless {
            root,
            identities: vec![Identity {
                issuer,
                subject: Subject::Any(subject),
            }],
            proofs: Proofs {
                log: need(self.insecure_ignore_tlog),
                timestamp: need(!self.use_signed_timestamps),
                sct: need(self.insecure_ignore_sct),
            },
        })
    }
}

fn read_key(path: &Path) -> anyhow::Result<PublicKey> {
    let pem = disk::read_text(path, "the public key")?;
    PublicKey::from_pem(&pem).with_context(|| format!("reading the public key {}", path.display()))
}

fn read_root(path: &Path) -> anyhow::Result<Arc<TrustRoot>> {
    let json = disk::read(path, "the trusted root", disk::SMALL)?;
    let root = TrustRoot::from_json(&json)
        .with_context(|| format!("reading the trusted root {}", path.display()))?;
    Ok(Arc::new(root))
}

fn pattern(flag: &str, exact: Option<&str>, regexp: Option<&str>) -> anyhow::Result<Pattern> {
    let unusable = |flag: String| move |e: PatternError| Usage(format!("--{flag}: {e}"));
    Ok(match (exact, regexp) {
        (Some(text), _) => Pattern::exact(text).map_err(unusable(flag.to_owned()))?,
        (None, Some(text)) => Pattern::regexp(text).map_err(unusable(format!("{flag}-regexp")))?,
        (None, None) => bail!(Usage(format!(
            "say who signed: --key FILE, or --{flag} (or --{flag}-regexp) with the others of its kind"
        ))),
    })
}
