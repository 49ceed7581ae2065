//! The checks of every request: host and origin, authentication, scope and rate limit.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{OriginalUri, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::Api;
use super::audit::Subject;
use super::error::Problem;
use super::input_budget::InputAccount;
use super::rate_limit::{MAX_STREAMS, OpenStream};
use super::refused_body::ToKnownClient;
use super::trace::REQUEST_ID;
use crate::auth::{Identity, Scope, TokenHash};
use crate::ids::{PrincipalId, SessionId};

/// How long a browser may cache the response to a CORS preflight request.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

/// Tells a principal which of its sessions were deleted to make room.
const EVICTED: HeaderName = HeaderName::from_static("cellkeep-evicted-sessions");

/// The hosts and origins that are accepted.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Whether the server listens on loopback only. Then only the names of loopback are accepted, which prevents DNS
    /// rebinding: a page whose DNS name points to this machine.
    pub loopback: bool,
    /// Additional host names, without ports.
    pub hosts: Vec<String>,
    /// Additional origins, as browsers write them.
    pub origins: Vec<String>,
    /// Whether the metrics need no token.
    pub open_metrics: bool,
}

impl Guard {
    fn accepts_host(&self, host: &str) -> bool {
        let name = without_port(host);
        let is_loopback = name.eq_ignore_ascii_case("localhost")
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        !self.loopback || is_loopback || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// A page may use the API if it has the same origin, or a configured one.
    fn accepts_origin(&self, origin: &str, host: &str) -> bool {
        let is_same = origin.split_once("://").is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(host));
        is_same || self.is_configured_origin(origin)
    }

    fn is_configured_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|known| known.eq_ignore_ascii_case(origin))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Middleware that refuses requests for unknown hosts and from unknown origins.
pub(super) async fn check_host(State(api): State<Api>, request: Request, next: Next) -> Result<Response, Problem> {
    let host = header_text(request.headers(), header::HOST).or_else(|| request.uri().authority().map(|host| host.as_str()));
    let forbidden = |code, detail: String| Err(Problem::new(StatusCode::FORBIDDEN, code, detail));
    if request.headers().get_all(header::HOST).iter().nth(1).is_some() {
        // A proxy may have checked the other one.
        return Err(Problem::bad_request("two_hosts", "the request names more than one host"));
    }
    match host {
        Some(host) if api.guard.accepts_host(host) => {
            if let Some(origin) = header_text(request.headers(), header::ORIGIN)
                && !api.guard.accepts_origin(origin, host)
            {
                return forbidden(
                    "foreign_origin",
                    format!("pages of {origin} may not use this server; --allow-origin allows an origin"),
                );
            }
        }
        Some(host) => {
            return forbidden("foreign_host", format!("{host} is not a name of this server; --allow-host adds a name"));
        }
        None => return Err(Problem::bad_request("no_host", "the request names no host")),
    }
    Ok(next.run(request).await)
}

/// The CORS layer: which requests pages of the configured origins may send, and which headers they may read. It answers
/// preflight requests before authentication, because browsers send no token with them. There are no cookies.
pub(super) fn cors_layer(guard: Arc<Guard>) -> CorsLayer {
    let is_allowed =
        move |origin: &HeaderValue, _: &Parts| origin.to_str().is_ok_and(|origin| guard.is_configured_origin(origin));
    let conditions = [
        header::RANGE,
        header::IF_RANGE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
    ];
    let request_headers =
        [header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static("last-event-id"), REQUEST_ID];
    let request_headers: Vec<_> = request_headers.into_iter().chain(conditions).collect();
    let response_headers = [
        header::LOCATION,
        header::RETRY_AFTER,
        header::CONTENT_DISPOSITION,
        header::CONTENT_RANGE,
        header::ACCEPT_RANGES,
        header::ETAG,
        header::LAST_MODIFIED,
        REQUEST_ID,
        EVICTED,
    ];
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(is_allowed))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(request_headers)
        .expose_headers(response_headers)
        .max_age(PREFLIGHT_MAX_AGE)
}

