//! A secret is released to a container that a challenger accepts: that container opens it, with attestctl
//! and with tpm2-tools, as long as it is as it was found; nobody else does, and whoever is not accepted is
//! given nothing.

use crate::{
    Module, Test,
    admission::restoring,
    attestation::{WAIVERS, answer, ours},
    image::{Image, Plan, UNLISTED},
    lists::by_hand::recipe,
    publisher::STORE,
    runtime::{Bundle, Runtime},
    spawn::Output,
    vtpm::{as_files, tool_files},
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "release",
    prepare: |world| world.open_for_business().map(|_| ()),
    tests: &[
        Test::Once(
            "the_container_opens_its_secrets",
            the_container_opens_its_secrets,
        ),
        Test::Once("no_other_container_does", no_other_container_does),
        Test::Once(
            "who_is_not_accepted_gets_nothing",
            who_is_not_accepted_gets_nothing,
        ),
    ],
};

const SECRET: &str = "not for everybody";

/// The demo with attestctl and tpm2-tools.
fn image(world: &World) -> Result<Image> {
    let files = tool_files(&[&world.program("attestctl")?])?;
    let plan = Plan {
        name: "localhost/e2e/demo:released",
        text: "an image that is trusted with secrets\n",
    };
    Image::with_files(&world.work.join("images"), &plan, &as_files(&files))
}

/// One that is up, and what a challenger expects of it.
struct Recipient<'a> {
    world: &'a World,
    rt: &'a Runtime,
    bundle: Bundle,
    expectations: PathBuf,
}

