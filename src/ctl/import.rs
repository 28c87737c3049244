//! `attestctl import`: fills a host's signature store.
//!
//! Copies, judges nothing: what a store holds counts only when `create` has verified it against the
//! host's policy.

use crate::{
    disk,
    report::{Refused, Report, Usage},
};
use anyhow::{Context as _, bail};
use clap::Args;
use content::signatures::Store;
use serde_json::json;
use std::path::PathBuf;
use verify::siglist::List;

#[derive(Args)]
pub struct Import {
    /// The host's signature store
    #[arg(long, default_value = "/var/lib/attestrun/signatures")]
    store: PathBuf,
    /// A signature list's statement, with --sig
    #[arg(long, requires = "sig")]
    list: Option<PathBuf>,
    /// The list's detached CMS signature (DER)
    #[arg(long, requires = "list")]
    sig: Option<PathBuf>,
    /// Directories that `cosign save` or `attestctl image sign` made, or other OCI image layouts
    paths: Vec<PathBuf>,
}

pub fn run(args: &Import) -> anyhow::Result<Report> {
    if args.paths.is_empty() && args.list.is_none() {
        bail!(Usage(
            "nothing to import: name OCI layouts, or --list FILE --sig FILE.p7s".to_owned()
        ));
    }
    let store = Store::create(&args.store)
        .with_context(|| format!("opening the signature store {}", args.store.display()))?;
    let (mut images, mut ignored) = (Vec::new(), Vec::new());
    let (mut signatures, mut lists) = (0, 0);
    for path in &args.paths {
        let imported = store.import_layout(path).with_context(|| {
            format!("importing {} into {}", path.display(), args.store.display())
        })?;
        images.extend(imported.images);
        ignored.extend(imported.ignored);
        signatures += imported.signatures;
        lists += imported.lists;
    }
    if let (Some(list), Some(sig)) = (&args.list, &args.sig) {
        let statement = disk::read(list, "the signature list", disk::LARGE)?;
        let parsed = List::parse(&statement)
            .map_err(|e| Refused(e.to_string()))
            .with_context(|| format!("reading the signature list {}", list.display()))?;
        let cms = disk::read(sig, "the list's signature", disk::SMALL)?;
        store
            .put_list(parsed.images(), &statement, &cms)
            .with_context(|| {
                format!("importing {} into {}", list.display(), args.store.display())
            })?;
        lists += 1;
    }
    images.sort_unstable();
    images.dedup();
    ignored.sort_unstable();
    ignored.dedup();
    let mut text = format!(
        "{} images (manifests and indexes), {signatures} signatures, {lists} lists into {}",
        images.len(),
        args.store.display()
    );
    for kind in &ignored {
        text.push_str(&format!("\n  left out: {kind}"));
    }
    Ok(Report::done(
        text,
        json!({
            "store": args.store,
            "images": images,
            "signatures": signatures,
            "lists": lists,
            "ignored": ignored,
        }),
    ))
}
