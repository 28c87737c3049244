//! Every process that attestrun starts: absolute paths, an empty environment, no inherited descriptor
//! but those named here.
#![allow(clippy::disallowed_methods)] // this is the room that the lint sends everybody to

use anyhow::{Context, Result};
use std::{
    fs::File,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

/// This very executable, so that one digest covers runtime, keeper, guard and host service.
const MYSELF: &str = "/proc/self/exe";

/// `attestrun WORDS` with `channel` as standard input; its complaints go where ours go.
pub fn myself(words: &[&str], channel: OwnedFd) -> Result<Child> {
    myself_complaining_to(words, channel, Stdio::inherit())
}

/// The same with its own file for complaints: our standard error is the container's, or the engine
/// waits for its end.
pub fn myself_logging(words: &[&str], channel: OwnedFd, log: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log);
    let log = log.with_context(|| format!("cannot open the log of `attestrun {}`", words.join(" ")))?;
    myself_complaining_to(words, channel, log.into())
}

fn myself_complaining_to(words: &[&str], channel: OwnedFd, complaints: Stdio) -> Result<Child> {
    Command::new(MYSELF)
        .arg0("attestrun")
        .args(words)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(channel))
        .stdout(Stdio::null())
        .stderr(complaints)
        .spawn()
        .with_context(|| format!("cannot start `attestrun {}`", words.join(" ")))
}

/// A container's TPM: no privilege, a uid of its own, the current directory as its state.
/// `arguments` name an inherited descriptor, which the caller opened without close-on-exec.
pub fn swtpm(program: &Path, arguments: &[std::ffi::OsString], uid: u32, log: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log).context("cannot open the log of swtpm")?;
    Command::new(program)
        .args(arguments)
        .env_clear()
        .uid(uid)
        .gid(uid)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start the vTPM {}", program.display()))
}

/// What `PROGRAM --version` prints.
pub fn version_of(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").env_clear().stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {} --version", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
