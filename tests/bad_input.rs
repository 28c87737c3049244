//! Whatever is missing, corrupt or dies: a clear error, an exit status other than 0, and nothing left
//! behind; and right after it, with everything in its place again, the container runs.

use crate::{
    Module, Test, cmd,
    host::{CONFIG, POLICY, TRUST, policy as policy_text},
    publisher::STORE,
    runtime::{Backend, Bundle, Runtime},
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

pub const MODULE: Module = Module {
    name: "bad_input",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        Ok(())
    },
    tests: &[
        Test::Ours("configuration", configuration),
        Test::Once("policy", policy),
        Test::Once("keys_and_certificates", keys_and_certificates),
        Test::Once(
            "trust_files_that_others_can_change",
            trust_files_that_others_can_change,
        ),
        Test::Once("signature_store", signature_store),
        Test::Ours("bundle", bundle),
        Test::Once("rootfs", rootfs),
        Test::Once("swtpm_missing_or_dying", swtpm_missing_or_dying),
        Test::Once("host_tpm_missing", host_tpm_missing),
        Test::Once(
            "the_programs_say_what_is_wrong",
            the_programs_say_what_is_wrong,
        ),
    ],
};

fn ours(world: &World) -> Result<Runtime> {
    Ok(Runtime::attestrun(
        &world.program("attestrun")?,
        Backend::Libcontainer,
    ))
}

fn demo(world: &World, args: &[&str]) -> Result<Bundle> {
    let rootfs = world.rootfs(0)?;
    world.note(&rootfs.id);
    Bundle::make(&world.work, &rootfs, args)
}

/// One thing is wrong: create fails and says `words`; nothing is left; when it is right again, it runs.
fn broken(
    world: &World,
    rt: &Runtime,
    what: &str,
    words: &str,
    path: &str,
    damage: Damage,
) -> Result<()> {
    let bundle = demo(world, &["/bin/true"])?;
    let before = world.snapshot()?;
    let kept = format!("{path}.kept");
    cmd!("cp", "-a", path, &kept).ok()?;
    damage.to(Path::new(path))?;
    let output = rt.create(&bundle).output();
    let left = world.left_since(&before);
    cmd!("rm", "-rf", path).ok()?;
    cmd!("mv", &kept, path).ok()?;
    let output = output?;
    let left: Vec<_> = left?.into_iter().filter(|l| !l.contains(path)).collect();
    sound(&output, words).with_context(|| what.to_owned())?;
    ensure!(left.is_empty(), "{what}: left behind: {left:#?}");
    let runs = rt.run(&bundle)?;
    ensure!(
        runs.status.success(),
        "after {what}, everything in its place again: {runs}"
    );
    Ok(())
}

/// A clear error: exit status 1, the words, no panic, one line for people.
fn sound(output: &Output, words: &str) -> Result<()> {
    ensure!(output.code() == 1, "expected exit status 1: {output}");
    output
        .says(words)?
        .says_not("panicked")?
        .says_not("RUST_BACKTRACE")?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Damage<'a> {
    Missing,
    /// The file's content instead.
    Content(&'a [u8]),
    /// One replacement in its text.
    Replace(&'a str, &'a str),
    /// The first half of it.
    Half,
}

impl Damage<'_> {
    fn to(self, path: &Path) -> Result<()> {
        match self {
            Self::Missing => cmd!("rm", "-rf", path).ok().map(|_| ())?,
            Self::Content(bytes) => fs::write(path, bytes)?,
            Self::Replace(from, to) => {
                let text = fs::read_to_string(path)?;
                ensure!(text.contains(from), "{} has no `{from}`", path.display());
                fs::write(path, text.replacen(from, to, 1))?;
            }
            Self::Half => {
                let bytes = fs::read(path)?;
                fs::write(path, &bytes[..bytes.len() / 2])?;
            }
        }
        Ok(())
    }
}

