//! What cosign and the public-good instance made; see the README.md of tests/vectors.

use super::*;
use sigstore_verify::trust_root::{
    SIGSTORE_PRODUCTION_TRUSTED_ROOT, SIGSTORE_STAGING_TRUSTED_ROOT,
};

const BUNDLE: &[u8] = include_bytes!("../../../../tests/vectors/cosign/bundle.json");
const ATTESTATION: &[u8] = include_bytes!("../../../../tests/vectors/cosign/attestation.json");
const KEYLESS: &[u8] = include_bytes!("../../../../tests/vectors/cosign/keyless/bundle.json");
const PAYLOAD: &[u8] = include_bytes!("../../../../tests/vectors/cosign/keyless/payload.json");
const ANNOTATIONS: &str = include_str!("../../../../tests/vectors/cosign/keyless/annotations.json");
const ROOT: &[u8] = include_bytes!("../../../../tests/vectors/cosign/keyless/trusted_root.json");
const REKOR2: &[u8] = include_bytes!("../../../../tests/vectors/sigstore/rekor2.json");

const WORKFLOW: &str = "https://github.com/acme/app/.github/workflows/release.yml@refs/heads/main";
const GITHUB: &str = "https://token.actions.githubusercontent.com";

fn by_workflow(root: &[u8], issuer: &str, subject: Subject, proofs: Proofs) -> Demand {
    Demand::Keyless {
        root: Arc::new(TrustRoot::from_json(root).unwrap()),
        identities: vec![Identity {
            issuer: Pattern::exact(issuer).unwrap(),
            subject,
        }],
        proofs,
    }
}

fn workflow() -> Subject {
    Subject::Uri(Pattern::exact(WORKFLOW).unwrap())
}

fn keyless_simple() -> StoredSignature {
    let mut annotations: BTreeMap<String, String> = serde_json::from_str(ANNOTATIONS).unwrap();
    let signature_b64 = annotations
        .remove("dev.cosignproject.cosign/signature")
        .unwrap();
    StoredSignature::Simple(SimpleSignature {
        payload: PAYLOAD.to_vec(),
        signature_b64,
        annotations,
    })
}

#[test]
fn accept_cosigns_bundle_by_key() {
    let stored = StoredSignature::Bundle(BUNDLE.to_vec());
    let signed = verify(&by_keys(&[OTHER_PUB, COSIGN_PUB]), &stored, &[image()], NOW).unwrap();
    assert_eq!(signed.signer(), &Signer::Key(key(COSIGN_PUB).fingerprint()));
    assert_eq!(signed.image(), image());
    assert_eq!(signed.docker_reference(), None);
    assert_eq!(signed.log(), None);
}

#[test]
fn refuse_wrong_key_wrong_digest_or_corrupt_bundle() {
    let judge = |pem, bytes: &[u8], image| {
        let stored = StoredSignature::Bundle(bytes.to_vec());
        verify(&by_keys(&[pem]), &stored, &[image], NOW)
    };
    assert!(matches!(
        judge(OTHER_PUB, BUNDLE, image()),
        Err(SignatureRefusal::WrongKey(_))
    ));
    assert_eq!(
        judge(COSIGN_PUB, BUNDLE, ImageDigest::of(b"another")),
        Err(SignatureRefusal::OtherImage(image()))
    );
    let trailing = [BUNDLE, b"{}"].concat();
    for bad in [&b""[..], b"{}", &BUNDLE[1..], &trailing] {
        assert!(matches!(
            judge(COSIGN_PUB, bad, image()),
            Err(SignatureRefusal::Malformed(_))
        ));
    }
    for at in 0..BUNDLE.len() {
        let mut altered = BUNDLE.to_vec();
        altered[at] ^= 0x10;
        // Some bytes are in the hint or the signature's padding bits and say nothing.
        if let Ok(signed) = judge(COSIGN_PUB, &altered, image()) {
            assert_eq!(signed.signer(), &Signer::Key(key(COSIGN_PUB).fingerprint()));
        }
    }
}

/// `cosign verify` takes it for an image signature, whatever its predicate says.
#[test]
fn refuse_other_predicate_as_image_signature() {
    let about: ImageDigest =
        "sha256:c4c6e7cd95ed6c17d5f39407b710f8d146e5b2d88b514f014a18d826fd7344b3"
            .parse()
            .unwrap();
    let stored = StoredSignature::Bundle(ATTESTATION.to_vec());
    let demand = by_keys(&[COSIGN_PUB]);
    assert!(matches!(
        verify(&demand, &stored, &[about], NOW),
        Err(SignatureRefusal::WrongStatement(_) | SignatureRefusal::OtherPredicate { .. })
    ));
    let scan = "https://example.com/scan/v1";
    let attested = verify_attestation(&demand, &stored, &[about], scan, NOW).unwrap();
    assert_eq!(attested.predicate()["verdict"], "MALWARE FOUND");
    assert_eq!(attested.signed().image(), about);
    assert!(matches!(
        verify_attestation(
            &demand,
            &stored,
            &[about],
            "https://example.com/scan/v2",
            NOW
        ),
        Err(SignatureRefusal::OtherPredicate { .. })
    ));
    // And an image signature is not an attestation of another type.
    let signature = StoredSignature::Bundle(BUNDLE.to_vec());
    assert!(matches!(
        verify_attestation(&demand, &signature, &[image()], scan, NOW),
        Err(SignatureRefusal::OtherPredicate { .. })
    ));
}

