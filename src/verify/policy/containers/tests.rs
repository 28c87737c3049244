//! containers-policy.json(5): what is understood, which scope decides, which names fit.

use super::*;

fn parse(text: &str) -> Result<ContainersPolicy, NotAContainersPolicy> {
    ContainersPolicy::parse(text.as_bytes())
}
fn only(requirement: &str) -> String {
    format!(r#"{{"default": [{requirement}]}}"#)
}

#[test]
fn accept_every_form() {
    for good in [
        r#"{"type": "insecureAcceptAnything"}"#,
        r#"{"type": "reject"}"#,
        r#"{"type": "sigstoreSigned", "keyPath": "/k"}"#,
        r#"{"type": "sigstoreSigned", "keyPaths": ["/k", "/l"]}"#,
        r#"{"type": "sigstoreSigned", "keyData": "YQ=="}"#,
        r#"{"type": "sigstoreSigned", "keyDatas": ["YQ==", "Yg=="], "rekorPublicKeyData": "YQ=="}"#,
        r#"{"type": "sigstoreSigned", "keyPath": "/k", "rekorPublicKeyPaths": ["/r"]}"#,
        r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "i", "subjectEmail": "e"}, "rekorPublicKeyPath": "/r"}"#,
        r#"{"type": "sigstoreSigned", "fulcio": {"caData": "YQ==", "oidcIssuer": "i", "subjectEmail": "e"}, "rekorPublicKeyDatas": ["YQ=="]}"#,
        r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "matchExact"}}"#,
        r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "matchRepoDigestOrExact"}}"#,
        r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "matchRepository"}}"#,
        r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "exactReference", "dockerReference": "a/b:c"}}"#,
        r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "exactRepository", "dockerRepository": "a/b"}}"#,
        r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "remapIdentity", "prefix": "a", "signedPrefix": "b"}}"#,
    ] {
        let parsed = parse(&only(good)).unwrap_or_else(|e| panic!("{good}: {e}"));
        assert!(!matches!(parsed.default[0], Requirement::Unsupported(_)));
    }
    for (text, what) in [
        (
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}"#,
            "signedBy",
        ),
        (
            r#"{"type": "sigstoreSigned", "pki": {"caRootsPath": "/c"}}"#,
            "pki",
        ),
    ] {
        assert_eq!(
            parse(&only(text)).unwrap().default,
            [Requirement::Unsupported(what)]
        );
    }
}

