//! The HTTP face: three resources, bounded bodies, problem documents for everything else.

use crate::{problem::Problem, relay::HostService};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, Method, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use verify::wire::{AgentRequest, Challenge, MAX_REQUEST, WireError};

/// The media type of evidence: a JSON CMW collection (RFC 9999).
const EVIDENCE: &str = verify::evidence::MEDIA_TYPE;
const JSON: &str = "application/json";

pub fn service(host: HostService) -> Router {
    Router::new()
        .route("/v1/challenge", post(challenge))
        .route("/v1/host", get(facts))
        .route("/healthz", get(healthz))
        .fallback(async |uri: Uri| Problem::not_here(uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Problem::method(method.as_str(), uri.path())
        })
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(host)
}

/// Evidence about one container, fresh by the challenger's nonce.
async fn challenge(
    State(host): State<HostService>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    check_media_type(&headers)?;
    // The only rejections are a body over the limit and a connection that broke while it was read.
    let body = body.map_err(|e| Problem {
        status: e.status(),
        kind: "body",
        title: "the challenge could not be read",
        detail: format!(
            "{}; a challenge has at most {MAX_REQUEST} bytes",
            e.body_text()
        ),
    })?;
    let challenge = Challenge::parse(&body).map_err(|e: WireError| Problem::bad_request(&e))?;
    let evidence = host.ask(&AgentRequest::Challenge(challenge)).await?;
    Ok(answer(EVIDENCE, evidence))
}

/// The host's attestation key, for enrolment: a claim that the caller pins or proves.
async fn facts(State(host): State<HostService>) -> Result<Response, Problem> {
    Ok(answer(JSON, host.ask(&AgentRequest::Host).await?))
}

/// This process serves. Whether the host service does is `GET /v1/host`'s answer.
async fn healthz() -> Response {
    answer(JSON, br#"{"status":"up"}"#.to_vec())
}

fn answer(media_type: &'static str, body: Vec<u8>) -> Response {
    // Evidence is good for one nonce: no intermediary may keep it (RFC 9111, section 5.2.2.5).
    (
        [
            (header::CONTENT_TYPE, media_type),
            (header::CACHE_CONTROL, "no-store"),
        ],
        body,
    )
        .into_response()
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let found = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = found.and_then(|text| text.split(';').next()).map(str::trim);
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case(JSON) => Ok(()),
        _ => Err(Problem::media_type(found)),
    }
}

#[cfg(test)]
mod tests;
