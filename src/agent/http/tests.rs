//! The agent against a host service that is a socket in this process and answers real frames.

use super::*;
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
    let (listener, socket) = crate::listener::bind(&place.agent(), lifetime).unwrap();
    let service = service(HostService::new(&place.host(), timeout));
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    socket
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
    assert_eq!(http(&place, &get("/healthz")).await.0, 200);
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
async fn refuse_the_seventeenth_connection_of_a_user() {
    let place = Place::new("crowd");
    let _socket = agent(&place, SECOND, 10 * SECOND);
    let mut crowd = Vec::new();
    for _ in 0..16 {
        crowd.push(UnixStream::connect(place.agent()).await.unwrap());
    }
    let mut last = UnixStream::connect(place.agent()).await.unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
}