fn configuration(world: &World, rt: &Runtime) -> Result<()> {
    for (what, damage) in [
        ("no configuration", Damage::Missing),
        ("an empty configuration", Damage::Content(b"")),
        (
            "a configuration that is no TOML",
            Damage::Content(b"\xff\x00[["),
        ),
        (
            "an unknown key",
            Damage::Replace("version = 1", "version = 1\nnonsense = true"),
        ),
        (
            "another version",
            Damage::Replace("version = 1", "version = 99"),
        ),
        (
            "an unknown backend",
            Damage::Replace("backend = \"", "backend = \"x"),
        ),
        (
            "a relative path",
            Damage::Replace("swtpm = \"/", "swtpm = \""),
        ),
    ] {
        broken(world, rt, what, CONFIG, CONFIG, damage)?;
    }
    if rt.backend == Some(Backend::Runc) {
        let damage = Damage::Replace("runc = \"/usr/sbin/runc\"", "runc = \"/usr/sbin/no-runc\"");
        broken(world, rt, "no runc", "/usr/sbin/no-runc", CONFIG, damage)?;
    }
    Ok(())
}

fn policy(world: &World) -> Result<()> {
    let rt = ours(world)?;
    for (what, damage) in [
        ("no policy", Damage::Missing),
        ("an empty policy", Damage::Content(b"")),
        ("a policy that is no TOML", Damage::Half),
        (
            "an unknown key",
            Damage::Replace("version = 1", "version = 1\nnonsense = true"),
        ),
        (
            "no keys",
            Damage::Replace("keys = [", "keys = []\nother = ["),
        ),
    ] {
        broken(world, &rt, what, POLICY, POLICY, damage)?;
    }
    let none = Damage::Content(b"version = 1\nmode = \"enforce\"\n");
    broken(
        world,
        &rt,
        "a policy without rules",
        "no rule",
        POLICY,
        none,
    )
}

fn keys_and_certificates(world: &World) -> Result<()> {
    let rt = ours(world)?;
    for (name, path) in [("the key", "image.pub"), ("the CA", "ca/ca.pem")] {
        let path = format!("{TRUST}/{path}");
        for (what, damage) in [
            ("missing", Damage::Missing),
            ("empty", Damage::Content(b"")),
            (
                "garbage",
                Damage::Content(b"-----BEGIN NONSENSE-----\nAAAA\n-----END NONSENSE-----\n"),
            ),
            ("half", Damage::Half),
        ] {
            broken(world, &rt, &format!("{name} {what}"), &path, &path, damage)?;
        }
    }
    Ok(())
}

