//! containers-policy.json(5), as podman, buildah, skopeo and CRI-O read it: which signatures an image of
//! a name needs.
//!
//! Strict as containers/image is: an unknown or repeated field refuses the whole file, with its name.
//! What is understood and cannot be checked here (`signedBy`, `pki`) refuses the images it is for.

mod wire;

use super::ImageName;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where the file is.
pub const CONTAINERS_POLICY: &str = "/etc/containers/policy.json";

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is malformed: {0}")]
pub struct NotAContainersPolicy(pub String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainersPolicy {
    default: Vec<Requirement>,
    /// Scopes of the transport `docker`.
    docker: Vec<(String, Vec<Requirement>)>,
}

/// All requirements of a scope must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    InsecureAcceptAnything,
    Reject,
    SigstoreSigned(Box<SigstoreSigned>),
    /// Known to the format and not to us.
    Unsupported(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigstoreSigned {
    pub by: Signers,
    /// Keys of transparency logs; none: no log is asked for.
    pub rekor: Vec<Data>,
    pub identity: SignedName,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signers {
    Keys(Vec<Data>),
    Fulcio {
        ca: Data,
        oidc_issuer: String,
        subject_email: String,
    },
}

/// In a file, or in the policy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    File(PathBuf),
    Inline(Vec<u8>),
}

/// `signedIdentity`: which name the signature must be about.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum SignedName {
    #[serde(rename = "matchExact")]
    MatchExact {},
    #[serde(rename = "matchRepoDigestOrExact")]
    MatchRepoDigestOrExact {},
    #[serde(rename = "matchRepository")]
    MatchRepository {},
    #[serde(rename = "exactReference")]
    ExactReference {
        #[serde(rename = "dockerReference")]
        reference: String,
    },
    #[serde(rename = "exactRepository")]
    ExactRepository {
        #[serde(rename = "dockerRepository")]
        repository: String,
    },
    #[serde(rename = "remapIdentity")]
    RemapIdentity {
        prefix: String,
        #[serde(rename = "signedPrefix")]
        signed_prefix: String,
    },
}

impl ContainersPolicy {
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAContainersPolicy> {
        wire::parse(bytes)
    }

    /// The scope that decides about an image, and what it asks: the most specific one; an image without
    /// a name is the default's.
    pub fn requirements_for(&self, image_name: &str) -> (&str, &[Requirement]) {
        let find = |wanted: &str| self.docker.iter().find(|(scope, _)| scope == wanted);
        let scopes = scopes_of(image_name);
        match scopes.iter().find_map(|scope| find(scope)) {
            Some((scope, requirements)) if scope.is_empty() => ("docker", requirements),
            Some((scope, requirements)) => (scope, requirements),
            None => ("default", &self.default),
        }
    }

    /// Every file that a requirement names, for whatever image.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        let of_docker = self
            .docker
            .iter()
            .flat_map(|(_, requirements)| requirements);
        let all = self.default.iter().chain(of_docker);
        all.flat_map(Requirement::files).collect()
    }

    /// The files that the requirements for this image name.
    pub fn files_for(&self, image_name: &str) -> Vec<(&'static str, &Path)> {
        let (_, requirements) = self.requirements_for(image_name);
        requirements.iter().flat_map(Requirement::files).collect()
    }
}

impl Requirement {
    fn files(&self) -> Vec<(&'static str, &Path)> {
        let Self::SigstoreSigned(signed) = self else {
            return Vec::new();
        };
        let keys: Vec<&Data> = match &signed.by {
            Signers::Keys(keys) => keys.iter().collect(),
            Signers::Fulcio { ca, .. } => vec![ca],
        };
        let kind = match &signed.by {
            Signers::Keys(_) => "key",
            Signers::Fulcio { .. } => "fulcio-ca",
        };
        keys.into_iter()
            .map(|data| (kind, data))
            .chain(signed.rekor.iter().map(|data| ("rekor-key", data)))
            .filter_map(|(kind, data)| match data {
                Data::File(path) => Some((kind, path.as_path())),
                Data::Inline(_) => None,
            })
            .collect()
    }
}

/// From the image itself to the whole transport (containers/image `docker/policyconfiguration`): the
/// reference, its repository, each namespace, the host; then wildcards of its domain, then the
/// transport.
fn scopes_of(image_name: &str) -> Vec<String> {
    let mut scopes = Vec::new();
    let Some(name) = ImageName::of(image_name) else {
        return scopes;
    };
    if let Some(whole) = name.scope_identity() {
        scopes.push(whole);
    }
    let mut rest = name.repository();
    loop {
        scopes.push(rest.to_owned());
        match rest.rsplit_once('/') {
            Some((parent, _)) => rest = parent,
            None => break,
        }
    }
    let mut domain = rest.split(':').next().unwrap_or(rest);
    while let Some((_, parent)) = domain.split_once('.') {
        scopes.push(format!("*.{parent}"));
        domain = parent;
    }
    scopes.push(String::new());
    scopes
}

impl SignedName {
    /// Whether a signature for `signed` is about the image that the engine calls `image`.
    pub fn fits(&self, image: &str, signed: &str) -> bool {
        let (image, signed) = (ImageName::of(image), ImageName::of(signed));
        let Some(signed) = signed else {
            return false;
        };
        let of = |text: &str| ImageName::of(text);
        match self {
            Self::MatchExact {} => image.is_some_and(|image| exactly(&image, &signed)),
            Self::MatchRepoDigestOrExact {} => {
                image.is_some_and(|i| by_digest_or_exactly(&i, &signed))
            }
            Self::MatchRepository {} => {
                image.is_some_and(|image| image.repository() == signed.repository())
            }
            Self::ExactReference { reference } => {
                of(reference).is_some_and(|r| exactly(&r, &signed))
            }
            Self::ExactRepository { repository } => {
                of(repository).is_some_and(|r| r.repository() == signed.repository())
            }
            Self::RemapIdentity {
                prefix,
                signed_prefix,
            } => {
                let Some(image) = image else {
                    return false;
                };
                let remapped = match remapped(image.repository(), prefix, signed_prefix) {
                    Some(repository) => image.in_repository(&repository),
                    None => Some(image),
                };
                remapped.is_some_and(|image| by_digest_or_exactly(&image, &signed))
            }
        }
    }
}

/// Both name a tag or a digest, and the same.
fn exactly(image: &ImageName, signed: &ImageName) -> bool {
    image.is_whole() && signed.is_whole() && image == signed
}

/// The image is named by digest, which is verified anyhow: then only the repository must agree.
fn by_digest_or_exactly(image: &ImageName, signed: &ImageName) -> bool {
    match image.is_by_digest() {
        true => signed.is_whole() && image.repository() == signed.repository(),
        false => exactly(image, signed),
    }
}

/// `prefix` is a repository, a namespace or a host: all of it, or up to a slash.
fn remapped(repository: &str, prefix: &str, signed_prefix: &str) -> Option<String> {
    match repository.strip_prefix(prefix)? {
        rest if rest.is_empty() || rest.starts_with('/') => Some(format!("{signed_prefix}{rest}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
