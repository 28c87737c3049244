//! The verbs on the runtime itself: what callers rely on, tested on plain runc too, since a test which
//! runc fails is a wrong test (runtime-spec 1.x, and runc's own words where engines look for them).

use crate::{
    Module, Test,
    machine::patient,
    runtime::{Bundle, Runtime},
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, time::Duration};

pub const MODULE: Module = Module {
    name: "drop_in",
    prepare: |world| world.rootfs(1).map(|_| ()),
    tests: &[
        Test::Each("says_version_and_features", says_version_and_features),
        Test::Each("spec_writes_a_bundle", spec_writes_a_bundle),
        Test::Each("life_cycle", life_cycle),
        Test::Each(
            "run_forwards_output_and_status",
            run_forwards_output_and_status,
        ),
        Test::Each("exec_like_a_caller", exec_like_a_caller),
        Test::Each("exec_says_what_is_wrong", exec_says_what_is_wrong),
        Test::Each("signals", signals),
        Test::Each("list_and_ps", list_and_ps),
        Test::Each("delete_in_each_state", delete_in_each_state),
        Test::Each("start_in_each_state", start_in_each_state),
        Test::Each("a_taken_id_is_refused", a_taken_id_is_refused),
        Test::Each("a_malformed_id_is_refused", a_malformed_id_is_refused),
        Test::Each("errors_go_to_log_and_stderr", errors_go_to_log_and_stderr),
        Test::Each("preserves_descriptors", preserves_descriptors),
        Test::Each("terminal_by_console_socket", terminal_by_console_socket),
    ],
};

pub fn bundle(world: &World, args: &[&str]) -> Result<Bundle> {
    nth_bundle(world, 0, args)
}

fn nth_bundle(world: &World, n: usize, args: &[&str]) -> Result<Bundle> {
    let rootfs = world.rootfs(n)?;
    world.note(&rootfs.id);
    Bundle::make(&world.work, &rootfs, args)
}

fn says_version_and_features(_: &World, rt: &Runtime) -> Result<()> {
    let version = crate::cmd!(&rt.path, "--version").ok()?.stdout;
    let first = version.lines().next().unwrap_or_default();
    ensure!(
        first.contains(" version "),
        "dockerd splits the first line at `version`: {version}"
    );
    ensure!(
        version.lines().any(|l| l.starts_with("spec: 1.")),
        "podman and CRI-O look for the spec: {version}"
    );
    let features: Value = serde_json::from_str(&crate::cmd!(&rt.path, "features").ok()?.stdout)?;
    for key in ["ociVersionMin", "ociVersionMax", "mountOptions"] {
        ensure!(!features[key].is_null(), "no {key} in {features}");
    }
    Ok(())
}

fn spec_writes_a_bundle(world: &World, rt: &Runtime) -> Result<()> {
    let dir = world.work.join("spec");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    rt.cmd("spec").cwd(&dir).ok()?;
    let spec: Value = serde_json::from_slice(&fs::read(dir.join("config.json"))?)?;
    ensure!(
        spec["root"]["path"] == "rootfs" && spec["process"]["args"] == json!(["sh"]),
        "{spec}"
    );
    rt.cmd("spec").cwd(&dir).fails()?; // never over an existing one
    Ok(())
}

fn life_cycle(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "100"])?;
    let pid_file = bundle.dir.join("pid");
    let create = rt
        .cmd("create")
        .arg("--bundle")
        .arg(&bundle.dir)
        .arg("--pid-file")
        .arg(&pid_file);
    let created = create.arg(&bundle.id).ok()?;
    ensure!(
        created.all().is_empty(),
        "create's output is the container's: {created}"
    );
    let pid = fs::read_to_string(&pid_file)?;
    ensure!(
        pid.parse::<u32>().is_ok(),
        "the pid file is a decimal without newline: {pid:?}"
    );
    let state = rt.state(&bundle)?;
    for (key, want) in [
        ("id", json!(bundle.id)),
        ("status", json!("created")),
        ("bundle", json!(bundle.dir)),
        ("pid", json!(pid.parse::<u32>()?)),
    ] {
        ensure!(
            state[key] == want,
            "state.{key} is {}, not {want}",
            state[key]
        );
    }
    ensure!(
        state["ociVersion"].is_string() && state["created"].is_string(),
        "{state}"
    );
    rt.on("start", &bundle).ok()?;
    ensure!(rt.status(&bundle)? == "running", "after start");
    rt.on("kill", &bundle).arg("KILL").ok()?;
    rt.wait_for(&bundle, "stopped")?;
    ensure!(
        rt.state(&bundle)?["pid"] == 0,
        "a stopped container's pid is 0"
    );
    rt.on("delete", &bundle).ok()?;
    rt.on("state", &bundle).exits(1)?.says("does not exist")?;
    Ok(())
}

