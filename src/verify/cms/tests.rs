//! Accepting and refusing signatures; the certificates are made here, per test.

use super::*;
use crate::testkit::{NOW, TENANT, User, UserCa, user_ca};
use ::cms::content_info::ContentInfo;
use ::cms::signed_data::SignedData;
use der::asn1::{ObjectIdentifier, SetOfVec};
use der::{Any, Decode, Encode};
use rcgen::{
    CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, SigningKey, date_time_ymd,
};
use x509_cert::attr::Attribute;

mod constraints;
mod numbers;

const CONTENT: &[u8] = b"the list";

fn check(ca: &UserCa, signature: &[u8]) -> Result<VerifiedSigner, CmsRefusal> {
    verify_detached(CONTENT, signature, &ca.roots(), NOW, &Revocation::Unchecked)
}

/// The signature with its SignedData changed.
fn edited(signature: &[u8], edit: impl FnOnce(&mut SignedData)) -> Vec<u8> {
    let mut info = ContentInfo::from_der(signature).unwrap();
    let mut signed: SignedData = info.content.decode_as().unwrap();
    edit(&mut signed);
    info.content = Any::encode_from(&signed).unwrap();
    info.to_der().unwrap()
}

/// The signature with its signed attributes changed, and signed again by the same key.
fn resigned(user: &User, edit: impl FnOnce(&mut Vec<Attribute>)) -> Vec<u8> {
    edited(&user.sign(CONTENT), |signed| {
        let mut signer = signed.signer_infos.0.get(0).unwrap().clone();
        let mut attributes = signer.signed_attrs.unwrap().into_vec();
        edit(&mut attributes);
        let attributes = SetOfVec::try_from(attributes).unwrap();
        let signature = user.key.sign(&attributes.to_der().unwrap()).unwrap();
        signer.signed_attrs = Some(attributes);
        signer.signature = der::asn1::OctetString::new(signature).unwrap();
        signed.signer_infos.0 = SetOfVec::try_from(vec![signer]).unwrap();
    })
}

fn attribute(oid: &str, value: &Any) -> Attribute {
    Attribute {
        oid: ObjectIdentifier::new(oid).unwrap(),
        values: SetOfVec::try_from(vec![value.clone()]).unwrap(),
    }
}

#[test]
fn accept_user() {
    let ca = user_ca();
    let user = ca.user();
    let signer = check(&ca, &user.sign(CONTENT)).unwrap();
    assert_eq!(signer.tenant(), TENANT);
    assert_eq!(signer.subject(), "CN=Demo User");
    assert_eq!(signer.certificate(), KeyDigest::of(&user.der));
}

#[test]
fn accept_issued_by_root_itself() {
    let ca = user_ca();
    let mut user = ca.user();
    user.der = crate::testkit::user_params()
        .signed_by(&user.key, &ca.root)
        .unwrap()
        .der()
        .to_vec();
    user.chain.clear();
    assert!(check(&ca, &user.sign(CONTENT)).is_ok());
}

#[test]
fn accept_further_signed_attributes() {
    let ca = user_ca();
    let user = ca.user();
    // signingTime, as openssl writes it.
    let time = Any::encode_from(
        &der::asn1::UtcTime::from_unix_duration(std::time::Duration::from_secs(NOW.secs() as u64))
            .unwrap(),
    )
    .unwrap();
    let signature = resigned(&user, |a| a.push(attribute("1.2.840.113549.1.9.5", &time)));
    assert!(check(&ca, &signature).is_ok());
}

#[test]
fn refuse_wrong_ca() {
    let (ca, other) = (user_ca(), user_ca());
    let signature = ca.user().sign(CONTENT);
    assert!(matches!(
        check(&other, &signature),
        Err(CmsRefusal::Untrusted { .. })
    ));
    assert_eq!(
        verify_detached(CONTENT, &signature, &[], NOW, &Revocation::Unchecked),
        Err(CmsRefusal::NoRoots)
    );
    assert!(matches!(
        verify_detached(
            CONTENT,
            &signature,
            &[b"junk".to_vec()],
            NOW,
            &Revocation::Unchecked
        ),
        Err(CmsRefusal::Root(_))
    ));
}

