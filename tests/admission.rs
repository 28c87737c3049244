//! What may not start, and the words that a user gets: by the image, its list, its files, its programs,
//! its launch. Each refusal stands beside the same thing done right, which starts.

use crate::{
    Module, Test,
    host::{POLICY, TRUST, policy},
    image::{Image, Plan, UNLISTED},
    publisher::{LIST, Publisher, SERIALS, STORE, rule},
    runtime::{Backend, Bundle, Runtime},
    spawn::Output,
    world::{Rootfs, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "admission",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        crate::engines::warm(world)
    },
    tests: &[
        Test::Ours(
            "unsigned_image_is_refused_by_each_engine",
            unsigned_image_is_refused_by_each_engine,
        ),
        Test::Once(
            "a_signature_must_be_by_a_trusted_key_for_this_name",
            a_signature_must_be_by_a_trusted_key_for_this_name,
        ),
        Test::Once(
            "a_list_must_be_signed_current_and_for_this_image",
            a_list_must_be_signed_current_and_for_this_image,
        ),
        Test::Once(
            "a_list_signed_with_openssl_is_accepted",
            a_list_signed_with_openssl_is_accepted,
        ),
        Test::Once("the_highest_serial_counts", the_highest_serial_counts),
        Test::Ours(
            "every_file_is_compared_with_the_layers",
            every_file_is_compared_with_the_layers,
        ),
        Test::Once(
            "what_was_put_into_a_container_beforehand_is_refused",
            what_was_put_into_a_container_beforehand_is_refused,
        ),
        Test::Ours(
            "an_unlisted_entry_point_is_refused",
            an_unlisted_entry_point_is_refused,
        ),
        Test::Ours("an_unlisted_exec_is_refused", an_unlisted_exec_is_refused),
        Test::Once(
            "enter_deny_refuses_every_exec",
            enter_deny_refuses_every_exec,
        ),
        Test::Once("the_launch_is_judged", the_launch_is_judged),
        Test::Once("no_image_no_container", no_image_no_container),
    ],
};

pub fn ours(world: &World) -> Result<Runtime> {
    Ok(Runtime::attestrun(
        &world.program("attestrun")?,
        Backend::Libcontainer,
    ))
}

pub fn demo_bundle(world: &World, args: &[&str]) -> Result<Bundle> {
    let rootfs = world.rootfs(0)?;
    world.note(&rootfs.id);
    Bundle::make(&world.work, &rootfs, args)
}

/// Made right, it runs: else a refusal would prove nothing.
pub fn runs(rt: &Runtime, bundle: &Bundle) -> Result<()> {
    let output = rt.run(bundle)?;
    ensure!(output.status.success(), "this should have run: {output}");
    Ok(())
}

/// A refusal says so, in words that engines do not take for a missing program.
pub fn refusal(output: &Output, words: &str) -> Result<()> {
    output.says("refused")?.says(words)?;
    for phrase in [
        "no such file",
        "permission denied",
        "operation not permitted",
        "executable file not found",
    ] {
        output.says_not(phrase)?;
    }
    Ok(())
}

/// `body` with files of its own at `path`; afterwards they are as before, whatever happened.
pub fn restoring(path: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    match path {
        // with the lists, what the host remembers of them
        STORE => kept(SERIALS, || kept(STORE, body)),
        _ => kept(path, body),
    }
}

fn kept(path: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut kept = format!("{path}.kept");
    while Path::new(&kept).exists() {
        kept.push('+'); // one within another
    }
    crate::cmd!("cp", "-a", path, &kept).ok()?;
    let done = body();
    crate::cmd!("rm", "-rf", path).ok()?;
    crate::cmd!("mv", &kept, path).ok()?;
    done
}

