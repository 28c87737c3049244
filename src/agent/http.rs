//! The HTTP face: few resources, bounded bodies, problem documents for everything else.
//!
//! `openapi.json` beside this file describes it; the tests compare the two.

use crate::{
    caller::{Access, Caller, Peer, View},
    coding::coded,
    metrics::{End, Metrics},
    problem::Problem,
    rate::Rate,
    relay::HostService,
};
use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, Method, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use verify::{
    evidence::Evidence,
    tpm2::Credential,
    wire::{AgentRequest, Challenge, ChannelBinding, Has, MAX_REPLY, MAX_REQUEST, WireError},
};

/// The media type of evidence: a JSON CMW collection (RFC 9999).
const EVIDENCE: &str = verify::evidence::MEDIA_TYPE;
const JSON: &str = "application/json";
/// What this service is, for people and programs (OpenAPI 3.1).
const OPENAPI: &str = include_str!("openapi.json");

/// What all answers share.
pub struct Service {
    pub host: HostService,
    pub access: Access,
    pub rate: Rate,
    pub metrics: Arc<Metrics>,
}

type Shared = State<Arc<Service>>;
type From = ConnectInfo<Peer>;

pub fn router(service: Service) -> Router {
    Router::new()
        .route("/v1/challenge", post(challenge))
        .route("/v1/containers", get(containers))
        .route("/v1/host", get(facts))
        .route("/v1/host/endorsement", get(endorsement))
        .route("/v1/host/activation", post(activation))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/openapi.json", get(openapi))
        .fallback(async |uri: Uri| Problem::not_here(uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Problem::method(method.as_str(), uri.path())
        })
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(Arc::new(service))
}

/// Evidence about one container, fresh by the challenger's nonce.
async fn challenge(
    State(service): Shared,
    ConnectInfo(peer): From,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let since = Instant::now();
    let answered = service.answer(&peer, &headers, body, since).await;
    let end = match &answered {
        Ok((_, end)) => *end,
        Err(problem) if problem.status.as_u16() == 429 => End::Limited,
        Err(problem) if problem.status.is_client_error() => End::Refused,
        Err(_) => End::Failed,
    };
    service.metrics.challenge(end, since.elapsed());
    answered.map(|(evidence, _)| answer(EVIDENCE, evidence, &headers))
}

impl Service {
    async fn answer(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
        now: Instant,
    ) -> Result<(Vec<u8>, End), Problem> {
        self.limit(&peer.caller, now)?;
        check_media_type(headers)?;
        let body = body.map_err(|e| Problem::body(&e))?;
        let challenge = Challenge::parse(&body).map_err(|e: WireError| Problem::bad_request(&e))?;
        let asked = challenge.channel_binding;
        if asked != ChannelBinding::None && asked != peer.binding {
            return Err(Problem::relayed());
        }
        // Whose container it is shows in the whole log alone; what the challenger has is left out here.
        let has = challenge.has;
        let whole = Challenge {
            has: Has::default(),
            ..challenge
        };
        let evidence = self.host.ask(&AgentRequest::Challenge(whole)).await?;
        seen_by(self.access.view(&peer.caller), evidence, &has)
    }

    fn limit(&self, caller: &Caller, now: Instant) -> Result<(), Problem> {
        self.rate
            .take(caller, now)
            .map_err(|wait| Problem::too_fast(caller, wait))
    }

    /// For those who look after the fleet alone.
    fn demand_fleet(&self, caller: &Caller, what: &'static str) -> Result<(), Problem> {
        match self.access.view(caller) {
            View::Everything => Ok(()),
            View::Tenant(_) | View::Outside => Err(Problem::not_yours(caller, what)),
        }
    }
}

/// The evidence, as far as somebody with this view may read it, without what they have.
fn seen_by(view: View<'_>, evidence: Vec<u8>, has: &Has) -> Result<(Vec<u8>, End), Problem> {
    if view == View::Everything && has.is_nothing() {
        return Ok((evidence, End::Answered));
    }
    let unreadable =
        |e: String| Problem::no_host_service(format!("its evidence is malformed: {e}"));
    let parsed = Evidence::parse(&evidence, MAX_REPLY).map_err(|e| unreadable(e.to_string()))?;
    let theirs = match view {
        View::Everything => true,
        View::Tenant(tenant) => parsed.tenant().as_deref() == Some(tenant),
        View::Outside => false,
    };
    if theirs {
        return Ok((parsed.without(has).encode(), End::Answered));
    }
    let opaque = parsed.opaque().map_err(|e| unreadable(e.to_string()))?;
    Ok((opaque.encode(), End::Opaque))
}

/// The host's attestation key, for enrolment: a claim that the caller pins or proves.
async fn facts(
    State(service): Shared,
    ConnectInfo(peer): From,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    service.limit(&peer.caller, Instant::now())?;
    let facts = service.host.ask(&AgentRequest::Host).await?;
    Ok(answer(JSON, facts, &headers))
}

/// The endorsement key and its certificate, for enrolment.
async fn endorsement(
    State(service): Shared,
    ConnectInfo(peer): From,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    service.limit(&peer.caller, Instant::now())?;
    let endorsement = service.host.ask(&AgentRequest::Endorsement).await?;
    Ok(answer(JSON, endorsement, &headers))
}

/// The secret out of a credential, which the host's TPM alone can open.
async fn activation(
    State(service): Shared,
    ConnectInfo(peer): From,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    service.limit(&peer.caller, Instant::now())?;
    check_media_type(&headers)?;
    let body = body.map_err(|e| Problem::body(&e))?;
    let credential = Credential::parse(&body).map_err(|e: WireError| Problem::bad_request(&e))?;
    let secret = service
        .host
        .ask(&AgentRequest::Activate(credential))
        .await?;
    Ok(answer(JSON, secret, &headers))
}

/// Which attested containers run.
async fn containers(
    State(service): Shared,
    ConnectInfo(peer): From,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    service.demand_fleet(&peer.caller, "the list of containers")?;
    service.limit(&peer.caller, Instant::now())?;
    let list = service.host.ask(&AgentRequest::Containers).await?;
    Ok(answer(JSON, list, &headers))
}

async fn metrics(State(service): Shared, ConnectInfo(peer): From) -> Result<Response, Problem> {
    service.demand_fleet(&peer.caller, "the metrics")?;
    let text = service.metrics.text().into_bytes();
    Ok(answer(crate::metrics::MEDIA_TYPE, text, &HeaderMap::new()))
}

/// This process serves. Whether the host service does is `GET /v1/host`'s answer.
async fn healthz() -> Response {
    answer(JSON, br#"{"status":"up"}"#.to_vec(), &HeaderMap::new())
}

async fn openapi(headers: HeaderMap) -> Response {
    answer(JSON, OPENAPI.as_bytes().to_vec(), &headers)
}

fn answer(media_type: &'static str, body: Vec<u8>, asked: &HeaderMap) -> Response {
    // Evidence is good for one nonce: no intermediary may keep it (RFC 9111, section 5.2.2.5).
    let head = [
        (header::CONTENT_TYPE, HeaderValue::from_static(media_type)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::VARY, HeaderValue::from_static("accept-encoding")),
    ];
    match coded(&body, asked) {
        Some((coding, coded)) => {
            (head, [(header::CONTENT_ENCODING, coding)], coded).into_response()
        }
        None => (head, body).into_response(),
    }
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

/// The longest that a challenger is told to wait.
pub fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests;
