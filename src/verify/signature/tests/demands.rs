//! Nothing means "don't check": a demand that names nobody is satisfied by nothing.

use super::*;

const ROOT: &str = include_str!("../../../../tests/vectors/cosign/keyless/trusted_root.json");
const BUNDLE: &[u8] = include_bytes!("../../../../tests/vectors/cosign/bundle.json");
const KEYLESS: &[u8] = include_bytes!("../../../../tests/vectors/cosign/keyless/bundle.json");

fn anybody() -> Vec<Identity> {
    vec![Identity {
        issuer: Pattern::regexp(".*").unwrap(),
        subject: Subject::Any(Pattern::regexp(".*").unwrap()),
    }]
}

/// The root without one of its lists.
fn root_without(list: &str) -> Arc<TrustRoot> {
    let mut root: serde_json::Value = serde_json::from_str(ROOT).unwrap();
    root[list] = serde_json::json!([]);
    Arc::new(TrustRoot::from_json(root.to_string().as_bytes()).unwrap())
}

fn keyless(root: Arc<TrustRoot>, identities: Vec<Identity>, proofs: Proofs) -> Demand {
    Demand::Keyless {
        root,
        identities,
        proofs,
    }
}

fn judge(demand: &Demand, bundle: &[u8]) -> Result<Signed, SignatureRefusal> {
    let stored = StoredSignature::Bundle(bundle.to_vec());
    verify(demand, &stored, &[image()], NOW)
}

#[test]
fn refuse_no_keys() {
    assert_eq!(judge(&by_keys(&[]), BUNDLE), Err(SignatureRefusal::NoKeys));
}

#[test]
fn refuse_no_identities() {
    let root = root_without("timestampAuthorities");
    assert_eq!(
        judge(&keyless(root.clone(), Vec::new(), Proofs::LOGGED), KEYLESS),
        Err(SignatureRefusal::NoIdentities)
    );
    assert!(judge(&keyless(root, anybody(), Proofs::LOGGED), KEYLESS).is_ok());
}

#[test]
fn refuse_no_image() {
    let stored = StoredSignature::Bundle(BUNDLE.to_vec());
    let demand = by_keys(&[COSIGN_PUB]);
    assert_eq!(
        verify(&demand, &stored, &[], NOW),
        Err(SignatureRefusal::NoImage)
    );
    assert_eq!(
        verify_attestation(&demand, &stored, &[], SIGN_PREDICATE, NOW),
        Err(SignatureRefusal::NoImage)
    );
}

#[test]
fn refuse_no_logs() {
    let log = KeyLog::Demanded(root_without("tlogs"));
    let keys = vec![key(COSIGN_PUB)];
    assert_eq!(
        judge(&Demand::Key { keys, log }, BUNDLE),
        Err(SignatureRefusal::NoAuthority("transparency log"))
    );
    assert_eq!(
        judge(
            &keyless(root_without("tlogs"), anybody(), Proofs::LOGGED),
            KEYLESS
        ),
        Err(SignatureRefusal::NoAuthority("transparency log"))
    );
    // Not demanded, but then nothing says when.
    let unlogged = Proofs {
        log: Need::NotAsked,
        ..Proofs::LOGGED
    };
    assert!(matches!(
        judge(
            &keyless(root_without("tlogs"), anybody(), unlogged),
            KEYLESS
        ),
        Err(SignatureRefusal::Time(_))
    ));
}

#[test]
fn refuse_no_certificate_authorities_or_logs() {
    for (list, what) in [
        ("certificateAuthorities", "certificate authority"),
        ("ctlogs", "certificate log"),
    ] {
        assert_eq!(
            judge(
                &keyless(root_without(list), anybody(), Proofs::LOGGED),
                KEYLESS
            ),
            Err(SignatureRefusal::NoAuthority(what))
        );
    }
    let without_sct = Proofs {
        sct: Need::NotAsked,
        ..Proofs::LOGGED
    };
    assert!(
        judge(
            &keyless(root_without("ctlogs"), anybody(), without_sct),
            KEYLESS
        )
        .is_ok()
    );
}

#[test]
fn refuse_no_timestamp() {
    let stamped = Proofs {
        timestamp: Need::Demanded,
        ..Proofs::LOGGED
    };
    let mut root: serde_json::Value = serde_json::from_str(ROOT).unwrap();
    root["timestampAuthorities"] = root["certificateAuthorities"].clone();
    let root = Arc::new(TrustRoot::from_json(root.to_string().as_bytes()).unwrap());
    assert_eq!(
        judge(&keyless(root, anybody(), stamped), KEYLESS),
        Err(SignatureRefusal::NotTimestamped)
    );
}

#[test]
fn refuse_key_that_is_not_in_the_log() {
    let log = KeyLog::Demanded(root_without("timestampAuthorities"));
    let keys = vec![key(COSIGN_PUB)];
    assert_eq!(
        judge(&Demand::Key { keys, log }, BUNDLE),
        Err(SignatureRefusal::NotLogged)
    );
}

#[test]
fn refuse_roots_that_are_none() {
    for bad in [
        "",
        "{}",
        &ROOT.replace("version=0.1", "version=0.9"),
        &ROOT[1..],
    ] {
        assert!(TrustRoot::from_json(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(TrustRoot::from_pems(&["x"], &[]).is_err());
    assert!(TrustRoot::from_pems(&[], &["x"]).is_err());
    let root = TrustRoot::from_pems(&[], &[COSIGN_PUB]).unwrap();
    assert!(root.has.logs && !root.has.authorities);
}

#[test]
fn refuse_empty_and_loose_patterns() {
    for pattern in [Pattern::exact(""), Pattern::regexp("")] {
        assert_eq!(pattern.unwrap_err(), PatternError::Empty);
    }
    for bad in ["a)|(?:b", "(", "(?x)a # "] {
        assert!(Pattern::regexp(bad).is_err(), "{bad}");
    }
    let email = |text: &str| sigstore_verify::SubjectAltName::Email(text.to_owned());
    let fits = |pattern: &str, text: &str| {
        let identity = Identity {
            issuer: Pattern::exact("i").unwrap(),
            subject: Subject::Email(Pattern::regexp(pattern).unwrap()),
        };
        identity.fits("i", &email(text))
    };
    assert!(fits("a|ab", "ab"));
    assert!(fits(".*@acme[.]example", "x@acme.example"));
    assert!(!fits("acme[.]example", "x@acme.example"));
    assert!(!fits(".*@acme[.]example", "x@acme.example.evil"));
    assert!(!fits(".*@acme[.]example", "x@acme.example\n"));
}