fn unsigned_image_is_refused_by_each_engine(world: &World, rt: &Runtime) -> Result<()> {
    let image = &world.images()?.unsigned;
    let name = image.name.as_str();
    let podman = world
        .podman_run(rt, "run")?
        .args(["--rm", name, "/bin/true"])
        .output()?;
    ensure!(![0, 127].contains(&podman.code()), "{podman}");
    refusal(&podman, name)?;
    podman.says(&image.manifest)?;
    let id = format!("e2e-unsigned-{}", rt.name.replace('+', "-"));
    world.note(&id);
    let ctr = world
        .ctr()?
        .args(["run", "--rm", "--runc-binary"])
        .arg(&rt.path)
        .args([name, &id, "/bin/true"])
        .fails()?;
    refusal(&ctr, name)?;
    let runtime = format!("--runtime=e2e-{}", rt.name);
    let docker = world
        .docker()?
        .args(["run", "--rm", "--network=none", &runtime, name, "/bin/true"])
        .output()?;
    ensure!(![0, 127].contains(&docker.code()), "{docker}");
    refusal(&docker, name)
}

fn a_signature_must_be_by_a_trusted_key_for_this_name(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let image = Image::make(
        &world.work.join("images"),
        &Plan {
            name: "localhost/e2e/other:v1",
            text: "another image\n",
        },
    )?;
    world.with_rootfs(&image, |rootfs| {
        let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
        let refused = |words: &str| refusal(&rt.run(&bundle)?, words);
        refused("no rule")?;
        restoring(POLICY, || {
            let other = rule("other", "localhost/e2e/other", Path::new(TRUST));
            fs::write(POLICY, format!("{}{other}", policy("enforce")))?;
            restoring(STORE, || {
                refused("sign")?; // no signature at all
                let stranger =
                    Publisher::make(&world.program("attestctl")?, world.work.join("stranger"))?;
                stranger.sign(&image)?;
                let list = owner.list(&image, 1)?;
                owner.import(&list, &owner.sign_list(&list)?)?;
                refused("key")?;
                let sign = owner.ctl(&[
                    "image",
                    "sign",
                    "--reference",
                    "localhost/e2e/elsewhere",
                    "--store",
                    STORE,
                ]);
                sign.arg("--key")
                    .arg(owner.at("image.key"))
                    .arg(&image.layout)
                    .ok()?;
                refused("localhost/e2e/elsewhere")?;
                owner.sign(&image)?;
                runs(&rt, &bundle)
            })
        })
    })
}

fn a_list_must_be_signed_current_and_for_this_image(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    let list = owner.list(demo, 7)?;
    owner.expired_certificate()?;
    let stranger = Publisher::make(&world.program("attestctl")?, world.work.join("stranger-ca"))?;
    // openssl signs whatever it is given, also what attestctl would not.
    let by_owner = |list: &Path| owner.sign_with_openssl(list, "user.pem", "user.key");
    let with = |what: &str, words: &str, make: &dyn Fn() -> Result<Option<(PathBuf, PathBuf)>>| {
        restoring(STORE, || {
            crate::cmd!("rm", "-rf", STORE).ok()?;
            owner.sign(demo)?;
            if let Some((list, signature)) = make()? {
                owner.import(&list, &signature)?;
            }
            refusal(&rt.run(&bundle)?, words)
        })
        .with_context(|| what.to_owned())
    };
    with("no list", "list", &|| Ok(None))?;
    with("another CA's certificate", "list", &|| {
        let signature = stranger.sign_with_openssl(&list, "user.pem", "user.key")?;
        Ok(Some((list.clone(), signature)))
    })?;
    with("an expired certificate", "ran out", &|| {
        Ok(Some((
            list.clone(),
            owner.sign_with_openssl(&list, "expired.pem", "expired.key")?,
        )))
    })?;
    with("an expired list", "expire", &|| {
        let old = owner.changed(&list, "old.json", |statement| {
            statement["predicate"]["issuedAt"] = json!("2020-01-01T00:00:00Z");
            statement["predicate"]["expiresAt"] = json!("2020-01-02T00:00:00Z");
        })?;
        let signature = by_owner(&old)?;
        Ok(Some((old, signature)))
    })?;
    with("a list of another name", "list", &|| {
        let other = owner.changed(&list, "other.json", |statement| {
            statement["predicate"]["name"] = json!("other")
        })?;
        let signature = by_owner(&other)?;
        Ok(Some((other, signature)))
    })?;
    with("a signature over another list", "list", &|| {
        let other = owner.changed(&list, "swapped.json", |statement| {
            statement["predicate"]["serial"] = json!(8)
        })?;
        Ok(Some((other, by_owner(&list)?)))
    })?;
    with("another digest for a program", "/bin/busybox", &|| {
        let other = owner.changed(&list, "wrong.json", |statement| {
            statement["predicate"]["files"]["/bin/busybox"] = json!(["0".repeat(64)]);
        })?;
        let signature = by_owner(&other)?;
        Ok(Some((other, signature)))
    })?;
    runs(&rt, &bundle)
}