/// A trust file that somebody else could write, replace or hang us with decides nothing: `create` fails,
/// in mode `audit` too, which lets pass what is refused.
fn trust_files_that_others_can_change(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let key = format!("{TRUST}/image.pub");
    let store_parent = Path::new(STORE).parent().context("parent")?;
    let store_parent = store_parent.display().to_string();
    let spoils: [(&str, &str, &str, &str); 10] = [
        (&key, "chmod 0666", "chmod 0644", "chmod go-w"),
        (&key, "chown 12345", "chown 0", "belongs to uid 12345"),
        (
            TRUST,
            "chmod 0777",
            "chmod 0755",
            "e2e can be written by others",
        ),
        (&key, "mkfifo", "", "is not a regular file"),
        (&key, "truncate --size=65M", "", "more than 67108864"),
        (POLICY, "chmod 0664", "chmod 0644", "cannot read the policy"),
        (POLICY, "mkfifo", "", "is not a regular file"),
        (
            CONFIG,
            "chmod 0646",
            "chmod 0644",
            "cannot read the configuration",
        ),
        (
            STORE,
            "chmod 0775",
            "chmod 0755",
            "cannot use the signature store",
        ),
        (
            &store_parent,
            "chmod 0777",
            "chmod 0755",
            "cannot use the signature store",
        ),
    ];
    for mode in ["enforce", "audit"] {
        crate::policy::under(&policy_text(mode), || {
            for (path, spoil, repair, words) in spoils {
                let done = spoiled(world, &rt, path, spoil, repair, words);
                done.with_context(|| format!("{spoil} {path} under {mode}"))?;
            }
            let runs = rt.run(&demo(world, &["/bin/true"])?)?;
            ensure!(
                runs.status.success(),
                "everything in its place again: {runs}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// `spoil PATH` before a create; afterwards `repair PATH`, or, without that, the file anew.
fn spoiled(
    world: &World,
    rt: &Runtime,
    path: &str,
    spoil: &str,
    repair: &str,
    words: &str,
) -> Result<()> {
    let bundle = demo(world, &["/bin/true"])?;
    let kept = format!("{path}.kept");
    if repair.is_empty() {
        cmd!("mv", path, &kept).ok()?;
    }
    let on_path = |command: &str| {
        let mut words = command.split(' ');
        let program = words.next().unwrap_or_default();
        cmd!(program).args(words).arg(path).ok()
    };
    on_path(spoil)?;
    let output = rt.create(&bundle).output();
    match repair {
        "" => cmd!("mv", "-f", &kept, path).ok()?,
        repair => on_path(repair)?,
    };
    let output = output?;
    sound(&output, words)?;
    output.says_not("refused: ")?;
    Ok(())
}

fn signature_store(world: &World) -> Result<()> {
    let rt = ours(world)?;
    broken(
        world,
        &rt,
        "no store",
        "refused|signature",
        STORE,
        Damage::Missing,
    )?;
    let index = format!("{STORE}/index.json");
    for (what, damage) in [
        ("no index", Damage::Missing),
        ("half an index", Damage::Half),
        ("an empty index", Damage::Content(b"{}")),
    ] {
        broken(
            world,
            &rt,
            what,
            "refused|index.json|signature",
            &index,
            damage,
        )?;
    }
    // Every blob, one after the other: manifest, configuration, signature, list, and what holds them.
    let mut harmful = 0;
    for blob in fs::read_dir(format!("{STORE}/blobs/sha256"))? {
        let blob = blob?.path().display().to_string();
        let bundle = demo(world, &["/bin/true"])?;
        for damage in [Damage::Half, Damage::Missing] {
            let kept = fs::read(&blob)?;
            damage.to(Path::new(&blob))?;
            let output = rt.run(&bundle);
            fs::write(&blob, kept)?;
            let output = output?;
            if !output.status.success() {
                sound(&output, "")?;
                harmful += 1;
            }
        }
    }
    ensure!(harmful >= 4, "only {harmful} damaged blobs were noticed");
    Ok(())
}

fn bundle(world: &World, rt: &Runtime) -> Result<()> {
    let good = demo(world, &["/bin/true"])?;
    let config = good.dir.join("config.json");
    let text = fs::read(&config)?;
    let fails = |what: &str, words: &str| -> Result<()> {
        sound(&rt.create(&good).output()?, words).with_context(|| what.to_owned())?;
        rt.on("state", &good)
            .exits(1)?
            .says("does not exist")
            .map(|_| ())
    };
    fs::remove_file(&config)?;
    fails("no config.json", "config.json")?;
    for (what, bytes) in [
        ("empty", &b""[..]),
        ("half", &text[..text.len() / 2]),
        ("not an object", b"[]"),
        ("an empty object", b"{}"),
    ] {
        fs::write(&config, bytes)?;
        fails(what, "")?;
    }
    fs::write(&config, &text)?;
    let mut changed = demo(world, &["/bin/true"])?;
    changed.config["process"]["args"] = json!([]);
    changed.write()?;
    fails("no arguments", "args")?;
    changed = demo(world, &["/bin/true"])?;
    changed.set("/process/cwd", json!("relative"))?;
    fails("a relative cwd", "cwd|Cwd")?;
    changed = demo(world, &["/bin/true"])?;
    changed.set("/mounts", json!([{ "destination": "/x", "type": "bind", "source": "/does/not/exist", "options": ["bind"] }]))?;
    fails("a mount without source", "/does/not/exist")?;
    fs::write(&config, &text)?;
    let nowhere = rt
        .cmd("create")
        .args(["--bundle", "/does/not/exist", &good.id])
        .output()?;
    sound(&nowhere, "/does/not/exist")?;
    let runs = rt.run(&good)?;
    ensure!(runs.status.success(), "{runs}");
    Ok(())
}

fn rootfs(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let mut bundle = demo(world, &["/bin/true"])?;
    bundle.set("/root/path", json!("/does/not/exist"))?;
    sound(&rt.create(&bundle).output()?, "/does/not/exist")?;
    // An engine's database that lies about the layers.
    let layers = "/var/lib/containers/storage/overlay-layers/layers.json";
    broken(
        world,
        &rt,
        "no layer database",
        "layers.json",
        layers,
        Damage::Missing,
    )?;
    broken(
        world,
        &rt,
        "half a layer database",
        "layers.json",
        layers,
        Damage::Half,
    )?;
    let images = "/var/lib/containers/storage/overlay-images/images.json";
    broken(
        world,
        &rt,
        "half an image database",
        "images.json",
        images,
        Damage::Half,
    )
}

fn swtpm_missing_or_dying(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let script = |name: &str, text: &str| -> Result<String> {
        let path = world.work.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(format!("swtpm = \"{}\"", path.display()))
    };
    let packaged = "swtpm = \"/usr/bin/swtpm\"";
    for (what, line) in [
        ("no swtpm", "swtpm = \"/usr/bin/no-swtpm\"".to_owned()),
        (
            "an swtpm that is no program",
            script("swtpm-text", "nonsense\n")?,
        ),
        (
            "an swtpm that dies at once",
            script("swtpm-dies", "#!/bin/sh\nexit 1\n")?,
        ),
        (
            "an swtpm that talks nonsense",
            script("swtpm-nonsense", "#!/bin/sh\nyes\n")?,
        ),
    ] {
        broken(
            world,
            &rt,
            what,
            "swtpm",
            CONFIG,
            Damage::Replace(packaged, &line),
        )?;
    }
    Ok(())
}

fn host_tpm_missing(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = demo(world, &["/bin/true"])?;
    for service in ["attestrun-agent", "attestrun-host", "swtpm"] {
        world.stop(service)?;
    }
    let done = (|| -> Result<()> {
        // create starts the host service, which finds no TPM.
        let output = rt.create(&bundle).output()?;
        sound(&output, "TPM")?;
        rt.on("state", &bundle).exits(1)?;
        let setup = cmd!(world.program("attestrun")?, "setup").fails()?;
        setup.says("TPM")?.says_not("panicked")?;
        Ok(())
    })();
    // The same state starts again, as after a power cut of the software root.
    world.start_software_root()?;
    world.start_services()?;
    done?;
    let runs = rt.run(&bundle)?;
    ensure!(runs.status.success(), "with the TPM back: {runs}");
    Ok(())
}

fn the_programs_say_what_is_wrong(world: &World) -> Result<()> {
    let attestrun = world.program("attestrun")?;
    for args in [
        &["nonsense"][..],
        &["create"],
        &["create", "--nonsense", "x"],
        &["kill"],
        &["--root"],
    ] {
        let output = cmd!(&attestrun).args(args).fails()?;
        output.says_not("panicked")?;
        ensure!(!output.all().trim().is_empty(), "{args:?}: no word");
    }
    for args in [
        &["nonsense"][..],
        &["challenge"],
        &["list", "create"],
        &["image", "sign", "--nonsense"],
    ] {
        world.ctl()?.args(args).exits(64)?.says_not("panicked")?;
    }
    let agent = world.program("attestrun-agent")?;
    cmd!(&agent).fails()?.says("root")?; // needs no privilege, so it takes none
    let somebody = || {
        cmd!(
            "setpriv",
            "--reuid=64999",
            "--regid=64999",
            "--clear-groups"
        )
        .arg(&agent)
    };
    somebody()
        .args(["--socket", "/does/not/exist/s"])
        .fails()?
        .says("/does/not/exist/s")?;
    Ok(())
}
