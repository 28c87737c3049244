//! Policy files that are not understood, and which rule is for which image.

use super::*;

#[test]
fn refuse_policies_that_are_not_understood() {
    assert!(parse(&policy_text()).is_ok());
    for (from, to) in [
        ("mode =", "modus ="),
        ("\"enforce\"", "\"off\""),
        ("keys =", "key ="),
        ("keys =", "extra = 1\nkeys ="),
        ("allow = []", "allow = [\"all\"]"),
        ("allow = []", "deny = []"),
        ("\"listed\"", "\"sometimes\""),
        ("min_tier = \"none\"", "min_tier = \"kernel\""),
        ("min_serial = 1", "min_serial = -1"),
        ("\"unchecked\"", "\"never\""),
        ("tenant =", "tenant_ ="),
        ("version = 1", "version = 1\nversion = 1"),
        ("name = \"demo\"", "name = 7"),
    ] {
        assert!(
            matches!(altered(from, to), Err(PolicyError::Malformed(_))),
            "{to}"
        );
    }
    for required in [
        "mode",
        "name",
        "scope",
        "keys",
        "user_ca",
        "tenant",
        "list",
        "min_serial",
        "revocation",
        "enter",
        "min_tier",
    ] {
        let text: String = policy_text()
            .lines()
            .filter(|line| !line.starts_with(&format!("{required} =")))
            .fold(String::new(), |all, line| all + line + "\n");
        assert!(
            matches!(
                parse(&text),
                Err(PolicyError::Malformed(_)
                    | PolicyError::Missing { .. }
                    | PolicyError::Empty { .. })
            ),
            "without {required}"
        );
    }
    assert_eq!(
        altered("version = 1", "version = 2"),
        Err(PolicyError::Version(2))
    );
    assert!(matches!(
        Policy::parse(b"\xff"),
        Err(PolicyError::Malformed(_))
    ));
    assert!(matches!(
        Policy::parse(&vec![b'#'; MAX_POLICY + 1]),
        Err(PolicyError::TooLong(_))
    ));
}

#[test]
fn refuse_policies_that_contradict_themselves() {
    assert!(matches!(
        altered(&format!("keys = [\"{KEY}\"]"), "keys = []"),
        Err(PolicyError::Empty { field: "keys", .. })
    ));
    assert!(matches!(
        altered(&format!("user_ca = [\"{CA}\"]"), "user_ca = []"),
        Err(PolicyError::Empty {
            field: "user_ca",
            ..
        })
    ));
    for path in ["demo.pub", "../demo.pub", "/etc/../demo.pub", ""] {
        assert!(
            matches!(altered(KEY, path), Err(PolicyError::NotAbsolute { .. })),
            "{path}"
        );
    }
    assert!(matches!(
        altered(TENANT, "demo"),
        Err(PolicyError::Tenant { .. })
    ));
    assert!(matches!(
        altered("list = \"demo\"", "list = \"\""),
        Err(PolicyError::List { .. })
    ));
    assert!(matches!(
        altered("name = \"demo\"", "name = \"a b\""),
        Err(PolicyError::Name(_))
    ));
    assert!(matches!(
        altered("\"unchecked\"", "\"unchecked\"\ncrls = [\"/x\"]"),
        Err(PolicyError::Revocation { .. })
    ));
    assert!(matches!(
        altered("\"unchecked\"", "\"crl\""),
        Err(PolicyError::Revocation { .. })
    ));
    for scope in [
        "",
        "a b",
        "**",
        "localhost/*",
        "demo@sha256:00",
        "a//b",
        "../a",
        "demo:",
        "sha256:00",
    ] {
        assert!(
            matches!(
                altered("localhost/demo", scope),
                Err(PolicyError::Scope { .. })
            ),
            "{scope}"
        );
    }
    let rules = policy_text().split_once("[[rule]]").unwrap().1.to_owned();
    let twice = |second: &str| parse(&format!("{}[[rule]]{second}", policy_text()));
    assert!(matches!(twice(&rules), Err(PolicyError::DuplicateName(_))));
    let renamed = rules.replace("name = \"demo\"", "name = \"other\"");
    assert!(matches!(
        twice(&renamed),
        Err(PolicyError::DuplicateScope { .. })
    ));
    assert!(twice(&renamed.replace("localhost/demo", "localhost/demo:v1")).is_ok());
}

#[test]
fn the_closest_scope_wins() {
    let rule = |name: &str, scope: &str| {
        let text = policy_text().split_once("[[rule]]").unwrap().1.to_owned();
        let text = text.replace("name = \"demo\"", &format!("name = \"{name}\""));
        format!("[[rule]]{}", text.replace("localhost/demo", scope))
    };
    let text = [
        "version = 1\nmode = \"enforce\"\n".to_owned(),
        rule("all", "*"),
        rule("tag", "localhost/demo:v1"),
        rule("repo", "localhost/demo"),
        rule("hub", "busybox"),
        rule("port", "127.0.0.1:5000/demo"),
    ]
    .concat();
    let policy = parse(&text).unwrap();
    for (name, expected) in [
        ("localhost/demo", "repo"),
        ("localhost/demo:latest", "repo"),
        ("localhost/demo:v1", "tag"),
        ("localhost/demo:v1@sha256:00", "tag"),
        ("localhost/demo@sha256:00", "repo"),
        ("localhost/demo/x", "all"),
        ("localhost/demon", "all"),
        ("busybox:1", "hub"),
        ("library/busybox", "hub"),
        ("docker.io/busybox", "hub"),
        ("index.docker.io/library/busybox:latest", "hub"),
        ("quay.io/library/busybox", "all"),
        ("127.0.0.1:5000/demo", "port"),
        ("127.0.0.1:5000/demo:v1", "port"),
        ("127.0.0.1:5001/demo", "all"),
        ("", "all"),
        ("sha256:00ff", "all"),
        (&"a".repeat(64), "all"),
        ("not a name", "all"),
    ] {
        assert_eq!(
            policy.rule_for(name, &[]).unwrap().terms.name,
            expected,
            "{name}"
        );
    }
    assert_eq!(policy.files().len(), 2);
}
