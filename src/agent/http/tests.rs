//! The agent against a host service that is a socket in this process and answers real frames.

use super::*;
use crate::caller::Caller;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use verify::wire::{AgentReply, Failure, FailureKind, HEADER, frame_length};

/// A directory of its own per test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("attestrun-agent-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
    fn host(&self) -> PathBuf {
        self.0.join("host.sock")
    }
    fn agent(&self) -> PathBuf {
        self.0.join("agent.sock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Answers each connection with what `reply` makes of the request; `None` = never.
fn host_service(path: &Path, reply: fn(&AgentRequest) -> Option<Vec<u8>>) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut header = [0; HEADER];
                stream.read_exact(&mut header).await.unwrap();
                let mut body = vec![0; frame_length(header, MAX_REQUEST).unwrap()];
                stream.read_exact(&mut body).await.unwrap();
                match reply(&AgentRequest::decode(&body).unwrap()) {
                    Some(frame) => stream.write_all(&frame).await.unwrap(),
                    None => tokio::time::sleep(Duration::from_secs(60)).await,
                }
            });
        }
    });
}

fn agent(place: &Place, timeout: Duration, lifetime: Duration) -> crate::listener::SocketFile {
    let metrics = Arc::new(Metrics::default());
    let (listener, socket) =
        crate::listener::bind(&place.agent(), lifetime, metrics.clone()).unwrap();
    let service = router(serving(place, timeout, metrics));
    let service = service.into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    socket
}

/// Whoever runs the tests looks after the fleet.
fn serving(place: &Place, timeout: Duration, metrics: Arc<Metrics>) -> Service {
    let me = Caller::User(rustix::process::getuid().as_raw());
    Service {
        host: HostService::new(&place.host(), timeout),
        access: Access::new(&[me]),
        rate: Rate::new(1000),
        metrics,
    }
}

/// Status, head and body of one exchange over a connection of its own.
async fn http(place: &Place, request: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(place.agent()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        head.to_lowercase(),
        body.to_owned(),
    )
}

