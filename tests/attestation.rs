//! A challenge is answered and accepted; and whatever somebody changes, replays or puts in another's
//! place is refused, by the check whose matter it is.

use crate::{
    Module, Test,
    image::UNLISTED,
    runtime::{Backend, Bundle, Runtime},
    spawn::Output,
    world::World,
};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "attestation",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(1)?;
        crate::engines::warm(world)
    },
    tests: &[
        Test::Ours("a_challenge_is_accepted", a_challenge_is_accepted),
        Test::Ours(
            "containers_of_each_engine_are_accepted",
            containers_of_each_engine_are_accepted,
        ),
        Test::Once("waivers_must_be_named", waivers_must_be_named),
        Test::Once("no_changed_item_is_accepted", no_changed_item_is_accepted),
        Test::Once("no_replay_is_accepted", no_replay_is_accepted),
        Test::Once(
            "no_other_containers_items_are_accepted",
            no_other_containers_items_are_accepted,
        ),
        Test::Once("expectations_decide", expectations_decide),
        Test::Once("a_denied_exec_shows", a_denied_exec_shows),
        Test::Once("audit_mode_shows", audit_mode_shows),
        Test::Once("the_dead_do_not_answer", the_dead_do_not_answer),
        Test::Once("other_peoples_tools_agree", other_peoples_tools_agree),
    ],
};

/// What the tests' host needs waived: a software root, no IMA list, no stricter tier.
pub const WAIVERS: [&str; 3] = ["software-root", "no-ima", "tier-fanotify"];

pub fn ours(world: &World) -> Result<Runtime> {
    Ok(Runtime::attestrun(
        &world.program("attestrun")?,
        Backend::Libcontainer,
    ))
}

pub fn up(world: &World, rt: &Runtime, n: usize) -> Result<Bundle> {
    let rootfs = world.rootfs(n)?;
    world.note(&rootfs.id);
    let bundle = Bundle::make(&world.work, &rootfs, &["/bin/sleep", "1000"])?;
    rt.up(&bundle)?;
    Ok(bundle)
}

/// The JSON answer of attestctl.
pub fn answer(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output}"))
}

/// Checks that did not pass, by name.
pub fn refused(answer: &Value) -> BTreeSet<String> {
    let findings = answer["findings"].as_array().cloned().unwrap_or_default();
    let bad = findings.iter().filter(|f| f["outcome"] == "refused");
    bad.filter_map(|f| f["check"].as_str().map(str::to_owned))
        .collect()
}

pub fn accepted(world: &World, id: &str) -> Result<Value> {
    accepted_by(world, id, &world.expectations(&WAIVERS)?)
}

/// The answer to a challenger who expects this, and waives [`WAIVERS`] alone.
pub fn accepted_by(world: &World, id: &str, expectations: &Path) -> Result<Value> {
    let output = world.challenge(id, expectations)?;
    let answer = answer(&output)?;
    if output.code() != 0 {
        let findings = answer["findings"].as_array().cloned().unwrap_or_default();
        let bad: Vec<_> = findings
            .iter()
            .filter(|f| !["ok", "waived"].contains(&f["outcome"].as_str().unwrap_or("")))
            .collect();
        bail!(
            "the challenge was not accepted ({}): {bad:#?} {}",
            output.code(),
            answer["error"]
        );
    }
    let findings = answer["findings"].as_array().context("findings")?;
    ensure!(findings.len() > 30, "few checks were made: {answer}");
    let mut waived: Vec<_> = answer["waived"].as_array().context("waived")?.clone();
    // which algorithms the kernel has is its own story (lists::kernel)
    waived.retain(|waiver| waiver != "kernel-keys");
    waived.sort_by_key(ToString::to_string);
    let mut named = WAIVERS.map(|w| json!(w)).to_vec();
    named.sort_by_key(ToString::to_string);
    ensure!(waived == named, "waived: {waived:?}");
    Ok(answer)
}

