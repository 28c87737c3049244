//! What processes of a running container may execute (tier `fanotify`): what the list names, by content;
//! anything else fails with EPERM, is in the log, and shows in the challenge. Whoever answers for the
//! container may be stopped or killed: nothing runs for it.

use crate::{
    Module, Test,
    attestation::{WAIVERS, accepted, answer, refused},
    deaths::new_processes,
    drop_in::wait_until,
    image::UNLISTED,
    machine::patient,
    runtime::{Bundle, Runtime},
    spawn::Output,
    stock_tools::{log_of, shown},
    world::{Rootfs, World},
};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{fs, path::Path, thread, time::Duration};

pub const MODULE: Module = Module {
    name: "inside",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        Ok(())
    },
    tests: &[
        Test::Ours("what_the_list_names_runs", what_the_list_names_runs),
        Test::Ours(
            "what_the_list_does_not_name_is_refused",
            what_the_list_does_not_name_is_refused,
        ),
        Test::Ours(
            "a_changed_program_is_judged_again",
            a_changed_program_is_judged_again,
        ),
        Test::Ours("what_mounts_bring_is_judged", what_mounts_bring_is_judged),
        Test::Ours("no_guard_no_execution", no_guard_no_execution),
        Test::Ours("nobody_outlives_the_guard", nobody_outlives_the_guard),
        Test::Ours(
            "no_delete_waits_for_the_kernel",
            no_delete_waits_for_the_kernel,
        ),
        Test::Once("races_run_nothing_unlisted", races_run_nothing_unlisted),
        Test::Once("audit_mode_records_and_lets", audit_mode_records_and_lets),
        Test::Once("any_program_is_recorded", any_program_is_recorded),
        Test::Once("each_execution_is_recorded", each_execution_is_recorded),
        Test::Once("the_least_tier_is_demanded", the_least_tier_is_demanded),
    ],
};

/// execve failed with EPERM: how a shell says so, and its exit code.
const DENIED: (&str, i32) = ("Operation not permitted", 126);

fn shell(rt: &Runtime, bundle: &Bundle, script: &str) -> Result<Output> {
    let exec = rt.cmd("exec").arg(&bundle.id);
    exec.args(["/bin/sh", "-c", script]).output()
}

fn runs(rt: &Runtime, bundle: &Bundle, script: &str, says: &str) -> Result<()> {
    let output = shell(rt, bundle, script)?;
    ensure!(
        output.code() == 0 && output.stdout == says,
        "{script}: {output}"
    );
    Ok(())
}

fn denied(rt: &Runtime, bundle: &Bundle, script: &str) -> Result<()> {
    let output = shell(rt, bundle, script)?;
    ensure!(output.code() == DENIED.1, "{script}: {output}");
    output.says(DENIED.0)?;
    Ok(())
}

fn up(world: &World, rt: &Runtime) -> Result<Bundle> {
    crate::attestation::up(world, rt, 0)
}

/// A container that may write to a root file system of its own.
fn with_own(
    world: &World,
    rt: &Runtime,
    args: &[&str],
    body: impl FnOnce(&Bundle, &Rootfs) -> Result<()>,
) -> Result<()> {
    world.with_rootfs(&world.images()?.demo, |rootfs| {
        let mut bundle = Bundle::make(&world.work, rootfs, args)?;
        bundle.set("/root/readonly", json!(false))?;
        rt.up(&bundle)?;
        let done = body(&bundle, rootfs);
        rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
        done
    })
}

/// The log's events of this name.
fn events(world: &World, id: &str, name: &str) -> Result<Vec<Value>> {
    let mut all = shown(world, &log_of(id)?)?;
    all.retain(|event| event["event"] == name);
    Ok(all)
}

fn what_the_list_names_runs(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = up(world, rt)?;
    let before = events(world, &bundle.id, "attestrun.tier")?;
    ensure!(
        before.len() == 1 && before[0].to_string().contains("fanotify"),
        "{before:?}"
    );
    runs(rt, &bundle, "/bin/cat /etc/layer2 | /bin/wc -l", "1\n")?;
    // a copy of a listed program is that program
    let copy = "/bin/cat /bin/busybox > /dev/pwd && /bin/chmod 755 /dev/pwd && cd / && /dev/pwd";
    runs(rt, &bundle, copy, "/\n")?;
    let inside = events(world, &bundle.id, "attestrun.inside")?;
    ensure!(
        inside.len() == 1 && inside[0].to_string().contains("/dev/pwd"),
        "first uses: {inside:?}"
    );
    accepted(world, &bundle.id)?;
    rt.down(&bundle)
}

