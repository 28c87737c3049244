//! Quotes and keys: what is accepted, and every way to be refused.

use super::softkey::{Draft, SoftKey, sized};
use super::*;
use crate::check::Check;
use crate::pcr::{PcrIndex, QUOTED};

const QD: [u8; 32] = [9; 32];

fn values() -> Vec<[u8; 32]> {
    (0..12).map(|n| [n; 32]).collect()
}
fn draft() -> Draft {
    Draft::new(&QD, &QUOTED, &values())
}
fn witness(key: &SoftKey) -> AttestationKey {
    AttestationKey::check(&key.public()).unwrap()
}
/// The checks that refuse the quote.
fn refusals(key: &SoftKey, attest: &[u8], signature: &[u8]) -> Vec<Check> {
    let errors = verify_quote(&witness(key), attest, signature, &QD, &QUOTED).unwrap_err();
    errors.iter().map(QuoteError::check).collect()
}

#[test]
fn accept_quote() {
    let key = SoftKey::attestation();
    let attest = draft().encode();
    let quote = verify_quote(&witness(&key), &attest, &key.sign(&attest), &QD, &QUOTED).unwrap();
    assert_eq!(
        (quote.reset(), quote.restart(), quote.safe(), quote.clock()),
        (1, 0, true, 4711)
    );
    assert_eq!(quote.firmware(), 0x2019_1023_0016_3636);
    let pcrs = quote.explains(&values()).unwrap();
    assert_eq!(pcrs.get(PcrIndex::new(5).unwrap()), Some(&[5; 32]));
    assert_eq!(pcrs.get(PcrIndex::new(12).unwrap()), None);
}

#[test]
fn refuse_values_that_were_not_quoted() {
    let key = SoftKey::attestation();
    let attest = draft().encode();
    let quote = verify_quote(&witness(&key), &attest, &key.sign(&attest), &QD, &QUOTED).unwrap();
    let mut other = values();
    other[3] = [0; 32];
    for wrong in [&other[..], &values()[..11], &[]] {
        assert!(matches!(
            quote.explains(wrong),
            Err(QuoteError::PcrDigest { .. })
        ));
    }
}

#[test]
fn refuse_each_field_by_its_name() {
    let key = SoftKey::attestation();
    let case = |edit: &dyn Fn(&mut Draft)| {
        let mut draft = draft();
        edit(&mut draft);
        let attest = draft.encode();
        refusals(&key, &attest, &key.sign(&attest))
    };
    assert_eq!(case(&|d| d.magic = 0xFF54_4348), [Check::QMagic]);
    assert_eq!(case(&|d| d.kind = 0x8017), [Check::QType]);
    assert_eq!(case(&|d| d.qd = vec![9; 31]), [Check::QQd]);
    assert_eq!(case(&|d| d.qd = vec![]), [Check::QQd]);
    assert_eq!(case(&|d| d.safe = 2), [Check::QParse]);
    for selection in [
        vec![],
        vec![(alg::SHA256, 0x7FF)],
        vec![(alg::SHA256, 0x1FFF)],
        vec![(alg::SHA1, 0xFFF)],
        vec![(alg::SHA256, 0xFFF), (alg::SHA256, 0xFFF)],
        vec![(alg::SHA1, 0xFFF), (alg::SHA256, 0xFFF)],
        vec![(alg::SHA256, 0x1_0FFE)],
    ] {
        assert_eq!(
            case(&|d| d.selection.clone_from(&selection)),
            [Check::QSel],
            "{selection:x?}"
        );
    }
    // All failures, not only the first.
    assert_eq!(
        case(&|d| {
            d.magic = 0;
            d.qd = vec![];
            d.selection = vec![];
        }),
        [Check::QMagic, Check::QQd, Check::QSel]
    );
}

#[test]
fn refuse_signature_of_another_key() {
    let (key, other) = (SoftKey::attestation(), SoftKey::attestation());
    let attest = draft().encode();
    assert_eq!(refusals(&key, &attest, &other.sign(&attest)), [Check::QSig]);
}

#[test]
fn refuse_trailing_and_truncated_bytes() {
    let key = SoftKey::attestation();
    let attest = draft().encode();
    let signature = key.sign(&attest);
    let longer = [attest.as_slice(), &[0]].concat();
    assert_eq!(refusals(&key, &longer, &key.sign(&longer)), [Check::QParse]);
    assert_eq!(
        refusals(&key, &attest, &[signature.as_slice(), &[0]].concat()),
        [Check::QParse]
    );
    for end in 0..attest.len() {
        assert!(Attest::parse(&attest[..end]).is_err(), "{end}");
    }
    for end in 0..signature.len() {
        assert!(Signature::parse(&signature[..end]).is_err(), "{end}");
    }
    for end in 0..key.tpmt_public().len() {
        assert!(Public::parse(&key.tpmt_public()[..end]).is_err(), "{end}");
    }
}

