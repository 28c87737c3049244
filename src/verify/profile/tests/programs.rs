//! A program of the host that the container begins with.

use super::super::*;
use super::{host, spec, usual};
use crate::digest::FileDigest;
use serde_json::json;

const COPY: &str = "/var/lib/attestrun/programs/x";

/// A container that begins with an engine's init, under these mount options and relaxations.
fn judged(options: &[&str], allow: &[String]) -> Result<JudgedProfile, Vec<Objection>> {
    let mut value = usual();
    value["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/sbin/docker-init", "type": "bind", "source": COPY, "options": options,
    }));
    let spec = spec(&value);
    let mut host = host(&spec);
    let program = HostProgram {
        path: "/usr/bin/docker-init".into(),
        digest: FileDigest::of(b"init"),
    };
    host.sources.insert(COPY.into(), program.path.clone());
    host.programs.insert(COPY.into(), program);
    let profile = LaunchProfile::of(&spec, &host).unwrap();
    assert_eq!(profile.brought(), Some(FileDigest::of(b"init")));
    let allow = allow.iter().map(|n| Relaxation::parse(n).unwrap());
    let rules = LaunchRules {
        allow: allow.collect(),
        ..LaunchRules::default()
    };
    judge(&profile, &rules)
}

fn name_of(content: &[u8]) -> String {
    format!("program:{}", FileDigest::of(content))
}

#[test]
fn accept_an_init_that_is_named() {
    let judged = judged(&["bind", "ro"], &[name_of(b"init")]).unwrap();
    let used: Vec<_> = judged.used().iter().map(ToString::to_string).collect();
    assert_eq!(used, [name_of(b"init")]);
}

#[test]
fn refuse_an_init_that_is_not_named() {
    let everything_else = ["mount:*", "hook:*", "device:*", "cap:*"].map(str::to_owned);
    for allow in [&[][..], &[name_of(b"other")], &everything_else] {
        let objections = judged(&["bind", "ro"], allow).unwrap_err();
        let names: Vec<_> = objections.iter().map(|o| o.relaxation.clone()).collect();
        assert_eq!(names, [Relaxation::parse(&name_of(b"init")).ok()]);
        assert!(objections[0].text.contains("/usr/bin/docker-init"));
    }
}

#[test]
fn refuse_an_init_that_the_container_may_write() {
    for options in [&["bind"][..], &["bind", "rw"], &["ro", "rw"]] {
        let objections = judged(options, &[name_of(b"init")]).unwrap_err();
        assert_eq!(objections.len(), 1);
        assert_eq!(objections[0].relaxation, None, "{options:?}");
    }
}
