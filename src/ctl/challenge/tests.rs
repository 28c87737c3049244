//! Challenges against an agent that is a socket in this process, and what is made of its answers.

use super::*;
use crate::{
    report::{Ending, failure},
    scratch::Scratch,
};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixListener,
    thread,
};
use verify::{
    evidence::{Evidence, HostPcrs, MEDIA_TYPE, Root},
    wire::{Challenge as Question, HostFacts},
};

const POLICY: &str = r#"
images = ["sha256:1111111111111111111111111111111111111111111111111111111111111111"]
user_ca = ["ca/ca.pem"]
revocation = "unchecked"
tenant = "spiffe://demo.example/tenant/demo"
policies = ["sha256:2222222222222222222222222222222222222222222222222222222222222222"]
runtimes = ["sha256:3333333333333333333333333333333333333333333333333333333333333333"]
swtpms = ["sha256:4444444444444444444444444444444444444444444444444444444444444444"]
rootfs = ["sha256:5555555555555555555555555555555555555555555555555555555555555555"]
enter = "listed"
waive = ["software-root", "no-ima", "tier-none"]
max_age_secs = 60

firmware = { host = "any", vtpm = "any" }

[list]
name = "demo"
min_serial = 1

[launch]
args = "any"
env = "any"
"#;

const HOST: &str = r#"
[[hosts]]
name = "node-1"
ak_name = "000b6666666666666666666666666666666666666666666666666666666666666666"
root = "software"
binding_pcr_start = "0000000000000000000000000000000000000000000000000000000000000000"
"#;

/// A challenger's directory and an agent's socket.
struct Scene(Scratch);

impl Scene {
    fn new() -> Self {
        let dir = Scratch::new();
        let init = crate::ca::Init::of(&dir.path().join("ca"), "CA");
        crate::ca::run(&crate::ca::Verb::Init(init)).unwrap();
        std::fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        std::fs::write(dir.path().join("hosts.toml"), HOST).unwrap();
        Self(dir)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn expected(&self) -> ExpectedArgs {
        ExpectedArgs {
            policy: self.path("policy.toml"),
            inventory: Some(self.path("hosts.toml")),
        }
    }
    fn challenge(&self, save: Option<&str>) -> anyhow::Result<Report> {
        let args = Challenge {
            peer: vec![],
            memory: None,
            no_batch: false,
            report: None,
            ear: None,
            ear_key: None,
            ear_nonce: None,
            agent: AgentArgs::at(&self.path("agent.sock")),
            expected: self.expected(),
            save: save.map(|name| self.path(name)),
            container: "web-1".to_owned(),
        };
        challenge(&args, Style::Plain)
    }
    /// Answers one request; gives the request's body.
    fn agent(&self, status: &str, media_type: &str, body: Vec<u8>) -> thread::JoinHandle<Vec<u8>> {
        let listener = UnixListener::bind(self.path("agent.sock")).unwrap();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            let mut question = vec![0; length];
            reader.read_exact(&mut question).unwrap();
            reader
                .into_inner()
                .write_all(&[head.as_bytes(), &body].concat())
                .unwrap();
            question
        })
    }
}

/// The form of evidence, and nothing true in it.
fn lies() -> Vec<u8> {
    let evidence = Evidence {
        host_attest: vec![1],
        host_sig: vec![2],
        host_ak: vec![3],
        host_pcrs: HostPcrs([[0; 32]; 14]),
        host_root: Root::Hardware,
        container_attest: vec![4],
        container_sig: vec![5],
        container_ak: vec![6],
        container_ek: vec![7],
        batch: verify::batch::Path::single(),
        log_from: verify::evidence::LogFrom::default(),
        binding: b"{}".to_vec(),
        binding_log: vec![8],
        host_ima: vec![11],
        container_log: b"\x1b[2J".to_vec(),
        siglist: vec![9],
        siglist_sig: vec![10],
    };
    evidence.encode()
}

#[test]
fn refuse_lies_and_name_every_check() {
    let scene = Scene::new();
    let agent = scene.agent("200 OK", MEDIA_TYPE, lies());
    let report = scene.challenge(Some("evidence.json")).unwrap();
    let question = Question::parse(&agent.join().unwrap()).unwrap();
    assert_eq!(question.nonce.as_bytes().len(), 20);
    assert_eq!(question.container.as_str(), "web-1");
    assert_eq!(report.ending, Ending::Refused);
    for part in [
        "host (its key is not pinned)",
        "└─ container web-1",
        "Q-SIG",
        "K-HAK",
        "verdict: refused",
    ] {
        assert!(
            report.text.contains(part),
            "no `{part}` in\n{}",
            report.text
        );
    }
    assert!(!report.text.contains('\x1b'), "{}", report.text);
    let findings = report.json["findings"].as_array().unwrap();
    let demanded: usize = verify::check::Check::ALL
        .iter()
        .map(|check| check.subjects().len())
        .sum();
    assert_eq!(findings.len(), demanded);
    assert_eq!(report.json["outcome"], "refused");

    // What was kept is judged alike, with what the challenger remembers.
    let again = appraise_file(
        &Appraise {
            peer: vec![],
            evidence: scene.path("evidence.json"),
            expected: scene.expected(),
            nonce: report.json["nonce"].as_str().unwrap().to_owned(),
            container: "web-1".to_owned(),
            asked_at: report.json["asked_at"].as_str().unwrap().to_owned(),
            channel_binding: ChannelBinding::None,
        },
        Style::Coloured,
    )
    .unwrap();
    assert_eq!(again.ending, Ending::Refused);
    assert!(again.text.contains("\x1b[1;31mrefused"), "{}", again.text);
    assert!(!again.text.contains("\x1b[2J"), "{}", again.text);
}

