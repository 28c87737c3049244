//! The decision: what wants to run, against the policy's entry for it; all that speaks against it is told.

mod explain;
mod list;
mod no;
mod signature;
mod statements;

pub use self::explain::{Asked, Explanation, explain};
use self::list::list;
use self::no::{No, hints, no};
use self::signature::{containers, signature};
use self::statements::statements;
use super::admission::{Admission, Launchable, Listed, Made, Parts, Programs, VerifiedImage};
use super::containers::{CONTAINERS_POLICY, ContainersPolicy};
use super::{
    BaseRule, BuildRule, ContentRule, Enforce, EnterMode, ExecLog, Measure, MountsRule,
    NamedPrograms, NotAdmitted, Policy, Refusal, RootfsCheck, Rule, RulePrograms, SandboxRule,
    Source, StoredList, StoredSignature, Terms, TierName, TrustFiles, Undecided, UpperRule,
};
use crate::digest::{FileDigest, ImageDigest};
use crate::id::UnixTime;
use crate::image::Image;
use crate::profile::{JudgedProfile, LaunchProfile, LaunchRules, judge};
use std::fmt::Display;
use std::path::Path;

/// Everything that the decision looks at; bytes from the store and from trust files, unjudged.
#[derive(Debug, Clone)]
pub struct Material<'a> {
    pub image: &'a Image,
    pub signatures: Vec<StoredSignature>,
    pub lists: Vec<StoredList>,
    pub trust: TrustFiles,
}

impl<'a> Material<'a> {
    /// Collects what `policy` needs to know about `image`. `read` reads a trust file (after a failure
    /// nothing can be decided, and the decision says so); `signatures` and `lists` ask the signature store about one
    /// digest (a failure ends the gathering).
    pub fn gather<R: Display, E>(
        policy: &Policy,
        image: &'a Image,
        mut read: impl FnMut(&Path) -> Result<Vec<u8>, R>,
        mut signatures: impl FnMut(&ImageDigest) -> Result<Vec<StoredSignature>, E>,
        mut lists: impl FnMut(&ImageDigest) -> Result<Vec<StoredList>, E>,
    ) -> Result<Self, E> {
        let mut material = Self {
            image,
            signatures: Vec::new(),
            lists: Vec::new(),
            trust: TrustFiles::default(),
        };
        if let Some(rule) = policy.rule_for(image.name(), &image.digests()) {
            for (kind, path) in rule.files() {
                let content = read(path).map_err(|e| e.to_string());
                material.trust.insert(kind, path, content);
            }
            // This one names further files.
            let theirs = material.trust.get(Path::new(CONTAINERS_POLICY)).ok();
            let theirs = theirs.and_then(|bytes| ContainersPolicy::parse(bytes).ok());
            for (kind, path) in theirs.iter().flat_map(|p| p.files_for(image.name())) {
                let content = read(path).map_err(|e| e.to_string());
                material.trust.insert(kind, path, content);
            }
        }
        for digest in image.digests() {
            for signature in signatures(&digest)? {
                if !material.signatures.contains(&signature) {
                    // a list may come with the image, as an attestation
                    let list = signature.signature_list();
                    material
                        .lists
                        .extend(list.filter(|list| !material.lists.contains(list)));
                    material.signatures.push(signature);
                }
            }
            for list in lists(&digest)? {
                if !material.lists.contains(&list) {
                    material.lists.push(list);
                }
            }
        }
        Ok(material)
    }
}

