//! Signatures by key: every kind of key that cosign signs with, in a log where that is demanded.

use super::instance::{Instance, dsse_body, envelope, record_body};
use super::*;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::json;
use sigstore_verify::crypto::SigningScheme;

fn logged(instance: &Instance, key_pem: &str) -> Demand {
    Demand::Key {
        keys: vec![key(key_pem)],
        log: KeyLog::Demanded(Arc::new(
            TrustRoot::from_json(instance.root().to_string().as_bytes()).unwrap(),
        )),
    }
}

fn judge(demand: &Demand, stored: &StoredSignature) -> Result<Signed, SignatureRefusal> {
    verify(demand, stored, &[image()], NOW)
}

/// A bundle by `signer`, with a log entry that names `verifier`.
fn logged_bundle(instance: &Instance, signer: &KeyPair, verifier: &str) -> StoredSignature {
    let statement = sign_statement(&image());
    let signature = BASE64.encode(signer.sign(&to_sign(&statement)).unwrap());
    let entry = instance.entry(&dsse_body(&statement, &signature, verifier), NOW.secs() - 9);
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": { "publicKey": { "hint": "" }, "tlogEntries": [entry] },
        "dsseEnvelope": envelope(&statement, &signature),
    });
    StoredSignature::Bundle(bundle.to_string().into_bytes())
}

/// The same as a simple signature.
fn logged_simple(instance: &Instance, signer: &KeyPair, verifier: &str) -> StoredSignature {
    let payload = simple_payload("registry.example/app", &image()).unwrap();
    let signature_b64 = BASE64.encode(signer.sign(&payload).unwrap());
    let body = record_body(&payload, &signature_b64, verifier);
    let entry = instance.annotation(&body, NOW.secs() - 9);
    StoredSignature::Simple(SimpleSignature {
        payload,
        signature_b64,
        annotations: [("dev.sigstore.cosign/bundle".to_owned(), entry)].into(),
    })
}

#[test]
fn accept_own_bundle_in_cosigns_bytes() {
    let signer = KeyPair::generate().unwrap();
    let statement = sign_statement(&image());
    let spki = signer.subject_public_key_info();
    let signature = signer.sign(&to_sign(&statement)).unwrap();
    let stored = StoredSignature::Bundle(key_bundle(&statement, &signature, &spki));
    assert!(judge(&by_keys(&[&signer.public_key_pem()]), &stored).is_ok());
    // cosign's own, but for the signature and the key.
    let theirs: serde_json::Value = serde_json::from_slice(include_bytes!(
        "../../../../tests/vectors/cosign/bundle.json"
    ))
    .unwrap();
    assert_eq!(theirs["dsseEnvelope"]["payload"], BASE64.encode(&statement));
}

#[test]
fn accept_keys_that_cosign_signs_with() {
    use aws_lc_rs::signature as aws;
    let payload = simple_payload("registry.example/app", &image()).unwrap();
    let random = aws_lc_rs::rand::SystemRandom::new();
    for (algorithm, scheme) in [
        (
            &rcgen::PKCS_ECDSA_P384_SHA384,
            SigningScheme::EcdsaP384Sha384,
        ),
        (&rcgen::PKCS_ED25519, SigningScheme::Ed25519),
    ] {
        let signer = KeyPair::generate_for(algorithm).unwrap();
        let stored = simple(&payload, &BASE64.encode(signer.sign(&payload).unwrap()));
        assert!(
            judge(&by_keys(&[&signer.public_key_pem()]), &stored).is_ok(),
            "{scheme:?}"
        );
    }
    // cosign 2 signs with SHA-256 whatever the key.
    let payload_2 = include_bytes!("../../../../tests/vectors/cosign/payload.json");
    let signature = include_str!("../../../../tests/vectors/cosign/p384-sha256.b64");
    let p384 = include_str!("../../../../tests/vectors/cosign/p384.pub");
    let stored = simple(payload_2, signature);
    assert!(judge(&by_keys(&[p384]), &stored).is_ok());
    assert!(matches!(
        judge(
            &by_keys(&[&KeyPair::generate().unwrap().public_key_pem()]),
            &stored
        ),
        Err(SignatureRefusal::WrongKey(_))
    ));
    // RSA as cosign has it: PKCS #1 v1.5 and SHA-256.
    let rsa = aws::RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let mut signature = vec![0; rsa.public_modulus_len()];
    rsa.sign(&aws::RSA_PKCS1_SHA256, &random, &payload, &mut signature)
        .unwrap();
    use aws_lc_rs::{encoding::AsDer as _, signature::KeyPair as _};
    let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = rsa.public_key().as_der().unwrap();
    let pem = super::instance::pem(spki.as_ref()).replace("CERTIFICATE", "PUBLIC KEY");
    let stored = simple(&payload, &BASE64.encode(signature));
    assert!(judge(&by_keys(&[&pem]), &stored).is_ok());
}

