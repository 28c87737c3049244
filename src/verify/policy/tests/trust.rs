//! Trust files: what cannot be read or is no such thing decides nothing, whatever the mode.

use super::*;

impl Scene {
    /// Not decided, whatever the mode, for a reason that says `why`.
    #[track_caller]
    pub fn undecided(&self, why: &str) {
        for mode in ["\"enforce\"", "\"audit\""] {
            let decision = self.decision_under(&self.policy.replace("\"enforce\"", mode));
            let Err(NotAdmitted::Undecided(undecided)) = decision else {
                panic!("{mode}, {why}: {decision:?}");
            };
            let text = undecided.to_string();
            assert!(text.contains(why), "{text}");
            for part in [
                "cannot decide about image localhost/demo:latest (sha256:a6771a42",
                "[policy /etc/attestrun/policy.toml rule demo]; put ",
            ] {
                assert!(text.contains(part), "{text}");
            }
            assert!(!text.contains("refused"), "{text}");
        }
    }
}

#[test]
fn accept_gathered_material() {
    let scene = scene();
    let policy = parse(&scene.policy).unwrap();
    let material = Material::gather(
        &policy,
        &scene.image,
        |path| scene.trust.get(path).map(<[u8]>::to_vec),
        |_| Ok::<_, ()>(scene.signatures.clone()),
        |_| Ok(scene.lists.clone()),
    )
    .unwrap();
    assert!(decide(&policy, Subject::Image(&material), &scene.profile, NOW).is_ok());
    let unreadable = Material::gather(
        &policy,
        &scene.image,
        |_| Err("No such file or directory (os error 2)"),
        |_| Ok::<_, ()>(scene.signatures.clone()),
        |_| Ok(scene.lists.clone()),
    )
    .unwrap();
    let why = decide(&policy, Subject::Image(&unreadable), &scene.profile, NOW).unwrap_err();
    assert!(matches!(why, NotAdmitted::Undecided(_)), "{why}");
    let text = why.to_string().to_lowercase();
    assert!(!text.contains("no such file"), "{text}");
    assert!(
        text.contains("the image key") && text.contains("the user ca"),
        "{text}"
    );
    let failed = Material::gather(
        &policy,
        &scene.image,
        |_| Err(""),
        |_| Err("store"),
        |_| Ok(vec![]),
    );
    assert_eq!(failed.unwrap_err(), "store");
}

#[test]
fn missing_or_corrupt_trust_files_decide_nothing() {
    for (path, what) in [(KEY, "image key"), (CA, "user CA")] {
        let mut scene = scene();
        scene
            .trust
            .insert("file", Path::new(path), Err("it is gone".into()));
        scene.undecided(&format!("cannot read the {what} {path}: it is gone"));
        scene
            .trust
            .insert("file", Path::new(path), Ok(b"\xffjunk".to_vec()));
        scene.undecided(&format!("the {what} {path} is unusable"));
        scene.trust.0.remove(Path::new(path));
        scene.undecided(&format!("cannot read the {what} {path}: it was not read"));
    }
}

#[test]
fn refuse_revocation_lists_that_do_not_settle() {
    let mut scene = scene();
    let crl = "/etc/attestrun/trust/user-ca/demo.crl";
    scene.policy = scene
        .policy
        .replace("\"unchecked\"", &format!("\"crl\"\ncrls = [\"{crl}\"]"));
    scene.undecided("cannot read the revocation list");
    scene
        .trust
        .insert("key", Path::new(crl), Ok(b"junk".to_vec()));
    scene.undecided("the revocation list /etc/attestrun/trust/user-ca/demo.crl is unusable");
    scene
        .trust
        .insert("crl", Path::new(crl), Ok(scene.ca.root.pem().into_bytes()));
    scene.undecided("it is a `CERTIFICATE`, not an `X509 CRL`");
    let list = rcgen::CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 11, 1),
        next_update: date_time_ymd(2026, 12, 1),
        crl_number: rcgen::SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let one = list.clone().signed_by(&scene.ca.issuing).unwrap();
    scene
        .trust
        .insert("crl", Path::new(crl), Ok(one.pem().unwrap().into_bytes()));
    scene.refused("the revocation lists do not settle the chain");
    let root = "/etc/attestrun/trust/user-ca/root.crl";
    let two = list.signed_by(&scene.ca.root).unwrap();
    scene.policy = scene.policy.replace(crl, &format!("{crl}\", \"{root}"));
    scene
        .trust
        .insert("key", Path::new(root), Ok(two.der().to_vec()));
    assert!(scene.decide().is_ok(), "{:?}", scene.decide());
}
