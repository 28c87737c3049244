//! `attestctl image`: sign images as cosign does, verify such signatures, say what an image holds.

mod demand; // what a signature must satisfy
mod inspect;
mod keygen;
mod sign;
mod verify;

use crate::{
    report::{Report, Usage},
    source::{ImageArgs, Source},
};
use ::verify::digest::ImageDigest;
use anyhow::bail;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum Verb {
    /// Make an ECDSA P-256 key pair that signs images
    Keygen(keygen::Keygen),
    /// Sign an image as cosign does, into a signature store
    Sign(sign::Sign),
    /// Verify the signatures that a store holds for an image
    Verify(verify::Verify),
    /// Print the rootfs manifest (mtree) that the image's layers make, and its digest
    Manifest(inspect::Manifest),
    /// Say what an image is: digests, layers, names
    Inspect(inspect::Inspect),
}

pub fn run(verb: &Verb) -> anyhow::Result<Report> {
    match verb {
        Verb::Keygen(args) => keygen::run(args),
        Verb::Sign(args) => sign::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Manifest(args) => inspect::manifest(args),
        Verb::Inspect(args) => inspect::inspect(args),
    }
}

/// Which image: by its files, or by digest alone.
#[derive(Args)]
#[group(required = true, multiple = true)]
struct Which {
    /// OCI image layout directory, or an archive of one (`podman save --format oci-archive`)
    image: Option<PathBuf>,
    /// Tag, name or digest of the image, when the file holds several
    #[arg(long, requires = "image")]
    tag: Option<String>,
    /// Digest of the image's manifest or index, when its files are not at hand
    #[arg(long, conflicts_with = "image")]
    digest: Option<ImageDigest>,
}

enum Chosen {
    Files(Box<Source>),
    Digest(ImageDigest),
}

impl Which {
    fn open(&self) -> anyhow::Result<Chosen> {
        match (&self.image, self.digest) {
            (Some(image), None) => {
                let args = ImageArgs {
                    image: image.clone(),
                    tag: self.tag.clone(),
                };
                Ok(Chosen::Files(Box::new(Source::open(&args)?)))
            }
            (None, Some(digest)) => Ok(Chosen::Digest(digest)),
            _ => bail!(Usage(
                "name the image: an OCI layout, or --digest sha256:…".to_owned()
            )),
        }
    }
}

impl Chosen {
    /// The manifest's digest (of an index, when only that is known).
    fn digest(&self) -> ImageDigest {
        match self {
            Self::Files(source) => source.image.manifest_digest(),
            Self::Digest(digest) => *digest,
        }
    }
}
