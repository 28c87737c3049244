//! `attestctl ca revoke`: the CA's revocation list, with further certificates or only renewed.
//!
//! The list itself is the CA's memory of what was revoked: the next one holds all of the last.

use super::{Authority, DAY_SECS};
use crate::{
    certificate, disk,
    report::{Report, Usage},
};
use anyhow::{Context as _, bail};
use clap::Args;
use der::{Decode as _, oid::AssociatedOid as _};
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd,
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use x509_cert::{crl::CertificateList, ext::pkix::CrlNumber};

#[derive(Args)]
pub struct Revoke {
    /// Directory of the CA: its crl.pem is replaced (give it to hosts and challengers)
    #[arg(long)]
    dir: PathBuf,
    /// How long the revocation list is good; renew it before (no certificate: only renews)
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=365))]
    days: u32,
    /// Begin a revocation list where none is; what was revoked before is forgotten
    #[arg(long)]
    anew: bool,
    /// Certificates of this CA (PEM) that count no more
    certificates: Vec<PathBuf>,
}

#[cfg(test)]
impl Revoke {
    pub fn of(dir: &Path, anew: bool, certificates: Vec<PathBuf>) -> Self {
        Self {
            dir: dir.to_owned(),
            days: 30,
            anew,
            certificates,
        }
    }
}

/// What a revocation list says.
#[derive(Default)]
struct Known {
    number: u64,
    /// Serial numbers, and when they were revoked (seconds since 1970).
    revoked: Vec<(Vec<u8>, u64)>,
}

pub fn run(args: &Revoke) -> anyhow::Result<Report> {
    let ca = Authority::open(&args.dir)?;
    let place = args.dir.join("crl.pem");
    let mut known = match (place.exists(), args.anew) {
        (true, false) => read(&place)?,
        (false, true) => Known::default(),
        (true, true) => bail!(Usage(format!(
            "{} is there; without --anew it is continued",
            place.display()
        ))),
        (false, false) => bail!(
            "{} is missing, and with it what was revoked before; put it back, or begin one with --anew",
            place.display()
        ),
    };
    let mut added = Vec::new();
    for path in &args.certificates {
        let text = disk::read_text(path, "the certificate")?;
        let context = || format!("reading the certificate {}", path.display());
        let found = certificate::parse(&text).with_context(context)?;
        let tbs = &found.parsed.tbs_certificate;
        if tbs.issuer != ca.certificate.parsed.tbs_certificate.subject {
            bail!(Usage(format!(
                "{} was issued by {}, not by the CA in {}",
                path.display(),
                tbs.issuer,
                args.dir.display()
            )));
        }
        let serial = tbs.serial_number.as_bytes().to_vec();
        if !known.revoked.iter().any(|(known, _)| *known == serial) {
            known.revoked.push((serial, super::now()?));
            added.push(found.subject());
        }
    }
    known.number += 1;
    write(&ca, &place, &known, args.days)?;
    Ok(Report::done(
        format!(
            "revocation list {} number {}, {} revoked ({} new), good for {} days",
            place.display(),
            known.number,
            known.revoked.len(),
            added.len(),
            args.days
        ),
        json!({
            "crl": place,
            "number": known.number,
            "revoked": known.revoked.len(),
            "added": added,
        }),
    ))
}

/// A new CA has revoked nothing, and says so.
pub fn begin(ca: &Authority, place: &Path) -> anyhow::Result<()> {
    let first = Known {
        number: 1,
        revoked: Vec::new(),
    };
    write(ca, place, &first, 30)
}

fn read(place: &Path) -> anyhow::Result<Known> {
    let context = || format!("reading the revocation list {}", place.display());
    let der = disk::read_crl(place)?;
    let list = CertificateList::from_der(&der).with_context(context)?;
    let extensions = list.tbs_cert_list.crl_extensions.unwrap_or_default();
    let number = extensions.iter().find(|e| e.extn_id == CrlNumber::OID);
    let number = number.with_context(|| format!("{}: it has no number", context()))?;
    let number = CrlNumber::from_der(number.extn_value.as_bytes()).with_context(context)?;
    let number = number.0.as_bytes().iter();
    let revoked = list.tbs_cert_list.revoked_certificates.unwrap_or_default();
    Ok(Known {
        number: number.fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
        revoked: revoked
            .iter()
            .map(|entry| {
                let at = entry.revocation_date.to_unix_duration().as_secs();
                (entry.serial_number.as_bytes().to_vec(), at)
            })
            .collect(),
    })
}

fn write(ca: &Authority, place: &Path, known: &Known, days: u32) -> anyhow::Result<()> {
    let epoch = date_time_ymd(1970, 1, 1);
    let at = |seconds| epoch + Duration::from_secs(seconds);
    let now = super::now()?;
    let list = CertificateRevocationListParams {
        this_update: at(now - super::BACKDATE_SECS),
        next_update: at(now + u64::from(days) * DAY_SECS),
        crl_number: SerialNumber::from(known.number),
        issuing_distribution_point: None,
        revoked_certs: known
            .revoked
            .iter()
            .map(|(serial, when)| RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: at(*when),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list
        .signed_by(&ca.issuer()?)
        .and_then(|list| list.pem())
        .context("making the revocation list")?;
    disk::replace(place, "the revocation list", pem.as_bytes())
}
