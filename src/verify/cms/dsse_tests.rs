//! Bundles accepted and refused; the chain's own refusals are the CMS tests', by the same code.

use super::*;
use crate::cms::{Revocation, VerifiedSigner, verify_detached};
use crate::testkit::{NOW, TENANT, User, UserCa, user_ca};
use rcgen::{IsCa, SigningKey};
use serde_json::{Value, json};

const CONTENT: &[u8] = br#"{"the":"list"}"#;

fn bundle(user: &User) -> Vec<u8> {
    build_bundle(CONTENT, &user.der, &user.chain, |m| user.key.sign(m)).unwrap()
}

fn check(ca: &UserCa, signature: &[u8]) -> Result<VerifiedSigner, CmsRefusal> {
    verify_detached(CONTENT, signature, &ca.roots(), NOW, &Revocation::Unchecked)
}

fn edited(bundle: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(bundle).unwrap();
    edit(&mut value);
    value.to_string().into_bytes()
}

#[test]
fn accept_bundle_whole_and_detached() {
    let ca = user_ca();
    let whole = bundle(&ca.user());
    assert_eq!(check(&ca, &whole).unwrap().tenant(), TENANT);
    let (statement, detached) = detach(&whole).unwrap();
    assert_eq!(statement, CONTENT);
    assert!(detached.len() + CONTENT.len() <= whole.len());
    assert_eq!(check(&ca, &detached).unwrap().tenant(), TENANT);
    // what others add is not looked at
    let logged = edited(&whole, |b| {
        b["verificationMaterial"]["tlogEntries"] = json!([{"logIndex": "1"}]);
    });
    assert!(check(&ca, &logged).is_ok());
}

#[test]
fn refuse_every_flipped_bit_of_the_signature() {
    let ca = user_ca();
    let whole = bundle(&ca.user());
    let text =
        serde_json::from_slice::<Value>(&whole).unwrap()["dsseEnvelope"]["signatures"][0]["sig"]
            .clone();
    let good = BASE64.decode(text.as_str().unwrap()).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let bad = edited(&whole, |b| {
            b["dsseEnvelope"]["signatures"][0]["sig"] = json!(BASE64.encode(&bad));
        });
        assert_eq!(check(&ca, &bad), Err(CmsRefusal::Signature), "bit {bit}");
    }
}

#[test]
fn refuse_other_content_type_and_signers() {
    let ca = user_ca();
    let whole = bundle(&ca.user());
    let (_, detached) = detach(&whole).unwrap();
    let other = |signature: &[u8]| {
        verify_detached(b"{}", signature, &ca.roots(), NOW, &Revocation::Unchecked)
    };
    assert!(matches!(
        other(&whole),
        Err(CmsRefusal::AlteredContent { .. })
    ));
    assert_eq!(other(&detached), Err(CmsRefusal::Signature));
    let envelope = |edit: &dyn Fn(&mut Value)| {
        let bad = edited(&whole, |b| edit(&mut b["dsseEnvelope"]));
        check(&ca, &bad).unwrap_err()
    };
    assert!(matches!(
        envelope(&|e| e["payloadType"] = json!("application/json")),
        CmsRefusal::Bundle(_)
    ));
    assert_eq!(
        envelope(&|e| {
            let one = e["signatures"][0].clone();
            e["signatures"] = json!([one, one]);
        }),
        CmsRefusal::Signers(2)
    );
    assert_eq!(
        envelope(&|e| e["signatures"] = json!([])),
        CmsRefusal::Signers(0)
    );
    let media = edited(&whole, |b| b["mediaType"] = json!("application/json"));
    assert!(matches!(check(&ca, &media), Err(CmsRefusal::Bundle(_))));
    let twice = String::from_utf8(whole).unwrap().replacen(
        "\"mediaType\"",
        "\"dsseEnvelope\":{\"payload\":\"\",\"payloadType\":\"\",\"signatures\":[]},\"mediaType\"",
        1,
    );
    assert!(matches!(
        check(&ca, twice.as_bytes()),
        Err(CmsRefusal::Bundle(_))
    ));
}

/// The certificate travels beside the signature: the user CA decides whose it may be.
#[test]
fn refuse_certificates_that_are_missing_foreign_or_swapped() {
    let (ca, other) = (user_ca(), user_ca());
    let user = ca.user();
    let whole = bundle(&user);
    assert!(matches!(
        check(&other, &whole),
        Err(CmsRefusal::Untrusted { .. })
    ));
    let material = |value: Value| {
        let bad = edited(&whole, |b| b["verificationMaterial"] = value.clone());
        check(&ca, &bad).unwrap_err()
    };
    assert!(matches!(
        material(json!({"publicKey": {"hint": ""}})),
        CmsRefusal::Bundle(_)
    ));
    assert_eq!(
        material(json!({"x509CertificateChain": {"certificates": []}})),
        CmsRefusal::SignerCertificate(0)
    );
    // another good user of the same CA did not sign this
    let swapped = BASE64.encode(&ca.user().der);
    assert_eq!(
        material(json!({"certificate": {"rawBytes": swapped}})),
        CmsRefusal::Signature
    );
    let ca_leaf = ca.user_with(|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert!(check(&ca, &bundle(&ca_leaf)).is_err());
}

#[test]
fn refuse_building_with_another_key() {
    let ca = user_ca();
    let (user, other) = (ca.user(), ca.user());
    let built = build_bundle(CONTENT, &user.der, &user.chain, |m| other.key.sign(m));
    assert!(matches!(built, Err(BuildError::OtherKey)));
}
