//! The policy file as TOML 1.0, strictly: what is not understood refuses the whole file.

mod authority;
mod wire;

use self::authority::{attestation, scan, signers};
use self::wire::{
    BuildWire, BundleWire, PolicyWire, ProgramsWire, RevocationWire, RuleOwn, RuleWire,
    SandboxWire, TermsWire, WordOr,
};
use super::{
    BaseRule, BuildRule, BundleRule, BundleScope, ContentRule, ListDemand, MAX_POLICY,
    NamedPrograms, Policy, PolicyError, RevocationRule, RootfsCheck, Rule, RulePrograms,
    SandboxRule, Scope, Terms, UpperRule,
};
use crate::cms::is_tenant;
use crate::digest::PolicyDigest;
use crate::siglist::is_name;
use std::collections::BTreeSet;
use std::path::{Component, Path};

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
    let policy = Policy {
        digest: PolicyDigest::of(bytes),
        mode: wire.mode,
        rules: each(wire.rule, rule)?,
        bundles: each(wire.bundle, bundle)?,
        sandboxes: each(wire.sandbox, sandbox)?,
        builds: each(wire.build, build)?,
    };
    unambiguous(&policy)?;
    Ok(policy)
}

fn each<W, E>(
    wires: Vec<W>,
    read: impl Fn(W) -> Result<E, PolicyError>,
) -> Result<Vec<E>, PolicyError> {
    wires.into_iter().map(read).collect()
}

/// Each name once, and never two entries that could apply to the same container equally well.
fn unambiguous(policy: &Policy) -> Result<(), PolicyError> {
    let rules = policy.rules.iter().map(|e| &e.terms);
    let bundles = policy.bundles.iter().map(|e| &e.terms);
    let sandboxes = policy.sandboxes.iter().map(|e| &e.terms);
    let builds = policy.builds.iter().map(|e| &e.terms);
    let mut names = BTreeSet::new();
    for terms in rules.chain(bundles).chain(sandboxes).chain(builds) {
        if !names.insert(&terms.name) {
            return Err(PolicyError::DuplicateName(terms.name.clone()));
        }
    }
    let scopes = (policy.rules.iter()).map(|e| (&e.terms, format!("image {}", e.scope)));
    let directories = policy.bundles.iter().map(|e| {
        let scope = match &e.rootfs {
            BundleScope::Everywhere => "*".to_owned(),
            BundleScope::Below(directory) => directory.display().to_string(),
        };
        (&e.terms, format!("rootfs {scope}"))
    });
    let commands = policy.sandboxes.iter().flat_map(|e| {
        let scope = |image| (&e.terms, format!("{image} {:?}", e.args));
        e.images.iter().map(scope)
    });
    let bases = policy.builds.iter().flat_map(|e| match &e.base {
        BaseRule::Any => vec![(&e.terms, "base any".to_owned())],
        BaseRule::OneOf(images) => images
            .iter()
            .map(|image| (&e.terms, format!("base {image}")))
            .collect(),
    });
    let mut seen: Vec<(&Terms, String)> = Vec::new();
    for (terms, scope) in scopes.chain(directories).chain(commands).chain(bases) {
        if let Some((first, _)) = seen.iter().find(|(_, other)| *other == scope) {
            return Err(PolicyError::DuplicateScope {
                first: first.name.clone(),
                second: terms.name.clone(),
                scope,
            });
        }
        seen.push((terms, scope));
    }
    Ok(())
}

/// The weakest check of the root file system, and what its own layer may hold.
type Files = (RootfsCheck, UpperRule);

fn terms(wire: TermsWire, (rootfs, upper): Files) -> Result<Terms, PolicyError> {
    if !is_name(&wire.name) {
        return Err(PolicyError::Name(clip(&wire.name)));
    }
    Ok(Terms {
        name: wire.name,
        enter: wire.enter,
        min_tier: wire.min_tier,
        rootfs,
        upper,
        mounts: wire.mounts,
        measure: wire.measure,
        exec_log: wire.exec_log,
        launch: wire.launch,
    })
}

fn rule(wire: RuleWire) -> Result<Rule, PolicyError> {
    let mut own = wire.own;
    let terms = terms(wire.terms, (own.rootfs.check(), own.upper))?;
    let scope = Scope::parse(&own.scope).map_err(|source| PolicyError::Scope {
        rule: terms.name.clone(),
        source,
    })?;
    let authorities = signers(&mut own, &terms)?;
    let attestations = std::mem::take(&mut own.attestations).into_iter();
    let attestations = attestations.map(|wire| attestation(wire, &terms));
    let attestations = attestations.collect::<Result<_, _>>()?;
    let vulnerabilities = own.vulnerabilities.take();
    let vulnerabilities = vulnerabilities.map(|wire| scan(wire, &terms)).transpose()?;
    let programs = match own.programs {
        ProgramsWire::Listed => RulePrograms::Listed(demand(&mut own, &terms)?),
        ProgramsWire::Any => {
            if let Some(field) = given(&own) {
                return Err(PolicyError::Conflict {
                    rule: terms.name,
                    field,
                    other: "programs = \"any\"",
                });
            }
            RulePrograms::Any
        }
    };
    Ok(Rule {
        terms,
        scope,
        authorities,
        containers_policy: own.containers_policy,
        attestations,
        vulnerabilities,
        signed_identity: own.signed_identity,
        programs,
    })
}

