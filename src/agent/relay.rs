//! One question to the host service: one connection, one frame there, one frame back.

use crate::problem::Problem;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::Semaphore,
};
use verify::wire::{AgentReply, AgentRequest, HEADER, MAX_REPLY, WireError, frame_length};

/// Questions under way at once: what waits while the host TPM signs is covered by its next quote.
const QUESTIONS: usize = 128;

/// Where the host service listens and how long it may think.
#[derive(Clone)]
pub struct HostService {
    path: Arc<Path>,
    timeout: Duration,
    turns: Arc<Semaphore>,
}

/// Why there is no answer; each says what was being done.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(
        "connecting to the host service at {path}: {source}; is `attestrun host` running, and may this user open its socket?"
    )]
    Connect { path: PathBuf, source: io::Error },
    #[error("asking the host service at {path}: {source}")]
    Talk { path: PathBuf, source: io::Error },
    #[error("the host service at {path} answered in another protocol: {source}")]
    Protocol { path: PathBuf, source: WireError },
}

impl HostService {
    pub fn new(path: &Path, timeout: Duration) -> Self {
        Self {
            path: path.into(),
            timeout,
            turns: Arc::new(Semaphore::new(QUESTIONS)),
        }
    }

    /// The bytes of the JSON object that answers `request`.
    pub async fn ask(&self, request: &AgentRequest) -> Result<Vec<u8>, Problem> {
        let question = request.encode().map_err(|e| Problem::bad_request(&e))?;
        let answer = tokio::time::timeout(self.timeout, async {
            // The semaphore is never closed; waiting for a turn counts against the time-out.
            let _turn = self.turns.acquire().await;
            self.exchange(&question).await
        });
        match answer.await {
            Ok(Ok(AgentReply::Ok(object))) => Ok(object),
            Ok(Ok(AgentReply::Err(failure))) => Err(failure.into()),
            Ok(Err(e)) => Err(Problem::no_host_service(e.to_string())),
            Err(_) => Err(Problem::timeout(format!(
                "no answer from the host service at {} within {} s; try again later",
                self.path.display(),
                self.timeout.as_secs()
            ))),
        }
    }

    async fn exchange(&self, question: &[u8]) -> Result<AgentReply, RelayError> {
        let path = || self.path.to_path_buf();
        let talk = |source| RelayError::Talk {
            path: path(),
            source,
        };
        let protocol = |source| RelayError::Protocol {
            path: path(),
            source,
        };
        let mut stream =
            UnixStream::connect(&*self.path)
                .await
                .map_err(|source| RelayError::Connect {
                    path: path(),
                    source,
                })?;
        stream.write_all(question).await.map_err(talk)?;
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await.map_err(talk)?;
        let length = frame_length(header, MAX_REPLY).map_err(protocol)?;
        // Grows with what really arrives: a length alone shall not take memory.
        let mut body = Vec::new();
        (&mut stream)
            .take(length as u64)
            .read_to_end(&mut body)
            .await
            .map_err(talk)?;
        if body.len() < length {
            return Err(talk(io::ErrorKind::UnexpectedEof.into()));
        }
        AgentReply::decode(&body).map_err(protocol)
    }
}