fn what_the_list_does_not_name_is_refused(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = up(world, rt)?;
    denied(rt, &bundle, &format!("{UNLISTED} ran"))?;
    denied(rt, &bundle, &format!("exec {UNLISTED} ran"))?;
    // on a tmpfs, a script with a listed interpreter, and through links
    let copy = format!("/bin/cat {UNLISTED} > /dev/echo; /bin/chmod 755 /dev/echo;");
    denied(rt, &bundle, &format!("{copy} /dev/echo ran"))?;
    let script = "printf '#!/bin/sh\\necho ran\\n' > /dev/s; /bin/chmod 755 /dev/s; /dev/s";
    denied(rt, &bundle, script)?;
    denied(rt, &bundle, "/proc/self/root/usr/local/bin/echo ran")?;
    runs(rt, &bundle, "/bin/true; echo still here", "still here\n")?;

    let inside = events(world, &bundle.id, "attestrun.inside")?;
    let faults = events(world, &bundle.id, "attestrun.fault")?;
    let names = |events: &[Value], path: &str| {
        let those = events.iter().filter(|e| e.to_string().contains(path));
        those.count()
    };
    for path in [UNLISTED, "/dev/echo", "/dev/s"] {
        ensure!(
            names(&inside, path) == 1 && names(&faults, path) == 1,
            "{path} once in {inside:?} and {faults:?}"
        );
    }
    let output = world.challenge(&bundle.id, &world.expectations(&WAIVERS)?)?;
    let answer = answer(&output)?;
    ensure!(
        output.code() == 1 && refused(&answer).contains("P-FAULT"),
        "{output}"
    );
    ensure!(answer.to_string().contains("/dev/echo"), "{answer}");
    rt.down(&bundle)
}

/// Without a new measurement an allowed file could be overwritten with anything.
fn a_changed_program_is_judged_again(world: &World, rt: &Runtime) -> Result<()> {
    with_own(world, rt, &["/bin/sleep", "1000"], |bundle, rootfs| {
        let make = "/bin/cat /bin/busybox > /root/pwd && /bin/chmod 755 /root/pwd";
        runs(rt, bundle, &format!("{make}; cd /; /root/pwd"), "/\n")?;
        runs(rt, bundle, "cd /; /root/pwd; /root/pwd", "/\n/\n")?;
        for (what, change) in [
            ("appended", "printf x >> /root/pwd"),
            ("made anew", "/bin/cat /usr/local/bin/echo > /root/pwd"),
            (
                "in place",
                "printf x | /bin/dd of=/root/pwd bs=1 seek=99 conv=notrunc 2>/dev/null",
            ),
        ] {
            runs(rt, bundle, &format!("{make}; cd /; /root/pwd"), "/\n")?;
            denied(rt, bundle, &format!("{change}; /root/pwd")).context(what)?;
        }
        // by the host, through the mount
        runs(rt, bundle, &format!("{make}; cd /; /root/pwd"), "/\n")?;
        let program = rootfs.path.join("root/pwd");
        let mut bytes = fs::read(&program)?;
        bytes.push(0);
        fs::write(&program, bytes)?;
        denied(rt, bundle, "/root/pwd")?;
        // an unlisted program under a listed one's name
        let hide = "/bin/cat /usr/local/bin/echo > /root/x; /bin/chmod 755 /root/x";
        denied(rt, bundle, &format!("{hide}; /root/x"))
    })
}

