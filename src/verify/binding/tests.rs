//! Records and their log.

use super::*;

pub(super) fn record() -> Record {
    let name = |n: u8| TpmName::of_public(&[n]);
    let claim = Claim {
        container: ContainerId::parse("web-1").unwrap(),
        created: UnixTime::from_secs(1_795_445_000),
        vtpm_ak_name: name(1),
        vtpm_ek_name: name(2),
        vtpm_reset: 1,
        vtpm_restart: 0,
        image: ImageDigest::of(b"image").into(),
        image_config: ConfigDigest::of(b"config").into(),
        bundle_config: BundleDigest::of(b"bundle"),
        profile: ProfileDigest::of(b"profile"),
        siglist: ListDigest::of(b"list").into(),
        user_cert: KeyDigest::of(b"cert").into(),
        policy: PolicyDigest::of(b"policy"),
        mode: "enforce".into(),
        tier: "none".into(),
        runtime: FileDigest::of(b"attestrun"),
        swtpm: FileDigest::of(b"swtpm"),
        peers: vec![],
    };
    let host = HostPart {
        seq: 1,
        prev: "0".repeat(64),
        host_boot: "01234567-89ab-cdef-0123-456789abcdef".into(),
        host_reset: 7,
        host_ak_name: name(3),
    };
    Record::new(claim, host).unwrap()
}

#[test]
fn accept_canonical_record() {
    let record = record();
    let bytes = record.canonical().unwrap();
    assert_eq!(Record::parse(&bytes), Ok(record.clone()));
    assert_eq!(record.digest().unwrap(), digest_of(&bytes));
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains(r#""v":1,"#), "{text}");
    assert!(
        text.starts_with(r#"{"bundle_config":"#),
        "keys are sorted: {text}"
    );
}

#[test]
fn refuse_other_spellings() {
    let bytes = record().canonical().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(
        Record::parse(format!("{text}\n").as_bytes()),
        Err(BindingError::NotCanonical)
    );
    assert_eq!(
        Record::parse(text.replace(":1,", ": 1,").as_bytes()),
        Err(BindingError::NotCanonical)
    );
    assert_eq!(
        Record::parse(text.replace(r#""v":1"#, r#""v":2"#).as_bytes()),
        Err(BindingError::Version(2))
    );
    for bad in [
        text.replace(r#""v":1"#, r#""v":1,"w":1"#),
        text.replace(r#""tier":"none","#, ""),
        text.replace(r#""tier":"none""#, r#""tier":"none","tier":"none""#),
        text.replace(r#""seq":1"#, r#""seq":9007199254740993"#),
        text.replace(r#""seq":1"#, r#""seq":-1"#),
        text.replace("000b", "0004"),
        text.replace("web-1", "../web"),
    ] {
        assert!(
            matches!(
                Record::parse(bad.as_bytes()),
                Err(BindingError::Malformed(_))
            ),
            "{bad}"
        );
    }
    for (from, to, field) in [
        ("\"enforce\"", "\"ENFORCE\"", "mode"),
        ("\"none\"", "\"\"", "tier"),
        ("01234567-89ab", "01234567_89ab", "host_boot"),
        (&"0".repeat(64), &"0".repeat(63), "prev"),
        ("\"peers\":[]", "\"peers\":[\"x\"]", "peers"),
    ] {
        let refusal = Record::parse(text.replace(from, to).as_bytes()).unwrap_err();
        assert!(
            matches!(refusal, BindingError::Field { field: f, .. } if f == field),
            "{refusal}"
        );
    }
}

fn entry(kind: Kind, ak: u8, r: u8) -> LogEntry {
    LogEntry::new(kind, &TpmName::of_public(&[ak]), RecordDigest::of(&[r]))
}

#[test]
fn accept_log_lines() {
    let entries = [
        entry(Kind::Bind, 1, 1),
        entry(Kind::Bind, 2, 2),
        entry(Kind::Unbind, 1, 1),
    ];
    let bytes: Vec<u8> = entries.iter().flat_map(|e| e.line().unwrap()).collect();
    assert_eq!(parse_log(&bytes), Ok(entries.to_vec()));
    assert_eq!(parse_log(b""), Ok(vec![]));
}

#[test]
fn refuse_other_log_lines() {
    let line = entry(Kind::Bind, 1, 1).line().unwrap();
    let text = String::from_utf8(line.clone()).unwrap();
    for bad in [
        text.trim_end().to_owned(),
        format!("\n{text}"),
        format!(" {text}"),
        text.replace("bind", "Bind"),
        text.replace("\"kind\"", "\"k\":1,\"kind\""),
        text.replace("sha256:", ""),
    ] {
        assert!(
            matches!(
                parse_log(bad.as_bytes()),
                Err(BindingError::Line { line: 1, .. })
            ),
            "{bad:?}"
        );
    }
    let empty_line = format!("{text}\n");
    assert!(matches!(
        parse_log(empty_line.as_bytes()),
        Err(BindingError::Line { line: 2, .. })
    ));
}

#[test]
fn refuse_flipped_bits_of_a_log() {
    let entries = [entry(Kind::Bind, 1, 1), entry(Kind::Unbind, 1, 1)];
    let bytes: Vec<u8> = entries.iter().flat_map(|e| e.line().unwrap()).collect();
    let pcr = replay([0; 32], &entries);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(entries) = parse_log(&flipped) {
            assert_ne!(replay([0; 32], &entries), pcr, "bit {bit}");
        }
    }
}

#[test]
fn a_record_is_live_once_and_until_its_end() {
    use Kind::{Bind, Unbind, Void};
    use NotLive::{BoundAgain, KeyReused, NeverBound, OtherKey, Unbound};
    let judge = |log: &[LogEntry]| live(log, &RecordDigest::of(&[1]), &TpmName::of_public(&[1]));
    let (mine, other) = (entry(Bind, 1, 1), entry(Bind, 2, 2));
    assert_eq!(judge(&[other, mine]).map(|live| live.position()), Ok(1));
    assert_eq!(
        judge(&[mine, other, entry(Unbind, 2, 2)]).map(|live| live.position()),
        Ok(0)
    );
    for (log, expected) in [
        (vec![], vec![NeverBound]),
        (vec![other], vec![NeverBound]),
        (vec![entry(Bind, 2, 1)], vec![NeverBound, OtherKey]),
        (vec![mine, mine], vec![BoundAgain]),
        (vec![mine, entry(Bind, 1, 2)], vec![KeyReused]),
        (vec![entry(Bind, 1, 2), mine], vec![KeyReused]),
        (vec![mine, entry(Unbind, 1, 1)], vec![Unbound]),
        (vec![entry(Unbind, 1, 1), mine], vec![Unbound]),
        (vec![mine, entry(Void, 1, 1)], vec![NotLive::Void]),
    ] {
        assert_eq!(judge(&log), Err(expected), "{log:?}");
    }
}
