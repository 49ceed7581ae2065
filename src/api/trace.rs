//! Request ids: each request has one, its own or one of ours; its answer, its lines in the log and its span name it.

use std::time::Instant;

use axum::extract::{MatchedPath, OriginalUri, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::ids::{self, SessionId};
use crate::telemetry::traces::Answering;

/// The header that names a request.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Names a request, and notes how it was answered. The query is left out: a token may stand in it.
pub(super) async fn name(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_fit(id)).cloned();
    let id = id.or_else(|| HeaderValue::from_str(&ids::random_uuid()).ok());
    let id = id.unwrap_or(HeaderValue::from_static("unnamed"));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), %method, path);
    let began = Instant::now();
    request.extensions_mut().insert(Name(id.clone()));
    let mut response = next.run(request).instrument(span.clone()).await;
    span.in_scope(|| tracing::info!(status = response.status().as_u16(), ms = began.elapsed().as_millis(), "answered"));
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The id of a request.
#[derive(Clone)]
struct Name(HeaderValue);

/// Has a span tell of a request. Only of one whose token was valid: others could fill the queue, and put spans into other people's
/// traces by their `traceparent`.
pub(super) async fn tell(request: Request, next: Next) -> Response {
    let Some(answering) = begin(&request) else { return next.run(request).await };
    let response = answering.during(next.run(request)).await;
    answering.answered(response.status());
    response
}

/// The span of a request, where somebody collects them.
fn begin(request: &Request) -> Option<Answering> {
    let id = request.extensions().get::<Name>().and_then(|name| name.0.to_str().ok()).unwrap_or_default();
    // Below `/v1` the path is told without it.
    let path = request.extensions().get::<OriginalUri>().map_or(request.uri(), |uri| &uri.0).path();
    let below = path.strip_prefix("/v1/sessions/").or_else(|| path.strip_prefix("/v1/runs/"));
    let session = below.and_then(|rest| rest.split('/').next()).and_then(SessionId::parse);
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    Answering::begin(request.headers(), request.method(), route, id, session.as_ref().map(SessionId::as_str))
}

/// What others send is repeated where logs are read: a short word and nothing else.
fn is_fit(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=64).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_others_are_short_words() {
        for fit in ["a", "8f-7_x.1", &"x".repeat(64)] {
            assert!(is_fit(&HeaderValue::from_str(fit).unwrap()), "{fit}");
        }
        for unfit in ["", "a b", "<script>", "ä", &"x".repeat(65)] {
            assert!(!is_fit(&HeaderValue::from_bytes(unfit.as_bytes()).unwrap()), "{unfit}");
        }
    }
}
