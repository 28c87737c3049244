//! Policies, and decisions under them: one accepted image, and each way to be refused.

use super::*;
use crate::digest::{FileDigest, ImageDigest};
use crate::id::UnixTime;
use crate::image::{ClaimedImage, Image};
use crate::profile::LaunchProfile;
use crate::siglist::Draft;
use crate::signature::{SimpleSignature, simple_payload};
use crate::testkit::{ImageKey, NOW, TENANT, User, UserCa, draft, image_key, user_ca};
use rcgen::date_time_ymd;

mod entries;
mod file;
mod rootfs;
mod signers;
mod trust;

const KEY: &str = "/etc/attestrun/trust/image/demo.pub";
const CA: &str = "/etc/attestrun/trust/user-ca/demo.pem";

fn policy_text() -> String {
    format!(
        r#"version = 1
mode = "enforce"
[[rule]]
name = "demo"
scope = "localhost/demo"
keys = ["{KEY}"]
user_ca = ["{CA}"]
tenant = "{TENANT}"
list = "demo"
min_serial = 1
revocation = "unchecked"
enter = "listed"
min_tier = "none"
[rule.launch]
allow = []
"#
    )
}

fn parse(text: &str) -> Result<Policy, PolicyError> {
    Policy::parse(text.as_bytes())
}

/// The policy with `from` replaced by `to`; `from` must occur.
fn altered(from: &str, to: &str) -> Result<Policy, PolicyError> {
    let text = policy_text();
    assert!(text.contains(from), "{from}");
    parse(&text.replacen(from, to, 1))
}

fn image_named(name: &str) -> Image {
    Image::of(&ClaimedImage {
        name: name.into(),
        manifest_bytes: include_bytes!("../../../tests/vectors/cosign/manifest.json").to_vec(),
        config_bytes: include_bytes!("../../../tests/vectors/cosign/config.json").to_vec(),
        index_bytes: vec![],
    })
    .unwrap()
}

fn profile() -> LaunchProfile {
    crate::profile::tests::profile(&crate::profile::tests::usual())
}

/// Everything that an honest image brings, for tests to spoil.
struct Scene {
    policy: String,
    image: Image,
    key: ImageKey,
    ca: UserCa,
    user: User,
    signatures: Vec<StoredSignature>,
    lists: Vec<StoredList>,
    trust: TrustFiles,
    profile: LaunchProfile,
    now: UnixTime,
}

fn scene() -> Scene {
    let (image, key, ca) = (image_named("localhost/demo:latest"), image_key(), user_ca());
    let user = ca.user();
    let mut trust = TrustFiles::default();
    trust.insert("key", Path::new(KEY), Ok(key.public_pem().into_bytes()));
    trust.insert("key", Path::new(CA), Ok(ca.root.pem().into_bytes()));
    let mut scene = Scene {
        policy: policy_text(),
        image,
        key,
        ca,
        user,
        signatures: vec![],
        lists: vec![],
        trust,
        profile: profile(),
        now: NOW,
    };
    scene.sign("localhost/demo", scene.image.manifest_digest());
    scene.list(|_| ());
    scene
}

impl Scene {
    fn sign(&mut self, reference: &str, digest: ImageDigest) {
        let payload = simple_payload(reference, &digest).unwrap();
        self.signatures
            .push(StoredSignature::Simple(SimpleSignature {
                signature_b64: self.key.sign_base64(&payload),
                payload,
                annotations: BTreeMap::new(),
            }));
    }
    fn list(&mut self, edit: impl FnOnce(&mut Draft)) {
        let mut draft = draft(self.image.manifest_digest());
        edit(&mut draft);
        let statement = draft.statement_bytes().unwrap();
        self.lists.push(StoredList {
            signature: self.user.sign(&statement),
            statement: statement.into(),
        });
    }
    /// A refusal, or an admission; nothing else may come out.
    #[track_caller]
    fn decide(&self) -> Result<Admission, Refusal> {
        self.decision().map_err(refusal)
    }
    fn decision(&self) -> Result<Admission, NotAdmitted> {
        self.decision_under(&self.policy)
    }
    fn decision_under(&self, policy: &str) -> Result<Admission, NotAdmitted> {
        let material = Material {
            image: &self.image,
            signatures: self.signatures.clone(),
            lists: self.lists.clone(),
            trust: self.trust.clone(),
        };
        decide(
            &parse(policy).unwrap(),
            Subject::Image(&material),
            &self.profile,
            self.now,
        )
    }
    /// Refused for one reason that says `why`, in a message that names image, policy and rule.
    #[track_caller]
    fn refused(&self, why: &str) {
        let refusal = self.decide().expect_err(why);
        assert_eq!(refusal.reasons.len(), 1, "{refusal}");
        let text = refusal.to_string();
        assert!(text.contains(why), "{text}");
        for part in [
            "refused: image localhost/demo:latest (sha256:a6771a42",
            "[policy /etc/attestrun/policy.toml rule demo]; ",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!refusal.hint.is_empty());
    }
}

