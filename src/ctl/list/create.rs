//! `attestctl list create`: which files of an image, or of a root file system, are programs, by their
//! content.

use super::{Life, title};
use crate::{
    disk,
    report::{Report, Usage},
    source::{Format, ImageArgs, Programs as Found, Source},
};
use ::verify::{
    digest::{FileDigest, ImageDigest},
    imalog::encode_path,
    rootfs::{Entry, Kind, RootfsManifest},
    siglist::{List, Programs},
};
use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

#[derive(Args)]
pub struct Create {
    /// An image (OCI layout directory or archive), or the directory of a root file system
    image: PathBuf,
    /// Tag, name or digest of the image, when the file holds several
    #[arg(long)]
    tag: Option<String>,
    /// Image that the list is about; a root file system does not say it, an image is one already
    #[arg(long = "about", value_name = "DIGEST")]
    about: Vec<ImageDigest>,
    /// Class of hosts whose programs these are: a host list, of a root file system
    #[arg(long, value_name = "CLASS")]
    hosts: Option<String>,
    #[command(flatten)]
    life: Life,
    /// Where the list goes
    #[arg(short, long)]
    output: PathBuf,
    /// List every regular file, not the programs alone; the others may be read and not started
    #[arg(long)]
    all: bool,
    /// Leave out this path, or everything below it if it is a directory; absolute
    #[arg(long)]
    exclude: Vec<String>,
}

/// What a list is made of.
pub struct Origin {
    pub manifest: RootfsManifest,
    pub programs: Found,
    /// Names, for people, and digests.
    pub images: Vec<(String, ImageDigest)>,
}

impl Origin {
    pub fn of_image(which: &ImageArgs) -> anyhow::Result<Self> {
        let source = Source::open(which)?;
        Ok(Self {
            manifest: source.rootfs()?,
            programs: source.programs()?,
            images: vec![(
                source.image.name().to_owned(),
                source.image.manifest_digest(),
            )],
        })
    }
}

fn origin(args: &Create) -> anyhow::Result<Origin> {
    let directory = args.image.is_dir() && !args.image.join("oci-layout").exists();
    let mut origin = match directory {
        true if args.about.is_empty() && args.hosts.is_none() => bail!(Usage(format!(
            "{} is a root file system: say with --about which image (manifest digest) the list is about, or with --hosts which hosts",
            args.image.display()
        ))),
        true => super::rootfs::read(&args.image)?,
        false => Origin::of_image(&ImageArgs {
            image: args.image.clone(),
            tag: args.tag.clone(),
        })?,
    };
    for digest in &args.about {
        if !origin.images.iter().any(|(_, known)| known == digest) {
            origin.images.push(("image".to_owned(), *digest));
        }
    }
    if let Some(class) = &args.hosts {
        origin
            .images
            .push((format!("hosts {class}"), super::hosts(class)?));
    }
    Ok(origin)
}

pub fn run(args: &Create) -> anyhow::Result<Report> {
    let origin = origin(args)?;
    let chosen = select(&origin, &args.exclude, args.all)?;
    if chosen.files.is_empty() {
        bail!(
            "{}: no ELF program and no `#!` script is left; a list cannot be empty",
            args.image.display()
        );
    }
    let draft = args.life.draft(
        origin.images.clone(),
        chosen.files.clone(),
        chosen.programs(),
    );
    let context = || format!("making a list of {}", args.image.display());
    let bytes = draft.statement_bytes().with_context(context)?;
    disk::replace(&args.output, "the signature list", &bytes)?;
    let list = List::parse(&bytes).with_context(context)?;
    let mut text = title(&list);
    for path in &chosen.excluded {
        text.push_str(&format!("\n  left out: {path}"));
    }
    let stranded = chosen.stranded(&origin.manifest);
    for (script, interpreter) in &stranded {
        text.push_str(&format!(
            "\n  {script} cannot be started: its interpreter {interpreter} is not in the list"
        ));
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
            "image": origin.images.first().map(|(_, digest)| digest),
            "images": list.images(),
            "files": list.files().len(),
            "excluded": chosen.excluded,
            "without_interpreter": stranded.into_iter().map(|(script, _)| script).collect::<Vec<_>>(),
            "output": args.output,
        }),
    ))
}

pub type Files = BTreeMap<Vec<u8>, BTreeSet<FileDigest>>;

/// What goes into a list, and what was left out.
#[derive(Debug, Default)]
struct Chosen {
    files: Files,
    /// Of `files`, those that exec(2) would start: programs with an execute bit.
    startable: BTreeSet<Vec<u8>>,
    /// Scripts among them, with what their first line names.
    scripts: Vec<(Vec<u8>, Vec<u8>)>,
    excluded: Vec<String>,
}

impl Chosen {
    /// Libraries are mapped and data is read: neither may be started.
    fn programs(&self) -> Programs {
        match self.startable.len() == self.files.len() {
            true => Programs::AllFiles,
            false => Programs::Only(self.startable.clone()),
        }
    }

    /// Scripts whose interpreter may not be started.
    fn stranded(&self, manifest: &RootfsManifest) -> Vec<(String, String)> {
        let starts = |interpreter: &[u8]| {
            manifest
                .resolve(interpreter)
                .is_some_and(|path| self.startable.contains(&path.absolute()))
        };
        self.scripts
            .iter()
            .filter(|(_, interpreter)| !starts(interpreter))
            .map(|(script, interpreter)| (encode_path(script), encode_path(interpreter)))
            .collect()
    }
}

