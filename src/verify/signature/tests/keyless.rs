//! Keyless signatures: certificate, certificate log, transparency log and identity, each gone wrong.

use super::instance::*;
use super::*;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::SanType;
use serde_json::{Value, json};

fn identity(issuer: &str, subject: Subject) -> Identity {
    Identity {
        issuer: Pattern::exact(issuer).unwrap(),
        subject,
    }
}

fn trust(instance: &Instance) -> Arc<TrustRoot> {
    trust_in(&instance.root())
}

fn trust_in(root: &Value) -> Arc<TrustRoot> {
    Arc::new(TrustRoot::from_json(root.to_string().as_bytes()).unwrap())
}

fn signed(instance: &Instance, leaf: &Leaf) -> Value {
    instance.bundle(leaf, &sign_statement(&image()), LOGGED)
}

fn simple_at(instance: &Instance, leaf: &Leaf, time: i64) -> SimpleSignature {
    let payload = payload("registry.example/app", &image().to_string());
    let (payload, signature_b64, annotations) = instance.simple(leaf, payload, time);
    SimpleSignature {
        payload,
        signature_b64,
        annotations,
    }
}

fn release() -> Identity {
    identity(ISSUER, Subject::Uri(Pattern::exact(SUBJECT).unwrap()))
}

fn demand(instance: &Instance) -> Demand {
    Demand::Keyless {
        root: trust(instance),
        identities: vec![release()],
        proofs: Proofs::LOGGED,
    }
}

fn bundle(value: &Value) -> StoredSignature {
    StoredSignature::Bundle(value.to_string().into_bytes())
}

fn judge(demand: &Demand, stored: &StoredSignature) -> Result<Signed, SignatureRefusal> {
    verify(demand, stored, &[image()], NOW)
}

fn both(instance: &Instance, leaf: &Leaf) -> [StoredSignature; 2] {
    [
        bundle(&signed(instance, leaf)),
        StoredSignature::Simple(simple_at(instance, leaf, LOGGED)),
    ]
}

#[test]
fn accept_own_instance() {
    let instance = Instance::new();
    for stored in both(&instance, &instance.leaf()) {
        let signed = judge(&demand(&instance), &stored).unwrap();
        assert_eq!(
            signed.signer().to_string(),
            format!("{SUBJECT} of {ISSUER}")
        );
        let logged = Logged {
            index: 7,
            at: Some(UnixTime::from_secs(LOGGED)),
        };
        assert_eq!(signed.log(), Some(logged));
        assert_eq!(signed.timestamps(), [UnixTime::from_secs(LOGGED)]);
    }
}

#[test]
fn accept_older_bundles() {
    let instance = Instance::new();
    let mut old = signed(&instance, &instance.leaf());
    let leaf = old["verificationMaterial"]["certificate"].clone();
    old["verificationMaterial"]["x509CertificateChain"] = json!({ "certificates": [leaf] });
    old["verificationMaterial"]
        .as_object_mut()
        .unwrap()
        .remove("certificate");
    for version in ["0.1", "0.2"] {
        old["mediaType"] = json!(format!(
            "application/vnd.dev.sigstore.bundle+json;version={version}"
        ));
        assert!(
            judge(&demand(&instance), &bundle(&old)).is_ok(),
            "{version}"
        );
    }
    for bad in ["0.4", "0.3"] {
        old["mediaType"] = json!(format!(
            "application/vnd.dev.sigstore.bundle+json;version={bad}"
        ));
        assert!(matches!(
            judge(&demand(&instance), &bundle(&old)),
            Err(SignatureRefusal::Malformed(_))
        ));
    }
}

