//! What one answer alone cannot show: a challenger who remembers earlier ones sees a TPM that went back, and
//! asks for what is new in the logs alone.

use crate::{
    Module, Test,
    attestation::{WAIVERS, accepted, answer, ours, refused, up},
    cmd,
    machine::{machine, patient},
    spawn::Output,
    world::{Skip, World},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

pub const MODULE: Module = Module {
    name: "memory",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(1).map(drop)
    },
    tests: &[
        Test::Once("only_what_is_new_travels", only_what_is_new_travels),
        Test::Once("a_quote_of_ones_own_is_given", a_quote_of_ones_own_is_given),
        Test::Once("a_fleet_is_watched", a_fleet_is_watched),
        Test::Once(
            "a_lost_memory_is_not_a_first_time",
            a_lost_memory_is_not_a_first_time,
        ),
        Test::Once("an_id_may_be_given_again", an_id_may_be_given_again),
        Test::Once(
            "a_host_tpm_that_went_back_is_refused",
            a_host_tpm_that_went_back_is_refused,
        ),
    ],
};

const AGENT: &str = "/run/attestrun-agent/challenge.sock";

fn file(world: &World) -> PathBuf {
    world.work.join("expectations.memory")
}

fn item(evidence: &Value, name: &str) -> Result<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let text = evidence[name][1]
        .as_str()
        .with_context(|| format!("no {name}"))?;
    Ok(URL_SAFE_NO_PAD.decode(text)?)
}

/// The agent's answer to a challenge with further fields.
fn asked(id: &str, more: &str) -> Result<Value> {
    let body = format!(
        "{{\"v\":1,\"nonce\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAA\",\"container\":\"{id}\",\"channel_binding\":\"none\"{more}}}"
    );
    let mut stream = UnixStream::connect(AGENT)?;
    write!(
        stream,
        "POST /v1/challenge HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    Ok(serde_json::from_str(body)?)
}

fn only_what_is_new_travels(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    accepted(world, &bundle.id)?;
    let kept: Value = serde_json::from_slice(&fs::read(world.work.join("evidence.json"))?)?;
    let (log, host) = (item(&kept, "container/log")?, item(&kept, "binding-log")?);
    rt.cmd("exec")
        .args([bundle.id.as_str(), "/bin/echo", "more"])
        .ok()?;
    let prefix = |log: &[u8]| json!({ "bytes": log.len(), "digest": chained(log) });
    let from = |log: &[u8]| {
        format!(
            ",\"has\":{}",
            json!({ "container": prefix(log), "host": prefix(&host) })
        )
    };
    let new = asked(&bundle.id, &from(&log))?;
    let more = item(&new, "container/log")?;
    ensure!(
        !more.is_empty() && more.len() < log.len(),
        "{} new bytes",
        more.len()
    );
    ensure!(
        item(&new, "binding-log")?.is_empty(),
        "nobody was bound since"
    );
    let whole = item(&asked(&bundle.id, "")?, "container/log")?;
    ensure!(
        whole == [log.clone(), more].concat(),
        "the parts are not the whole"
    );
    // A log that does not begin as the challenger knows it comes in full: that shows what became of it.
    let longer = [whole.clone(), vec![0]].concat();
    let mut other = log.clone();
    other[30] ^= 1;
    for known in [longer, other] {
        let cut = asked(&bundle.id, &from(&known))?;
        ensure!(item(&cut, "container/log")? == whole, "the whole log");
    }
    // attestctl remembers, asks for what is new alone, and says of the whole what it said before.
    let (first, all) = weighed(world, &bundle.id)?;
    for _ in 0..2 {
        rt.cmd("exec")
            .args([bundle.id.as_str(), "/bin/echo", "more"])
            .ok()?;
        let (next, some) = weighed(world, &bundle.id)?;
        ensure!(some * 2 < all, "{some} bytes after {all}");
        for known in ["executed", "image_name", "list_serial", "rule"] {
            let of = |said: &Value| said["container"]["measured"][known].clone();
            ensure!(of(&next) == of(&first) && !of(&next).is_null(), "{next}");
        }
    }
    // What it keeps is complete.
    let whole = item(&asked(&bundle.id, "")?, "container/log")?;
    accepted(world, &bundle.id)?;
    let kept: Value = serde_json::from_slice(&fs::read(world.work.join("evidence.json"))?)?;
    ensure!(item(&kept, "container/log")? == whole, "kept in full");
    rt.down(&bundle)
}

/// SHA-256 chained over blocks of 256 bytes, as the agent's document has it.
fn chained(log: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let h = log.chunks(256).fold([0; 32], |h: [u8; 32], block| {
        Sha256::new_with_prefix(h)
            .chain_update(block)
            .finalize()
            .into()
    });
    format!("sha256:{}", hex::encode(h))
}

/// An accepted answer, and how many bytes of it came over the agent's socket.
fn weighed(world: &World, id: &str) -> Result<(Value, u64)> {
    let socket = world.work.join("relay.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    let relay = thread::spawn(move || -> std::io::Result<u64> {
        let (mut asking, _) = listener.accept()?;
        let mut agent = UnixStream::connect(AGENT)?;
        let (mut from, mut to) = (asking.try_clone()?, agent.try_clone()?);
        thread::spawn(move || std::io::copy(&mut from, &mut to));
        std::io::copy(&mut agent, &mut asking)
    });
    let output = world
        .ctl()?
        .args(["--json", "challenge", "--memory"])
        .arg(world.work.join("relay.memory"))
        .arg("--socket")
        .arg(&socket)
        .arg("--policy")
        .arg(world.expectations(&WAIVERS)?)
        .arg(id)
        .output()?;
    ensure!(output.code() == 0, "{output}");
    let bytes = relay.join().map_err(|_| anyhow::anyhow!("the relay"))??;
    Ok((answer(&output)?, bytes))
}

