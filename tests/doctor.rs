//! `attestrun doctor`: what it says of a host that is ready, and of each thing that one can lack; the
//! administrator's host list, at `doctor`, at `setup` and in a challenger's host policy.

use crate::{
    Module, Test,
    admission::{demo_bundle, ours, restoring},
    cmd,
    host::{CONFIG, POLICY},
    host_list::{ADMINISTRATOR, administrator, host_list, host_policy, with_host_policy},
    publisher::SERIALS,
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "doctor",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Once("what_is_missing_is_named", what_is_missing_is_named),
        Test::Once(
            "programs_are_those_of_the_host_list",
            programs_are_those_of_the_host_list,
        ),
    ],
};

/// The whole diagnosis: its exit status says the same as its outcome.
pub fn diagnosis(world: &World) -> Result<Value> {
    let output = cmd!(world.program("attestrun")?, "doctor", "--json").output()?;
    let said: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output}"))?;
    let code = match said["outcome"].as_str() {
        Some("ok") => 0,
        Some("refused") => 1,
        Some("unknown") => 2,
        _ => anyhow::bail!("no outcome: {said}"),
    };
    ensure!(output.status.code() == Some(code), "{output}");
    Ok(said)
}

/// The findings of one check.
pub fn findings(said: &Value, check: &str) -> Result<Vec<Value>> {
    let all = said["findings"].as_array().context("findings")?;
    let found: Vec<Value> = all
        .iter()
        .filter(|f| f["check"] == check)
        .cloned()
        .collect();
    ensure!(!found.is_empty(), "no `{check}` in {said:#}");
    Ok(found)
}

fn what_is_missing_is_named(world: &World) -> Result<()> {
    let good = ["configuration", "policy", "host-key", "serials", "tier"];
    let said = diagnosis(world)?;
    let sha256 = findings(&said, "sha256")?[0]["detail"].clone();
    let version = cmd!(world.program("attestrun")?, "--version").ok()?.stdout;
    ensure!(
        version
            .lines()
            .any(|line| line.strip_prefix("sha256: ") == sha256.as_str()),
        "{sha256} and {version}"
    );
    for check in good {
        ensure!(
            findings(&said, check)?[0]["outcome"] == "ok",
            "{check}: {said:#}"
        );
    }
    for (check, file, damaged) in [
        ("configuration", CONFIG, "version = 1\n"),
        ("policy", POLICY, "version = 1\nmode = \"sometimes\"\n"),
        ("serials", SERIALS, "{"),
        ("host-key", "/var/lib/attestrun/host/aik", ""),
    ] {
        restoring(file, || {
            match damaged {
                "" => fs::remove_file(file)?,
                text => fs::write(file, text)?,
            }
            let said = diagnosis(world)?;
            let wrong = &findings(&said, check)?[0];
            ensure!(
                wrong["outcome"] == "refused" && wrong["remedy"].is_string(),
                "{check}: {wrong:#}"
            );
            ensure!(said["outcome"] == "refused", "{said:#}");
            for other in good.iter().filter(|other| **other != check) {
                ensure!(
                    findings(&said, other)?[0]["outcome"] == "ok",
                    "{other}: {said:#}"
                );
            }
            Ok(())
        })?;
    }
    let tier = &findings(&diagnosis(world)?, "tier")?[0];
    ensure!(tier["detail"].to_string().contains("fanotify: "), "{tier}");
    let plain = cmd!(world.program("attestrun")?, "doctor").output()?;
    plain.says("serials.json|record of the lists' serials")?;
    cmd!(world.program("attestrun")?, "doctor", "--everything").exits(64)?;
    Ok(())
}

/// Where nobody but root can write.
const PLACE: &str = "/etc/attestrun/trust/host-e2e";

/// As sha256sum says them.
fn sums(programs: &[PathBuf]) -> Result<String> {
    let mut lines = String::new();
    for path in programs {
        let digest = crate::image::digest(&fs::read(path)?);
        let digest = digest.trim_start_matches("sha256:");
        lines += &format!("{digest}  .{}\n", path.display());
    }
    Ok(lines)
}

/// The configuration with this host list.
fn named(world: &World, list: &Path, signature: &Path, class: &str) -> Result<()> {
    let ca = world.open_for_business()?.owner.at("admin-ca/ca.pem");
    let place = |from: &Path, name: &str| -> Result<PathBuf> {
        let to = Path::new(PLACE).join(name);
        fs::create_dir_all(PLACE)?;
        fs::copy(from, &to)?;
        Ok(to)
    };
    let (list, signature) = (place(list, "list.json")?, place(signature, "list.p7s")?);
    let ca = place(&ca, "ca.pem")?;
    let text = fs::read_to_string(CONFIG)?;
    let text = text.split("\n[host_list]").next().unwrap_or_default();
    let section = format!(
        "\n[host_list]\nlist = \"{}\"\nsignature = \"{}\"\nca = \"{}\"\n\
         tenant = \"{ADMINISTRATOR}\"\nname = \"hosts\"\nhosts = \"{class}\"\nmin_serial = 1\n\
         revocation = \"unchecked\"\n",
        list.display(),
        signature.display(),
        ca.display()
    );
    Ok(fs::write(CONFIG, format!("{text}{section}"))?)
}

