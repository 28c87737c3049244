//! Other people's verifiers on our containers' evidence: Keylime's own functions replay a log and check its
//! quote, and its verifier, asked over HTTPS, accepts a container and refuses what was changed; the
//! reference values for Trustee are the quote's own.

use crate::{
    Module, Test,
    attestation::{Kept, WAIVERS, accepted, answer, decode, ours, refused, up},
    cmd, host,
    image::UNLISTED,
    namespace::{SOURCES, TOOLS},
    spawn::{Cmd, Running},
    world::World,
};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub const MODULE: Module = Module {
    name: "judges",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0).map(drop)
    },
    tests: &[
        Test::Once("keylime_replays_our_log", keylime_replays_our_log),
        Test::Once(
            "keylimes_verifier_judges_our_containers",
            keylimes_verifier_judges_our_containers,
        ),
        Test::Once(
            "what_we_refuse_is_not_exported",
            what_we_refuse_is_not_exported,
        ),
        Test::Once(
            "trustees_values_are_the_quotes_own",
            trustees_values_are_the_quotes_own,
        ),
    ],
};

/// Who runs Keylime's verifier: nobody.
const NOBODY: u32 = 65534;
const VERIFIER: &str = "127.0.0.1:18881";

/// An accepted answer of a container in which a listed program was executed.
fn challenged(world: &World) -> Result<Kept> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    rt.cmd("exec")
        .args([bundle.id.as_str(), "/bin/echo", "a listed program"])
        .ok()?;
    let kept = Kept::of(world, &bundle.id, &accepted(world, &bundle.id)?)?;
    rt.down(&bundle)?;
    Ok(kept)
}

fn export(world: &World, kept: &Kept, format: &str, to: &Path) -> Result<Cmd> {
    let evidence = world.work.join("exported.json");
    fs::write(&evidence, kept.evidence.to_string())?;
    let export = world.ctl()?.args(["--json", "evidence", "export", format]);
    Ok(export
        .arg("--output")
        .arg(to)
        .args(kept.asked())
        .arg(evidence))
}

/// The request to Keylime's verifier, and what somebody may make of it: each with what Keylime must say.
fn requests(world: &World, kept: &Kept) -> Result<Vec<(PathBuf, &'static str)>> {
    let path = world.work.join("keylime-request.json");
    export(world, kept, "--keylime", &path)?.ok()?;
    let good: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let log = good["data"]["ima_measurement_list"]
        .as_str()
        .context("log")?;
    let executed = log.trim_end().rsplit(' ').next().context("path")?;
    let mut all = vec![(path, "")];
    let mut change = |name: &'static str, key: &str, value: String, says: &'static str| {
        let mut request = good.clone();
        request["data"][key] = json!(value);
        let path = world.work.join(format!("keylime-{name}.json"));
        all.push((path.clone(), says));
        fs::write(path, request.to_string())
    };
    let said = |key: &str| good["data"][key].as_str().context("text");
    let at = log.find("sha256:").context("digest")? + "sha256:".len();
    let other = if log[at..].starts_with('0') { "1" } else { "0" };
    let altered = format!("{}{other}{}", &log[..at], &log[at + 1..]);
    change("altered", "ima_measurement_list", altered, "pcr_mismatch")?;
    change(
        "empty",
        "ima_measurement_list",
        "\n".to_owned(),
        "pcr_mismatch",
    )?;
    let nonce = BASE64.encode([7; 32]);
    change("nonce", "nonce", nonce, "quote:|quote_validation")?;
    let mut quote: Vec<String> = said("quote")?.split(':').map(str::to_owned).collect();
    let mut signature = BASE64.decode(&quote[1])?;
    *signature.last_mut().context("signature")? ^= 1;
    quote[1] = BASE64.encode(signature);
    // Its functions raise; the verifier takes it for a quote of no PCRs, and refuses since the policy names some.
    change("signature", "quote", quote.join(":"), "quote:|missing_pcrs")?;
    let mut policy: Value = serde_json::from_str(said("runtime_policy")?)?;
    let listed = policy["digests"].as_object_mut().context("digests")?;
    listed
        .remove(executed)
        .with_context(|| format!("{executed} is not on the list"))?;
    change(
        "unlisted",
        "runtime_policy",
        policy.to_string(),
        "not_in_allowlist",
    )?;
    let mut policy: Value = serde_json::from_str(said("runtime_policy")?)?;
    policy["digests"][executed] = json!(["0".repeat(64)]);
    change(
        "replaced",
        "runtime_policy",
        policy.to_string(),
        "runtime_policy_hash",
    )?;
    Ok(all)
}

