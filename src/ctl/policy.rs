//! `attestctl policy`: is a policy file what its author believes it to be, and what does it say of an
//! image, a build or a directory?
//!
//! A host's policy by default, a challenger's expectations with `--challenger`; both with the files
//! that they name. Prints the digest that challengers expect (`policies`).

mod explain;

use crate::{
    challenge::Expected,
    disk,
    report::{Refused, Report},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use content::{MAX_TRUST_FILE, read_trusted};
use serde_json::json;
use std::path::{Path, PathBuf};
use verify::{
    cms::certificates_from_pem,
    policy::{ContainersPolicy, PATH, Policy, Rule},
    signature::{PublicKey, TrustRoot},
};

#[derive(Subcommand)]
pub enum Verb {
    /// Parse a policy and the keys, certificates and revocation lists that it names
    Check(Check),
    /// Which entry admits or refuses an image, a build or a directory, and why
    Explain(explain::Explain),
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
        Verb::Explain(args) => explain::run(args),
    }
}

/// A host's policy; at its own place only where the host would read it, too.
fn read_policy(path: &Path) -> anyhow::Result<Policy> {
    let context = || format!("reading the policy {}", path.display());
    let bytes = match path == Path::new(PATH) {
        true => read_trusted(path, disk::SMALL).with_context(context)?,
        false => disk::read(path, "the policy", disk::SMALL)?,
    };
    Policy::parse(&bytes)
        .map_err(|e| Refused(e.to_string()))
        .with_context(context)
}

fn host(path: &Path) -> anyhow::Result<Report> {
    let policy = read_policy(path)?;
    let context = || format!("checking the policy {}", path.display());
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
            let found = read_trusted(path, MAX_TRUST_FILE).map_err(|e| format!("{e:#}"));
            let why = found.and_then(|bytes| check_file(kind, &bytes)).err()?;
            let path = path.display();
            Some(format!(
                "rule {}: reading the {kind} {path}: {why}",
                rule.terms.name
            ))
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
