//! A vTPM whose state is kept: the next container of that id finds what the last one left, or nothing
//! starts. An older state, another's, a lost or a torn one never pass, nor for a new one.

use super::{
    certificate::{STATE, configured},
    inside, with_bundle,
};
use crate::{
    attestation::{accepted, ours},
    deaths::new_processes,
    host::POLICY,
    runtime::{Bundle, Runtime},
    spawn::Cmd,
    world::World,
};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

const STATES: &str = "/var/lib/attestrun/vtpms";
const OFF: &str = "persistent = false";
const ON: &str = "persistent = true";

pub fn is_the_last_one(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let attestrun = world.program("attestrun")?;
    with_bundle(world, |bundle| {
        asks(bundle)?;
        let output = rt.create(bundle).output()?;
        ensure!(output.code() != 0, "{output}");
        output
            .says("this host keeps no vTPM's state (vtpm.persistent")
            .map(drop)
    })?;
    let prepare = || -> Result<()> {
        let output = Cmd::new(&attestrun).arg("host").output()?;
        ensure!(output.code() != 0, "{output}");
        output
            .says("vtpm-master")?
            .says("`attestrun setup` makes it")?;
        Cmd::new(&attestrun).arg("setup").ok()?;
        Cmd::new(&attestrun).arg("setup").ok()?; // and nothing changes
        Ok(())
    };
    let lives = || {
        attests(world, &rt)?;
        with_bundle(world, |bundle| {
            asks(bundle)?;
            let kept = Kept {
                world,
                rt: &rt,
                bundle,
            };
            let file = kept.finds_what_it_left()?;
            kept.refuses_other_states(&file)?;
            kept.refuses_a_torn_state(&file)
        })
    };
    let done = configured(world, OFF, ON, prepare, lives);
    let _ = fs::remove_dir_all(STATES);
    for name in ["vtpm-master", "vtpm-ledger"] {
        let _ = fs::remove_file(Path::new(STATE).join(name));
    }
    done
}

fn asks(bundle: &mut Bundle) -> Result<()> {
    bundle.config["annotations"] = json!({ "dev.attestrun.vtpm.persistent": "true" });
    bundle.write()
}

/// Each start is attested as itself: under a key of its own, in one boot's log.
fn attests(world: &World, rt: &Runtime) -> Result<()> {
    world.note(&world.rootfs(0)?.id);
    let mut bundle = Bundle::make(&world.work, &world.rootfs(0)?, &["/bin/sleep", "1000"])?;
    asks(&mut bundle)?;
    for _ in 0..3 {
        rt.up(&bundle).context("a start that is attested")?;
        accepted(world, &bundle.id)?;
        rt.down(&bundle)?;
    }
    Ok(())
}

struct Kept<'a> {
    world: &'a World,
    rt: &'a Runtime,
    bundle: &'a Bundle,
}