fn what_mounts_bring_is_judged(world: &World, rt: &Runtime) -> Result<()> {
    crate::launch::allowing(&["mount:*"], || {
        let volume = world.work.join("volume");
        fs::create_dir_all(&volume)?;
        let rootfs = world.rootfs(0)?;
        for (name, from) in [("pwd", "bin/busybox"), ("echo", &UNLISTED[1..])] {
            fs::copy(rootfs.path.join(from), volume.join(name))?;
        }
        let mut bundle = Bundle::make(&world.work, &rootfs, &["/bin/sleep", "1000"])?;
        world.note(&bundle.id);
        let mut mounts = bundle.config["mounts"].clone();
        let options = json!(["rbind", "rw"]);
        let mount =
            json!({ "destination": "/var", "type": "bind", "source": volume, "options": options });
        mounts.as_array_mut().context("mounts")?.push(mount);
        bundle.set("/mounts", mounts)?;
        rt.up(&bundle)?;
        let done = runs(rt, &bundle, "cd /; /var/pwd", "/\n")
            .and_then(|()| denied(rt, &bundle, "/var/echo ran"))
            // the host's own use of the same files is nobody's business
            .and_then(|()| crate::cmd!(volume.join("echo"), "here").ok().map(drop));
        rt.down(&bundle)?;
        done
    })
}

/// While the guard stands still nobody runs, and when it dies nobody has run.
fn no_guard_no_execution(world: &World, rt: &Runtime) -> Result<()> {
    for (signal, lives) in [(Signal::SIGCONT, true), (Signal::SIGKILL, false)] {
        let wait = format!(
            "/bin/cat {UNLISTED} > /root/touch; /bin/chmod 755 /root/touch; \
             until test -e /root/go; do /bin/sleep 0.05; done; /root/touch /root/ran; echo > /root/tried; /bin/sleep 1000"
        );
        let mut guards = Vec::new();
        world.with_rootfs(&world.images()?.demo, |rootfs| {
            let mut bundle = Bundle::make(&world.work, rootfs, &["/bin/sh", "-c", &wait])?;
            bundle.set("/root/readonly", json!(false))?;
            guards.extend(new_processes("guard", || rt.up(&bundle))?);
            let at = |name: &str| rootfs.path.join("root").join(name);
            wait_until(|| Ok(at("touch").exists()))?;
            thread::sleep(patient(Duration::from_millis(200)));
            let init = rt.state(&bundle)?["pid"].as_i64().context("pid")?;
            let tell = |signal| {
                let guards = guards.iter().map(|pid| Pid::from_raw(*pid));
                guards.for_each(|pid| {
                    let _ = kill(pid, signal);
                });
            };
            tell(Signal::SIGSTOP);
            fs::write(at("go"), "")?;
            thread::sleep(patient(Duration::from_secs(1)));
            let waits = !at("ran").exists() && !at("tried").exists();
            tell(signal);
            ensure!(waits, "a program ran while the guard stood still");
            let gone = || !Path::new(&format!("/proc/{init}")).exists();
            match lives {
                true => wait_until(|| Ok(at("tried").exists()))?,
                false => wait_until(|| Ok(gone()))?,
            }
            ensure!(!at("ran").exists(), "an unlisted program ran");
            ensure!(gone() != lives, "the container lives: {}", !lives);
            rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
            Ok(())
        })?;
    }
    Ok(())
}

/// In a pid namespace that is not the container's own, others go on when init ends.
fn nobody_outlives_the_guard(world: &World, rt: &Runtime) -> Result<()> {
    let leave = format!(
        "/bin/cat {UNLISTED} > /root/touch; /bin/chmod 755 /root/touch; echo > /root/left; \
         (until test -e /root/go; do /bin/sleep 0.05; done; /root/touch /root/ran; echo > /root/tried) &"
    );
    let others = ["mount:*", "namespace:*", "device:*"];
    let run = |rootfs: &Rootfs| {
        let mut bundle = Bundle::make(&world.work, rootfs, &["/bin/sh", "-c", &leave])?;
        bundle.set("/root/readonly", json!(false))?;
        let mut namespaces = bundle.config["linux"]["namespaces"].clone();
        let all = namespaces.as_array_mut().context("namespaces")?;
        all.retain(|n| n["type"] != "pid");
        bundle.set("/linux/namespaces", namespaces)?;
        rt.up(&bundle)?;
        let at = |name: &str| rootfs.path.join("root").join(name);
        wait_until(|| Ok(at("left").exists()))?;
        wait_until(|| Ok(rt.state(&bundle)?["status"] == "stopped"))?;
        thread::sleep(patient(Duration::from_millis(500)));
        fs::write(at("go"), "")?;
        thread::sleep(patient(Duration::from_millis(500)));
        let found = ["ran", "tried"].map(|name| at(name).exists());
        rt.cmd("delete").args(["--force", &bundle.id]).ok()?;
        ensure!(found == [false, false], "after the end: {found:?}");
        Ok(())
    };
    crate::launch::allowing(&others, || world.with_rootfs(&world.images()?.demo, run))
}

