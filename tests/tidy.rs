//! Rules about the source itself, which a person would have to look for.

use crate::{Module, Test, world::World};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "tidy",
    prepare: |_| Ok(()),
    tests: &[
        Test::Once(
            "files_are_short_and_say_what_they_are",
            files_are_short_and_say_what_they_are,
        ),
        Test::Once("hazards_have_one_home", hazards_have_one_home),
        Test::Once("who_knows_the_network", who_knows_the_network),
        Test::Once("no_private_key_is_kept", no_private_key_is_kept),
        Test::Once("scripts_are_sound", scripts_are_sound),
        Test::Once("packaged_policy_parses", packaged_policy_parses),
    ],
};

const LONGEST: usize = 600;

fn root() -> &'static Path {
    Path::new(crate::namespace::SOURCES)
}

/// Every file of the project, by what git would keep: not `target`, not hidden but `.ci`.
fn project_files() -> Result<Vec<PathBuf>> {
    fn walk(dir: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if (name.starts_with('.') && name != ".ci") || name == "target" {
                continue;
            }
            if path.is_dir() {
                walk(&path, all)?
            } else {
                all.push(path)
            }
        }
        Ok(())
    }
    let mut all = Vec::new();
    walk(root(), &mut all)?;
    all.sort();
    ensure!(
        all.len() > 30,
        "{} is not the project's root",
        root().display()
    );
    Ok(all)
}

fn rust_files() -> Result<Vec<(String, String)>> {
    let files = project_files()?
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "rs"));
    files
        .map(|p| {
            Ok((
                p.strip_prefix(root())?.display().to_string(),
                fs::read_to_string(&p)?,
            ))
        })
        .collect()
}

fn none(what: &str, found: Vec<String>) -> Result<()> {
    ensure!(
        found.is_empty(),
        "{what}:\n      {}",
        found.join("\n      ")
    );
    Ok(())
}

fn files_are_short_and_say_what_they_are(_: &World) -> Result<()> {
    let mut found = Vec::new();
    for (name, text) in rust_files()? {
        let lines = text.lines().count();
        if lines > LONGEST {
            found.push(format!("{name}: {lines} lines, more than {LONGEST}"));
        }
        if !text.starts_with("//! ") {
            found.push(format!("{name}: its first line is no `//! ` sentence"));
        }
    }
    none("files", found)
}

/// Code without comments and strings of comments: what a lint would look at.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line.split("//").next().unwrap_or("").trim()))
        .filter(|(_, line)| !line.is_empty())
}

fn hazards_have_one_home(_: &World) -> Result<()> {
    // In two parts each, so that this file does not find itself. clippy.toml bans Command::new; what is
    // looked for here is who lifts the ban.
    let hazards = [
        (concat!("unsa", "fe "), "sys.rs"),
        (concat!("allow(clippy::disallowed", "_methods"), "spawn.rs"),
    ];
    let mut found = Vec::new();
    for (name, text) in rust_files()? {
        for (hazard, home) in hazards {
            let at_home = name.ends_with(&format!("/{home}"));
            for (line, code) in code(&text).filter(|(_, code)| !at_home && code.contains(hazard)) {
                found.push(format!("{name}:{line}: {code}"));
            }
        }
    }
    none("outside sys.rs and spawn.rs", found)
}

/// The runtime and what it is made of open no socket but local ones: neither their code names another, nor do
/// they depend on a library that is there for it. (A TPM's library has a way of its own to a software root.)
fn who_knows_the_network(_: &World) -> Result<()> {
    const AT_HOME: [&str; 4] = ["src/agent/", "src/ctl/", "src/tpm/tests/", "tests/"];
    let sockets = ["TcpStream", "TcpListener", "UdpSocket", "SocketAddr"];
    let libraries = ["oci-client", "hyper", "axum", "reqwest", "rustls"];
    let mut found = Vec::new();
    let strangers = |name: &str| !AT_HOME.iter().any(|home| name.starts_with(home));
    for (name, text) in rust_files()?
        .into_iter()
        .filter(|(name, _)| strangers(name))
    {
        for (line, code) in code(&text).filter(|(_, c)| sockets.iter().any(|s| c.contains(s))) {
            found.push(format!("{name}:{line}: {code}"));
        }
    }
    for part in ["verify", "content", "runtime", "tpm"] {
        let manifest = fs::read_to_string(root().join(format!("src/{part}/Cargo.toml")))?;
        let depends = |library: &&str| {
            let begins = [
                format!("{library}."),
                format!("{library} "),
                format!("{library}-"),
            ];
            manifest
                .lines()
                .any(|line| begins.iter().any(|b| line.starts_with(b)))
        };
        // certificate chains, without a connection
        let exempt = |library: &&str| part == "verify" && *library == "rustls";
        let all = libraries.iter().filter(|library| !exempt(library));
        found.extend(
            all.filter(|l| depends(l))
                .map(|l| format!("src/{part}: {l}")),
        );
    }
    none("ways to a network", found)
}

fn no_private_key_is_kept(_: &World) -> Result<()> {
    let mark = concat!("PRIVATE ", "KEY-----");
    let mut found = Vec::new();
    for path in project_files()? {
        let bytes = fs::read(&path)?;
        let text = String::from_utf8_lossy(&bytes);
        // A key is more than its header, which code and tests may name.
        if text.contains(mark)
            && text
                .lines()
                .any(|l| l.len() > 60 && l.bytes().all(is_base64))
        {
            found.push(path.display().to_string());
        }
    }
    none("private keys", found)
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)
}

fn scripts_are_sound(_: &World) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = Vec::new();
    for path in project_files()? {
        let bytes = fs::read(&path)?;
        if !bytes.starts_with(b"#!") {
            continue;
        }
        if fs::metadata(&path)?.permissions().mode() & 0o111 == 0 {
            found.push(format!("{}: not executable", path.display()));
        }
        let checked = crate::cmd!("bash", "-n", &path).output()?;
        if bytes.starts_with(b"#!/bin/bash") && !checked.status.success() {
            found.push(format!("{checked}"));
        }
    }
    none("scripts", found)
}

/// As shipped it admits nothing; with the `#`s of its example removed it must still parse.
fn packaged_policy_parses(world: &World) -> Result<()> {
    let packaged = root().join("packaging/policy.toml");
    world.ctl()?.args(["policy", "check"]).arg(&packaged).ok()?;
    let text = fs::read_to_string(&packaged)?;
    let (head, example) = text.split_once("# [[rule]]").context("the example rule")?;
    let example: Vec<_> = example
        .lines()
        .map(|l| l.strip_prefix("# ").unwrap_or(l))
        .collect();
    let place = world.work.join("uncommented.toml");
    fs::write(&place, format!("{head}[[rule]]{}\n", example.join("\n")))?;
    // Its keys are nobody's, so the check cannot end well: but it must get as far as reading them.
    let checked = world.ctl()?.args(["policy", "check"]).arg(&place).fails()?;
    checked.says("/etc/attestrun/trust/")?.says_not("TOML")?;
    Ok(())
}
