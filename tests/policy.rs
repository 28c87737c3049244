//! What the policy's entries let through besides signed images under signed lists, and how evidence
//! shows it: each by a name that a challenger must waive.

use crate::{
    Module, Test,
    attestation::WAIVERS,
    host::{POLICY, policy},
    image::UNLISTED,
    runtime::{Backend, Bundle, Runtime},
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path};

pub const MODULE: Module = Module {
    name: "policy",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Once(
            "a_directory_runs_only_under_its_entry",
            a_directory_runs_only_under_its_entry,
        ),
        Test::Once(
            "a_sandbox_is_exact_in_image_and_arguments",
            a_sandbox_is_exact_in_image_and_arguments,
        ),
        Test::Once(
            "audit_lets_through_and_says_what",
            audit_lets_through_and_says_what,
        ),
        Test::Ours(
            "mounts_and_files_are_measured",
            mounts_and_files_are_measured,
        ),
        Test::Ours(
            "a_mount_that_cannot_be_measured_does_not_start",
            a_mount_that_cannot_be_measured_does_not_start,
        ),
        Test::Once(
            "the_launch_is_as_the_rule_demands",
            the_launch_is_as_the_rule_demands,
        ),
    ],
};

const BASE: &str = "version = 1\nmode = \"enforce\"\n";
const TERMS: &str = "enter = \"any\"\nmin_tier = \"none\"\n";

fn ours(world: &World) -> Result<Runtime> {
    Ok(Runtime::attestrun(
        &world.program("attestrun")?,
        Backend::Libcontainer,
    ))
}

/// `body` under this policy; afterwards the old one is back.
pub fn under(text: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let kept = fs::read(POLICY)?;
    fs::write(POLICY, text)?;
    let done = body();
    fs::write(POLICY, kept)?;
    done
}

fn demo(world: &World, args: &[&str]) -> Result<Bundle> {
    let rootfs = world.rootfs(0)?;
    world.note(&rootfs.id);
    Bundle::make(&world.work, &rootfs, args)
}

pub fn refused(output: &Output) -> Result<()> {
    ensure!(!output.status.success(), "{output}");
    output
        .says("refused: ")?
        .says("; ")?
        .says_not("no such file")?;
    Ok(())
}

/// The answer to a challenge, and the names of the checks that it refuses.
pub fn asked(
    world: &World,
    id: &str,
    waive: &[&str],
    edit: &[(String, String)],
) -> Result<(Value, BTreeSet<String>)> {
    let path = world.expectations(&[&WAIVERS[..], waive].concat())?;
    let text = fs::read_to_string(&path)?;
    // some tests are about what mounts bring
    let mut text = crate::launch::with_names(&text, &["mount:*"])?;
    for (from, to) in edit {
        ensure!(text.contains(from.as_str()), "{from} in {text}");
        text = text.replace(from.as_str(), to);
    }
    fs::write(&path, text)?;
    let output = world.challenge(id, &path)?;
    let answer: Value = serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
    let findings = answer["findings"].as_array().cloned().unwrap_or_default();
    let named = findings.iter().filter(|f| f["outcome"] == "refused");
    let named = named.filter_map(|f| f["check"].as_str().map(str::to_owned));
    let named = named.collect();
    Ok((answer, named))
}