#[track_caller]
fn refusal(why: NotAdmitted) -> Refusal {
    match why {
        NotAdmitted::Refused(refusal) => refusal,
        NotAdmitted::Undecided(other) => panic!("{other}"),
    }
}

#[track_caller]
fn signed(admission: &Admission) -> &VerifiedImage {
    match admission.made() {
        Made::Signed(image) => image,
        other => panic!("{other:?}"),
    }
}
#[track_caller]
fn listed(admission: &Admission) -> &Listed {
    match admission.programs() {
        Programs::Listed(listed) => listed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn accept_signed_image() {
    let scene = scene();
    let mut admission = scene.decide().unwrap();
    assert_eq!(admission.rule(), "demo");
    assert_eq!(admission.mode(), Enforce::Enforce);
    assert_eq!(admission.enter(), EnterMode::Listed);
    assert_eq!(admission.min_tier(), TierName::None);
    assert_eq!(
        admission.policy_digest(),
        PolicyDigest::of(scene.policy.as_bytes())
    );
    assert_eq!(
        signed(&admission).manifest_digest(),
        scene.image.manifest_digest()
    );
    assert_eq!(
        signed(&admission).signed_by().docker_reference(),
        Some("localhost/demo")
    );
    assert_eq!(listed(&admission).signer().tenant(), TENANT);
    assert_eq!(listed(&admission).list().serial(), 7);
    assert_eq!(admission.profile(), &scene.profile);
    assert_eq!(admission.decided_at(), NOW);
    assert_eq!(admission.take_list().as_ref(), scene.lists.first());
    assert_eq!(admission.take_list(), None);
}

#[test]
fn accept_signature_and_list_on_an_index() {
    let mut scene = scene();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 560,
        "digest": scene.image.manifest_digest()}]})
    .to_string()
    .into_bytes();
    let digest = ImageDigest::of(&index);
    scene.image = Image::of(&ClaimedImage {
        name: "localhost/demo:latest".into(),
        manifest_bytes: include_bytes!("../../../tests/vectors/cosign/manifest.json").to_vec(),
        config_bytes: include_bytes!("../../../tests/vectors/cosign/config.json").to_vec(),
        index_bytes: vec![index],
    })
    .unwrap();
    scene.signatures.clear();
    scene.sign("localhost/demo", digest);
    scene.lists.clear();
    scene.list(|d| d.images[0].1 = digest);
    let admission = scene.decide().unwrap();
    assert_eq!(signed(&admission).signed_by().image(), digest);
    assert_ne!(signed(&admission).manifest_digest(), digest);
}

#[test]
fn accept_second_key_and_second_signature() {
    let mut scene = scene();
    let other = "/etc/attestrun/trust/image/other.pub";
    scene.policy = scene.policy.replace(KEY, &format!("{other}\", \"{KEY}"));
    scene.trust.insert(
        "key",
        Path::new(other),
        Ok(image_key().public_pem().into_bytes()),
    );
    scene.signatures.insert(
        0,
        StoredSignature::Simple(SimpleSignature {
            payload: b"{}".to_vec(),
            signature_b64: "%".into(),
            annotations: BTreeMap::new(),
        }),
    );
    assert!(scene.decide().is_ok());
}

#[test]
fn refuse_no_rule() {
    let mut scene = scene();
    scene.image = image_named("localhost/other:latest");
    let text = scene.decide().unwrap_err().to_string();
    assert!(
        text.contains("no rule is for this image [policy /etc/attestrun/policy.toml no rule]"),
        "{text}"
    );
    scene.policy = "version = 1\nmode = \"enforce\"\n".into();
    assert!(scene.decide().is_err());
}

