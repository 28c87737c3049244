//! Collections: round trip and every way to be refused.

use super::*;
use crate::growing::Growing;

fn evidence() -> Evidence {
    Evidence {
        host_attest: vec![1],
        host_sig: vec![2],
        host_ak: vec![3],
        host_pcrs: HostPcrs([[7; 32]; HOST_QUOTED.len()]),
        host_root: Root::Software,
        container_attest: vec![4],
        container_sig: vec![5],
        container_ak: vec![6],
        container_ek: vec![7],
        batch: Path::single(),
        log_from: LogFrom::default(),
        binding: vec![8],
        binding_log: vec![],
        host_ima: vec![13],
        container_log: vec![10; 1000],
        siglist: vec![11],
        siglist_sig: vec![12],
    }
}

const MAX: usize = 1 << 20;

#[test]
fn accept_what_was_encoded() {
    let bytes = evidence().encode();
    assert_eq!(Evidence::parse(&bytes, MAX), Ok(evidence()));
    assert_eq!(
        Evidence::parse(&bytes, bytes.len() - 1),
        Err(EvidenceError::TooLong {
            found: bytes.len(),
            max: bytes.len() - 1
        })
    );
}

#[test]
fn refuse_other_collections() {
    let text = String::from_utf8(evidence().encode()).unwrap();
    let malformed = [
        format!("{text} x"),
        text.replace("\"host/sig\"", "\"host/sign\""),
        text.replace("\"siglist\":", "\"extra\":1,\"siglist\":"),
        text.replacen(
            "{",
            r#"{"binding":["application/vnd.attestrun.binding+json","CA",4],"#,
            1,
        ),
        text.replace(",4]", ",4,0]"),
        text.replace(",4]", "]"),
        text.replace(",4]", ",-4]"),
    ];
    for bad in malformed {
        assert_ne!(bad, text);
        assert!(
            matches!(
                Evidence::parse(bad.as_bytes(), MAX),
                Err(EvidenceError::Malformed(_))
            ),
            "{bad}"
        );
    }
    let kind = text.replace("evidence/v1", "evidence/v2");
    assert!(matches!(
        Evidence::parse(kind.as_bytes(), MAX),
        Err(EvidenceError::Collection(_))
    ));
    for (from, to, item) in [
        ("application/cms", "application/pkcs7", "siglist.sig"),
        (
            "root-claim\",\"c29mdHdhcmU\",4",
            "root-claim\",\"c29mdHdhcmU\",3",
            "host/root",
        ),
        ("\"c29mdHdhcmU\"", "\"c29mdHdhcmU=\"", "host/root"),
        ("\"c29mdHdhcmU\"", "\"Zm9v\"", "host/root"),
        ("\"c29mdHdhcmU\"", "\"c29mdHdhcmV\"", "host/root"),
    ] {
        let bad = text.replace(from, to);
        assert_ne!(bad, text);
        let refusal = Evidence::parse(bad.as_bytes(), MAX).unwrap_err();
        assert!(
            matches!(&refusal, EvidenceError::Item { item: i, .. } if *i == item),
            "{refusal}"
        );
    }
}

#[test]
fn refuse_items_that_are_too_long() {
    let mut long = evidence();
    long.host_sig = vec![0; 5000];
    let refusal = Evidence::parse(&long.encode(), MAX).unwrap_err();
    assert!(
        matches!(
            refusal,
            EvidenceError::Item {
                item: "host/sig",
                ..
            }
        ),
        "{refusal}"
    );
}

#[test]
fn refuse_other_pcr_values() {
    let good = String::from_utf8(evidence().host_pcrs.encode()).unwrap();
    assert!(HostPcrs::parse(good.as_bytes()).is_ok());
    for bad in [
        good.replace("\"13\"", "\"14\""),
        good.replace("\"13\"", "\"12\""),
        good.replace("{\"0\"", "{\"23\":\"\",\"0\""),
        good.replace("sha256", "sha1"),
        good.replace("\"0707", "\"0G07"),
        good.replace("\"0707", "\"07"),
        format!("{good} "),
    ] {
        assert_ne!(bad, good);
        assert!(HostPcrs::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn accept_a_record_and_its_digest_and_tell_them_apart() {
    let mut one = evidence();
    let r = one.record_digest();
    one.binding = r.as_bytes().to_vec();
    let bytes = one.encode();
    let read = Evidence::parse(&bytes, MAX).unwrap();
    assert_eq!((read.record_digest(), &read), (r, &one));
    let text = String::from_utf8(bytes).unwrap();
    let lie = text.replace("binding-digest", "binding+json");
    assert!(matches!(
        Evidence::parse(lie.as_bytes(), MAX),
        Err(EvidenceError::Item {
            item: "binding",
            ..
        })
    ));
}

#[test]
fn logs_travel_without_what_the_challenger_has() {
    let mut whole = evidence();
    whole.container_log = b"abcdef".to_vec();
    whole.binding_log = b"xyz".to_vec();
    let prefix = |log: &[u8]| Prefix::of(&Growing::of(log));
    let has = Has {
        container: prefix(b"abcd"),
        host: prefix(b"xyz"),
        ima: prefix(&[13]),
        siglist: Some(list_digest(&[11], &[12])),
    };
    let sent = whole.clone().without(&has);
    let left = [
        &sent.container_log,
        &sent.binding_log,
        &sent.host_ima,
        &sent.siglist,
        &sent.siglist_sig,
    ];
    assert_eq!(left.map(Vec::as_slice), [&b"ef"[..], b"", b"", b"", b""]);
    let read = Evidence::parse(&sent.encode(), MAX).unwrap();
    let from = LogFrom {
        container: 4,
        host: 3,
        ima: 1,
        siglist: true,
    };
    assert_eq!(read.log_from, from);
    // Each log that does not begin so comes in full; if it is the container's, all do.
    let none = Has {
        container: None,
        host: prefix(b"xx"),
        ima: prefix(&[14]),
        siglist: Some(list_digest(&[11], &[13])),
    };
    assert_eq!(whole.clone().without(&none), whole);
    let other = Has {
        container: prefix(b"abce"),
        ..has
    };
    assert_eq!(whole.clone().without(&other), whole);
}
