//! What the host's TPM signs beside challenges: the certificate of a vTPM's endorsement key, and the quote
//! over a binding record. Neither is made unless the configuration says so.

use super::{inside, with_tools};
use crate::{
    admission::restoring,
    attestation::{Kept, accepted, ours, up},
    cmd,
    host::CONFIG,
    machine::patient,
    runtime::Bundle,
    spawn::Cmd,
    world::World,
};
use anyhow::{Context, Result, anyhow, ensure};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL},
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use verify::{
    digest::RecordDigest,
    pcr::HOST_QUOTED,
    qualify,
    tpm2::{AttestationKey, Public, verify_quote},
};

pub const STATE: &str = "/var/lib/attestrun/host";
const OFF: &str = "ek_certificate = false";
const ON: &str = "ek_certificate = true";

/// The host with `to` in place of `from` in its configuration, its services started anew after `prepare`.
pub fn configured(
    world: &World,
    from: &str,
    to: &str,
    prepare: impl FnOnce() -> Result<()>,
    body: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stop = || {
        world.stop("attestrun-agent")?;
        world.stop("attestrun-host")
    };
    let done = restoring(CONFIG, || {
        let text = fs::read_to_string(CONFIG)?;
        ensure!(text.contains(from), "the configuration has no `{from}`");
        stop()?;
        fs::write(CONFIG, text.replace(from, to))?;
        prepare()?;
        world.start_services()?;
        body()
    });
    stop()?;
    world.start_services()?;
    done
}

/// The certificate is in the vTPM before the container's first process is; others' programs read it
/// there and lead it to the CA that `attestrun setup` printed.
pub fn is_the_hosts(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let dir = world.work.join("vtpm-ca");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let attestrun = world.program("attestrun")?;
    let setup = || -> Result<()> {
        // a host that is to certify and cannot does not start
        let output = Cmd::new(&attestrun).arg("host").output()?;
        ensure!(output.code() != 0, "{output}");
        output.says("vtpm-ca")?.says("`attestrun setup` makes it")?;
        let said = Cmd::new(&attestrun).arg("setup").ok()?.stdout;
        let facts: Value = serde_json::from_str(&said)?;
        fs::write(
            dir.join("ca.pem"),
            facts["vtpm_ca"].as_str().context("vtpm_ca")?,
        )?;
        let again = Cmd::new(&attestrun).arg("setup").ok()?.stdout;
        let again: Value = serde_json::from_str(&again)?;
        ensure!(again["vtpm_ca"] == facts["vtpm_ca"], "another CA: {again}");
        Ok(())
    };
    let lives = || {
        with_tools(world, &rt, |bundle| {
            let script = "
                tpm2 nvread -o nv.der 0x1c0000a
                tpm2 getekcertificate -o ek.der
                tpm2 createek -Q -G ecc -c ek.ctx -u ek.pem -f pem";
            let output = inside(&rt, bundle, script)?;
            ensure!(output.status.success(), "{output}");
            let root = format!("/proc/{}/root/tmp", rt.state(bundle)?["pid"]);
            for name in ["nv.der", "ek.der", "ek.pem"] {
                fs::copy(Path::new(&root).join(name), dir.join(name))?;
            }
            ensure!(
                fs::read(dir.join("nv.der"))? == fs::read(dir.join("ek.der"))?,
                "two certificates"
            );
            belongs(&dir, &bundle.id)?;
            for command in [
                "tpm2 nvundefine 0x1c0000a",
                "echo mine | tpm2 nvwrite -i- 0x1c0000a",
                "echo mine | tpm2 nvwrite -C o -i- 0x1c0000a",
            ] {
                let output = inside(&rt, bundle, command)?;
                ensure!(!output.status.success(), "{command}: {output}");
                let said = output.stderr.to_ascii_lowercase();
                ensure!(said.contains("0xb0146"), "{command}: {output}");
            }
            Ok(())
        })?;
        let bundle = up(world, &rt, 0)?;
        accepted(world, &bundle.id)?;
        rt.down(&bundle)
    };
    // a host service that was started before does not know of it
    let bundle = Bundle::make(&world.work, &world.rootfs(0)?, &["/bin/true"])?;
    world.note(&world.rootfs(0)?.id);
    restoring(CONFIG, || {
        let text = fs::read_to_string(CONFIG)?;
        fs::write(CONFIG, text.replace(OFF, ON))?;
        let output = rt.create(&bundle).output()?;
        ensure!(output.code() != 0, "{output}");
        output.says("restart it").map(drop)
    })?;
    let done = configured(world, OFF, ON, setup, lives);
    for name in ["vtpm-ca", "vtpm-ca.pem"] {
        let _ = fs::remove_file(Path::new(STATE).join(name));
    }
    done
}