#[test]
fn accept_email_identity() {
    let instance = Instance::new();
    let leaf = instance.leaf_with(|params| {
        let email = SanType::Rfc822Name("dev@acme.example".try_into().unwrap());
        params.subject_alt_names = vec![email];
    });
    for stored in both(&instance, &leaf) {
        let judge_as = |subject| {
            let demand = Demand::Keyless {
                root: trust(&instance),
                identities: vec![identity(ISSUER, subject)],
                proofs: Proofs::LOGGED,
            };
            judge(&demand, &stored)
        };
        let exact = || Pattern::exact("dev@acme.example").unwrap();
        assert!(judge_as(Subject::Email(exact())).is_ok());
        assert!(judge_as(Subject::Any(Pattern::regexp(".+@acme[.]example").unwrap())).is_ok());
        assert!(matches!(
            judge_as(Subject::Uri(exact())),
            Err(SignatureRefusal::WrongIdentity { .. })
        ));
    }
}

#[test]
fn refuse_certificate_that_had_expired_when_it_was_logged() {
    let instance = Instance::new();
    let leaf = instance.leaf();
    for time in [ISSUED - 1, ISSUED + 601] {
        for stored in [
            bundle(&instance.bundle(&leaf, &sign_statement(&image()), time)),
            StoredSignature::Simple(simple_at(&instance, &leaf, time)),
        ] {
            assert!(matches!(
                judge(&demand(&instance), &stored),
                Err(SignatureRefusal::NotInForce(_))
            ));
        }
    }
}

#[test]
fn refuse_missing_or_foreign_sct() {
    let (instance, other) = (Instance::new(), Instance::new());
    for stored in both(&instance, &instance.unseen_leaf()) {
        assert!(matches!(
            judge(&demand(&instance), &stored),
            Err(SignatureRefusal::Sct(_))
        ));
    }
    let mut root = instance.root();
    root["ctlogs"] = other.root()["ctlogs"].clone();
    let elsewhere = Demand::Keyless {
        root: trust_in(&root),
        identities: vec![release()],
        proofs: Proofs::LOGGED,
    };
    for stored in both(&instance, &instance.leaf()) {
        assert!(matches!(
            judge(&elsewhere, &stored),
            Err(SignatureRefusal::Sct(_))
        ));
    }
}

#[test]
fn refuse_certificate_of_another_authority_or_purpose() {
    let (instance, other) = (Instance::new(), Instance::new());
    // The other authority's certificate in our logs.
    let mut root = other.root();
    root["certificateAuthorities"] = instance.root()["certificateAuthorities"].clone();
    let mixed = Demand::Keyless {
        root: trust_in(&root),
        identities: vec![release()],
        proofs: Proofs::LOGGED,
    };
    for stored in both(&other, &other.leaf()) {
        assert!(matches!(
            judge(&mixed, &stored),
            Err(SignatureRefusal::Certificate(_))
        ));
    }
    let server = instance.leaf_with(|params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    for stored in both(&instance, &server) {
        assert!(matches!(
            judge(&demand(&instance), &stored),
            Err(SignatureRefusal::Certificate(_))
        ));
    }
}

#[test]
fn refuse_nameless_certificates() {
    let instance = Instance::new();
    let no_subject = instance.leaf_with(|params| {
        params.subject_alt_names = vec![SanType::DnsName("acme.example".try_into().unwrap())];
    });
    let no_issuer = instance.leaf_with(|params| params.custom_extensions.clear());
    for leaf in [no_subject, no_issuer] {
        for stored in both(&instance, &leaf) {
            assert!(matches!(
                judge(&demand(&instance), &stored),
                Err(SignatureRefusal::Nameless(_))
            ));
        }
    }
}

#[test]
fn refuse_wrong_log_missing_entry_or_unsigned_entry() {
    let (instance, other) = (Instance::new(), Instance::new());
    let good = signed(&instance, &instance.leaf());
    let mut root = instance.root();
    root["tlogs"] = other.root()["tlogs"].clone();
    let elsewhere = Demand::Keyless {
        root: trust_in(&root),
        identities: vec![release()],
        proofs: Proofs::LOGGED,
    };
    assert!(matches!(
        judge(&elsewhere, &bundle(&good)),
        Err(SignatureRefusal::Log(_))
    ));
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut bad = good.clone();
        edit(&mut bad["verificationMaterial"]["tlogEntries"]);
        judge(&demand(&instance), &bundle(&bad))
    };
    assert_eq!(
        edited(&|entries| *entries = json!([])),
        Err(SignatureRefusal::NotLogged)
    );
    let drop = |entries: &mut Value, field: &str| {
        entries[0].as_object_mut().unwrap().remove(field);
    };
    // A proof alone gives no time, a promise alone is not enough for this version.
    assert!(matches!(
        edited(&|entries| drop(entries, "inclusionPromise")),
        Err(SignatureRefusal::Time(_))
    ));
    assert!(matches!(
        edited(&|entries| drop(entries, "inclusionProof")),
        Err(SignatureRefusal::Malformed(_))
    ));
    assert!(matches!(
        edited(&|entries| {
            drop(entries, "inclusionProof");
            drop(entries, "inclusionPromise");
        }),
        Err(SignatureRefusal::Log(_))
    ));
    assert!(matches!(
        edited(&|entries| entries[0]["integratedTime"] = json!((LOGGED + 1).to_string())),
        Err(SignatureRefusal::Log(_))
    ));
    // A good entry beside one that nobody signed.
    assert!(matches!(
        edited(&|entries| {
            let mut second = entries[0].clone();
            second.as_object_mut().unwrap().remove("inclusionProof");
            second.as_object_mut().unwrap().remove("inclusionPromise");
            entries.as_array_mut().unwrap().push(second);
        }),
        Err(SignatureRefusal::Log(_))
    ));
    let mut simple = simple_at(&instance, &instance.leaf(), LOGGED);
    simple.annotations.remove("dev.sigstore.cosign/bundle");
    assert_eq!(
        judge(&demand(&instance), &StoredSignature::Simple(simple)),
        Err(SignatureRefusal::NotLogged)
    );
}