/// Of a container in which a program ran that is not on the list: in mode audit, which is waived.
fn audited(world: &World) -> Result<Kept> {
    let rt = ours(world)?;
    let policy = fs::read(host::POLICY)?;
    fs::write(host::POLICY, host::policy("audit"))?;
    let done = (|| {
        let bundle = up(world, &rt, 0)?;
        rt.cmd("exec")
            .args([bundle.id.as_str(), UNLISTED, "x"])
            .ok()?;
        let expectations = world.expectations(&[&WAIVERS[..], &["audit"]].concat())?;
        let output = world.challenge(&bundle.id, &expectations)?;
        ensure!(output.code() == 1, "{output}");
        let kept = Kept::of(world, &bundle.id, &answer(&output)?)?;
        rt.down(&bundle)?;
        Ok(kept)
    })();
    fs::write(host::POLICY, policy)?;
    done
}

/// What each request was answered, compared.
fn compare(requests: &[(PathBuf, &str)], judged: &str) -> Result<Vec<Value>> {
    let answers: Vec<Value> = judged
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(answers.len() == requests.len(), "answers: {judged}");
    for ((path, says), answer) in requests.iter().zip(&answers) {
        let name = path.display();
        ensure!(answer["valid"] == says.is_empty(), "{name}: {answer}");
        let failures = answer["failures"].to_string();
        ensure!(
            says.split('|').any(|word| failures.contains(word)),
            "{name}: expected {says}: {answer}"
        );
    }
    Ok(answers)
}

/// Keylime's Python, where tests/peers has put it, with a home of its own.
fn keylime(world: &World) -> Result<Cmd> {
    let program = Path::new(TOOLS).join("keylime/bin/python");
    ensure!(
        program.exists(),
        "there is no Keylime: tests/peers installs it"
    );
    let home = world.work.join("keylime");
    fs::create_dir_all(&home)?;
    chown(&home, Some(NOBODY), Some(NOBODY))?;
    for (name, text) in [
        ("verifier.conf", verifier_conf(&home)),
        ("logging.conf", LOGGING.to_owned()),
    ] {
        fs::write(home.join(name), text)?;
    }
    let at = |name: &str| home.join(name).display().to_string();
    Ok(cmd!(
        "setpriv",
        format!("--reuid={NOBODY}"),
        format!("--regid={NOBODY}"),
        "--clear-groups",
        // by which unshare ends what it started
        "--pdeathsig=keep",
        "env"
    )
    .arg(format!("KEYLIME_DIR={}", home.display()))
    .arg(format!("TMPDIR={}", home.display()))
    .arg(format!("KEYLIME_VERIFIER_CONFIG={}", at("verifier.conf")))
    .arg(format!("KEYLIME_LOGGING_CONFIG={}", at("logging.conf")))
    .arg(program)
    .arg("-B")
    .cwd(home))
}

fn script() -> PathBuf {
    Path::new(SOURCES).join("tests/judges/keylime_judge.py")
}