#[test]
fn refuse_missing_intermediate() {
    let ca = user_ca();
    let mut user = ca.user();
    user.chain.clear();
    assert!(matches!(
        check(&ca, &user.sign(CONTENT)),
        Err(CmsRefusal::Untrusted { .. })
    ));
}

#[test]
fn refuse_expired() {
    let ca = user_ca();
    let user = ca.user_with(|p| p.not_after = date_time_ymd(2026, 11, 1));
    assert!(matches!(
        check(&ca, &user.sign(CONTENT)),
        Err(CmsRefusal::Expired { .. })
    ));
}

#[test]
fn refuse_not_yet_valid() {
    let ca = user_ca();
    let user = ca.user_with(|p| p.not_before = date_time_ymd(2026, 12, 1));
    assert!(matches!(
        check(&ca, &user.sign(CONTENT)),
        Err(CmsRefusal::NotYetValid { .. })
    ));
    let before_1970 = UnixTime::from_secs(-1);
    assert_eq!(
        verify_detached(
            CONTENT,
            &user.sign(CONTENT),
            &ca.roots(),
            before_1970,
            &Revocation::Unchecked
        ),
        Err(CmsRefusal::Time(before_1970))
    );
}

#[test]
fn refuse_wrong_eku() {
    let ca = user_ca();
    for ekus in [
        vec![],
        vec![ExtendedKeyUsagePurpose::ServerAuth],
        vec![ExtendedKeyUsagePurpose::Any],
    ] {
        let user = ca.user_with(|p| p.extended_key_usages = ekus);
        assert!(matches!(
            check(&ca, &user.sign(CONTENT)),
            Err(CmsRefusal::ExtendedKeyUsage(_))
        ));
    }
}

#[test]
fn refuse_long_lived() {
    let ca = user_ca();
    let until = |day| {
        let user = ca.user_with(|p| p.not_after = date_time_ymd(2027, 7, day));
        check(&ca, &user.sign(CONTENT))
    };
    assert!(until(4).is_ok(), "398 days from 2026-06-01");
    assert!(matches!(
        until(5),
        Err(CmsRefusal::Lifetime { days: 399, .. })
    ));
}