/// openssl: the certificate is the CA's, for this container's key.
fn belongs(dir: &Path, id: &str) -> Result<()> {
    let openssl = |words: &str| cmd!("openssl").cwd(dir).args(words.split_whitespace());
    openssl("x509 -inform DER -in nv.der -out cert.pem").ok()?;
    openssl("verify -x509_strict -CAfile ca.pem cert.pem")
        .ok()?
        .says("OK")?;
    openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout x.key -out x.pem -subj /CN=x")
        .ok()?;
    let other = openssl("verify -CAfile x.pem cert.pem").output()?;
    ensure!(other.code() != 0, "anybody's CA: {other}");
    let key = openssl("x509 -in cert.pem -noout -pubkey").ok()?.stdout;
    ensure!(
        key.trim() == fs::read_to_string(dir.join("ek.pem"))?.trim(),
        "another key's: {key}"
    );
    let text = openssl("x509 -in cert.pem -noout -text").ok()?;
    text.says(&format!("CN = {id}"))?
        .says("2.23.133.2.1=id:49424D00")?
        .says("Key Agreement")?
        .says("2.23.133.8.1")?;
    Ok(())
}

/// `binding_quote = "create"`: without a challenge, the host's key signs the record and its PCRs.
pub fn a_record_is_quoted_at_once(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let early = |id: &str| -> Result<Option<Value>> {
        for entry in fs::read_dir(STATE)?.flatten() {
            if entry.path().extension().is_none_or(|e| e != "quotes") {
                continue;
            }
            for line in fs::read_to_string(entry.path())?.lines() {
                let line: Value = serde_json::from_str(line)?;
                if line["container"] == id {
                    return Ok(Some(line));
                }
            }
        }
        Ok(None)
    };
    let unwanted = up(world, &rt, 0)?;
    rt.down(&unwanted)?;
    ensure!(early(&unwanted.id)?.is_none(), "nobody wanted it");
    let lives = || {
        let bundle = up(world, &rt, 0)?;
        let since = Instant::now();
        let line = loop {
            match early(&bundle.id)? {
                Some(line) => break line,
                None => ensure!(
                    since.elapsed() < patient(Duration::from_secs(10)),
                    "no quote"
                ),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        // the challenge afterwards is the judge of the key, and says what the record is
        let kept = Kept::take(world, &bundle.id)?;
        let ak = kept.evidence["host/ak"][1].as_str().context("host/ak")?;
        let ak = AttestationKey::check(&Public::parse_2b(&BASE64URL.decode(ak)?)?)?;
        let item = |name: &str| -> Result<Vec<u8>> {
            Ok(BASE64.decode(line[name].as_str().context("an item")?)?)
        };
        let r = line["record"].as_str().and_then(RecordDigest::from_hex);
        let r = r.context("record")?;
        let (attest, signature) = (item("attest")?, item("signature")?);
        let data = qualify::binding_quote(&r);
        let quoted = verify_quote(&ak, &attest, &signature, &data, &HOST_QUOTED)
            .map_err(|why| anyhow!("{why:?}"))?;
        let mut pcrs = [[0; 32]; HOST_QUOTED.len()];
        for (text, value) in line["pcrs"]
            .as_array()
            .context("pcrs")?
            .iter()
            .zip(&mut pcrs)
        {
            hex::decode_to_slice(text.as_str().context("a PCR")?, value)?;
        }
        quoted.explains(&pcrs)?;
        let other = qualify::binding_quote(&RecordDigest::from_bytes([7; 32]));
        ensure!(
            verify_quote(&ak, &attest, &signature, &other, &HOST_QUOTED).is_err(),
            "it covers any record"
        );
        rt.down(&bundle)
    };
    configured(
        world,
        "binding_quote = \"challenge\"",
        "binding_quote = \"create\"",
        || Ok(()),
        lives,
    )
}