fn keylime_replays_our_log(world: &World) -> Result<()> {
    let kept = challenged(world)?;
    let requests = requests(world, &kept)?;
    let judge = keylime(world)?.arg(script()).arg("replay");
    let judged = judge.args(requests.iter().map(|(path, _)| path)).ok()?;
    let answers = compare(&requests, &judged.stdout)?;
    let pcrs = answers[0]["pcrs"].as_object().context("pcrs")?;
    // Keylime does not ask which PCRs a quote is about.
    ensure!(pcrs.len() == 12 && pcrs.contains_key("10"), "{pcrs:?}");
    ensure!(answers[0]["replayed"] == pcrs["10"], "{}", answers[0]);
    let log = world.work.join("keylime.log");
    fs::write(&log, decode(&kept.evidence["container/log"])?)?;
    let said = world
        .ctl()?
        .args(["--json", "log", "verify"])
        .arg(log)
        .ok()?;
    let explained: Value = serde_json::from_str(&said.stdout)?;
    ensure!(
        explained["sha256"].as_object() == Some(pcrs),
        "we say {explained}, Keylime {pcrs:?}"
    );
    Ok(())
}

fn keylimes_verifier_judges_our_containers(world: &World) -> Result<()> {
    let requests = requests(world, &challenged(world)?)?;
    let verifier = Verifier::start(world)?;
    let url = format!("https://{VERIFIER}/v2.5/verify/evidence");
    let judge = cmd!(
        "/usr/bin/python3",
        script(),
        "ask",
        url,
        &verifier.certificate
    );
    let judged = judge.args(requests.iter().map(|(path, _)| path)).output()?;
    compare(&requests, &judged.stdout)
        .with_context(|| format!("{judged} {}", verifier.daemon.written()))?;
    Ok(())
}

/// Keylime's verifier, with all its processes in a namespace that ends with it.
struct Verifier {
    daemon: Running,
    certificate: PathBuf,
}

