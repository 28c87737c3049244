//! `attestctl policy`: is a policy file what its author believes it to be, and what does it say of an
//! image, a build or a directory?
//!
//! A host's policy by default, a challenger's expectations with `--challenger`; both with the files
//! that they name. Prints the digest that challengers expect (`policies`).

mod explain;

use crate::{
    challenge, disk,
    report::{Refused, Report},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use content::{MAX_TRUST_FILE, read_trusted};
use serde_json::json;
use std::path::{Path, PathBuf};
use verify::{
    cms::{certificates_from_pem, revocation_list},
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
    let wrong = rule.files().flat_map(|(kind, path)| check_path(kind, path));
    wrong
        .map(|why| format!("rule {}: {why}", rule.terms.name))
        .collect()
}

/// What is wrong with a file, and with those that it names itself.
fn check_path(kind: &str, path: &Path) -> Vec<String> {
    let told = |why: String| vec![format!("reading the {kind} {}: {why}", path.display())];
    let bytes = match read_trusted(path, MAX_TRUST_FILE) {
        Ok(bytes) => bytes,
        Err(error) => return told(format!("{error:#}")),
    };
    match check_file(kind, &bytes) {
        Err(why) => told(why),
        Ok(()) if kind == "policy.json" => match ContainersPolicy::parse(&bytes) {
            Ok(policy) => {
                let files = policy.files().into_iter();
                files
                    .flat_map(|(kind, path)| check_path(kind, path))
                    .collect()
            }
            Err(error) => told(error.to_string()),
        },
        Ok(()) => Vec::new(),
    }
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
        ("crl", list) => said(revocation_list(list)),
        ("fulcio-ca", pem) => said(TrustRoot::from_pems(&[&String::from_utf8_lossy(pem)], &[])),
        ("rekor-key", pem) => said(TrustRoot::from_pems(&[], &[&String::from_utf8_lossy(pem)])),
        _ => Ok(()),
    }
}

fn challenger(path: &Path) -> anyhow::Result<Report> {
    let standard = challenge::standard(path, None)?;
    let expect = standard.expect();
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
    fn refuse_files_that_a_containers_policy_cannot_use() {
        let dir = Scratch::new();
        let at = |name: &str| dir.path().join(name);
        policy(&dir); // and with it a key and a certificate
        std::fs::write(at("text"), "text").unwrap();
        let file = at("policy.json");
        let written = |signers: &str| {
            let by = format!(r#"{{"type": "sigstoreSigned", {signers}}}"#);
            std::fs::write(&file, format!(r#"{{"default": [{by}]}}"#)).unwrap();
            check_path("policy.json", &file)
        };
        let (key, ca, text) = (at("demo.pub"), at("ca/ca.pem"), at("text"));
        let fulcio = |ca: &Path, log: &Path| {
            format!(
                r#""fulcio": {{"caPath": {ca:?}, "oidcIssuer": "i", "subjectEmail": "e"}}, "rekorPublicKeyPath": {log:?}"#
            )
        };
        let by_key = |key: &Path| format!(r#""keyPath": {key:?}"#);
        assert_eq!(written(&by_key(&key)), Vec::<String>::new());
        assert_eq!(written(&fulcio(&ca, &key)), Vec::<String>::new());
        for (signers, kind) in [
            (by_key(&text), "key"),
            (by_key(&at("absent")), "key"),
            (fulcio(&text, &key), "fulcio-ca"),
            (fulcio(&ca, &text), "rekor-key"),
        ] {
            let wrong = written(&signers);
            assert_eq!(wrong.len(), 1, "{signers}: {wrong:?}");
            let begins = format!("reading the {kind} {}", dir.path().display());
            assert!(wrong[0].starts_with(&begins), "{wrong:?}");
        }
        assert!(written(r#""keyPth": "/x""#)[0].contains("keyPth"));
    }

    #[test]
    fn refuse_what_a_rule_cannot_use() {
        let dir = Scratch::new();
        let file = dir.path().join("policy.toml");
        let good = policy(&dir);
        let text = dir.path().join("text");
        std::fs::write(&text, "text").unwrap();
        for (bad, reason) in [
            (good.replace("demo.pub", "absent.pub"), "absent.pub"),
            (good.replace("demo.pub", "text"), "the key"),
            (good.replace("ca/ca.pem", "text"), "the user-ca"),
            (
                good.replace("\"unchecked\"", &format!("\"crl\"\ncrls = [{text:?}]")),
                "the crl",
            ),
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