pub fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn a_directory_runs_only_under_its_entry(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let dir = world.work.join("a-directory/rootfs");
    fs::create_dir_all(&dir)?;
    crate::cmd!("cp", "-a", world.rootfs(0)?.path.join("."), &dir).ok()?;
    let mut bundle = demo(world, &["/bin/sleep", "1000"])?;
    bundle.set("/root/path", json!(dir))?;
    refused(&rt.run(&bundle)?)?;
    let entry = |rootfs: &str| {
        format!(
            "{}\n[[bundle]]\nname = \"lab\"\nrootfs = \"{rootfs}\"\ncontent = \"any\"\nprograms = \"any\"\n{TERMS}",
            policy("enforce")
        )
    };
    under(&entry("/nowhere"), || refused(&rt.run(&bundle)?))?;
    under(&entry(&world.work.display().to_string()), || {
        rt.up(&bundle)?;
        rt.cmd("exec")
            .args([bundle.id.as_str(), UNLISTED, "x"])
            .output()?;
        let (answer, checks) = asked(world, &bundle.id, &[], &[])?;
        let expected = names(&[
            "P-ORIGIN",
            "P-PROGRAMS",
            "B-IMG",
            "P-CERT",
            "P-SIGLIST",
            "P-UNLISTED",
            "P-HASH",
            "P-MODE",
        ]);
        ensure!(checks.is_superset(&expected), "{checks:?}");
        let rootfs = answer["container"]["measured"]["rootfs"]
            .as_str()
            .context("rootfs")?;
        let text = fs::read_to_string(world.work.join("expectations.toml"))?;
        let line = |key: &str| {
            text.lines()
                .find(|l| l.starts_with(key))
                .unwrap_or_default()
                .to_owned()
        };
        let edit = [
            (line("rootfs ="), format!("rootfs = [\"{rootfs}\"]")),
            (line("enter ="), "enter = \"any\"".to_owned()),
        ];
        // a directory is no file system of its own that could be watched
        let waivers = ["no-image", "any-program", "tier-none"];
        let (answer, _) = asked(world, &bundle.id, &waivers, &edit)?;
        ensure!(answer["outcome"] == "accepted", "{answer:#}");
        rt.down(&bundle)
    })
}

fn a_sandbox_is_exact_in_image_and_arguments(world: &World) -> Result<()> {
    let (rt, image) = (ours(world)?, &world.images()?.demo.manifest);
    let text = format!(
        "{BASE}[[sandbox]]\nname = \"pause\"\nimages = [\"{image}\"]\nargs = [\"/bin/sleep\", \"1000\"]\n\
         enter = \"deny\"\nmin_tier = \"none\"\n[sandbox.launch]\nallow = {}\n",
        crate::publisher::relaxations()
    );
    under(&text, || {
        let mut bundle = demo(world, &["/bin/sleep", "1001"])?;
        // what annotations say is no matter
        bundle.config["annotations"] = json!({"io.kubernetes.cri.container-type": "sandbox"});
        bundle.write()?;
        refused(&rt.run(&bundle)?)?;
        bundle.args(&["/bin/sleep", "1000"])?;
        rt.up(&bundle)?;
        let (_, checks) = asked(world, &bundle.id, &[], &[])?;
        ensure!(
            checks.contains("P-ORIGIN") && checks.contains("P-PROGRAMS"),
            "{checks:?}"
        );
        let (answer, _) = asked(world, &bundle.id, &["sandbox"], &[])?;
        ensure!(answer["outcome"] == "accepted", "{answer:#}");
        let inside = rt
            .cmd("exec")
            .args([bundle.id.as_str(), "/bin/true"])
            .fails()?;
        inside.says("refused")?;
        rt.down(&bundle)
    })
}

fn audit_lets_through_and_says_what(world: &World) -> Result<()> {
    let rt = ours(world)?;
    under(&policy("audit"), || {
        // no image, no rule, no list
        let dir = world.work.join("a-directory/rootfs");
        fs::create_dir_all(&dir)?;
        crate::cmd!("cp", "-a", world.rootfs(0)?.path.join("."), &dir).ok()?;
        let mut bundle = demo(world, &["/bin/sleep", "1000"])?;
        bundle.set("/root/path", json!(dir))?;
        rt.up(&bundle)?;
        let (answer, checks) = asked(world, &bundle.id, &[], &[])?;
        ensure!(
            checks.is_superset(&names(&["P-MODE", "P-ORIGIN", "P-PROGRAMS"])),
            "{checks:?}"
        );
        let audited = answer["container"]["measured"]["audited"].to_string();
        ensure!(audited.contains("no [[bundle]] entry"), "{audited}");
        rt.down(&bundle)?;
        // signed and listed; a program is let in that is not
        let bundle = demo(world, &["/bin/sleep", "1000"])?;
        rt.up(&bundle)?;
        let waived = ["audit"];
        let (answer, _) = asked(world, &bundle.id, &waived, &[])?;
        ensure!(answer["outcome"] == "accepted", "{answer:#}");
        rt.cmd("exec")
            .args([bundle.id.as_str(), UNLISTED, "x"])
            .ok()?;
        let (_, checks) = asked(world, &bundle.id, &[], &[])?;
        ensure!(checks.contains("P-FAULT"), "{checks:?}");
        let (_, checks) = asked(world, &bundle.id, &waived, &[])?;
        ensure!(
            checks.contains("P-UNLISTED") && !checks.contains("P-FAULT"),
            "{checks:?}"
        );
        rt.down(&bundle)
    })
}