fn run_forwards_output_and_status(world: &World, rt: &Runtime) -> Result<()> {
    let mut bundle = bundle(world, &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])?;
    let output = rt.run(&bundle)?;
    ensure!(
        output.code() == 7 && output.stdout == "out\n" && output.stderr == "err\n",
        "{output}"
    );
    rt.on("state", &bundle).exits(1)?.says("does not exist")?;
    bundle.args(&["/bin/sh", "-c", "kill -9 $$"])?;
    let output = rt.run(&bundle)?;
    // pid 1 of a pid namespace cannot kill itself: the shell goes on and ends with 0.
    ensure!(output.code() == 0, "{output}");
    let child = rt
        .cmd("run")
        .arg("--bundle")
        .arg(&bundle.dir)
        .arg(&bundle.id);
    bundle.args(&["/bin/sleep", "100"])?;
    let child = child.start()?;
    wait_until(|| {
        Ok(rt
            .on("state", &bundle)
            .output()?
            .stdout
            .contains("\"running\""))
    })?;
    rt.on("kill", &bundle).arg("KILL").ok()?;
    let output = child.finish(Duration::from_secs(10))?;
    ensure!(output.code() == 137, "128 + the signal: {output}");
    bundle.args(&["/bin/sleep", "100"])?;
    rt.cmd("run")
        .arg("--detach")
        .arg("--bundle")
        .arg(&bundle.dir)
        .arg(&bundle.id)
        .ok()?;
    ensure!(rt.status(&bundle)? == "running", "run --detach");
    rt.down(&bundle)
}

fn exec_like_a_caller(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "100"])?;
    rt.up(&bundle)?;
    let exec = |args: &[&str]| rt.cmd("exec").args(args).output();
    let id = bundle.id.as_str();
    let says = |output: Output, want: &str| {
        ensure!(
            output.status.success() && output.stdout.trim() == want,
            "expected {want:?}: {output}"
        );
        Ok(())
    };
    says(exec(&[id, "/bin/echo", "hello"])?, "hello")?;
    says(exec(&["--cwd", "/etc", id, "/bin/pwd"])?, "/etc")?;
    says(
        exec(&[
            "--env",
            "X=1",
            "--env",
            "Y=2",
            id,
            "/bin/sh",
            "-c",
            "echo $X$Y",
        ])?,
        "12",
    )?;
    says(exec(&["--user", "1000:1000", id, "/bin/id", "-u"])?, "1000")?;
    says(exec(&["-u", "1000", id, "/bin/id", "-u"])?, "1000")?;
    says(exec(&[id, "echo", "found", "in", "PATH"])?, "found in PATH").or_else(|error| {
        // /usr/local/bin is first in PATH, and its echo is on no list: a refusal, and right so.
        if rt.backend.is_some() && error.to_string().contains("refused") {
            Ok(())
        } else {
            Err(error)
        }
    })?;
    rt.cmd("exec")
        .args([id, "/bin/sh", "-c", "exit 9"])
        .exits(9)?;
    rt.cmd("exec")
        .args([id, "/bin/sh", "-c", "kill -9 $$"])
        .exits(137)?;

    let process = json!({
        "terminal": false, "cwd": "/tmp", "args": ["/bin/sh", "-c", "echo $FROM; pwd"], "env": ["FROM=file", "PATH=/bin"],
        "user": { "uid": 1000, "gid": 1000 },
    });
    let file = bundle.dir.join("process.json");
    fs::write(&file, process.to_string())?;
    let output = rt.cmd("exec").arg("--process").arg(&file).arg(id).ok()?;
    ensure!(output.stdout == "file\n/tmp\n", "{output}");

    let pid_file = bundle.dir.join("exec.pid");
    rt.cmd("exec")
        .arg("--detach")
        .arg("--pid-file")
        .arg(&pid_file)
        .args([id, "/bin/sleep", "50"])
        .ok()?;
    let pid = fs::read_to_string(&pid_file)?;
    ensure!(
        PathBuf::from(format!("/proc/{pid}/exe")).exists(),
        "the pid file names the process: {pid:?}"
    );
    rt.down(&bundle) // ends the exec'd process as well: its pid namespace's init dies
}

