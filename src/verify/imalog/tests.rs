//! Lists: round trips, every malformed form, paths.

use super::*;

fn file(path: &[u8], content: &[u8]) -> Entry {
    Entry::file(FileDigest::of(content), EncodedPath::of(path).unwrap())
}
fn buffer(pcr: u32, name: &str, buf: &[u8]) -> Entry {
    Entry::buffer(PcrIndex::new(pcr).unwrap(), name, buf.to_vec()).unwrap()
}
fn sample() -> Vec<Entry> {
    vec![
        buffer(0, "attestrun.host-link", b"{}"),
        file(b"/bin/busybox", b"busybox"),
        file(
            "/tmp/a b%\n\u{7f}\u{e4}\u{0}c"
                .replace('\0', "-")
                .as_bytes(),
            b"",
        ),
        buffer(11, "attestrun.exec", b""),
    ]
}
fn encoded(entries: &[Entry]) -> Vec<u8> {
    entries.iter().flat_map(Entry::encode).collect()
}

#[test]
fn accept_what_was_encoded() {
    assert_eq!(parse(&encoded(&sample())), Ok(sample()));
    assert_eq!(parse(b""), Ok(vec![]));
}

/// Known answer, computed with Python's hashlib and struct from the layout in the kernel's source.
#[test]
fn an_entry_has_the_kernels_layout() {
    let entry = file(b"/bin/sh", b"abc");
    let expected = concat!(
        "0a000000",
        "83fdff315175587157ed3aa604e7f9ec63ca0b42",
        "06000000",
        "696d612d6e67",
        "38000000",
        "28000000",
        "7368613235363a00",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "08000000",
        "2f62696e2f736800",
    );
    assert_eq!(hex::encode(entry.encode()), expected);
}

#[test]
fn refuse_truncated_and_trailing_bytes() {
    let whole = encoded(&sample());
    let ends: Vec<usize> = (0..=4).map(|n| encoded(&sample()[..n]).len()).collect();
    for end in 0..whole.len() {
        assert_eq!(parse(&whole[..end]).is_ok(), ends.contains(&end), "{end}");
    }
    assert!(parse(&[whole, vec![0]].concat()).is_err());
}

/// No flipped bit goes unnoticed: it is refused, or it changes what the PCRs must be.
#[test]
fn refuse_flipped_bits() {
    let whole = encoded(&sample());
    let expected = Replay::of(&sample());
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(entries) = parse(&flipped) {
            assert_ne!(Replay::of(&entries), expected, "bit {bit}");
        }
    }
}

/// An entry of any shape, with a matching template hash.
fn raw(pcr: u32, template: &str, fields: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    for field in fields {
        put_field(&mut data, &[field]);
    }
    let mut out = pcr.to_le_bytes().to_vec();
    out.extend(Sha1::digest(&data));
    put_field(&mut out, &[template.as_bytes()]);
    put_field(&mut out, &[&data]);
    out
}

#[test]
fn refuse_every_other_form() {
    let digest = [DIGEST_PREFIX, FileDigest::of(b"x").as_bytes()].concat();
    let sha1 = [&b"sha1:\0"[..], &[0; 20]].concat();
    let pcr = |n| PcrIndex::new(n).unwrap();
    let entry = 0;
    let field = |field| ParseError::Field { entry, field };
    for (bytes, expected) in [
        (
            raw(24, "ima-ng", &[&digest, b"/x\0"]),
            ParseError::Pcr { entry, found: 24 },
        ),
        (
            raw(10, "ima-sig", &[&digest, b"/x\0", b""]),
            ParseError::Template {
                entry,
                found: "ima-sig".into(),
            },
        ),
        (
            raw(11, "ima-ng", &[&digest, b"/x\0"]),
            ParseError::TemplatePcr {
                entry,
                template: "ima-ng",
                pcr: pcr(11),
            },
        ),
        (
            raw(10, "ima-ng", &[&sha1, b"/x\0"]),
            field("digest (sha256 is demanded)"),
        ),
        (raw(10, "ima-ng", &[&digest, b"/x"]), field("name")),
        (raw(10, "ima-ng", &[&digest, b"/\xff\0"]), field("name")),
        (
            raw(10, "ima-ng", &[&digest, b"/x\0", b""]),
            field("template data (trailing bytes)"),
        ),
        (
            raw(10, "ima-ng", &[&digest]),
            ParseError::Truncated {
                entry,
                field: "name",
            },
        ),
        (
            raw(0, "ima-buf", &[&digest, b"a\0", b"y"]),
            ParseError::BufferDigest { entry },
        ),
        (
            raw(10, "ima-buf", &[&digest, b"a\0", b"x"]),
            ParseError::Entry {
                entry,
                source: EntryError::BufferPcr(pcr(10)),
            },
        ),
        (
            raw(12, "ima-buf", &[&digest, b"a\0", b"x"]),
            ParseError::Entry {
                entry,
                source: EntryError::BufferPcr(pcr(12)),
            },
        ),
        (
            raw(0, "ima-buf", &[&digest, b"A\0", b"x"]),
            ParseError::Entry {
                entry,
                source: EntryError::Name("A".into()),
            },
        ),
    ] {
        assert_eq!(parse(&bytes), Err(expected));
    }
    let mut violation = raw(10, "ima-ng", &[&digest, b"/x\0"]);
    violation[4..24].fill(0);
    assert_eq!(parse(&violation), Err(ParseError::Violation { entry }));
    violation[4..24].fill(1);
    assert_eq!(parse(&violation), Err(ParseError::TemplateHash { entry }));
}