#[test]
fn refuse_what_is_not_understood_by_name() {
    for (bad, named) in [
        (only(r#"{"type": "reject", "x": 1}"#), "`x`"),
        (only(r#"{"type": "allow"}"#), "`allow`"),
        (only(r#"{"type": "sigstoreSigned", "keyPath": "/k", "keyring": "/r"}"#), "`keyring`"),
        (only(r#"{"type": "sigstoreSigned", "keyPath": "/k", "keyData": "YQ=="}"#), "keyData"),
        (only(r#"{"type": "sigstoreSigned"}"#), "keyPath"),
        (only(r#"{"type": "sigstoreSigned", "keyPaths": []}"#), "keyPaths"),
        (only(r#"{"type": "sigstoreSigned", "keyDatas": []}"#), "keyDatas"),
        (only(r#"{"type": "sigstoreSigned", "keyData": "%"}"#), "keyData"),
        (only(r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "matchAll"}}"#), "`matchAll`"),
        (only(r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "matchExact", "y": 1}}"#), "`y`"),
        (only(r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "exactReference"}}"#), "dockerReference"),
        (only(r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "i", "subjectEmail": "e"}}"#), "rekorPublicKey"),
        (only(r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "i"}, "rekorPublicKeyPath": "/r"}"#), "subjectEmail"),
        (only(r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "", "subjectEmail": "e"}, "rekorPublicKeyPath": "/r"}"#), "oidcIssuer"),
        (r#"{"default": []}"#.to_owned(), "default"),
        (r#"{}"#.to_owned(), "default"),
        (r#"{"default": [{"type": "reject"}], "else": 1}"#.to_owned(), "`else`"),
        (r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a": []}}}"#.to_owned(), "no requirement"),
        (r#"{"default": [{"type": "reject"}], "transports": {"atomic": {"a": [{"type": "x"}]}}}"#.to_owned(), "`x`"),
        (r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a": [{"type": "reject"}], "a": [{"type": "reject"}]}}}"#.to_owned(), "`a` occurs twice"),
    ] {
        let text = parse(&bad).unwrap_err().to_string();
        assert!(text.contains(named), "{bad}: {text}");
    }
}

#[test]
fn the_most_specific_scope_decides() {
    let scopes = |given: &[&str]| {
        let entries: Vec<_> = given
            .iter()
            .map(|s| format!(r#""{s}": [{{"type": "reject"}}]"#))
            .collect();
        parse(&format!(
            r#"{{"default": [{{"type": "reject"}}], "transports": {{"docker": {{{}}}, "dir": {{"": [{{"type": "reject"}}]}}}}}}"#,
            entries.join(",")
        ))
        .unwrap()
    };
    let all = [
        "reg.example.com:5000/a/b:v1",
        "reg.example.com:5000/a/b",
        "reg.example.com:5000/a",
        "reg.example.com:5000",
        "*.example.com",
        "*.com",
        "",
    ];
    for first in 0..all.len() {
        let policy = scopes(&all[first..]);
        let (scope, _) = policy.requirements_for("reg.example.com:5000/a/b:v1");
        let expected = if all[first].is_empty() {
            "docker"
        } else {
            all[first]
        };
        assert_eq!(scope, expected);
    }
    for (given, name, expected) in [
        ("docker.io/library/demo", "demo", "docker.io/library/demo"),
        (
            "docker.io/library/demo:latest",
            "demo",
            "docker.io/library/demo:latest",
        ),
        ("docker.io", "user/demo:v1", "docker.io"),
        ("localhost/demo", "localhost/demonstration", "default"),
        ("example.com", "reg.example.com/a", "default"),
        ("*.reg.example.com", "reg.example.com/a", "default"),
        ("", "", "default"),
    ] {
        assert_eq!(
            scopes(&[given]).requirements_for(name).0,
            expected,
            "{name}"
        );
    }
}

#[test]
fn names_fit_as_the_format_says() {
    let digest = format!("reg/a@sha256:{}", "1".repeat(64));
    let exact = |reference: &str| SignedName::ExactReference {
        reference: reference.into(),
    };
    let remap = |prefix: &str, signed: &str| SignedName::RemapIdentity {
        prefix: prefix.into(),
        signed_prefix: signed.into(),
    };
    let reg = |rest: &str| format!("reg.io/{rest}");
    let by_digest = digest.replace("reg/", "reg.io/");
    for (identity, image, signed, fits) in [
        (SignedName::MatchExact {}, reg("a:1"), reg("a:1"), true),
        (SignedName::MatchExact {}, reg("a:1"), reg("a:2"), false),
        (SignedName::MatchExact {}, reg("a:1"), reg("a"), false),
        (
            SignedName::MatchExact {},
            by_digest.clone(),
            reg("a:1"),
            false,
        ),
        (
            SignedName::MatchRepoDigestOrExact {},
            reg("a:1"),
            reg("a:1"),
            true,
        ),
        (
            SignedName::MatchRepoDigestOrExact {},
            reg("a:1"),
            reg("a:2"),
            false,
        ),
        (
            SignedName::MatchRepoDigestOrExact {},
            by_digest.clone(),
            reg("a:2"),
            true,
        ),
        (
            SignedName::MatchRepoDigestOrExact {},
            by_digest.clone(),
            reg("b:2"),
            false,
        ),
        (SignedName::MatchRepository {}, reg("a:1"), reg("a"), true),
        (SignedName::MatchRepository {}, reg("a:1"), reg("b"), false),
        (exact(&reg("z:9")), reg("a:1"), reg("z:9"), true),
        (exact(&reg("z:9")), reg("a:1"), reg("a:1"), false),
        (
            SignedName::ExactRepository {
                repository: reg("z"),
            },
            reg("a:1"),
            reg("z:3"),
            true,
        ),
        (
            SignedName::ExactRepository {
                repository: reg("z"),
            },
            reg("a:1"),
            reg("a:1"),
            false,
        ),
        (
            remap("reg.io", "mirror.io"),
            reg("a:1"),
            "mirror.io/a:1".into(),
            true,
        ),
        (remap("reg.io", "mirror.io"), reg("a:1"), reg("a:1"), false),
        (
            remap("reg.i", "mirror.i"),
            reg("a:1"),
            "mirror.io/a:1".into(),
            false,
        ),
        (remap("other.io", "mirror.io"), reg("a:1"), reg("a:1"), true),
        (
            SignedName::MatchRepository {},
            String::new(),
            reg("a"),
            false,
        ),
        (
            SignedName::MatchRepository {},
            reg("a:1"),
            "not a name".into(),
            false,
        ),
    ] {
        assert_eq!(
            identity.fits(&image, &signed),
            fits,
            "{identity:?} {image} {signed}"
        );
    }
}