/// Each of two signatures satisfies half of the demand; no mixture of them satisfies it.
#[test]
fn refuse_two_halves() {
    let instance = Instance::new();
    let (right, wrong) = (
        instance.leaf(),
        instance.leaf_with(|params| {
            let other = format!("{SUBJECT}/other");
            params.subject_alt_names = vec![SanType::URI(other.as_str().try_into().unwrap())];
        }),
    );
    // The right identity about another image; another identity about the right image.
    let elsewhere = sign_statement(&ImageDigest::of(b"another"));
    let first = instance.bundle(&right, &elsewhere, LOGGED);
    let second = signed(&instance, &wrong);
    assert!(judge(&demand(&instance), &bundle(&first)).is_err());
    assert!(judge(&demand(&instance), &bundle(&second)).is_err());
    // What says who from the one, what says which image from the other.
    for parts in [
        &["dsseEnvelope"][..],
        &["verificationMaterial/tlogEntries", "dsseEnvelope"],
        &["verificationMaterial/tlogEntries"],
        &["verificationMaterial/certificate"],
    ] {
        let mut mixed = first.clone();
        for part in parts {
            let pointer = format!("/{part}");
            *mixed.pointer_mut(&pointer).unwrap() = second.pointer(&pointer).unwrap().clone();
        }
        assert!(
            judge(&demand(&instance), &bundle(&mixed)).is_err(),
            "{parts:?}"
        );
    }
    // Issuer of one identity, subject of another.
    let demand = Demand::Keyless {
        root: trust(&instance),
        identities: vec![
            identity(
                ISSUER,
                Subject::Uri(Pattern::exact("https://other.example").unwrap()),
            ),
            identity("https://other.example", release().subject),
        ],
        proofs: Proofs::LOGGED,
    };
    for stored in both(&instance, &right) {
        assert!(matches!(
            judge(&demand, &stored),
            Err(SignatureRefusal::WrongIdentity { .. })
        ));
    }
}

