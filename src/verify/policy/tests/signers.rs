//! Who vouches: authorities, containers-policy.json(5), what must have been stated, scans.

use super::*;
use crate::policy::scan::COSIGN_VULN;
use crate::signature::key_bundle;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

const RULE_KEYS: &str = "keys = [";

/// The scene with these lines in place of the rule's keys.
fn with_signers(lines: &str) -> Scene {
    let mut scene = scene();
    let keys = scene
        .policy
        .lines()
        .find(|l| l.starts_with(RULE_KEYS))
        .unwrap()
        .to_owned();
    scene.policy = scene.policy.replace(&keys, lines);
    scene
}
fn containers_policy(scene: &mut Scene, text: &str) {
    let path = Path::new(CONTAINERS_POLICY);
    scene
        .trust
        .insert("policy.json", path, Ok(text.as_bytes().to_vec()));
}

#[test]
fn accept_authorities_by_key() {
    let scene = with_signers(&format!(
        "authorities = [{{ name = \"a\", key = {{ path = \"{KEY}\" }} }}]"
    ));
    signed(&scene.decide().unwrap());
    let pem = scene.key.public_pem();
    let inline = with_signers(&format!(
        "authorities = [{{ name = \"a\", key = {{ data = '''{pem}''' }} }}]"
    ));
    let mut inline = inline;
    inline.key = image_key();
    let mut own = with_signers(&format!(
        "authorities = [{{ name = \"a\", key = {{ data = '''{}''' }} }}]",
        inline.key.public_pem()
    ));
    own.refused("it was not made by key");
    own.key = inline.key;
    own.sign("localhost/demo", own.image.manifest_digest());
    signed(&own.decide().unwrap());
}

#[test]
fn refuse_authorities_that_ask_nothing_or_two_things() {
    let identity = "{ issuer = \"i\", subjectRegExp = \"s.*\" }";
    let root = "trusted_root = \"/r\"";
    for (authority, why) in [
        ("", "key"),
        ("key = { }", "path"),
        ("key = { path = \"/k\", data = \"x\" }", "path"),
        ("key = { path = \"k\" }", "absolute"),
        ("key = { data = \"x\" }", "PUBLIC KEY"),
        ("key = { path = \"/k\" }, ctlog = true", "trusted_root"),
        (
            "key = { path = \"/k\" }, trusted_root = \"/r\"",
            "trusted_root",
        ),
        (
            "key = { path = \"/k\" }, rfc3161timestamp = true",
            "rfc3161timestamp",
        ),
        (
            &format!("keyless = {{ identities = [{identity}] }}"),
            "trusted_root",
        ),
        (
            &format!("keyless = {{ identities = [] }}, {root}"),
            "identities",
        ),
        (
            &format!("keyless = {{ identities = [{identity}] }}, ctlog = false, {root}"),
            "rfc3161timestamp",
        ),
        (
            &format!("keyless = {{ identities = [{{ issuer = \"i\" }}] }}, {root}"),
            "subject",
        ),
        (
            &format!("keyless = {{ identities = [{{ issuer = \"\", subject = \"s\" }}] }}, {root}"),
            "issuer",
        ),
        (
            &format!(
                "keyless = {{ identities = [{{ issuer = \"i\", issuerRegExp = \"i\", subject = \"s\" }}] }}, {root}"
            ),
            "issuer",
        ),
        (
            &format!(
                "keyless = {{ identities = [{{ issuer = \"i\", subjectRegExp = \"(\" }}] }}, {root}"
            ),
            "subject",
        ),
        (
            &format!(
                "keyless = {{ identities = [{identity}] }}, key = {{ path = \"/k\" }}, {root}"
            ),
            "keyless",
        ),
        (
            &format!("keyless = {{ url = \"x\", identities = [{identity}] }}, {root}"),
            "url",
        ),
    ] {
        let comma = if authority.is_empty() { "" } else { ", " };
        let scene = with_signers(&format!(
            "authorities = [{{ name = \"a\"{comma}{authority} }}]"
        ));
        let text = parse(&scene.policy).unwrap_err().to_string();
        assert!(text.contains(why), "{authority}: {text}");
    }
    for (nobody, ok) in [
        ("", false),
        ("authorities = []", false),
        ("keys = []", false),
        ("containers_policy = true", true),
    ] {
        assert_eq!(parse(&with_signers(nobody).policy).is_ok(), ok, "{nobody}");
    }
}

