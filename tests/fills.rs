//! The signature store filled: from a registry behind TLS and a password; by somebody who is killed.

use crate::{
    Module, Test,
    deaths::kill_after,
    image::digest,
    registry::{self, ADDRESS, GUARDED, PASSWORD, USER},
    signatures::{accepted, fresh, owner, publish, signed_twice, verify},
    spawn::Cmd,
    world::World,
};
use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

pub const MODULE: Module = Module {
    name: "fills",
    prepare: |world| {
        world.open_for_business()?;
        world.images()?;
        registry::start(world)
    },
    tests: &[
        Test::Once(
            "a_registry_behind_tls_and_a_password",
            a_registry_behind_tls_and_a_password,
        ),
        Test::Once("import_killed_at_any_moment", |world| {
            killed_at_any_moment(world, "import")
        }),
        Test::Once("fetch_killed_at_any_moment", |world| {
            killed_at_any_moment(world, "fetch")
        }),
    ],
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
    let done = done.and_then(|()| only_files_say_whom_to_trust(world, &dir, &authority));
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

/// No variable names a CA; containers-certs.d(5) does, for this registry alone.
fn only_files_say_whom_to_trust(world: &World, dir: &Path, authority: &str) -> Result<()> {
    let name = format!("{GUARDED}/guarded/demo:v1");
    let good = credentials(dir, GUARDED, PASSWORD)?;
    let (store, theirs) = (dir.join("store"), dir.join("certs"));
    fs::create_dir_all(&theirs)?;
    fs::write(theirs.join("ca.pem"), authority)?;
    let fetch = |variables: &[String]| -> Result<Cmd> {
        let attestctl = world.program("attestctl")?;
        let fetch = Cmd::new("env").args(variables).arg(attestctl);
        let fetch = fetch.args(["fetch", "--store"]).arg(&store);
        Ok(fetch.arg("--authfile").arg(&good).arg(&name))
    };
    let variables = [
        format!("SSL_CERT_FILE={}", theirs.join("ca.pem").display()),
        format!("SSL_CERT_DIR={}", theirs.display()),
    ];
    for variables in [&variables[..1], &variables[1..], &variables] {
        fetch(variables)?.exits(2)?.says("certs.d/HOST")?;
    }

    let own = PathBuf::from(format!("/etc/containers/certs.d/{GUARDED}"));
    let other = PathBuf::from("/etc/containers/certs.d/registry.example");
    for dir in [&own, &other] {
        fs::create_dir_all(dir)?;
    }
    fs::write(other.join("ca.crt"), authority)?;
    fetch(&[])?.exits(2)?.says("UnknownIssuer")?;
    fs::rename(other.join("ca.crt"), own.join("ca.crt"))?;
    let nothing = "SSL_CERT_FILE=/nowhere".to_owned();
    for variables in [&[][..], &[nothing]] {
        fetch(variables)?.ok()?.says("2 signatures")?;
        fs::remove_dir_all(&store)?;
    }
    fs::set_permissions(own.join("ca.crt"), fs::Permissions::from_mode(0o666))?;
    fetch(&[])?.exits(2)?.says("chmod go-w")?;
    fs::set_permissions(own.join("ca.crt"), fs::Permissions::from_mode(0o644))?;
    fs::write(own.join("client.cert"), "")?;
    fetch(&[])?
        .exits(2)?
        .says("client.cert")?
        .says("attestctl import")?;
    fs::remove_dir_all("/etc/containers/certs.d")?;
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
    let blobs = names(&dir.join("store/blobs/sha256"))?;
    ensure!(blobs.is_empty(), "half a fetch: {blobs:?}");
    ensure!(strays(dir)?.is_empty(), "{:?}", strays(dir)?);
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// What nobody would ever read again: in the store, and beside it.
fn strays(dir: &Path) -> Result<Vec<String>> {
    let mut found = names(dir)?;
    found.retain(|name| name.contains(".fetch-"));
    for part in ["store", "store/blobs/sha256"] {
        let part = dir.join(part);
        if part.exists() {
            let hidden = names(&part)?.into_iter();
            found.extend(hidden.filter(|name| name.starts_with('.')));
        }
    }
    Ok(found)
}

/// Kills that are spread over the time that the verb takes.
const KILLS: u32 = 30;

/// After each kill the store is read by what judges, nothing in it is half-written, and the same verb,
/// called again, brings everything and cleans up.
fn killed_at_any_moment(world: &World, verb: &str) -> Result<()> {
    let dir = fresh(world, &format!("killed-{verb}"))?;
    let demo = &world.images()?.demo;
    signed_twice(world, &dir.join("owner"), demo)?;
    let repository = format!("killed/{verb}");
    publish(&dir.join("owner"), &demo.layout, &repository)?;
    let source = match verb {
        "fetch" => format!("{ADDRESS}/{repository}:v1").into(),
        _ => dir.join("owner").into_os_string(),
    };
    let store = dir.join("store");
    let fill = world.ctl()?.args(["--json", verb, "--store"]);
    let fill = fill.arg(&store).arg(source);
    let key = owner(world)?.at("image.pub").display().to_string();
    let judged = || verify(world, &store, &demo.manifest, &["--key", &key]);

    let since = Instant::now();
    fill.ok()?;
    let whole = since.elapsed();
    let (mut killed, mut left) = (0, 0);
    for n in 0..KILLS {
        fs::remove_dir_all(&store)?;
        killed += u32::from(!kill_after(&fill, whole * n / KILLS)?);
        left += strays(&dir)?.len();
        if store.join("index.json").exists() && store.join("oci-layout").exists() {
            let code = judged()?.code();
            ensure!(code <= 1, "{verb} killed at {n}/{KILLS}: unreadable");
            whole_blobs(&store)?;
        }
        let again: Value = serde_json::from_str(&fill.ok()?.stdout)?;
        ensure!(again["signatures"] == json!(2), "{n}/{KILLS}: {again}");
        let after = judged()?;
        accepted(&after)?;
        ensure!(after.stdout.matches("signed by").count() == 2, "{after}");
        ensure!(strays(&dir)?.is_empty(), "{n}: {:?}", strays(&dir)?);
    }
    ensure!(killed >= KILLS / 4, "{killed} of {KILLS} were killed");
    ensure!(left > 0, "no kill hit {verb} in the middle of its work");
    Ok(())
}

/// Each blob is what its name says.
fn whole_blobs(store: &Path) -> Result<()> {
    let blobs = store.join("blobs/sha256");
    for name in names(&blobs)? {
        let found = digest(&fs::read(blobs.join(&name))?);
        ensure!(
            name.starts_with('.') || found == format!("sha256:{name}"),
            "{name} is half-written"
        );
    }
    Ok(())
}
