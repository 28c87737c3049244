//! An image in files: what it is, what its layers make, and which of its files are programs.
//!
//! Nothing of the image is run or unpacked. Programs are told by their content: ELF executables and
//! shared objects, and executable `#!` scripts.

use crate::progress::Progress;
use anyhow::{Context as _, anyhow, ensure};
use clap::Args;
use content::{layout::ImageFile, signatures::Store};
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::PathBuf,
};
use verify::{
    digest::FileDigest,
    image::{ClaimedImage, Image},
    rootfs::RootfsManifest,
};

/// Which image of a file.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// OCI image layout directory, or an archive of one (`podman save --format oci-archive`)
    pub image: PathBuf,
    /// Tag, name or digest of the image, when the file holds several
    #[arg(long)]
    pub tag: Option<String>,
}

pub struct Source {
    path: PathBuf,
    file: ImageFile,
    /// The bytes that [`Self::image`] was made from.
    claimed: ClaimedImage,
    pub image: Image,
}

/// How the kernel would start a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// An ELF executable or shared object: started by exec, or mapped by a loader.
    Elf,
    /// `#!`: started by exec if it has an execute bit, through this program.
    Script(Vec<u8>),
}

/// Programs by content.
pub type Programs = BTreeMap<FileDigest, Format>;

impl Source {
    pub fn open(args: &ImageArgs) -> anyhow::Result<Self> {
        let context = || format!("reading the image {}", args.image.display());
        let mut file = ImageFile::open(&args.image, args.tag.as_deref()).with_context(context)?;
        let manifest_bytes = file
            .manifest_bytes
            .take()
            .ok_or_else(|| {
                anyhow!(
                    "a docker archive has no manifest, so nothing can be signed about it; \
                     copy the image to an OCI layout (`podman save --format oci-archive`, skopeo)"
                )
            })
            .with_context(context)?;
        let claimed = ClaimedImage {
            name: file.name.clone().unwrap_or_else(|| "image".to_owned()),
            manifest_bytes,
            config_bytes: file.config_bytes.clone(),
            index_bytes: file.index_bytes.clone(),
        };
        let image = Image::of(&claimed).with_context(context)?;
        Ok(Self {
            path: args.image.clone(),
            file,
            claimed,
            image,
        })
    }

    pub fn claimed(&self) -> &ClaimedImage {
        &self.claimed
    }

    /// The tree that the layers make; each layer must be the one that the configuration names.
    pub fn rootfs(&self) -> anyhow::Result<RootfsManifest> {
        self.file
            .rootfs()
            .with_context(|| format!("reading the layers of {}", self.path.display()))
    }

    /// Every program of every layer, also of files that an upper layer hides.
    pub fn programs(&self) -> anyhow::Result<Programs> {
        let mut programs = Programs::new();
        let bar = Progress::new("looking for programs");
        for (done, layer) in self.file.layers.iter().enumerate() {
            bar.at(done as u64, self.file.layers.len() as u64);
            let archive = layer.archive()?;
            collect(archive, &mut programs)
                .with_context(|| format!("looking for programs in {layer}"))?;
        }
        Ok(programs)
    }

    /// Manifest, configuration and indexes, without layers.
    pub fn put_into(&self, store: &Store) -> anyhow::Result<()> {
        let manifest = store.put_manifest(&self.claimed.manifest_bytes)?;
        ensure!(
            manifest == self.image.manifest_digest(),
            "the store took {manifest}"
        );
        store.put_config(&self.claimed.config_bytes)?;
        for index in &self.claimed.index_bytes {
            store.put_index(index)?;
        }
        Ok(())
    }
}

/// Adds the programs of a tar archive. Paths play no role: the manifest knows which content stands
/// at which path, from a reader that checks the whole layer.
fn collect(archive: impl Read, programs: &mut Programs) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if !kind.is_file() && !kind.is_contiguous() {
            continue;
        }
        let mut head = Vec::new();
        (&mut entry).take(HEAD as u64).read_to_end(&mut head)?;
        let Some(format) = format(&head) else {
            continue;
        };
        let mut hasher = Sha256::new_with_prefix(&head);
        let mut buffer = vec![0; 128 << 10];
        loop {
            match entry.read(&mut buffer)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        programs.insert(FileDigest::from_bytes(hasher.finalize().into()), format);
    }
    Ok(())
}

/// Enough of a file to tell what it is: a script's first line, as far as the kernel reads it
/// (BINPRM_BUF_SIZE), or e_ident and e_type.
pub const HEAD: usize = 256;
/// ELF gABI, "ELF Header".
const ELF_HEAD: usize = 18;

pub fn format(head: &[u8]) -> Option<Format> {
    const LITTLE: u8 = 1;
    const EXEC: u16 = 2;
    const DYN: u16 = 3;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        let mut words = line.split(|b| matches!(b, b' ' | b'\t' | 0));
        let interpreter = words.find(|word| !word.is_empty());
        return Some(Format::Script(interpreter.unwrap_or_default().to_vec()));
    }
    let head: &[u8; ELF_HEAD] = head.first_chunk()?;
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let kind = match head[5] {
        LITTLE => u16::from_le_bytes([head[16], head[17]]),
        _ => u16::from_be_bytes([head[16], head[17]]),
    };
    // Object files (kernel modules among them) are not started by exec nor mapped by ld.so.
    matches!(kind, EXEC | DYN).then_some(Format::Elf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(data: u8, kind: [u8; 2]) -> Vec<u8> {
        [b"\x7fELF\x02", &[data][..], &[1; 10], &kind, b"the rest"].concat()
    }

    #[test]
    fn programs_are_told_by_their_content() {
        for (content, expected) in [
            (elf(1, [2, 0]), Some(Format::Elf)),
            (elf(1, [3, 0]), Some(Format::Elf)),
            (elf(2, [0, 2]), Some(Format::Elf)),
            (elf(1, [1, 0]), None),
            (elf(1, [0, 2]), None),
            (b"\x7fELF".to_vec(), None),
            (
                b"#! /bin/sh -e\nrest".to_vec(),
                Some(Format::Script(b"/bin/sh".to_vec())),
            ),
            (b"#!".to_vec(), Some(Format::Script(Vec::new()))),
            (b"# !".to_vec(), None),
            (Vec::new(), None),
        ] {
            let head = &content[..content.len().min(HEAD)];
            assert_eq!(format(head), expected, "{content:?}");
        }
    }

    #[test]
    fn a_program_is_found_whatever_its_name_and_size() {
        let long = [elf(1, [3, 0]), vec![7; 300 << 10]].concat();
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in [
            ("a", &b"#!x"[..]),
            ("b.txt", &long),
            ("c", b"text"),
            ("d", b""),
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, content).unwrap();
        }
        let mut programs = Programs::new();
        collect(tar.into_inner().unwrap().as_slice(), &mut programs).unwrap();
        let expected = [
            (FileDigest::of(b"#!x"), Format::Script(b"x".to_vec())),
            (FileDigest::of(&long), Format::Elf),
        ];
        assert_eq!(programs, expected.into());
    }
}
