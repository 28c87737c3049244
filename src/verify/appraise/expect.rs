//! What a challenger expects: TOML, every key mandatory whose absence would mean "do not check".

use crate::check::Waiver;
use crate::digest::{FileDigest, ImageDigest, PolicyDigest, RootfsDigest};
use crate::event::EnterMode;
use crate::evidence::Root;
use crate::profile::{LaunchRules, Relaxation};
use crate::tpm2::TpmName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Longest answer time that a challenger may allow.
const MAX_AGE_SECS: u64 = 24 * 60 * 60;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpectError {
    #[error("expectations: {0}")]
    Malformed(String),
    #[error("expectations: `{0}` is empty, so nothing could be accepted")]
    Empty(&'static str),
    #[error("expectations: `{key}`: {problem}")]
    Value { key: &'static str, problem: String },
}

/// A host that the challenger knows: its attestation key was pinned at enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedHost {
    pub name: String,
    pub ak_name: TpmName,
    pub root: Root,
    /// Value of host PCR 13 before the binding log's first entry, 64 hex digits; zeros unless the
    /// firmware log explains another one.
    pub binding_pcr_start: String,
}

impl PinnedHost {
    /// None: malformed, which [`Expectations::parse`] refuses.
    pub fn start(&self) -> Option<[u8; 32]> {
        let mut start = [0; 32];
        hex::decode_to_slice(&self.binding_pcr_start, &mut start)
            .ok()
            .map(|()| start)
    }
}

/// Which signature list counts; serials are per tenant and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedList {
    pub name: String,
    pub min_serial: u64,
}

/// Whether users' certificates are checked for revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevocationCheck {
    /// Named, so that it shows in review.
    Unchecked,
    /// Every certificate of the chain needs a current CRL among `crls`.
    Crl,
}

/// How the container must have been launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedLaunch {
    /// `"any"`, or the accepted argument lists: `[["/bin/app", "--listen"]]`.
    pub args: ArgsRule,
    /// `"any"` (except variables of the loader), or the accepted names.
    pub env: EnvRule,
    /// Named relaxations of the default rules, as a host policy's `[rule.launch]` has them.
    #[serde(default)]
    pub allow: Vec<Relaxation>,
}

impl ExpectedLaunch {
    pub fn rules(&self) -> LaunchRules {
        LaunchRules {
            allow: self.allow.clone(),
            ..LaunchRules::default()
        }
    }
}

/// The word `any`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Any {
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ArgsRule {
    Any(Any),
    OneOf(Vec<Vec<String>>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EnvRule {
    Any(Any),
    OneOf(Vec<String>),
}

/// Which firmware versions a TPM may report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FirmwareRule {
    Any(Any),
    /// As an appraisal prints them: `0x` and 16 hex digits.
    OneOf(Vec<String>),
}

/// Of the host's TPM and of the vTPM (swtpm's libtpms).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedFirmware {
    pub host: FirmwareRule,
    pub vtpm: FirmwareRule,
}

/// A challenger's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    pub hosts: Vec<PinnedHost>,
    /// Image manifest digests.
    pub images: Vec<ImageDigest>,
    /// Files with the user CAs' certificates (PEM); the caller reads them into [`super::Trust`].
    pub user_ca: Vec<PathBuf>,
    pub revocation: RevocationCheck,
    /// Files with CRLs; the caller reads them into [`super::Trust`].
    #[serde(default)]
    pub crls: Vec<PathBuf>,
    /// `spiffe://<domain>/tenant/<id>` of the list's signer.
    pub tenant: String,
    pub list: ExpectedList,
    /// Digests of the host policies that may have admitted the container.
    pub policies: Vec<PolicyDigest>,
    /// Digests of the executables `attestrun` and `swtpm`.
    pub runtimes: Vec<FileDigest>,
    pub swtpms: Vec<FileDigest>,
    /// Rootfs manifest digests (`attestctl image manifest`).
    pub rootfs: Vec<RootfsDigest>,
    /// The laxest mode that is accepted.
    pub enter: EnterMode,
    pub waive: Vec<Waiver>,
    /// Longest time from asking to judging.
    pub max_age_secs: u64,
    pub launch: ExpectedLaunch,
    /// A file that `attestctl host-policy` made of the administrator's host list: what the host may run.
    /// Without it that is unknown (P-HOST); the caller reads it into [`super::Trust`].
    #[serde(default)]
    pub host_policy: Option<PathBuf>,
    pub firmware: ExpectedFirmware,
    /// Programs that must have been executed by now, by their (encoded) paths.
    #[serde(default)]
    pub must_run: Vec<String>,
    /// What must stand in bind mounts, by destination: needs a host policy with `mounts = "measure"`.
    /// What is mounted elsewhere is judged as the container's launch is.
    #[serde(default)]
    pub mounts: BTreeMap<String, Vec<RootfsDigest>>,
}

impl Expectations {
    pub fn parse(text: &str) -> Result<Self, ExpectError> {
        let expect: Self =
            toml::from_str(text).map_err(|e| ExpectError::Malformed(e.to_string()))?;
        // Whoever accepts a container without image or list need not name one.
        let images = !expect.waives(Waiver::NoImage) && !expect.waives(Waiver::Build);
        let lists = ![Waiver::Sandbox, Waiver::NoList, Waiver::AnyProgram]
            .iter()
            .any(|waiver| expect.waives(*waiver));
        for (key, empty) in [
            ("hosts", expect.hosts.is_empty()),
            ("images", images && expect.images.is_empty()),
            ("user_ca", lists && expect.user_ca.is_empty()),
            ("tenant", lists && expect.tenant.is_empty()),
            ("list.name", lists && expect.list.name.is_empty()),
            ("policies", expect.policies.is_empty()),
            ("runtimes", expect.runtimes.is_empty()),
            ("swtpms", expect.swtpms.is_empty()),
            ("rootfs", expect.rootfs.is_empty()),
            (
                "crls",
                expect.revocation == RevocationCheck::Crl && expect.crls.is_empty(),
            ),
        ] {
            if empty {
                return Err(ExpectError::Empty(key));
            }
        }
        let wrong = |key, problem: String| Err(ExpectError::Value { key, problem });
        for host in &expect.hosts {
            if host.start().is_none() {
                let problem = format!("`{}` is not 64 hex digits", host.binding_pcr_start);
                return wrong("binding_pcr_start", problem);
            }
            if expect
                .hosts
                .iter()
                .filter(|h| h.ak_name == host.ak_name)
                .count()
                > 1
            {
                return wrong("hosts", format!("{} is pinned twice", host.ak_name));
            }
        }
        if !(1..=MAX_AGE_SECS).contains(&expect.max_age_secs) {
            return wrong(
                "max_age_secs",
                format!("{} is not in 1..={MAX_AGE_SECS}", expect.max_age_secs),
            );
        }
        if let Some((at, _)) = expect
            .mounts
            .iter()
            .find(|(_, accepted)| accepted.is_empty())
        {
            return wrong("mounts", format!("nothing would be accepted at {at}"));
        }
        if expect.revocation == RevocationCheck::Unchecked && !expect.crls.is_empty() {
            return wrong(
                "crls",
                "given, but `revocation` is \"unchecked\"".to_owned(),
            );
        }
        Ok(expect)
    }

    pub fn waives(&self, waiver: Waiver) -> bool {
        self.waive.contains(&waiver)
    }
    /// The pin of the host with this attestation key.
    pub fn host(&self, ak_name: &TpmName) -> Option<&PinnedHost> {
        self.hosts.iter().find(|host| host.ak_name == *ak_name)
    }
}
