//! The way to a host's agent: one HTTP/1.1 request over its unix socket, or over TLS 1.3 with a client
//! certificate.
//!
//! TLS keeps the answer from others and says to the agent who asks. What the answer proves does not
//! depend on it; the connection's exporter (RFC 9266) goes into the challenge, so that who relays it to
//! another agent is found out.

mod coding;
mod tls;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::{fmt, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};
use verify::wire::{ChannelBinding, MAX_REPLY};

/// Where the packaged agent listens.
pub const SOCKET: &str = "/run/attestrun-agent/challenge.sock";

/// The agent gives up after 30 s by default; this is only for an agent that does not.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the agent is, on a command line.
#[derive(Args, Clone, Default)]
pub struct AgentArgs {
    /// The agent's socket on this machine [default: /run/attestrun-agent/challenge.sock]
    #[arg(long, conflicts_with = "agent")]
    socket: Option<PathBuf>,
    /// The agent of another machine, https://HOST:PORT
    #[arg(long, value_name = "URL", requires_all = ["agent_ca", "cert", "key"])]
    agent: Option<String>,
    /// The CA of that agent's certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "agent")]
    agent_ca: Option<PathBuf>,
    /// The challenger's certificate (PEM): its URI says who asks
    #[arg(long, value_name = "FILE", requires = "agent")]
    cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "agent")]
    key: Option<PathBuf>,
}

/// Where an agent is.
#[derive(Clone)]
pub enum Agent {
    Local(PathBuf),
    Remote(tls::Remote),
}

impl AgentArgs {
    pub fn agent(&self) -> anyhow::Result<Agent> {
        match (&self.agent, &self.agent_ca, &self.cert, &self.key) {
            (Some(url), Some(ca), Some(cert), Some(key)) => {
                Ok(Agent::Remote(tls::Remote::new(url, ca, cert, key)?))
            }
            // The grammar demands all four or none.
            _ => Ok(Agent::Local(
                self.socket.clone().unwrap_or_else(|| SOCKET.into()),
            )),
        }
    }

    /// Of another machine, with the CA of its certificate, and the challenger's certificate and key.
    pub fn remote(url: String, ca: PathBuf, cert: PathBuf, key: PathBuf) -> Self {
        Self {
            socket: None,
            agent: Some(url),
            agent_ca: Some(ca),
            cert: Some(cert),
            key: Some(key),
        }
    }

    #[cfg(test)]
    pub fn at(socket: &std::path::Path) -> Self {
        Self {
            socket: Some(socket.to_owned()),
            ..Self::default()
        }
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Remote(remote) => remote.fmt(f),
        }
    }
}

/// What the agent answered, when it is not what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the agent at {agent} answered {status}: {title}: {detail}{hint}")]
pub struct Problem {
    pub agent: String,
    pub status: u16,
    pub title: String,
    pub detail: String,
    pub hint: &'static str,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// RFC 9457, section 3.1; members that we do not know are ignored, as the RFC demands.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
}

/// The body of a request, once it is known what ties it to the connection.
type Body<'a> = &'a dyn Fn(ChannelBinding) -> anyhow::Result<Vec<u8>>;

struct Question<'a> {
    method: Method,
    path: &'a str,
    body: Option<Body<'a>>,
    media_type: &'a str,
}

/// The body of a good answer to `GET path`.
pub fn get(agent: &Agent, path: &str, media_type: &str) -> anyhow::Result<Vec<u8>> {
    let question = Question {
        method: Method::GET,
        path,
        body: None,
        media_type,
    };
    ask(agent, &question).map(|(answer, _)| answer)
}

/// The body of a good answer to `POST path` with a JSON body, and what it is bound to.
pub fn post(
    agent: &Agent,
    path: &str,
    body: Body<'_>,
    media_type: &str,
) -> anyhow::Result<(Vec<u8>, ChannelBinding)> {
    let question = Question {
        method: Method::POST,
        path,
        body: Some(body),
        media_type,
    };
    ask(agent, &question)
}

fn ask(agent: &Agent, question: &Question<'_>) -> anyhow::Result<(Vec<u8>, ChannelBinding)> {
    let doing = || {
        format!(
            "asking the agent at {agent} ({} {})",
            question.method, question.path
        )
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?
        .block_on(async {
            tokio::time::timeout(PATIENCE, converse(agent, question))
                .await
                .unwrap_or_else(|_| Err(anyhow!("no answer within {} s", PATIENCE.as_secs())))
        })
        .with_context(doing)
}

async fn converse(
    agent: &Agent,
    question: &Question<'_>,
) -> anyhow::Result<(Vec<u8>, ChannelBinding)> {
    match agent {
        Agent::Local(path) => {
            let stream = UnixStream::connect(path).await.context(
                "cannot connect; is attestrun-agent running on this host (or name its socket with --socket)?",
            )?;
            // HTTP/1.1 wants a Host; a unix socket has none (RFC 9112, section 3.2, allows it to be empty).
            exchange(agent, stream, "", ChannelBinding::None, question).await
        }
        Agent::Remote(remote) => {
            let (stream, binding) = remote.connect().await?;
            exchange(agent, stream, remote.authority(), binding, question).await
        }
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    agent: &Agent,
    stream: S,
    host: &str,
    binding: ChannelBinding,
    question: &Question<'_>,
) -> anyhow::Result<(Vec<u8>, ChannelBinding)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("it does not speak HTTP/1.1")?;
    // Ends with the connection; what goes wrong there is reported by the request below.
    let driver = tokio::spawn(connection);
    let request = request(host, binding, question)?;
    let response = sender.send_request(request).await.context("no answer")?;
    let (head, body) = response.into_parts();
    // A little more than evidence can be: the reply's frame around it.
    let body = Limited::new(body, MAX_REPLY)
        .collect()
        .await
        .map_err(|e| anyhow!("reading the answer: {e}"))?
        .to_bytes();
    driver.abort();
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    if head.status != StatusCode::OK {
        let wait = header(RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
        return Err(problem(agent, head.status, &body, wait).into());
    }
    let found = header(CONTENT_TYPE);
    if found != Some(question.media_type) {
        bail!(
            "the answer is `{}`, not `{}`",
            found.unwrap_or("of no type"),
            question.media_type
        );
    }
    match header(CONTENT_ENCODING) {
        None => Ok((body.into(), binding)),
        Some(coding) => Ok((coding::decode(coding, &body, MAX_REPLY)?, binding)),
    }
}

fn request(
    host: &str,
    binding: ChannelBinding,
    question: &Question<'_>,
) -> anyhow::Result<Request<Full<Bytes>>> {
    let mut request = Request::new(Full::new(Bytes::new()));
    let headers = request.headers_mut();
    headers.insert(HOST, host.parse().context("writing the request")?);
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(coding::ACCEPTED));
    if let Some(body) = question.body {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *request.body_mut() = Full::new(Bytes::from(body(binding)?));
    }
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = question.path.parse().context("writing the request")?;
    Ok(request)
}

fn problem(agent: &Agent, status: StatusCode, body: &[u8], wait: Option<u64>) -> Problem {
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
        agent: agent.to_string(),
        status: status.as_u16(),
        title: document.title,
        detail: document.detail,
        hint,
        retry_after: wait.map(Duration::from_secs),
    }
}