/// What wants to run, as the engine's store tells it.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A container of an image.
    Image(&'a Material<'a>),
    /// A step of building an image, on top of this one or of nothing.
    Build(Option<&'a Image>),
    /// A root file system that no image is known of: its canonical path.
    Bundle(&'a Path),
}

/// May this run with this profile? The only source of an [`Admission`].
pub fn decide(
    policy: &Policy,
    subject: Subject<'_>,
    profile: &LaunchProfile,
    now: UnixTime,
) -> Result<Admission, NotAdmitted> {
    let case = match subject {
        Subject::Image(material) => match sandbox(policy, material.image, profile) {
            Some(entry) => sandboxed(entry, material.image),
            None => image(policy, material, now),
        },
        Subject::Build(base) => build(policy, base),
        Subject::Bundle(rootfs) => bundle(policy, rootfs),
    };
    case.judged(policy, profile, now)
}

/// A decision in the making: what it would be admitted as, and what speaks against it. Parts that
/// nobody vouches for are only ever put in together with a reason.
struct Case {
    /// Of the entry that applies. None applies: a name that no entry can have, and nothing relaxed; which
    /// programs may enter is then nobody's word, so an audited container's are recorded and not judged.
    terms: Terms,
    made: Made,
    programs: Programs,
    sources: Vec<Source>,
    against: Vec<No>,
}

impl Case {
    fn without_entry(made: Made, why: No) -> Self {
        Self {
            terms: Terms {
                name: NO_ENTRY.to_owned(),
                enter: EnterMode::Any,
                min_tier: TierName::None,
                rootfs: RootfsCheck::Full,
                upper: UpperRule::Pristine,
                mounts: MountsRule::Programs,
                measure: Measure::Manifest,
                exec_log: ExecLog::First,
                launch: LaunchRules::default(),
            },
            made,
            programs: Programs::Any,
            sources: Vec::new(),
            against: vec![why],
        }
    }

    /// The launch is judged even if all else failed: one refusal tells everything.
    fn judged(
        mut self,
        policy: &Policy,
        profile: &LaunchProfile,
        now: UnixTime,
    ) -> Result<Admission, NotAdmitted> {
        let digest = match profile.digest() {
            Ok(digest) => digest,
            Err(error) => {
                self.against.push(no(
                    error.to_string(),
                    "write config.json without such numbers",
                ));
                return Err(self.not_admitted());
            }
        };
        let used = match launch(&self.terms, profile) {
            Ok(judged) => judged.used().to_vec(),
            Err(no) => {
                self.against.push(no);
                Vec::new()
            }
        };
        let audited = match (self.against.as_slice(), policy.mode()) {
            ([], _) => Vec::new(),
            // `audit` lets pass what the policy says no to, and not what nobody could find out
            (against, Enforce::Audit) if !against.iter().any(No::is_failure) => {
                against.iter().map(|no| no.reason.clone()).collect()
            }
            (_, Enforce::Audit | Enforce::Enforce) => return Err(self.not_admitted()),
        };
        let parts = Parts {
            terms: self.terms,
            made: self.made,
            programs: self.programs,
            launch: Launchable {
                profile: profile.clone(),
                digest,
                used,
            },
            sources: self.sources,
            audited,
        };
        Ok(Admission::new(policy, parts, now))
    }

    fn not_admitted(mut self) -> NotAdmitted {
        let failed = self.against.iter().any(No::is_failure);
        if failed {
            self.against.retain(No::is_failure);
        }
        let named = self.terms.name != NO_ENTRY;
        let why = Refusal {
            subject: self.made.to_string(),
            rule: named.then(|| self.terms.name.as_str().into()),
            hint: hints(&self.against).join("; "),
            reasons: self.against.into_iter().map(|no| no.reason).collect(),
        };
        match failed {
            true => Undecided::of(why).into(),
            false => why.into(),
        }
    }
}

/// No entry can have this name.
const NO_ENTRY: &str = "(none)";

/// An image under the `[[rule]]` for its name.
fn image(policy: &Policy, material: &Material<'_>, now: UnixTime) -> Case {
    let image = material.image;
    let Some(rule) = policy.rule_for(image.name(), &image.digests()) else {
        let sandbox = match policy.sandboxes_of(&image.manifest_digest()).next() {
            Some(entry) => format!(
                ", and the sandbox entry {} is for other arguments ({:?})",
                entry.terms.name, entry.args
            ),
            None => String::new(),
        };
        return Case::without_entry(
            Made::Unsigned(image.clone()),
            no(
                format!("no rule is for this image{sandbox}"),
                "if it may run, add a [[rule]] with its name as scope",
            ),
        );
    };
    let mut against = Vec::new();
    let made = vouched(rule, material, now).unwrap_or_else(|why| {
        against.extend(why);
        Made::Unsigned(image.clone())
    });
    let (stated, missing) = statements(rule, material, now);
    against.extend(missing);
    let programs = match &rule.programs {
        RulePrograms::Any => Programs::Any,
        RulePrograms::Listed(demand) => match list(demand, material, now) {
            Ok((list, stored)) => Programs::Listed(Box::new(Listed::new(list, stored))),
            Err(no) => {
                against.push(no);
                Programs::Any
            }
        },
    };
    let sources = material.trust.used().map(|(path, kind, content)| Source {
        kind: kind.to_owned(),
        path: path.display().to_string(),
        sha256: FileDigest::of(content),
    });
    Case {
        terms: rule.terms.clone(),
        made,
        programs,
        sources: sources.chain(stated).collect(),
        against,
    }
}

/// Whoever the rule asks must vouch for the image: its own authorities, containers-policy.json(5), or
/// both. Where the latter accepts anything, nobody does.
fn vouched(rule: &Rule, material: &Material<'_>, now: UnixTime) -> Result<Made, Vec<No>> {
    let image = material.image;
    let own = match (rule.authorities.is_empty(), rule.containers_policy) {
        // a policy file cannot say so; whoever makes a rule otherwise gets no image in by it
        (true, false) => Err(no(
            "the rule names nobody who must vouch for it",
            "give the rule keys, authorities or containers_policy = true",
        )),
        (true, true) => Ok(None),
        (false, _) => signature(rule, material, now).map(Some),
    };
    let theirs = match rule.containers_policy {
        true => containers(rule, material, now),
        false => Ok(None),
    };
    match (own, theirs) {
        (Ok(own), Ok(theirs)) => Ok(match own.or(theirs) {
            Some(signed) => Made::Signed(VerifiedImage::new(image.clone(), signed)),
            None => Made::Unsigned(image.clone()),
        }),
        (own, theirs) => Err([own.err(), theirs.err()].into_iter().flatten().collect()),
    }
}

/// The entry that names this image and exactly these arguments.
fn sandbox<'p>(
    policy: &'p Policy,
    image: &Image,
    profile: &LaunchProfile,
) -> Option<&'p SandboxRule> {
    policy
        .sandboxes_of(&image.manifest_digest())
        .find(|entry| profile.process.runs(&entry.args))
}

