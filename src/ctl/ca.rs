//! `attestctl ca`: a small certificate authority for the owners of containers.
//!
//! Makes what 5-attestation's profile asks of user certificates and nothing else; an existing PKI
//! may issue them instead. Who may sign for which tenant is decided by the host's policy, which
//! names the CA next to the tenant.

mod revoke;

use crate::{
    certificate, disk,
    key::{self, SigningKey},
    report::{Report, Usage},
};
use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use verify::digest::KeyDigest;

/// Longest life of a user certificate (CA/Browser Forum BR 6.3.2 has the same for servers).
const MAX_LEAF_DAYS: u32 = 398;
/// Clocks of publishers and hosts differ a little.
const BACKDATE_SECS: u64 = 300;
const DAY_SECS: u64 = 24 * 60 * 60;

#[derive(Subcommand)]
pub enum Verb {
    /// Make a CA: a key and a self-signed certificate that can issue leaves only
    Init(Init),
    /// Issue a certificate that signs lists for one tenant
    Issue(Issue),
    /// Revoke certificates, or renew the revocation list
    Revoke(revoke::Revoke),
}

#[derive(Args)]
pub struct Init {
    /// Directory of the CA: gets ca.pem and crl.pem (give them to hosts and
    /// challengers) and ca.key (keep it)
    #[arg(long)]
    dir: PathBuf,
    /// Name of the CA (common name)
    #[arg(long)]
    name: String,
    /// Issue for this tenant only
    #[arg(long)]
    tenant: Option<Tenant>,
    /// How long the CA lives
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
}

#[cfg(test)]
impl Init {
    pub fn of(dir: &Path, name: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
            tenant: None,
            days: 30,
        }
    }
}

#[derive(Args)]
pub struct Issue {
    /// Directory of the CA
    #[arg(long)]
    dir: PathBuf,
    /// Whose containers' lists the certificate signs, spiffe://<domain>/<path>
    #[arg(long)]
    tenant: Tenant,
    /// Common name; for people only, authorisation is by the tenant
    #[arg(long, default_value = "list signer")]
    name: String,
    /// Where the certificate goes (PEM)
    #[arg(long)]
    out_cert: PathBuf,
    /// Where its private key goes (PKCS#8 PEM, mode 0600)
    #[arg(long)]
    out_key: PathBuf,
    /// How long the certificate lives
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LEAF_DAYS)))]
    days: u32,
}

pub fn run(verb: &Verb) -> anyhow::Result<Report> {
    match verb {
        Verb::Init(args) => init(args),
        Verb::Issue(args) => issue(args),
        Verb::Revoke(args) => revoke::run(args),
    }
}

/// A tenant's name, `spiffe://<domain>/tenant/<name>` (SPIFFE-ID, section 2): checked before it goes
/// into a certificate, since hosts refuse every other form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant(String);

impl std::str::FromStr for Tenant {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        let any = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let parts = text
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once("/tenant/"));
        match parts {
            Some((domain, name))
                if text.len() <= 2048
                    && !domain.is_empty()
                    && domain.bytes().all(lower)
                    && !matches!(name, "" | "." | "..")
                    && name.bytes().all(any) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(
                "a tenant is spiffe://<domain>/tenant/<name> (letters, digits, `-`, `.`, `_`; \
                      the domain in lower case)"
                    .to_owned(),
            ),
        }
    }
}

impl Tenant {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

struct Places {
    certificate: PathBuf,
    key: PathBuf,
}

impl Places {
    fn of(dir: &Path) -> Self {
        Self {
            certificate: dir.join("ca.pem"),
            key: dir.join("ca.key"),
        }
    }
}

/// A CA that was made before.
struct Authority {
    key: SigningKey,
    pem: String,
    certificate: certificate::Unchecked,
}

impl Authority {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let places = Places::of(dir);
        let key = SigningKey::read(&places.key)
            .context("opening the CA (make one with `attestctl ca init`)")?;
        let pem = disk::read_text(&places.certificate, "the CA certificate")?;
        let certificate = certificate::parse(&pem).with_context(|| {
            format!(
                "reading the CA certificate {}",
                places.certificate.display()
            )
        })?;
        if certificate.public_key != key.public_der()? {
            return Err(anyhow!(
                "{} is not the key of {}: the directory mixes two CAs",
                places.key.display(),
                places.certificate.display()
            ));
        }
        Ok(Self {
            key,
            pem,
            certificate,
        })
    }

