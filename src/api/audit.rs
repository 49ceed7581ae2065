//! The audit of requests: changes, downloads of files, and refusals.

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use axum::extract::{MatchedPath, OriginalUri, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::Api;
use super::error::ProblemCode;
use super::trace::RequestId;
use crate::audit::AuditRecord;
use crate::auth::{Identity, Scope};
use crate::ids::SessionId;

/// Records a second of requests without a valid token. More would only push out what matters.
const REFUSED_PER_SECOND: NonZeroU32 = NonZeroU32::new(5).unwrap();

/// Bounds the records of requests without a valid token.
#[derive(Debug)]
pub struct RefusalLimit(DefaultDirectRateLimiter);

impl Default for RefusalLimit {
    fn default() -> Self {
        Self(RateLimiter::direct(Quota::per_second(REFUSED_PER_SECOND)))
    }
}

/// Who sends a request. An extension, which the guard fills in.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject(Arc<OnceLock<(Option<String>, Scope)>>);

impl Subject {
    pub fn set(&self, identity: &Identity) {
        let _ = self.0.set((Some(name_of(identity)), identity.scope));
    }
}

/// The principal, or the session of a share: whoever has a link is not its owner.
fn name_of(identity: &Identity) -> String {
    identity.only.as_ref().map_or_else(|| identity.principal.to_string(), |id| format!("share of {id}"))
}

/// The record of a command over a WebSocket.
pub(super) fn of_command(
    op: &str,
    identity: &Identity,
    session: &SessionId,
    cell: Option<String>,
    result: &str,
) -> AuditRecord {
    AuditRecord {
        action: format!("socket {op}"),
        principal: Some(name_of(identity)),
        scope: Some(identity.scope.name()),
        session: Some(session.to_string()),
        target: cell,
        result: result.to_owned(),
        ..AuditRecord::default()
    }
}

/// What is recorded of a request besides who sent it, as far as the request says it.
fn begin(request: &Request) -> AuditRecord {
    // Nested routers see the path without `/v1`.
    let path = request.extensions().get::<OriginalUri>().map_or(request.uri(), |uri| &uri.0).path();
    let route = request.extensions().get::<MatchedPath>().map_or("no such path", MatchedPath::as_str);
    let rest = path.strip_prefix("/v1/sessions/").or_else(|| path.strip_prefix("/v1/runs/")).unwrap_or_default();
    let (session, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let target = rest.split_once('/').map(|(_, target)| target);
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    AuditRecord {
        action: format!("{} {route}", request.method()),
        session: text(session),
        target: target.and_then(text),
        request: request.extensions().get::<RequestId>().and_then(|id| id.0.to_str().ok().map(str::to_owned)),
        ..AuditRecord::default()
    }
}

/// Middleware that records a request and its result.
pub(super) async fn record(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let mut record = begin(&request);
    let is_recorded = changes || record.action.contains("/files/");
    let subject = Subject::default();
    request.extensions_mut().insert(subject.clone());
    let response = next.run(request).await;
    let status = response.status();
    let is_refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    if !is_recorded && !is_refused {
        return response;
    }
    match subject.0.get() {
        Some((principal, scope)) => (record.principal, record.scope) = (principal.clone(), Some(scope.name())),
        None if api.refusal_limit.0.check().is_err() => return response,
        None => {}
    }
    if let Some(created) = response.headers().get(header::LOCATION).and_then(|path| path.to_str().ok()) {
        // `/v1/sessions/ID`, or `/v1/sessions/ID/cells/ID`.
        let mut parts = created.split('/').skip(3);
        record.session = parts.next().map(str::to_owned);
        record.target = parts.nth(1).map(str::to_owned).or(record.target);
    }
    record.status = Some(status.as_u16());
    let code = response.extensions().get::<ProblemCode>().map(|code| code.0);
    record.result =
        code.unwrap_or(if status.is_success() || status.is_informational() { "ok" } else { "failed" }).to_owned();
    api.audit.record(&record);
    response
}