fn sandboxed(entry: &SandboxRule, image: &Image) -> Case {
    Case {
        terms: entry.terms.clone(),
        made: Made::Sandbox(image.clone()),
        programs: Programs::Args(entry.args.clone()),
        sources: Vec::new(),
        against: Vec::new(),
    }
}

fn build(policy: &Policy, base: Option<&Image>) -> Case {
    let made = Made::Build(base.cloned());
    let names_base = |entry: &&BuildRule| match (&entry.base, base) {
        (BaseRule::OneOf(images), Some(base)) => images.contains(&base.manifest_digest()),
        _ => false,
    };
    let any = |entry: &&BuildRule| entry.base == BaseRule::Any;
    let entries = policy.builds();
    let Some(entry) = (entries.iter().find(names_base)).or_else(|| entries.iter().find(any)) else {
        return Case::without_entry(
            made,
            no(
                "no [[build]] entry is for this build",
                "build elsewhere and sign the result, or add a [[build]] entry with this base",
            ),
        );
    };
    Case {
        terms: entry.terms.clone(),
        made,
        programs: named(&entry.programs),
        sources: Vec::new(),
        against: Vec::new(),
    }
}

fn bundle(policy: &Policy, rootfs: &Path) -> Case {
    let Some(entry) = policy.bundle_for(rootfs) else {
        return Case::without_entry(
            Made::Bundle(rootfs.to_owned(), ContentRule::Any),
            no(
                "it belongs to no image, and no [[bundle]] entry is for it",
                "run it from a signed image, or add a [[bundle]] entry with its directory as rootfs",
            ),
        );
    };
    Case {
        terms: entry.terms.clone(),
        made: Made::Bundle(rootfs.to_owned(), entry.content.clone()),
        programs: named(&entry.programs),
        sources: Vec::new(),
        against: Vec::new(),
    }
}

fn named(programs: &NamedPrograms) -> Programs {
    match programs {
        NamedPrograms::Any => Programs::Any,
        NamedPrograms::OneOf(digests) => Programs::Named(digests.clone()),
    }
}

fn launch(terms: &Terms, profile: &LaunchProfile) -> Result<JudgedProfile, No> {
    judge(profile, &terms.launch).map_err(|objections| {
        let texts: Vec<String> = objections.iter().map(ToString::to_string).collect();
        no(
            format!("the container may not have: {}", texts.join(", ")),
            "start it without, or name it under `allow` of the entry's [….launch]",
        )
    })
}