#[test]
fn refuse_paths_that_are_not_canonical() {
    for bad in [
        "", "x", "/", "//x", "/x/", "/a//b", "/.", "/..", "/a/../b", "/a/./b", "/a b", "/%2F",
        "/%41", "/%c3%a4", "/%C3%A4", "/%2", "/%", "/%zz", "/%00", "/%0a", "/\u{7f}", "/%+1",
    ] {
        assert!(EncodedPath::parse(bad).is_err(), "{bad}");
    }
    for good in [
        "/x", "/a_b", "/a%20b", "/%25", "/%0A", "/ä", "/%FF", "/...", "/a:b", "/%7F",
    ] {
        let path = EncodedPath::parse(good).unwrap();
        assert_eq!(EncodedPath::of(&path.decode()), Ok(path));
    }
}

#[test]
fn encoding_of_paths_is_injective() {
    let names: [&[u8]; 8] = [
        b"/a b",
        b"/a_b",
        b"/a%20b",
        b"/a\nb",
        b"/a\xffb",
        "/a\u{fffd}b".as_bytes(),
        b"/a%FFb",
        b"/ab",
    ];
    for (i, a) in names.iter().enumerate() {
        let encoded = EncodedPath::of(a).unwrap();
        assert_eq!(encoded.decode(), *a);
        assert!(encoded.as_str().bytes().all(|b| b > b' ' && b != 0x7f));
        for b in &names[..i] {
            assert_ne!(EncodedPath::of(b).unwrap(), encoded);
        }
    }
    let long = [b"/".to_vec(), vec![b'a'; MAX_PATH - 1]].concat();
    assert!(EncodedPath::of(&long).is_ok());
    assert_eq!(
        EncodedPath::of(&[long, b"a".to_vec()].concat()),
        Err(PathError::TooLong(MAX_PATH + 1))
    );
}

#[test]
fn replay_extends_each_pcr_by_itself() {
    let replay = Replay::of(&sample());
    let mut pcr0 = Pcr::ZERO;
    let (sha1, sha256) = sample()[0].extend_values();
    pcr0.extend(&sha1, &sha256);
    assert_eq!(replay.pcr(crate::pcr::RUNTIME), pcr0);
    assert_eq!(replay.pcr(crate::pcr::FAULTS), Pcr::ZERO);
    assert_ne!(
        replay.pcr(crate::pcr::FILES),
        Replay::of(&sample()[..2]).pcr(crate::pcr::FILES)
    );
    assert_eq!(
        sample()[0].extend_values().0.as_slice(),
        &sample()[0].encode()[4..24]
    );
}

#[test]
fn opaque_entries_replay_and_say_nothing() {
    let file = Entry::file(FileDigest::of(b"abc"), EncodedPath::of(b"/bin/a").unwrap());
    let buffer = Entry::buffer(pcr::LIFE, "attestrun.start", b"{}".to_vec()).unwrap();
    let clear = [file, buffer];
    let opaque: Vec<Entry> = clear.iter().map(Entry::opaque).collect();
    assert_eq!(Replay::of(&opaque), Replay::of(&clear));
    let bytes: Vec<u8> = opaque.iter().flat_map(Entry::encode).collect();
    assert_eq!(parse(&bytes), Ok(opaque.clone()));
    assert!(!bytes.windows(6).any(|w| w == b"/bin/a"));
    // Opaque once more is the same.
    assert_eq!(opaque.iter().map(Entry::opaque).collect::<Vec<_>>(), opaque);
}

#[test]
fn refuse_malformed_opaque_entries() {
    let good = Entry::file(FileDigest::of(b"abc"), EncodedPath::of(b"/bin/a").unwrap())
        .opaque()
        .encode();
    assert!(parse(&good).is_ok());
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        *bad.get_mut(at).unwrap() ^= byte;
        parse(&bad)
    };
    assert_eq!(with(4, 1), Err(ParseError::TemplateHash { entry: 0 }));
    // PCR 10 becomes 14, which is the workload's.
    assert!(matches!(with(0, 4), Err(ParseError::TemplatePcr { .. })));
    assert!(matches!(
        parse(&good[..good.len() - 1]),
        Err(ParseError::Truncated { .. })
    ));
}