/// Who closes a group of fanotify events last waits some 20 ms: the host service does, for keeper and guard.
fn no_delete_waits_for_the_kernel(world: &World, rt: &Runtime) -> Result<()> {
    let holders = || -> Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let at = |name: &str| entry.path().join(name);
            let descriptors = fs::read_dir(at("fd")).into_iter().flatten().flatten();
            let mut links = descriptors.filter_map(|fd| fs::read_link(fd.path()).ok());
            if links.any(|link| link == Path::new("anon_inode:[fanotify]")) {
                let name = fs::read(at("cmdline")).unwrap_or_default();
                all.push(String::from_utf8_lossy(&name).replace('\0', " "));
            }
        }
        all.sort();
        Ok(all)
    };
    let before = holders()?;
    let bundle = up(world, rt)?;
    let mut held = holders()?;
    held.retain(|name| !before.contains(name));
    let by = |who: &str| held.iter().any(|name| name.contains(who));
    ensure!(
        held.len() == 3 && by("guard") && by("keeper") && by("attestrun-host"),
        "{held:?}"
    );
    rt.down(&bundle)?;
    wait_until(|| Ok(holders()? == before))
}

/// Two loops replace a program's content while it is executed again and again.
fn races_run_nothing_unlisted(world: &World) -> Result<()> {
    let rt = crate::attestation::ours(world)?;
    with_own(world, &rt, &["/bin/sleep", "1000"], |bundle, _| {
        let race = format!(
            "cd /root; /bin/cat /bin/busybox > good; /bin/chmod 755 good; \
             /bin/cat {UNLISTED} > bad; /bin/chmod 755 bad; \
             write() {{ while test ! -e stop; do /bin/cat good > echo; /bin/cat bad > echo; done; }}; \
             swap() {{ n=$1; while test ! -e stop; do /bin/cat good > $n; /bin/chmod 755 $n; \
               /bin/cat bad > $n.b; /bin/chmod 755 $n.b; done; }}; \
             /bin/cat good > echo; /bin/chmod 755 echo; write & swap pwd & \
             i=0; ran=0; while test $i -lt 150; do i=$((i+1)); ./echo x >/dev/null 2>&1 && ran=$((ran+1)); \
               ./pwd >/dev/null 2>&1; ./pwd.b >/dev/null 2>&1 && echo unlisted ran; done; : > stop; wait; echo done"
        );
        let output = shell(&rt, bundle, &race)?;
        ensure!(output.stdout == "done\n", "{output}");
        let allowed = events(world, &bundle.id, "attestrun.inside")?;
        let unlisted = crate::image::digest(&fs::read("/bin/busybox")?);
        let strange = allowed.iter().filter(|e| {
            let text = e.to_string();
            text.contains("allowed") && !text.contains(&unlisted)
        });
        let strange: Vec<_> = strange.collect();
        ensure!(strange.is_empty(), "{strange:?}");
        Ok(())
    })
}

fn audit_mode_records_and_lets(world: &World) -> Result<()> {
    let rt = crate::attestation::ours(world)?;
    crate::policy::under(&crate::host::policy("audit"), || {
        let bundle = up(world, &rt)?;
        runs(&rt, &bundle, &format!("{UNLISTED} ran"), "ran\n")?;
        let waived = [&WAIVERS[..], &["audit"]].concat();
        let output = world.challenge(&bundle.id, &world.expectations(&waived)?)?;
        // audited, and still not on the list
        ensure!(
            output.code() == 1 && refused(&answer(&output)?).contains("P-UNLISTED"),
            "{output}"
        );
        let faults = events(world, &bundle.id, "attestrun.fault")?;
        ensure!(
            faults.len() == 1 && faults[0].to_string().contains("audited"),
            "{faults:?}"
        );
        rt.down(&bundle)
    })
}

