//! The CA's certificates, judged by openssl and by `verify::cms`.

use super::*;
use crate::{
    scratch::Scratch,
    spawn::{openssl, try_openssl},
};
use std::os::unix::fs::PermissionsExt as _;
use verify::{
    cms::{CmsRefusal, Revocation, VerifiedSigner, build_detached, verify_detached},
    id::UnixTime,
};

const TENANT: &str = "spiffe://demo.example/tenant/demo";
const LIST: &[u8] = br#"{"any":"bytes"}"#;

struct Pki(Scratch);

impl Pki {
    fn new(tenant: Option<&str>) -> Self {
        let dir = Scratch::new();
        let args = Init {
            dir: dir.path().join("ca"),
            name: "Demo CA".to_owned(),
            tenant: tenant.map(|t| t.parse().unwrap()),
            days: 30,
        };
        init(&args).unwrap();
        Self(dir)
    }
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
    fn issue(&self, name: &str, tenant: &str) -> anyhow::Result<Report> {
        issue(&Issue {
            dir: self.0.path().join("ca"),
            tenant: tenant.parse().unwrap(),
            name: "signer".to_owned(),
            out_cert: self.path(&format!("{name}.pem")).into(),
            out_key: self.path(&format!("{name}.key")).into(),
            days: 30,
        })
    }
    fn certificate(&self, name: &str) -> certificate::Unchecked {
        certificate::parse(&std::fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }
    /// Signs [`LIST`] and leaves list and signature in the directory.
    fn sign(&self, name: &str) -> Vec<u8> {
        let key = SigningKey::read(Path::new(&self.path(&format!("{name}.key")))).unwrap();
        let leaf = self.certificate(&format!("{name}.pem"));
        let cms = build_detached(LIST, &leaf.der, &[], |message| key.sign(message)).unwrap();
        std::fs::write(self.path("list"), LIST).unwrap();
        std::fs::write(self.path("list.p7s"), &cms).unwrap();
        cms
    }
    fn verify(&self, cms: &[u8], now: i64) -> Result<VerifiedSigner, CmsRefusal> {
        let roots = [self.certificate("ca/ca.pem").der];
        verify_detached(
            LIST,
            cms,
            &roots,
            UnixTime::from_secs(now),
            &Revocation::Unchecked,
        )
    }
}

fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

#[test]
fn accept_our_certificates_by_openssl() {
    let pki = Pki::new(Some(TENANT));
    pki.issue("user", TENANT).unwrap();
    let (ca, user) = (pki.path("ca/ca.pem"), pki.path("user.pem"));
    openssl(&["verify", "-x509_strict", "-CAfile", &ca, &user]);
    let text = openssl(&["x509", "-in", &user, "-noout", "-text"]);
    for part in [
        "CA:FALSE",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "Code Signing",
        &format!("URI:{TENANT}"),
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
        "prime256v1",
        "ecdsa-with-SHA256",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let text = openssl(&["x509", "-in", &ca, "-noout", "-text"]);
    assert!(text.contains("CA:TRUE, pathlen:0"), "{text}");
    assert!(text.contains("Certificate Sign, CRL Sign"), "{text}");
    for key in ["ca/ca.key", "user.key"] {
        let mode = std::fs::metadata(pki.path(key))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
        assert!(openssl(&["pkey", "-in", &pki.path(key), "-noout", "-text"]).contains("P-256"));
    }
}

#[test]
fn accept_our_cms_by_openssl_and_by_ourselves() {
    let pki = Pki::new(None);
    pki.issue("user", TENANT).unwrap();
    let cms = pki.sign("user");
    assert_eq!(pki.verify(&cms, now()).unwrap().tenant(), TENANT);
    let (list, sig, ca) = (
        pki.path("list"),
        pki.path("list.p7s"),
        pki.path("ca/ca.pem"),
    );
    let verify = [
        "cms", "-verify", "-binary", "-inform", "DER", "-in", &sig, "-content", &list, "-CAfile",
        &ca, "-purpose", "any",
    ];
    assert_eq!(openssl(&verify).as_bytes(), LIST);
    std::fs::write(&list, b"other bytes").unwrap();
    assert!(!try_openssl(&verify).0);
}

#[test]
fn accept_cms_of_openssl_with_our_certificates() {
    let pki = Pki::new(None);
    pki.issue("user", TENANT).unwrap();
    std::fs::write(pki.path("list"), LIST).unwrap();
    openssl(&[
        "cms",
        "-sign",
        "-binary",
        "-in",
        &pki.path("list"),
        "-signer",
        &pki.path("user.pem"),
        "-inkey",
        &pki.path("user.key"),
        "-md",
        "sha256",
        "-outform",
        "DER",
        "-out",
        &pki.path("p7s"),
    ]);
    let cms = std::fs::read(pki.path("p7s")).unwrap();
    assert_eq!(pki.verify(&cms, now()).unwrap().tenant(), TENANT);
}

#[test]
fn refuse_expired_and_foreign_signers() {
    let pki = Pki::new(None);
    pki.issue("user", TENANT).unwrap();
    let cms = pki.sign("user");
    let day = 24 * 60 * 60;
    assert!(matches!(
        pki.verify(&cms, now() + 31 * day),
        Err(CmsRefusal::Expired { .. })
    ));
    assert!(matches!(
        pki.verify(&cms, now() - day),
        Err(CmsRefusal::NotYetValid { .. })
    ));
    assert!(matches!(
        Pki::new(None).verify(&cms, now()),
        Err(CmsRefusal::Untrusted { .. })
    ));
}

#[test]
fn refuse_other_tenants_mixed_directories_and_overwriting() {
    let pki = Pki::new(Some(TENANT));
    let other = pki
        .issue("other", "spiffe://demo.example/tenant/other")
        .unwrap_err();
    assert!(other.is::<Usage>(), "{other:#}");
    pki.issue("user", TENANT).unwrap();
    let key = std::fs::read(pki.path("user.key")).unwrap();
    assert!(pki.issue("user", TENANT).is_err());
    assert_eq!(std::fs::read(pki.path("user.key")).unwrap(), key);
    std::fs::copy(pki.path("user.key"), pki.path("ca/ca.key")).unwrap();
    let mixed = format!("{:#}", pki.issue("mixed", TENANT).unwrap_err());
    assert!(mixed.contains("mixes two CAs"), "{mixed}");
    assert!(!Path::new(&pki.path("mixed.key")).exists());
}

#[test]
fn tenants_have_one_form() {
    assert!(TENANT.parse::<Tenant>().is_ok());
    for bad in [
        "",
        "demo",
        "spiffe://demo.example",
        "spiffe://demo.example/",
        "spiffe:///tenant/a",
        "spiffe://Demo/tenant/a",
        "spiffe://demo/tenant/",
        "spiffe://demo/tenant/..",
        "spiffe://demo/tenant/a/b",
        "spiffe://demo/other/a",
        "spiffe://demo/tenant/a b",
        "https://demo/tenant/a",
    ] {
        assert!(bad.parse::<Tenant>().is_err(), "{bad}");
    }
}

/// A list of revoked certificates grows, rises in number, and is what openssl and hosts go by.
#[test]
fn revoked_certificates_count_no_more() {
    let pki = Pki::new(None);
    let dir = pki.0.path().join("ca");
    let revoke = |certificates: &[&str], anew: bool| {
        let names = certificates.iter().map(|name| pki.path(name).into());
        revoke::run(&revoke::Revoke::of(&dir, anew, names.collect()))
    };
    for name in ["one", "two"] {
        pki.issue(name, TENANT).unwrap();
    }
    let judged = |name: &str| {
        let crl = disk::read_crl(&dir.join("crl.pem")).unwrap();
        let roots = [pki.certificate("ca/ca.pem").der];
        let cms = pki.sign(name);
        let time = UnixTime::from_secs(now());
        verify_detached(LIST, &cms, &roots, time, &Revocation::Crls(vec![crl])).map(drop)
    };
    assert_eq!(
        judged("one"),
        Ok(()),
        "a new CA has revoked nothing, and says so"
    );
    revoke(&["one.pem"], false).unwrap();
    assert!(matches!(judged("one"), Err(CmsRefusal::Revoked(_))));
    assert_eq!(judged("two"), Ok(()));
    revoke(&["two.pem", "one.pem"], false).unwrap();
    for name in ["one", "two"] {
        assert!(
            matches!(judged(name), Err(CmsRefusal::Revoked(_))),
            "{name}"
        );
    }
    revoke(&[], false).unwrap();
    let (crl, ca) = (pki.path("ca/crl.pem"), pki.path("ca/ca.pem"));
    let text = openssl(&["crl", "-in", &crl, "-noout", "-text"]);
    assert!(text.contains("CRL Number: \n                4"), "{text}");
    assert_eq!(text.matches("Serial Number:").count(), 2, "{text}");
    openssl(&["crl", "-in", &crl, "-noout", "-CAfile", &ca]);

    // a memory that is gone is no new CA
    assert!(revoke(&["no.pem"], false).is_err());
    std::fs::remove_file(&crl).unwrap();
    assert!(revoke(&[], false).is_err());
    revoke(&[], true).unwrap();
    assert!(revoke(&[], true).is_err());
}
