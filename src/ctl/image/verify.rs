//! `attestctl image verify`: which signatures of a store are by this key and about this image.

use super::{Chosen, Which};
use crate::{
    disk,
    report::{Ending, Report},
};
use ::verify::{
    id::UnixTime,
    signature::{self, Demand, KeyLog, PublicKey},
};
use anyhow::Context as _;
use clap::Args;
use content::signatures::Store;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args)]
pub struct Verify {
    /// Public key (PEM)
    #[arg(long)]
    key: PathBuf,
    /// Signature store (an OCI layout; `cosign save` makes one too)
    #[arg(long)]
    store: PathBuf,
    #[command(flatten)]
    which: Which,
}

pub fn run(args: &Verify) -> anyhow::Result<Report> {
    let pem = disk::read_text(&args.key, "the public key")?;
    let key = PublicKey::from_pem(&pem)
        .with_context(|| format!("reading the public key {}", args.key.display()))?;
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
    let demand = Demand::Key {
        keys: vec![key.clone()],
        log: KeyLog::NotAsked,
    };
    let now = UnixTime::from_secs(chrono::Utc::now().timestamp());
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for digest in &digests {
        for found in store.signatures(digest).with_context(context)? {
            match signature::verify(&demand, &found, &digests, now) {
                Ok(signed) => good.push(json!({
                    "image": signed.image(),
                    "reference": signed.docker_reference(),
                    "signer": signed.signer().to_string(),
                })),
                Err(e) => bad.push(e.to_string()),
            }
        }
    }
    let mut text = format!("image {}", chosen.digest());
    for signed in &good {
        text.push_str(
            &format!(
                "\n  signed by {} as {}",
                signed["signer"], signed["reference"]
            )
            .replace('"', ""),
        );
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
            "key": key.fingerprint(),
            "signatures": good,
            "not_counted": bad,
        }),
    })
}
