//! Accepting and refusing lists.

use super::*;
use crate::testkit::{NOW, TENANT, UserCa, draft, user_ca};

fn image() -> ImageDigest {
    ImageDigest::of(b"image")
}

/// The canonical statement with `from` replaced by `to`; `from` must occur.
fn altered(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(draft(image()).statement_bytes().unwrap()).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    text.replacen(from, to, 1).into_bytes()
}

fn app() -> String {
    format!(r#""/usr/bin/app":["{}"]"#, FileDigest::of(b"app").hex())
}

/// The statement with these members in `files`.
fn with_files(members: &str) -> Result<List, ListError> {
    List::parse(&altered(&app(), members))
}

fn verify(
    ca: &UserCa,
    statement: &[u8],
    edit: impl FnOnce(&mut ListRule<'_>, &mut UnixTime, &mut Vec<ImageDigest>),
) -> Result<VerifiedList, ListRefusal> {
    let roots = ca.roots();
    let (mut now, mut images) = (NOW, vec![image()]);
    let mut rule = ListRule {
        roots: &roots,
        tenant: TENANT,
        name: "demo",
        min_serial: 7,
        revocation: &Revocation::Unchecked,
    };
    edit(&mut rule, &mut now, &mut images);
    verify_list(statement, &ca.user().sign(statement), &rule, &images, now)
}

#[test]
fn accept_draft() {
    let mut draft = draft(image());
    draft
        .files
        .insert(b"/lib/a b%\xff.so".to_vec(), [FileDigest::of(b"so")].into());
    draft.programs = Programs::Only([b"/usr/bin/app".to_vec()].into());
    let bytes = draft.statement_bytes().unwrap();
    let list = List::parse(&bytes).unwrap();
    assert_eq!(list.digest(), ListDigest::of(&bytes));
    assert_eq!((list.name(), list.serial()), ("demo", 7));
    assert_eq!(list.images(), [image()]);
    assert!(
        list.files()
            .iter()
            .eq(draft.files.iter().map(|(path, digests)| {
                (
                    path.as_slice(),
                    digests.iter().copied().collect::<Vec<_>>().leak() as &[_],
                )
            }))
    );
    assert!(list.programs().eq([b"/usr/bin/app".as_slice()]));
    assert_eq!(
        (list.issued_at(), list.expires_at()),
        (draft.issued_at, draft.expires_at)
    );
    assert!(
        String::from_utf8(bytes)
            .unwrap()
            .contains(r#""/lib/a%20b%25%FF.so""#)
    );
}

#[test]
fn accept_signed_list() {
    let ca = user_ca();
    let mut draft = draft(image());
    draft
        .files
        .insert(b"/lib/so".to_vec(), [FileDigest::of(b"so")].into());
    draft.programs = Programs::Only([b"/usr/bin/app".to_vec()].into());
    let list = verify(&ca, &draft.statement_bytes().unwrap(), |_, _, _| ()).unwrap();
    assert_eq!(list.signer().tenant(), TENANT);
    let (app, so) = (FileDigest::of(b"app"), FileDigest::of(b"so"));
    assert_eq!(
        list.allows(b"/usr/bin/app", &app).unwrap().path(),
        b"/usr/bin/app"
    );
    assert_eq!(list.allows_digest(&app).unwrap().path(), b"/usr/bin/app");
    assert!(matches!(
        list.allows(b"/bin/app", &app),
        Err(NotListed::Path { .. })
    ));
    assert!(matches!(
        list.allows(b"usr/bin/app", &app),
        Err(NotListed::Path { .. })
    ));
    assert!(matches!(
        list.allows(b"/usr/bin/app", &so),
        Err(NotListed::Content { .. })
    ));
    assert!(matches!(
        list.allows(b"/lib/so", &so),
        Err(NotListed::NotAProgram { .. })
    ));
    assert!(matches!(
        list.allows_digest(&so),
        Err(NotListed::Digest { .. })
    ));
    assert_eq!(
        list.allows(b"/tmp/x\n", &app).unwrap_err().to_string(),
        format!("/tmp/x%0A ({app}) is not in the signed list demo (serial 7)")
    );
}

#[test]
fn refuse_duplicate_path() {
    assert_eq!(
        with_files(&format!("{},{}", app(), app())),
        Err(ListError::DuplicatePath("/usr/bin/app".into()))
    );
}

#[test]
fn refuse_duplicate_json_key() {
    for (from, to) in [
        (r#""serial":7"#, r#""serial":7,"serial":8"#),
        (r#""predicate":{"#, r#""predicate":{"name":"demo","#),
        (
            r#""predicateType""#,
            r#""predicateType":"x","predicateType""#,
        ),
        (r#""sha256":"#, r#""sha256":"","sha256":"#),
    ] {
        assert!(
            matches!(
                List::parse(&altered(from, to)),
                Err(ListError::Malformed(_))
            ),
            "{to}"
        );
    }
}

#[test]
fn refuse_paths_that_are_not_plain() {
    let digest = FileDigest::of(b"app").hex();
    for (path, expected) in [
        ("usr/bin/app", "Relative"),
        ("", "Relative"),
        ("/", "Component"),
        ("/usr/../bin/app", "Component"),
        ("/usr/./app", "Component"),
        ("/usr//app", "Component"),
        ("/usr/app/", "Component"),
        ("/usr/a%00b", "Nul"),
        (r"/usr/a\u0000b", "NotCanonical"),
        (r"/usr/a\nb", "NotCanonical"),
        ("/usr/a%0Ab", "Newline"),
        ("/usr/a%0ab", "NotCanonical"),
        ("/usr/%61pp", "NotCanonical"),
        ("/usr/a b", "NotCanonical"),
        ("/usr/a%2", "NotCanonical"),
        ("/usr/%2E%2E/app", "NotCanonical"),
    ] {
        let refused = with_files(&format!(r#""{path}":["{digest}"]"#)).unwrap_err();
        assert!(
            format!("{refused:?}").contains(expected),
            "{path}: {refused:?}"
        );
    }
    let long = format!(r#""/{}":["{digest}"]"#, "a".repeat(4096));
    assert!(matches!(
        with_files(&long),
        Err(ListError::Path(PathError::TooLong(_)))
    ));
}

/// Members may come in any order; they are found all the same.
#[test]
fn accept_files_in_any_order() {
    let (one, two) = (FileDigest::of(b"1"), FileDigest::of(b"2"));
    let members = format!(
        r#""/c":["{two}"],"/a":["{one}","{two}"],"/b/%C3":["{one}"]"#,
        one = one.hex(),
        two = two.hex()
    );
    let list = with_files(&members).unwrap();
    let mut both = [one, two];
    both.sort();
    assert_eq!(list.files().get(b"/a"), Some(&both[..]));
    assert_eq!(list.files().get(b"/b/\xc3"), Some(&[one][..]));
    assert_eq!(list.files().get(b"/c"), Some(&[two][..]));
    for missing in [&b"/"[..], b"/aa", b"/d", b""] {
        assert_eq!(list.files().get(missing), None);
    }
    let again = format!(r#"{members},"/a":["{}"]"#, one.hex());
    assert_eq!(
        with_files(&again),
        Err(ListError::DuplicatePath("/a".into()))
    );
}

/// A million files: read and found again. How long it may take is measured by the benchmark B15.
#[test]
fn accept_a_million_files() {
    let digest = |n: usize| FileDigest::of(&n.to_le_bytes());
    let members: Vec<String> = (0..MILLION)
        .map(|n| {
            format!(
                r#""/usr/lib/some-package/{n:07}/file.so":["{}"]"#,
                digest(n).hex()
            )
        })
        .collect();
    let text = altered(&app(), &members.join(","));
    let ca = user_ca();
    let list = verify(&ca, &text, |_, _, _| ()).unwrap();
    assert_eq!(list.list().files().len(), MILLION);
    for n in [0, 1, 4711, MILLION / 2, MILLION - 1] {
        let path = format!("/usr/lib/some-package/{n:07}/file.so");
        assert!(list.allows(path.as_bytes(), &digest(n)).is_ok());
        assert!(list.allows(path.as_bytes(), &digest(n + 1)).is_err());
        assert_eq!(
            list.allows_digest(&digest(n)).unwrap().path(),
            path.as_bytes()
        );
    }
    assert!(list.allows_digest(&digest(MILLION)).is_err());
}

const MILLION: usize = 1_000_000;

#[test]
fn refuse_bad_digests() {
    let hex = FileDigest::of(b"app").hex();
    let files = |digests: &str| with_files(&format!(r#""/a":[{digests}]"#));
    assert!(matches!(
        files(""),
        Err(ListError::Digests { count: 0, .. })
    ));
    assert!(matches!(
        files(&format!(r#""{hex}","{hex}""#)),
        Err(ListError::DuplicateDigest { .. })
    ));
    for bad in ["", "00", &hex.to_uppercase(), &format!("sha256:{hex}")] {
        assert!(
            matches!(files(&format!(r#""{bad}""#)), Err(ListError::Digest { .. })),
            "{bad}"
        );
    }
    let many = vec![format!(r#""{hex}""#); MAX_DIGESTS + 1].join(",");
    assert!(matches!(files(&many), Err(ListError::Digests { .. })));
}

#[test]
fn refuse_too_many_entries() {
    let digest = format!(r#"["{}"]"#, FileDigest::of(b"app").hex());
    let members: Vec<String> = (0..=MAX_ENTRIES)
        .map(|n| format!(r#""/{n}":{digest}"#))
        .collect();
    assert_eq!(
        with_files(&members.join(",")),
        Err(ListError::Entries(MAX_ENTRIES + 1))
    );
    assert_eq!(with_files(""), Err(ListError::Entries(0)));
    assert!(matches!(
        List::parse(&vec![b' '; MAX_STATEMENT + 1]),
        Err(ListError::TooLong(_))
    ));
}

#[test]
fn refuse_other_statements() {
    assert!(matches!(
        List::parse(&altered(PREDICATE_TYPE, "https://slsa.dev/provenance/v1")),
        Err(ListError::PredicateType(_))
    ));
    assert!(matches!(
        List::parse(&altered("Statement/v1", "Statement/v2")),
        Err(ListError::StatementType(_))
    ));
    assert!(matches!(
        List::parse(&altered(r#""hashAlg":"sha256""#, r#""hashAlg":"sha1""#)),
        Err(ListError::Unknown {
            field: "hashAlg",
            ..
        })
    ));
    assert!(matches!(
        List::parse(&altered("pct-v1", "pct-v2")),
        Err(ListError::Unknown {
            field: "pathEncoding",
            ..
        })
    ));
    assert_eq!(
        List::parse(&altered(r#""excludes":[]"#, r#""excludes":["/tmp"]"#)),
        Err(ListError::Excludes)
    );
    for (from, to) in [
        (r#""serial":7"#, r#""serial":"7""#),
        (r#""serial":7"#, r#""serial":-7"#),
        (r#""serial":7"#, r#""serial":7.5"#),
        (r#""serial":7"#, r#""serial":7,"unknown":1"#),
        (
            r#""excludes":[]"#,
            r#""excludes":[],"exec":{"allow":[],"deny":[]}"#,
        ),
        (r#"{"sha256":"#, r#"{"sha512":"","sha256":"#),
        (r#""_type""#, r#""_kind""#),
        ("Z\"", "+01:00\""),
    ] {
        assert!(
            matches!(
                List::parse(&altered(from, to)),
                Err(ListError::Malformed(_))
            ),
            "{to}"
        );
    }
    let trailing = [draft(image()).statement_bytes().unwrap(), b"{}".to_vec()].concat();
    assert!(matches!(
        List::parse(&trailing),
        Err(ListError::Malformed(_))
    ));
}

#[test]
fn refuse_drafts_that_would_be_refused() {
    let refused = |edit: &dyn Fn(&mut Draft)| {
        let mut draft = draft(image());
        edit(&mut draft);
        draft.statement_bytes().unwrap_err()
    };
    assert_eq!(
        refused(&|d| d.name = "a b".into()),
        ListError::Name("a b".into())
    );
    assert_eq!(refused(&|d| d.serial = 0), ListError::Serial(0));
    assert!(matches!(
        refused(&|d| d.serial = 1 << 53),
        ListError::Serial(_) | ListError::Malformed(_)
    ));
    assert!(matches!(
        refused(&|d| d.expires_at = d.issued_at),
        ListError::Lifetime { .. }
    ));
    assert_eq!(refused(&|d| d.images.clear()), ListError::Subjects(0));
    assert_eq!(refused(&|d| d.files.clear()), ListError::Entries(0));
    assert!(matches!(
        refused(&|d| {
            d.files.insert(b"a".to_vec(), [FileDigest::of(b"")].into());
        }),
        ListError::Path(PathError::Relative(_))
    ));
    assert!(matches!(
        refused(&|d| {
            d.files
                .insert(b"/a\nb".to_vec(), [FileDigest::of(b"")].into());
        }),
        ListError::Newline(_)
    ));
    assert!(matches!(
        refused(&|d| {
            d.files.insert(b"/a".to_vec(), BTreeSet::new());
        }),
        ListError::Digests { count: 0, .. }
    ));
    assert_eq!(
        refused(&|d| d.programs = Programs::Only([b"/bin/sh".to_vec()].into())),
        ListError::UnknownProgram("/bin/sh".into())
    );
}

#[test]
fn refuse_other_image() {
    let ca = user_ca();
    let statement = draft(ImageDigest::of(b"other")).statement_bytes().unwrap();
    let other = ListRefusal::OtherImage(ImageDigest::of(b"other"));
    assert_eq!(verify(&ca, &statement, |_, _, _| ()), Err(other.clone()));
    assert_eq!(
        verify(&ca, &statement, |_, _, images| images.clear()),
        Err(other)
    );
}

#[test]
fn refuse_lower_serial() {
    let ca = user_ca();
    let statement = draft(image()).statement_bytes().unwrap();
    assert!(verify(&ca, &statement, |rule, _, _| rule.min_serial = 1).is_ok());
    assert_eq!(
        verify(&ca, &statement, |rule, _, _| rule.min_serial = 8),
        Err(ListRefusal::LowSerial { min: 8, found: 7 })
    );
}

#[test]
fn refuse_expired_and_not_yet_issued() {
    let ca = user_ca();
    let draft = draft(image());
    let statement = draft.statement_bytes().unwrap();
    let at = |t: UnixTime| verify(&ca, &statement, |_, now, _| *now = t);
    let second = |t: UnixTime, by: i64| UnixTime::from_secs(t.secs() + by);
    assert!(at(draft.issued_at).is_ok());
    assert!(at(second(draft.expires_at, -1)).is_ok());
    assert_eq!(
        at(draft.expires_at),
        Err(ListRefusal::Expired(draft.expires_at))
    );
    assert!(matches!(
        at(second(draft.issued_at, -1)),
        Err(ListRefusal::NotYetIssued { .. })
    ));
}

#[test]
fn refuse_other_signer() {
    let (ca, other) = (user_ca(), user_ca());
    let statement = draft(image()).statement_bytes().unwrap();
    assert!(matches!(
        verify(&ca, &statement, |rule, _, _| rule.tenant =
            "spiffe://demo.example/tenant/other"),
        Err(ListRefusal::OtherTenant { .. })
    ));
    assert!(matches!(
        verify(&ca, &statement, |rule, _, _| rule.name = "other"),
        Err(ListRefusal::OtherName { .. })
    ));
    let roots = other.roots();
    assert!(matches!(
        verify(&ca, &statement, |rule, _, _| rule.roots =
            Box::leak(Box::new(roots.clone()))),
        Err(ListRefusal::Signature(CmsRefusal::Untrusted { .. }))
    ));
}

#[test]
fn refuse_altered_statement_in_any_byte() {
    let ca = user_ca();
    let user = ca.user();
    let statement = draft(image()).statement_bytes().unwrap();
    let signature = user.sign(&statement);
    let roots = ca.roots();
    let rule = ListRule {
        roots: &roots,
        tenant: TENANT,
        name: "demo",
        min_serial: 1,
        revocation: &Revocation::Unchecked,
    };
    assert!(verify_list(&statement, &signature, &rule, &[image()], NOW).is_ok());
    for byte in 0..statement.len() {
        let mut altered = statement.clone();
        altered[byte] ^= 0x20;
        assert!(matches!(
            verify_list(&altered, &signature, &rule, &[image()], NOW),
            Err(ListRefusal::Signature(CmsRefusal::AlteredContent { .. }))
        ));
    }
}
