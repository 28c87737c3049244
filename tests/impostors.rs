//! Who wants to be believed without being what is believed: an id used again, another key of the same
//! TPM, a container's TPM in the host's place, users that are near the host's TPM.

use crate::{
    Module, Test,
    attestation::{Kept, answer, ours, refused, up},
    cmd,
    host::TCTI,
    machine::machine,
    world::{Skip, World},
};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};
use std::fs;

pub const MODULE: Module = Module {
    name: "impostors",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Once("an_id_used_again_is_another_container", an_id_used_again),
        Test::Once("a_containers_tpm_is_not_the_hosts", a_containers_tpm),
        Test::Once("software_is_not_hardware", software_is_not_hardware),
        Test::Once(
            "another_key_of_the_hosts_tpm_speaks_for_nobody",
            another_key,
        ),
        Test::Once("nobody_else_binds", nobody_else_binds),
    ],
};

/// The judge's checks that said no.
fn refusals(
    kept: &Kept,
    world: &World,
    evidence: &Value,
) -> Result<std::collections::BTreeSet<String>> {
    let output = kept.judge(world, evidence)?;
    ensure!(output.code() == 1, "accepted: {output}");
    Ok(refused(&answer(&output)?))
}

/// The same name, bundle, image and list; what the first one said does not speak for the second.
fn an_id_used_again(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let one = up(world, &rt, 0)?;
    let first = Kept::take(world, &one.id)?;
    rt.down(&one)?;
    let two = up(world, &rt, 0)?;
    ensure!(one.id == two.id, "another id");
    let second = Kept::take(world, &two.id)?;
    for item in ["container/ak", "container/ek", "binding"] {
        ensure!(
            first.evidence[item] != second.evidence[item],
            "{item} came again"
        );
    }
    for item in first.items() {
        if first.evidence[&item] != second.evidence[&item] {
            let mut mixed = second.evidence.clone();
            mixed[&item] = first.evidence[&item].clone();
            refusals(&second, world, &mixed).with_context(|| item.clone())?;
        }
    }
    // all of the first container, under the host's quote of now
    let mut mixed = second.evidence.clone();
    for item in first
        .items()
        .iter()
        .filter(|i| !i.starts_with("host/") && *i != "binding-log")
    {
        mixed[item] = first.evidence[item].clone();
    }
    let why = refusals(&second, world, &mixed)?;
    ensure!(
        why.contains("B-LIVE"),
        "its end is not what it is refused for: {why:?}"
    );
    rt.down(&two)
}

/// A container's key where the host's belongs: its quotes are real, and its TPM is an swtpm as well.
fn a_containers_tpm(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let kept = Kept::take(world, &bundle.id)?;
    let mut all = kept.evidence.clone();
    for part in ["ak", "attest", "sig"] {
        let (from, to) = (format!("container/{part}"), format!("host/{part}"));
        let mut one = kept.evidence.clone();
        one[&to] = kept.evidence[&from].clone();
        all[&to] = kept.evidence[&from].clone();
        refusals(&kept, world, &one).context(to)?;
    }
    let why = refusals(&kept, world, &all)?;
    ensure!(why.contains("K-HAK"), "{why:?}");
    rt.down(&bundle)
}

fn software_is_not_hardware(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let kept = Kept::take(world, &bundle.id)?;
    let mut claimed = kept.evidence.clone();
    claimed["host/root"][1] = json!(BASE64URL.encode("hardware"));
    refusals(&kept, world, &claimed)?;
    rt.down(&bundle)
}

/// Whoever may open the host's TPM can make keys there and have true PCRs quoted with them, over whatever
/// data; and the key that is pinned is none of these.
fn another_key(world: &World) -> Result<()> {
    if machine().tpm {
        return Err(Skip("the emulated machine's TPM is held by its kernel".into()).into());
    }
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let kept = Kept::take(world, &bundle.id)?;
    let attest = kept.evidence["host/attest"][1]
        .as_str()
        .context("host/attest")?;
    let attest = BASE64URL.decode(attest)?;
    let data = extra_data(&attest).context("TPMS_ATTEST")?;
    let dir = world.work.join("forger");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let tool = |name: &str| cmd!(name).cwd(&dir).arg(format!("--tcti={TCTI}"));
    let flush = || tool("tpm2_flushcontext").arg("-t").ok().map(drop);
    world.stop("attestrun-agent")?;
    world.stop("attestrun-host")?; // its keys are loaded, and the TPM has room for three
    let forged = || -> Result<()> {
        tool("tpm2_createek")
            .args(["-Q", "-G", "ecc", "-c", "ek.ctx"])
            .ok()?;
        flush()?;
        let ak = [
            "-C", "ek.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-c", "ak.ctx", "-u",
            "ak.pub",
        ];
        tool("tpm2_createak").args(["-Q"]).args(ak).ok()?;
        flush()?;
        let all = "sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,13";
        let quote =
            tool("tpm2_quote").args(["-Q", "-c", "ak.ctx", "-l", all, "-m", "msg", "-s", "sig"]);
        quote.args(["-q", &hex::encode(&data)]).ok()?;
        flush()
    };
    let done = forged();
    world.start_services()?;
    done?;
    let mut evidence = kept.evidence.clone();
    for (item, file) in [
        ("host/ak", "ak.pub"),
        ("host/attest", "msg"),
        ("host/sig", "sig"),
    ] {
        evidence[item][1] = json!(BASE64URL.encode(fs::read(dir.join(file))?));
    }
    // by nothing else: the quote itself is a good one
    let why = refusals(&kept, world, &evidence)?;
    ensure!(why == ["K-HAK".to_owned()].into(), "{why:?}");
    rt.down(&bundle)
}

/// TPMS_ATTEST.extraData: behind magic, type and qualified signer (Part 2, 10.12.12).
fn extra_data(attest: &[u8]) -> Option<Vec<u8>> {
    let sized = |at: usize| {
        let size = usize::from(u16::from_be_bytes(attest.get(at..at + 2)?.try_into().ok()?));
        Some((at + 2 + size, attest.get(at + 2..at + 2 + size)?.to_vec()))
    };
    let (after_signer, _) = sized(6)?;
    sized(after_signer).map(|(_, data)| data)
}

/// Neither the agent's user nor one of the group that may open TPMs reaches what binds.
fn nobody_else_binds(_: &World) -> Result<()> {
    let groups = fs::read_to_string("/etc/group")?;
    let tss = groups
        .lines()
        .find_map(|line| line.strip_prefix("tss:x:")?.split(':').next());
    let mut users = vec![("64999", "64999"), ("65534", "64999")];
    users.extend(tss.map(|gid| ("65534", gid)));
    for (uid, gid) in users {
        let user = || {
            let user = cmd!(
                "setpriv",
                "--clear-groups",
                "--no-new-privs",
                "--bounding-set=-all"
            );
            user.arg(format!("--reuid={uid}"))
                .arg(format!("--regid={gid}"))
        };
        for path in [
            "/run/attestrun-host/control.sock",
            "/var/lib/attestrun/host/aik",
        ] {
            for access in ["-r", "-w"] {
                let output = user().args(["test", access, path]).output()?;
                ensure!(output.code() == 1, "{uid}:{gid} {access} {path}: {output}");
            }
        }
        // the same words of one who may
        cmd!("test", "-r", "/var/lib/attestrun/host/aik").ok()?;
    }
    Ok(())
}