fn the_launch_is_as_the_rule_demands(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let mut bundle = demo(world, &["/bin/true"])?;
    bundle.set(
        "/process/env",
        json!(["PATH=/bin", "LD_PRELOAD=/tmp/evil.so"]),
    )?;
    let output = rt.run(&bundle)?;
    refused(&output)?;
    output.says("LD_PRELOAD")?;
    bundle.set("/process/env", json!(["PATH=/bin"]))?;
    let demanding =
        |demand: &str| format!("{}\n[rule.launch.demand]\n{demand}\n", policy("enforce"));
    for (demand, why) in [
        ("args = [[\"/bin/sleep\", \"1\"]]", "`args`"),
        ("uids = [1000]", "`uids`"),
        ("capabilities = []", "`capabilities`"),
        ("seccomp = \"filtered\"", "`seccomp`"),
        ("shared_namespaces = []", "`shared_namespaces`"),
    ] {
        under(&demanding(demand), || {
            let output = rt.run(&bundle)?;
            refused(&output)?;
            output.says(why)?;
            Ok(())
        })?;
    }
    under(&demanding("args = [[\"/bin/true\"]]\nuids = [0]"), || {
        let output = rt.run(&bundle)?;
        ensure!(output.status.success(), "{output}");
        Ok(())
    })
}

/// The policy of the tests with these terms too.
fn with_terms(terms: &str) -> String {
    let all = format!("min_tier = \"none\"\n{terms}");
    let policy = policy("enforce").replace("min_tier = \"none\"", &all);
    crate::launch::with_names(&policy, &["mount:*"]).unwrap_or_default()
}

/// Binds `source` to `destination`.
fn bind(bundle: &mut Bundle, source: &Path, destination: &str, access: &str) -> Result<()> {
    let mount = json!({
        "destination": destination, "type": "bind", "source": source, "options": ["rbind", access],
    });
    let mounts = bundle.config["mounts"].as_array_mut();
    mounts.context("mounts")?.push(mount);
    bundle.write()
}

fn sha256(text: &str) -> Result<String> {
    let file = std::env::temp_dir().join("e2e-sha256");
    fs::write(&file, text)?;
    let said = crate::cmd!("sha256sum", &file).ok()?.stdout;
    Ok(said.split(' ').next().unwrap_or_default().to_owned())
}

/// What is mounted leaves its places in the rootfs: not in one that others use.
fn with_rootfs_of_its_own(
    world: &World,
    body: impl FnOnce(&mut Bundle) -> Result<()>,
) -> Result<()> {
    world.with_rootfs(&world.images()?.demo, |rootfs| {
        world.note(&rootfs.id);
        body(&mut Bundle::make(
            &world.work,
            rootfs,
            &["/bin/sleep", "1000"],
        )?)
    })
}