fn exec_says_what_is_wrong(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "100"])?;
    let id = bundle.id.as_str();
    rt.cmd("exec")
        .args([id, "/bin/true"])
        .fails()?
        .says("does not exist")?;
    rt.up(&bundle)?;
    let missing = rt.cmd("exec").args([id, "/bin/nothing"]).exits(255)?;
    missing.says("no such file or directory|executable file not found")?;
    let missing = rt.cmd("exec").args([id, "nothing-in-path"]).exits(255)?;
    missing.says("executable file not found")?;
    rt.cmd("exec")
        .args([id, "/etc/passwd"])
        .exits(255)?
        .says("permission denied|refused")?;
    let garbage = rt.cmd("exec").args([id, "/bin/garbage"]).output()?;
    ensure!(
        !garbage.status.success(),
        "a file that is no program must not be handed to a shell: {garbage}"
    );
    rt.on("kill", &bundle).arg("KILL").ok()?;
    rt.wait_for(&bundle, "stopped")?;
    rt.cmd("exec")
        .args([id, "/bin/true"])
        .exits(255)?
        .says("stopped container|not running")?;
    rt.down(&bundle)
}

fn signals(world: &World, rt: &Runtime) -> Result<()> {
    let script = "for s in TERM USR1 HUP; do trap \"echo got $s\" $s; done; echo ready; while :; do sleep 0.05; done";
    let bundle = bundle(world, &["/bin/sh", "-c", script])?;
    let running = rt
        .cmd("run")
        .arg("--bundle")
        .arg(&bundle.dir)
        .arg(&bundle.id)
        .start()?;
    wait_until(|| Ok(running.written().contains("ready")))?;
    for (signal, word) in [
        ("TERM", "got TERM"),
        ("SIGUSR1", "got USR1"),
        ("1", "got HUP"),
    ] {
        rt.on("kill", &bundle).arg(signal).ok()?;
        wait_until(|| Ok(running.written().contains(word)))
            .with_context(|| format!("kill {signal}"))?;
    }
    rt.on("kill", &bundle).arg("0").ok()?; // only asks
    rt.on("kill", &bundle).arg("NONSENSE").fails()?;
    ensure!(
        rt.status(&bundle)? == "running",
        "handled signals do not end it"
    );
    // No signal is TERM (buildah relies on it).
    rt.on("kill", &bundle).ok()?;
    rt.on("kill", &bundle).arg("KILL").ok()?;
    running.finish(Duration::from_secs(10))?;

    rt.create(&bundle).ok()?;
    rt.on("kill", &bundle).arg("KILL").ok()?; // a created container may be killed
    rt.wait_for(&bundle, "stopped")?;
    rt.on("kill", &bundle)
        .arg("TERM")
        .exits(1)?
        .says("container not running")?;
    rt.cmd("kill").args(["--all", &bundle.id, "KILL"]).ok()?;
    rt.on("delete", &bundle).ok()?;
    rt.on("kill", &bundle)
        .arg("TERM")
        .exits(1)?
        .says("does not exist")?;
    Ok(())
}

fn list_and_ps(world: &World, rt: &Runtime) -> Result<()> {
    let empty = rt.cmd("list").args(["--format", "json"]).ok()?;
    ensure!(
        empty.stdout.trim() == "null",
        "an empty list is `null`: {empty}"
    );
    let (one, two) = (
        bundle(world, &["/bin/sleep", "100"])?,
        nth_bundle(world, 1, &["/bin/sleep", "100"])?,
    );
    rt.up(&one)?;
    rt.create(&two).ok()?;
    let list: Value = serde_json::from_str(&rt.cmd("list").args(["-f", "json"]).ok()?.stdout)?;
    let mut seen: Vec<_> = list
        .as_array()
        .context("array")?
        .iter()
        .map(|c| (c["id"].clone(), c["status"].clone()))
        .collect();
    seen.sort_by_key(|(id, _)| id.to_string());
    let mut want = vec![
        (json!(one.id), json!("running")),
        (json!(two.id), json!("created")),
    ];
    want.sort_by_key(|(id, _)| id.to_string());
    ensure!(seen == want, "{list}");
    let quiet = rt.cmd("list").arg("-q").ok()?.stdout;
    let mut quiet: Vec<_> = quiet.lines().collect();
    quiet.sort_unstable();
    let mut ids = vec![one.id.as_str(), two.id.as_str()];
    ids.sort_unstable();
    ensure!(quiet == ids, "{quiet:?}");
    let table = rt.cmd("list").ok()?;
    table.says("ID")?.says("STATUS")?.says(&one.id)?;

    let pid = rt.state(&one)?["pid"].clone();
    let ps: Value = serde_json::from_str(
        &rt.cmd("ps")
            .args(["--format", "json", &one.id])
            .ok()?
            .stdout,
    )?;
    ensure!(ps == json!([pid]), "ps --format json: {ps}");
    rt.on("ps", &one).ok()?.says("PID")?.says("sleep")?;
    rt.down(&one)?;
    rt.down(&two)
}

