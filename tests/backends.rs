//! Who makes the container where the configuration leaves the choice open (`backend = "auto"`): the
//! embedded libcontainer where it gives what runc gives, else runc, else a refusal that names what is
//! missing. Evidence names who it was.

use crate::{
    Module, Test,
    attestation::{accepted, ours},
    host::CONFIG,
    runtime::{Backend, Bundle},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;

pub const MODULE: Module = Module {
    name: "backends",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(|_| ())
    },
    tests: &[Test::Once("auto_takes_who_can", auto_takes_who_can)],
};

fn auto_takes_who_can(world: &World) -> Result<()> {
    world.configure_by_name("auto")?;
    let done = takes_who_can(world);
    world.configure(Backend::Libcontainer)?;
    done
}

fn takes_who_can(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let mut bundle = crate::drop_in::bundle(world, &["/bin/sleep", "1000"])?;
    ensure!(backend(world, &bundle)? == "libcontainer", "usually");

    let mounts = bundle.config["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    bundle.write()?;
    ensure!(backend(world, &bundle)? == "runc", "where it takes runc");

    let text = fs::read_to_string(CONFIG)?;
    let without = text.replace("\"/usr/sbin/runc\"", "\"/usr/sbin/no-runc\"");
    ensure!(without != text, "the configuration names runc");
    fs::write(CONFIG, without)?;
    let output = rt.create(&bundle).exits(1)?;
    output.says("needs the mount option tmpcopyup")?;
    output.says("/usr/sbin/no-runc is not installed")?;
    Ok(())
}

/// Who made the container, as accepted evidence says.
fn backend(world: &World, bundle: &Bundle) -> Result<String> {
    let rt = ours(world)?;
    rt.up(bundle)?;
    let answer = accepted(world, &bundle.id);
    rt.down(bundle)?;
    let answer = answer?;
    let named = answer["container"]["measured"]["backend"].as_str();
    let named = named.with_context(|| format!("no backend in {answer}"))?;
    Ok(named.split(' ').next().unwrap_or(named).to_owned())
}