impl Kept<'_> {
    /// One life of the container; `script` must succeed in it.
    fn lives(&self, script: &str) -> Result<String> {
        self.rt
            .up(self.bundle)
            .with_context(|| format!("a life of {script}"))?;
        let output = inside(self.rt, self.bundle, script)?;
        ensure!(output.status.success(), "{output}");
        self.rt.down(self.bundle)?;
        Ok(output.stdout)
    }

    /// It does not come into being.
    fn refused(&self, words: &str) -> Result<()> {
        let output = self.rt.create(self.bundle).output()?;
        ensure!(output.code() != 0, "it was created, not {words}: {output}");
        output.says(words).map(drop)
    }

    /// The file of its state.
    fn finds_what_it_left(&self) -> Result<PathBuf> {
        let before = states()?;
        let ek = "tpm2 createek -Q -G ecc -c ek.ctx -u ek.pem -f pem; cat ek.pem";
        let first = self.lives(&format!(
            "tpm2 nvdefine -Q -s 4 0x1800001; echo -n once | tpm2 nvwrite -i- 0x1800001; \
             tpm2 pcrextend 12:sha256=abababababababababababababababababababababababababababababababab; {ek}"
        ))?;
        let file = states()?.into_iter().find(|file| !before.contains(file));
        let file = file.context("no state was kept")?;
        let bytes = fs::read(&file)?;
        ensure!(
            !bytes.windows(4).any(|at| at == b"once"),
            "it is not encrypted"
        );
        let again = self.lives(&format!(
            "test $(tpm2 nvread 0x1800001) = once; echo -n more | tpm2 nvwrite -i- 0x1800001; {ek}"
        ))?;
        ensure!(first == again, "another endorsement key: {first} {again}");
        // what was measured and extended is gone
        let pcrs = self.lives("test $(tpm2 nvread 0x1800001) = more; tpm2 pcrread sha256:12")?;
        ensure!(pcrs.contains(&"0".repeat(64)), "{pcrs}");
        // created and never started: nothing has changed
        self.rt.create(self.bundle).ok()?;
        self.rt.down(self.bundle)?;
        self.lives("test $(tpm2 nvread 0x1800001) = more")?;
        Ok(file)
    }

    fn refuses_other_states(&self, file: &Path) -> Result<()> {
        let ledger = Path::new(STATE).join("vtpm-ledger");
        let (older, older_ledger) = (fs::read(file)?, fs::read(&ledger)?);
        self.lives("echo -n last | tpm2 nvwrite -i- 0x1800001")?;
        let (last, last_ledger) = (fs::read(file)?, fs::read(&ledger)?);
        fs::write(file, &older)?;
        self.refused("is not the one that it was left in")?;
        // with the file that says which is the last one: the host TPM has counted
        fs::write(&ledger, &older_ledger)?;
        self.refused("is not the one that it was left in")?;
        self.world.stop("attestrun-agent")?;
        self.world.stop("attestrun-host")?;
        let output = Cmd::new(self.world.program("attestrun")?)
            .arg("host")
            .output()?;
        ensure!(output.code() != 0, "{output}");
        output.says("was put back")?;
        fs::write(&ledger, &last_ledger)?;
        self.world.start_services()?;
        for wrong in [&last[..last.len() - 1], &[]] {
            fs::write(file, wrong)?;
            self.refused("is not the one that it was left in")?;
        }
        fs::remove_file(file)?;
        self.refused("is missing")?;
        // another container's
        let before = states()?;
        let mut other = self.bundle.again();
        other.id = format!("{}-other", other.id);
        let another = Kept {
            bundle: &other,
            ..*self
        };
        another.lives("tpm2 getrandom --hex 8")?;
        let others = states()?.into_iter().find(|file| !before.contains(file));
        fs::copy(others.context("no state was kept")?, file)?;
        self.refused("is not the one that it was left in")?;
        fs::write(file, &last)?;
        self.refuses_another_owner()?;
        self.lives("test $(tpm2 nvread 0x1800001) = last").map(drop)
    }

    /// The same id, whoever gave it, does not make it the same owner's container.
    fn refuses_another_owner(&self) -> Result<()> {
        let text = fs::read_to_string(POLICY)?;
        let [head, tail] = ["user_ca = ", "enter = "].map(|key| text.rfind(key));
        let (head, tail) = (head.context("user_ca")?, tail.context("enter")?);
        let unlisted = format!(
            "{}programs = \"any\"\n{}",
            text.get(..head).context("head")?,
            text.get(tail..)
                .context("tail")?
                .replacen("enter = \"listed\"", "enter = \"any\"", 1)
        );
        fs::write(POLICY, unlisted)?;
        self.rt.create(self.bundle).ok()?;
        let output = self.rt.on("start", self.bundle).output()?;
        ensure!(output.code() != 0, "another owner's: {output}");
        output.says("and this container is one of rule tpm")?;
        self.rt.down(self.bundle)?;
        Ok(fs::write(POLICY, text)?)
    }

    fn refuses_a_torn_state(&self, file: &Path) -> Result<()> {
        let guards = new_processes("guard", || self.rt.up(self.bundle))?;
        for guard in guards {
            let _ = kill(Pid::from_raw(guard), Signal::SIGKILL);
        }
        self.rt.wait_for(self.bundle, "stopped")?;
        self.rt.down(self.bundle)?;
        self.refused("could say in which state it was left")?;
        let name = file.file_name().context("name")?;
        let copy = fs::read(file)?;
        let forget = || {
            Cmd::new(self.world.program("attestrun")?)
                .args(["host", "forget"])
                .arg(name)
                .output()
        };
        ensure!(forget()?.code() == 0, "{}", forget()?);
        ensure!(!file.exists(), "it is still there");
        forget()?.says("keeps no vTPM")?;
        // what was given up does not come back
        fs::write(file, copy)?;
        self.refused("is none that this host has kept for it")?;
        fs::remove_file(file)?;
        let script = "if tpm2 nvread 0x1800001 2> /dev/null; then exit 1; fi";
        self.lives(script).map(drop)
    }
}

fn states() -> Result<Vec<PathBuf>> {
    match fs::read_dir(STATES) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).context(STATES),
    }
}
