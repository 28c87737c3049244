//! The list as JSON: what is read, strictly, and what is written.

use super::{
    Draft, List, ListError, MAX_SERIAL, MAX_SUBJECTS, PREDICATE_TYPE, Programs, STATEMENT_TYPE,
    STATEMENT_TYPE_V0_1, table,
};
use crate::digest::{FileDigest, ImageDigest, ListDigest};
use crate::id::UnixTime;
use crate::imalog::EncodedPath;
use serde::de::IgnoredAny;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const HASH_ALG: &str = "sha256";
/// [`EncodedPath`], version 1.
const PATH_ENCODING: &str = "pct-v1";

/// `F`: its files; `A`: which of them may be started.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Statement<F, A> {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate<F, A>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Predicate<F, A> {
    name: String,
    hash_alg: String,
    path_encoding: String,
    serial: u64,
    issued_at: UnixTime,
    expires_at: UnixTime,
    files: F,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec: Option<Exec<A>>,
    #[serde(default)]
    excludes: Vec<Exclude>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exec<A> {
    allow: A,
}

/// Nothing may be excluded yet; the field is kept for lists that will.
#[derive(Serialize)]
struct Exclude;

impl<'de> Deserialize<'de> for Exclude {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// `files` of a statement that is being made.
pub(super) struct Members(Vec<(String, Vec<String>)>);

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (path, digests) in &self.0 {
            map.serialize_entry(path, digests)?;
        }
        map.end()
    }
}

impl Statement<table::Read, table::Allowed> {
    pub(super) fn judge(self, digest: ListDigest) -> Result<List, ListError> {
        if ![STATEMENT_TYPE, STATEMENT_TYPE_V0_1].contains(&self.kind.as_str()) {
            return Err(ListError::StatementType(clip(&self.kind)));
        }
        if self.predicate_type != PREDICATE_TYPE {
            return Err(ListError::PredicateType(clip(&self.predicate_type)));
        }
        let predicate = self.predicate;
        for (field, found, known) in [
            ("hashAlg", &predicate.hash_alg, HASH_ALG),
            ("pathEncoding", &predicate.path_encoding, PATH_ENCODING),
        ] {
            if found != known {
                return Err(ListError::Unknown {
                    field,
                    found: clip(found),
                });
            }
        }
        if !is_name(&predicate.name) {
            return Err(ListError::Name(clip(&predicate.name)));
        }
        if !(1..=MAX_SERIAL).contains(&predicate.serial) {
            return Err(ListError::Serial(predicate.serial));
        }
        if predicate.expires_at <= predicate.issued_at {
            return Err(ListError::Lifetime {
                issued: predicate.issued_at,
                expires: predicate.expires_at,
            });
        }
        if !predicate.excludes.is_empty() {
            return Err(ListError::Excludes);
        }
        let files = predicate.files.judge()?;
        let exec = predicate.exec;
        let starts = exec.map(|exec| exec.allow.judge(&files)).transpose()?;
        Ok(List {
            digest,
            name: predicate.name,
            serial: predicate.serial,
            issued_at: predicate.issued_at,
            expires_at: predicate.expires_at,
            images: images(&self.subject)?,
            files,
            starts,
        })
    }
}

impl Statement<Members, Vec<String>> {
    pub(super) fn of(draft: &Draft) -> Result<Self, ListError> {
        let encode = |path: &Vec<u8>| -> Result<String, ListError> {
            Ok(EncodedPath::of(path)?.as_str().to_owned())
        };
        let members = draft
            .files
            .iter()
            .map(|(path, digests)| {
                let digests = digests.iter().map(FileDigest::hex).collect();
                Ok((encode(path)?, digests))
            })
            .collect::<Result<Vec<_>, ListError>>()?;
        let exec = match &draft.programs {
            Programs::AllFiles => None,
            Programs::Only(paths) => Some(Exec {
                allow: paths.iter().map(encode).collect::<Result<_, _>>()?,
            }),
        };
        Ok(Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject: draft
                .images
                .iter()
                .map(|(name, digest)| Subject {
                    name: name.clone(),
                    digest: SubjectDigest {
                        sha256: digest.hex(),
                    },
                })
                .collect(),
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                name: draft.name.clone(),
                hash_alg: HASH_ALG.to_owned(),
                path_encoding: PATH_ENCODING.to_owned(),
                serial: draft.serial,
                issued_at: draft.issued_at,
                expires_at: draft.expires_at,
                files: Members(members),
                exec,
                excludes: Vec::new(),
            },
        })
    }
}

fn images(subjects: &[Subject]) -> Result<Vec<ImageDigest>, ListError> {
    if subjects.is_empty() || subjects.len() > MAX_SUBJECTS {
        return Err(ListError::Subjects(subjects.len()));
    }
    subjects
        .iter()
        .map(|subject| {
            ImageDigest::from_hex(&subject.digest.sha256).ok_or_else(|| ListError::Digest {
                path: format!("subject {}", clip(&subject.name)),
                found: clip(&subject.digest.sha256),
            })
        })
        .collect()
}

/// A list's name: it shows in policies, logs and messages.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

pub(super) fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
