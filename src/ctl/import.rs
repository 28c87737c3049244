//! `attestctl import`: fills a host's signature store.
//!
//! Copies, judges nothing: what a store holds counts only when `create` has verified it against the
//! host's policy.

use crate::{
    disk,
    progress::Progress,
    report::{Refused, Report, Usage},
};
use anyhow::{Context as _, bail};
use clap::Args;
use content::signatures::{Imported, Store};
use serde_json::json;
use std::path::{Path, PathBuf};
use verify::siglist::List;

/// The store that is filled.
#[derive(Args)]
pub struct Target {
    /// The host's signature store
    #[arg(long, default_value = "/var/lib/attestrun/signatures")]
    store: PathBuf,
}

#[derive(Args)]
pub struct Import {
    #[command(flatten)]
    target: Target,
    /// A signature list's statement, with --sig
    #[arg(long, requires = "sig")]
    list: Option<PathBuf>,
    /// The list's signature: CMS (DER), or a Sigstore bundle
    #[arg(long, requires = "list")]
    sig: Option<PathBuf>,
    /// OCI image layouts (`cosign save` and `attestctl image sign` make them), Sigstore bundles
    /// (`cosign sign --bundle`), containerd's content store (…/io.containerd.content.v1.content), or
    /// containers-storage (/var/lib/containers/storage)
    paths: Vec<PathBuf>,
}

impl Target {
    pub fn open(&self) -> anyhow::Result<Store> {
        Store::create(&self.store)
            .with_context(|| format!("opening the signature store {}", self.store.display()))
    }
    pub fn path(&self) -> &Path {
        &self.store
    }
}

pub fn run(args: &Import) -> anyhow::Result<Report> {
    if args.paths.is_empty() && args.list.is_none() {
        bail!(Usage(
            "nothing to import: name OCI layouts, bundles or engines' stores, or --list FILE --sig FILE.p7s".to_owned()
        ));
    }
    let store = args.target.open()?;
    let mut all = Vec::new();
    for path in &args.paths {
        let bar = Progress::new(&format!("import {}", path.display()));
        let imported = store.import(path, &|done, of| bar.at(done, of));
        all.push(imported.with_context(|| {
            format!(
                "importing {} into {}",
                path.display(),
                args.target.store.display()
            )
        })?);
    }
    if let (Some(list), Some(sig)) = (&args.list, &args.sig) {
        let statement = disk::read(list, "the signature list", disk::LARGE)?;
        let parsed = List::parse(&statement)
            .map_err(|e| Refused(e.to_string()))
            .with_context(|| format!("reading the signature list {}", list.display()))?;
        let signature = crate::list::read_signature(sig, &statement)?;
        store
            .put_list(parsed.images(), &statement, &signature)
            .with_context(|| {
                format!(
                    "importing {} into {}",
                    list.display(),
                    args.target.store.display()
                )
            })?;
        all.push(Imported {
            lists: 1,
            ..Imported::default()
        });
    }
    Ok(report(&args.target, all))
}

/// What was taken over, in sum.
pub fn report(target: &Target, all: Vec<Imported>) -> Report {
    let mut sum = Imported::default();
    for imported in all {
        sum.images.extend(imported.images);
        sum.ignored.extend(imported.ignored);
        sum.signatures += imported.signatures;
        sum.lists += imported.lists;
    }
    sum.images.sort_unstable();
    sum.images.dedup();
    sum.ignored.sort_unstable();
    sum.ignored.dedup();
    let mut text = format!(
        "{} images (manifests and indexes), {} signatures, {} lists into {}",
        sum.images.len(),
        sum.signatures,
        sum.lists,
        target.store.display()
    );
    for kind in &sum.ignored {
        text.push_str(&format!("\n  left out: {kind}"));
    }
    Report::done(
        text,
        json!({
            "store": target.store,
            "images": sum.images,
            "signatures": sum.signatures,
            "lists": sum.lists,
            "ignored": sum.ignored,
        }),
    )
}