fn token_in_header(headers: &HeaderMap) -> Option<String> {
    let (scheme, token) = header_text(headers, header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// To whom requests without a token belong. An extension of requests to ports that only this machine reaches.
#[derive(Clone)]
pub(super) struct Anonymous(pub PrincipalId);

impl Anonymous {
    fn identify(&self) -> (Identity, TokenHash) {
        (Identity { principal: self.0.clone(), scope: Scope::Use, only: None }, TokenHash::NONE)
    }
}

/// The identity behind the token of a request.
async fn identify(api: &Api, token: Option<String>) -> Result<(Identity, TokenHash), Problem> {
    let unauthorized = |code, detail| Problem::new(StatusCode::UNAUTHORIZED, code, detail);
    let Some(token) = token else {
        return Err(unauthorized("no_token", "a token is required: Authorization: Bearer TOKEN"));
    };
    if let Some(known) = api.tokens.identify(&token) {
        return Ok(known);
    }
    api.rate_limits.check_invalid_token().map_err(|after| too_fast("with invalid tokens", after))?;
    if let Some(new) = api.tokens.identify_new(&token, api.reader.store()).await? {
        return Ok(new);
    }
    Err(unauthorized("bad_token", "this token is unknown, revoked or expired"))
}

/// Checks that a request may read the metrics. They say how much everybody uses the server, so they are not for its users.
pub(super) async fn check_metrics(api: &Api, headers: &HeaderMap) -> Result<(), Problem> {
    if api.guard.open_metrics {
        return Ok(());
    }
    match identify(api, token_in_header(headers)).await?.0.scope {
        Scope::Metrics | Scope::Admin => Ok(()),
        Scope::Read | Scope::Use => {
            let detail =
                "metrics need a token with the scope `metrics` or `admin`, or the option --open-metrics of the server";
            Err(Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", detail))
        }
    }
}

/// Middleware that forbids to store the answers of the API and the metrics: they show the data of a principal, and a token may be revoked.
pub(super) async fn no_store(request: Request, next: Next) -> Response {
    let shows_data = request.uri().path().starts_with("/v1/") || request.uri().path() == "/metrics";
    let mut response = next.run(request).await;
    if shows_data {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Middleware that authenticates a request and checks its scope and rate. Browsers cannot set headers for sockets and event
/// streams, so these may pass the token in the query.
pub(super) async fn authenticate(State(api): State<Api>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let is_stream = ["/events", "/socket"].iter().any(|end| request.uri().path().ends_with(end));
    let from_query = || token_in_query(request.uri()).filter(|_| is_stream);
    let token = token_in_header(request.headers()).or_else(from_query);
    let (identity, token) = match (token, request.extensions().get::<Anonymous>()) {
        (None, Some(anonymous)) => anonymous.identify(),
        (token, _) => identify(&api, token).await?,
    };
    if let Some(subject) = request.extensions().get::<Subject>() {
        subject.set(&identity);
    }
    // Refusals count as well: each may be recorded.
    api.rate_limits.check_request(&identity.rate_key()).map_err(|after| too_fast("of this principal", after))?;
    if identity.scope == Scope::Metrics {
        let detail = "this token can only read /metrics";
        return Err(Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", detail));
    }
    if identity.scope < Scope::Use && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let detail = "this token can only read; a token with the scope `use` is required";
        return Err(Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", detail));
    }
    if let Some(session) = &identity.only
        && !is_in_share(request.extensions().get::<OriginalUri>().map_or(request.uri(), |uri| &uri.0).path(), session)
    {
        let detail = "this share can read one session without its files, and nothing else";
        return Err(Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", detail));
    }
    // A reader of a share learns nothing about the owner.
    let owner = identity.only.is_none().then(|| identity.principal.clone());
    let account = InputAccount { budget: api.input.clone(), principal: identity.rate_key() };
    request.extensions_mut().insert(account);
    request.extensions_mut().insert(identity);
    request.extensions_mut().insert(token);
    let mut response = next.run(request).await;
    if let Some(evicted) = owner.and_then(|owner| evicted_header(&api, &owner)) {
        response.headers_mut().insert(EVICTED, evicted);
    }
    response.extensions_mut().insert(ToKnownClient);
    Ok(response)
}

/// The sessions of a principal that were deleted in the last day to make room, with commas between them.
fn evicted_header(api: &Api, principal: &PrincipalId) -> Option<HeaderValue> {
    let evicted: Vec<String> = api.sessions.evicted(principal).iter().map(ToString::to_string).collect();
    if evicted.is_empty() { None } else { HeaderValue::from_str(&evicted.join(", ")).ok() }
}

/// The response to requests above a rate limit.
pub(super) fn too_fast(which: &str, after: u32) -> Problem {
    let detail = format!("requests {which} exceed the rate limit of this server; wait {after} s (--rate-limit)");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail).retry_after(after)
}

/// Counts an open stream of the caller, until the guard is dropped.
pub(super) fn open_stream(api: &Api, identity: &Identity) -> Result<OpenStream, Problem> {
    api.rate_limits.open_stream(&identity.rate_key()).ok_or_else(|| {
        let detail = format!("you have {MAX_STREAMS} open streams and waiting requests, which is the limit; close some");
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", detail).retry_after(5)
    })
}

/// Counts a request with `wait` as an open stream, because a client that disconnects meanwhile is noticed only when the
/// response is sent.
pub(super) fn acquire_wait_slot(
    api: &Api,
    identity: &Identity,
    wait: Option<Duration>,
) -> Result<Option<OpenStream>, Problem> {
    wait.map(|_| open_stream(api, identity)).transpose()
}

/// Whether a share of a session can read this path. Files are excluded: people put data there that is not meant for readers
/// of the notebook.
fn is_in_share(path: &str, session: &SessionId) -> bool {
    if matches!(path, "/v1/token" | "/v1/kernels") || path.starts_with("/v1/artifacts/") {
        return true;
    }
    let Some(rest) = path.strip_prefix("/v1/sessions/").and_then(|rest| rest.strip_prefix(session.as_str())) else {
        return false;
    };
    rest.is_empty()
        || ["/cells", "/events", "/socket", "/artifacts", "/notebook"]
            .iter()
            .any(|part| rest.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn token_in_query(uri: &Uri) -> Option<String> {
    let query = uri.query()?;
    // Generated tokens have no characters that are escaped in a query. A token from --token may have some.
    query.split('&').find_map(|pair| pair.strip_prefix("token=")).map(percent_decoded)
}

/// A plus sign stays a plus sign, unlike in forms, because a token from --token may contain one.
fn percent_decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_server_accepts_loopback_names_only() {
        let guard = Guard { loopback: true, hosts: vec!["box.lan".to_owned()], ..Guard::default() };
        for known in ["localhost", "LOCALHOST:7788", "127.0.0.1:1", "[::1]:80", "[::1]", "127.8.8.8", "box.lan:7788"] {
            assert!(guard.accepts_host(known), "{known}");
        }
        for foreign in ["evil.example", "localhost.evil.example:7788", "10.0.0.1", "", "127.0.0.1.evil"] {
            assert!(!guard.accepts_host(foreign), "{foreign}");
        }
        assert!(Guard::default().accepts_host("anything.example"));
    }

    #[test]
    fn foreign_origins_are_refused() {
        let guard = Guard { origins: vec!["https://chat.example".to_owned()], ..Guard::default() };
        assert!(guard.accepts_origin("http://localhost:7788", "localhost:7788"));
        assert!(guard.accepts_origin("https://chat.example", "localhost:7788"));
        for foreign in ["http://localhost:7789", "null", "https://evil.example", "http://localhost:7788.evil.example"] {
            assert!(!guard.accepts_origin(foreign, "localhost:7788"), "{foreign}");
        }
    }

    #[test]
    fn share_reads_one_session_only() {
        let id = SessionId::random();
        let of = |rest: &str| is_in_share(&format!("/v1/sessions/{id}{rest}"), &id);
        for shown in ["", "/cells", "/cells/a", "/events", "/socket", "/notebook", "/artifacts"] {
            assert!(of(shown), "{shown}");
        }
        for hidden in ["x", "/files/", "/files/a", "/shares", "/cellsx", "/chat"] {
            assert!(!of(hidden), "{hidden}");
        }
        let other = format!("/v1/sessions/{}", SessionId::random());
        for hidden in [other.as_str(), "/v1/sessions", "/v1/runs", "/v1/sessions/"] {
            assert!(!is_in_share(hidden, &id), "{hidden}");
        }
    }

    #[test]
    fn query_tokens_are_percent_decoded() {
        let token = |uri: &str| token_in_query(&uri.parse().unwrap());
        assert_eq!(token("/v1/x?after=1&token=a%2Fb%zz").as_deref(), Some("a/b%zz"));
        assert_eq!(token("/v1/x?token_=1"), None);
    }
}