/// What the check `program` says: path and outcome.
fn judged(said: &Value) -> Result<Vec<(String, String)>> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let found = findings(said, "program")?;
    let path = |f: &Value| {
        text(f, "detail")
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    Ok(found
        .iter()
        .map(|f| (path(f), text(f, "outcome")))
        .collect())
}

fn programs_are_those_of_the_host_list(world: &World) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    administrator(owner)?;
    let attestrun = world.program("attestrun")?;
    let setup = || cmd!(&attestrun, "setup");

    let without = diagnosis(world)?;
    ensure!(
        findings(&without, "host-list")?[0]["outcome"] == "unknown",
        "{without:#}"
    );
    let programs = judged(&without)?;
    ensure!(
        programs.iter().all(|(_, outcome)| outcome == "unknown"),
        "{without:#}"
    );
    let names = [
        "attestrun",
        "attestrun-host",
        "swtpm",
        "containerd-shim-runc-v2",
        "conmon",
    ];
    for name in names {
        let ends = |(path, _): &(String, String)| path.ends_with(&format!("/{name}"));
        ensure!(programs.iter().any(ends), "no {name}: {without:#}");
    }
    let paths: Vec<PathBuf> = programs.iter().map(|(path, _)| path.into()).collect();

    restoring(CONFIG, || {
        let (list, signature) = host_list(world, &sums(&paths)?, 1)?;
        named(world, &list, &signature, "e2e")?;
        let said = diagnosis(world)?;
        ensure!(
            findings(&said, "host-list")?[0]["outcome"] == "ok",
            "{said:#}"
        );
        ensure!(
            judged(&said)?.iter().all(|(_, outcome)| outcome == "ok"),
            "{said:#}"
        );
        let facts: Value = serde_json::from_str(&set_up(world)?.stdout)?;
        let digest = crate::image::digest(&fs::read(&list)?);
        ensure!(facts["host_list"] == digest.as_str(), "{facts:#}");
        challenged(world, &list, &signature)?;

        // a program that is not in it, by name
        let (short, by) = host_list(world, &sums(&paths[..paths.len() - 1])?, 2)?;
        named(world, &short, &by, "e2e")?;
        let said = diagnosis(world)?;
        let refused: Vec<_> = judged(&said)?
            .into_iter()
            .filter(|(_, o)| o == "refused")
            .collect();
        let last = paths.last().context("program")?.display().to_string();
        ensure!(
            refused == [(last.clone(), "refused".to_owned())],
            "{said:#}"
        );
        setup().fails()?.says("refused")?.says(&last)?;

        // for other hosts; altered; signed by an owner of containers
        named(world, &list, &signature, "other")?;
        let wrong = |words: &str| -> Result<()> {
            let said = diagnosis(world)?;
            let finding = &findings(&said, "host-list")?[0];
            let detail = finding["detail"].as_str().unwrap_or_default();
            ensure!(
                finding["outcome"] == "refused" && detail.contains(words),
                "expected `{words}`: {finding:#}"
            );
            setup().fails()?.says(words)?;
            Ok(())
        };
        wrong("not about")?;
        named(world, &list, &by, "e2e")?;
        wrong("other content")?;
        named(world, &list, &owner.sign_list(&list)?, "e2e")?;
        wrong("no chain leads")?;
        // a CA that others could replace
        named(world, &list, &signature, "e2e")?;
        let everybody = fs::Permissions::from_mode(0o666);
        fs::set_permissions(Path::new(PLACE).join("ca.pem"), everybody)?;
        wrong("ca.pem")?;
        Ok(fs::remove_dir_all(PLACE)?)
    })
}

/// Setup needs the TPM to itself.
fn set_up(world: &World) -> Result<Output> {
    for service in ["attestrun-agent", "attestrun-host"] {
        world.stop(service)?;
    }
    let done = cmd!(world.program("attestrun")?, "setup").ok();
    world.start_services()?;
    done
}

/// What a challenger makes of the list: a kernel that shows nothing is unknown, and waived by name only.
fn challenged(world: &World, list: &Path, signature: &Path) -> Result<()> {
    let owner = &world.open_for_business()?.owner;
    let make = || host_policy(world, owner, list, signature);
    make()
        .args(["--hosts", "other"])
        .exits(1)?
        .says("not about")?;
    let made = make().args(["--hosts", "e2e"]).ok()?;
    let facts = &world.open_for_business()?.facts;
    for program in ["runtime", "swtpm"] {
        made.says(facts[program].as_str().context("fact")?)?;
    }
    let rt = ours(world)?;
    let bundle = demo_bundle(world, &["/bin/sleep", "1000"])?;
    rt.up(&bundle)?;
    let mut outcomes = Vec::new();
    for waive in [
        &["tier-fanotify", "software-root"][..],
        &["no-ima", "tier-fanotify", "software-root"],
    ] {
        let expectations = with_host_policy(world, waive)?;
        outcomes.push(world.challenge(&bundle.id, &expectations)?);
    }
    rt.down(&bundle)?;
    let [unknown, waived] = &outcomes[..] else {
        unreachable!()
    };
    if !Path::new("/sys/kernel/security/ima").exists() {
        ensure!(unknown.code() == 2, "{unknown}");
        unknown.says("the host shows no IMA list")?;
        ensure!(waived.code() == 0, "{waived}");
    }
    Ok(())
}
