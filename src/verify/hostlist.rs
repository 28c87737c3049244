//! The host list: the programs of a class of hosts, which their administrator signs as owners of
//! containers sign theirs; and the host policy that a challenger makes of it.

use crate::digest::{FileDigest, ImageDigest, ListDigest};
use crate::id::UnixTime;
use crate::imalog::{EncodedPath, PathError};
use crate::siglist::{VerifiedList, is_name};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostPolicyError {
    #[error("host policy: {0}")]
    Malformed(String),
    #[error("host policy: version {0} is not known here (it knows {VERSION})")]
    Version(u32),
    #[error("host policy: {0}")]
    Path(#[from] PathError),
    #[error("host policy: it names no program, so nothing could be accepted")]
    Empty,
}

/// What a host list is about, in place of an image: a class of hosts by its name. `None`: no name.
pub fn host_class(name: &str) -> Option<ImageDigest> {
    const DOMAIN: &[u8] = b"attestrun-host-class-v1\0";
    is_name(name).then(|| ImageDigest::of(&[DOMAIN, name.as_bytes()].concat()))
}

/// What a challenger expects of the programs of a host: made of a verified host list, TOML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPolicy {
    version: u32,
    /// The host list that this was made of.
    list: ListDigest,
    name: String,
    serial: u64,
    class: String,
    expires_at: UnixTime,
    /// Paths ([`EncodedPath`]) and the contents that each may have.
    files: BTreeMap<String, BTreeSet<FileDigest>>,
}

impl HostPolicy {
    pub fn of(list: &VerifiedList, class: &str) -> Result<Self, HostPolicyError> {
        let files = list.list().files().iter().map(|(path, digests)| {
            let path = EncodedPath::of(path)?.as_str().to_owned();
            Ok((path, digests.iter().copied().collect()))
        });
        Ok(Self {
            version: VERSION,
            list: list.digest(),
            name: list.name().to_owned(),
            serial: list.serial(),
            class: class.to_owned(),
            expires_at: list.list().expires_at(),
            files: files.collect::<Result<_, PathError>>()?,
        })
    }

    pub fn parse(text: &str) -> Result<Self, HostPolicyError> {
        let policy: Self =
            toml::from_str(text).map_err(|e| HostPolicyError::Malformed(e.to_string()))?;
        if policy.version != VERSION {
            return Err(HostPolicyError::Version(policy.version));
        }
        if policy.files.is_empty() {
            return Err(HostPolicyError::Empty);
        }
        for path in policy.files.keys() {
            EncodedPath::parse(path)?;
        }
        Ok(policy)
    }

    pub fn to_toml(&self) -> Result<String, HostPolicyError> {
        toml::to_string(self).map_err(|e| HostPolicyError::Malformed(e.to_string()))
    }

    pub fn expires_at(&self) -> UnixTime {
        self.expires_at
    }
    pub fn title(&self) -> String {
        let (name, serial, class) = (&self.name, self.serial, &self.class);
        format!("host list `{name}` serial {serial} of hosts `{class}`")
    }
    /// The contents that files whose path ends like this may have.
    pub fn ending_in(&self, end: &str) -> BTreeSet<FileDigest> {
        let named = self.files.iter().filter(|(path, _)| path.ends_with(end));
        named.flat_map(|(_, digests)| digests).copied().collect()
    }

    /// For looking up what a kernel has seen.
    pub fn programs(&self) -> HostPrograms {
        let mut programs = HostPrograms::default();
        for (path, digests) in &self.files {
            // parsed, or made of a path
            let path = EncodedPath::parse(path).map(|path| path.decode());
            programs
                .paths
                .insert(as_the_kernel(&path.unwrap_or_default()));
            programs.contents.extend(digests);
        }
        programs
    }
}

/// The programs of a host policy, as a kernel's list names them.
#[derive(Debug, Clone, Default)]
pub struct HostPrograms {
    paths: BTreeSet<Vec<u8>>,
    contents: BTreeSet<FileDigest>,
}

impl HostPrograms {
    /// A copy of a listed program is that program. `Err`: what is wrong, for people.
    pub fn judge(&self, path: &[u8], digest: &FileDigest) -> Result<(), String> {
        let shown = || crate::imalog::encode_path(path);
        match self.contents.contains(digest) {
            true => Ok(()),
            false if self.paths.contains(path) => Err(format!(
                "{} has content {digest}, which is not listed",
                shown()
            )),
            false => Err(format!("{} ({digest}) is not listed", shown())),
        }
    }
}

/// `ima_write_template_field_data`: the kernel writes spaces as `_`.
fn as_the_kernel(path: &[u8]) -> Vec<u8> {
    let spelt = |byte: &u8| if *byte == b' ' { b'_' } else { *byte };
    path.iter().map(spelt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_no_image() {
        assert_eq!(host_class("web"), host_class("web"));
        assert_ne!(host_class("web"), host_class("db"));
        assert_ne!(host_class("web"), Some(ImageDigest::of(b"web")));
        for bad in ["", "a b", "a\n", "../a"] {
            assert_eq!(host_class(bad), None, "{bad}");
        }
    }

    #[test]
    fn refuse_policies_that_say_nothing() {
        let digest = FileDigest::of(b"a");
        let head = format!(
            "version = 1\nlist = \"{digest}\"\nname = \"hosts\"\nserial = 1\nclass = \"web\"\n\
             expires_at = \"2030-01-01T00:00:00Z\"\n[files]\n"
        );
        let one = format!("{head}\"/usr/bin/a%20b\" = [\"{digest}\"]\n");
        let policy = HostPolicy::parse(&one).unwrap();
        assert_eq!(
            HostPolicy::parse(&policy.to_toml().unwrap()),
            Ok(policy.clone())
        );
        assert!(policy.programs().judge(b"/usr/bin/a_b", &digest).is_ok());
        let other = FileDigest::of(b"b");
        let content = policy
            .programs()
            .judge(b"/usr/bin/a_b", &other)
            .unwrap_err();
        assert!(content.contains("has content"), "{content}");
        assert!(policy.programs().judge(b"/usr/bin/c", &other).is_err());
        for bad in [
            head.clone(),
            one.replace("version = 1", "version = 2"),
            one.replace("/usr", "usr"),
            one.replace("%20", "%2F"),
            one.replace("serial = 1", "serial = 1\nmore = 1"),
        ] {
            assert!(HostPolicy::parse(&bad).is_err(), "{bad}");
        }
    }
}
