//! Who may ask the agent, and what each sees: by HTTPS with a certificate, on the unix socket by the user's
//! number. A tenant sees its own containers, who looks after the fleet sees all, others see nothing of what
//! a container is. And the agent's document describes what it really answers.

use crate::{
    Module, Test,
    attestation::{WAIVERS, answer, ours, refused, up},
    cmd,
    publisher::TENANT,
    spawn::{Cmd, Output},
    world::World,
};
use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use serde_json::Value;
use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
};

pub const MODULE: Module = Module {
    name: "challengers",
    prepare: |world| {
        world.open_for_business()?;
        world.rootfs(0)?;
        start_agent(world)
    },
    tests: &[
        Test::Once(
            "tenants_see_their_own_containers",
            tenants_see_their_own_containers,
        ),
        Test::Once(
            "nobody_comes_in_without_a_certificate",
            nobody_comes_in_without_a_certificate,
        ),
        Test::Once(
            "an_answer_counts_on_its_connection_alone",
            an_answer_counts_on_its_connection_alone,
        ),
        Test::Once("local_users_see_no_content", local_users_see_no_content),
        Test::Once("answers_are_as_documented", answers_are_as_documented),
        Test::Once("results_are_for_others_too", results_are_for_others_too),
    ],
};

const ADDRESS: &str = "127.0.0.1:9443";
const URL: &str = "https://127.0.0.1:9443";
const DIR: &str = "/run/attestrun-agent/tls";
const FLEET: &str = "spiffe://e2e.example/verifier";
const OTHER: &str = "spiffe://e2e.example/tenant/other";