fn a_challenge_is_accepted(world: &World, rt: &Runtime) -> Result<()> {
    let bundle = up(world, rt, 0)?;
    accepted(world, &bundle.id)?;
    rt.cmd("exec")
        .args([bundle.id.as_str(), "/bin/echo", "a listed program"])
        .ok()?;
    accepted(world, &bundle.id).context("after an exec of a listed program")?;
    // For people: the tree and the verdict.
    let text = world
        .ctl()?
        .args(["challenge", "--policy"])
        .arg(world.expectations(&WAIVERS)?)
        .arg(&bundle.id)
        .ok()?;
    for word in ["software", "Q-SIG", "P-SIGLIST", "waived", "accepted"] {
        text.says(word)?;
    }
    rt.down(&bundle)
}

fn containers_of_each_engine_are_accepted(world: &World, rt: &Runtime) -> Result<()> {
    let demo = world.images()?.demo.name.as_str();
    let sleep = ["/bin/sleep", "1000"];
    let podman = world
        .podman_run(rt, "run")?
        .args(["-d", demo])
        .args(sleep)
        .ok()?
        .stdout;
    let podman = podman.trim().to_owned();
    world.note(&podman);
    accepted(world, &podman).context("podman")?;
    world
        .podman()?
        .args(["rm", "-f", "-t", "0", &podman])
        .ok()?;

    let id = "e2e-challenged";
    world.note(id);
    world
        .ctr()?
        .args(["run", "-d", "--runc-binary"])
        .arg(&rt.path)
        .args([demo, id])
        .args(sleep)
        .ok()?;
    let done = accepted(world, id).context("ctr");
    world.ctr()?.args(["task", "rm", "--force", id]).ok()?;
    world.ctr()?.args(["container", "rm", id]).ok()?;
    done?;

    let runtime = format!("--runtime=e2e-{}", rt.name);
    let docker = world
        .docker()?
        .args(["run", "-d", "--network=none", &runtime, demo])
        .args(sleep)
        .ok()?
        .stdout;
    let docker = docker.trim().to_owned();
    world.note(&docker);
    let done = accepted(world, &docker).context("docker");
    world.docker()?.args(["rm", "-f", &docker]).ok()?;
    done.map(|_| ())
}

fn waivers_must_be_named(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    for (left_out, check) in [
        ("software-root", "H-ROOT"),
        ("no-ima", "P-HOST"),
        ("tier-fanotify", "T-TIER"),
    ] {
        let named: Vec<_> = WAIVERS.into_iter().filter(|w| *w != left_out).collect();
        let output = world.challenge(&bundle.id, &world.expectations(&named)?)?;
        ensure!(
            [1, 2].contains(&output.code()),
            "accepted without {left_out}: {output}"
        );
        let answer = answer(&output)?;
        let findings = answer["findings"].as_array().context("findings")?;
        let is_bad = |f: &Value| {
            f["check"] == check && (f["outcome"] == "refused" || f["outcome"] == "unknown")
        };
        ensure!(
            findings.iter().any(is_bad),
            "{check} does not say that {left_out} is not waived: {answer}"
        );
    }
    rt.down(&bundle)
}

/// Evidence that was kept, and what was asked for it.
#[derive(Clone)]
pub struct Kept {
    pub evidence: Value,
    nonce: String,
    asked_at: String,
    pub id: String,
    expectations: PathBuf,
}

impl Kept {
    pub fn take(world: &World, id: &str) -> Result<Self> {
        Self::of(world, id, &accepted(world, id)?)
    }
    /// What the last challenge was answered.
    pub fn of(world: &World, id: &str, answer: &Value) -> Result<Self> {
        let text = |key: &str| {
            answer[key]
                .as_str()
                .map(str::to_owned)
                .context("nonce, asked_at")
        };
        Ok(Self {
            evidence: serde_json::from_slice(&fs::read(world.work.join("evidence.json"))?)?,
            nonce: text("nonce")?,
            asked_at: text("asked_at")?,
            id: id.to_owned(),
            expectations: world.work.join("expectations.toml"),
        })
    }
    pub fn judge(&self, world: &World, evidence: &Value) -> Result<Output> {
        let file = world.work.join("judged.json");
        fs::write(&file, evidence.to_string())?;
        self.judge_file(world, &file)
    }
    fn judge_file(&self, world: &World, file: &Path) -> Result<Output> {
        let appraise = world.ctl()?.args(["--json", "appraise"]);
        appraise.args(self.asked()).arg(file).output()
    }
    /// What was asked, as words of a command line.
    pub fn asked(&self) -> Vec<String> {
        let policy = self.expectations.display().to_string();
        let words = [
            ("nonce", &self.nonce),
            ("container", &self.id),
            ("asked-at", &self.asked_at),
            ("policy", &policy),
        ];
        words
            .map(|(key, value)| format!("--{key}={value}"))
            .to_vec()
    }
    /// Names of the items.
    pub fn items(&self) -> Vec<String> {
        let all = self
            .evidence
            .as_object()
            .map(|o| o.keys().cloned().collect::<Vec<_>>())
            .unwrap_or_default();
        all.into_iter()
            .filter(|k| k.contains('/') || k.starts_with("binding") || k.starts_with("siglist"))
            .collect()
    }
}