fn delete_in_each_state(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "100"])?;
    rt.on("delete", &bundle).exits(1)?.says("does not exist")?;
    rt.cmd("delete").arg("--force").arg(&bundle.id).ok()?; // the shim calls it after each delete
    rt.create(&bundle).ok()?;
    rt.on("delete", &bundle).ok()?; // a created one: killed and gone
    rt.on("state", &bundle).exits(1)?;
    rt.up(&bundle)?;
    rt.on("delete", &bundle)
        .exits(1)?
        .says("is not stopped: running")?;
    ensure!(
        rt.status(&bundle)? == "running",
        "a refused delete changes nothing"
    );
    rt.cmd("delete").arg("--force").arg(&bundle.id).ok()?;
    rt.on("state", &bundle).exits(1)?.says("does not exist")?;
    rt.up(&bundle)?;
    rt.on("pause", &bundle).ok()?;
    rt.cmd("delete").arg("--force").arg(&bundle.id).ok()?;
    rt.on("state", &bundle).exits(1)?.says("does not exist")?;
    Ok(())
}

fn start_in_each_state(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "100"])?;
    rt.on("start", &bundle).exits(1)?.says("does not exist")?;
    rt.up(&bundle)?;
    rt.on("start", &bundle)
        .exits(1)?
        .says("cannot start an already running container")?;
    rt.on("kill", &bundle).arg("KILL").ok()?;
    rt.wait_for(&bundle, "stopped")?;
    rt.on("start", &bundle)
        .exits(1)?
        .says("cannot start a container that has stopped")?;
    rt.down(&bundle)
}

fn a_taken_id_is_refused(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "100"])?;
    rt.up(&bundle)?;
    rt.create(&bundle).exits(1)?.says("already exists|exists")?;
    ensure!(
        rt.status(&bundle)? == "running",
        "the first container is not touched"
    );
    rt.down(&bundle)
}

fn a_malformed_id_is_refused(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/true"])?;
    for id in ["a/b", "..", "a b", "\u{e4}", ""] {
        let refused = rt
            .cmd("create")
            .arg("--bundle")
            .arg(&bundle.dir)
            .arg("--")
            .arg(id)
            .fails()?;
        ensure!(
            !refused.all().trim().is_empty(),
            "no word about the id {id:?}"
        );
    }
    Ok(())
}

fn errors_go_to_log_and_stderr(world: &World, rt: &Runtime) -> Result<()> {
    if rt.backend.is_none() {
        return errors_are_said(world, rt);
    }
    world.open_for_business()?;
    crate::launch::allowing(&["mount:/etc/passwd"], || errors_are_said(world, rt))
}

