//! The audit of requests: changes, downloads of files, artifacts and notebooks, and refusals.

use std::sync::{Arc, OnceLock};

use axum::extract::{MatchedPath, OriginalUri, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::Api;
use super::audit_limit::AuditLimit;
use super::error::ProblemCode;
use super::trace::RequestId;
use crate::audit::{AuditLog, AuditRecord};
use crate::auth::{Identity, Scope};

/// Who sends a request. An extension, which the guard fills in.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject(Arc<OnceLock<(Option<String>, Scope)>>);

impl Subject {
    pub fn set(&self, identity: &Identity) {
        let _ = self.0.set((Some(name_of(identity)), identity.scope));
    }
}

/// The name of the caller in records: its principal, or for the token of a share the session that it shows. The users of a share are
/// not the owner of the session.
fn name_of(identity: &Identity) -> String {
    identity.only.as_ref().map_or_else(|| identity.principal.to_string(), |id| format!("share of {id}"))
}

/// The record of a command over a WebSocket, without what it is about.
pub(super) fn of_command(op: &str, identity: &Identity, result: &str) -> AuditRecord {
    AuditRecord {
        action: format!("socket {op}"),
        principal: Some(name_of(identity)),
        scope: Some(identity.scope.name()),
        result: result.to_owned(),
        ..AuditRecord::default()
    }
}

/// What is recorded of a request besides who sent it, as far as the request says it.
fn begin(request: &Request) -> AuditRecord {
    // Nested routers see the path without `/v1`.
    let path = request.extensions().get::<OriginalUri>().map_or(request.uri(), |uri| &uri.0).path();
    let route = request.extensions().get::<MatchedPath>().map_or("no such path", MatchedPath::as_str);
    let sandbox = path.strip_prefix("/v1/sandboxes/");
    let session = path.strip_prefix("/v1/sessions/").or_else(|| path.strip_prefix("/v1/runs/"));
    let rest = session.or(sandbox).unwrap_or_default();
    let (id, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let target = rest.split_once('/').map(|(_, target)| target);
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    AuditRecord {
        action: format!("{} {route}", request.method()),
        session: session.and_then(|_| text(id)),
        sandbox: sandbox.and_then(|_| text(id)),
        target: target.and_then(text),
        request: request.extensions().get::<RequestId>().and_then(|id| id.0.to_str().ok().map(str::to_owned)),
        ..AuditRecord::default()
    }
}

/// Whether a request is recorded if it is not refused: changes, and downloads of files, artifacts and notebooks.
fn is_change_or_download(method: &Method, route: &str) -> bool {
    let is_change = !matches!(*method, Method::GET | Method::HEAD);
    is_change
        || route.contains("/files/")
        || ["/artifacts/{sha256}", "/{session}/notebook"].iter().any(|end| route.ends_with(end))
}

/// The record of a request that is being handled. If the client disconnects, the handling is dropped, and so is this: then the
/// record says so, because what was begun may have been done.
struct PendingRecord {
    log: AuditLog,
    limit: AuditLimit,
    subject: Subject,
    record: AuditRecord,
    is_change_or_download: bool,
    is_written: bool,
}

impl PendingRecord {
    fn finish(mut self, response: &Response) {
        self.is_written = true;
        let status = response.status();
        let is_refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        if !self.is_change_or_download && !is_refused {
            return;
        }
        let record = &mut self.record;
        if let Some(created) = response.headers().get(header::LOCATION).and_then(|path| path.to_str().ok()) {
            // `/v1/sessions/ID`, or `/v1/sessions/ID/cells/ID`; the same for sandboxes and their processes.
            let mut parts = created.split('/').skip(2);
            let owner = if parts.next() == Some("sandboxes") { &mut record.sandbox } else { &mut record.session };
            *owner = parts.next().map(str::to_owned);
            record.target = parts.nth(1).map(str::to_owned).or(record.target.take());
        }
        record.status = Some(status.as_u16());
        let code = response.extensions().get::<ProblemCode>().map(|code| code.0);
        let otherwise = if status.is_success() || status.is_informational() { "ok" } else { "failed" };
        code.unwrap_or(otherwise).clone_into(&mut record.result);
        self.write(is_refused || status == StatusCode::TOO_MANY_REQUESTS);
    }

    /// What is refused is limited, and so is everything of readers: their links may be in many hands.
    fn write(&mut self, is_refused: bool) {
        let mut is_limited = is_refused;
        match self.subject.0.get() {
            Some((principal, scope)) => {
                (self.record.principal, self.record.scope) = (principal.clone(), Some(scope.name()));
                is_limited |= *scope < Scope::Use;
            }
            None => is_limited = true,
        }
        if is_limited {
            self.limit.record(&self.log, &self.record);
        } else {
            self.log.record(&self.record);
        }
    }
}

impl Drop for PendingRecord {
    fn drop(&mut self) {
        if !self.is_written && self.is_change_or_download {
            "abandoned".clone_into(&mut self.record.result);
            self.write(false);
        }
    }
}

/// Middleware that records a request and its result.
pub(super) async fn record(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let is_change_or_download = is_change_or_download(request.method(), route);
    let (record, subject) = (begin(&request), Subject::default());
    request.extensions_mut().insert(subject.clone());
    let pending =
        PendingRecord { log: api.audit, limit: api.audit_limit, subject, record, is_change_or_download, is_written: false };
    let response = next.run(request).await;
    pending.finish(&response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit;
    use crate::config::Paths;

    #[test]
    fn dropped_change_is_recorded_as_abandoned() {
        let folder = std::env::temp_dir().join(format!("cellkeep-pending-{}", crate::ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let paths = Paths::new(&folder);
        for is_change_or_download in [true, false] {
            let (log, limit) = (AuditLog::new(&paths), AuditLimit::default());
            let (subject, record) = (Subject::default(), AuditRecord::default());
            drop(PendingRecord { log, limit, subject, record, is_change_or_download, is_written: false });
        }
        let mut results = Vec::new();
        audit::read(&paths, |line| results.push(line.value["result"].clone())).unwrap();
        assert_eq!(results, ["abandoned"]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn changes_and_downloads_are_recorded() {
        for (method, route) in [
            (Method::POST, "/v1/sessions/{session}/cells"),
            (Method::GET, "/v1/sessions/{session}/files/{*path}"),
            (Method::GET, "/v1/sessions/{session}/notebook"),
            (Method::GET, "/v1/runs/{session}/notebook"),
            (Method::GET, "/v1/artifacts/{sha256}"),
        ] {
            assert!(is_change_or_download(&method, route), "{method} {route}");
        }
        for route in ["/v1/sessions", "/v1/sessions/{session}/cells", "/v1/sessions/{session}/artifacts"] {
            assert!(!is_change_or_download(&Method::GET, route), "{route}");
        }
    }
}
