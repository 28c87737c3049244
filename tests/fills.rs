//! The signature store filled: from a registry behind TLS and a password.

use crate::{
    Module, Test,
    registry::{self, GUARDED, PASSWORD, USER},
    signatures::{accepted, fresh, owner, publish, signed_twice, verify},
    spawn::Cmd,
    world::World,
};
use anyhow::{Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "fills",
    prepare: |world| {
        world.open_for_business()?;
        world.images()?;
        registry::start(world)
    },
    tests: &[Test::Once(
        "a_registry_behind_tls_and_a_password",
        a_registry_behind_tls_and_a_password,
    )],
};

/// What the host trusts (update-ca-certificates(8)).
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";

fn a_registry_behind_tls_and_a_password(world: &World) -> Result<()> {
    let dir = fresh(world, "guarded")?;
    let demo = &world.images()?.demo;
    signed_twice(world, &dir.join("owner"), demo)?;
    // A simple signature under its tag, a bundle under the tag of referrers: this registry has no
    // interface for them.
    publish(&dir.join("owner"), &demo.layout, "guarded/demo")?;
    let authority = registry::start_guarded(world)?;
    let trusted = fs::read_to_string(TRUSTED)?;
    let done = fetched_past_the_guard(world, &dir, &authority, &trusted);
    fs::write(TRUSTED, &trusted)?;
    world.stop("guarded registry")?;
    done
}

fn fetched_past_the_guard(world: &World, dir: &Path, authority: &str, trusted: &str) -> Result<()> {
    let demo = &world.images()?.demo;
    let name = format!("{GUARDED}/guarded/demo:v1");
    let store = dir.join("store");
    let fetch = |credentials: Option<&Path>| -> Result<Cmd> {
        let fetch = world.ctl()?.args(["--json", "fetch", "--store"]);
        let fetch = fetch.arg(&store);
        Ok(match credentials {
            Some(file) => fetch.arg("--authfile").arg(file),
            None => fetch,
        }
        .arg(&name))
    };
    let good = credentials(dir, GUARDED, PASSWORD)?;
    fetch(Some(&good))?
        .exits(2)?
        .says("update-ca-certificates")?
        .says("UnknownIssuer")?;
    nothing_came(dir)?;

    fs::write(TRUSTED, format!("{trusted}{authority}"))?;
    let wrong = credentials(dir, GUARDED, "wrong")?;
    let elsewhere = credentials(dir, "registry.example", PASSWORD)?;
    for refused in [None, Some(wrong.as_path()), Some(&elsewhere)] {
        let output = fetch(refused)?.exits(2)?;
        output.says(&name)?.says("--authfile")?;
        output.says_not(PASSWORD)?;
        nothing_came(dir)?;
    }

    // As podman (registry or repository) and docker (an address) write them.
    let forms = [
        GUARDED.to_owned(),
        format!("{GUARDED}/guarded/demo"),
        format!("https://{GUARDED}/v1/"),
    ];
    for form in forms {
        let file = credentials(dir, &form, PASSWORD)?;
        let fetched: Value = serde_json::from_str(&fetch(Some(&file))?.ok()?.stdout)?;
        ensure!(fetched["signatures"] == json!(2), "{form}: {fetched}");
        let key = owner(world)?.at("image.pub").display().to_string();
        let judged = verify(world, &store, &demo.manifest, &["--key", &key])?;
        accepted(&judged)?;
        ensure!(judged.stdout.matches("signed by").count() == 2, "{judged}");
        fs::remove_dir_all(&store)?;
    }
    Ok(())
}

/// containers-auth.json(5), and docker's config.json.
fn credentials(dir: &Path, name: &str, password: &str) -> Result<PathBuf> {
    let auth = BASE64.encode(format!("{USER}:{password}"));
    let file = dir.join(format!("{}-{password}.json", name.replace(['/', ':'], "-")));
    let text = json!({ "auths": { name: { "auth": auth } } });
    fs::write(&file, text.to_string())?;
    Ok(file)
}

/// The store is as empty as before, and nothing lies beside it.
fn nothing_came(dir: &Path) -> Result<()> {
    let names = |dir: &Path| -> Result<Vec<String>> {
        let entries = fs::read_dir(dir)?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    let blobs = names(&dir.join("store/blobs/sha256"))?;
    ensure!(blobs.is_empty(), "half a fetch: {blobs:?}");
    let beside = names(dir)?;
    let stray = beside.iter().find(|name| name.contains(".fetch-"));
    ensure!(stray.is_none(), "{stray:?} beside the store");
    Ok(())
}