fn post(body: &str) -> String {
    format!(
        "POST /v1/challenge HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
}

const CHALLENGE: &str =
    r#"{"v":1,"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAA","container":"web","channel_binding":"none"}"#;
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn accept_evidence_is_passed_on_byte_for_byte() {
    let place = Place::new("accept");
    host_service(&place.host(), |request| {
        let object = match request {
            AgentRequest::Challenge(c) => format!(r#"{{ "b":1,"a":"{}"}}"#, c.container),
            AgentRequest::Host => r#"{"host":true}"#.to_owned(),
            AgentRequest::Containers => r#"{"containers":[]}"#.to_owned(),
            AgentRequest::Endorsement => r#"{"ek":""}"#.to_owned(),
            AgentRequest::Activate(_) => r#"{"secret":""}"#.to_owned(),
        };
        Some(AgentReply::Ok(object.into_bytes()).encode().unwrap())
    });
    let _socket = agent(&place, 10 * SECOND, 10 * SECOND);
    let (status, head, body) = http(&place, &post(CHALLENGE)).await;
    assert_eq!((status, body.as_str()), (200, r#"{ "b":1,"a":"web"}"#));
    assert!(
        head.contains("content-type: application/cmw+json"),
        "{head}"
    );
    assert!(head.contains("cache-control: no-store"), "{head}");
    let (status, _, body) = http(&place, &get("/v1/host")).await;
    assert_eq!((status, body.as_str()), (200, r#"{"host":true}"#));
    let (status, _, body) = http(&place, &get("/v1/host/endorsement")).await;
    assert_eq!((status, body.as_str()), (200, r#"{"ek":""}"#));
    let credential = post(r#"{"v":1,"blob":"AA","seed":"AA"}"#);
    let credential = credential.replace("/v1/challenge", "/v1/host/activation");
    let (status, _, body) = http(&place, &credential).await;
    assert_eq!((status, body.as_str()), (200, r#"{"secret":""}"#));
    assert_eq!(http(&place, &get("/healthz")).await.0, 200);
    let (status, _, body) = http(&place, &get("/v1/containers")).await;
    assert_eq!((status, body.as_str()), (200, r#"{"containers":[]}"#));
    let (status, head, body) = http(&place, &get("/metrics")).await;
    assert_eq!(status, 200);
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(
        body.contains("challenges_total{end=\"answered\"} 1"),
        "{body}"
    );
}

#[tokio::test]
async fn refuse_malformed_requests_without_asking_the_host_service() {
    let place = Place::new("malformed");
    let _socket = agent(&place, SECOND, 10 * SECOND);
    let long = format!("{CHALLENGE}{}", " ".repeat(MAX_REQUEST));
    let no_type = post(CHALLENGE).replace("Content-Type: application/json\r\n", "");
    for (request, expected) in [
        (post(""), 400),
        (post("{}"), 400),
        (post(&CHALLENGE.replace("web", "../etc")), 400),
        (post(&CHALLENGE.replace("AAAA", "")), 400),
        (post(&CHALLENGE.replace("\"v\":1", "\"v\":2")), 400),
        (post(&long), 413),
        (no_type, 415),
        (get("/v1/challenge"), 405),
        (get("/"), 404),
        (get("/v1/host"), 503),
        (get("/v1/containers"), 503),
        // over a unix socket nothing can be bound
        (
            post(&CHALLENGE.replace("\"none\"", &format!("\"tls-exporter:{}\"", "a".repeat(64)))),
            421,
        ),
    ] {
        let (status, head, body) = http(&place, &request).await;
        assert_eq!(status, expected, "{request}\n{body}");
        assert!(
            head.contains("content-type: application/problem+json"),
            "{request}: {head}"
        );
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["status"], expected, "{body}");
        assert!(
            problem["type"]
                .as_str()
                .unwrap()
                .starts_with("tag:attestrun,2026:problem/")
        );
    }
}

#[tokio::test]
async fn refuse_what_the_host_service_refuses() {
    let place = Place::new("refused");
    host_service(&place.host(), |_| {
        let failure = Failure {
            kind: FailureKind::NotFound,
            detail: "no container `web`".to_owned(),
        };
        Some(AgentReply::Err(failure).encode().unwrap())
    });
    let _socket = agent(&place, 10 * SECOND, 10 * SECOND);
    let (status, _, body) = http(&place, &post(CHALLENGE)).await;
    assert_eq!(status, 404);
    assert!(body.contains("no container `web`"), "{body}");
}

#[tokio::test]
async fn refuse_a_host_service_of_another_kind() {
    for (name, reply) in [
        (
            "length",
            (|_| Some(vec![0xff; 8])) as fn(&AgentRequest) -> Option<Vec<u8>>,
        ),
        ("json", |_| Some(b"\0\0\0\x02{}".to_vec())),
        ("short", |_| Some(b"\0\0\0\x09{}".to_vec())),
        ("empty", |_| Some(Vec::new())),
    ] {
        let place = Place::new(name);
        host_service(&place.host(), reply);
        let _socket = agent(&place, 10 * SECOND, 10 * SECOND);
        let (status, _, body) = http(&place, &post(CHALLENGE)).await;
        assert_eq!(status, 503, "{name}: {body}");
    }
}

#[tokio::test]
async fn refuse_to_wait_forever() {
    let place = Place::new("silent");
    host_service(&place.host(), |_| None);
    let _socket = agent(&place, SECOND / 10, SECOND);
    assert_eq!(http(&place, &post(CHALLENGE)).await.0, 504);
    // A challenger that never finishes its request is cut off.
    let mut slow = UnixStream::connect(place.agent()).await.unwrap();
    slow.write_all(b"POST /v1/challenge HTTP/1.1\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(5 * SECOND, slow.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "still open after 5 s");
}

#[tokio::test]
async fn refuse_one_connection_too_many_of_a_user() {
    let place = Place::new("crowd");
    let _socket = agent(&place, SECOND, 10 * SECOND);
    let mut crowd = Vec::new();
    for _ in 0..crate::seats::PER_CALLER {
        crowd.push(UnixStream::connect(place.agent()).await.unwrap());
    }
    let mut last = UnixStream::connect(place.agent()).await.unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
}

#[tokio::test]
async fn refuse_who_asks_too_fast_and_say_how_long_to_wait() {
    let place = Place::new("fast");
    host_service(&place.host(), |_| {
        Some(AgentReply::Ok(b"{}".to_vec()).encode().unwrap())
    });
    let metrics = Arc::new(Metrics::default());
    let (listener, _socket) =
        crate::listener::bind(&place.agent(), 10 * SECOND, metrics.clone()).unwrap();
    let mut slow = serving(&place, 10 * SECOND, metrics);
    slow.rate = Rate::new(1);
    let service = router(slow).into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    for _ in 0..10 {
        assert_eq!(http(&place, &post(CHALLENGE)).await.0, 200);
    }
    let (status, head, body) = http(&place, &post(CHALLENGE)).await;
    assert_eq!(status, 429, "{body}");
    assert!(head.contains("retry-after: 1"), "{head}");
    // Nothing of it is spent by asking how the agent is.
    assert_eq!(http(&place, &get("/healthz")).await.0, 200);
}

/// What a challenger who is not of the fleet may not have.
#[tokio::test]
async fn refuse_lists_and_metrics_to_others() {
    let place = Place::new("others");
    let service = serving(&place, SECOND, Arc::default());
    for other in ["uid:4711", "spiffe://a.example/tenant/t"] {
        let problem = service
            .demand_fleet(&other.parse().unwrap(), "the metrics")
            .unwrap_err();
        assert_eq!(problem.status.as_u16(), 403, "{other}");
    }
    // Evidence of nobody's container is not a tenant's, and what does not parse is not passed on.
    for view in [View::Tenant("t"), View::Outside] {
        assert_eq!(
            seen_by(view, b"{}".to_vec(), &Has::default())
                .unwrap_err()
                .status
                .as_u16(),
            503
        );
    }
}

#[tokio::test]
async fn compressed_answers_are_the_same() {
    let place = Place::new("gzip");
    host_service(&place.host(), |_| {
        let object = format!(r#"{{"long":"{}"}}"#, "a".repeat(10_000));
        Some(AgentReply::Ok(object.into_bytes()).encode().unwrap())
    });
    let _socket = agent(&place, 10 * SECOND, 10 * SECOND);
    let plain = http(&place, &get("/v1/host")).await.2;
    let asking = |coding: &str| {
        get("/v1/host").replace(
            "\r\n\r\n",
            &format!("\r\nAccept-Encoding: {coding}\r\n\r\n"),
        )
    };
    for (asked, coding) in [("br, gzip;q=0.5", "gzip"), ("gzip, zstd", "zstd")] {
        let mut stream = UnixStream::connect(place.agent()).await.unwrap();
        stream.write_all(asking(asked).as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw).await.unwrap();
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&raw[..end]).to_lowercase();
        let named = format!("content-encoding: {coding}");
        assert!(head.contains(&named), "{head}");
        assert!(raw.len() < 1000, "{}", raw.len());
        let body = &raw[end + 4..];
        let mut decoder: Box<dyn std::io::Read> = match coding {
            "gzip" => Box::new(flate2::read::GzDecoder::new(body)),
            _ => Box::new(ruzstd::decoding::StreamingDecoder::new(body).unwrap()),
        };
        let mut text = String::new();
        decoder.read_to_string(&mut text).unwrap();
        assert_eq!(text, plain);
    }
    for coding in ["identity", "gzip;q=0", "br"] {
        let (_, head, body) = http(&place, &asking(coding)).await;
        assert!(!head.contains("content-encoding"), "{coding}: {head}");
        assert_eq!(body, plain);
    }
}

/// Every operation of the document is served, as it says; and nothing is served that it does not have.
#[tokio::test]
async fn the_document_says_what_is_served() {
    let place = Place::new("openapi");
    let _socket = agent(&place, SECOND, 10 * SECOND);
    let document: serde_json::Value =
        serde_json::from_str(&http(&place, &get("/openapi.json")).await.2).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut served = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let request = match method.as_str() {
                "post" => post("{}").replace("/v1/challenge", path),
                _ => get(path),
            };
            let (status, head, _) = http(&place, &request).await;
            let answers = operation["responses"].as_object().unwrap();
            let answer = answers.get(&status.to_string()).or(answers.get("default"));
            let mut answer = answer.unwrap_or_else(|| panic!("{method} {path}: {status}"));
            if let Some(name) = answer["$ref"].as_str() {
                answer = document.pointer(name.strip_prefix('#').unwrap()).unwrap();
            }
            let media_type = answer["content"]
                .as_object()
                .unwrap()
                .keys()
                .next()
                .unwrap();
            assert!(
                head.contains(&format!("content-type: {media_type}")),
                "{path}: {head}"
            );
            // The other method is refused as the document's default says.
            let other = match method.as_str() {
                "post" => get(path),
                _ => post("{}").replace("/v1/challenge", path),
            };
            assert_eq!(http(&place, &other).await.0, 405, "{path}");
            served.push(path.as_str());
        }
    }
    let (_, _, body) = http(&place, &get("/nowhere")).await;
    for path in &served {
        assert!(body.contains(path), "the 404 does not name {path}: {body}");
    }
    assert_eq!(served.len(), 8);
    // Each reference leads somewhere.
    let text = document.to_string();
    for name in text.split("\"$ref\":\"#").skip(1) {
        let pointer = name.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}