/// The programs of the merged tree, or all of its files, and those that were left out. An exclusion that
/// leaves out nothing is a mistake of the caller's and is refused: the program might have moved.
fn select(origin: &Origin, exclude: &[String], all: bool) -> anyhow::Result<Chosen> {
    let mut chosen = Chosen::default();
    let mut used = vec![false; exclude.len()];
    for text in exclude {
        if !text.starts_with('/') {
            bail!(Usage(format!(
                "--exclude {text}: paths are absolute, as the container sees them"
            )));
        }
    }
    for (path, entry) in origin.manifest.tree().iter() {
        let Kind::File { digest, .. } = entry.kind else {
            continue;
        };
        let format = origin.programs.get(&digest);
        if !all && !is_program(format, entry) {
            continue;
        }
        let absolute = path.absolute();
        if let Some(index) = exclude.iter().position(|text| covers(text, &absolute)) {
            used[index] = true;
            chosen.excluded.push(encode_path(&absolute));
            continue;
        }
        if is_program(format, entry) && entry.mode & 0o111 != 0 {
            chosen.startable.insert(absolute.clone());
            if let Some(Format::Script(interpreter)) = format {
                chosen.scripts.push((absolute.clone(), interpreter.clone()));
            }
        }
        chosen.files.entry(absolute).or_default().insert(digest);
    }
    if let Some(index) = used.iter().position(|used| !used) {
        bail!(Usage(format!(
            "--exclude {}: the image has no program there that is not left out already",
            exclude[index]
        )));
    }
    Ok(chosen)
}

fn is_program(format: Option<&Format>, entry: &Entry) -> bool {
    match format {
        Some(Format::Elf) => true,
        Some(Format::Script(_)) => entry.mode & 0o111 != 0,
        None => false,
    }
}

/// Of these files of an origin, those that exec(2) would start.
pub fn startable(origin: &Origin, files: &Files) -> anyhow::Result<Programs> {
    let mut all = select(origin, &[], true)?;
    all.startable.retain(|path| files.contains_key(path));
    Ok(match all.startable.len() == files.len() {
        true => Programs::AllFiles,
        false => Programs::Only(all.startable),
    })
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
    use ::verify::rootfs::{LayerBuilder, LayerEntry, RootfsPath, merge};

    fn origin(files: &[(&str, &[u8], u16)]) -> Origin {
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
        let programs = [
            (&b"A"[..], Format::Elf),
            (b"B", Format::Elf),
            (b"S", Format::Script(b"/bin/a".to_vec())),
            (b"P", Format::Script(b"/bin/perl".to_vec())),
        ]
        .map(|(content, format)| (FileDigest::of(content), format));
        Origin {
            manifest: merge([layer.build()]).unwrap(),
            programs: programs.into(),
            images: Vec::new(),
        }
    }

    fn paths(files: &Files) -> Vec<&str> {
        files
            .keys()
            .map(|path| std::str::from_utf8(path).unwrap())
            .collect()
    }

    #[test]
    fn accept_programs_by_content_and_leave_out_the_excluded() {
        let tree = origin(&[
            ("bin/a", b"A", 0o755),
            ("bin/b", b"B", 0o755),
            ("lib/c", b"A", 0o644),
            ("etc/text", b"T", 0o755),
            ("bin/script", b"S", 0o755),
            ("etc/script", b"S", 0o644),
        ]);
        let all = select(&tree, &[], false).unwrap();
        assert_eq!(
            paths(&all.files),
            ["/bin/a", "/bin/b", "/bin/script", "/lib/c"]
        );
        // a library is mapped, never started
        let programs = ["/bin/a", "/bin/b", "/bin/script"].map(|p| p.as_bytes().to_vec());
        assert_eq!(all.programs(), Programs::Only(programs.into()));
        let exclude = ["/bin/b".to_owned(), "/lib/".to_owned()];
        let left = select(&tree, &exclude, false).unwrap();
        assert_eq!(paths(&left.files), ["/bin/a", "/bin/script"]);
        assert_eq!(left.programs(), Programs::AllFiles);
        assert_eq!(left.excluded, ["/bin/b", "/lib/c"]);
        let every = select(&tree, &[], true).unwrap();
        assert_eq!(every.files.len(), 6);
        assert_eq!(every.startable.len(), 3);
    }

    #[test]
    fn scripts_without_their_interpreter_are_named() {
        let tree = origin(&[
            ("bin/a", b"A", 0o755),
            ("bin/ok", b"S", 0o755),
            ("bin/lost", b"P", 0o755),
        ]);
        let chosen = select(&tree, &[], false).unwrap();
        let lost = [("/bin/lost".to_owned(), "/bin/perl".to_owned())];
        assert_eq!(chosen.stranded(&tree.manifest), lost);
        let without = select(&tree, &["/bin/a".to_owned()], false).unwrap();
        assert_eq!(without.stranded(&tree.manifest).len(), 2);
    }

    #[test]
    fn refuse_exclusions_that_exclude_nothing() {
        let tree = origin(&[("bin/a", b"A", 0o755), ("bin/text", b"T", 0o755)]);
        for bad in ["/bin/other", "/bi", "bin/a", "/bin/text"] {
            let refused = select(&tree, &[bad.to_owned()], false).unwrap_err();
            assert!(refused.is::<Usage>(), "{bad}");
        }
    }
}