fn a_list_signed_with_openssl_is_accepted(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &["/bin/true"])?;
    restoring(STORE, || {
        crate::cmd!("rm", "-rf", STORE).ok()?;
        owner.sign(demo)?;
        let list = owner.list(demo, 3)?;
        owner.import(
            &list,
            &owner.sign_with_openssl(&list, "user.pem", "user.key")?,
        )?;
        runs(&rt, &bundle)
    })
}

fn the_highest_serial_counts(world: &World) -> Result<()> {
    let (rt, owner) = (ours(world)?, &world.open_for_business()?.owner);
    let demo = &world.images()?.demo;
    let bundle = demo_bundle(world, &[UNLISTED, "hello"])?;
    // The higher list names every program, so the entry point is on it.
    let wide = |serial: u64| -> Result<()> {
        let list = owner.at(&format!("wide-{serial}.json"));
        let create = owner.ctl(&[
            "list",
            "create",
            "--name",
            LIST,
            "--serial",
            &serial.to_string(),
            "--days",
            "30",
        ]);
        create.arg("--output").arg(&list).arg(&demo.layout).ok()?;
        owner.import(&list, &owner.sign_list(&list)?)
    };
    restoring(STORE, || {
        refusal(&rt.run(&bundle)?, UNLISTED)?;
        wide(9)?;
        runs(&rt, &bundle)?;
        // Two lists of one serial: nobody can say which of them the owner means.
        let other = owner.list(demo, 9)?;
        owner.import(&other, &owner.sign_list(&other)?)?;
        refusal(&rt.run(&bundle)?, "serial")
    })
}

/// The directory of the layer that holds `inside`, from the overlay's own options.
pub fn layer_with(rootfs: &Rootfs, inside: &str) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let place = rootfs.path.display().to_string();
    let line = mounts
        .lines()
        .find(|l| l.split(' ').nth(4) == Some(&place))
        .context("the rootfs is no mount")?;
    let lower = line
        .split("lowerdir=")
        .nth(1)
        .and_then(|o| o.split([',', ' ']).next())
        .context("lowerdir")?;
    let found = lower
        .split(':')
        .map(|l| Path::new(l).join(inside))
        .find(|p| p.symlink_metadata().is_ok());
    Ok(fs::canonicalize(found.with_context(|| {
        format!("{inside} is in none of {lower}")
    })?)?)
}

fn every_file_is_compared_with_the_layers(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo_bundle(world, &["/bin/true"])?;
    runs(rt, &bundle)?; // and the layers' manifests are cached now
    let file = layer_with(&world.rootfs(0)?, "etc/layer2")?;
    let original = fs::read(&file)?;
    let mut changed = original.clone();
    changed[0] ^= 1;
    fs::write(&file, &changed)?;
    let output = rt.run(&bundle);
    fs::write(&file, &original)?;
    refusal(&output?, "etc/layer2").context("one changed byte")?;
    runs(rt, &bundle).context("changed back")?;

    let mode = fs::metadata(&file)?.permissions();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4755))?;
    let output = rt.run(&bundle);
    fs::set_permissions(&file, mode)?;
    refusal(&output?, "etc/layer2").context("a setuid bit")?;

    let extra = file.with_file_name("extra");
    fs::write(&extra, "")?;
    let output = rt.run(&bundle);
    fs::remove_file(&extra)?;
    refusal(&output?, "etc/extra").context("an extra file")?;

    let away = file.with_file_name("layer2.away");
    fs::rename(&file, &away)?;
    let output = rt.run(&bundle);
    fs::rename(&away, &file)?;
    refusal(&output?, "etc/layer2").context("a missing file")?;
    runs(rt, &bundle)
}

