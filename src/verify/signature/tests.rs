//! Vectors by other people's tools, and signatures that a small Sigstore instance of the tests makes.

use super::*;
use crate::digest::ImageDigest;
use crate::testkit::{NOW, image_key};

mod by_key;
mod demands;
#[path = "../../../tests/sigstore.rs"]
mod instance;
mod keyless;
mod made_elsewhere;
mod old_format;

/// The image of the vectors in tests/vectors/cosign.
const MANIFEST: &[u8] = include_bytes!("../../../tests/vectors/cosign/manifest.json");
const COSIGN_PUB: &str = include_str!("../../../tests/vectors/cosign/cosign.pub");
const OTHER_PUB: &str = include_str!("../../../tests/vectors/cosign/other.pub");

fn image() -> ImageDigest {
    ImageDigest::of(MANIFEST)
}

fn key(pem: &str) -> PublicKey {
    PublicKey::from_pem(pem).unwrap()
}

/// By one of these keys, in no log.
fn by_keys(pems: &[&str]) -> Demand {
    Demand::Key {
        keys: pems.iter().map(|pem| key(pem)).collect(),
        log: KeyLog::NotAsked,
    }
}

fn simple(payload: &[u8], signature_b64: &str) -> StoredSignature {
    StoredSignature::Simple(SimpleSignature {
        payload: payload.to_vec(),
        signature_b64: signature_b64.to_owned(),
        annotations: BTreeMap::new(),
    })
}
