//! `attestctl list`: signature lists, from an image to a signed statement and back.

mod create;
mod diff;
pub mod export;
mod import;
mod rootfs;
mod sign;
pub mod verify;

use crate::{
    challenge::now,
    disk,
    report::{Refused, Report, Usage},
};
use ::verify::{
    digest::ImageDigest,
    hostlist::host_class,
    id::UnixTime,
    imalog::encode_path,
    siglist::{Draft, List, Programs},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum Verb {
    /// Make a list of the programs of an image or a root file system; nothing of it is run
    Create(create::Create),
    /// Make a list of what another tool wrote: a Keylime policy, sha256sum lines, SPDX, syft
    Import(import::Import),
    /// Write a list as a Keylime policy, an mtree specification or sha256sum lines
    Export(export::Export),
    /// What a new version of a list changes
    Diff(diff::Diff),
    /// Sign a list with a user's certificate (CMS, or DSSE in a Sigstore bundle)
    Sign(sign::Sign),
    /// Verify a list's signature, tenant, name, serial and lifetime
    Verify(verify::Verify),
    /// Print a list; nothing is verified
    Show(Show),
}

#[derive(Args)]
pub struct Show {
    /// The list (in-toto statement)
    list: PathBuf,
}

pub fn run(verb: &Verb) -> anyhow::Result<Report> {
    match verb {
        Verb::Create(args) => create::run(args),
        Verb::Import(args) => import::run(args),
        Verb::Export(args) => export::run(args),
        Verb::Diff(args) => diff::run(args),
        Verb::Sign(args) => sign::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Show(args) => show(args),
    }
}

/// What a new list is called and how long it lives.
#[derive(Args)]
struct Life {
    /// Name of the list; policies name it, serials count per name
    #[arg(long)]
    name: String,
    /// Number of this version: higher than the last; hosts take the highest and never go back
    #[arg(long)]
    serial: u64,
    /// How long the list is in force
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

impl Life {
    fn draft(
        &self,
        images: Vec<(String, ImageDigest)>,
        files: create::Files,
        programs: Programs,
    ) -> Draft {
        const DAY_SECS: i64 = 24 * 60 * 60;
        let issued_at = now();
        Draft {
            name: self.name.clone(),
            serial: self.serial,
            issued_at,
            expires_at: UnixTime::from_secs(issued_at.secs() + i64::from(self.days) * DAY_SECS),
            images,
            files,
            programs,
        }
    }
}

/// What a list of the programs of these hosts is about.
fn hosts(class: &str) -> anyhow::Result<ImageDigest> {
    let wrong = || {
        Usage(format!(
            "--hosts {class}: the name of a class of hosts is of letters, digits, `.`, `_` and `-`"
        ))
    };
    Ok(host_class(class).ok_or_else(wrong)?)
}

/// The list's bytes and what they say; malformed lists are refused.
fn read(path: &Path) -> anyhow::Result<(Vec<u8>, List)> {
    let bytes = disk::read(path, "the signature list", disk::LARGE)?;
    let list = List::parse(&bytes)
        .map_err(|e| Refused(e.to_string()))
        .with_context(|| format!("reading the signature list {}", path.display()))?;
    Ok((bytes, list))
}

/// A detached signature; from a bundle that holds a list it is taken off, and that list must be this one.
pub fn read_signature(path: &Path, statement: &[u8]) -> anyhow::Result<Vec<u8>> {
    let bytes = disk::read(path, "the list's signature", disk::LARGE)?;
    if bytes.first() != Some(&b'{') {
        return Ok(bytes);
    }
    let context = || format!("reading the list's signature {}", path.display());
    let (inside, detached) = ::verify::cms::detach(&bytes)
        .map_err(|e| Refused(e.to_string()))
        .with_context(context)?;
    if !inside.is_empty() && inside != statement {
        return Err(Refused("it holds another list".to_owned())).with_context(context);
    }
    Ok(detached)
}

fn title(list: &List) -> String {
    format!(
        "list `{}`, serial {}, {} files\n  digest {}\n  issued {}, expires {}",
        list.name(),
        list.serial(),
        list.files().len(),
        list.digest(),
        list.issued_at(),
        list.expires_at()
    )
}

fn show(args: &Show) -> anyhow::Result<Report> {
    let (_, list) = read(&args.list)?;
    let mut text = title(&list);
    for image in list.images() {
        text.push_str(&format!("\n  image {image}"));
    }
    let mut files = serde_json::Map::new();
    for (path, digests) in list.files().iter() {
        let shown = encode_path(path);
        let mark = if list.starts(path) {
            ""
        } else {
            "  (not to be started)"
        };
        for digest in digests {
            text.push_str(&format!("\n{}  {shown}{mark}", digest.hex()));
        }
        files.insert(
            shown,
            json!({ "digests": digests, "program": list.starts(path) }),
        );
    }
    Ok(Report::done(
        text,
        json!({
            "name": list.name(),
            "serial": list.serial(),
            "digest": list.digest(),
            "issued_at": list.issued_at(),
            "expires_at": list.expires_at(),
            "images": list.images(),
            "files": files,
        }),
    ))
}