impl Verifier {
    fn start(world: &World) -> Result<Self> {
        let program = keylime(world)?;
        let home = world.work.join("keylime");
        let (key, certificate) = (home.join("server.key"), home.join("server.crt"));
        cmd!(
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes"
        )
        .args([
            "-subj",
            "/CN=verifier",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-days",
            "2",
        ])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .ok()?;
        chown(&key, Some(NOBODY), Some(NOBODY))?;
        let own = ["--pid", "--fork", "--kill-child", "--mount-proc"];
        let mut daemon = program
            .within("unshare", own)
            .args(["-m", "keylime.cmd.verifier"])
            .start()?;
        let since = Instant::now();
        while std::net::TcpStream::connect(VERIFIER).is_err() {
            ensure!(
                daemon.is_running()?,
                "Keylime's verifier ended: {}",
                daemon.written()
            );
            ensure!(
                since.elapsed() < crate::machine::patient(Duration::from_secs(60)),
                "Keylime's verifier does not listen: {}",
                daemon.written()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self {
            daemon,
            certificate,
        })
    }
}

fn verifier_conf(home: &Path) -> String {
    let home = home.display();
    format!(
        "[verifier]\nversion = 2.5\nuuid = default\nip = 127.0.0.1\nport = 18881\nmode = pull\nnum_workers = 1\n\
         tls_dir = {home}\nserver_key = server.key\nserver_cert = server.crt\nserver_key_password =\n\
         client_key = server.key\nclient_cert = server.crt\nclient_key_password =\n\
         trusted_client_ca = ['server.crt']\ntrusted_server_ca = ['server.crt']\nenable_agent_mtls = False\n\
         database_url = sqlite:///{home}/verifier.sqlite\ndatabase_pool_sz_ovfl = 5,10\nauto_migrate_db = True\n\
         max_retries = 1\nretry_interval = 2\nexponential_backoff = False\nquote_interval = 2\nrequest_timeout = 5\n\
         severity_labels = ['critical']\nseverity_policy = [{{\"event_id\": \".*\", \"severity_label\": \"critical\"}}]\n\
         measured_boot_imports = []\nmeasured_boot_policy_name = accept-all\ndurable_attestation_import =\n\n\
         [revocations]\nenabled_revocation_notifications = []\n"
    )
}

const LOGGING: &str = "[loggers]\nkeys = root\n[handlers]\nkeys = all\n[formatters]\nkeys = plain\n\
    [formatter_plain]\nformat = %(message)s\n[logger_root]\nlevel = INFO\nhandlers = all\n\
    [handler_all]\nclass = StreamHandler\nlevel = INFO\nformatter = plain\nargs = (sys.stderr,)\n";

fn what_we_refuse_is_not_exported(world: &World) -> Result<()> {
    let mut kept = challenged(world)?;
    let to = world.work.join("not-exported.json");
    let log = kept.evidence["container/log"][1]
        .as_str()
        .context("log")?
        .to_owned();
    let other = if log.contains('A') {
        log.replacen('A', "B", 1)
    } else {
        log.replacen('B', "A", 1)
    };
    kept.evidence["container/log"][1] = json!(other);
    for format in ["--keylime", "--trustee"] {
        let said = export(world, &kept, format, &to)?.exits(1)?;
        ensure!(!to.exists(), "{format}: {said}");
    }
    kept.evidence["container/log"][1] = json!(log);
    export(world, &kept, "--keylime", &to)?.ok()?;
    fs::remove_file(&to)?;
    // The challenger's own expectations decide.
    world.expectations(&WAIVERS[1..])?;
    let said = export(world, &kept, "--keylime", &to)?.exits(1)?;
    ensure!(
        refused(&answer(&said)?).contains("H-ROOT") && !to.exists(),
        "{said}"
    );
    let said = export(world, &audited(world)?, "--keylime", &to)?.exits(1)?;
    ensure!(
        refused(&answer(&said)?).contains("P-UNLISTED") && !to.exists(),
        "{said}"
    );
    Ok(())
}

fn trustees_values_are_the_quotes_own(world: &World) -> Result<()> {
    let kept = challenged(world)?;
    let to = world.work.join("trustee.json");
    export(world, &kept, "--trustee", &to)?.ok()?;
    let message: Value = serde_json::from_slice(&fs::read(&to)?)?;
    ensure!(
        message["type"] == "sample" && message["version"] == "0.1.0",
        "{message}"
    );
    let values: Value =
        serde_json::from_slice(&BASE64.decode(message["payload"].as_str().context("payload")?)?)?;
    let one = |name: &str| {
        values[name][0]
            .as_str()
            .with_context(|| format!("{name}: {values}"))
    };
    // The quote ends with the digest of the values that it is about.
    let attest = decode(&kept.evidence["container/attest"])?;
    let mut quoted = Sha256::new();
    for pcr in 0..12 {
        quoted.update(hex::decode(one(&format!("tpm_pcr{pcr:02}"))?)?);
    }
    ensure!(attest.ends_with(&quoted.finalize()), "{values}");
    // OpenSSL reads the key and finds the signature to be by it.
    let at = |name: &str| world.work.join(format!("trustee.{name}"));
    let key = one("trusted_aks")?;
    fs::write(at("der"), BASE64.decode(key)?)?;
    fs::write(at("attest"), &attest)?;
    // TPMT_SIGNATURE: two algorithms, then r and s, 32 bytes each behind their size.
    let signature = decode(&kept.evidence["container/sig"])?;
    let numbers = [&signature[6..38], &signature[40..72]];
    let text = numbers.map(|n| format!("INTEGER:0x{}", hex::encode(n)));
    let spec = format!("asn1=SEQUENCE:s\n[s]\nr={}\ns={}\n", text[0], text[1]);
    fs::write(at("asn1"), spec)?;
    cmd!(
        "openssl",
        "asn1parse",
        "-genconf",
        at("asn1"),
        "-noout",
        "-out",
        at("sig")
    )
    .ok()?;
    let check = cmd!(
        "openssl",
        "dgst",
        "-sha256",
        "-keyform",
        "DER",
        "-verify",
        at("der")
    );
    check
        .arg("-signature")
        .arg(at("sig"))
        .arg(at("attest"))
        .ok()?;
    Ok(())
}