#[test]
fn refuse_other_digest_predicate_or_payload_type() {
    let instance = Instance::new();
    let leaf = instance.leaf();
    let another = ImageDigest::of(b"another");
    for stored in both(&instance, &leaf) {
        assert_eq!(
            verify(&demand(&instance), &stored, &[another], NOW),
            Err(SignatureRefusal::OtherImage(image()))
        );
    }
    let scan = String::from_utf8(sign_statement(&image())).unwrap();
    let scan = scan.replace(
        SIGN_PREDICATE,
        "https://cosign.sigstore.dev/attestation/vuln/v1",
    );
    let scanned = bundle(&instance.bundle(&leaf, scan.as_bytes(), LOGGED));
    assert!(matches!(
        judge(&demand(&instance), &scanned),
        Err(SignatureRefusal::OtherPredicate { .. })
    ));
    let kind = "https://cosign.sigstore.dev/attestation/vuln/v1";
    assert!(verify_attestation(&demand(&instance), &scanned, &[image()], kind, NOW).is_ok());
    let mut other = signed(&instance, &leaf);
    other["dsseEnvelope"]["payloadType"] = json!("application/json");
    assert!(matches!(
        judge(&demand(&instance), &bundle(&other)),
        Err(SignatureRefusal::WrongStatement(_))
    ));
}

#[test]
fn refuse_corrupt_bundles() {
    let instance = Instance::new();
    let demand = demand(&instance);
    let good = signed(&instance, &instance.leaf());
    let text = good.to_string();
    for bad in [&text[1..], &text[..text.len() - 1], &format!("{text}{{}}")] {
        let stored = StoredSignature::Bundle(bad.as_bytes().to_vec());
        assert!(matches!(
            judge(&demand, &stored),
            Err(SignatureRefusal::Malformed(_))
        ));
    }
    // Two signatures in one envelope: which would the log's entry be about?
    let mut two = good.clone();
    let first = two["dsseEnvelope"]["signatures"][0].clone();
    two["dsseEnvelope"]["signatures"]
        .as_array_mut()
        .unwrap()
        .push(first);
    assert!(matches!(
        judge(&demand, &bundle(&two)),
        Err(SignatureRefusal::Malformed(_))
    ));
    // Any byte of what is signed by somebody.
    for pointer in [
        "/dsseEnvelope/payload",
        "/dsseEnvelope/signatures/0/sig",
        "/verificationMaterial/certificate/rawBytes",
        "/verificationMaterial/tlogEntries/0/canonicalizedBody",
        "/verificationMaterial/tlogEntries/0/inclusionPromise/signedEntryTimestamp",
        "/verificationMaterial/tlogEntries/0/inclusionProof/rootHash",
    ] {
        let content = BASE64
            .decode(good.pointer(pointer).unwrap().as_str().unwrap())
            .unwrap();
        for at in (0..content.len()).step_by(7) {
            let mut altered = content.clone();
            altered[at] ^= 1;
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = json!(BASE64.encode(altered));
            assert!(judge(&demand, &bundle(&bad)).is_err(), "{pointer} {at}");
        }
    }
}

/// policy.json's `fulcio` and `rekorPublicKey`: PEM files, and no certificate log.
#[test]
fn accept_pems_of_a_containers_policy() {
    let (instance, other) = (Instance::new(), Instance::new());
    let judge_by = |(authority, log): (&str, &str), stored: &StoredSignature| {
        let demand = Demand::Keyless {
            root: Arc::new(TrustRoot::from_pems(&[authority], &[log]).unwrap()),
            identities: vec![release()],
            proofs: Proofs {
                sct: Need::NotAsked,
                ..Proofs::LOGGED
            },
        };
        judge(&demand, stored)
    };
    let (ours, theirs) = (instance.pems(), other.pems());
    for stored in both(&instance, &instance.leaf()) {
        assert!(judge_by((&ours.0, &ours.1), &stored).is_ok());
        assert!(judge_by((&theirs.0, &ours.1), &stored).is_err());
        assert!(judge_by((&ours.0, &theirs.1), &stored).is_err());
    }
}