/// The manifests are computed here from the format's description, by sha256sum.
fn mounts_and_files_are_measured(world: &World, rt: &Runtime) -> Result<()> {
    let data = world.work.join("measured-mount");
    fs::create_dir_all(&data)?;
    let (inner, single) = (data.join("a b"), world.work.join("measured-file"));
    for file in [&inner, &single] {
        fs::write(file, "one\n")?;
        crate::cmd!("chmod", "0640", file).ok()?;
    }
    crate::cmd!("chmod", "0755", &data).ok()?;
    with_rootfs_of_its_own(world, |bundle| {
        bind(bundle, &data, "/data", "rw")?;
        bind(bundle, &single, "/etc/single", "ro")?;
        let attributes = "mode=0640 uid=0 gid=0 size=4 sha256digest=";
        let one = sha256("one\n")?;
        let of_single = sha256(&format!("#mtree\n. type=file {attributes}{one}\n"))?;
        let of_data = sha256(&format!(
            "#mtree\n. type=dir mode=0755 uid=0 gid=0\n./a\\040b type=file {attributes}{one}\n"
        ))?;
        for measure in ["manifest", "files", "listed"] {
            let terms = format!("mounts = \"measure\"\nmeasure = \"{measure}\"");
            under(&with_terms(&terms), || {
                rt.up(bundle)?;
                let (answer, _) = asked(world, &bundle.id, &[], &[])?;
                ensure!(answer["outcome"] == "accepted", "{answer:#}");
                let measured = &answer["container"]["measured"];
                let mounts = json!([
                    { "destination": "/data", "type": "dir", "read_only": false,
                      "manifest": format!("sha256:{of_data}"), "entries": 2, "bytes": 4 },
                    { "destination": "/etc/single", "type": "file", "read_only": true,
                      "manifest": format!("sha256:{of_single}"), "entries": 1, "bytes": 4 },
                ]);
                ensure!(measured["mounts"] == mounts, "{measured:#}");
                let files = measured["files"].as_u64().context("files")?;
                let right = match measure {
                    "manifest" => files == 0,
                    // what is in the image and on no list is among them
                    "files" => {
                        files > measured["executed"].as_array().map_or(0, Vec::len) as u64 + 2
                    }
                    _ => files > 0,
                };
                ensure!(right, "{measure}: {files} files");
                rt.down(bundle)
            })?;
        }
        under(&with_terms("mounts = \"measure\""), || {
            rt.up(bundle)?;
            let pinned = |digest: &str| {
                let line =
                    format!("max_age_secs = 60\nmounts = {{ \"/data\" = [\"sha256:{digest}\"] }}");
                asked(
                    world,
                    &bundle.id,
                    &[],
                    &[("max_age_secs = 60".to_owned(), line)],
                )
            };
            let (answer, _) = pinned(&of_data)?;
            ensure!(answer["outcome"] == "accepted", "{answer:#}");
            let (_, checks) = pinned(&of_single)?;
            ensure!(checks == names(&["P-MOUNTS"]), "{checks:?}");
            rt.down(bundle)?;
            fs::write(&inner, "two\n")?;
            rt.up(bundle)?;
            let (_, checks) = pinned(&of_data)?;
            ensure!(checks == names(&["P-MOUNTS"]), "{checks:?}");
            rt.down(bundle)
        })
    })
}

fn a_mount_that_cannot_be_measured_does_not_start(world: &World, rt: &Runtime) -> Result<()> {
    let data = world.work.join("unmeasurable-mount");
    let inner = data.join("inner");
    fs::create_dir_all(&inner)?;
    with_rootfs_of_its_own(world, |bundle| {
        bind(bundle, &data, "/data", "rw")?;
        let start = |words: &str| -> Result<()> {
            rt.create(bundle).ok()?;
            let started = rt.on("start", bundle).output();
            rt.on("delete", bundle).arg("--force").ok()?;
            let started = started?;
            refused(&started)?;
            started.says("/data")?.says(words)?;
            Ok(())
        };
        under(&with_terms("mounts = \"measure\""), || {
            crate::cmd!("mount", "-t", "tmpfs", "none", &inner).ok()?;
            let done = start("/inner is a mount point");
            crate::cmd!("umount", &inner).ok()?;
            done?;
            let large = data.join("large");
            fs::File::create(&large)?.set_len((1 << 30) + 1)?;
            let done = start("more than 1073741824 bytes");
            fs::remove_file(&large)?;
            done?;
            rt.up(bundle)?;
            rt.down(bundle)
        })
    })
}
