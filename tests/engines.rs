//! The image through real engines, unchanged: Docker, podman, containerd's ctr and CRI, buildah; each on
//! plain runc too, which says what is right. One engine, one file.

pub mod buildah;
pub mod containerd;
pub mod cri;
pub mod docker;
pub mod hooks;
pub mod init;
pub mod podman;
pub mod restarts;
pub mod userns;

use crate::{
    admission::restoring,
    attestation::WAIVERS,
    host::POLICY,
    image::{Image, PAUSE},
    machine::patient,
    publisher::strings,
    runtime::Runtime,
    spawn::{Cmd, Output},
    world::World,
};
use anyhow::{Result, ensure};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Each engine runs once with plain runc: directories that it makes at its first run are no leftovers.
pub fn warm(world: &World) -> Result<()> {
    world.open_for_business()?;
    world.docker()?; // and with it containerd
    world.rootfs(0)?; // and with it podman
    let runc = Runtime::runc();
    let demo = world.images()?.demo.name.as_str();
    world
        .podman_run(&runc, "run")?
        .args(["--rm", demo, "/bin/true"])
        .ok()?;
    containerd::run(world, &runc, "e2e-warm", &[])?
        .arg("/bin/true")
        .ok()?;
    docker::run(world, &runc)?
        .args(["--rm", demo, "/bin/true"])
        .ok()?;
    Ok(())
}

/// A name for a container of this engine, watched by the leftover checker.
pub fn name(world: &World, engine: &str, rt: &Runtime) -> String {
    let name = format!("e2e-{engine}-{}", rt.name.replace('+', "-"));
    world.note(&name);
    name
}

/// What attestrun says no to and runc does.
pub fn refused_by_us(rt: &Runtime, output: &Output, words: &str) -> Result<()> {
    if rt.backend.is_none() {
        ensure!(output.code() == 0, "runc does this: {output}");
        return Ok(());
    }
    ensure!(output.code() != 0, "this should be refused: {output}");
    output.says("refused: ")?.says(words)?;
    Ok(())
}

pub fn same(output: &Output, code: i32, stdout: &str) -> Result<()> {
    ensure!(
        output.code() == code && output.stdout.replace('\r', "") == stdout,
        "expected {code}, {stdout:?}: {output}"
    );
    Ok(())
}

/// Both streams and an exit status.
pub const SPEAK: [&str; 3] = ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"];

/// `command` at a terminal of its own (script(1)), which types `input`.
pub fn at_terminal(world: &World, command: &Cmd, input: &str) -> Result<Output> {
    let typed = world.work.join("typed");
    fs::write(&typed, input)?;
    Cmd::new("script")
        .args(["--quiet", "--return", "--command"])
        .arg(command.quoted())
        .arg("/dev/null")
        .stdin(&typed)
        .output()
}

/// An interactive shell that proves what it is attached to; ends with 7.
pub const TYPED: &str = "test -t 0 && test -t 1 && echo term''inal; stty size; exit 7\n";

/// A shell at a terminal did what [`TYPED`] says.
pub fn was_interactive(output: &Output) -> Result<()> {
    ensure!(output.code() == 7, "the shell's own exit status: {output}");
    output.says("\nterminal|\rterminal")?;
    Ok(())
}

/// `body` under a policy that admits the pause image as what holds a pod.
pub fn with_pause(world: &World, body: impl FnOnce() -> Result<()>) -> Result<()> {
    with_sandbox(&world.images()?.pause.manifest, &[PAUSE], body)
}

/// A pod without a network plugin has the host's network.
pub const HOST_NETWORK: [&str; 2] = ["namespace:network", "namespace:uts"];

/// `body` under a policy that admits this image with these arguments as what holds a pod; and such pods'
/// containers.
pub fn with_sandbox(image: &str, args: &[&str], body: impl FnOnce() -> Result<()>) -> Result<()> {
    let entry = format!(
        "[[sandbox]]\nname = \"pause\"\nimages = [\"{image}\"]\nargs = {}\nenter = \"deny\"\nmin_tier = \"none\"\n\
         [sandbox.launch]\nallow = {}\n",
        strings(args),
        strings(&HOST_NETWORK)
    );
    crate::launch::allowing(&HOST_NETWORK, || with_entry(&entry, body))
}

