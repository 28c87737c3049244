//! Errors as challengers see them: RFC 9457 problem documents.

use crate::caller::Caller;
use axum::{
    extract::rejection::BytesRejection,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::time::Duration;
use verify::wire::{Failure, FailureKind, MAX_REQUEST, WireError};

/// A problem document; `kind` is the last part of its `type` and does not change between versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    pub kind: &'static str,
    pub title: &'static str,
    pub detail: String,
    /// Seconds (RFC 9110, section 10.2.3).
    pub retry_after: Option<u64>,
}

/// What there is, for those who ask for something else.
const RESOURCES: &str = "this service has POST /v1/challenge and /v1/host/activation, GET /v1/containers, \
                         /v1/host, /v1/host/endorsement, /metrics, /healthz and /openapi.json";

/// RFC 9457, section 3.1.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
}

impl Problem {
    /// A body over the limit, or a connection that broke while it was read.
    pub fn body(e: &BytesRejection) -> Self {
        Self {
            status: e.status(),
            kind: "body",
            title: "the request could not be read",
            detail: format!("{}; it has at most {MAX_REQUEST} bytes", e.body_text()),
            retry_after: None,
        }
    }

    pub fn bad_request(e: &WireError) -> Self {
        Self {
            status: match e {
                WireError::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
                _ => StatusCode::BAD_REQUEST,
            },
            kind: "bad-request",
            title: "the request cannot be understood",
            detail: e.to_string(),
            retry_after: None,
        }
    }

    /// The host service cannot be reached, or does not speak our protocol.
    pub fn no_host_service(detail: String) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "no-host-service",
            title: "the host service does not answer",
            detail,
            retry_after: None,
        }
    }

    pub fn timeout(detail: String) -> Self {
        Self {
            status: StatusCode::GATEWAY_TIMEOUT,
            kind: "timeout",
            title: "the host service took too long",
            detail,
            retry_after: None,
        }
    }

    pub fn not_here(path: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "no-such-resource",
            title: "no such resource",
            detail: format!("{path}: {RESOURCES}"),
            retry_after: None,
        }
    }

    pub fn method(method: &str, path: &str) -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            kind: "method",
            title: "wrong method",
            detail: format!("{method} {path}: {RESOURCES}"),
            retry_after: None,
        }
    }

    pub fn media_type(found: Option<&str>) -> Self {
        Self {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            kind: "media-type",
            title: "a challenge is JSON",
            detail: format!(
                "send Content-Type: application/json (found: {})",
                found.unwrap_or("none")
            ),
            retry_after: None,
        }
    }

    /// The challenge came over another connection than the challenger had: somebody is in between.
    pub fn relayed() -> Self {
        Self {
            status: StatusCode::MISDIRECTED_REQUEST,
            kind: "relayed",
            title: "the challenge is bound to another connection",
            detail: "channel_binding is not this connection's: somebody relays the challenge, or the \
                     challenger did not take the exporter of RFC 9266; over a unix socket it is `none`"
                .to_owned(),
            retry_after: None,
        }
    }

    pub fn too_fast(caller: &Caller, wait: Duration) -> Self {
        let seconds = crate::http::whole_seconds(wait);
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: "too-fast",
            title: "too many questions",
            detail: format!("{caller} may ask again in {seconds} s"),
            retry_after: Some(seconds),
        }
    }

    pub fn not_yours(caller: &Caller, what: &str) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            kind: "not-yours",
            title: "not for this challenger",
            detail: format!(
                "{what} is for root and those whom the agent's --fleet names; this is {caller}"
            ),
            retry_after: None,
        }
    }
}

impl From<Failure> for Problem {
    fn from(Failure { kind, detail }: Failure) -> Self {
        let (status, kind, title) = match kind {
            FailureKind::BadRequest => (
                StatusCode::BAD_REQUEST,
                "bad-request",
                "the challenge cannot be understood",
            ),
            FailureKind::NotFound => (StatusCode::NOT_FOUND, "not-found", "no such container"),
            FailureKind::Ambiguous => (
                StatusCode::CONFLICT,
                "ambiguous",
                "several containers have this id",
            ),
            FailureKind::Refused => (
                StatusCode::FORBIDDEN,
                "refused",
                "the host refuses to answer",
            ),
            FailureKind::Failed => (
                StatusCode::BAD_GATEWAY,
                "failed",
                "the host service could not make evidence",
            ),
        };
        Self {
            status,
            kind,
            title,
            detail,
            retry_after: None,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: format!("tag:attestrun,2026:problem/{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        // Four strings and a number always have a JSON spelling; without one the status still says it.
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_own_status() {
        let mut seen = std::collections::BTreeSet::new();
        for kind in [
            FailureKind::BadRequest,
            FailureKind::NotFound,
            FailureKind::Ambiguous,
            FailureKind::Refused,
            FailureKind::Failed,
        ] {
            let problem = Problem::from(Failure {
                kind,
                detail: "why".to_owned(),
            });
            assert!(problem.status.is_client_error() || problem.status.is_server_error());
            assert_eq!(problem.detail, "why");
            assert!(seen.insert(problem.status.as_u16()), "{kind:?}");
        }
    }
}