#[test]
fn accept_key_in_the_log() {
    let (instance, signer) = (Instance::new(), KeyPair::generate().unwrap());
    let pem = signer.public_key_pem();
    for stored in [
        logged_bundle(&instance, &signer, &pem),
        logged_simple(&instance, &signer, &pem),
    ] {
        let signed = judge(&logged(&instance, &pem), &stored).unwrap();
        assert_eq!(signed.signer(), &Signer::Key(key(&pem).fingerprint()));
        assert_eq!(signed.log().unwrap().index, 7);
        // And where no log is asked for.
        assert_eq!(judge(&by_keys(&[&pem]), &stored).unwrap().log(), None);
        // Rekor's key alone, as a containers policy has it.
        let (_, rekor) = instance.pems();
        let demand = Demand::Key {
            keys: vec![key(&pem)],
            log: KeyLog::Demanded(Arc::new(TrustRoot::from_pems(&[], &[&rekor]).unwrap())),
        };
        assert!(judge(&demand, &stored).is_ok());
    }
}

#[test]
fn refuse_key_in_another_log_or_another_keys_entry() {
    let (instance, other) = (Instance::new(), Instance::new());
    let signer = KeyPair::generate().unwrap();
    let pem = signer.public_key_pem();
    let stranger = KeyPair::generate().unwrap().public_key_pem();
    for (stored, foreign) in [
        (
            logged_bundle(&instance, &signer, &pem),
            logged_bundle(&instance, &signer, &stranger),
        ),
        (
            logged_simple(&instance, &signer, &pem),
            logged_simple(&instance, &signer, &stranger),
        ),
    ] {
        assert!(matches!(
            judge(&logged(&other, &pem), &stored),
            Err(SignatureRefusal::Log(_))
        ));
        assert!(matches!(
            judge(&logged(&instance, &pem), &foreign),
            Err(SignatureRefusal::Log(_))
        ));
        assert!(matches!(
            judge(&logged(&instance, &stranger), &foreign),
            Err(SignatureRefusal::WrongKey(_))
        ));
    }
    let payload = simple_payload("registry.example/app", &image()).unwrap();
    let unlogged = simple(&payload, &BASE64.encode(signer.sign(&payload).unwrap()));
    assert_eq!(
        judge(&logged(&instance, &pem), &unlogged),
        Err(SignatureRefusal::NotLogged)
    );
}

#[test]
fn accept_attestation_of_cosign_2() {
    let signer = KeyPair::generate().unwrap();
    let kind = "https://cosign.sigstore.dev/attestation/vuln/v1";
    let statement = String::from_utf8(sign_statement(&image()))
        .unwrap()
        .replace(SIGN_PREDICATE, kind)
        .replace("/Statement/v1", "/Statement/v0.1");
    let signature = BASE64.encode(signer.sign(&to_sign(statement.as_bytes())).unwrap());
    let stored = StoredSignature::Envelope(StoredEnvelope {
        envelope: envelope(statement.as_bytes(), &signature)
            .to_string()
            .into_bytes(),
        annotations: BTreeMap::new(),
    });
    let demand = by_keys(&[&signer.public_key_pem()]);
    let attested = verify_attestation(&demand, &stored, &[image()], kind, NOW).unwrap();
    assert_eq!(attested.statement(), statement.as_bytes());
    assert!(judge(&demand, &stored).is_err());
    let simple = simple(b"{}", "");
    assert_eq!(
        verify_attestation(&demand, &simple, &[image()], kind, NOW),
        Err(SignatureRefusal::NotAStatement)
    );
}