#[test]
fn accept_in_audit_mode_what_is_noted() {
    let mut scene = scene();
    scene.policy = scene.policy.replace("\"enforce\"", "\"audit\"");
    let admission = scene.decide().unwrap();
    assert_eq!(admission.mode(), Enforce::Audit);
    assert!(admission.audited().is_empty());
    signed(&admission);
    scene.signatures.clear();
    scene.lists.clear();
    let admission = scene.decide().unwrap();
    assert!(matches!(admission.made(), Made::Unsigned(_)));
    assert_eq!(admission.programs(), &Programs::Any);
    assert_eq!(admission.audited().len(), 2, "{:?}", admission.audited());
    assert!(admission.audited()[0].contains("it is not signed"));
    scene.image = image_named("localhost/other:latest");
    let admission = scene.decide().unwrap();
    assert_eq!(admission.audited(), ["no rule is for this image"]);
    assert_eq!(admission.rule(), "(none)");
}

#[test]
fn refuse_unsigned() {
    let mut scene = scene();
    scene.signatures.clear();
    scene.refused("it is not signed: the signature store has no signature for it");
}

#[test]
fn refuse_wrong_key() {
    let mut scene = scene();
    scene.trust.insert(
        "file",
        Path::new(KEY),
        Ok(image_key().public_pem().into_bytes()),
    );
    scene.refused("it was not made by key");
}

/// A policy file cannot say so; a rule that came to be otherwise lets nothing in either.
#[test]
fn refuse_nobody_to_vouch() {
    let scene = scene();
    let mut policy = parse(&scene.policy).unwrap();
    for rule in &mut policy.rules {
        rule.authorities.clear();
    }
    let material = Material {
        image: &scene.image,
        signatures: scene.signatures.clone(),
        lists: scene.lists.clone(),
        trust: scene.trust.clone(),
    };
    let subject = Subject::Image(&material);
    let refusal = decide(&policy, subject, &scene.profile, scene.now).map_err(refusal);
    let refusal = refusal.unwrap_err();
    assert_eq!(
        refusal.reasons,
        ["the rule names nobody who must vouch for it"]
    );
}

#[test]
fn refuse_signature_of_other_image() {
    let mut scene = scene();
    scene.signatures.clear();
    scene.sign("localhost/demo", ImageDigest::of(b"other"));
    scene.refused("the signature is about image");
}

#[test]
fn refuse_signature_for_other_repository() {
    let mut scene = scene();
    scene.signatures.clear();
    let digest = scene.image.manifest_digest();
    for reference in ["localhost/other", "demo", "", "localhost/demo/x"] {
        scene.sign(reference, digest);
    }
    scene.refused("is for `localhost/other`, not for localhost/demo");
    scene.policy = scene
        .policy
        .replace("user_ca", "signed_identity = \"any\"\nuser_ca");
    assert!(scene.decide().is_ok());
}

#[test]
fn refuse_without_list() {
    let mut scene = scene();
    scene.lists.clear();
    scene.refused("no list `demo` of spiffe://demo.example/tenant/demo is in the signature store");
    scene.list(|d| d.name = "other".into());
    scene.refused("it is named `other`, not `demo`");
}

#[test]
fn refuse_list_of_other_image() {
    let mut scene = scene();
    scene.lists.clear();
    scene.list(|d| d.images[0].1 = ImageDigest::of(b"other"));
    scene.refused("it is not about this image");
}

#[test]
fn refuse_list_of_other_ca_or_tenant() {
    let mut scene = scene();
    scene
        .trust
        .insert("file", Path::new(CA), Ok(user_ca().root.pem().into_bytes()));
    scene.refused("no chain leads from the certificate of CN=Demo User");
    let mut scene = self::scene();
    scene.policy = scene.policy.replace("tenant/demo", "tenant/other");
    scene.refused("it is signed for tenant spiffe://demo.example/tenant/demo");
}

#[test]
fn refuse_low_serial() {
    let mut scene = scene();
    scene.policy = scene.policy.replace("min_serial = 1", "min_serial = 8");
    scene.refused("its serial 7 is lower than 8");
}