fn at(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// A CA, and certificates under it: each as `<name>.pem` and `<name>.key`.
fn make_pki(ca_name: &str, leaves: &[(&str, Vec<SanType>, ExtendedKeyUsagePurpose)]) -> Result<()> {
    let ca_key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, ca_name);
    fs::write(
        at(&format!("{ca_name}.pem")),
        params.self_signed(&ca_key)?.pem(),
    )?;
    let issuer = Issuer::from_params(&params, &ca_key);
    for (name, names, usage) in leaves {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.clone();
        params.extended_key_usages = vec![usage.clone()];
        fs::write(
            at(&format!("{name}.pem")),
            params.signed_by(&key, &issuer)?.pem(),
        )?;
        fs::write(at(&format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn uri(text: &str) -> Result<SanType> {
    Ok(SanType::URI(text.try_into()?))
}

/// A second agent, for other machines, as the first one's user.
fn start_agent(world: &World) -> Result<()> {
    use ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};
    fs::create_dir_all(DIR)?;
    let server = vec![SanType::IpAddress("127.0.0.1".parse()?)];
    make_pki("agents", &[("agent", server, ServerAuth)])?;
    make_pki(
        "challengers",
        &[
            ("owner", vec![uri(TENANT)?], ClientAuth),
            ("other", vec![uri(OTHER)?], ClientAuth),
            ("fleet", vec![uri(FLEET)?], ClientAuth),
            ("two", vec![uri(TENANT)?, uri(FLEET)?], ClientAuth),
            ("nobody", vec![], ClientAuth),
            ("signer", vec![uri(FLEET)?], CodeSigning),
        ],
    )?;
    make_pki("strangers", &[("stranger", vec![uri(FLEET)?], ClientAuth)])?;
    for name in ["agent.key", "agent.pem", "challengers.pem"] {
        std::os::unix::fs::chown(at(name), Some(64999), Some(64999))?;
    }
    let agent = cmd!(
        "setpriv",
        "--reuid=64999",
        "--regid=64999",
        "--clear-groups"
    )
    .args(["--no-new-privs", "--bounding-set=-all"])
    .arg(world.program("attestrun-agent")?)
    .args([
        "--socket",
        "/run/attestrun-agent/second.sock",
        "--listen",
        ADDRESS,
    ])
    .args(["--fleet", FLEET, "--revocation", "unchecked"])
    .arg("--tls-cert")
    .arg(at("agent.pem"))
    .arg("--tls-key")
    .arg(at("agent.key"))
    .arg("--challengers")
    .arg(at("challengers.pem"));
    world.start("attestrun-agent (https)", agent, || {
        Ok(TcpStream::connect(ADDRESS).is_ok())
    })
}

/// attestctl as who holds this certificate.
fn challenge(world: &World, who: &str, id: &str) -> Result<Output> {
    world
        .ctl()?
        .args(["--json", "challenge", "--agent", URL, "--agent-ca"])
        .arg(at("agents.pem"))
        .arg("--cert")
        .arg(at(&format!("{who}.pem")))
        .arg("--key")
        .arg(at(&format!("{who}.key")))
        .arg("--policy")
        .arg(world.expectations(&WAIVERS)?)
        .arg("--save")
        .arg(world.work.join("evidence.json"))
        .arg(id)
        .output()
}

/// Status line, head and body of one HTTP exchange by openssl.
fn https(world: &World, who: &str, request: &str) -> Result<String> {
    let input = world.work.join("request");
    fs::write(&input, request.replace('\n', "\r\n"))?;
    let client = cmd!(
        "openssl",
        "s_client",
        "-quiet",
        "-verify_quiet",
        "-tls1_3",
        "-connect",
        ADDRESS
    );
    let client = client.arg("-CAfile").arg(at("agents.pem"));
    let client = client.arg("-cert").arg(at(&format!("{who}.pem")));
    let client = client.arg("-key").arg(at(&format!("{who}.key")));
    Ok(client.stdin(&input).output()?.stdout)
}

fn get(world: &World, who: &str, path: &str) -> Result<String> {
    https(
        world,
        who,
        &format!("GET {path} HTTP/1.1\nHost: a\nConnection: close\n\n"),
    )
}

fn tenants_see_their_own_containers(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    for who in ["owner", "fleet"] {
        let output = challenge(world, who, &bundle.id)?;
        ensure!(output.code() == 0, "{who}: {output}");
        let bound = answer(&output)?["channel_binding"].to_string();
        ensure!(bound.contains("tls-exporter:"), "{who}: {bound}");
    }
    let output = challenge(world, "other", &bundle.id)?;
    let named = refused(&answer(&output)?);
    ensure!(output.code() == 1 && named.contains("P-OPAQUE"), "{output}");
    for check in ["Q-SIG", "Q-QD", "B-ORDER", "L-REPLAY", "Q-PCRDIG"] {
        ensure!(
            !named.contains(check),
            "{check} needs no content: {named:?}"
        );
    }
    // Nothing of what the container is has left the host: not its program, not its image.
    let demo = &world.images()?.demo;
    let clear = [
        "/bin/sleep",
        TENANT,
        demo.manifest.as_str(),
        demo.name.as_str(),
    ];
    let kept: Value = serde_json::from_slice(&fs::read(world.work.join("evidence.json"))?)?;
    for (item, value) in kept.as_object().context("evidence")? {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let Some(text) = value[1].as_str() else {
            continue;
        };
        let bytes = URL_SAFE_NO_PAD.decode(text)?;
        let text = String::from_utf8_lossy(&bytes);
        for secret in clear {
            ensure!(!text.contains(secret), "{item} says {secret}");
        }
    }
    let list = get(world, "fleet", "/v1/containers")?;
    ensure!(
        list.contains("200 OK") && list.contains(&bundle.id),
        "{list}"
    );
    let metrics = get(world, "fleet", "/metrics")?;
    ensure!(
        metrics.contains("challenges_total{end=\"opaque\"} 1"),
        "{metrics}"
    );
    for path in ["/v1/containers", "/metrics"] {
        let answer = get(world, "owner", path)?;
        ensure!(answer.contains("403 Forbidden"), "{path}: {answer}");
    }
    rt.down(&bundle)
}

fn nobody_comes_in_without_a_certificate(world: &World) -> Result<()> {
    let good = get(world, "owner", "/healthz")?;
    ensure!(good.contains("200 OK"), "{good}");
    for who in ["stranger", "nobody", "two", "signer"] {
        let answer = get(world, who, "/healthz")?;
        ensure!(!answer.contains("HTTP/1.1"), "{who}: {answer}");
        let output = challenge(world, who, "whoever")?;
        ensure!(output.code() == 2, "{who}: {output}");
    }
    let request = world.work.join("request");
    let client = |arguments: &[&str]| -> Result<String> {
        let client = cmd!(
            "openssl",
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-connect",
            ADDRESS
        );
        let client = client.args(arguments).arg("-CAfile").arg(at("agents.pem"));
        Ok(client.stdin(&request).output()?.stdout)
    };
    let answer = client(&["-tls1_3"])?;
    ensure!(
        !answer.contains("HTTP/1.1"),
        "without a certificate: {answer}"
    );
    let (cert, key) = (at("owner.pem"), at("owner.key"));
    let with = [
        "-cert",
        cert.to_str().context("path")?,
        "-key",
        key.to_str().context("path")?,
    ];
    let answer = client(&[&["-tls1_2"], &with[..]].concat())?;
    ensure!(!answer.contains("HTTP/1.1"), "TLS 1.2: {answer}");
    let answer = client(&[&["-tls1_3"], &with[..]].concat())?;
    ensure!(answer.contains("200 OK"), "TLS 1.3: {answer}");
    // The challenger demands the agent's certificate, too.
    let output = world
        .ctl()?
        .args(["enroll", "--name", "x", "--agent", URL, "--agent-ca"])
        .arg(at("strangers.pem"))
        .arg("--cert")
        .arg(&cert)
        .arg("--key")
        .arg(&key)
        .arg("--inventory")
        .arg(world.work.join("nothing.toml"))
        .output()?;
    ensure!(output.code() == 2, "an agent of another CA: {output}");
    ensure!(
        !world.work.join("nothing.toml").exists(),
        "pinned all the same"
    );
    Ok(())
}

/// Who relays a challenge has another connection to the agent than the challenger has to him.
fn an_answer_counts_on_its_connection_alone(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let output = challenge(world, "owner", &bundle.id)?;
    ensure!(output.code() == 0, "{output}");
    let said = answer(&output)?;
    let text = |key: &str| said[key].as_str().map(str::to_owned).context("a text");
    let judge = |binding: &str| -> Result<Output> {
        world
            .ctl()?
            .args(["--json", "appraise", "--container", &bundle.id])
            .args(["--nonce", &text("nonce")?, "--asked-at", &text("asked_at")?])
            .args(["--channel-binding", binding, "--policy"])
            .arg(world.work.join("expectations.toml"))
            .arg(world.work.join("evidence.json"))
            .output()
    };
    let own = text("channel_binding")?;
    ensure!(judge(&own)?.code() == 0, "kept, judged again");
    let other = format!("tls-exporter:{}", "00".repeat(32));
    for binding in ["none", other.as_str()] {
        let output = judge(binding)?;
        let named = refused(&answer(&output)?);
        ensure!(
            output.code() == 1 && named.contains("Q-QD"),
            "{binding}: {output}"
        );
    }
    // The agent itself answers nothing that is bound to somebody else's connection.
    let body = format!(
        "{{\"v\":1,\"nonce\":\"{}\",\"container\":\"{}\",\"channel_binding\":\"{own}\"}}",
        text("nonce")?,
        bundle.id
    );
    let head =
        "POST /v1/challenge HTTP/1.1\nHost: a\nConnection: close\nContent-Type: application/json";
    let request = format!("{head}\nContent-Length: {}\n\n{body}", body.len());
    let answer = https(world, "owner", &request)?;
    ensure!(
        answer.contains(" 421 ") && answer.contains("problem/relayed"),
        "{answer}"
    );
    rt.down(&bundle)
}

fn local_users_see_no_content(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    // Root may read the expectations; the user's number is all that differs.
    let challenge = |uid: &str| -> Result<Output> {
        let program = world.program("attestctl")?;
        Cmd::new("setpriv")
            .args([&format!("--reuid={uid}"), "--regid=64999", "--clear-groups"])
            .args(["--inh-caps=+dac_override", "--ambient-caps=+dac_override"])
            .arg(program)
            .args(["--json", "challenge", "--policy"])
            .arg(world.expectations(&WAIVERS)?)
            .arg(&bundle.id)
            .output()
    };
    let root = challenge("0")?;
    ensure!(root.code() == 0, "root: {root}");
    let user = challenge("4711")?;
    let named = refused(&answer(&user)?);
    ensure!(
        user.code() == 1 && named.contains("P-OPAQUE"),
        "a user: {user}"
    );
    rt.down(&bundle)
}

/// Real answers against the schemas of the agent's own document, by another implementation.
fn answers_are_as_documented(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let document = Path::new(crate::namespace::SOURCES).join("src/agent/openapi.json");
    let body = |answer: String| -> Result<Value> {
        let (_, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        Ok(serde_json::from_str(body)?)
    };
    let output = challenge(world, "owner", &bundle.id)?;
    ensure!(output.code() == 0, "{output}");
    let evidence = serde_json::from_slice(&fs::read(world.work.join("evidence.json"))?)?;
    let answers = [
        ("Evidence", evidence),
        ("Host", body(get(world, "owner", "/v1/host")?)?),
        ("Containers", body(get(world, "fleet", "/v1/containers")?)?),
        ("Problem", body(get(world, "owner", "/metrics")?)?),
    ];
    // The same document as the agent serves.
    let served = body(get(world, "owner", "/openapi.json")?)?;
    ensure!(
        served == serde_json::from_slice::<Value>(&fs::read(&document)?)?,
        "another document"
    );
    let script = "import json,sys,jsonschema\n\
                  d=json.load(open(sys.argv[1]))\n\
                  V=jsonschema.Draft202012Validator\n\
                  for s in d['components']['schemas'].values(): V.check_schema(s)\n\
                  V(d['components']['schemas'][sys.argv[2]]).validate(json.load(open(sys.argv[3])))";
    let file = world.work.join("answer.json");
    let judged = |schema: &str| cmd!("/usr/bin/python3", "-c", script, &document, schema, &file);
    for (schema, answer) in answers {
        fs::write(&file, answer.to_string())?;
        judged(schema).ok().context(schema)?;
        // and not just anything
        let mut other = answer;
        other["another"] = Value::Bool(true);
        fs::write(&file, other.to_string())?;
        judged(schema).fails().context(schema)?;
    }
    rt.down(&bundle)
}

/// A signed token that somebody else's JWT library verifies, and a page.
fn results_are_for_others_too(world: &World) -> Result<()> {
    let rt = ours(world)?;
    let bundle = up(world, &rt, 0)?;
    let at = |name: &str| world.work.join(name);
    let owner = &world.open_for_business()?.owner;
    let challenge = |waivers: &[&str]| -> Result<Output> {
        world
            .ctl()?
            .args(["challenge", "--ear-nonce", "relying-party-1", "--ear"])
            .arg(at("result.jwt"))
            .arg("--ear-key")
            .arg(owner.at("image.key"))
            .arg("--report")
            .arg(at("report.html"))
            .arg("--policy")
            .arg(world.expectations(waivers)?)
            .arg(&bundle.id)
            .output()
    };
    let script = "import sys,json,jwt\n\
                  t=open(sys.argv[1]).read()\n\
                  print(json.dumps(jwt.decode(t,open(sys.argv[2]).read(),algorithms=['ES256'])))";
    let (token, public) = (at("result.jwt"), owner.at("image.pub"));
    let read = |public: &Path| cmd!("/usr/bin/python3", "-c", script, &token, public);
    let output = challenge(&WAIVERS)?;
    ensure!(output.code() == 0, "{output}");
    let claims: Value = serde_json::from_str(&read(&public).ok()?.stdout)?;
    ensure!(
        claims["eat_profile"] == "tag:ietf.org,2026:rats/ear#04",
        "{claims}"
    );
    ensure!(claims["eat_nonce"] == "relying-party-1", "{claims}");
    let (host, container) = (&claims["submods"]["host"], &claims["submods"]["container"]);
    // A software root is waived by name, and nobody reads that as affirming.
    ensure!(host["ear_status"] == "warning", "{host}");
    ensure!(
        host["ear_trustworthiness_vector"]["hardware"] == 32,
        "{host}"
    );
    ensure!(
        container["ear_trustworthiness_vector"]["file-system"] == 2,
        "{container}"
    );
    ensure!(
        container["attestrun_container"] == bundle.id.as_str(),
        "{container}"
    );
    let page = fs::read_to_string(at("report.html"))?;
    for word in ["accepted", &bundle.id, "Q-SIG", "default-src 'none'"] {
        ensure!(page.contains(word), "the page does not say {word}");
    }
    // Another key, or one byte more: no result.
    fs::write(
        at("other.pub"),
        cmd!("openssl", "ec", "-in", nobodys_key(world)?, "-pubout")
            .ok()?
            .stdout,
    )?;
    read(&at("other.pub")).fails()?;
    let text = fs::read_to_string(&token)?;
    let (head, rest) = text.split_once('.').context("a token")?;
    fs::write(&token, format!("{head}.{}", rest.replacen('a', "b", 1)))?;
    read(&public).fails()?;
    // What is refused is said to be.
    let named: Vec<_> = WAIVERS
        .into_iter()
        .filter(|w| *w != "software-root")
        .collect();
    let output = challenge(&named)?;
    ensure!(output.code() == 1, "{output}");
    let claims: Value = serde_json::from_str(&read(&public).ok()?.stdout)?;
    let host = &claims["submods"]["host"];
    ensure!(host["ear_status"] == "contraindicated", "{host}");
    ensure!(
        host["attestrun_refused"].to_string().contains("H-ROOT"),
        "{host}"
    );
    ensure!(
        fs::read_to_string(at("report.html"))?.contains("refused"),
        "the page"
    );
    rt.down(&bundle)
}

/// A key of nobody's.
fn nobodys_key(world: &World) -> Result<PathBuf> {
    let key = world.work.join("nobodys.key");
    cmd!(
        "openssl",
        "ecparam",
        "-name",
        "prime256v1",
        "-genkey",
        "-noout",
        "-out",
        &key
    )
    .ok()?;
    Ok(key)
}