fn a_quote_of_ones_own_is_given(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let output = world
        .ctl()?
        .args(["--json", "challenge", "--no-batch", "--policy"])
        .arg(world.expectations(&WAIVERS)?)
        .arg(&bundle.id)
        .output()?;
    ensure!(output.code() == 0, "{output}");
    let alone = item(&asked(&bundle.id, ",\"batch\":false")?, "batch")?;
    ensure!(alone == br#"{"index":0,"path":[],"size":1}"#, "{alone:?}");
    rt.down(&bundle)
}

/// One agent, all its containers: what changes is told, counted, and in the exit status.
fn a_fleet_is_watched(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundles = [up(world, &rt, 0)?, up(world, &rt, 1)?];
    let policy = world.expectations(&WAIVERS)?;
    let (fleet, metrics) = (world.work.join("fleet.toml"), world.work.join("fleet.prom"));
    let text = |containers: &str| {
        let policy = policy.display();
        format!(
            "policy = \"{policy}\"\n[[agents]]\nsocket = \"{AGENT}\"\ncontainers = {containers}\n"
        )
    };
    let watch = |rounds: &str| -> Result<(i32, Vec<Value>)> {
        let output = world
            .ctl()?
            .args(["--json", "watch", "--interval", "1", "--rounds", rounds])
            .arg("--fleet")
            .arg(&fleet)
            .arg("--textfile")
            .arg(&metrics)
            .output()?;
        let lines = output.stdout.lines().map(serde_json::from_str);
        let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
        ensure!(lines.last().is_some(), "{output}");
        Ok((output.code(), lines))
    };
    let counted = |line: &str| -> Result<()> {
        let text = fs::read_to_string(&metrics)?;
        ensure!(text.lines().any(|l| l == line), "{line}\n{text}");
        Ok(())
    };
    fs::write(&fleet, text("\"all\""))?;
    let (code, lines) = watch("2")?;
    ensure!(code == 0 && lines.len() == 3, "{code}: {lines:?}");
    ensure!(
        lines[1]["accepted"] == 2 && lines[1]["round"] == 2,
        "{lines:?}"
    );
    counted("attestrun_watch_containers{verdict=\"accepted\"} 2")?;
    // a program that is not listed: the container is refused from now on
    let denied = rt
        .cmd("exec")
        .args([bundles[0].id.as_str(), "/usr/local/bin/echo"])
        .output()?;
    ensure!(denied.code() != 0, "{denied}");
    let (code, lines) = watch("1")?;
    ensure!(code == 1, "{code}: {lines:?}");
    let change = &lines[0];
    ensure!(
        change["event"] == "change"
            && change["container"] == bundles[0].id.as_str()
            && change["checks"].to_string().contains("P-FAULT"),
        "{lines:?}"
    );
    counted("attestrun_watch_failed_checks{check=\"P-FAULT\"} 1")?;
    // nobody answers for a container that is named and is not there
    let named = json!([bundles[1].id, "not-there"]);
    fs::write(&fleet, text(&named.to_string()))?;
    let (code, lines) = watch("1")?;
    ensure!(code == 2, "{code}: {lines:?}");
    ensure!(
        lines[0]["verdict"] == "silent" && lines[1]["accepted"] == 1,
        "{lines:?}"
    );
    bundles.iter().try_for_each(|bundle| rt.down(bundle))
}

fn a_lost_memory_is_not_a_first_time(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    accepted(world, &bundle.id)?;
    let kept = fs::read(file(world))?;
    fs::write(file(world), vec![7; kept.len()])?;
    let output = world.challenge(&bundle.id, &world.expectations(&WAIVERS)?);
    fs::write(file(world), kept)?;
    let output = output?;
    ensure!(output.code() == 2, "{output}");
    output.says("memory")?;
    accepted(world, &bundle.id)?;
    rt.down(&bundle)
}

/// Engines and people give an id again: another vTPM, another log, and no reason to refuse.
fn an_id_may_be_given_again(world: &World) -> Result<()> {
    let rt = ours(world)?;
    for _ in 0..2 {
        let bundle = up(world, &rt, 0)?;
        let said = accepted(world, &bundle.id)?["findings"].to_string();
        ensure!(
            said.contains("its first answer"),
            "a new vTPM has no past: {said}"
        );
        rt.cmd("exec")
            .args([bundle.id.as_str(), "/bin/echo", "more"])
            .ok()?;
        let said = accepted(world, &bundle.id)?["findings"].to_string();
        ensure!(
            !said.contains("its first answer"),
            "it was asked before: {said}"
        );
        rt.down(&bundle)?;
    }
    Ok(())
}

/// The host's TPM is put back to an older state (a snapshot of a software root), with all that the host kept.
fn a_host_tpm_that_went_back_is_refused(world: &World) -> Result<()> {
    if machine().tpm {
        bail!(Skip("the TPM is a device here".to_owned()));
    }
    let rt = ours(world)?;
    let (tpm, copy) = (world.work.join("host-tpm"), world.work.join("host-tpm.old"));
    down(world)?;
    cmd!("cp", "-a", &tpm, &copy).ok()?;
    // Twice on, so that going back by one is no boot of its own.
    for _ in 0..2 {
        world.start_software_root()?;
        world.start_services()?;
        down(world)?;
    }
    world.start_software_root()?;
    world.start_services()?;
    let bundle = up(world, &rt, 0)?;
    settled(world, &bundle.id)?;
    let known = fs::read(file(world))?;
    rt.down(&bundle)?;
    down(world)?;
    fs::remove_dir_all(&tpm)?;
    cmd!("cp", "-a", &copy, &tpm).ok()?;
    // Its logs of the boots that "never were" go with it: host service and TPM agree again.
    let logs = fs::read_dir("/var/lib/attestrun/host")?
        .flatten()
        .map(|entry| entry.path());
    let is_log = |path: &Path| path.extension().is_some_and(|e| e == "log");
    for log in logs.filter(|path| is_log(path)) {
        fs::remove_file(log)?;
    }
    world.start_software_root()?;
    world.start_services()?;
    let bundle = up(world, &rt, 0)?;
    let output = settled(world, &bundle.id)?;
    let named = refused(&answer(&output)?);
    ensure!(output.code() == 1 && named.contains("Q-CLOCK"), "{output}");
    ensure!(
        fs::read(file(world))?.len() == known.len(),
        "an older state was remembered"
    );
    // Who never asked before cannot see it: that is what the memory is for.
    fs::remove_file(file(world))?;
    let output = settled(world, &bundle.id)?;
    ensure!(output.code() == 0, "{output}");
    rt.down(&bundle)?;
    fs::remove_dir_all(&copy)?;
    Ok(())
}

/// A TPM that was stopped without a shutdown does not trust its own clock for some seconds; then the answer.
fn settled(world: &World, id: &str) -> Result<Output> {
    let since = Instant::now();
    loop {
        let output = world.challenge(id, &world.expectations(&WAIVERS)?)?;
        if output.code() != 2 {
            return Ok(output);
        }
        ensure!(
            since.elapsed() < patient(Duration::from_secs(20)),
            "{output}"
        );
        thread::sleep(Duration::from_millis(200));
    }
}

fn down(world: &World) -> Result<()> {
    for daemon in ["attestrun-agent", "attestrun-host", "swtpm"] {
        world.stop(daemon)?;
    }
    Ok(())
}