#[test]
fn refuse_what_is_no_evidence() {
    let scene = Scene::new();
    let agent = scene.agent("200 OK", MEDIA_TYPE, b"{}".to_vec());
    let error = scene.challenge(None).unwrap_err();
    agent.join().unwrap();
    assert_eq!(failure(&error).0, 1, "{error:#}");
}

#[test]
fn unknown_without_an_answer() {
    for (status, media_type, body, reason) in [
        (
            "404 Not Found",
            "application/problem+json",
            r#"{"title":"no such container","detail":"web-1"}"#,
            "404: no such container: web-1; name the container",
        ),
        (
            "503 Service Unavailable",
            "application/problem+json",
            r#"{"title":"t","detail":"d"}"#,
            "attestrun host",
        ),
        ("500 Oops", "text/plain", "boom", "boom"),
        ("200 OK", "text/plain", "{}", "text/plain"),
    ] {
        let scene = Scene::new();
        let agent = scene.agent(status, media_type, body.into());
        let error = scene.challenge(None).unwrap_err();
        agent.join().unwrap();
        assert_eq!(failure(&error).0, 2, "{error:#}");
        let text = format!("{error:#}");
        assert!(text.contains(reason), "{reason}: {text}");
        assert!(
            text.contains(&scene.path("agent.sock").display().to_string()),
            "{text}"
        );
    }
    let nobody = Scene::new().challenge(None).unwrap_err();
    assert_eq!(failure(&nobody).0, 2, "{nobody:#}");
    assert!(
        format!("{nobody:#}").contains("is attestrun-agent running"),
        "{nobody:#}"
    );
}

#[test]
fn used_wrongly_before_anything_is_asked() {
    let scene = Scene::new();
    let args = |nonce: &str, container: &str, asked_at: &str| Appraise {
        peer: vec![],
        evidence: scene.path("evidence.json"),
        expected: scene.expected(),
        nonce: nonce.to_owned(),
        container: container.to_owned(),
        asked_at: asked_at.to_owned(),
        channel_binding: ChannelBinding::None,
    };
    let good = (
        "AAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "web-1",
        "2026-11-23T15:00:00Z",
    );
    for (nonce, container, asked_at) in [
        ("AAAA", good.1, good.2),
        ("=", good.1, good.2),
        (good.0, "a/b", good.2),
        (good.0, good.1, "noon"),
    ] {
        let error = appraise_file(&args(nonce, container, asked_at), Style::Plain).unwrap_err();
        assert_eq!(failure(&error).0, 64, "{error:#}");
    }
}

#[test]
fn an_inventory_adds_hosts_and_nothing_else() {
    let both = with_hosts(&format!("{POLICY}{HOST}"), &HOST.replace('6', "7")).unwrap();
    assert_eq!(Expectations::parse(&both).unwrap().hosts.len(), 2);
    for bad in ["", "waive = [\"audit\"]\n", "hosts = 1\n", "[[hosts]\n"] {
        assert!(with_hosts(POLICY, bad).is_err(), "{bad}");
    }
    let more = format!("max_age_secs = 9999\n{HOST}");
    assert!(with_hosts(POLICY, &more).is_err());
}

#[test]
fn enrolment_pins_a_key_that_can_attest_and_nothing_else() {
    let scene = Scene::new();
    let enroll = |ak: Vec<u8>, name: &str| {
        std::fs::remove_file(scene.path("agent.sock")).ok();
        let facts = HostFacts {
            ak,
            root: Root::Software,
            binding_pcr_start: [0; 32],
            host_boot: "boot".to_owned(),
            version: "0".to_owned(),
        };
        let agent = scene.agent("200 OK", "application/json", facts.encode().unwrap());
        let result = crate::enroll::run(&crate::enroll::Enroll::of(
            &scene.path("agent.sock"),
            name,
            &scene.path("hosts.toml"),
        ));
        agent.join().unwrap();
        result
    };
    let point = crate::key::SigningKey::generate()
        .unwrap()
        .public_der()
        .unwrap();
    let (x, y) = point[point.len() - 64..].split_at(32);
    let public = |attributes: &dyn Fn(&mut [u8])| {
        // An attestation key as the TPM fills in the template: its point at the end.
        let template = verify::tpm2::aik_template();
        let (head, _) = template.split_at(template.len() - 4);
        let size = [0, 32];
        let mut public = [head, &size, x, &size, y].concat();
        attributes(&mut public[4..8]);
        verify::tpm2::Public::parse(&public).unwrap().to_2b()
    };
    let hosts = || std::fs::read_to_string(scene.path("hosts.toml")).unwrap();

    // `restricted` (bit 16) taken away: such a key signs whatever it is handed.
    let refused = enroll(public(&|bits| bits[1] &= !1), "node-2").unwrap_err();
    assert_eq!(failure(&refused).0, 1, "{refused:#}");
    assert!(enroll(vec![0; 3], "node-2").is_err());
    assert_eq!(hosts(), HOST);

    let good = public(&|_| {});
    let report = enroll(good.clone(), "node-2").unwrap();
    assert_eq!(
        (&report.json["trust"], &report.json["changed"]),
        (&"pinned".into(), &true.into())
    );
    assert!(
        report.text.contains("Trust on first use"),
        "{}",
        report.text
    );
    let expect = Expectations::parse(&with_hosts(POLICY, &hosts()).unwrap()).unwrap();
    assert_eq!(
        expect.hosts[1].ak_name.to_string(),
        report.json["ak_name"].as_str().unwrap()
    );
    let pinned = hosts();
    assert_eq!(enroll(good, "node-2").unwrap().json["changed"], false);
    assert_eq!(hosts(), pinned);
}
