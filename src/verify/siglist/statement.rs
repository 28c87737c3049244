//! The list as JSON: what is read, strictly, and what is written.

use super::{
    Draft, List, ListError, MAX_DIGESTS, MAX_ENTRIES, MAX_SERIAL, MAX_SUBJECTS, PREDICATE_TYPE,
    Programs, STATEMENT_TYPE, STATEMENT_TYPE_V0_1, path_from,
};
use crate::digest::{FileDigest, ImageDigest, ListDigest};
use crate::id::UnixTime;
use crate::imalog::EncodedPath;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

const HASH_ALG: &str = "sha256";
/// [`EncodedPath`], version 1.
const PATH_ENCODING: &str = "pct-v1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
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
struct Predicate {
    name: String,
    hash_alg: String,
    path_encoding: String,
    serial: u64,
    issued_at: UnixTime,
    expires_at: UnixTime,
    files: Files,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec: Option<Exec>,
    #[serde(default)]
    excludes: Vec<Exclude>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exec {
    allow: Vec<String>,
}

/// Nothing may be excluded yet; the field is kept for lists that will.
#[derive(Serialize)]
struct Exclude;

impl<'de> Deserialize<'de> for Exclude {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// The members of the JSON object in their order, repeated names included: a map type would keep
/// one of two equal names without a word.
struct Files {
    members: Vec<(String, Vec<String>)>,
    /// How many there were; only the first [`MAX_ENTRIES`] are kept.
    count: usize,
}

impl Serialize for Files {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.members.len()))?;
        for (path, digests) in &self.members {
            map.serialize_entry(path, digests)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Files;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of paths with their digests")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
                let (mut members, mut count) = (Vec::new(), 0);
                while count < MAX_ENTRIES {
                    match map.next_entry()? {
                        Some(member) => members.push(member),
                        None => return Ok(Files { members, count }),
                    }
                    count += 1;
                }
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Files { members, count })
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl Statement {
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
        let files = files(predicate.files)?;
        let programs = programs(predicate.exec, &files)?;
        Ok(List {
            digest,
            name: predicate.name,
            serial: predicate.serial,
            issued_at: predicate.issued_at,
            expires_at: predicate.expires_at,
            images: images(&self.subject)?,
            files,
            programs,
        })
    }

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
                files: Files {
                    count: members.len(),
                    members,
                },
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
            format!("sha256:{}", subject.digest.sha256)
                .parse()
                .map_err(|_| ListError::Digest {
                    path: format!("subject {}", clip(&subject.name)),
                    found: clip(&subject.digest.sha256),
                })
        })
        .collect()
}

fn files(files: Files) -> Result<BTreeMap<Vec<u8>, BTreeSet<FileDigest>>, ListError> {
    if files.count == 0 || files.count > MAX_ENTRIES {
        return Err(ListError::Entries(files.count));
    }
    let mut map = BTreeMap::new();
    for (text, digests) in files.members {
        let path = path_from(&text)?;
        if digests.is_empty() || digests.len() > MAX_DIGESTS {
            return Err(ListError::Digests {
                path: text,
                count: digests.len(),
            });
        }
        let mut set = BTreeSet::new();
        for hex in digests {
            let digest = match format!("sha256:{hex}").parse() {
                Ok(digest) => digest,
                Err(_) => {
                    return Err(ListError::Digest {
                        path: text,
                        found: clip(&hex),
                    });
                }
            };
            if !set.insert(digest) {
                return Err(ListError::DuplicateDigest { path: text, digest });
            }
        }
        if map.insert(path, set).is_some() {
            return Err(ListError::DuplicatePath(text));
        }
    }
    Ok(map)
}

fn programs(
    exec: Option<Exec>,
    files: &BTreeMap<Vec<u8>, BTreeSet<FileDigest>>,
) -> Result<Programs, ListError> {
    let Some(exec) = exec else {
        return Ok(Programs::AllFiles);
    };
    let mut allowed = BTreeSet::new();
    for text in exec.allow {
        let path = path_from(&text)?;
        if !files.contains_key(&path) {
            return Err(ListError::UnknownProgram(text));
        }
        if !allowed.insert(path) {
            return Err(ListError::DuplicatePath(text));
        }
    }
    Ok(Programs::Only(allowed))
}

/// A list's name: it shows in policies, logs and messages.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