fn what_was_put_into_a_container_beforehand_is_refused(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let demo = &world.images()?.demo;
    world.with_rootfs(demo, |rootfs| {
        let bundle = Bundle::make(&world.work, rootfs, &["/bin/true"])?;
        runs(&rt, &bundle)?;
        // As `podman cp` and `docker cp` do between create and start.
        fs::write(rootfs.path.join("etc/layer2"), "evil\n")?;
        refusal(&rt.run(&bundle)?, "etc/layer2")
    })
}

fn an_unlisted_entry_point_is_refused(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo_bundle(world, &[UNLISTED, "hello"])?;
    refusal(&rt.run(&bundle)?, UNLISTED)?;
    let demo = world.images()?.demo.name.as_str();
    let podman = world
        .podman_run(rt, "run")?
        .args(["--rm", demo, UNLISTED, "hello"])
        .fails()?;
    refusal(&podman, UNLISTED)
}

fn an_unlisted_exec_is_refused(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = demo_bundle(world, &["/bin/sleep", "100"])?;
    rt.up(&bundle)?;
    let id = bundle.id.as_str();
    refusal(
        &rt.cmd("exec").args([id, UNLISTED, "hello"]).exits(255)?,
        UNLISTED,
    )?;
    // By digest: under a listed name it is refused as well. (A link on the writable /tmp would need a
    // writable root; /proc leads to the same file.)
    let other_way = format!("/proc/1/root{UNLISTED}");
    rt.cmd("exec")
        .args([id, &other_way, "hello"])
        .fails()?
        .says_not("hello\n")?;
    rt.cmd("exec")
        .args([id, "/bin/echo", "listed"])
        .ok()?
        .says("listed")?;
    rt.down(&bundle)
}

fn enter_deny_refuses_every_exec(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = demo_bundle(world, &["/bin/sleep", "100"])?;
    restoring(POLICY, || {
        fs::write(
            POLICY,
            policy("enforce").replace("enter = \"listed\"", "enter = \"deny\""),
        )?;
        rt.up(&bundle)?;
        let denied = rt
            .cmd("exec")
            .args([bundle.id.as_str(), "/bin/true"])
            .exits(255)?;
        refusal(&denied, "enter")?;
        rt.down(&bundle)
    })
}

fn the_launch_is_judged(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let refused =
        |what: &str, words: &str, pointer: &str, change: &dyn Fn(&Value) -> Value| -> Result<()> {
            let mut bundle = demo_bundle(world, &["/bin/true"])?;
            let old = bundle
                .config
                .pointer(pointer)
                .cloned()
                .unwrap_or(Value::Null);
            bundle.set(pointer, change(&old))?;
            refusal(&rt.run(&bundle)?, words).with_context(|| what.to_owned())
        };
    let push = |old: &Value, item: Value| {
        let mut items = old.as_array().cloned().unwrap_or_default();
        items.push(item);
        json!(items)
    };
    for source in [
        "/run/attestrun",
        "/etc/attestrun",
        "/var/lib/attestrun",
        "/run",
        "/run/containerd/containerd.sock",
    ] {
        refused(source, source, "/mounts", &|old| {
            push(
                old,
                json!({ "destination": "/mnt", "type": "bind", "source": source, "options": ["rbind"] }),
            )
        })?;
    }
    refused("host TPM", "/dev/tpm0", "/linux/devices", &|old| {
        push(
            old,
            json!({ "path": "/dev/tpm0", "type": "c", "major": 10, "minor": 224, "fileMode": 438 }),
        )
    })?;
    for cap in ["CAP_SYS_MODULE", "CAP_BPF", "CAP_SYS_RAWIO"] {
        refused(cap, cap, "/process/capabilities", &|old| {
            let mut sets = old.clone();
            for set in ["bounding", "effective", "permitted"] {
                sets[set] = push(&old[set], json!(cap));
            }
            sets
        })?;
    }
    Ok(())
}

fn no_image_no_container(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let dir = world.work.join("plain-rootfs");
    fs::create_dir_all(&dir)?;
    crate::cmd!("cp", "-a", world.rootfs(0)?.path.join("."), &dir).ok()?;
    let mut bundle = demo_bundle(world, &["/bin/true"])?;
    bundle.set("/root/path", json!(dir))?;
    let output = rt.run(&bundle)?;
    ensure!(!output.status.success(), "{output}");
    refusal(&output, "image")
}