    fn issuer(&self) -> anyhow::Result<Issuer<'static, KeyPair>> {
        Issuer::from_ca_cert_pem(&self.pem, rcgen_key(&self.key)?)
            .context("reading the CA certificate")
    }
}

fn init(args: &Init) -> anyhow::Result<Report> {
    disk::make_dir(&args.dir, "the directory of the CA")?;
    let places = Places::of(&args.dir);
    let key = SigningKey::generate()?;
    let mut params = params(&args.name, args.tenant.as_ref(), args.days)?;
    // pathlen 0: it issues leaves, no further CAs (RFC 5280, section 4.2.1.9).
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params
        .self_signed(&rcgen_key(&key)?)
        .context("making the CA certificate")?;
    disk::create_secret(
        &places.key,
        "the CA's private key",
        key.private_pem()?.as_bytes(),
    )?;
    disk::create_public(
        &places.certificate,
        "the CA certificate",
        certificate.pem().as_bytes(),
    )?;
    let crl = args.dir.join("crl.pem");
    revoke::begin(&Authority::open(&args.dir)?, &crl)?;
    let digest = KeyDigest::of(certificate.der());
    Ok(Report::done(
        format!(
            "CA `{}`{}\n  certificate {} ({digest})\n  private key {} (keep it secret)",
            args.name,
            args.tenant
                .as_ref()
                .map(|t| format!(" for {}", t.0))
                .unwrap_or_default(),
            places.certificate.display(),
            places.key.display(),
        ),
        json!({ "certificate": places.certificate, "key": places.key, "crl": crl, "digest": digest }),
    ))
}

fn issue(args: &Issue) -> anyhow::Result<Report> {
    let ca = Authority::open(&args.dir)?;
    if let Some(other) = ca
        .certificate
        .uris
        .iter()
        .find(|uri| *uri != args.tenant.as_str())
    {
        return Err(Usage(format!(
            "the CA in {} issues for {other} only, not for {}",
            args.dir.display(),
            args.tenant.0
        ))
        .into());
    }
    let key = SigningKey::generate()?;
    let mut params = params(&args.name, Some(&args.tenant), args.days)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params.use_authority_key_identifier_extension = true;
    let certificate = params
        .signed_by(&rcgen_key(&key)?, &ca.issuer()?)
        .context("issuing the certificate")?;
    disk::create_secret(
        &args.out_key,
        "the private key",
        key.private_pem()?.as_bytes(),
    )?;
    disk::create_public(
        &args.out_cert,
        "the certificate",
        certificate.pem().as_bytes(),
    )?;
    let digest = KeyDigest::of(certificate.der());
    Ok(Report::done(
        format!(
            "certificate for {}, {} days\n  certificate {} ({digest})\n  private key {} (keep it secret)",
            args.tenant.0,
            args.days,
            args.out_cert.display(),
            args.out_key.display(),
        ),
        json!({
            "certificate": args.out_cert,
            "key": args.out_key,
            "digest": digest,
            "tenant": args.tenant.0,
        }),
    ))
}

/// Seconds since 1970.
fn now() -> anyhow::Result<u64> {
    u64::try_from(chrono::Utc::now().timestamp()).context("the clock is before 1970")
}

/// What CA and leaf have in common: name, tenant, validity, a random serial number.
fn params(name: &str, tenant: Option<&Tenant>, days: u32) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(tenant) = tenant {
        let uri = tenant
            .0
            .as_str()
            .try_into()
            .context("writing the tenant's name")?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(now()? - BACKDATE_SECS);
    params.not_after = params.not_before + Duration::from_secs(u64::from(days) * DAY_SECS);
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    Ok(params)
}

/// 126 random bits: positive and without a leading zero byte (RFC 5280, section 4.1.2.2).
fn serial() -> anyhow::Result<[u8; 16]> {
    let mut bytes = key::random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes)
}

fn rcgen_key(key: &SigningKey) -> anyhow::Result<KeyPair> {
    KeyPair::from_pem(&key.private_pem()?).context("passing the key to the certificate maker")
}

#[cfg(test)]
mod tests;