#[test]
fn refuse_other_algorithms_by_name() {
    let rsa = [
        &alg::RSASSA.to_be_bytes()[..],
        &alg::SHA256.to_be_bytes(),
        &sized(&[1; 256]),
    ]
    .concat();
    assert!(
        Signature::parse(&rsa)
            .unwrap_err()
            .to_string()
            .contains("RSASSA")
    );
    let sha1 = [
        &alg::ECDSA.to_be_bytes()[..],
        &alg::SHA1.to_be_bytes(),
        &sized(&[1; 32]),
        &sized(&[1; 32]),
    ];
    assert!(Signature::parse(&sha1.concat()).is_err());
    let rsa_key = [&alg::RSA.to_be_bytes()[..], &[0; 100]].concat();
    assert!(
        Public::parse(&rsa_key)
            .unwrap_err()
            .to_string()
            .contains("RSA")
    );
}

#[test]
fn accept_numbers_without_leading_zeros() {
    let signature = |r: &[u8]| {
        [
            &alg::ECDSA.to_be_bytes()[..],
            &alg::SHA256.to_be_bytes(),
            &sized(r),
            &sized(&[2; 32]),
        ]
        .concat()
    };
    let padded = [&[0][..], &[1; 31]].concat();
    let parse = |r: &[u8]| Signature::parse(&signature(r)).map(|s| s.fixed());
    assert_eq!(parse(&padded), parse(&[1; 31]));
    assert!(parse(&[]).is_err());
    assert!(parse(&[0; 33]).is_err());
}

#[test]
fn refuse_flipped_bits() {
    let key = SoftKey::attestation();
    let attest = draft().encode();
    let signature = key.sign(&attest);
    let witness = witness(&key);
    for bit in 0..attest.len() * 8 {
        let mut flipped = attest.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(
            verify_quote(&witness, &flipped, &signature, &QD, &QUOTED).is_err(),
            "attest bit {bit}"
        );
    }
    for bit in 0..signature.len() * 8 {
        let mut flipped = signature.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(
            verify_quote(&witness, &attest, &flipped, &QD, &QUOTED).is_err(),
            "signature bit {bit}"
        );
    }
}

/// An attestation key's head with other attributes.
fn with_attributes(attributes: u32) -> SoftKey {
    let mut head = aik_template();
    head.truncate(head.len() - 4);
    head[4..8].copy_from_slice(&attributes.to_be_bytes());
    SoftKey::with_head(&head)
}

#[test]
fn refuse_keys_that_may_not_attest() {
    const AIK: u32 = 0x0005_0472;
    assert!(AttestationKey::check(&with_attributes(AIK).public()).is_ok());
    for (name, attributes) in [
        ("unrestricted", AIK & !0x1_0000),
        ("decrypting", AIK | 0x2_0000),
        ("not signing", AIK & !0x4_0000),
        ("not fixedTPM", AIK & !0x2),
        ("not fixedParent", AIK & !0x10),
        ("imported", AIK & !0x20),
        ("x509sign", AIK | 0x8_0000),
        ("reserved bit", AIK | 0x1),
    ] {
        let refusal = AttestationKey::check(&with_attributes(attributes).public());
        assert!(
            matches!(refusal, Err(KeyRefusal::Attributes { .. })),
            "{name}: {refusal:?}"
        );
    }
    assert!(AttestationKey::check(&SoftKey::endorsement().public()).is_err());

    let mut head = aik_template();
    head.truncate(head.len() - 4);
    // TPM_ALG_NULL as scheme, without its hash: the caller could choose one.
    head.splice(12..16, alg::NULL.to_be_bytes());
    assert_eq!(
        AttestationKey::check(&SoftKey::with_head(&head).public()),
        Err(KeyRefusal::Scheme)
    );

    let mut off_curve = SoftKey::attestation().tpmt_public().to_vec();
    *off_curve.last_mut().unwrap() ^= 1;
    assert_eq!(
        AttestationKey::check(&Public::parse(&off_curve).unwrap()),
        Err(KeyRefusal::Point)
    );
}

#[test]
fn accept_only_endorsement_keys_of_the_template() {
    assert!(EndorsementKey::check(&SoftKey::endorsement().public()).is_ok());
    assert_eq!(
        EndorsementKey::check(&SoftKey::attestation().public()),
        Err(KeyRefusal::NotAnEk)
    );
}

#[test]
fn names_are_hashes_of_public_areas() {
    let key = SoftKey::attestation();
    let name = key.public().name();
    assert_eq!(name.as_bytes()[..2], [0, 0x0B]);
    assert_eq!(TpmName::parse(&name.to_string()), Ok(name));
    assert_eq!(Public::parse_2b(&key.public().to_2b()), Ok(key.public()));
    for bad in [
        "",
        "000b",
        &name.to_string().to_uppercase(),
        &format!("{name}00"),
        &format!("0004{}", "0".repeat(64)),
    ] {
        assert!(TpmName::parse(bad).is_err(), "{bad}");
    }
}
