//! The merging of layers, beside the kernel's: thousands of random stacks of directories, each mounted
//! as an overlay, read through the mount and computed from its directories. Both must be the same tree.

use crate::{Module, Test, world::World};
use anyhow::{Context, Result, ensure};
use content::tree;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, mknod},
};
use std::{
    ffi::{OsStr, OsString},
    fs,
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{PermissionsExt, chown, symlink},
        },
    },
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "overlay",
    prepare: |_| Ok(()),
    tests: &[Test::Once(
        "random_layers_merge_as_in_the_kernel",
        random_layers_merge_as_in_the_kernel,
    )],
};

const STACKS: u64 = 2000;
/// Few, so that layers meet; odd, so that names are only bytes.
const NAMES: [&[u8]; 6] = [b"a", b"b", b"c d", b"e\nf", b"%2f", b"\xff"];

fn random_layers_merge_as_in_the_kernel(_: &World) -> Result<()> {
    // Memory: two thousand mounts and removals cost nothing there.
    let place = Path::new("/tmp/overlay-merge").to_owned();
    for seed in 1..=STACKS {
        fs::create_dir_all(place.join("merged"))?;
        let done = one(&place, seed).with_context(|| format!("seed {seed}"));
        fs::remove_dir_all(&place)?;
        done?;
    }
    Ok(())
}

fn one(place: &Path, seed: u64) -> Result<()> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut layers = Vec::new();
    for number in 0..2 + random.below(3) {
        let layer = place.join(format!("l{number}"));
        fs::create_dir(&layer)?;
        for _ in 0..random.below(14) {
            random.put(&layer)?;
        }
        random.attributes(&layer)?;
        layers.push(layer);
    }
    let merged = place.join("merged");
    // Topmost first for the kernel, lowest first for us.
    let lower: Vec<_> = layers
        .iter()
        .rev()
        .map(|l| l.display().to_string())
        .collect();
    let options = format!("lowerdir={}", lower.join(":"));
    mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        MsFlags::MS_RDONLY,
        Some(options.as_str()),
    )
    .context("mount")?;
    let shown = walked(&merged);
    umount2(&merged, MntFlags::empty())?;
    let shown = shown.context("through the mount")?;
    let read = layers.iter().map(|layer| {
        let fd = content::open_directory(layer)?;
        Ok(tree::unpacked(fd.as_fd(), &content::once::FilesRead::default())?.layer)
    });
    let computed = verify::rootfs::merge(read.collect::<Result<Vec<_>>>()?)?;
    ensure!(
        *computed.tree() == shown,
        "the kernel shows\n{}\nthe directories make\n{}",
        shown.mtree(),
        computed.mtree()
    );
    Ok(())
}

fn walked(path: &Path) -> Result<verify::rootfs::Tree> {
    Ok(tree::walk(content::open_directory(path)?.as_fd())?)
}

/// xorshift64 (Marsaglia 2003): a failure names its seed and comes again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn name(&mut self) -> OsString {
        let at = self.below(NAMES.len() as u64) as usize;
        OsStr::from_bytes(NAMES[at]).to_owned()
    }

    /// Something at a random path of the layer, unless something else is in its way.
    fn put(&mut self, layer: &Path) -> Result<()> {
        let mut directory: PathBuf = layer.to_owned();
        for _ in 0..self.below(3) {
            let next = directory.join(self.name());
            match fs::symlink_metadata(&next) {
                Err(_) => fs::create_dir(&next)?,
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Ok(()),
            }
            directory = next;
        }
        let path = directory.join(self.name());
        if fs::symlink_metadata(&path).is_ok() {
            return Ok(());
        }
        let device = |kind, number| mknod(&path, kind, Mode::from_bits_truncate(0o600), number);
        match self.below(9) {
            0 | 1 => fs::write(&path, [self.below(256) as u8; 3])?,
            8 => {
                // another name of the file beside it, which another layer may take away
                let beside = path.with_file_name(self.name());
                match fs::symlink_metadata(&beside).is_ok_and(|found| found.is_file()) {
                    true => fs::hard_link(beside, &path)?,
                    false => fs::File::create(&path)?.set_len(1 << 16)?,
                }
            }
            2 => symlink(self.name(), &path)?,
            3 => device(SFlag::S_IFIFO, 0)?,
            4 => device(SFlag::S_IFCHR, nix::sys::stat::makedev(1, 3))?,
            5 => return Ok(device(SFlag::S_IFCHR, 0)?), // a whiteout
            6 => {
                fs::create_dir(&path)?;
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(&path, "trusted.overlay.opaque", b"y", flags)?;
            }
            _ => fs::create_dir(&path)?,
        }
        self.attributes(&path)
    }

    fn attributes(&mut self, path: &Path) -> Result<()> {
        if fs::symlink_metadata(path)?.is_symlink() {
            return Ok(());
        }
        let owner = self.below(3) as u32;
        chown(path, Some(owner), Some(owner))?;
        let modes = [0o755, 0o4711, 0o1777, 0o600];
        let mode = modes[self.below(modes.len() as u64) as usize];
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
    }
}