/// The first key that is about a list.
fn given(own: &RuleOwn) -> Option<&'static str> {
    [
        ("user_ca", own.user_ca.is_some()),
        ("tenant", own.tenant.is_some()),
        ("list", own.list.is_some()),
        ("min_serial", own.min_serial.is_some()),
        ("revocation", own.revocation.is_some()),
        ("crls", !own.crls.is_empty()),
    ]
    .into_iter()
    .find_map(|(field, given)| given.then_some(field))
}

fn demand(own: &mut RuleOwn, terms: &Terms) -> Result<ListDemand, PolicyError> {
    let missing = |field| PolicyError::Missing {
        rule: terms.name.clone(),
        field,
        why: "it says whose list of programs counts (only programs = \"any\" needs none)",
    };
    let rule = || terms.name.clone();
    let crls = std::mem::take(&mut own.crls);
    let user_ca = own.user_ca.take().ok_or_else(|| missing("user_ca"))?;
    not_empty(terms, "user_ca", user_ca.is_empty())?;
    absolute(terms, user_ca.iter().chain(&crls))?;
    let tenant = own.tenant.take().ok_or_else(|| missing("tenant"))?;
    if !is_tenant(&tenant) {
        return Err(PolicyError::Tenant {
            rule: rule(),
            tenant: clip(&tenant),
        });
    }
    let name = own.list.take().ok_or_else(|| missing("list"))?;
    if !is_name(&name) {
        return Err(PolicyError::List {
            rule: rule(),
            list: clip(&name),
        });
    }
    let min_serial = own.min_serial.ok_or_else(|| missing("min_serial"))?;
    let wanted = own.revocation.take().ok_or_else(|| missing("revocation"))?;
    let revocation = match (wanted, crls.is_empty()) {
        (RevocationWire::Unchecked, true) => RevocationRule::Unchecked,
        (RevocationWire::Crl, false) => RevocationRule::Crls(crls),
        (found, _) => {
            let found = match found {
                RevocationWire::Unchecked => "unchecked",
                RevocationWire::Crl => "crl",
            };
            return Err(PolicyError::Revocation {
                rule: rule(),
                found: found.to_owned(),
            });
        }
    };
    Ok(ListDemand {
        user_ca,
        tenant,
        name,
        min_serial,
        revocation,
    })
}

fn bundle(wire: BundleWire) -> Result<BundleRule, PolicyError> {
    let own = wire.own;
    // Nothing says what a directory should hold: it is measured as it is.
    let terms = terms(wire.terms, (RootfsCheck::Measured, UpperRule::Any))?;
    let rootfs = match own.rootfs.as_os_str() == "*" {
        true => BundleScope::Everywhere,
        false => {
            absolute(&terms, [&own.rootfs])?;
            BundleScope::Below(own.rootfs)
        }
    };
    Ok(BundleRule {
        rootfs,
        content: match own.content {
            WordOr::Any(_) => ContentRule::Any,
            WordOr::OneOf(digests) => ContentRule::OneOf(some(&terms, "content", digests)?),
        },
        programs: programs(&terms, own.programs)?,
        terms,
    })
}

fn sandbox(wire: SandboxWire) -> Result<SandboxRule, PolicyError> {
    let own = wire.own;
    let terms = terms(wire.terms, (own.rootfs.check(), UpperRule::Pristine))?;
    let Some(program) = own.args.first() else {
        return Err(PolicyError::Empty {
            rule: terms.name,
            field: "args",
        });
    };
    absolute(&terms, [Path::new(program)])?;
    Ok(SandboxRule {
        images: some(&terms, "images", own.images)?,
        args: own.args,
        terms,
    })
}

fn build(wire: BuildWire) -> Result<BuildRule, PolicyError> {
    let own = wire.own;
    let terms = terms(wire.terms, (RootfsCheck::Measured, UpperRule::Any))?;
    Ok(BuildRule {
        base: match own.base {
            WordOr::Any(_) => BaseRule::Any,
            WordOr::OneOf(digests) => BaseRule::OneOf(some(&terms, "base", digests)?),
        },
        programs: programs(&terms, own.programs)?,
        terms,
    })
}

fn programs(
    terms: &Terms,
    wire: WordOr<crate::digest::FileDigest>,
) -> Result<NamedPrograms, PolicyError> {
    match wire {
        WordOr::Any(_) => Ok(NamedPrograms::Any),
        WordOr::OneOf(digests) => Ok(NamedPrograms::OneOf(some(terms, "programs", digests)?)),
    }
}

fn some<D: Ord>(
    terms: &Terms,
    field: &'static str,
    digests: Vec<D>,
) -> Result<BTreeSet<D>, PolicyError> {
    not_empty(terms, field, digests.is_empty())?;
    Ok(digests.into_iter().collect())
}

fn not_empty(terms: &Terms, field: &'static str, empty: bool) -> Result<(), PolicyError> {
    match empty {
        false => Ok(()),
        true => Err(PolicyError::Empty {
            rule: terms.name.clone(),
            field,
        }),
    }
}

fn absolute<P: AsRef<Path>>(
    terms: &Terms,
    paths: impl IntoIterator<Item = P>,
) -> Result<(), PolicyError> {
    for path in paths {
        let path = path.as_ref();
        if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
            return Err(PolicyError::NotAbsolute {
                rule: terms.name.clone(),
                path: clip(&path.display().to_string()),
            });
        }
    }
    Ok(())
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
