//! Wrong bundles on every runtime: the exit status is runc's, the text says what is wrong, nothing is left.
//! Where attestrun is stricter than runc, the case says why.

use crate::{
    Module, Test,
    launch::allowing,
    runtime::{Bundle, Runtime},
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::symlink};

pub const MODULE: Module = Module {
    name: "wrong_input",
    prepare: |world| world.rootfs(0).map(|_| ()),
    tests: &[
        Test::Each("missing_fields", missing_fields),
        Test::Each("wrong_values", wrong_values),
        Test::Each("wrong_json", wrong_json),
        Test::Each("wrong_roots", wrong_roots),
    ],
};

pub fn demo(world: &World, args: &[&str]) -> Result<Bundle> {
    let rootfs = world.rootfs(0)?;
    world.note(&rootfs.id);
    Bundle::make(&world.work, &rootfs, args)
}

/// `create` fails as runc's does: status 1, these words, no container.
fn refused(rt: &Runtime, bundle: &Bundle, what: &str, words: &str) -> Result<()> {
    let output = rt.create(bundle).output()?;
    let state = rt.on("state", bundle).output()?;
    rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
    sound(&output, 1, words).with_context(|| what.to_owned())?;
    ensure!(!state.status.success(), "{what}: there is a container");
    Ok(())
}

/// All that went wrong, not only the first.
pub fn none(wrong: Vec<Option<anyhow::Error>>) -> Result<()> {
    let wrong: Vec<_> = wrong.iter().flatten().map(|e| format!("{e:#}")).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n    "));
    Ok(())
}

/// runc takes it, attestrun does not.
fn stricter(rt: &Runtime, bundle: &Bundle, what: &str, words: &str) -> Result<()> {
    if rt.backend.is_some() {
        return refused(rt, bundle, what, words);
    }
    rt.create(bundle).ok().with_context(|| what.to_owned())?;
    rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
    Ok(())
}

/// Everybody takes it.
fn accepted(rt: &Runtime, bundle: &Bundle, what: &str) -> Result<()> {
    rt.create(bundle).ok().with_context(|| what.to_owned())?;
    rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
    Ok(())
}

pub fn sound(output: &Output, code: i32, words: &str) -> Result<()> {
    ensure!(
        output.code() == code,
        "expected exit status {code}: {output}"
    );
    output.says(words)?.says_not("panicked")?;
    Ok(())
}

fn missing_fields(world: &World, rt: &Runtime) -> Result<()> {
    let mut wrong = Vec::new();
    let remove = |pointer: &str| -> Result<Bundle> {
        let mut bundle = demo(world, &["/bin/true"])?;
        let (parent, key) = pointer.rsplit_once('/').context("pointer")?;
        let parent = bundle.config.pointer_mut(parent).context("parent")?;
        parent.as_object_mut().context("object")?.remove(key);
        bundle.write()?;
        Ok(bundle)
    };
    for (pointer, words) in [
        ("/process", "process property must not be empty|process"),
        ("/root", "oot must be specified"),
        ("/root/path", "path|no such file|refused"),
        ("/process/cwd", "cwd|Cwd property must not be empty"),
        ("/process/args", "args must not be empty"),
    ] {
        wrong.push(refused(rt, &remove(pointer)?, &format!("no {pointer}"), words).err());
    }
    // a hostname without a UTS namespace would be the host's
    for pointer in ["/linux", "/linux/namespaces"] {
        wrong.push(
            refused(
                rt,
                &remove(pointer)?,
                &format!("no {pointer}"),
                "UTS|linux|namespace",
            )
            .err(),
        );
    }
    for pointer in [
        "/process/user",
        "/process/env",
        "/process/capabilities",
        "/hostname",
        "/linux/resources",
        "/process/rlimits",
    ] {
        wrong.push(accepted(rt, &remove(pointer)?, &format!("no {pointer}")).err());
    }
    let unmasked = remove("/linux/maskedPaths")?;
    let named = allowing(&["shown:*", "writable:*"], || {
        accepted(rt, &unmasked, "no masked paths")
    });
    wrong.push(named.err());
    // attestrun does not guess what a configuration of no version means
    wrong.push(stricter(rt, &remove("/ociVersion")?, "no version", "ociVersion").err());
    none(wrong)
}

