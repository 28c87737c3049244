//! CAs with name constraints: the one that a policy names, and those between.

use super::*;

/// Of a CA that the policy names, constraints on URIs, which tenants are, are evaluated.
#[test]
fn a_named_ca_speaks_for_the_hosts_that_it_may() {
    // NameConstraints { permittedSubtrees [0] { { [6] uri } } } or excludedSubtrees [1]
    let extension = |tag: u8, uri: &str| {
        let tlv = |tag: u8, value: &[u8]| [&[tag, value.len() as u8], value].concat();
        let trees = tlv(tag, &tlv(0x30, &tlv(0x86, uri.as_bytes())));
        let mut extension =
            rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], tlv(0x30, &trees));
        extension.set_criticality(true);
        extension
    };
    for (tag, uri, ok) in [
        (0xa0, "demo.example", true),
        (0xa0, ".example", true),
        (0xa0, "other.example", false),
        (0xa0, ".demo.example", false),
        (0xa1, "demo.example", false),
        (0xa1, "other.example", true),
    ] {
        let mut ca = user_ca();
        let mut params = crate::testkit::ca_params("Constrained Root", 1);
        params.custom_extensions = vec![extension(tag, uri)];
        let key = KeyPair::generate().unwrap();
        ca.root = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = crate::testkit::ca_params("Demo Issuing CA", 0);
        ca.issuing = rcgen::CertifiedIssuer::signed_by(params, key, &ca.root).unwrap();
        match check(&ca, &ca.user().sign(CONTENT)) {
            Ok(_) => assert!(ok, "{tag:x} {uri}"),
            Err(CmsRefusal::Untrusted { detail, .. }) => {
                assert!(
                    !ok && detail.contains("NameConstraintViolation"),
                    "{uri}: {detail}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

/// An issuing CA between that has some is refused, also for tenants that it would permit, unless the
/// policy names it.
#[test]
fn refuse_name_constraints() {
    use rcgen::{CustomExtension, GeneralSubtree, NameConstraints};
    let permitted = |names: Vec<GeneralSubtree>| NameConstraints {
        permitted_subtrees: names,
        excluded_subtrees: Vec::new(),
    };
    // RFC 5280, 4.2.1.10: permittedSubtrees [0] { GeneralSubtree { [6] "other.example" } }
    let uri = b"other.example";
    let inner = [&[0x86, uri.len() as u8], &uri[..]].concat();
    let subtree = [&[0x30, inner.len() as u8], &inner[..]].concat();
    let trees = [&[0xa0, subtree.len() as u8], &subtree[..]].concat();
    let whole = [&[0x30, trees.len() as u8], &trees[..]].concat();
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], whole);
    extension.set_criticality(true);
    let of_uri = |p: &mut rcgen::CertificateParams| p.custom_extensions = vec![extension.clone()];
    let of_subject = |p: &mut rcgen::CertificateParams| {
        let mut other = rcgen::DistinguishedName::new();
        other.push(rcgen::DnType::CommonName, "Somebody Else");
        p.name_constraints = Some(permitted(vec![GeneralSubtree::DirectoryName(other)]));
    };
    let check_with = |edit: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut ca = user_ca();
        let mut params = crate::testkit::ca_params("Constrained CA", 0);
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        ca.issuing = rcgen::CertifiedIssuer::signed_by(params, key, &ca.root).unwrap();
        check(&ca, &ca.user().sign(CONTENT))
    };
    assert!(check_with(&|_| ()).is_ok());
    // the issuing CA, with a constraint that permits the tenant, named by the policy
    let mut ca = user_ca();
    let mut params = crate::testkit::ca_params("Constrained CA", 0);
    let uri = b"demo.example";
    let mut whole = vec![0x30, uri.len() as u8 + 6, 0xa0, uri.len() as u8 + 4];
    whole.extend([0x30, uri.len() as u8 + 2, 0x86, uri.len() as u8]);
    whole.extend(uri);
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 30], whole)];
    let key = KeyPair::generate().unwrap();
    ca.issuing = rcgen::CertifiedIssuer::signed_by(params, key, &ca.root).unwrap();
    let signed = ca.user().sign(CONTENT);
    let named = [ca.issuing.der().to_vec()];
    let by = |roots: &[Vec<u8>]| {
        verify_detached(CONTENT, &signed, roots, NOW, &Revocation::Unchecked).map(drop)
    };
    assert_eq!(by(&named), Ok(()));
    assert!(by(&ca.roots()).is_err());
    for edit in [
        &of_uri as &dyn Fn(&mut rcgen::CertificateParams),
        &of_subject,
    ] {
        match check_with(edit) {
            Err(CmsRefusal::Untrusted { detail, .. }) => {
                assert!(detail.contains("NameConstraint"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }
}
