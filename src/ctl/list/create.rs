//! `attestctl list create`: which files of an image are programs, by their content.

use super::title;
use crate::{
    challenge::now,
    disk,
    report::{Report, Usage},
    source::{Format, ImageArgs, Programs as Found, Source},
};
use ::verify::{
    digest::FileDigest,
    id::UnixTime,
    imalog::encode_path,
    rootfs::{Kind, RootfsManifest},
    siglist::{Draft, List, Programs},
};
use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

const DAY_SECS: i64 = 24 * 60 * 60;

#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    which: ImageArgs,
    /// Name of the list; policies name it, serials count per name
    #[arg(long)]
    name: String,
    /// Number of this version: higher than the last; hosts take the highest
    #[arg(long)]
    serial: u64,
    /// How long the list is in force
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Where the list goes
    #[arg(short, long)]
    output: PathBuf,
    /// Leave out this path, or everything below it if it is a directory; absolute
    #[arg(long)]
    exclude: Vec<String>,
}

pub fn run(args: &Create) -> anyhow::Result<Report> {
    let source = Source::open(&args.which)?;
    let manifest = source.rootfs()?;
    let programs = source.programs()?;
    let (files, excluded) = select(&manifest, &programs, &args.exclude)?;
    if files.is_empty() {
        bail!(
            "{}: no ELF program and no `#!` script is left in the image; a list cannot be empty",
            args.which.image.display()
        );
    }
    let issued_at = now();
    let expires_at = UnixTime::from_secs(issued_at.secs() + i64::from(args.days) * DAY_SECS);
    let draft = Draft {
        name: args.name.clone(),
        serial: args.serial,
        issued_at,
        expires_at,
        images: vec![(
            source.image.name().to_owned(),
            source.image.manifest_digest(),
        )],
        files,
        programs: Programs::AllFiles,
    };
    let context = || format!("making a list of {}", args.which.image.display());
    let bytes = draft.statement_bytes().with_context(context)?;
    disk::replace(&args.output, "the signature list", &bytes)?;
    let list = List::parse(&bytes).with_context(context)?;
    let mut text = title(&list);
    for path in &excluded {
        text.push_str(&format!("\n  left out: {path}"));
    }
    text.push_str(&format!(
        "\n  written to {}; sign it with attestctl list sign",
        args.output.display()
    ));
    Ok(Report::done(
        text,
        json!({
            "name": list.name(),
            "serial": list.serial(),
            "digest": list.digest(),
            "image": source.image.manifest_digest(),
            "files": list.files().len(),
            "excluded": excluded,
            "output": args.output,
        }),
    ))
}

type Files = BTreeMap<Vec<u8>, BTreeSet<FileDigest>>;

/// The programs of the merged tree, and those that were left out. An exclusion that leaves out
/// nothing is a mistake of the caller's and is refused: the program might have moved.
fn select(
    manifest: &RootfsManifest,
    programs: &Found,
    exclude: &[String],
) -> anyhow::Result<(Files, Vec<String>)> {
    let mut files = Files::new();
    let mut excluded = Vec::new();
    let mut used = vec![false; exclude.len()];
    for text in exclude {
        if !text.starts_with('/') {
            bail!(Usage(format!(
                "--exclude {text}: paths are absolute, as the container sees them"
            )));
        }
    }
    for (path, entry) in manifest.tree().iter() {
        let Kind::File { digest, .. } = entry.kind else {
            continue;
        };
        match programs.get(&digest) {
            Some(Format::Elf) => {}
            Some(Format::Script) if entry.mode & 0o111 != 0 => {}
            _ => continue,
        }
        let absolute = path.absolute();
        match exclude.iter().position(|text| covers(text, &absolute)) {
            Some(index) => {
                used[index] = true;
                excluded.push(encode_path(&absolute));
            }
            None => drop(files.entry(absolute).or_default().insert(digest)),
        }
    }
    if let Some(index) = used.iter().position(|used| !used) {
        bail!(Usage(format!(
            "--exclude {}: the image has no program there that is not left out already",
            exclude[index]
        )));
    }
    Ok((files, excluded))
}

/// `path` is `text`, or lies below it.
fn covers(text: &str, path: &[u8]) -> bool {
    let text = text.trim_end_matches('/').as_bytes();
    path.strip_prefix(text)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::verify::rootfs::{Entry, LayerBuilder, LayerEntry, RootfsPath, merge};

    fn manifest(files: &[(&str, &[u8], u16)]) -> RootfsManifest {
        let mut layer = LayerBuilder::default();
        for (path, content, mode) in files {
            let kind = Kind::File {
                size: content.len() as u64,
                digest: FileDigest::of(content),
            };
            let entry = Entry {
                kind,
                mode: *mode,
                uid: 0,
                gid: 0,
                xattrs: BTreeMap::new(),
            };
            let path = RootfsPath::parse(path.as_bytes()).unwrap();
            layer.add(path, LayerEntry::Entry(entry)).unwrap();
        }
        merge([layer.build()]).unwrap()
    }

    fn paths(files: &Files) -> Vec<&str> {
        files
            .keys()
            .map(|path| std::str::from_utf8(path).unwrap())
            .collect()
    }

    #[test]
    fn accept_programs_by_content_and_leave_out_the_excluded() {
        let tree = manifest(&[
            ("bin/a", b"A", 0o755),
            ("bin/b", b"B", 0o755),
            ("lib/c", b"A", 0o644),
            ("etc/text", b"T", 0o755),
            ("bin/script", b"S", 0o755),
            ("etc/script", b"S", 0o644),
        ]);
        let programs = [
            (b"A", Format::Elf),
            (b"B", Format::Elf),
            (b"S", Format::Script),
        ]
        .map(|(content, format)| (FileDigest::of(content), format))
        .into();
        let all = select(&tree, &programs, &[]).unwrap().0;
        assert_eq!(paths(&all), ["/bin/a", "/bin/b", "/bin/script", "/lib/c"]);
        let exclude = ["/bin/b".to_owned(), "/lib/".to_owned()];
        let (left, out) = select(&tree, &programs, &exclude).unwrap();
        assert_eq!(paths(&left), ["/bin/a", "/bin/script"]);
        assert_eq!(out, ["/bin/b", "/lib/c"]);
    }

    #[test]
    fn refuse_exclusions_that_exclude_nothing() {
        let tree = manifest(&[("bin/a", b"A", 0o755), ("bin/text", b"T", 0o755)]);
        let programs = [(FileDigest::of(b"A"), Format::Elf)].into();
        for bad in ["/bin/other", "/bi", "bin/a", "/bin/text"] {
            let refused = select(&tree, &programs, &[bad.to_owned()]).unwrap_err();
            assert!(refused.is::<Usage>(), "{bad}");
        }
    }
}
