//! `attestctl policy`: is a policy file what its author believes it to be, and what does it say of an
//! image?
//!
//! A host's policy by default, a challenger's expectations with `--challenger`; both with the files
//! that they name. Prints the digest that challengers expect (`policies`).

use crate::{
    challenge::Expected,
    disk,
    report::{Ending, Refused, Report},
    source::{ImageArgs, Source},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use content::signatures::Store;
use serde_json::json;
use std::path::{Path, PathBuf};
use verify::{
    cms::certificates_from_pem,
    id::UnixTime,
    image::Image,
    policy::{ContainersPolicy, Material, Policy, Rule, Subject, explain},
    signature::{PublicKey, TrustRoot},
};

#[derive(Subcommand)]
pub enum Verb {
    /// Parse a policy and the keys, certificates and revocation lists that it names
    Check(Check),
    /// Which rule admits or refuses an image, and why
    Explain(Explain),
}

#[derive(Args)]
pub struct Explain {
    #[command(flatten)]
    image: ImageArgs,
    /// The engine's name for the image: rules are chosen by it
    #[arg(long)]
    name: Option<String>,
    #[arg(long, default_value = ::verify::policy::PATH)]
    policy: PathBuf,
    /// Signature store
    #[arg(long, default_value = "/var/lib/attestrun/signatures")]
    store: PathBuf,
}

#[derive(Args)]
pub struct Check {
    /// /etc/attestrun/policy.toml, or a challenger's expectations
    file: PathBuf,
    /// The file is a challenger's (for `attestctl challenge --policy`)
    #[arg(long)]
    challenger: bool,
}

pub fn run(verb: &Verb) -> anyhow::Result<Report> {
    match verb {
        Verb::Check(args) if args.challenger => challenger(&args.file),
        Verb::Check(args) => host(&args.file),
        Verb::Explain(args) => explained(args),
    }
}

fn host(path: &Path) -> anyhow::Result<Report> {
    let bytes = disk::read(path, "the policy", disk::SMALL)?;
    let context = || format!("checking the policy {}", path.display());
    let policy = Policy::parse(&bytes)
        .map_err(|e| Refused(e.to_string()))
        .with_context(context)?;
    let mut problems = Vec::new();
    for rule in policy.rules() {
        problems.extend(check_files(rule));
    }
    // All at once: whoever repairs a policy wants the whole list.
    if !problems.is_empty() {
        return Err(Refused(problems.join("; "))).with_context(context);
    }
    let mode = json!(policy.mode());
    let rules: Vec<_> = policy
        .rules()
        .iter()
        .map(|rule| rule.terms.name.as_str())
        .chain(policy.bundles().iter().map(|e| e.terms.name.as_str()))
        .chain(policy.sandboxes().iter().map(|e| e.terms.name.as_str()))
        .chain(policy.builds().iter().map(|e| e.terms.name.as_str()))
        .collect();
    Ok(Report::done(
        format!(
            "policy {}\n  digest {}\n  mode {}\n  rules: {}",
            path.display(),
            policy.digest(),
            mode.as_str().unwrap_or_default(),
            rules.join(", ")
        ),
        json!({ "policy": path, "digest": policy.digest(), "mode": mode, "rules": rules }),
    ))
}

/// What is wrong with the files that `rule` names.
fn check_files(rule: &Rule) -> Vec<String> {
    rule.files()
        .filter_map(|(kind, path)| {
            let found = disk::read(path, kind, disk::LARGE)
                .map_err(|e| format!("{e:#}"))
                .and_then(|bytes| {
                    check_file(kind, &bytes)
                        .map_err(|e| format!("reading the {kind} {}: {e}", path.display()))
                });
            let why = found.err()?;
            Some(format!("rule {}: {why}", rule.terms.name))
        })
        .collect()
}

fn check_file(kind: &str, bytes: &[u8]) -> Result<(), String> {
    fn said<T, E: ToString>(result: Result<T, E>) -> Result<(), String> {
        result.map(drop).map_err(|e| e.to_string())
    }
    match (kind, bytes) {
        (_, []) => Err("it is empty".to_owned()),
        ("key", pem) => said(PublicKey::from_pem(&String::from_utf8_lossy(pem))),
        ("user-ca", pem) => said(certificates_from_pem(pem)),
        ("trusted-root", json) => said(TrustRoot::from_json(json)),
        ("policy.json", json) => said(ContainersPolicy::parse(json)),
        _ => Ok(()),
    }
}

/// Which entry of a policy is for an image, and whether it admits it: the same decision as on the host,
/// but for the launch, which is not known here.
fn explained(args: &Explain) -> anyhow::Result<Report> {
    let bytes = disk::read(&args.policy, "the policy", disk::SMALL)?;
    let policy = Policy::parse(&bytes)
        .map_err(|e| Refused(e.to_string()))
        .with_context(|| format!("reading the policy {}", args.policy.display()))?;
    let source = Source::open(&args.image)?;
    let mut claimed = source.claimed().clone();
    if let Some(name) = &args.name {
        claimed.name.clone_from(name);
    }
    let context = || format!("reading the signature store {}", args.store.display());
    let store = Store::open(&args.store).with_context(context)?;
    let digest = source.image.manifest_digest();
    for (_, index) in store.indexes_containing(&digest).with_context(context)? {
        if !claimed.index_bytes.contains(&index) {
            claimed.index_bytes.push(index);
        }
    }
    let image = Image::of(&claimed).with_context(|| format!("image {}", claimed.name))?;
    let material = Material::gather(
        &policy,
        &image,
        |path| std::fs::read(path),
        |digest| store.signatures_and_attestations(digest),
        |digest| store.lists(digest),
    )
    .with_context(context)?;
    let now = UnixTime::from_secs(chrono::Utc::now().timestamp());
    let found = explain(&policy, Subject::Image(&material), now);
    let refused = !found.against.is_empty();
    let mut text = format!(
        "{}\n  policy {} ({})",
        found.subject,
        args.policy.display(),
        policy.mode()
    );
    match &found.rule {
        Some(rule) => text.push_str(&format!("\n  rule {rule}")),
        None => text.push_str("\n  no rule"),
    }
    if !refused {
        text.push_str(&format!(
            "\n  admitted, its launch apart: {}; programs {}",
            found.vouched, found.programs
        ));
    }
    for why in &found.against {
        text.push_str(&format!("\n  refused: {why}"));
    }
    for hint in &found.hints {
        text.push_str(&format!("\n  remedy: {hint}"));
    }
    for source in &found.sources {
        text.push_str(&format!(
            "\n  by {} {} ({})",
            source.kind, source.path, source.sha256
        ));
    }
    let outcome = if refused { "refused" } else { "accepted" };
    Ok(Report {
        ending: if refused {
            Ending::Refused
        } else {
            Ending::Done
        },
        text,
        json: json!({
            "outcome": outcome,
            "subject": found.subject,
            "policy": args.policy,
            "digest": policy.digest(),
            "mode": policy.mode(),
            "rule": found.rule,
            "vouched": found.vouched,
            "programs": found.programs,
            "sources": found.sources,
            "against": found.against,
            "hints": found.hints,
        }),
    })
}

fn challenger(path: &Path) -> anyhow::Result<Report> {
    let expected = Expected::read(path, None)?;
    let expect = &expected.expect;
    let waived: Vec<_> = expect.waive.iter().map(|waiver| waiver.name()).collect();
    let hosts: Vec<_> = expect.hosts.iter().map(|host| host.name.as_str()).collect();
    Ok(Report::done(
        format!(
            "expectations {}\n  hosts: {}\n  images: {}\n  list {}, serial {} or higher, of {}\n  waived: {}",
            path.display(),
            hosts.join(", "),
            expect.images.len(),
            expect.list.name,
            expect.list.min_serial,
            expect.tenant,
            if waived.is_empty() {
                "nothing".to_owned()
            } else {
                waived.join(", ")
            }
        ),
        json!({
            "expectations": path,
            "hosts": hosts,
            "images": expect.images,
            "tenant": expect.tenant,
            "waived": waived,
        }),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{key::SigningKey, scratch::Scratch};

    fn policy(dir: &Scratch) -> String {
        let ca = dir.path().join("ca");
        let init = crate::ca::Verb::Init(crate::ca::Init::of(&ca, "CA"));
        crate::ca::run(&init).unwrap();
        let public = SigningKey::generate().unwrap().public_pem().unwrap();
        std::fs::write(dir.path().join("demo.pub"), public).unwrap();
        format!(
            "version = 1\nmode = \"enforce\"\n[[rule]]\nname = \"demo\"\nscope = \"localhost/demo\"\n\
             keys = [\"{0}/demo.pub\"]\nuser_ca = [\"{0}/ca/ca.pem\"]\n\
             tenant = \"spiffe://demo.example/tenant/demo\"\nlist = \"demo\"\nmin_serial = 1\n\
             revocation = \"unchecked\"\nenter = \"listed\"\nmin_tier = \"none\"\n[rule.launch]\nallow = []\n",
            dir.path().display()
        )
    }

    #[test]
    fn accept_a_policy_with_its_files() {
        let dir = Scratch::new();
        let file = dir.path().join("policy.toml");
        std::fs::write(&file, policy(&dir)).unwrap();
        let report = host(&file).unwrap();
        assert_eq!(report.json["mode"], "enforce");
        assert!(
            report.json["digest"]
                .as_str()
                .unwrap()
                .starts_with("sha256:")
        );
    }

    #[test]
    fn refuse_what_a_rule_cannot_use() {
        let dir = Scratch::new();
        let file = dir.path().join("policy.toml");
        let good = policy(&dir);
        std::fs::write(dir.path().join("text"), "text").unwrap();
        for (bad, reason) in [
            (good.replace("demo.pub", "absent.pub"), "absent.pub"),
            (good.replace("demo.pub", "text"), "the key"),
            (good.replace("ca/ca.pem", "text"), "the user-ca"),
            (good.replace("version = 1", "version = 9"), "9"),
            (format!("{good}\nother = 1\n"), "other"),
            ("= x".to_owned(), "policy.toml"),
        ] {
            std::fs::write(&file, bad).unwrap();
            let error = host(&file).unwrap_err();
            assert!(error.is::<Refused>(), "{error:#}");
            assert!(format!("{error:#}").contains(reason), "{reason}: {error:#}");
        }
    }
}
