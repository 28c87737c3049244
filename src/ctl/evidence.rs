//! `attestctl evidence export`: a container's evidence for a verifier of other people's.
//!
//! Exported is what was appraised and accepted, and nothing else: another verifier checks less, so it
//! judges after us, never instead of us. Nothing in an export can make it accept what we refused.

mod keylime;
mod trustee;

use crate::{
    challenge::{Accepted, Appraise, Judged, judge_kept},
    disk,
    report::{Refused, Report, Style},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::path::PathBuf;
use verify::{
    imalog::{self, Entry},
    pcr::{PcrIndex, QUOTED},
};

#[derive(Subcommand)]
pub enum Verb {
    /// Appraise kept evidence and, if it is accepted, write it for another verifier
    Export(Export),
}

#[derive(Args)]
#[command(group(clap::ArgGroup::new("format").required(true).args(["keylime", "trustee"])))]
pub struct Export {
    /// The body of a request to Keylime's verifier (POST …/verify/evidence): quote, log, and the list as a
    /// runtime policy
    #[arg(long)]
    keylime: bool,
    /// Reference values for Trustee: the vTPM's attestation key and PCRs, as a message to its RVPS
    #[arg(long)]
    trustee: bool,
    /// Where it goes; standard output otherwise
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    appraise: Appraise,
}

pub fn run(verb: &Verb, style: Style) -> anyhow::Result<Report> {
    let Verb::Export(args) = verb;
    let (accepted, mut report) = match judge_kept(&args.appraise, style)? {
        Judged::Accepted(accepted, report) => (accepted, report),
        Judged::Not(report) => return Ok(report),
    };
    let log = Log::of(&accepted)?;
    let (what, value) = match args.keylime {
        true => ("Keylime's verifier", keylime::request(&accepted, &log)?),
        false => ("Trustee's RVPS", trustee::message(&accepted, &log)?),
    };
    let text = format!("{value:#}");
    match &args.output {
        Some(path) => {
            disk::replace(path, "the export", format!("{text}\n").as_bytes())?;
            report
                .text
                .push_str(&format!("\nfor {what}: {}", path.display()));
            report.add("output", path.display().to_string());
        }
        None => {
            report.text = text;
            report.add("exported", value);
        }
    }
    Ok(report)
}

/// The container's log, and the values that it explains, which the vTPM's quote covers.
struct Log {
    entries: Vec<Entry>,
    values: Vec<(PcrIndex, [u8; 32])>,
}

impl Log {
    fn of(accepted: &Accepted) -> anyhow::Result<Self> {
        let entries = imalog::parse(&accepted.evidence().container_log)
            .map_err(|e| Refused(e.to_string()))
            .context("reading the container's log")?;
        let values = imalog::Replay::of(&entries).sha256(&QUOTED);
        Ok(Self {
            values: QUOTED.into_iter().zip(values).collect(),
            entries,
        })
    }
}

/// PCR number -> what it may hold.
fn allowed(values: &[(PcrIndex, [u8; 32])], name: impl Fn(PcrIndex) -> String) -> Value {
    let value = |(pcr, value): &(PcrIndex, [u8; 32])| {
        let allowed = Value::from(vec![hex::encode(value)]);
        (name(*pcr), allowed)
    };
    Value::Object(values.iter().map(value).collect())
}
