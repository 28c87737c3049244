//! From what an engine's store holds of an image to the claims that `verify` judges.

use super::LocateError;
use crate::signatures::Store;
use verify::{
    digest::{ConfigDigest, DiffId, ImageDigest},
    image::{ClaimedImage, Index},
};

/// OCI image-spec, config.md, "Layer ChainID".
pub(super) fn chain_ids(diff_ids: &[DiffId]) -> Vec<DiffId> {
    let mut chain: Vec<DiffId> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(below) => DiffId::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// The claims: the engine's manifests, then those of the signature store, each with the indexes that
/// contain it.
pub(super) fn with_stored(
    name: &str,
    config: ConfigDigest,
    config_bytes: Vec<u8>,
    mut manifests: Vec<Vec<u8>>,
    indexes: &[Vec<u8>],
    signatures: &Store,
) -> Result<Vec<ClaimedImage>, LocateError> {
    manifests.extend(
        signatures
            .manifest_by_config(&config)?
            .into_iter()
            .map(|(_, content)| content),
    );
    let mut claims: Vec<ClaimedImage> = Vec::new();
    for manifest_bytes in manifests {
        if claims
            .iter()
            .any(|claim| claim.manifest_bytes == manifest_bytes)
        {
            continue;
        }
        let digest = ImageDigest::of(&manifest_bytes);
        let contains =
            |content: &&Vec<u8>| Index::parse(content).is_ok_and(|index| index.contains(&digest));
        let mut index_bytes: Vec<_> = indexes.iter().filter(contains).cloned().collect();
        index_bytes.extend(
            signatures
                .indexes_containing(&digest)?
                .into_iter()
                .map(|(_, content)| content),
        );
        index_bytes.sort();
        index_bytes.dedup();
        let (name, config_bytes) = (name.to_owned(), config_bytes.clone());
        claims.push(ClaimedImage {
            name,
            manifest_bytes,
            config_bytes,
            index_bytes,
        });
    }
    if claims.is_empty() {
        return Err(LocateError::NoManifest {
            name: name.to_owned(),
            config,
        });
    }
    Ok(claims)
}