pub fn decode(item: &Value) -> Result<Vec<u8>> {
    Ok(BASE64URL.decode(
        item[1]
            .as_str()
            .context("an item is [type, base64url, …]")?,
    )?)
}

fn no_changed_item_is_accepted(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let kept = Kept::take(world, &bundle.id)?;
    rt.down(&bundle)?;
    let again = kept.judge(world, &kept.evidence)?;
    ensure!(again.code() == 0, "kept evidence, judged again: {again}");
    let items = kept.items();
    ensure!(items.len() >= 12, "items: {items:?}");
    let mut expected: Vec<(&str, &str)> = vec![
        ("host/sig", "Q-SIG"),
        ("container/sig", "Q-SIG"),
        ("siglist.sig", "P-SIGLIST"),
        ("container/log", "L-REPLAY|L-PARSE"),
        ("binding", "B-HASH|L-PARSE|Q-QD"),
        ("binding-log", "B-LIVE|L-REPLAY|L-PARSE"),
    ];
    for item in &items {
        let bytes = decode(&kept.evidence[item])?;
        // A byte at the start, in the middle, and the last one.
        for at in [0, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            let mut changed = bytes.clone();
            match changed.get_mut(at) {
                Some(byte) => *byte ^= 1,
                None => changed.push(1), // a kernel without IMA shows nothing
            }
            let mut evidence = kept.evidence.clone();
            evidence[item][1] = json!(BASE64URL.encode(&changed));
            let output = kept.judge(world, &evidence)?;
            ensure!(
                output.code() == 1,
                "{item}, byte {at} of {} changed: {output}",
                bytes.len()
            );
            output.says_not("panicked")?;
            if at == bytes.len() / 2
                && let Some(n) = expected.iter().position(|(name, _)| name == item)
            {
                let (_, checks) = expected.remove(n);
                let named = answer(&output).map(|a| refused(&a)).unwrap_or_default();
                ensure!(
                    named.iter().any(|c| checks.split('|').any(|e| e == c)) || named.is_empty(),
                    "{item} changed: expected {checks} among {named:?}"
                );
            }
        }
        let mut evidence = kept.evidence.clone();
        evidence.as_object_mut().context("object")?.remove(item);
        let output = kept.judge(world, &evidence)?;
        ensure!(output.code() != 0, "without {item}: {output}");
    }
    ensure!(
        expected.is_empty(),
        "items that are not in the evidence: {expected:?}"
    );
    let file = world.work.join("judged.json");
    for nonsense in [
        &b""[..],
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"{\"__cmwc_t\":\"tag:attestrun,2026:evidence/v1\"}",
    ] {
        fs::write(&file, nonsense)?;
        let output = kept.judge_file(world, &file)?;
        ensure!(output.code() == 1, "{output}");
        output.says_not("panicked")?;
    }
    Ok(())
}

fn no_replay_is_accepted(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let mut kept = Kept::take(world, &bundle.id)?;
    let good = kept.nonce.clone();
    kept.nonce = BASE64URL.encode([7u8; 20]);
    let output = kept.judge(world, &kept.evidence)?;
    ensure!(
        output.code() == 1 && refused(&answer(&output)?).contains("Q-QD"),
        "another nonce: {output}"
    );
    kept.nonce = good;
    let (asked, id) = (kept.asked_at.clone(), kept.id.clone());
    kept.asked_at = "2024-01-01T00:00:00Z".to_owned();
    let output = kept.judge(world, &kept.evidence)?;
    ensure!(
        output.code() == 1 && refused(&answer(&output)?).contains("T-AGE"),
        "an old answer: {output}"
    );
    kept.asked_at = asked;
    kept.id = "somebody-else".to_owned();
    let output = kept.judge(world, &kept.evidence)?;
    ensure!(
        output.code() == 1 && refused(&answer(&output)?).contains("B-ID"),
        "another container: {output}"
    );
    kept.id = id;
    rt.down(&bundle)
}

