//! `attestctl image verify`: which signatures of a store satisfy a demand and are about this image.

use super::{Chosen, Which, demand::DemandArgs};
use crate::report::{Ending, Report};
use ::verify::{
    id::UnixTime,
    signature::{self, Signed, Signer},
};
use anyhow::Context as _;
use clap::Args;
use content::signatures::Store;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    demand: DemandArgs,
    /// Signature store (attestctl import fills one)
    #[arg(long)]
    store: PathBuf,
    #[command(flatten)]
    which: Which,
}

pub fn run(args: &Verify) -> anyhow::Result<Report> {
    let demand = args.demand.demand()?;
    let chosen = args.which.open()?;
    let context = || format!("reading the signature store {}", args.store.display());
    let store = Store::open(&args.store).with_context(context)?;
    // A signature on an index speaks for the manifests in it.
    let mut digests = match &chosen {
        Chosen::Files(source) => source.image.digests(),
        Chosen::Digest(digest) => vec![*digest],
    };
    for (index, _) in store
        .indexes_containing(&chosen.digest())
        .with_context(context)?
    {
        if !digests.contains(&index) {
            digests.push(index);
        }
    }
    let now = UnixTime::from_secs(chrono::Utc::now().timestamp());
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for digest in &digests {
        for stored in store.signatures(digest).with_context(context)? {
            match signature::verify(&demand, &stored, &digests, now) {
                Ok(signed) => good.push(signed),
                Err(e) => bad.push(e.to_string()),
            }
        }
    }
    let mut text = format!("image {}", chosen.digest());
    for signed in &good {
        text.push_str(&format!("\n  signed by {}", signed.signer()));
        if let Some(name) = signed.docker_reference() {
            text.push_str(&format!(" as {name}"));
        }
        if let Some(log) = signed.log() {
            let at = log.at.map_or(String::new(), |at| format!(" at {at}"));
            text.push_str(&format!(", log entry {}{at}", log.index));
        }
    }
    for reason in &bad {
        text.push_str(&format!("\n  not counted: {reason}"));
    }
    let ending = match (good.is_empty(), bad.is_empty()) {
        (false, _) => Ending::Done,
        (true, false) => Ending::Refused,
        (true, true) => {
            text.push_str(&format!(
                "\n  refused: the store {} has no signature for it (attestctl image sign, attestctl import)",
                args.store.display()
            ));
            Ending::Refused
        }
    };
    Ok(Report {
        ending,
        text,
        json: json!({
            "outcome": if ending == Ending::Done { "accepted" } else { ending.word() },
            "image": chosen.digest(),
            "signatures": good.iter().map(described).collect::<Vec<_>>(),
            "not_counted": bad,
        }),
    })
}

fn described(signed: &Signed) -> Value {
    let mut fields = json!({
        "image": signed.image(),
        "reference": signed.docker_reference(),
        "log": signed.log().map(|log| json!({ "index": log.index, "at": log.at })),
        "timestamps": signed.timestamps(),
    });
    let signer = match signed.signer() {
        Signer::Key(key) => json!({ "key": key }),
        Signer::Identity {
            subject,
            issuer,
            certificate,
        } => json!({ "subject": subject, "issuer": issuer, "certificate": certificate }),
    };
    if let (Value::Object(fields), Value::Object(signer)) = (&mut fields, signer) {
        fields.extend(signer);
    }
    fields
}
