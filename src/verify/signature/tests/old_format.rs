//! Simple signing by key: cosign's and skopeo's payloads.

use super::super::simple::PAYLOAD_TYPE;
use super::*;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

// Made by cosign 3.1.1; see tests/vectors/cosign/README.md.
const PAYLOAD: &[u8] = include_bytes!("../../../../tests/vectors/cosign/payload.json");
const SIGNATURE: &str = include_str!("../../../../tests/vectors/cosign/signature.b64");

fn judge(pem: &str, payload: &[u8], signature: &str) -> Result<Signed, SignatureRefusal> {
    let stored = simple(payload, signature);
    verify(&by_keys(&[pem]), &stored, &[image()], NOW)
}

fn signature() -> &'static str {
    SIGNATURE.trim_end()
}

#[test]
fn accept_cosign() {
    let signed = judge(COSIGN_PUB, PAYLOAD, signature()).unwrap();
    assert_eq!(signed.docker_reference(), Some("127.0.0.1:5511/demo"));
    assert_eq!(signed.image(), image());
    let signer = Signer::Key(key(COSIGN_PUB).fingerprint());
    assert_eq!(signed.signer(), &signer);
}

#[test]
fn accept_own_payload() {
    let key = image_key();
    let image = ImageDigest::of(MANIFEST);
    let payload = simple_payload("localhost/demo", &image).unwrap();
    let signed = judge(&key.public_pem(), &payload, &key.sign_base64(&payload)).unwrap();
    assert_eq!(signed.docker_reference(), Some("localhost/demo"));
}

#[test]
fn accept_optional_claims_of_skopeo() {
    let key = image_key();
    let payload = format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"h/sk:v1"}},"image":{{"docker-manifest-digest":"{}"}},"type":"{PAYLOAD_TYPE}"}},"optional":{{"creator":"containers/image 5.39.1","timestamp":1795423070}}}}"#,
        ImageDigest::of(MANIFEST)
    );
    let signature = key.sign_base64(payload.as_bytes());
    assert!(judge(&key.public_pem(), payload.as_bytes(), &signature).is_ok());
}

#[test]
fn refuse_wrong_key() {
    assert!(matches!(
        judge(OTHER_PUB, PAYLOAD, signature()),
        Err(SignatureRefusal::WrongKey(_))
    ));
}

#[test]
fn refuse_wrong_digest() {
    let demand = by_keys(&[COSIGN_PUB]);
    let stored = simple(PAYLOAD, signature());
    assert_eq!(
        verify(&demand, &stored, &[ImageDigest::of(b"another")], NOW),
        Err(SignatureRefusal::OtherImage(image()))
    );
}

#[test]
fn refuse_altered_payload_or_signature_in_any_bit() {
    for bit in 0..PAYLOAD.len() * 8 {
        let mut altered = PAYLOAD.to_vec();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(
            judge(COSIGN_PUB, &altered, signature()),
            Err(SignatureRefusal::WrongKey(_))
        ));
    }
    let raw = BASE64.decode(signature()).unwrap();
    for bit in 0..raw.len() * 8 {
        let mut altered = raw.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(judge(COSIGN_PUB, PAYLOAD, &BASE64.encode(altered)).is_err());
    }
}

#[test]
fn refuse_corrupt_base64() {
    for bad in [
        "%%%",
        "MEUC=IF",
        &signature()[1..],
        &format!("{}\n", signature()),
    ] {
        assert_eq!(
            judge(COSIGN_PUB, PAYLOAD, bad),
            Err(SignatureRefusal::NotBase64),
            "{bad:?}"
        );
    }
    assert!(matches!(
        judge(COSIGN_PUB, PAYLOAD, ""),
        Err(SignatureRefusal::WrongKey(_))
    ));
}

#[test]
fn refuse_wrong_type_and_malformed_payloads() {
    let key = image_key();
    let good = String::from_utf8(PAYLOAD.to_vec()).unwrap();
    let signed = |payload: &str| {
        judge(
            &key.public_pem(),
            payload.as_bytes(),
            &key.sign_base64(payload.as_bytes()),
        )
    };
    assert!(signed(&good).is_ok());
    assert!(matches!(
        signed(&good.replace("cosign container", "atomic container")),
        Err(SignatureRefusal::WrongType(_))
    ));
    for bad in [
        "".to_owned(),
        "{}".to_owned(),
        format!("{good}x"),
        good.replace("\"critical\":{", "\"critical\":{\"extra\":1,"),
        good.replace("\"critical\":{", "\"critical\":{\"type\":\"x\","),
        good.replace("sha256:a6", "sha256:A6"),
        good.replace("\"optional\":null", "\"optional\":[]"),
    ] {
        assert!(
            matches!(signed(&bad), Err(SignatureRefusal::Malformed(_))),
            "{bad}"
        );
    }
    assert!(matches!(
        signed(&" ".repeat(MAX_PAYLOAD + 1)),
        Err(SignatureRefusal::TooLong(_))
    ));
}

#[test]
fn refuse_unusable_keys() {
    assert_eq!(
        PublicKey::from_pem("").unwrap_err(),
        KeyError::NotAPublicKey
    );
    assert_eq!(
        PublicKey::from_pem(&COSIGN_PUB.replace("PUBLIC", "PRIVATE")).unwrap_err(),
        KeyError::NotAPublicKey
    );
    let broken = COSIGN_PUB.replace("MFkw", "MFkx");
    assert!(matches!(
        PublicKey::from_pem(&broken),
        Err(KeyError::Unsupported(_))
    ));
}
