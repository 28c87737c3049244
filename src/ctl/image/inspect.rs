//! `attestctl image manifest|inspect`: what an image is and holds, from its files alone.

use crate::{
    disk,
    report::Report,
    source::{ImageArgs, Source},
};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

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
    Ok(Report::done(
        text,
        json!({
            "name": image.name(),
            "manifest": image.manifest_digest(),
            "config": image.config_digest(),
            "indexes": indexes,
            "layers": layers,
        }),
    ))
}
