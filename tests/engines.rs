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
    host::POLICY,
    image::PAUSE,
    machine::patient,
    publisher::strings,
    runtime::Runtime,
    spawn::{Cmd, Output},
    world::World,
};
use anyhow::{Result, ensure};
use std::{
    fs,
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

/// `body` under a policy that admits this image with these arguments as what holds a pod.
pub fn with_sandbox(image: &str, args: &[&str], body: impl FnOnce() -> Result<()>) -> Result<()> {
    let entry = format!(
        "[[sandbox]]\nname = \"pause\"\nimages = [\"{image}\"]\nargs = {}\nenter = \"deny\"\nmin_tier = \"none\"\n",
        strings(args)
    );
    with_entry(&entry, body)
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