#[test]
fn nothing_is_decided_on_keyless_without_its_root() {
    let mut scene = with_signers(
        "authorities = [{ name = \"a\", trusted_root = \"/r.json\", keyless = { identities = [{ issuer = \"i\", subject = \"s\" }] } }]",
    );
    scene.undecided("cannot read the trusted root /r.json");
    scene
        .trust
        .insert("trusted-root", Path::new("/r.json"), Ok(b"{}".to_vec()));
    scene.undecided("the trusted root /r.json is unusable");
}

#[test]
fn accept_and_refuse_by_containers_policy() {
    let mut scene = with_signers("containers_policy = true");
    scene.undecided("cannot read the containers policy");
    containers_policy(&mut scene, "{}");
    scene.refused("the containers policy /etc/containers/policy.json is unusable");
    let requirement = |text: &str| format!(r#"{{"default": [{text}]}}"#);
    containers_policy(&mut scene, &requirement(r#"{"type": "reject"}"#));
    scene.refused("it rejects this image");
    containers_policy(
        &mut scene,
        &requirement(r#"{"type": "signedBy", "keyPath": "/k"}"#),
    );
    scene.refused("`signedBy` is not supported");

    let by_key = |identity: &str| {
        requirement(&format!(
            r#"{{"type": "sigstoreSigned", "keyPath": "{KEY}", "signedIdentity": {identity}}}"#
        ))
    };
    // cosign signs repositories, so that no reference is exact.
    containers_policy(&mut scene, &by_key(r#"{"type": "matchExact"}"#));
    scene.refused("which is not the signedIdentity");
    containers_policy(&mut scene, &by_key(r#"{"type": "matchRepository"}"#));
    signed(&scene.decide().unwrap());
    // All requirements of a scope must hold.
    let both =
        by_key(r#"{"type": "matchRepository"}"#).replace("}]}", r#"}, {"type": "reject"}]}"#);
    containers_policy(&mut scene, &both);
    scene.refused("it rejects this image");

    containers_policy(
        &mut scene,
        &requirement(r#"{"type": "insecureAcceptAnything"}"#),
    );
    let admission = scene.decide().unwrap();
    assert!(
        matches!(admission.made(), Made::Unsigned(_)),
        "nobody vouches for it"
    );
    assert!(admission.audited().is_empty());
    let kinds: Vec<&str> = admission
        .sources()
        .iter()
        .map(|s| s.kind.as_str())
        .collect();
    assert!(kinds.contains(&"policy.json"), "{kinds:?}");
}

#[test]
fn refuse_unless_both_files_admit() {
    let mut scene = with_signers(&format!("keys = [\"{KEY}\"]\ncontainers_policy = true"));
    containers_policy(
        &mut scene,
        r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
    );
    signed(&scene.decide().unwrap());
    scene.signatures.clear();
    scene.refused("it is not signed");
    let mut scene = with_signers(&format!("keys = [\"{KEY}\"]\ncontainers_policy = true"));
    containers_policy(&mut scene, r#"{"default": [{"type": "reject"}]}"#);
    scene.refused("it rejects this image");
}

/// A statement about the scene's image, signed by its key.
fn state(scene: &mut Scene, predicate_type: &str, predicate: Value) {
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "x", "digest": {"sha256": scene.image.manifest_digest().hex()}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    })
    .to_string()
    .into_bytes();
    let bundle = key_bundle_of(scene, &statement);
    scene.signatures.push(StoredSignature::Bundle(bundle));
}

fn key_bundle_of(scene: &Scene, statement: &[u8]) -> Vec<u8> {
    let to_sign = crate::signature::to_sign(statement);
    let signature = STANDARD.decode(scene.key.sign_base64(&to_sign)).unwrap();
    key_bundle(statement, &signature, b"hint")
}

fn scanned(finished: &str, findings: Value) -> Value {
    json!({"scanner": {"uri": "s", "result": {"runs": [{"results": findings}]}}, "metadata": {"scanFinishedOn": finished}})
}

#[test]
fn accept_and_refuse_by_attestations() {
    let mut scene = scene();
    scene.policy = scene.policy.replace(
        "enter =",
        &format!("attestations = [{{ name = \"built\", predicateType = \"https://slsa.dev/provenance/v1\", authority = {{ name = \"ci\", key = {{ path = \"{KEY}\" }} }} }}]\nenter ="),
    );
    scene.refused("attestation built (https://slsa.dev/provenance/v1) by ci is not there");
    state(&mut scene, "https://example.com/other", json!({}));
    scene.refused("attestation built");
    state(&mut scene, "https://slsa.dev/provenance/v1", json!({}));
    let admission = scene.decide().unwrap();
    assert!(admission.sources().iter().any(|s| s.kind == "attestation"));
}

#[test]
fn accept_and_refuse_by_scans() {
    let demand = |except: &str| {
        format!(
            "vulnerabilities = {{ authority = {{ name = \"scanner\", key = {{ path = \"{KEY}\" }} }}, max_age_days = 7, max_severity = \"medium\", except = [{except}] }}\nenter ="
        )
    };
    let fresh = || {
        let mut scene = scene();
        scene.policy = scene.policy.replace("enter =", &demand(""));
        scene
    };
    let day = |days: i64| UnixTime::from_secs(NOW.secs() - days * 24 * 60 * 60).to_string();
    let grave =
        || json!([{"ruleId": "CVE-1", "level": "error"}, {"ruleId": "CVE-2", "level": "note"}]);

    let mut scene = fresh();
    scene.refused("no scan for vulnerabilities by scanner");
    state(&mut scene, COSIGN_VULN, scanned(&day(8), json!([])));
    scene.refused("the newest scan by scanner is 8 days old");
    state(
        &mut scene,
        COSIGN_VULN,
        scanned(&day(6), json!([{"ruleId": "CVE-2", "level": "warning"}])),
    );
    let admission = scene.decide().unwrap();
    assert!(admission.sources().iter().any(|s| s.kind == "scan"));
    // The newest one counts, however clean older ones are.
    state(&mut scene, COSIGN_VULN, scanned(&day(1), grave()));
    scene.refused("the scan by scanner finds more than severity medium: CVE-1 (high)");
    scene.policy = scene.policy.replace("except = []", "except = [\"CVE-1\"]");
    assert!(scene.decide().is_ok());

    let mut scene = fresh();
    state(&mut scene, COSIGN_VULN, scanned(&day(-1), json!([])));
    scene.refused("is of the future");
    let mut scene = fresh();
    state(&mut scene, COSIGN_VULN, json!({"scanner": {"result": {}}}));
    scene.refused("malformed");
    let mut scene = fresh();
    scene.key = image_key();
    state(&mut scene, COSIGN_VULN, scanned(&day(1), json!([])));
    scene.refused("no scan for vulnerabilities by scanner");
}

#[test]
fn the_rule_of_a_digest_comes_first() {
    let mut scene = scene();
    let by_digest = scene
        .policy
        .replace("version = 1\nmode = \"enforce\"\n", "")
        .replace(
            "\"demo\"\nscope = \"localhost/demo\"",
            &format!("\"exact\"\nscope = \"{}\"", scene.image.manifest_digest()),
        );
    scene.policy = format!("{}{by_digest}", scene.policy);
    assert_eq!(scene.decide().unwrap().rule(), "exact");
}