fn wrong_values(world: &World, rt: &Runtime) -> Result<()> {
    let mut wrong = Vec::new();
    let with = |pointer: &str, value: &Value| -> Result<Bundle> {
        let mut bundle = demo(world, &["/bin/true"])?;
        match bundle.config.pointer_mut(pointer) {
            Some(place) => {
                *place = value.clone();
                bundle.write()?;
            }
            None => bundle.set(pointer, value.clone())?,
        }
        Ok(bundle)
    };
    let cases = [
        ("/ociVersion", json!(1), "ociVersion|string"),
        ("/process", json!("sh"), "process|string"),
        ("/process/args", json!("sh"), "args|sequence|string"),
        ("/process/args", json!([]), "args must not be empty"),
        ("/process/args", json!([1]), "args|string"),
        (
            "/process/args",
            json!([""]),
            "executable file not found|args[0] is empty",
        ),
        (
            "/process/args",
            json!(["/bin/\u{0}true"]),
            "invalid argument|NUL",
        ),
        ("/process/cwd", json!(5), "cwd|string"),
        ("/process/cwd", json!(""), "wd property must not be empty"),
        ("/process/cwd", json!("rel"), "wd must be an absolute path"),
        ("/process/user", json!("root"), "user|string"),
        ("/process/user/uid", json!("0"), "uid|string"),
        ("/process/user/uid", json!(-1), "-1"),
        ("/process/terminal", json!("no"), "terminal|string"),
        ("/process/env", json!({ "a": "b" }), "env|map"),
        (
            "/process/env",
            json!(["NOEQ"]),
            "invalid environment variable",
        ),
        ("/process/env", json!(["=x"]), "environment variable"),
        ("/process/env", json!(["A=\u{0}b"]), "null|NUL"),
        (
            "/process/rlimits",
            json!([{ "type": "NONSENSE", "hard": 1, "soft": 1 }]),
            "NONSENSE",
        ),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NOFILE", "hard": 1, "soft": 1024 }]),
            "rlimit",
        ),
        (
            "/process/capabilities",
            json!(["CAP_KILL"]),
            "capabilities|sequence",
        ),
        ("/process/oomScoreAdj", json!(5000), "oom_score_adj"),
        ("/process/selinuxLabel", json!("x"), "selinux|SELinux"),
        ("/process/apparmorProfile", json!("nonsense"), "apparmor"),
        ("/root/path", json!(7), "path|string"),
        ("/root/readonly", json!("yes"), "readonly|bool"),
        ("/hostname", json!(7), "hostname|string"),
        ("/annotations", json!(["x"]), "annotations|sequence"),
        ("/mounts", json!({}), "mounts|map"),
        (
            "/mounts/0",
            json!({ "destination": "/tmp", "type": "nonsense", "source": "x" }),
            "nonsense|no such device",
        ),
        (
            "/mounts/0",
            json!({ "destination": "/tmp", "type": "bind", "source": "/no/such", "options": ["bind"] }),
            "/no/such",
        ),
        ("/linux/namespaces", json!("x"), "namespaces|string"),
        (
            "/linux/namespaces/0",
            json!({ "type": "nonsense" }),
            "nonsense",
        ),
        (
            "/linux/namespaces/0",
            json!({ "type": "network", "path": "/no/such" }),
            "/no/such|namespace|duplicated",
        ),
        ("/linux/cgroupsPath", json!(5), "cgroupsPath|string"),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "NONSENSE" }),
            "NONSENSE",
        ),
        (
            "/linux/resources/memory",
            json!({ "limit": "big" }),
            "limit|string",
        ),
        (
            "/linux/resources/pids",
            json!({ "limit": "x" }),
            "limit|string",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/dev/x", "type": "q" }]),
            "device|q",
        ),
        (
            "/linux/sysctl",
            json!({ "kernel.nonsense": "1" }),
            "kernel.nonsense",
        ),
        (
            "/linux/sysctl",
            json!({ "vm.swappiness": "1" }),
            "vm.swappiness",
        ),
        ("/linux/rootfsPropagation", json!("odd"), "odd"),
        (
            "/hooks",
            json!({ "createRuntime": [{ "path": "/no/such" }] }),
            "/no/such",
        ),
    ];
    for (pointer, value, words) in cases {
        wrong.push(
            refused(
                rt,
                &with(pointer, &value)?,
                &format!("{pointer} = {value}"),
                words,
            )
            .err(),
        );
    }
    // attestrun does not guess what a configuration of another major version means
    for version in ["", "2.0.0", "0.1.0", "nonsense"] {
        let bundle = with("/ociVersion", &json!(version))?;
        wrong.push(stricter(rt, &bundle, &format!("version {version:?}"), "ociVersion").err());
    }
    // what is asked for and cannot be given is not left out with a warning
    let bundle = with(
        "/process/capabilities",
        &json!({ "bounding": ["CAP_NONSENSE"] }),
    )?;
    wrong.push(stricter(rt, &bundle, "an unknown capability", "CAP_NONSENSE").err());
    none(wrong)
}

