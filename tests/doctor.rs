//! `attestrun doctor`: what it says of a host that is ready, and of each thing that one can lack.

use crate::{
    Module, Test,
    admission::restoring,
    cmd,
    host::{CONFIG, POLICY},
    publisher::SERIALS,
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;

pub const MODULE: Module = Module {
    name: "doctor",
    prepare: |world| world.open_for_business().map(drop),
    tests: &[Test::Once(
        "what_is_missing_is_named",
        what_is_missing_is_named,
    )],
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
    let good = ["configuration", "policy", "host-key", "serials"];
    let said = diagnosis(world)?;
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
    let plain = cmd!(world.program("attestrun")?, "doctor").output()?;
    plain.says("serials.json|record of the lists' serials")?;
    cmd!(world.program("attestrun")?, "doctor", "--everything").exits(64)?;
    Ok(())
}
