//! A host that goes down and comes up again, with the same TPM: its enrolled key stays what challengers
//! have pinned, and what was bound before is bound no more. Two boots; only `tests/qemu-host` has them.

use crate::{
    Module, Test,
    attestation::{Kept, accepted, answer, ours, refused, up},
    cmd,
    machine::machine,
    publisher::fact,
    world::{Skip, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{fs, path::Path};

pub const MODULE: Module = Module {
    name: "reboot",
    prepare: |world| {
        if !has_two_boots() {
            return Ok(());
        }
        if went_down() {
            // the one thing of a host's disk that outlives the first machine's memory
            fs::create_dir_all("/var/lib/attestrun")?;
            cmd!("cp", "-a", format!("{SAVED}/host"), "/var/lib/attestrun").ok()?;
        }
        world.open_for_business()?;
        world.rootfs(0).map(|_| ())
    },
    tests: &[
        Test::Once("one_goes_down_with_its_containers", goes_down),
        Test::Once("what_was_bound_before_is_refused", comes_up),
    ],
};

/// Where tests/qemu-host keeps what one machine leaves for the next.
const OUT: &str = "/out";
const SAVED: &str = "/out/before-the-reboot";
const HOST_STATE: &str = "/var/lib/attestrun/host";

fn has_two_boots() -> bool {
    machine().tpm && Path::new(OUT).is_dir()
}

fn went_down() -> bool {
    Path::new(SAVED).exists()
}

fn only(this_boot: bool) -> Result<()> {
    if has_two_boots() && this_boot {
        return Ok(());
    }
    let why = "this machine is not the right one of tests/qemu-host's two boots";
    Err(Skip(why.to_owned()).into())
}

/// The first boot: enrolled, a container bound and accepted; its state is what a disk would hold when
/// the power goes, with the container still bound.
fn goes_down(world: &World) -> Result<()> {
    only(!went_down())?;
    let fresh = &world.open_for_business()?.facts["fresh"];
    ensure!(
        *fresh == true,
        "this boot enrolled the TPM: fresh = {fresh}"
    );
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let kept = Kept::take(world, &bundle.id)?;
    fs::create_dir_all(SAVED)?;
    cmd!("cp", "-a", HOST_STATE, SAVED).ok()?;
    rt.down(&bundle)?;
    let facts = world.open_for_business()?.facts.to_string();
    for (name, text) in [
        ("facts", facts),
        ("id", kept.id),
        ("evidence", kept.evidence.to_string()),
    ] {
        fs::write(Path::new(SAVED).join(name), text)?;
    }
    Ok(())
}

/// The next boot of the same machine.
fn comes_up(world: &World) -> Result<()> {
    only(went_down())?;
    let saved = |name: &str| {
        fs::read_to_string(Path::new(SAVED).join(name)).with_context(|| name.to_owned())
    };
    let (before, now) = (
        serde_json::from_str::<Value>(&saved("facts")?)?,
        &world.open_for_business()?.facts,
    );
    ensure!(now["fresh"] == false, "enrolled again: {now}");
    let name = |facts| fact(facts, "host_ak_name");
    ensure!(name(&before)? == name(now)?, "{before} is not {now}");

    let id = saved("id")?;
    let expectations = world.expectations(&crate::attestation::WAIVERS)?;
    let output = world.challenge(&id, &expectations)?;
    ensure!(output.code() == 2, "the old container: {output}");
    output.says("no attested container")?;

    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let fresh = Kept::take(world, &bundle.id);
    rt.down(&bundle)?;
    let old = serde_json::from_str(&saved("evidence")?)?;
    old_items_are_refused(world, &fresh?, &old, &id)?;
    an_old_log_is_refused(world)?;
    let bundle = up(world, &rt, 0)?;
    let done = accepted(world, &bundle.id).context("after all of this");
    rt.down(&bundle)?;
    done.map(|_| ())
}

/// What one boot vouched for, beside what this boot's TPM says: honest quotes, each of its own time. The
/// host's covers nonce, record and vTPM quote, so nothing of another boot goes with it (B-HASH, Q-QD).
fn old_items_are_refused(world: &World, fresh: &Kept, old: &Value, id: &str) -> Result<()> {
    let again = fresh.judge(world, &fresh.evidence)?;
    ensure!(again.code() == 0, "this boot's own evidence: {again}");
    type Says = fn(&str) -> bool;
    let takes: [(_, Says, _); 3] = [
        ("all of it", |_| true, "Q-QD"),
        (
            "all but the host's quote",
            |i| !i.starts_with("host/"),
            "B-HASH",
        ),
        ("its record and log", |i| i.starts_with("binding"), "B-HASH"),
    ];
    for (what, takes, named) in takes {
        let mut mixed = fresh.evidence.clone();
        for item in fresh.items().iter().filter(|i| takes(i)) {
            mixed[item] = old[item].clone();
        }
        for asked in [fresh.id.as_str(), id] {
            let mut judge = fresh.clone();
            judge.id = asked.to_owned();
            let output = judge.judge(world, &mixed)?;
            let found = refused(&answer(&output)?);
            ensure!(
                output.code() == 1 && found.contains(named),
                "{what} of the last boot, about {asked}: expected {named} among {found:?}: {output}"
            );
        }
    }
    Ok(())
}

/// The last boot's log in place of this one's does not explain this boot's PCR.
fn an_old_log_is_refused(world: &World) -> Result<()> {
    let log = |dir: &str| -> Result<Vec<_>> {
        let mut logs = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "log") {
                logs.push(path);
            }
        }
        Ok(logs)
    };
    let old = log(&format!("{SAVED}/host"))?;
    let [old] = old.as_slice() else {
        anyhow::bail!("not one log of the last boot: {old:?}");
    };
    let all = log(HOST_STATE)?;
    let new: Vec<_> = all
        .iter()
        .filter(|p| p.file_name() != old.file_name())
        .collect();
    let [new] = new.as_slice() else {
        anyhow::bail!("not one log of this boot: {all:?}");
    };
    for service in ["attestrun-agent", "attestrun-host"] {
        world.stop(service)?;
    }
    let good = fs::read(new)?;
    fs::copy(old, new)?;
    let refused = world.start_services();
    fs::write(new, good)?;
    let Err(refused) = refused else {
        anyhow::bail!("the host service goes on with the last boot's log");
    };
    let said = format!("{refused:#}");
    ensure!(
        said.contains("does not explain the host's binding PCR"),
        "{said}"
    );
    world.start_services()
}
