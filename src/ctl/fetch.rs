//! `attestctl fetch`: an image's manifests and everything that was signed about them, from its registry
//! into the host's signature store. Layers stay where they are.
//!
//! The one verb that opens a connection to a registry: by TLS, or to this machine's own loopback
//! without (where containers-certs.d(5) has nothing for it). Proxies are those that the environment names (`HTTPS_PROXY`, `NO_PROXY`), as for curl.
//! Copies, judges nothing.

mod auth;
mod layout;
mod registry;
mod trust; // CAs

use crate::{
    import::{Target, report},
    progress::Progress,
    report::{Report, Usage},
};
use anyhow::{Context as _, anyhow};
use clap::Args;
use layout::Layout;
use oci_client::Reference;
use registry::Registry;
use std::{collections::VecDeque, path::PathBuf};

#[derive(Args)]
pub struct Fetch {
    #[command(flatten)]
    target: Target,
    /// Credentials for registries (containers-auth.json(5); docker's config.json is one)
    #[arg(long)]
    authfile: Option<PathBuf>,
    /// Images as engines name them: registry.example/app:v1, or with @sha256:…
    #[arg(required = true)]
    images: Vec<String>,
}

pub fn run(args: &Fetch) -> anyhow::Result<Report> {
    let store = args.target.open()?;
    // all of them before the first runtime starts threads
    let mut registries = Vec::new();
    for image in &args.images {
        let reference: Reference = image
            .parse()
            .map_err(|e| Usage(format!("`{image}` is no image's name: {e}")))?;
        let registry = Registry::new(&reference, args.authfile.as_deref())
            .with_context(|| format!("fetching what is signed about {image}"))?;
        registries.push((reference, registry));
    }
    let mut all = Vec::new();
    for (image, (reference, registry)) in args.images.iter().zip(&registries) {
        let context = || format!("fetching what is signed about {image}");
        let layout = Layout::beside(args.target.path()).with_context(context)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime
            .block_on(download(registry, reference, &layout))
            .with_context(context)?;
        let imported = store
            .import(layout.path(), &|_, _| ())
            .with_context(context)?;
        all.push(imported);
    }
    Ok(report(&args.target, all))
}

/// The image, the manifests below it, and for each of them what refers to it.
async fn download(registry: &Registry, image: &Reference, layout: &Layout) -> anyhow::Result<()> {
    let progress = Progress::new(&format!("fetch {image}"));
    let top = registry
        .manifest(image)
        .await?
        .ok_or_else(|| anyhow!("the registry has no such image"))?;
    let top = layout.put_image(&top)?;
    let mut waiting = VecDeque::from([top]);
    let (mut done, mut known) = (0, 1);
    while let Some(digest) = waiting.pop_front() {
        progress.at(done, known);
        done += 1;
        for child in layout.children(&digest)? {
            let Some(content) = registry.by_digest(image, &child).await? else {
                continue; // a registry may hold some platforms only
            };
            layout.put(&content)?;
            waiting.push_back(child);
            known += 1;
        }
        for blob in layout.blobs_of(&digest)? {
            layout.put(&registry.blob(image, &blob).await?)?;
        }
        for artifact in registry.about(image, &digest).await? {
            let name = layout.put(&artifact)?;
            for blob in layout.blobs_of(&name)? {
                layout.put(&registry.blob(image, &blob).await?)?;
            }
        }
    }
    progress.at(done, known);
    Ok(())
}
