//! Blobs by their digest, as containerd and OCI layouts keep them: every one that is read is hashed.

use super::{LocateError, inconsistent, place::Place};
use crate::{layer::LayerSource, oci::MAX_DOCUMENT};
use verify::{
    digest::{BlobDigest, ImageDigest},
    image::{Config, Index, Manifest},
};

/// Indexes within indexes.
const MAX_DEPTH: usize = 3;

#[derive(Debug)]
pub(super) struct Blobs {
    place: Place,
    directory: &'static str,
}

/// A manifest whose configuration is here too.
pub(super) struct Candidate {
    pub manifest_bytes: Vec<u8>,
    pub manifest: Manifest,
    pub config_bytes: Vec<u8>,
    pub config: Config,
}

/// Every image that a digest leads to, and the indexes on the way.
#[derive(Default)]
pub(super) struct Candidates {
    pub images: Vec<Candidate>,
    pub indexes: Vec<Vec<u8>>,
}

impl Blobs {
    pub fn new(place: Place, directory: &'static str) -> Self {
        Self { place, directory }
    }

    pub fn candidates(&self, target: ImageDigest) -> Result<Candidates, LocateError> {
        let mut found = Candidates::default();
        self.collect(target, &mut Vec::new(), &mut found)?;
        Ok(found)
    }

    fn collect(
        &self,
        digest: ImageDigest,
        above: &mut Vec<ImageDigest>,
        found: &mut Candidates,
    ) -> Result<(), LocateError> {
        let Some(bytes) = self.blob(BlobDigest::from_bytes(*digest.as_bytes()))? else {
            // An index names platforms that nobody fetched; what was asked for must be here.
            return match above.is_empty() {
                true => Err(inconsistent(format!(
                    "{digest} is not in {}",
                    self.place.at(self.directory).display()
                ))),
                false => Ok(()),
            };
        };
        if let Ok(manifest) = Manifest::parse(&bytes) {
            let config = BlobDigest::from_bytes(*manifest.config().as_bytes());
            if let Some(config_bytes) = self.blob(config)?
                && let Ok(config) = Config::parse(&config_bytes)
            {
                found.images.push(Candidate {
                    manifest_bytes: bytes,
                    manifest,
                    config_bytes,
                    config,
                });
            }
            return Ok(());
        }
        let index =
            Index::parse(&bytes).map_err(|error| inconsistent(format!("{digest}: {error}")));
        let index = match (index, above.is_empty()) {
            (Err(error), true) => return Err(error),
            // Something else within an index.
            (Err(_), false) => return Ok(()),
            (Ok(index), _) => index,
        };
        if above.len() >= MAX_DEPTH || above.contains(&digest) {
            return Ok(());
        }
        above.push(digest);
        for child in index.manifests() {
            self.collect(child.digest, above, found)?;
        }
        above.pop();
        found.indexes.push(bytes);
        Ok(())
    }

    pub fn blob(&self, digest: BlobDigest) -> Result<Option<Vec<u8>>, LocateError> {
        let name = self.name(digest);
        let Some(bytes) = self.place.optional(&name, MAX_DOCUMENT)? else {
            return Ok(None);
        };
        match BlobDigest::of(&bytes) == digest {
            true => Ok(Some(bytes)),
            false => Err(inconsistent(format!(
                "{} has another digest",
                self.place.at(name).display()
            ))),
        }
    }

    /// Where an image's layers lie, lowest first.
    pub fn layers(&self, image: &Candidate) -> Result<Vec<LayerSource>, LocateError> {
        let layers = image.manifest.layers().iter().zip(image.config.diff_ids());
        let source = layers.map(|(layer, diff_id)| {
            let name = self.name(layer.digest);
            if !self.place.has(&name)? {
                return Err(inconsistent(format!(
                    "layer {} is not in {} any more (discard_unpacked_layers = false keeps layers; pull the image again)",
                    layer.digest,
                    self.place.at(self.directory).display()
                )));
            }
            Ok(LayerSource::blob(*diff_id, self.place.at(name)))
        });
        source.collect()
    }

    fn name(&self, digest: BlobDigest) -> String {
        format!("{}/{}", self.directory, digest.hex())
    }
}