fn errors_are_said(world: &World, rt: &Runtime) -> Result<()> {
    let mut bundle = bundle(world, &["/bin/nothing"])?;
    let log = bundle.dir.join("log.json");
    let failing = |bundle: &Bundle| {
        let _ = fs::remove_file(&log);
        let root = PathBuf::from(crate::runtime::ROOTS).join(rt.name);
        let command = crate::cmd!(
            &rt.path,
            "--root",
            root,
            "--log",
            &log,
            "--log-format",
            "json"
        );
        command
            .arg("create")
            .arg("--bundle")
            .arg(&bundle.dir)
            .arg(&bundle.id)
            .exits(1)
    };
    let output = failing(&bundle)?;
    output.says("no such file or directory")?;
    let logged = Runtime::logged(&log)?;
    ensure!(
        logged.contains("no such file or directory"),
        "docker makes 127 of these words: {logged}"
    );
    bundle.args(&["nothing-in-path"])?;
    failing(&bundle)?.says("executable file not found in $PATH")?;
    // only the backend finds out; and it shares its standard error with the container
    bundle.config["process"]["args"] = json!(["/bin/true"]);
    let over = json!({ "destination": "/etc", "type": "bind", "source": "/etc/passwd", "options": ["bind"] });
    let mounts = bundle.config["mounts"].as_array_mut();
    mounts.context("mounts")?.push(over);
    bundle.write()?;
    let output = failing(&bundle)?;
    let once = output.stderr.trim().lines().count() == 1;
    ensure!(once && output.stderr.contains("/etc"), "{output}");
    let logged = Runtime::logged(&log)?;
    ensure!(logged.contains("/etc"), "{logged}");
    let lines = fs::read_to_string(&log)?.lines().count();
    ensure!(rt.backend.is_none() || lines == 1, "one line: {logged}");
    fs::write(bundle.dir.join("config.json"), "{")?;
    failing(&bundle)?;
    Runtime::logged(&log)?;
    fs::remove_file(bundle.dir.join("config.json"))?;
    failing(&bundle)?.says("config.json")?;
    rt.on("state", &bundle).exits(1)?.says("does not exist")?;
    Ok(())
}

fn preserves_descriptors(world: &World, rt: &Runtime) -> Result<()> {
    // Descriptor 3 is asked for, 4 is not: it must be closed inside.
    let bundle = bundle(
        world,
        &["/bin/sh", "-c", "cat <&3; ls /proc/self/fd | tr '\\n' ' '"],
    )?;
    let secret = bundle.dir.join("three");
    fs::write(&secret, "three\n")?;
    let root = PathBuf::from(crate::runtime::ROOTS).join(rt.name);
    let script = "exec 3<\"$1\" 4<\"$1\"; shift; exec \"$@\"";
    let output = crate::cmd!(
        "/bin/sh", "-c", script, "sh", &secret, &rt.path, "--root", root
    )
    .args(["run", "--preserve-fds", "1", "--bundle"])
    .arg(&bundle.dir)
    .arg(&bundle.id)
    .ok()?;
    let text = output.stdout.as_str();
    ensure!(text.starts_with("three\n"), "{output}");
    // `ls` itself opens the directory, as 4.
    ensure!(
        text.lines().nth(1).is_some_and(|l| l.trim() == "0 1 2 3 4"),
        "open descriptors: {output}"
    );
    Ok(())
}

fn terminal_by_console_socket(world: &World, rt: &Runtime) -> Result<()> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::{
        io::{IoSliceMut, Read},
        mem::MaybeUninit,
        os::unix::net::UnixListener,
    };
    let mut bundle = bundle(world, &["/bin/sh", "-c", "tty; stty size; echo done"])?;
    bundle.set("/process/terminal", json!(true))?;
    bundle.set("/process/consoleSize", json!({ "height": 33, "width": 99 }))?;
    let path = bundle.dir.join("console.sock");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    rt.cmd("create")
        .arg("--bundle")
        .arg(&bundle.dir)
        .arg("--console-socket")
        .arg(&path)
        .arg(&bundle.id)
        .ok()?;
    listener.set_nonblocking(true)?;
    let (stream, _) = listener
        .accept()
        .context("the runtime did not connect to the console socket")?;
    let mut name = [0u8; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut name)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let terminal = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut terminal =
        fs::File::from(terminal.context("no terminal came over the console socket")?);
    rt.on("start", &bundle).ok()?;
    rt.wait_for(&bundle, "stopped")?;
    // the kernel hands over in pieces; with nobody at the other end the last one is followed by EIO
    let mut text = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(got @ 1..) = terminal.read(&mut piece) {
        text.extend_from_slice(&piece[..got]);
    }
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    ensure!(
        text.contains("/dev/") && text.contains("33 99") && text.contains("done"),
        "{text:?}"
    );
    rt.down(&bundle)
}

pub fn wait_until(done: impl Fn() -> Result<bool>) -> Result<()> {
    let since = std::time::Instant::now();
    while !done()? {
        ensure!(
            since.elapsed() < patient(Duration::from_secs(20)),
            "this did not come about within 20 s"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
