//! Request ids and request spans. Each request has an id, from the client or generated. The response, the log lines and the
//! span have it as well.

use std::time::Instant;

use axum::extract::{MatchedPath, OriginalUri, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::ids::{self, SessionId};
use crate::telemetry::traces::RequestSpan;

/// The header with the request id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Middleware that assigns the request id, and logs the response. The query is not logged, because it may contain a token.
pub(super) async fn assign_request_id(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| is_valid_id(id)).cloned();
    let id = id.or_else(|| HeaderValue::from_str(&ids::random_uuid()).ok());
    let id = id.unwrap_or(HeaderValue::from_static("unnamed"));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), %method, path);
    let began = Instant::now();
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).instrument(span.clone()).await;
    span.in_scope(|| {
        tracing::info!(status = response.status().as_u16(), ms = began.elapsed().as_millis(), "request completed")
    });
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

#[derive(Clone)]
pub(super) struct RequestId(pub HeaderValue);

/// Middleware that records the span of an authenticated request. Unauthenticated requests have no span: they could fill the
/// queue, and add spans to traces of other people with a forged `traceparent`.
pub(super) async fn record_span(request: Request, next: Next) -> Response {
    let Some(span) = start_span(&request) else { return next.run(request).await };
    let response = span.scope(next.run(request)).await;
    span.end(response.status());
    response
}

/// The span of a request. `None` if traces are disabled.
fn start_span(request: &Request) -> Option<RequestSpan> {
    let id = request.extensions().get::<RequestId>().and_then(|id| id.0.to_str().ok()).unwrap_or_default();
    // Nested routers see the path without `/v1`.
    let path = request.extensions().get::<OriginalUri>().map_or(request.uri(), |uri| &uri.0).path();
    let rest = path.strip_prefix("/v1/sessions/").or_else(|| path.strip_prefix("/v1/runs/"));
    let session = rest.and_then(|rest| rest.split('/').next()).and_then(SessionId::parse);
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    RequestSpan::start(request.headers(), request.method(), route, id, session.as_ref().map(SessionId::as_str))
}

/// Ids from clients appear in logs, so they must be short words.
fn is_valid_id(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=64).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_must_be_short_words() {
        for valid in ["a", "8f-7_x.1", &"x".repeat(64)] {
            assert!(is_valid_id(&HeaderValue::from_str(valid).unwrap()), "{valid}");
        }
        for invalid in ["", "a b", "<script>", "ä", &"x".repeat(65)] {
            assert!(!is_valid_id(&HeaderValue::from_bytes(invalid.as_bytes()).unwrap()), "{invalid}");
        }
    }
}