/// The profile's extensions count as critical ones only.
#[test]
fn refuse_extensions_that_are_not_critical() {
    let ca = user_ca();
    let plain = |oid: &[u64], content: &[u8]| {
        vec![rcgen::CustomExtension::from_oid_content(
            oid,
            content.to_vec(),
        )]
    };
    let missing = ca.user_with(|p| p.is_ca = IsCa::NoCa);
    let constraints = ca.user_with(|p| {
        p.is_ca = IsCa::NoCa;
        p.custom_extensions = plain(&[2, 5, 29, 19], &[0x30, 0]);
    });
    let usage = ca.user_with(|p| {
        p.key_usages.clear();
        p.custom_extensions = plain(&[2, 5, 29, 15], &[3, 2, 7, 0x80]);
    });
    for (user, expected) in [
        (missing, "basicConstraints"),
        (constraints, "basicConstraints"),
        (usage, "keyUsage"),
    ] {
        match check(&ca, &user.sign(CONTENT)) {
            Err(CmsRefusal::NotCritical { extension, .. }) => assert_eq!(extension, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn refuse_wrong_key_usage() {
    let ca = user_ca();
    for usages in [vec![], vec![KeyUsagePurpose::KeyEncipherment]] {
        let user = ca.user_with(|p| p.key_usages = usages);
        assert!(matches!(
            check(&ca, &user.sign(CONTENT)),
            Err(CmsRefusal::KeyUsage(_))
        ));
    }
}

#[test]
fn refuse_ca_as_user() {
    let ca = user_ca();
    let user = ca.user_with(|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert!(matches!(
        check(&ca, &user.sign(CONTENT)),
        Err(CmsRefusal::CaAsUser(_))
    ));
}

#[test]
fn refuse_user_as_ca() {
    let ca = user_ca();
    let user = ca.user();
    let issuer = rcgen::Issuer::new(crate::testkit::user_params(), user.key);
    let key = KeyPair::generate().unwrap();
    let second = User {
        der: crate::testkit::user_params()
            .signed_by(&key, &issuer)
            .unwrap()
            .der()
            .to_vec(),
        key,
        chain: vec![user.der, ca.issuing.der().to_vec()],
    };
    assert!(check(&ca, &second.sign(CONTENT)).is_err());
}

#[test]
fn refuse_issuing_ca_without_key_cert_sign() {
    let ca = user_ca();
    let mut params = crate::testkit::ca_params("No Cert Sign", 0);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let issuing =
        rcgen::CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &ca.root).unwrap();
    let odd = UserCa {
        root: ca.root,
        issuing,
    };
    assert!(matches!(
        check(&odd, &odd.user().sign(CONTENT)),
        Err(CmsRefusal::Untrusted { .. })
    ));
}

#[test]
fn refuse_missing_tenant() {
    let ca = user_ca();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    for names in [
        vec![],
        vec![SanType::DnsName("demo.example".try_into().unwrap())],
        vec![uri("https://demo.example/tenant/demo")],
        vec![uri("spiffe://demo.example/workload/demo")],
        vec![uri("spiffe://demo.example/tenant/")],
        vec![uri("spiffe://demo.example/tenant/a/b")],
        vec![uri("spiffe://DEMO.example/tenant/a")],
        vec![uri("spiffe:///tenant/a")],
        vec![uri("spiffe://demo.example/tenant/%61")],
        vec![uri(TENANT), uri("spiffe://demo.example/tenant/other")],
    ] {
        let user = ca.user_with(|p| p.subject_alt_names = names.clone());
        assert!(
            matches!(
                check(&ca, &user.sign(CONTENT)),
                Err(CmsRefusal::NoTenant { .. })
            ),
            "{names:?}"
        );
    }
}

#[test]
fn refuse_altered_content() {
    let ca = user_ca();
    let signature = ca.user().sign(CONTENT);
    for content in [&b""[..], b"the lisT", b"the list "] {
        assert!(matches!(
            verify_detached(
                content,
                &signature,
                &ca.roots(),
                NOW,
                &Revocation::Unchecked
            ),
            Err(CmsRefusal::AlteredContent { .. })
        ));
    }
}

#[test]
fn refuse_every_flipped_bit() {
    let ca = user_ca();
    let user = ca.user();
    let signature = user.sign(CONTENT);
    let honest = check(&ca, &signature).unwrap();
    for bit in 0..signature.len() * 8 {
        let mut altered = signature.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        // One byte may change freely: the version of SignedData, which nothing signs. Whatever
        // passes says what the honest one says.
        if let Ok(signer) = check(&ca, &altered) {
            assert_eq!(signer, honest, "bit {bit}");
        }
    }
}

#[test]
fn refuse_trailing_bytes() {
    let ca = user_ca();
    let signature = ca.user().sign(CONTENT);
    for bytes in [
        [signature.as_slice(), &[0]].concat(),
        signature[..signature.len() - 1].to_vec(),
        vec![],
        b"-----BEGIN CMS-----".to_vec(),
        // The outer length in a longer form than needed (X.690, 10.1).
        [&[0x30, 0x83, 0x00][..], &signature[2..]].concat(),
    ] {
        assert!(matches!(check(&ca, &bytes), Err(CmsRefusal::Malformed(_))));
    }
    assert!(matches!(
        check(&ca, &vec![0x30; MAX_SIGNATURE + 1]),
        Err(CmsRefusal::TooLong(_))
    ));
}

#[test]
fn refuse_two_signers() {
    let ca = user_ca();
    let (first, second) = (ca.user(), ca.user());
    let other: SignedData = ContentInfo::from_der(&second.sign(CONTENT))
        .unwrap()
        .content
        .decode_as()
        .unwrap();
    let both = edited(&first.sign(CONTENT), |signed| {
        signed
            .signer_infos
            .0
            .insert(other.signer_infos.0.get(0).unwrap().clone())
            .unwrap();
    });
    assert_eq!(check(&ca, &both), Err(CmsRefusal::Signers(2)));
    let none = edited(&first.sign(CONTENT), |signed| {
        signed.signer_infos.0 = SetOfVec::new();
    });
    assert_eq!(check(&ca, &none), Err(CmsRefusal::Signers(0)));
}

#[test]
fn refuse_unsigned_attributes() {
    let ca = user_ca();
    let user = ca.user();
    let value = Any::encode_from(&der::asn1::Null).unwrap();
    let with_unsigned = edited(&user.sign(CONTENT), |signed| {
        let mut signer = signed.signer_infos.0.get(0).unwrap().clone();
        signer.unsigned_attrs = Some(
            SetOfVec::try_from(vec![attribute("1.2.840.113549.1.9.16.2.14", &value)]).unwrap(),
        );
        signed.signer_infos.0 = SetOfVec::try_from(vec![signer]).unwrap();
    });
    assert_eq!(check(&ca, &with_unsigned), Err(CmsRefusal::Unsigned));
    // The signed attributes moved to where nothing signs them.
    let swapped = edited(&user.sign(CONTENT), |signed| {
        let mut signer = signed.signer_infos.0.get(0).unwrap().clone();
        signer.unsigned_attrs = signer.signed_attrs.take();
        signed.signer_infos.0 = SetOfVec::try_from(vec![signer]).unwrap();
    });
    assert_eq!(check(&ca, &swapped), Err(CmsRefusal::Unsigned));
    let without = edited(&user.sign(CONTENT), |signed| {
        let mut signer = signed.signer_infos.0.get(0).unwrap().clone();
        signer.signed_attrs = None;
        signed.signer_infos.0 = SetOfVec::try_from(vec![signer]).unwrap();
    });
    assert!(matches!(
        check(&ca, &without),
        Err(CmsRefusal::Attributes(_))
    ));
}

#[test]
fn refuse_wrong_signed_attributes() {
    let ca = user_ca();
    let user = ca.user();
    let digest = "1.2.840.113549.1.9.4";
    let other = Any::encode_from(&der::asn1::OctetString::new(vec![0; 32]).unwrap()).unwrap();
    for signature in [
        resigned(&user, |a| a.retain(|x| x.oid.to_string() != digest)),
        resigned(&user, |a| a.retain(|x| x.oid.to_string() == digest)),
        resigned(&user, |a| a.push(attribute(digest, &other))),
        resigned(&user, |a| {
            let data = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
            a.retain(|x| x.oid.to_string() == digest);
            a.push(attribute(
                "1.2.840.113549.1.9.3",
                &Any::encode_from(&data).unwrap(),
            ));
        }),
    ] {
        assert!(matches!(
            check(&ca, &signature),
            Err(CmsRefusal::Attributes(_))
        ));
    }
}

#[test]
fn refuse_attached_content() {
    let ca = user_ca();
    let attached = edited(&ca.user().sign(CONTENT), |signed| {
        let octets = der::asn1::OctetString::new(CONTENT).unwrap();
        signed.encap_content_info.econtent = Some(Any::encode_from(&octets).unwrap());
    });
    assert_eq!(check(&ca, &attached), Err(CmsRefusal::NotDetached));
}

#[test]
fn refuse_certificate_of_somebody_else() {
    let ca = user_ca();
    let (user, other) = (ca.user(), ca.user());
    let certificates = |der: &[u8]| -> SignedData {
        ContentInfo::from_der(der)
            .unwrap()
            .content
            .decode_as()
            .unwrap()
    };
    let others = certificates(&other.sign(CONTENT)).certificates;
    let swapped = edited(&user.sign(CONTENT), |signed| signed.certificates = others);
    assert_eq!(check(&ca, &swapped), Err(CmsRefusal::SignerCertificate(0)));
    let none = edited(&user.sign(CONTENT), |signed| signed.certificates = None);
    assert_eq!(check(&ca, &none), Err(CmsRefusal::SignerCertificate(0)));
    // The same issuer and serial number, another key: the signature is not this certificate's.
    let serial =
        |p: &mut rcgen::CertificateParams| p.serial_number = Some(SerialNumber::from(5u64));
    let (victim, thief) = (ca.user_with(serial), ca.user_with(serial));
    let theirs = certificates(&victim.sign(CONTENT)).certificates;
    let forged = edited(&thief.sign(CONTENT), |signed| signed.certificates = theirs);
    assert_eq!(check(&ca, &forged), Err(CmsRefusal::Signature));
}

#[test]
fn refuse_weak_algorithms() {
    let ca = user_ca();
    let signature = ca.user().sign(CONTENT);
    let sha_1 = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
    let ecdsa_sha_1 = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");
    let digest = edited(&signature, |signed| {
        let mut signer = signed.signer_infos.0.get(0).unwrap().clone();
        signer.digest_alg.oid = sha_1;
        signed.signer_infos.0 = SetOfVec::try_from(vec![signer]).unwrap();
    });
    assert!(matches!(
        check(&ca, &digest),
        Err(CmsRefusal::DigestAlgorithm(_))
    ));
    let algorithm = edited(&signature, |signed| {
        let mut signer = signed.signer_infos.0.get(0).unwrap().clone();
        signer.signature_algorithm.oid = ecdsa_sha_1;
        signed.signer_infos.0 = SetOfVec::try_from(vec![signer]).unwrap();
    });
    assert!(matches!(
        check(&ca, &algorithm),
        Err(CmsRefusal::SignatureAlgorithm(_))
    ));
}

#[test]
fn revocation() {
    let ca = user_ca();
    let user = ca.user_with(|p| p.serial_number = Some(SerialNumber::from(77u64)));
    let signature = user.sign(CONTENT);
    let crl = |issuer: &rcgen::CertifiedIssuer<'static, KeyPair>, revoked: Option<u64>, until| {
        CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 11, 1),
            next_update: until,
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(serial),
                    revocation_time: date_time_ymd(2026, 11, 2),
                    reason_code: None,
                    invalidity_date: None,
                })
                .into_iter()
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(issuer)
        .unwrap()
        .der()
        .to_vec()
    };
    let fresh = date_time_ymd(2026, 12, 1);
    let stale = date_time_ymd(2026, 11, 10);
    let with = |crls: Vec<Vec<u8>>| {
        verify_detached(
            CONTENT,
            &signature,
            &ca.roots(),
            NOW,
            &Revocation::Crls(crls),
        )
    };
    let of_root = crl(&ca.root, None, fresh);
    assert!(with(vec![of_root.clone(), crl(&ca.issuing, None, fresh)]).is_ok());
    assert!(with(vec![of_root.clone(), crl(&ca.issuing, Some(78), fresh)]).is_ok());
    assert!(matches!(
        with(vec![of_root.clone(), crl(&ca.issuing, Some(77), fresh)]),
        Err(CmsRefusal::Revoked(_))
    ));
    for unsettled in [
        vec![],
        vec![of_root.clone()],
        vec![crl(&ca.issuing, None, fresh)],
        vec![of_root.clone(), crl(&ca.issuing, None, stale)],
        vec![of_root, b"junk".to_vec()],
    ] {
        assert!(matches!(
            with(unsettled),
            Err(CmsRefusal::RevocationUnknown { .. })
        ));
    }
}

#[test]
fn refuse_building_with_another_key() {
    let ca = user_ca();
    let (user, other) = (ca.user(), ca.user());
    assert_eq!(
        build_detached(CONTENT, &user.der, &[], |m| other.key.sign(m)),
        Err(BuildError::OtherKey)
    );
    let failed: Result<_, BuildError<&str>> =
        build_detached(CONTENT, &user.der, &[], |_| Err("no token"));
    assert_eq!(failed, Err(BuildError::Sign("no token")));
    assert!(matches!(
        build_detached(CONTENT, b"junk", &[], |m| other.key.sign(m)),
        Err(BuildError::Certificate(_))
    ));
}

#[test]
fn pem_bundles() {
    let ca = user_ca();
    let bundle = format!("{}{}", ca.root.pem(), ca.issuing.pem());
    let ders = certificates_from_pem(bundle.as_bytes()).unwrap();
    assert_eq!(ders, [ca.root.der().to_vec(), ca.issuing.der().to_vec()]);
    for bad in [
        "",
        "junk",
        &bundle[..200],
        &ca.root.pem().replace("CERTIFICATE", "PUBLIC KEY"),
    ] {
        assert!(certificates_from_pem(bad.as_bytes()).is_err(), "{bad}");
    }
}
