//! `attestctl policy explain`: an administrator asks what the host would say, by the engine's name of an
//! image, of a sandbox, a build or a directory; and the host says the same.

use crate::{
    Module, Test,
    admission::{ours, restoring},
    host::{POLICY, TRUST, policy},
    policy::under,
    publisher::STORE,
    runtime::Bundle,
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;

pub const MODULE: Module = Module {
    name: "explain",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        world.podman()?;
        world.docker().map(drop)
    },
    tests: &[
        Test::Once("an_image_in_files", an_image_in_files),
        Test::Once("an_image_of_each_engine", an_image_of_each_engine),
        Test::Once("sandboxes_and_builds", sandboxes_and_builds),
        Test::Once("directories", directories),
        Test::Once(
            "what_cannot_be_found_out_is_no_refusal",
            what_cannot_be_found_out_is_no_refusal,
        ),
    ],
};

const TERMS: &str = "enter = \"any\"\nmin_tier = \"none\"\n";

fn explained(world: &World, args: &[&str]) -> Result<Output> {
    let explain = world.ctl()?.args(["policy", "explain"]);
    explain.args(args).output()
}

/// The answer for programs, which must end so.
fn asked(world: &World, args: &[&str], code: i32) -> Result<Value> {
    let explain = world.ctl()?.args(["--json", "policy", "explain"]);
    let output = explain.args(args).output()?;
    ensure!(output.code() == code, "{code} expected: {output}");
    serde_json::from_str(&output.stdout).with_context(|| output.to_string())
}

fn an_image_in_files(world: &World) -> Result<()> {
    let images = world.images()?;
    let explain = |name: &str, layout: &std::path::Path| {
        explained(world, &["--name", name, &layout.display().to_string()])
    };
    let good = explain(&images.demo.name, &images.demo.layout)?;
    ensure!(good.code() == 0, "{good}");
    good.says("rule demo")?
        .says("admitted")?
        .says(&images.demo.manifest)?;
    let bad = explain(&images.unsigned.name, &images.unsigned.layout)?;
    ensure!(bad.code() == 1, "{bad}");
    bad.says("no rule is for this image")?.says("remedy: ")?;
    // the same image under the demo's name: its rule, and no signature
    let bad = explain(&images.demo.name, &images.unsigned.layout)?;
    ensure!(bad.code() == 1, "{bad}");
    bad.says("rule demo")?.says("it is not signed")?;
    Ok(())
}

/// podman's, Docker's and containerd's (in two namespaces), by name and by id.
fn an_image_of_each_engine(world: &World) -> Result<()> {
    let images = world.images()?;
    let id = world
        .podman()?
        .args(["image", "inspect", "--format", "{{.Id}}", &images.demo.name])
        .ok()?
        .stdout;
    for name in [images.demo.name.as_str(), id.trim(), &id[..12]] {
        let by_id = name != images.demo.name;
        let answer = asked(world, &[name], 0)?;
        ensure!(answer["outcome"] == "accepted", "{answer:#}");
        let found = answer["explained"].as_array().context("explained")?;
        let stores: Vec<_> = found.iter().filter_map(|f| f["store"].as_str()).collect();
        let expected: &[&str] = match by_id {
            true => &["containers-storage ", "Docker "],
            false => &["containers-storage ", "Docker ", ", default", ", k8s.io"],
        };
        // one more where another test has had a dockerd with a store of its own
        let known = |store: &&str| expected.iter().any(|part| store.contains(part));
        ensure!(stores.iter().all(known), "{stores:?}");
        for part in expected {
            ensure!(
                stores.iter().any(|s| s.contains(part)),
                "{part}: {stores:?}"
            );
        }
        for one in found {
            ensure!(one["entry"] == "rule demo", "{one:#}");
            let subject = one["subject"].to_string();
            ensure!(subject.contains(&images.demo.manifest), "{subject}");
            ensure!(one["vouched"].to_string().contains("signed by"), "{one:#}");
        }
    }
    let answer = asked(world, &[&images.unsigned.name], 1)?;
    let found = answer["explained"].as_array().context("explained")?;
    ensure!(found.len() >= 4, "{answer:#}");
    for one in found {
        // Docker keeps no manifest: who has not imported one is told so
        let docker = one["store"].to_string().contains("Docker ");
        let why = match docker {
            true => "has no manifest in the engine's store or the signature store",
            false => "no rule is for this image",
        };
        ensure!(one["against"].to_string().contains(why), "{one:#}");
    }
    let none = explained(world, &["localhost/e2e/nowhere:v1"])?;
    ensure!(none.code() == 2, "{none}");
    none.says("no store that /etc/attestrun/config.toml names")?;
    Ok(())
}