#[test]
fn accept_cosigns_keyless_signatures_in_both_formats() {
    let demand = by_workflow(ROOT, GITHUB, workflow(), Proofs::LOGGED);
    for (stored, reference) in [
        (StoredSignature::Bundle(KEYLESS.to_vec()), None),
        (keyless_simple(), Some("127.0.0.1:5511/kl")),
    ] {
        let signed = verify(&demand, &stored, &[image()], NOW).unwrap();
        let Signer::Identity {
            subject, issuer, ..
        } = signed.signer()
        else {
            panic!("{:?}", signed.signer());
        };
        assert_eq!((subject.as_str(), issuer.as_str()), (WORKFLOW, GITHUB));
        assert_eq!(signed.docker_reference(), reference);
        assert!(signed.log().unwrap().at.is_some());
        assert_eq!(signed.timestamps().len(), 1);
    }
}

#[test]
fn refuse_wrong_identity_issuer_kind_or_root() {
    let other = String::from_utf8(ROOT.to_vec()).unwrap();
    // Another log, another certificate log: their keys are each other's.
    let keys: serde_json::Value = serde_json::from_str(&other).unwrap();
    let swap = |list: &str, from: &str| {
        let mut root = keys.clone();
        root[list][0]["publicKey"]["rawBytes"] = keys[from][0]["publicKey"]["rawBytes"].clone();
        root.to_string().into_bytes()
    };
    let email = Subject::Email(Pattern::exact(WORKFLOW).unwrap());
    let near = Subject::Uri(Pattern::exact(&WORKFLOW.replace("acme", "acmf")).unwrap());
    let part = Subject::Any(Pattern::regexp("https://github.com/acme/").unwrap());
    for stored in [StoredSignature::Bundle(KEYLESS.to_vec()), keyless_simple()] {
        let judge = |root: &[u8], issuer: &str, subject| {
            let demand = by_workflow(root, issuer, subject, Proofs::LOGGED);
            verify(&demand, &stored, &[image()], NOW)
        };
        for (issuer, subject) in [
            (GITHUB, email.clone()),
            (GITHUB, near.clone()),
            (GITHUB, part.clone()),
            ("https://accounts.example", workflow()),
        ] {
            assert!(matches!(
                judge(ROOT, issuer, subject),
                Err(SignatureRefusal::WrongIdentity { .. })
            ));
        }
        assert!(matches!(
            judge(&swap("tlogs", "ctlogs"), GITHUB, workflow()),
            Err(SignatureRefusal::Log(_))
        ));
        assert!(matches!(
            judge(&swap("ctlogs", "tlogs"), GITHUB, workflow()),
            Err(SignatureRefusal::Sct(_))
        ));
        let public = SIGSTORE_PRODUCTION_TRUSTED_ROOT.as_bytes();
        assert!(judge(public, GITHUB, workflow()).is_err());
        let before = UnixTime::from_secs(1_795_000_000);
        let demand = by_workflow(ROOT, GITHUB, workflow(), Proofs::LOGGED);
        assert!(matches!(
            verify(&demand, &stored, &[image()], before),
            Err(SignatureRefusal::Future(_))
        ));
        assert!(matches!(
            verify(&by_keys(&[COSIGN_PUB]), &stored, &[image()], NOW),
            Err(SignatureRefusal::WrongKey(_))
        ));
    }
    let keyed = StoredSignature::Bundle(BUNDLE.to_vec());
    let demand = by_workflow(ROOT, GITHUB, workflow(), Proofs::LOGGED);
    assert_eq!(
        verify(&demand, &keyed, &[image()], NOW),
        Err(SignatureRefusal::NotKeyless)
    );
}

/// Rekor's second version gives no time; the timestamp authority does.
#[test]
fn accept_rekor_2_with_timestamp() {
    let about: ImageDigest =
        "sha256:54303491a8418fbed24344b513546182c29b43bf282ceb433af65e2299f9271f"
            .parse()
            .unwrap();
    let anyone = Subject::Email(Pattern::regexp(".+@.+").unwrap());
    let github = "https://github.com/login/oauth";
    let stamped = Proofs {
        timestamp: Need::Demanded,
        ..Proofs::LOGGED
    };
    let root = SIGSTORE_STAGING_TRUSTED_ROOT.as_bytes();
    let demand = by_workflow(root, github, anyone.clone(), stamped);
    let kind = "https://schemas.conda.org/attestations-publish-1.schema.json";
    let stored = StoredSignature::Bundle(REKOR2.to_vec());
    let attested = verify_attestation(&demand, &stored, &[about], kind, NOW).unwrap();
    let log = attested.signed().log().unwrap();
    assert_eq!(log.at, None);
    assert_eq!(attested.signed().timestamps().len(), 1);

    // Without the authority nobody knows when.
    let mut root: serde_json::Value = serde_json::from_slice(root).unwrap();
    root["timestampAuthorities"] = serde_json::json!([]);
    let root = root.to_string().into_bytes();
    let demand = by_workflow(&root, github, anyone.clone(), Proofs::LOGGED);
    assert!(matches!(
        verify_attestation(&demand, &stored, &[about], kind, NOW),
        Err(SignatureRefusal::Time(_))
    ));
    let demand = by_workflow(&root, github, anyone, stamped);
    assert_eq!(
        verify_attestation(&demand, &stored, &[about], kind, NOW),
        Err(SignatureRefusal::NoAuthority("timestamp authority"))
    );
}