fn no_other_containers_items_are_accepted(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let (one, two) = (up(world, &rt, 0)?, up(world, &rt, 1)?);
    let first = Kept::take(world, &one.id)?;
    let second = Kept::take(world, &two.id)?;
    for item in first.items() {
        if first.evidence[&item] == second.evidence[&item] {
            continue; // what they share: host key, list
        }
        let mut mixed = first.evidence.clone();
        mixed[&item] = second.evidence[&item].clone();
        let output = first.judge(world, &mixed)?;
        ensure!(output.code() == 1, "{item} of another container: {output}");
    }
    // The whole vTPM of the other one, honestly quoted.
    let mut mixed = first.evidence.clone();
    for item in first.items().iter().filter(|i| i.starts_with("container/")) {
        mixed[item] = second.evidence[item].clone();
    }
    let output = first.judge(world, &mixed)?;
    ensure!(output.code() == 1, "another container's vTPM: {output}");
    rt.down(&one)?;
    rt.down(&two)
}

fn expectations_decide(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let good = world.expectations(&WAIVERS)?;
    let text = fs::read_to_string(&good)?;
    let path = world.work.join("other-expectations.toml");
    let line = |key: &str| {
        text.lines()
            .find(|l| l.starts_with(key))
            .unwrap_or_default()
            .to_owned()
    };
    let nobody = format!("[\"sha256:{}\"]", "0".repeat(64));
    for (key, value, check) in [
        ("images", nobody.as_str(), "B-IMG"),
        ("policies", &nobody, "P-POLICY"),
        ("runtimes", &nobody, "P-RUNTIME"),
        ("swtpms", &nobody, "P-RUNTIME"),
        ("rootfs", &nobody, "P-ROOTFS"),
        ("enter", "\"deny\"", "P-MODE"),
        ("tenant", "\"spiffe://e2e.example/tenant/other\"", "P-CERT"),
        ("min_serial", "1000", "P-SIGLIST"),
        ("args", "[[\"/bin/true\"]]", "C-ARGS"),
        ("env", "[\"NOTHING\"]", "C-ENV"),
        ("ak_name", &format!("\"000b{}\"", "0".repeat(64)), "K-HAK"),
    ] {
        let old = line(&format!("{key} ="));
        ensure!(!old.is_empty(), "no {key} in the expectations");
        fs::write(&path, text.replace(&old, &format!("{key} = {value}")))?;
        let output = world.challenge(&bundle.id, &path)?;
        ensure!(output.code() == 1, "{key} = {value}: {output}");
        let named = refused(&answer(&output)?);
        ensure!(
            named.contains(check),
            "{key} = {value}: expected {check} among {named:?}"
        );
    }
    // Another user CA.
    let stranger = crate::publisher::Publisher::make(
        &world.program("attestctl")?,
        world.work.join("other-ca"),
    )?;
    let ca = format!("user_ca = [\"{}\"]", stranger.at("ca/ca.pem").display());
    fs::write(&path, text.replace(&line("user_ca ="), &ca))?;
    let output = world.challenge(&bundle.id, &path)?;
    ensure!(output.code() == 1, "{output}");
    // A challenger's own mistakes are no verdict about the container.
    for wrong in ["images = []", "nonsense = 1"] {
        fs::write(
            &path,
            format!("{wrong}\n{}", text.replace(&line("images ="), "")),
        )?;
        let output = world.challenge(&bundle.id, &path)?;
        ensure!(![0, 1].contains(&output.code()), "{wrong}: {output}");
    }
    rt.down(&bundle)
}

fn a_denied_exec_shows(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    rt.cmd("exec")
        .args([bundle.id.as_str(), UNLISTED, "x"])
        .fails()?;
    let output = world.challenge(&bundle.id, &world.expectations(&WAIVERS)?)?;
    ensure!(output.code() == 1, "{output}");
    let named = refused(&answer(&output)?);
    ensure!(named.contains("P-FAULT"), "{named:?}");
    rt.down(&bundle)
}