/// A container of that image for each of `variables`, which is all that differs; each has a tmpfs at /tmp.
fn with_recipients(
    world: &World,
    variables: &[&str],
    body: impl FnOnce(&[Recipient<'_>]) -> Result<()>,
) -> Result<()> {
    let rt = &ours(world)?;
    restoring(STORE, || {
        let image = image(world)?;
        world.open_for_business()?.owner.publish(&image, 1)?;
        let expectations = expected(world, &image)?;
        let mut up = Vec::new();
        let done = each_up(world, rt, &image, variables, &expectations, &mut up, body);
        world.podman()?.args(["rmi", "-f", &image.name]).ok()?;
        done
    })
}

fn each_up<'a>(
    world: &'a World,
    rt: &'a Runtime,
    image: &Image,
    variables: &[&str],
    expectations: &Path,
    up: &mut Vec<Recipient<'a>>,
    body: impl FnOnce(&[Recipient<'_>]) -> Result<()>,
) -> Result<()> {
    let Some((variable, others)) = variables.split_first() else {
        return body(up);
    };
    world.with_rootfs(image, |rootfs| {
        let mut bundle = Bundle::make(&world.work, rootfs, &["/bin/sleep", "1000"])?;
        let tmpfs = json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"] });
        let mounts = bundle.config["mounts"].as_array_mut();
        mounts.context("mounts")?.push(tmpfs);
        bundle.set("/process/env", json!(["PATH=/usr/local/bin:/bin", variable]))?;
        world.note(&bundle.id);
        rt.up(&bundle)?;
        let again = bundle.again();
        up.push(Recipient { world, rt, bundle, expectations: expectations.to_owned() });
        let done = each_up(world, rt, image, others, expectations, up, body);
        rt.cmd("delete").args(["--force", &again.id]).ok()?;
        done
    })
}

/// What a challenger of the demo expects, of this image.
fn expected(world: &World, image: &Image) -> Result<PathBuf> {
    let digest = |image: &Image| -> Result<String> {
        let manifest = world.ctl()?.args(["image", "manifest", "--digest"]);
        Ok(manifest.arg(&image.layout).ok()?.stdout.trim().to_owned())
    };
    let demo = &world.images()?.demo;
    let text = fs::read_to_string(world.expectations(&WAIVERS)?)?;
    let text = text
        .replace(&demo.manifest, &image.manifest)
        .replace(&digest(demo)?, &digest(image)?);
    let path = world.work.join("release.toml");
    fs::write(&path, text)?;
    Ok(path)
}

impl Recipient<'_> {
    fn release(&self, secret: &Path, output: &Path, more: &[&str]) -> Result<Output> {
        let release = self.world.ctl()?.args(["--json", "release"]).arg(secret);
        let release = release.args(["--to", "e2e", "--policy"]);
        let release = release
            .arg(&self.expectations)
            .arg("--output")
            .arg(output)
            .args(more);
        release.arg(&self.bundle.id).output()
    }

    /// Its /tmp, from the host.
    fn tmp(&self) -> Result<PathBuf> {
        let pid = self.rt.state(&self.bundle)?["pid"].to_string();
        Ok(Path::new("/proc").join(pid).join("root/tmp"))
    }

    /// Released, and in the container's hands.
    fn give(&self, name: &str, secret: &[u8]) -> Result<()> {
        let (plain, sealed) = (
            self.world.work.join("secret"),
            self.world.work.join("sealed"),
        );
        fs::write(&plain, secret)?;
        let output = self.release(&plain, &sealed, &[])?;
        ensure!(output.code() == 0, "{output}");
        let text = fs::read_to_string(&sealed)?;
        ensure!(!text.contains(SECRET), "in clear: {text}");
        fs::copy(&sealed, self.tmp()?.join(name))?;
        Ok(())
    }

    fn inside(&self, script: &str) -> Result<Output> {
        let script = format!("set -e; cd /tmp; {script}");
        let exec = self.rt.cmd("exec").arg(&self.bundle.id);
        exec.args(["/bin/sh", "-c", &script]).output()
    }

    fn opens(&self, name: &str, secret: &str) -> Result<()> {
        let output = self.inside(&format!("attestctl unseal {name}"))?;
        ensure!(output.code() == 0 && output.stdout == secret, "{output}");
        Ok(())
    }

    fn refuses(&self, name: &str, why: &str) -> Result<()> {
        let output = self.inside(&format!("attestctl unseal {name}"))?;
        ensure!(output.code() == 1 && output.stdout.is_empty(), "{output}");
        output.says("refused: ")?.says(why)?;
        Ok(())
    }
}

fn the_container_opens_its_secrets(world: &World) -> Result<()> {
    with_recipients(world, &["DEMO=1"], |recipients| {
        let [one] = recipients else {
            anyhow::bail!("one container")
        };
        one.give("short", SECRET.as_bytes())?;
        one.opens("short", SECRET)?;
        // longer than a TPM's object; any user of the container's
        let long = format!("{SECRET}\n").repeat(200);
        one.give("long", long.as_bytes())?;
        one.opens("long", &long)?;
        let user = one
            .rt
            .cmd("exec")
            .args(["--user", "1000:1000", &one.bundle.id]);
        let user = user.args(["/bin/attestctl", "unseal", "/tmp/short"]).ok()?;
        ensure!(user.stdout == SECRET, "{user}");
        let file = "attestctl unseal short -o plain; stat -c %a plain; cat plain";
        one.inside(file)?.says("600")?.says(SECRET)?;
        let json = one.inside("attestctl --json unseal short")?;
        ensure!(answer(&json)?["outcome"] == "done", "{json}");

        // by tpm2-tools, as the page prints it
        let parts = world.work.join("parts");
        let secret = world.work.join("secret");
        fs::write(&secret, SECRET)?;
        let output = one.release(&secret, &parts, &["--format", "tpm2-tools"])?;
        ensure!(output.code() == 0, "{output}");
        for ending in ["pub", "dup", "seed"] {
            let name = format!("secret.{ending}");
            fs::copy(parts.with_extension(ending), one.tmp()?.join(name))?;
        }
        let [_, tools] = &recipe("attestctl-release.1", "EXAMPLES")?[..] else {
            anyhow::bail!("attestctl-release(1) has other examples")
        };
        let output = one.inside(tools)?;
        ensure!(output.stdout.ends_with(SECRET), "{output}");

        // after a fault it is closed, and nothing more is released
        let denied = one.inside(&format!("{UNLISTED} ran"))?;
        denied.says("Operation not permitted")?;
        one.refuses("short", "PCRs do not have the values")?;
        one.refuses("long", "PCRs do not have the values")?;
        let last = tools.trim().lines().last().context("tpm2 unseal")?;
        let output = one.inside(last)?;
        ensure!(!output.status.success(), "{output}");
        ensure!(!output.stdout.contains(SECRET), "{output}");
        let again = world.work.join("again");
        let output = one.release(&secret, &again, &[])?;
        ensure!(output.code() == 1 && !again.exists(), "{output}");
        Ok(())
    })
}

/// The same image, list and policy: of the second one byte of the configuration differs, of the third
/// nothing does.
fn no_other_container_does(world: &World) -> Result<()> {
    with_recipients(world, &["DEMO=1", "DEMO=2", "DEMO=1"], |recipients| {
        let [one, others @ ..] = recipients else {
            anyhow::bail!("three containers")
        };
        one.give("mine", SECRET.as_bytes())?;
        for other in others {
            fs::copy(one.tmp()?.join("mine"), other.tmp()?.join("theirs"))?;
            other.refuses("theirs", "for another TPM")?;
            other.give("own", b"their own")?;
            other.opens("own", "their own")?;
        }
        one.opens("mine", SECRET)
    })
}

fn who_is_not_accepted_gets_nothing(world: &World) -> Result<()> {
    with_recipients(world, &["DEMO=1"], |recipients| {
        let [one] = recipients else {
            anyhow::bail!("one container")
        };
        let (secret, sealed) = (world.work.join("secret"), world.work.join("sealed"));
        fs::write(&secret, SECRET)?;
        let good = fs::read_to_string(&one.expectations)?;
        let tried = |text: &str, to: &str| -> Result<Output> {
            let other = world.work.join("other-release.toml");
            fs::write(&other, text)?;
            let release = world.ctl()?.args(["--json", "release", "--to", to]);
            let release = release.arg(&secret).arg("--policy").arg(&other);
            let release = release.arg("--output").arg(&sealed).arg(&one.bundle.id);
            release.output()
        };
        let _ = fs::remove_file(&sealed);
        for (what, text, to) in [
            ("another host", good.clone(), "e3e"),
            (
                "a software root",
                good.replace("\"software-root\",", ""),
                "e2e",
            ),
            (
                "another tenant",
                good.replace("tenant = \"spiffe://", "tenant = \"spiffe://other."),
                "e2e",
            ),
        ] {
            ensure!(text != good || to != "e2e", "{what}: nothing was changed");
            let output = tried(&text, to)?;
            ensure!([1, 2].contains(&output.code()), "{what}: {output}");
            ensure!(!sealed.exists(), "{what}: released all the same");
        }
        let output = tried(&good, "e2e")?;
        ensure!(output.code() == 0 && sealed.exists(), "{output}");
        Ok(())
    })
}