#[test]
fn accept_highest_serial() {
    let mut scene = scene();
    scene.list(|d| d.serial = 9);
    scene.list(|d| d.serial = 8);
    assert_eq!(listed(&scene.decide().unwrap()).list().serial(), 9);
}

#[test]
fn refuse_tie_of_serials() {
    let mut scene = scene();
    scene.list(|d| {
        d.files
            .insert(b"/usr/bin/more".to_vec(), [FileDigest::of(b"more")].into());
    });
    scene.refused("2 different versions of list `demo`");
}

#[test]
fn accept_same_list_signed_twice() {
    let mut scene = scene();
    scene.user = scene.ca.user();
    scene.list(|_| ());
    assert_ne!(scene.lists[0].signature, scene.lists[1].signature);
    let one = scene.decide().unwrap();
    scene.lists.reverse();
    let other = scene.decide().unwrap();
    assert_eq!(
        listed(&one).signer(),
        listed(&other).signer(),
        "whatever the order in the store"
    );
}

#[test]
fn refuse_falling_back_to_an_older_list() {
    // The newest has run out: an older one that has not is no substitute.
    let mut scene = scene();
    scene.list(|d| {
        d.serial = 8;
        d.expires_at = UnixTime::from_secs(NOW.secs() - 1);
    });
    scene.refused("serial 8: it expired at");
    // The same when the signer's certificate has run out.
    let mut scene = self::scene();
    scene.user = scene
        .ca
        .user_with(|p| p.not_after = date_time_ymd(2026, 11, 1));
    scene.list(|d| {
        d.serial = 8;
        d.issued_at = UnixTime::parse("2026-10-01T00:00:00Z").unwrap();
    });
    scene.refused("serial 8: a certificate in the chain of CN=Demo User ran out");
    // A list that the certificate could never have signed does not outrank anything.
    let mut scene = self::scene();
    scene.user = scene
        .ca
        .user_with(|p| p.not_after = date_time_ymd(2026, 11, 1));
    scene.list(|d| d.serial = 8);
    assert_eq!(listed(&scene.decide().unwrap()).list().serial(), 7);
    // Nor does somebody else's.
    let mut scene = self::scene();
    scene.user = user_ca().user();
    scene.list(|d| d.serial = 8);
    assert_eq!(listed(&scene.decide().unwrap()).list().serial(), 7);
}

#[test]
fn refuse_expired_and_future_lists() {
    let mut scene = scene();
    scene.now = UnixTime::from_secs(NOW.secs() + 7200);
    scene.refused("it expired at");
    scene.now = UnixTime::from_secs(NOW.secs() - 7200);
    scene.refused("which is later than now");
}

#[test]
fn refuse_launch_profile() {
    let mut scene = scene();
    scene
        .profile
        .process
        .capabilities
        .bounding
        .push("CAP_BPF".into());
    scene.refused("capability CAP_BPF, which docker does not give by default (allowed only as \"cap:CAP_BPF\")");
    scene.policy = scene
        .policy
        .replace("allow = []", "allow = [\"cap:CAP_BPF\"]");
    assert!(scene.decide().is_ok());
}

#[test]
fn refuse_with_all_reasons() {
    let mut scene = scene();
    scene.signatures.clear();
    scene.lists.clear();
    scene
        .profile
        .process
        .capabilities
        .ambient
        .push("CAP_SYS_MODULE".into());
    let refusal = scene.decide().unwrap_err();
    assert_eq!(refusal.reasons.len(), 3, "{refusal}");
}

#[test]
fn refuse_in_words_that_engines_do_not_misread() {
    let mut scene = scene();
    scene.policy = scene.policy.replace("localhost/demo", "*");
    scene.signatures.clear();
    scene.image = image_named(
        "x: Permission denied\nno such file OPERATION NOT PERMITTED executable file not found",
    );
    let text = scene.decide().unwrap_err().to_string();
    let lower = text.to_lowercase();
    for phrase in [
        "permission denied",
        "no such file",
        "operation not permitted",
        "executable file not found",
        "\n",
    ] {
        assert!(!lower.contains(phrase), "{text}");
    }
    assert!(lower.contains("permission-denied?no-such-file operation-not-permitted"));
    assert_eq!(plain_text("ä no such file"), "ä no-such-file");
}
