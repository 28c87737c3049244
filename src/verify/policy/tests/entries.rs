//! The entries for what is no signed image: directories, sandboxes, builds; and rules without a list.

use super::*;
use crate::digest::RootfsDigest;
use crate::event::How;

const TERMS: &str = "enter = \"any\"\nmin_tier = \"none\"\n";

fn policy_of(entries: &str) -> String {
    format!("version = 1\nmode = \"enforce\"\n{entries}")
}
fn bundle_entry(name: &str, rootfs: &str, more: &str) -> String {
    format!("[[bundle]]\nname = \"{name}\"\nrootfs = \"{rootfs}\"\n{more}\n{TERMS}")
}
fn judged(text: &str, subject: Subject<'_>, profile: &LaunchProfile) -> Result<Admission, Refusal> {
    decide(&parse(text).unwrap(), subject, profile, NOW).map_err(refusal)
}

#[test]
fn refuse_directories_without_an_entry() {
    let rootfs = Path::new("/srv/bats/root");
    let any = "content = \"any\"\nprograms = \"any\"";
    for entries in [
        String::new(),
        policy_text()
            .replace("version = 1\nmode = \"enforce\"\n", "")
            .replace("localhost/demo", "*"),
        bundle_entry("other", "/srv/bat", any),
        bundle_entry("below", "/srv/bats/root/deep", any),
        format!("[[build]]\nname = \"b\"\nbase = \"any\"\nprograms = \"any\"\n{TERMS}"),
    ] {
        let refusal =
            judged(&policy_of(&entries), Subject::Bundle(rootfs), &profile()).unwrap_err();
        let text = refusal.to_string();
        assert!(
            text.starts_with("refused: rootfs /srv/bats/root (no image): "),
            "{text}"
        );
        assert!(text.contains("no [[bundle]] entry is for it"), "{text}");
    }
}

#[test]
fn accept_directories_by_the_deepest_entry() {
    let any = "content = \"any\"\nprograms = \"any\"";
    let text = policy_of(
        &[
            bundle_entry("all", "*", any),
            bundle_entry("srv", "/srv", any),
            bundle_entry("bats", "/srv/bats", any),
        ]
        .join("\n"),
    );
    for (rootfs, entry) in [
        ("/srv/bats/root", "bats"),
        ("/srv/bats", "bats"),
        ("/srv/batsman", "srv"),
        ("/var", "all"),
    ] {
        let admission = judged(&text, Subject::Bundle(Path::new(rootfs)), &profile()).unwrap();
        assert_eq!(admission.rule(), entry, "{rootfs}");
        assert_eq!(admission.programs(), &Programs::Any);
        assert_eq!(admission.made().image(), None);
        assert!(admission.audited().is_empty());
    }
}

#[test]
fn refuse_directories_with_other_content_or_programs() {
    let (content, program) = (RootfsDigest::of(b"tree"), FileDigest::of(b"app"));
    let more = format!("content = [\"{content}\"]\nprograms = [\"{program}\"]");
    let text = policy_of(&bundle_entry("exact", "/srv", &more));
    let admission = judged(&text, Subject::Bundle(Path::new("/srv/x")), &profile()).unwrap();
    assert!(admission.check_content(content).is_ok());
    let refusal = admission
        .check_content(RootfsDigest::of(b"other"))
        .unwrap_err();
    assert!(
        refusal
            .to_string()
            .contains("which the entry does not name"),
        "{refusal}"
    );
    for how in [How::Entrypoint, How::Enter, How::Hook] {
        assert_eq!(admission.may_start(how, program), Ok(()));
        assert_eq!(
            admission.may_start(how, FileDigest::of(b"other")),
            Err(NotAllowed::NotNamed)
        );
    }
}

fn sandbox_entry(image: ImageDigest, args: &str) -> String {
    format!(
        "[[sandbox]]\nname = \"pause\"\nimages = [\"{image}\"]\nargs = [{args}]\nenter = \"deny\"\nmin_tier = \"none\"\n"
    )
}

