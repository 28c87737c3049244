//! The policy file as TOML 1.0, strictly: what is not understood refuses the whole file.

use super::{
    Enforce, EnterMode, MAX_POLICY, Policy, PolicyError, RevocationRule, Rule, Scope,
    SignedIdentity, TierName,
};
use crate::cms::is_tenant;
use crate::digest::PolicyDigest;
use crate::profile::LaunchRules;
use crate::siglist::is_name;
use serde::Deserialize;
use std::path::{Component, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyWire {
    version: u64,
    mode: Enforce,
    /// No rules at all is a policy that admits nothing.
    #[serde(default)]
    rule: Vec<RuleWire>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleWire {
    name: String,
    scope: String,
    keys: Vec<PathBuf>,
    #[serde(default = "strict_identity")]
    signed_identity: SignedIdentity,
    user_ca: Vec<PathBuf>,
    tenant: String,
    list: String,
    min_serial: u64,
    revocation: RevocationWire,
    #[serde(default)]
    crls: Vec<PathBuf>,
    enter: EnterMode,
    min_tier: TierName,
    /// Left out, nothing is relaxed.
    #[serde(default)]
    launch: LaunchRules,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RevocationWire {
    Unchecked,
    Crl,
}

fn strict_identity() -> SignedIdentity {
    SignedIdentity::Scope
}

pub(super) fn parse(bytes: &[u8]) -> Result<Policy, PolicyError> {
    if bytes.len() > MAX_POLICY {
        return Err(PolicyError::TooLong(bytes.len()));
    }
    let malformed = |detail: String| PolicyError::Malformed(detail.trim_end().to_owned());
    let text = std::str::from_utf8(bytes).map_err(|e| malformed(e.to_string()))?;
    let wire: PolicyWire = toml::from_str(text).map_err(|e| malformed(e.to_string()))?;
    if wire.version != 1 {
        return Err(PolicyError::Version(wire.version));
    }
    let mut rules: Vec<Rule> = Vec::new();
    for wire in wire.rule {
        let rule = rule(wire)?;
        for other in &rules {
            if other.name == rule.name {
                return Err(PolicyError::DuplicateName(rule.name));
            }
            if other.scope == rule.scope {
                return Err(PolicyError::DuplicateScope {
                    first: other.name.clone(),
                    second: rule.name,
                    scope: rule.scope.to_string(),
                });
            }
        }
        rules.push(rule);
    }
    Ok(Policy {
        digest: PolicyDigest::of(bytes),
        mode: wire.mode,
        rules,
    })
}

fn rule(wire: RuleWire) -> Result<Rule, PolicyError> {
    let rule = || wire.name.clone();
    if !is_name(&wire.name) {
        return Err(PolicyError::Name(clip(&wire.name)));
    }
    let scope = Scope::parse(&wire.scope).map_err(|source| PolicyError::Scope {
        rule: rule(),
        source,
    })?;
    for (field, files) in [("keys", &wire.keys), ("user_ca", &wire.user_ca)] {
        if files.is_empty() {
            return Err(PolicyError::Empty {
                rule: rule(),
                field,
            });
        }
    }
    for path in wire.keys.iter().chain(&wire.user_ca).chain(&wire.crls) {
        if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
            return Err(PolicyError::NotAbsolute {
                rule: rule(),
                path: clip(&path.display().to_string()),
            });
        }
    }
    if !is_tenant(&wire.tenant) {
        return Err(PolicyError::Tenant {
            rule: rule(),
            tenant: clip(&wire.tenant),
        });
    }
    if !is_name(&wire.list) {
        return Err(PolicyError::List {
            rule: rule(),
            list: clip(&wire.list),
        });
    }
    let revocation = match (wire.revocation, wire.crls.is_empty()) {
        (RevocationWire::Unchecked, true) => RevocationRule::Unchecked,
        (RevocationWire::Crl, false) => RevocationRule::Crls(wire.crls),
        (found, _) => {
            let found = match found {
                RevocationWire::Unchecked => "unchecked",
                RevocationWire::Crl => "crl",
            };
            return Err(PolicyError::Revocation {
                rule: wire.name,
                found: found.to_owned(),
            });
        }
    };
    Ok(Rule {
        name: wire.name,
        scope,
        keys: wire.keys,
        signed_identity: wire.signed_identity,
        user_ca: wire.user_ca,
        tenant: wire.tenant,
        list: wire.list,
        min_serial: wire.min_serial,
        revocation,
        enter: wire.enter,
        min_tier: wire.min_tier,
        launch: wire.launch,
    })
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
