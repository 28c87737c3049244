//! What a policy says of something before anybody knows how it is to be launched: for people, and never
//! a permission.

use super::no::{No, hints};
use super::{Case, Made, NO_ENTRY, Programs, Subject, build, bundle, image, sandboxed};
use crate::event::ProgramsRule;
use crate::id::UnixTime;
use crate::policy::{ContentRule, Policy, Source};

/// What is asked about, and what is known of its launch.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// Whatever its arguments will be.
    Any(Subject<'a>),
    /// With these arguments: a `[[sandbox]]` is for exact ones.
    With(Subject<'a>, &'a [String]),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub subject: String,
    /// The entry that applies, with its kind: `rule demo`, `[[bundle]] lab`.
    pub entry: Option<String>,
    /// Who vouches for it, if all is well.
    pub vouched: String,
    pub programs: ProgramsRule,
    /// What a directory without an image must hold.
    pub content: Option<ContentRule>,
    pub sources: Vec<Source>,
    /// Why it would be refused; empty: it would not, as far as this goes.
    pub against: Vec<String>,
    /// Of these reasons, whether one is that something could not be found out.
    pub undecided: bool,
    /// What to do about that.
    pub hints: Vec<String>,
    /// The entries that would admit the same image with other arguments.
    pub otherwise: Vec<String>,
}

impl Explanation {
    /// An image that an engine has and whose manifest nobody has: no rule is asked.
    pub fn unclaimed(name: &str, why: String) -> Self {
        Self {
            subject: format!("image {name}"),
            entry: None,
            vouched: "nobody".to_owned(),
            programs: ProgramsRule::Any,
            content: None,
            sources: Vec::new(),
            against: vec![why],
            undecided: false,
            hints: Vec::new(),
            otherwise: Vec::new(),
        }
    }
}

pub fn explain(policy: &Policy, asked: Asked<'_>, now: UnixTime) -> Explanation {
    let (subject, args) = match asked {
        Asked::Any(subject) => (subject, None),
        Asked::With(subject, args) => (subject, Some(args)),
    };
    let mut otherwise = Vec::new();
    let (kind, case) = match subject {
        Subject::Image(material) => {
            let digest = material.image.manifest_digest();
            let sandboxes = || policy.sandboxes_of(&digest);
            match sandboxes().find(|entry| args == Some(entry.args.as_slice())) {
                Some(entry) => ("[[sandbox]]", sandboxed(entry, material.image)),
                None => {
                    otherwise.extend(sandboxes().map(|entry| {
                        format!(
                            "[[sandbox]] {} with the arguments {:?}",
                            entry.terms.name, entry.args
                        )
                    }));
                    ("rule", image(policy, material, now))
                }
            }
        }
        Subject::Build(base) => ("[[build]]", build(policy, base)),
        Subject::Bundle(rootfs) => ("[[bundle]]", bundle(policy, rootfs)),
    };
    told(kind, case, otherwise)
}

fn told(kind: &str, case: Case, otherwise: Vec<String>) -> Explanation {
    let named = case.terms.name != NO_ENTRY;
    let content = match &case.made {
        Made::Bundle(_, content) if named => Some(content.clone()),
        _ => None,
    };
    Explanation {
        subject: case.made.to_string(),
        entry: named.then(|| format!("{kind} {}", case.terms.name)),
        vouched: match (&case.made, named) {
            (Made::Signed(image), _) => format!("signed by {}", image.signed_by().signer()),
            (Made::Sandbox(_), _) => "the entry names its digest and arguments".to_owned(),
            (Made::Build(_) | Made::Bundle(..), true) => "nobody; the entry admits it".to_owned(),
            _ => "nobody".to_owned(),
        },
        programs: Programs::rule(&case.programs),
        content,
        sources: case.sources,
        undecided: case.against.iter().any(No::is_failure),
        hints: hints(&case.against),
        against: case.against.into_iter().map(|no| no.reason).collect(),
        otherwise,
    }
}