#[test]
fn accept_a_sandbox_by_digest_and_arguments() {
    let (scene, profile) = (scene(), profile());
    let material = Material {
        image: &scene.image,
        signatures: vec![],
        lists: vec![],
        trust: TrustFiles::default(),
    };
    let subject = Subject::Image(&material);
    let image = scene.image.manifest_digest();
    let program = "\"/usr/bin/app\", \"-v\"".to_owned();
    let admission = judged(
        &policy_of(&sandbox_entry(image, &program)),
        subject,
        &profile,
    )
    .unwrap();
    assert!(matches!(admission.made(), Made::Sandbox(_)));
    assert_eq!(
        admission.may_start(How::Entrypoint, FileDigest::of(b"x")),
        Ok(())
    );
    for how in [How::Enter, How::Hook] {
        assert_eq!(
            admission.may_start(how, FileDigest::of(b"x")),
            Err(NotAllowed::NotTheSandbox)
        );
    }
    for (image, args) in [
        (image, format!("{program}, \"-P\"")),
        (image, "\"/bin/other\"".to_owned()),
        (ImageDigest::of(b"other"), program.clone()),
    ] {
        let text = policy_of(&sandbox_entry(image, &args));
        let refusal = judged(&text, subject, &profile).unwrap_err();
        assert!(
            refusal.to_string().contains("no rule is for this image"),
            "{refusal}"
        );
    }
    // A build of this image is not its sandbox.
    let text = policy_of(&sandbox_entry(image, &program));
    assert!(judged(&text, Subject::Build(Some(&scene.image)), &profile).is_err());
}

#[test]
fn accept_builds_on_their_base_alone() {
    let image = image_named("localhost/demo:latest");
    let entry = |name: &str, base: &str| {
        format!("[[build]]\nname = \"{name}\"\nbase = {base}\nprograms = \"any\"\n{TERMS}")
    };
    let exact = entry("exact", &format!("[\"{}\"]", image.manifest_digest()));
    let both = policy_of(&[entry("any", "\"any\""), exact.clone()].join("\n"));
    let rule = |text: &str, base| {
        judged(text, Subject::Build(base), &profile()).map(|a| a.rule().to_owned())
    };
    assert_eq!(rule(&both, Some(&image)).unwrap(), "exact");
    assert_eq!(rule(&both, None).unwrap(), "any");
    assert!(rule(&policy_of(&exact), None).is_err());
    assert!(rule(&policy_text().replace("localhost/demo", "*"), Some(&image)).is_err());
}

#[test]
fn accept_a_rule_for_any_program() {
    let mut scene = scene();
    let listless: String = scene
        .policy
        .lines()
        .filter(|l| {
            !["user_ca", "tenant", "list", "min_serial", "revocation"]
                .iter()
                .any(|k| l.starts_with(&format!("{k} =")))
        })
        .map(|l| format!("{l}\n"))
        .collect();
    scene.policy = listless.replace("enter =", "programs = \"any\"\nenter =");
    scene.lists.clear();
    let admission = scene.decide().unwrap();
    signed(&admission);
    assert_eq!(admission.programs(), &Programs::Any);
    for field in [
        "tenant = \"spiffe://x/tenant/y\"",
        "list = \"x\"",
        "min_serial = 1",
        "crls = [\"/c\"]",
    ] {
        let text = scene
            .policy
            .replace("enter =", &format!("{field}\nenter ="));
        assert!(
            matches!(parse(&text), Err(PolicyError::Conflict { .. })),
            "{field}"
        );
    }
}

#[test]
fn refuse_entries_that_say_nothing_or_clash() {
    let any = "content = \"any\"\nprograms = \"any\"";
    let digest = ImageDigest::of(b"i");
    for (entries, why) in [
        (bundle_entry("a", "/srv", "programs = \"any\""), "content"),
        (bundle_entry("a", "/srv", "content = \"any\""), "programs"),
        (
            bundle_entry("a", "/srv", "content = []\nprograms = \"any\""),
            "empty",
        ),
        (
            bundle_entry("a", "/srv", "content = \"all\"\nprograms = \"any\""),
            "content",
        ),
        (bundle_entry("a", "srv", any), "absolute"),
        (bundle_entry("a", "/srv/../x", any), "absolute"),
        (
            bundle_entry("a", "/srv", &format!("{any}\nannotation = \"x\"")),
            "annotation",
        ),
        (
            [
                bundle_entry("a", "/srv", any),
                bundle_entry("b", "/srv", any),
            ]
            .join("\n"),
            "same scope",
        ),
        (
            [bundle_entry("a", "/srv", any), bundle_entry("a", "/x", any)].join("\n"),
            "named `a`",
        ),
        (sandbox_entry(digest, ""), "empty"),
        (sandbox_entry(digest, "\"pause\""), "absolute"),
        (
            [
                sandbox_entry(digest, "\"/p\""),
                sandbox_entry(digest, "\"/p\"").replace("\"pause\"", "\"q\""),
            ]
            .join("\n"),
            "same scope",
        ),
    ] {
        let text = parse(&policy_of(&entries)).unwrap_err().to_string();
        assert!(text.contains(why), "{why}: {text}");
    }
}
