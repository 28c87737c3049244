//! Which devices a container may open: from its start, after its limits were changed, and after the
//! service manager has set up its cgroups anew. On plain runc too.

use crate::{
    Module, Test, cmd, machine::machine, runtime::Bundle, runtime::Runtime, spawn::Output,
    world::World,
};
use anyhow::{Context, Result, ensure};

pub const MODULE: Module = Module {
    name: "devices",
    prepare: |world| world.rootfs(0).map(|_| ()),
    tests: &[Test::Each("the_rules_hold", the_rules_hold)],
};

/// The nodes are made from outside: the rules are about opening them.
fn the_rules_hold(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = crate::drop_in::bundle(world, &["/bin/sleep", "1000"])?;
    rt.up(&bundle)?;
    let init = rt.state(&bundle)?["pid"].as_i64().context("pid")?;
    for (name, minor) in [("null", "3"), ("kmsg", "11")] {
        let node = format!("/proc/{init}/root/dev/e2e-{name}");
        cmd!("mknod", "--mode=0600", node, "c", "1", minor).ok()?;
    }
    let holding = || {
        rules_hold(rt, &bundle).context("from the start")?;
        let update = rt.cmd("update").args(["--pids-limit", "77", &bundle.id]);
        update.ok()?;
        rules_hold(rt, &bundle).context("after an update")?;
        if machine().systemd {
            cmd!("systemctl", "daemon-reload").ok()?;
            rules_hold(rt, &bundle).context("after a reload of systemd")?;
        }
        Ok(())
    };
    let held = holding();
    rt.down(&bundle)?;
    held
}

fn rules_hold(rt: &Runtime, bundle: &Bundle) -> Result<()> {
    let open = |name: &str| -> Result<Output> {
        let device = format!("if=/dev/e2e-{name}");
        let exec = rt.cmd("exec").arg(&bundle.id);
        exec.args(["/bin/dd", &device, "count=0"]).output()
    };
    let allowed = open("null")?;
    ensure!(allowed.status.success(), "every container may: {allowed}");
    let denied = open("kmsg")?;
    ensure!(!denied.status.success(), "no rule allows this: {denied}");
    denied.says("Operation not permitted")?;
    Ok(())
}