fn audit_mode_shows(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let kept = fs::read(crate::host::POLICY)?;
    fs::write(crate::host::POLICY, crate::host::policy("audit"))?;
    let done = (|| -> Result<()> {
        let bundle = up(world, &rt, 0)?;
        let output = world.challenge(&bundle.id, &world.expectations(&WAIVERS)?)?;
        ensure!(
            output.code() == 1 && refused(&answer(&output)?).contains("P-MODE"),
            "{output}"
        );
        let output = world.challenge(
            &bundle.id,
            &world.expectations(&[&WAIVERS[..], &["audit"]].concat())?,
        )?;
        ensure!(output.code() == 0, "audit is waived by name: {output}");
        rt.down(&bundle)
    })();
    fs::write(crate::host::POLICY, kept)?;
    done
}

fn the_dead_do_not_answer(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let expectations = world.expectations(&WAIVERS)?;
    accepted(world, &bundle.id)?;
    rt.on("kill", &bundle).arg("KILL").ok()?;
    rt.wait_for(&bundle, "stopped")?;
    let output = world.challenge(&bundle.id, &expectations)?;
    ensure!(output.code() == 2, "a stopped container: {output}");
    rt.down(&bundle)?;
    let output = world.challenge(&bundle.id, &expectations)?;
    ensure!(output.code() == 2, "a deleted container: {output}");
    let output = world.challenge("never-there", &expectations)?;
    ensure!(output.code() == 2, "an unknown container: {output}");
    let nobody = world
        .ctl()?
        .args(["challenge", "--socket", "/run/nobody.sock", "--policy"])
        .arg(&expectations);
    nobody.arg(&bundle.id).exits(2)?.says("/run/nobody.sock")?;
    Ok(())
}

/// TPM2B_PUBLIC of an ECC P-256 key -> SubjectPublicKeyInfo in PEM, for tpm2-tools (RFC 5480).
fn ecc_pem(public_2b: &[u8]) -> Result<String> {
    // The area ends with the point: TPM2B x, TPM2B y, 32 bytes each.
    let Some(point) = public_2b
        .len()
        .checked_sub(68)
        .and_then(|at| public_2b.get(at..))
    else {
        bail!("the key is too short");
    };
    ensure!(
        point[..2] == [0, 32] && point[34..36] == [0, 32],
        "no P-256 point at the end of the key"
    );
    let head = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
    let der = [&hex::decode(head)?[..], &[4], &point[2..34], &point[36..]].concat();
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    Ok(format!(
        "-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"
    ))
}

/// tpm2_checkquote verifies both quotes, over the qualifying data that they carry.
fn other_peoples_tools_agree(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let kept = Kept::take(world, &bundle.id)?;
    rt.down(&bundle)?;
    for who in ["host", "container"] {
        let at = |name: &str| world.work.join(format!("quote-{who}.{name}"));
        let attest = decode(&kept.evidence[format!("{who}/attest")])?;
        fs::write(at("attest"), &attest)?;
        fs::write(at("sig"), decode(&kept.evidence[format!("{who}/sig")])?)?;
        fs::write(
            at("pem"),
            ecc_pem(&decode(&kept.evidence[format!("{who}/ak")])?)?,
        )?;
        // TPMS_ATTEST: magic 4, type 2, qualifiedSigner TPM2B, extraData TPM2B.
        let signer = usize::from(u16::from_be_bytes([attest[6], attest[7]]));
        let extra = &attest[8 + signer..];
        let extra = &extra[2..2 + usize::from(u16::from_be_bytes([extra[0], extra[1]]))];
        let check = crate::cmd!(
            "tpm2_checkquote",
            "-g",
            "sha256",
            "-q",
            hex::encode(extra),
            "-u",
            at("pem")
        );
        check
            .arg("-m")
            .arg(at("attest"))
            .arg("-s")
            .arg(at("sig"))
            .ok()
            .context(who)?;
        let other = crate::cmd!(
            "tpm2_checkquote",
            "-g",
            "sha256",
            "-q",
            "00".repeat(32),
            "-u",
            at("pem")
        );
        other
            .arg("-m")
            .arg(at("attest"))
            .arg("-s")
            .arg(at("sig"))
            .fails()
            .context(who)?;
    }
    Ok(())
}
