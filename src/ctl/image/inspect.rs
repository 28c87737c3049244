//! `attestctl image manifest|inspect`: what an image is and holds, from its files alone.

use crate::{
    disk,
    report::Report,
    source::{ImageArgs, Source},
};
use ::verify::{image::Image, signature::StoredSignature};
use anyhow::Context as _;
use clap::Args;
use content::signatures::Store;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Manifest {
    #[command(flatten)]
    which: ImageArgs,
    /// Write the manifest (mtree) here instead of printing it
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Print the digest only
    #[arg(long)]
    digest: bool,
}

#[derive(Args)]
pub struct Inspect {
    #[command(flatten)]
    which: ImageArgs,
    /// Tell too what this signature store holds about the image; `image verify` proves it
    #[arg(long)]
    store: Option<PathBuf>,
}

pub fn manifest(args: &Manifest) -> anyhow::Result<Report> {
    let source = Source::open(&args.which)?;
    let manifest = source.rootfs()?;
    let mtree = manifest.mtree();
    let digest = manifest.digest();
    let (entries, bytes) = (manifest.tree().count(), manifest.tree().bytes());
    if let Some(path) = &args.output {
        disk::replace(path, "the rootfs manifest", mtree.as_bytes())?;
    }
    let text = match (&args.output, args.digest) {
        (_, true) => digest.to_string(),
        (Some(path), false) => {
            format!(
                "{digest}\n  {entries} entries, {bytes} bytes of files\n  written to {}",
                path.display()
            )
        }
        // The digest stands last, where it is seen after a long list.
        (None, false) => format!("{mtree}# {digest}"),
    };
    Ok(Report::done(
        text,
        json!({
            "image": source.image.manifest_digest(),
            "rootfs": digest,
            "entries": entries,
            "bytes": bytes,
            "output": args.output,
        }),
    ))
}

pub fn inspect(args: &Inspect) -> anyhow::Result<Report> {
    let source = Source::open(&args.which)?;
    let image = &source.image;
    let layers: Vec<_> = image
        .layers()
        .iter()
        .zip(image.diff_ids())
        .map(|(layer, diff_id)| {
            json!({
                "digest": layer.digest,
                "size": layer.size,
                "media_type": layer.media_type,
                "diff_id": diff_id,
            })
        })
        .collect();
    let indexes: Vec<_> = image.digests().into_iter().skip(1).collect();
    let mut text = format!(
        "image    {}\nmanifest {}\nconfig   {}",
        image.name(),
        image.manifest_digest(),
        image.config_digest()
    );
    for index in &indexes {
        text.push_str(&format!("\nindex    {index}"));
    }
    for (layer, diff_id) in image.layers().iter().zip(image.diff_ids()) {
        text.push_str(&format!(
            "\nlayer    {} {} bytes, diff-ID {diff_id}",
            layer.digest, layer.size
        ));
    }
    let mut report = Report::done(
        String::new(),
        json!({
            "name": image.name(),
            "manifest": image.manifest_digest(),
            "config": image.config_digest(),
            "indexes": indexes,
            "layers": layers,
        }),
    );
    if let Some(store) = &args.store {
        let said = said(store, image)?;
        for one in &said {
            let field = |name: &str| one[name].as_str();
            let what = field("reference").or(field("predicate_type"));
            let what = what.or(field("unusable")).unwrap_or_default();
            let format = field("format").unwrap_or_default();
            text.push_str(&format!("\nunproved {format}: {what}"));
        }
        report.add("unproved", said);
    }
    report.text = text;
    Ok(report)
}

/// What the store's signatures and attestations say of themselves.
fn said(store: &Path, image: &Image) -> anyhow::Result<Vec<Value>> {
    let context = || format!("reading the signature store {}", store.display());
    let store = Store::open(store).with_context(context)?;
    let mut said = Vec::new();
    for digest in image.digests() {
        let mut stored = store.signatures(&digest).with_context(context)?;
        stored.extend(store.attestations(&digest).with_context(context)?);
        for stored in &stored {
            let format = match stored {
                StoredSignature::Simple(_) => "simple signature",
                StoredSignature::Envelope(_) => "attestation",
                StoredSignature::Bundle(_) => "bundle",
            };
            said.push(match stored.claim() {
                Ok(claim) => json!({
                    "format": format,
                    "image": digest,
                    "reference": claim.docker_reference,
                    "predicate_type": claim.predicate_type,
                }),
                Err(why) => json!({ "format": format, "unusable": why.to_string() }),
            });
        }
    }
    Ok(said)
}
