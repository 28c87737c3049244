//! Ways into a running container beside a plain `exec`: into a cgroup below its own, and with a pidfd
//! for the caller.

use crate::{Module, Test, drop_in::bundle, namespace, runtime::Runtime, world::World};
use anyhow::{Context, Result, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::{
    fs,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::PathBuf,
};

pub const MODULE: Module = Module {
    name: "enter",
    prepare: |world| world.rootfs(0).map(|_| ()),
    tests: &[
        Test::Each("exec_into_a_cgroup_below", exec_into_a_cgroup_below),
        Test::Ours("a_pidfd_for_the_caller", a_pidfd_for_the_caller),
    ],
};

fn exec_into_a_cgroup_below(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "100"])?;
    rt.up(&bundle)?;
    let done = try_cgroups(rt, &bundle.id, &rt.state(&bundle)?["pid"].to_string());
    rt.down(&bundle)?;
    done
}

fn try_cgroups(rt: &Runtime, id: &str, pid: &str) -> Result<()> {
    let unified = fs::exists("/sys/fs/cgroup/cgroup.controllers")?;
    let (hierarchy, argument) = match unified {
        true => ("", "below"),
        false => ("pids", "pids:below"),
    };
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let field = format!(":{hierarchy}:");
    let own = own.lines().find_map(|l| l.split_once(&field));
    let own = own.context("the container's cgroup")?.1.to_owned();
    let point = namespace::hierarchies()?
        .into_iter()
        .find(|p| unified || p.ends_with(hierarchy))
        .context("the hierarchy's mount point")?;
    let below: PathBuf = point.join(own.trim_start_matches('/')).join("below");
    let exec = |argument: &str| {
        let command = rt.cmd("exec").args(["--cgroup", argument, id]);
        command.args(["/bin/cat", "/proc/self/cgroup"]).output()
    };
    ensure!(exec(argument)?.code() != 0, "a cgroup that is not there");
    fs::create_dir(&below)?;
    let output = exec(argument)?;
    let line = format!("{field}{own}/below");
    ensure!(
        output.code() == 0 && output.stdout.lines().any(|l| l.ends_with(&line)),
        "no {line}: {output}"
    );
    let plain = exec("/")?;
    ensure!(
        plain.code() == 0 && !plain.stdout.contains("/below"),
        "{plain}"
    );
    if rt.backend.is_some() {
        // runc would join whatever the path leads to
        let output = exec("../elsewhere")?;
        ensure!(output.code() == 255, "{output}");
    }
    ensure!(
        exec("none_such:below")?.code() != 0,
        "an unknown controller"
    );
    fs::remove_dir(&below)?;
    Ok(())
}

/// runc knows `--pidfd-socket` since 1.2; attestrun sends the pidfd itself, whoever makes the process.
fn a_pidfd_for_the_caller(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = bundle(world, &["/bin/sleep", "100"])?;
    rt.up(&bundle)?;
    let path = bundle.dir.join("pidfd.sock");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let exec = |command: &[&str]| {
        let exec = rt.cmd("exec").arg("--pidfd-socket").arg(&path);
        exec.arg(&bundle.id).args(command).output()
    };
    let output = exec(&["/bin/sh", "-c", "echo here; exit 9"])?;
    rt.down(&bundle)?;
    ensure!(output.code() == 9 && output.stdout == "here\n", "{output}");
    let pidfd = received_pidfd(&listener)?;
    let link = fs::read_link(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&pidfd)
    ))?;
    ensure!(
        link.to_string_lossy().contains("pidfd"),
        "{}",
        link.display()
    );
    Ok(())
}

/// What came to a `--pidfd-socket`.
pub fn received_pidfd(listener: &UnixListener) -> Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0u8; 64];
    recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let received = ancillary.drain().find_map(|m| match m {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.context("no descriptor came")
}