fn any_program_is_recorded(world: &World) -> Result<()> {
    let rt = crate::attestation::ours(world)?;
    let kept = fs::read_to_string(crate::host::POLICY)?;
    let lists = ["user_ca", "tenant", "list", "min_serial", "revocation"];
    let is_list = |line: &&str| {
        !lists
            .iter()
            .any(|key| line.starts_with(&format!("{key} =")))
    };
    let lines: Vec<_> = kept.lines().filter(is_list).collect();
    let any = lines
        .join("\n")
        .replace("[rule.launch]", "programs = \"any\"\n\n[rule.launch]")
        .replace("enter = \"listed\"", "enter = \"any\"");
    crate::policy::under(&any, || {
        let bundle = up(world, &rt)?;
        runs(&rt, &bundle, &format!("{UNLISTED} ran"), "ran\n")?;
        let inside = events(world, &bundle.id, "attestrun.inside")?;
        ensure!(
            inside.len() == 1 && inside[0].to_string().contains(UNLISTED),
            "{inside:?}"
        );
        rt.down(&bundle)
    })
}

fn each_execution_is_recorded(world: &World) -> Result<()> {
    let rt = crate::attestation::ours(world)?;
    for (exec_log, wanted) in [("first", 0..=1), ("every", 3..=9)] {
        let tier = "min_tier = \"none\"";
        let wish = format!("{tier}\nexec_log = \"{exec_log}\"");
        let policy = crate::host::policy("enforce").replace(tier, &wish);
        crate::policy::under(&policy, || {
            let bundle = up(world, &rt)?;
            let thrice = "/bin/pwd >/dev/null; /bin/pwd >/dev/null; /bin/pwd";
            runs(&rt, &bundle, &format!("cd /; {thrice}"), "/\n")?;
            let denials = format!("{UNLISTED}; {UNLISTED}; /bin/true");
            runs(&rt, &bundle, &denials, "")?;
            let log = events(world, &bundle.id, "attestrun.inside")?;
            let about = |word: &str| log.iter().filter(|e| e.to_string().contains(word)).count();
            ensure!(about("\"denied\"") == 1, "{log:?}");
            let output = world.challenge(&bundle.id, &world.expectations(&WAIVERS)?)?;
            ensure!(refused(&answer(&output)?).contains("P-FAULT"), "{output}");
            rt.down(&bundle)?;
            // as the kernel sees it: an applet's link leads to one file
            let seen = about("/bin/busybox");
            ensure!(wanted.contains(&seen), "{seen}, not {wanted:?}: {log:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn the_least_tier_is_demanded(world: &World) -> Result<()> {
    let rt = crate::attestation::ours(world)?;
    let demanding =
        |policy: String| policy.replace("min_tier = \"none\"", "min_tier = \"fanotify\"");
    let policy = demanding(crate::host::policy("enforce"));
    crate::policy::under(&policy, || {
        let bundle = up(world, &rt)?;
        rt.down(&bundle)
    })?;
    // a directory that is no file system of its own cannot be watched
    let plain = world.work.join("plain");
    crate::cmd!("cp", "-a", world.rootfs(0)?.path, &plain).ok()?;
    let entry = format!(
        "version = 1\nmode = \"enforce\"\n[[bundle]]\nname = \"plain\"\nrootfs = \"{}\"\ncontent = \"any\"\n\
         programs = \"any\"\nenter = \"any\"\nmin_tier = \"none\"\n",
        plain.display()
    );
    let rootfs = Rootfs {
        id: "e2e-inside-plain".to_owned(),
        path: plain.clone(),
    };
    world.note(&rootfs.id);
    let bundle = Bundle::make(&world.work, &rootfs, &["/bin/sleep", "1000"])?;
    crate::policy::under(&entry, || {
        rt.up(&bundle)?;
        let tier = events(world, &bundle.id, "attestrun.tier")?;
        rt.down(&bundle)?;
        ensure!(
            tier.len() == 1 && tier[0].to_string().contains("none"),
            "{tier:?}"
        );
        Ok(())
    })?;
    crate::policy::under(&demanding(entry), || {
        let output = rt.create(&bundle).output()?;
        crate::policy::refused(&output)?;
        output
            .says("min_tier is `fanotify`")?
            .says("no overlay of its own")?;
        Ok(())
    })?;
    fs::remove_dir_all(&plain)?;
    Ok(())
}