fn wrong_json(world: &World, rt: &Runtime) -> Result<()> {
    let mut wrong = Vec::new();
    let bundle = demo(world, &["/bin/true"])?;
    let config = bundle.dir.join("config.json");
    let good = serde_json::to_vec(&bundle.config)?;
    let open = &good[..good.len() - 1];
    let joined = |parts: &[&[u8]]| parts.concat();
    let many = |text: &[u8], n: usize| text.repeat(n);
    for (what, bytes) in [
        ("nothing", vec![]),
        ("half", good[..good.len() / 2].to_vec()),
        ("an array", b"[]".to_vec()),
        ("a number", b"5".to_vec()),
        ("a string", b"\"x\"".to_vec()),
        ("endless arrays", many(b"[", 200_000)),
        ("endless objects", many(b"{\"a\":", 100_000)),
        ("a byte order mark", joined(&[b"\xef\xbb\xbf", &good])),
        ("binary", many(b"\x00\xff", 1000)),
    ] {
        fs::write(&config, bytes)?;
        wrong.push(
            refused(
                rt,
                &bundle,
                what,
                "config.json|json|EOF|invalid character|expected|depth",
            )
            .err(),
        );
    }
    // runc dereferences nil and ends with 2
    fs::write(&config, "null")?;
    let output = rt.create(&bundle).fails()?;
    if rt.backend.is_some() {
        sound(&output, 1, "config.json")?;
    }
    let padding = |size: usize| {
        joined(&[
            open,
            b",\"annotations\":{\"a\":\"",
            &many(b"x", size),
            b"\"}}",
        ])
    };
    fs::write(&config, joined(&[open, b",\"nonsense\":1}"]))?;
    wrong.push(accepted(rt, &bundle, "an unknown field").err());
    let deep = [&many(b"[", 5000)[..], &many(b"]", 5000)].concat();
    fs::write(&config, joined(&[open, b",\"x\":", &deep, b"}"]))?;
    wrong.push(accepted(rt, &bundle, "an unknown field, nested deeply").err());
    fs::write(&config, padding(1 << 20))?;
    wrong.push(accepted(rt, &bundle, "a megabyte").err());
    // attestrun takes what everybody reads in one way only: bytes that one parser drops or replaces
    // could be what another one acts by; and it has an end to what it reads
    for (what, bytes, words) in [
        ("a tail", joined(&[&good, b"garbage"]), "trailing"),
        (
            "a key twice",
            joined(&[open, b",\"ociVersion\":\"1.0.2\"}"]),
            "duplicate",
        ),
        (
            "no UTF-8",
            joined(&[open, b",\"annotations\":{\"a\":\"\xff\"}}"]),
            "config.json",
        ),
        ("17 MB", padding(17 << 20), "larger than"),
    ] {
        fs::write(&config, bytes)?;
        wrong.push(stricter(rt, &bundle, what, words).err());
    }
    none(wrong)
}

fn wrong_roots(world: &World, rt: &Runtime) -> Result<()> {
    let mut wrong = Vec::new();
    let mut bundle = demo(world, &["/bin/true"])?;
    let root = world.rootfs(0)?.path;
    let link = bundle.dir.join("link");
    symlink(&root, &link)?;
    let words = "not an absolute path, or a symlink";
    for path in ["link", "link/."] {
        bundle.set("/root/path", json!(path))?;
        wrong.push(refused(rt, &bundle, path, words).err());
    }
    bundle.set("/root/path", json!(root.join("bin/busybox")))?;
    wrong.push(refused(rt, &bundle, "a file", "ot a directory").err());
    for path in ["nothing", "/no/such"] {
        bundle.set("/root/path", json!(path))?;
        wrong.push(refused(rt, &bundle, path, "does not exist|no such file").err());
    }
    // a bundle that vanishes between create and start was sealed by then
    bundle.set("/root/path", json!(root))?;
    bundle.args(&["/bin/sleep", "100"])?;
    rt.create(&bundle).ok()?;
    fs::remove_dir_all(&bundle.dir)?;
    rt.on("start", &bundle).ok()?;
    rt.down(&bundle)?;
    wrong.push(
        refused(
            rt,
            &bundle,
            "a vanished bundle",
            "no such file|No such file",
        )
        .err(),
    );
    none(wrong)
}
