//! Keys, certificates and signatures that tests make for themselves; nothing here is a vector.

use crate::digest::{FileDigest, ImageDigest};
use crate::id::UnixTime;
use crate::siglist::{Draft, Programs};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SigningKey, date_time_ymd,
};

pub const NOW: UnixTime = UnixTime::from_secs(1_795_445_000); // 2026-11-23T14:43:20Z
pub const TENANT: &str = "spiffe://demo.example/tenant/demo";

/// An image publisher's key.
pub struct ImageKey(KeyPair);

pub fn image_key() -> ImageKey {
    ImageKey(KeyPair::generate().unwrap())
}

impl ImageKey {
    pub fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }
    pub fn sign_base64(&self, payload: &[u8]) -> String {
        BASE64.encode(self.0.sign(payload).unwrap())
    }
}

/// A user CA: a root and an issuing CA below it.
pub struct UserCa {
    pub root: CertifiedIssuer<'static, KeyPair>,
    pub issuing: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key.
pub struct User {
    pub der: Vec<u8>,
    pub key: KeyPair,
    pub chain: Vec<Vec<u8>>,
}

pub fn ca_params(name: &str, path_len: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2035, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub fn user_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Demo User");
    params.not_before = date_time_ymd(2026, 6, 1);
    params.not_after = date_time_ymd(2027, 6, 1);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params.subject_alt_names = vec![SanType::URI(TENANT.try_into().unwrap())];
    params
}

pub fn user_ca() -> UserCa {
    let root =
        CertifiedIssuer::self_signed(ca_params("Demo Root", 1), KeyPair::generate().unwrap())
            .unwrap();
    let issuing = CertifiedIssuer::signed_by(
        ca_params("Demo Issuing CA", 0),
        KeyPair::generate().unwrap(),
        &root,
    )
    .unwrap();
    UserCa { root, issuing }
}

impl UserCa {
    pub fn roots(&self) -> Vec<Vec<u8>> {
        vec![self.root.der().to_vec()]
    }
    pub fn user(&self) -> User {
        self.user_with(|_| ())
    }
    /// A user whose certificate differs from the profile by `edit`.
    pub fn user_with(&self, edit: impl FnOnce(&mut CertificateParams)) -> User {
        self.user_with_key(KeyPair::generate().unwrap(), edit)
    }
    pub fn user_with_key(&self, key: KeyPair, edit: impl FnOnce(&mut CertificateParams)) -> User {
        let mut params = user_params();
        edit(&mut params);
        User {
            der: params
                .signed_by(&key, &self.issuing)
                .unwrap()
                .der()
                .to_vec(),
            key,
            chain: vec![self.issuing.der().to_vec()],
        }
    }
}

impl User {
    pub fn sign(&self, content: &[u8]) -> Vec<u8> {
        crate::cms::build_detached(content, &self.der, &self.chain, |m| self.key.sign(m)).unwrap()
    }
}

/// A list named `demo` with one program, about `image`.
pub fn draft(image: ImageDigest) -> Draft {
    Draft {
        name: "demo".into(),
        serial: 7,
        issued_at: UnixTime::from_secs(NOW.secs() - 3600),
        expires_at: UnixTime::from_secs(NOW.secs() + 3600),
        images: vec![("localhost/demo".into(), image)],
        files: [(b"/usr/bin/app".to_vec(), [FileDigest::of(b"app")].into())].into(),
        programs: Programs::AllFiles,
    }
}
