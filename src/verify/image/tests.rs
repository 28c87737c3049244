//! Manifests as cosign's vector has them, and each way to be refused.

use super::*;

const MANIFEST: &[u8] = include_bytes!("../../../tests/vectors/cosign/manifest.json");
const CONFIG: &[u8] = include_bytes!("../../../tests/vectors/cosign/config.json");

fn claimed() -> ClaimedImage {
    ClaimedImage {
        name: "127.0.0.1:5511/demo:v1".into(),
        manifest_bytes: MANIFEST.to_vec(),
        config_bytes: CONFIG.to_vec(),
        index_bytes: vec![],
    }
}
fn index_of(digest: ImageDigest) -> Vec<u8> {
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "size": 560, "digest": digest,
         "platform": {"os": "linux", "architecture": "amd64"}}]})
    .to_string()
    .into_bytes()
}
/// The manifest with `edit` applied to its JSON.
fn manifest_with(edit: impl FnOnce(&mut serde_json::Value)) -> Result<Manifest, ImageError> {
    let mut value: serde_json::Value = serde_json::from_slice(MANIFEST).unwrap();
    edit(&mut value);
    Manifest::parse(value.to_string().as_bytes())
}

#[test]
fn accept_image_with_index() {
    let manifest = ImageDigest::of(MANIFEST);
    let mut claim = claimed();
    claim.index_bytes = vec![index_of(manifest), index_of(manifest)];
    let image = Image::of(&claim).unwrap();
    assert_eq!(
        image.manifest_digest().to_string(),
        "sha256:a6771a42ba8362b79b9df4d97fcbf0353e39ee71990dfe901ea9c0f467e29ecf"
    );
    assert_eq!(image.diff_ids().len(), 2);
    let index = ImageDigest::of(&index_of(manifest));
    assert_eq!(image.digests(), [manifest, index]);
}

#[test]
fn accept_docker_schema_2() {
    let docker = manifest_with(|m| {
        m["mediaType"] = DOCKER_MANIFEST.into();
        m["config"]["mediaType"] = DOCKER_CONFIG.into();
    });
    assert!(docker.is_ok());
}

#[test]
fn refuse_other_config() {
    let mut claim = claimed();
    claim.config_bytes.push(b'\n');
    assert!(matches!(
        Image::of(&claim),
        Err(ImageError::OtherConfig { .. })
    ));
}

#[test]
fn refuse_index_of_other_image() {
    let mut claim = claimed();
    claim.index_bytes = vec![index_of(ImageDigest::of(b"another"))];
    assert!(matches!(
        Image::of(&claim),
        Err(ImageError::NotInIndex { .. })
    ));
}

#[test]
fn refuse_layer_count() {
    let manifest = {
        let mut m: serde_json::Value = serde_json::from_slice(MANIFEST).unwrap();
        m["layers"].as_array_mut().unwrap().pop();
        m.to_string().into_bytes()
    };
    let mut claim = claimed();
    claim.manifest_bytes = manifest;
    assert_eq!(
        Image::of(&claim),
        Err(ImageError::LayerCount {
            layers: 1,
            diff_ids: 2
        })
    );
}

#[test]
fn refuse_malformed_documents() {
    assert!(matches!(
        manifest_with(|m| m["schemaVersion"] = 1.into()),
        Err(ImageError::Schema { found: 1, .. })
    ));
    assert!(matches!(
        manifest_with(|m| m["mediaType"] = OCI_INDEX.into()),
        Err(ImageError::MediaType { .. })
    ));
    assert!(matches!(
        manifest_with(|m| m["manifests"] = serde_json::json!([])),
        Err(ImageError::Ambiguous {
            field: "manifests",
            ..
        })
    ));
    assert!(matches!(
        manifest_with(|m| m["layers"][0]["digest"] = "sha512:00".into()),
        Err(ImageError::Digest { .. })
    ));
    assert!(matches!(
        manifest_with(|m| m["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into()),
        Err(ImageError::MediaType { .. })
    ));
    let twice =
        String::from_utf8(MANIFEST.to_vec())
            .unwrap()
            .replacen('{', r#"{"schemaVersion":2,"#, 1);
    assert!(matches!(
        Manifest::parse(twice.as_bytes()),
        Err(ImageError::Malformed { .. })
    ));
    let trailing = [MANIFEST, b"{}"].concat();
    assert!(matches!(
        Manifest::parse(&trailing),
        Err(ImageError::Malformed { .. })
    ));
    assert!(matches!(
        Manifest::parse(&vec![b' '; MAX_DOCUMENT + 1]),
        Err(ImageError::TooLong { .. })
    ));
}
