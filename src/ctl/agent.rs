//! The way to a host's agent: one HTTP/1.1 request over its unix socket.

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;
use verify::wire::MAX_REPLY;

/// Where the packaged agent listens.
pub const SOCKET: &str = "/run/attestrun-agent/challenge.sock";
/// The agent gives up after 30 s by default; this is only for an agent that does not.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the agent answered, when it is not what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the agent at {socket} answered {status}: {title}: {detail}{hint}")]
pub struct Problem {
    pub socket: PathBuf,
    pub status: u16,
    pub title: String,
    pub detail: String,
    pub hint: &'static str,
}

/// RFC 9457, section 3.1; members that we do not know are ignored, as the RFC demands.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
}

/// The body of a good answer to `GET path`.
pub fn get(socket: &Path, path: &str, media_type: &str) -> anyhow::Result<Vec<u8>> {
    ask(socket, Method::GET, path, None, media_type)
}

/// The body of a good answer to `POST path` with a JSON body.
pub fn post(socket: &Path, path: &str, body: Vec<u8>, media_type: &str) -> anyhow::Result<Vec<u8>> {
    ask(socket, Method::POST, path, Some(body), media_type)
}

fn ask(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
    media_type: &str,
) -> anyhow::Result<Vec<u8>> {
    let doing = format!("asking the agent at {} ({method} {path})", socket.display());
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?
        .block_on(async {
            tokio::time::timeout(PATIENCE, exchange(socket, method, path, body, media_type))
                .await
                .unwrap_or_else(|_| Err(anyhow!("no answer within {} s", PATIENCE.as_secs())))
        })
        .context(doing)
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
    media_type: &str,
) -> anyhow::Result<Vec<u8>> {
    let stream = UnixStream::connect(socket).await.context(
        "cannot connect; is attestrun-agent running on this host (or name its socket with --socket)?",
    )?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("it does not speak HTTP/1.1")?;
    // Ends with the connection; what goes wrong there is reported by the request below.
    let driver = tokio::spawn(connection);
    let mut request = Request::new(Full::new(Bytes::new()));
    // HTTP/1.1 wants a Host; a unix socket has none (RFC 9112, section 3.2, allows it to be empty).
    request
        .headers_mut()
        .insert(HOST, HeaderValue::from_static(""));
    if let Some(body) = body {
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *request.body_mut() = Full::new(Bytes::from(body));
    }
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().context("writing the request")?;
    let response = sender.send_request(request).await.context("no answer")?;
    let (head, body) = response.into_parts();
    // A little more than evidence can be: the reply's frame around it.
    let body = Limited::new(body, MAX_REPLY)
        .collect()
        .await
        .map_err(|e| anyhow!("reading the answer: {e}"))?
        .to_bytes();
    driver.abort();
    if head.status != StatusCode::OK {
        return Err(problem(socket, head.status, &body).into());
    }
    let found = head
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    if found != Some(media_type) {
        bail!(
            "the answer is `{}`, not `{media_type}`",
            found.unwrap_or("of no type")
        );
    }
    Ok(body.into())
}

fn problem(socket: &Path, status: StatusCode, body: &[u8]) -> Problem {
    let document = serde_json::from_slice(body).unwrap_or(Document {
        title: "not a problem document".to_owned(),
        detail: String::from_utf8_lossy(body).chars().take(200).collect(),
    });
    let hint = match status.as_u16() {
        404 => "; name the container by its full OCI id (`attestrun list`)",
        409 => "; ids repeat between containerd namespaces: end one of the containers",
        429 => "; try again later",
        503 => "; ask the host's administrator whether `attestrun host` runs",
        _ => "",
    };
    Problem {
        socket: socket.to_owned(),
        status: status.as_u16(),
        title: document.title,
        detail: document.detail,
        hint,
    }
}
