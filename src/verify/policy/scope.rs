//! Image names, and the scopes of rules over them.
//!
//! A name is the engine's label: whoever may tag images chooses it, and so chooses the rule. Each rule
//! must therefore stand on its own; a laxer rule for `*` can be reached by every image.

use crate::digest::ImageDigest;
use std::fmt;

/// Text that cannot be a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a scope (a repository, a repository with a tag, a digest, or \"*\")")]
pub struct NotAScope(pub String);

/// A repository and tag in their full form, as engines agree on it (distribution `reference`,
/// "normalized names"): `demo` is `docker.io/library/demo:latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
    /// The tag stands in the text, instead of being `latest` by default.
    said: bool,
}

impl ImageName {
    /// `None` for what is no name: an image that was started by its id, an empty label.
    pub fn of(text: &str) -> Option<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (repository, tag) = split_tag(name);
        if is_id(name) || !is_repository(repository) || tag.is_some_and(|tag| !is_tag(tag)) {
            return None;
        }
        let said = tag.is_some();
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Some(Self {
            repository: full(repository),
            tag,
            digest: digest.map(str::to_owned),
            said,
        })
    }
    /// A tag or a digest is named, not only a repository.
    pub fn is_whole(&self) -> bool {
        self.said || self.digest.is_some()
    }
    pub fn is_by_digest(&self) -> bool {
        self.digest.is_some()
    }
    /// The most specific scope of containers-policy.json(5); with tag and digest there is none.
    pub fn scope_identity(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.repository)),
            (None, Some(digest)) => Some(format!("{}@{digest}", self.repository)),
            _ => None,
        }
    }
    /// The same tag or digest of another repository.
    pub fn in_repository(&self, repository: &str) -> Option<Self> {
        is_repository(repository).then(|| Self {
            repository: repository.to_owned(),
            ..self.clone()
        })
    }
    pub fn repository(&self) -> &str {
        &self.repository
    }
}

/// Which names a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// This very manifest or index, whatever its name.
    Digest(ImageDigest),
    /// `*`: names that no other scope fits, and images without a name.
    Everything,
    Repository(String),
    Tagged {
        repository: String,
        tag: String,
    },
}

/// How close a scope fits; the closest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Closeness {
    Everything,
    Repository,
    Tagged,
    Digest,
}

impl Scope {
    pub fn parse(text: &str) -> Result<Self, NotAScope> {
        if text == "*" {
            return Ok(Self::Everything);
        }
        if let Ok(digest) = text.parse() {
            return Ok(Self::Digest(digest));
        }
        let (repository, tag) = split_tag(text);
        if is_id(text) || !is_repository(repository) || tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(NotAScope(text.chars().take(80).collect()));
        }
        let repository = full(repository);
        Ok(match tag {
            None => Self::Repository(repository),
            Some(tag) => Self::Tagged {
                repository,
                tag: tag.to_owned(),
            },
        })
    }
    pub(super) fn fits(
        &self,
        name: Option<&ImageName>,
        digests: &[ImageDigest],
    ) -> Option<Closeness> {
        match (self, name) {
            (Self::Digest(digest), _) => digests.contains(digest).then_some(Closeness::Digest),
            (Self::Everything, _) => Some(Closeness::Everything),
            (Self::Repository(repository), Some(name)) => {
                (name.repository == *repository).then_some(Closeness::Repository)
            }
            (Self::Tagged { repository, tag }, Some(name)) => (name.repository == *repository
                && name.tag.as_ref() == Some(tag))
            .then_some(Closeness::Tagged),
            (_, None) => None,
        }
    }
    /// The repository that signatures must be about; `None` means any.
    pub(super) fn repository(&self) -> Option<&str> {
        match self {
            Self::Everything | Self::Digest(_) => None,
            Self::Repository(repository) | Self::Tagged { repository, .. } => Some(repository),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => digest.fmt(f),
            Self::Everything => f.write_str("*"),
            Self::Repository(repository) => f.write_str(repository),
            Self::Tagged { repository, tag } => write!(f, "{repository}:{tag}"),
        }
    }
}

/// A colon before the last slash belongs to a registry's port.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    }
}

/// An image id, as engines show it: hex digits, with or without the algorithm.
fn is_id(name: &str) -> bool {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    (name.starts_with("sha256:") || hex.len() == 64) && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn full(repository: &str) -> String {
    let has_registry = |first: &str| first.contains(['.', ':']) || first == "localhost";
    match repository.split_once('/') {
        Some(("docker.io" | "index.docker.io", rest)) if !rest.contains('/') => {
            format!("docker.io/library/{rest}")
        }
        Some(("index.docker.io", rest)) => format!("docker.io/{rest}"),
        Some((first, _)) if has_registry(first) => repository.to_owned(),
        Some(_) => format!("docker.io/{repository}"),
        None => format!("docker.io/library/{repository}"),
    }
}

fn is_repository(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-/:[]".contains(&b);
    (1..=255).contains(&text.len())
        && text.bytes().all(allowed)
        && text.split('/').all(|part| !part.is_empty() && part != "..")
}

/// distribution-spec 1.1, "Pulling manifests": `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