/// `body` under a policy that has this entry too.
pub fn with_entry(entry: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    restoring(POLICY, || {
        fs::write(POLICY, fs::read_to_string(POLICY)? + entry)?;
        body()
    })
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let since = Instant::now();
    while !done()? {
        ensure!(
            since.elapsed() < patient(Duration::from_secs(30)),
            "{what}: not in time"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The sandbox is accepted by whoever waives that it is one; the member by whoever accepts its sandbox
/// too, whose namespaces it joins.
pub fn pod_is_accepted(world: &World, sandbox: &str, member: &str) -> Result<()> {
    let images = world.images()?;
    let rootfs = |image: &Image| -> Result<String> {
        let digest = world.ctl()?.args(["image", "manifest", "--digest"]);
        Ok(digest.arg(&image.layout).ok()?.stdout.trim().to_owned())
    };
    let waive: Vec<_> = WAIVERS.iter().chain(&["sandbox"]).copied().collect();
    let text = fs::read_to_string(world.expectations(&waive)?)?
        .replace(&images.demo.manifest, &images.pause.manifest)
        .replace(&rootfs(&images.demo)?, &rootfs(&images.pause)?);
    let of_sandbox = world.work.join("sandbox.toml");
    let shared = |text: &str| crate::launch::with_names(text, &HOST_NETWORK);
    fs::write(&of_sandbox, shared(&text)?)?;
    let of_member = world.expectations(&WAIVERS)?;
    fs::write(&of_member, shared(&fs::read_to_string(&of_member)?)?)?;
    let ask = |peer: Option<&Path>, policy: &Path, id: &str| -> Result<Output> {
        let mut ask = world
            .ctl()?
            .args(["--json", "challenge", "--policy"])
            .arg(policy);
        if let Some(policy) = peer {
            ask = ask.arg(format!("--peer={sandbox}={}", policy.display()));
        }
        ask.arg(id).output()
    };
    let outcome = |code: i32, output: Output| {
        ensure!(output.code() == code, "{output}");
        Ok(output)
    };
    outcome(0, ask(None, &of_sandbox, sandbox)?)?;
    let alone = outcome(2, ask(None, &of_member, member)?)?;
    alone.says("C-PEER")?.says(sandbox)?;
    outcome(0, ask(Some(&of_sandbox), &of_member, member)?)?;
    // the peer must be what somebody expects, too
    outcome(1, ask(Some(&of_member), &of_member, member)?)?;
    judged_again_offline(world, [&of_sandbox, &of_member], sandbox, member)
}

/// The same from files: a member that was kept is accepted with its peer's evidence, and not without.
fn judged_again_offline(
    world: &World,
    [of_sandbox, of_member]: [&Path; 2],
    sandbox: &str,
    member: &str,
) -> Result<()> {
    let file = world.work.join("member.cmw");
    let peer = |policy: &Path| format!("--peer={sandbox}={}", policy.display());
    let ask = world.ctl()?.args(["--json", "challenge", "--save"]);
    let ask = ask.arg(&file).arg("--policy").arg(of_member);
    let kept: serde_json::Value =
        serde_json::from_str(&ask.arg(peer(of_sandbox)).arg(member).ok()?.stdout)?;
    let text =
        |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let word = |policy: &Path, evidence: String| {
        let of = &kept["peers"][0];
        format!(
            "--peer=container={sandbox},policy={},evidence={evidence},nonce={},asked-at={},channel-binding={}",
            policy.display(),
            text(of, "nonce"),
            text(of, "asked_at"),
            text(of, "channel_binding")
        )
    };
    let again = |peer: Option<String>, code: i32| -> Result<Output> {
        let appraise = world.ctl()?.args(["--json", "appraise", "--policy"]);
        let appraise = appraise.arg(of_member).args([
            format!("--container={member}"),
            format!("--nonce={}", text(&kept, "nonce")),
            format!("--asked-at={}", text(&kept, "asked_at")),
            format!("--channel-binding={}", text(&kept, "channel_binding")),
        ]);
        let output = appraise.args(peer).arg(&file).output()?;
        ensure!(output.code() == code, "{code} expected: {output}");
        Ok(output)
    };
    let evidence = text(&kept["peers"][0], "evidence");
    again(Some(word(of_sandbox, evidence.clone())), 0)?;
    again(None, 2)?.says("C-PEER")?;
    // by another policy, and with other evidence under its nonce
    again(Some(word(of_member, evidence)), 1)?;
    let member_file = file.display().to_string();
    again(Some(word(of_sandbox, member_file)), 1)?;
    Ok(())
}