fn sandboxes_and_builds(world: &World) -> Result<()> {
    let demo = &world.images()?.demo;
    let sandbox = format!(
        "[[sandbox]]\nname = \"pause\"\nimages = [\"{}\"]\nargs = [\"/bin/sleep\", \"1000\"]\n{TERMS}",
        demo.manifest
    );
    let build = format!(
        "[[build]]\nname = \"ci\"\nbase = [\"{}\"]\nprograms = \"any\"\n{TERMS}",
        demo.manifest
    );
    let bare = "version = 1\nmode = \"enforce\"\n";
    let name = demo.name.as_str();
    under(&format!("{bare}{sandbox}{build}"), || {
        let right = explained(world, &[name, "--", "/bin/sleep", "1000"])?;
        ensure!(right.code() == 0, "{right}");
        right.says("[[sandbox]] pause")?.says("admitted")?;
        for other in [&[name, "--", "/bin/sleep", "1"][..], &[name]] {
            let other = explained(world, other)?;
            ensure!(other.code() == 1, "{other}");
            other
                .says("no rule is for this image")?
                .says("otherwise: [[sandbox]] pause with the arguments")?;
        }
        let built = explained(world, &["--build", name])?;
        ensure!(built.code() == 0, "{built}");
        built.says("[[build]] ci")?.says("a build on image")?;
        let scratch = explained(world, &["--build"])?;
        ensure!(scratch.code() == 1, "{scratch}");
        scratch.says("a build on no image")?;
        Ok(())
    })?;
    let none = explained(world, &["--build", name])?;
    ensure!(none.code() == 1, "{none}");
    none.says("no [[build]] entry is for this build")?;
    Ok(())
}

/// What is explained of a directory is what happens to it.
fn directories(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let dir = world.work.join("explained/rootfs");
    fs::create_dir_all(&dir)?;
    crate::cmd!("cp", "-a", world.rootfs(0)?.path.join("."), &dir).ok()?;
    let mut bundle: Bundle = crate::admission::demo_bundle(world, &["/bin/true"])?;
    bundle.set("/root/path", json!(dir))?;
    let shown = dir.display().to_string();
    let entry = |content: &str| {
        format!(
            "{}\n[[bundle]]\nname = \"lab\"\nrootfs = \"{shown}\"\ncontent = {content}\nprograms = \"any\"\n{TERMS}\
             [bundle.launch]\nallow = {}\n",
            policy("enforce"),
            crate::publisher::relaxations()
        )
    };
    let agree = |code: i32, words: &str| -> Result<Output> {
        let told = explained(world, &["--rootfs", &shown])?;
        ensure!(told.code() == code, "{told}");
        told.says(words)?;
        let ran = rt.run(&bundle)?;
        ensure!(ran.status.success() == (code == 0), "{told}\n{ran}");
        if code != 0 {
            ran.says(words)?;
        }
        Ok(told)
    };
    agree(1, "no [[bundle]] entry is for it")?;
    under(&entry("\"any\""), || agree(0, "[[bundle]] lab").map(drop))?;
    let nothing = format!("[\"sha256:{}\"]", "0".repeat(64));
    let mut known = String::new();
    under(&entry(&nothing), || {
        let told = agree(1, "which the entry does not name")?;
        let begins = told.stdout.find("its content is ").context("a digest")? + 15;
        known = told.stdout[begins..begins + 71].to_owned();
        Ok(())
    })?;
    under(&entry(&format!("[\"{known}\"]")), || {
        agree(0, "[[bundle]] lab").map(drop)
    })?;
    fs::remove_dir_all(dir.parent().context("parent")?)?;
    Ok(())
}

fn what_cannot_be_found_out_is_no_refusal(world: &World) -> Result<()> {
    let demo = &world.images()?.demo.name;
    let key = format!("{TRUST}/image.pub");
    restoring(&key, || {
        fs::remove_file(&key)?;
        let answer = asked(world, &[demo], 2)?;
        ensure!(answer["outcome"] == "unknown", "{answer:#}");
        let first = &answer["explained"][0];
        ensure!(
            first["against"].to_string().contains("does not exist"),
            "{first:#}"
        );
        explained(world, &[demo])?
            .says("cannot decide: cannot read the image key")?
            .says_not("refused")?;
        Ok(())
    })?;
    restoring(STORE, || {
        fs::remove_dir_all(STORE)?;
        let unknown = explained(world, &[demo])?;
        ensure!(unknown.code() == 2, "{unknown}");
        unknown.says("reading the signature store")?;
        Ok(())
    })?;
    restoring(POLICY, || {
        fs::write(POLICY, "= x")?;
        let wrong = explained(world, &[demo])?;
        ensure!(wrong.code() == 1, "{wrong}");
        wrong.says("it is malformed")?;
        Ok(())
    })
}
