//! A root file system on disk as what a list is made of; nothing of it is run.

use super::create::Origin;
use crate::{progress::Progress, source};
use ::verify::rootfs::{Kind, LayerBuilder, LayerEntry, merge};
use anyhow::Context as _;
use std::{
    ffi::OsStr,
    fs::OpenOptions,
    io::Read as _,
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::Path,
};

/// open(2), O_NOFOLLOW: what is a file in the tree stays that file.
const NO_FOLLOW: i32 = 0o400_000;

pub fn read(root: &Path) -> anyhow::Result<Origin> {
    let context = || format!("reading the root file system {}", root.display());
    let directory = content::open_directory(root).with_context(context)?;
    let tree = content::tree::walk(directory.as_fd()).with_context(context)?;
    let mut layer = LayerBuilder::default();
    let mut programs = source::Programs::new();
    let bar = Progress::new("looking for programs");
    for (done, (path, entry)) in tree.iter().enumerate() {
        bar.at(done as u64, tree.count());
        if path.is_root() {
            continue;
        }
        if let Kind::File { digest, .. } = entry.kind {
            let file = root.join(OsStr::from_bytes(path.as_bytes()));
            let head = head(&file).with_context(|| format!("reading {}", file.display()))?;
            programs.extend(source::format(&head).map(|format| (digest, format)));
        }
        layer
            .add(path.clone(), LayerEntry::Entry(entry.clone()))
            .with_context(context)?;
    }
    Ok(Origin {
        manifest: merge([layer.build()]).with_context(context)?,
        programs,
        images: Vec::new(),
    })
}

fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(NO_FOLLOW)
        .open(path)?;
    let mut head = Vec::new();
    file.take(source::HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}
