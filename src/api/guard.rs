//! Who comes in: the host and origin that a request names, and its token.

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
use super::error::Problem;
use super::pace::{MOST_STREAMS, OpenStream};
use super::trace::REQUEST_ID;
use crate::auth::{Identity, Scope};
use crate::ids::SessionId;

/// For how long a browser need not ask again what a page of another origin may do.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// Which hosts and origins are ours.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Whether we listen on loopback alone: then only loopback's names are ours, and a name that somebody else's DNS points
    /// here is not (DNS rebinding).
    pub loopback: bool,
    /// Further names, without ports.
    pub hosts: Vec<String>,
    /// Further origins, as browsers write them.
    pub origins: Vec<String>,
}

impl Guard {
    fn is_our_host(&self, host: &str) -> bool {
        let name = without_port(host);
        let is_loopback = name.eq_ignore_ascii_case("localhost")
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        !self.loopback || is_loopback || self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(name))
    }

    /// A page of another origin has no business here, unless it was named.
    fn is_our_origin(&self, origin: &str, host: &str) -> bool {
        let same = origin.split_once("://").is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(host));
        same || self.is_named(origin)
    }

    fn is_named(&self, origin: &str) -> bool {
        self.origins.iter().any(|ours| ours.eq_ignore_ascii_case(origin))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Refuses requests for hosts and from origins that are not ours.
pub(super) async fn check_host(State(api): State<Api>, request: Request, next: Next) -> Result<Response, Problem> {
    let host = text(request.headers(), header::HOST).or_else(|| request.uri().authority().map(|host| host.as_str()));
    let forbidden = |code, detail: String| Err(Problem::new(StatusCode::FORBIDDEN, code, detail));
    if request.headers().get_all(header::HOST).iter().nth(1).is_some() {
        // A proxy may have looked at another one than we do.
        return Err(Problem::bad_request("two_hosts", "the request names more than one host"));
    }
    match host {
        Some(host) if api.guard.is_our_host(host) => {
            if let Some(origin) = text(request.headers(), header::ORIGIN)
                && !api.guard.is_our_origin(origin, host)
            {
                return forbidden(
                    "foreign_origin",
                    format!("pages of {origin} may not use this server (--allow-origin lets them)"),
                );
            }
        }
        Some(host) => return forbidden("foreign_host", format!("{host} is no name of this server (--allow-host adds one)")),
        None => return Err(Problem::bad_request("no_host", "the request names no host")),
    }
    Ok(next.run(request).await)
}

/// Tells browsers what pages of the named origins may ask and read (CORS). It answers their questions before a token is looked for:
/// a browser sends none with them, and no cookie of ours exists that it could send.
pub(super) fn sharing(guard: Arc<Guard>) -> CorsLayer {
    let named = move |origin: &HeaderValue, _: &Parts| origin.to_str().is_ok_and(|origin| guard.is_named(origin));
    let asked = [header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static("last-event-id"), REQUEST_ID];
    let told = [header::LOCATION, header::RETRY_AFTER, header::CONTENT_DISPOSITION, REQUEST_ID];
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(named))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(asked)
        .expose_headers(told)
        .max_age(ASK_AGAIN)
}

/// Finds out who asks. A browser's sockets and event streams cannot set headers: they give the token in the query.
pub(super) async fn identify(State(api): State<Api>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let from_header = text(request.headers(), header::AUTHORIZATION)
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim().to_owned());
    let streams = ["/events", "/socket"].iter().any(|end| request.uri().path().ends_with(end));
    let token = from_header.or_else(|| token_in_query(request.uri()).filter(|_| streams));
    let unauthorized = |code, detail| Err(Problem::new(StatusCode::UNAUTHORIZED, code, detail));
    let Some(token) = token else {
        return unauthorized("no_token", "a token is needed: Authorization: Bearer TOKEN");
    };
    let Some((identity, shown)) = api.tokens.identify(&token) else {
        api.pace.count_bad_token().map_err(|after| too_fast("with tokens that are not valid", after))?;
        return unauthorized("bad_token", "this token is not valid (any more)");
    };
    if identity.scope < Scope::Use && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let detail = "this token may only look; one of scope `use` is needed";
        return Err(Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", detail));
    }
    if let Some(session) = &identity.only
        && !is_shared(request.extensions().get::<OriginalUri>().map_or(request.uri(), |uri| &uri.0).path(), session)
    {
        let detail = "this link shows one session, without its files, and nothing else";
        return Err(Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", detail));
    }
    api.pace.count(&identity.counted_as()).map_err(|after| too_fast("of yours", after))?;
    request.extensions_mut().insert(identity);
    request.extensions_mut().insert(shown);
    Ok(next.run(request).await)
}

/// The answer to what comes too fast.
pub(super) fn too_fast(of: &str, after: u32) -> Problem {
    let detail = format!("requests {of} come faster than this server takes them; wait {after} s (--rate-limit)");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail).retry_after(after)
}

/// Counts a stream that is opened.
pub(super) fn open_stream(api: &Api, identity: &Identity) -> Result<OpenStream, Problem> {
    api.pace.open_stream(&identity.counted_as()).ok_or_else(|| {
        let detail = format!("{MOST_STREAMS} streams and waiting requests of yours are open already; close some");
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", detail).retry_after(5)
    })
}

/// Counts a request that waits, as a stream: a client that goes away meanwhile is noticed only when it is answered.
pub(super) fn place_to_wait(api: &Api, identity: &Identity, wait: Option<Duration>) -> Result<Option<OpenStream>, Problem> {
    wait.map(|_| open_stream(api, identity)).transpose()
}

/// What a link to a session shows of it. Files are not shown: what a person puts there is not meant for readers of cells.
fn is_shared(path: &str, session: &SessionId) -> bool {
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
    // Tokens of ours have no character that would be escaped; one given with --token may.
    query.split('&').find_map(|pair| pair.strip_prefix("token=")).map(decoded)
}

/// A plus stays a plus: this is no form, and a token given with --token may hold one.
fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopbacks_names_are_ours_on_loopback() {
        let guard = Guard { loopback: true, hosts: vec!["box.lan".to_owned()], ..Guard::default() };
        for ours in ["localhost", "LOCALHOST:7788", "127.0.0.1:1", "[::1]:80", "[::1]", "127.8.8.8", "box.lan:7788"] {
            assert!(guard.is_our_host(ours), "{ours}");
        }
        for foreign in ["evil.example", "localhost.evil.example:7788", "10.0.0.1", "", "127.0.0.1.evil"] {
            assert!(!guard.is_our_host(foreign), "{foreign}");
        }
        assert!(Guard::default().is_our_host("anything.example"));
    }

    #[test]
    fn pages_of_others_stay_out() {
        let guard = Guard { origins: vec!["https://chat.example".to_owned()], ..Guard::default() };
        assert!(guard.is_our_origin("http://localhost:7788", "localhost:7788"));
        assert!(guard.is_our_origin("https://chat.example", "localhost:7788"));
        for foreign in ["http://localhost:7789", "null", "https://evil.example", "http://localhost:7788.evil.example"] {
            assert!(!guard.is_our_origin(foreign, "localhost:7788"), "{foreign}");
        }
    }

    #[test]
    fn a_link_shows_one_session() {
        let id = SessionId::random();
        let of = |rest: &str| is_shared(&format!("/v1/sessions/{id}{rest}"), &id);
        for shown in ["", "/cells", "/cells/a", "/events", "/socket", "/notebook", "/artifacts"] {
            assert!(of(shown), "{shown}");
        }
        for hidden in ["x", "/files/", "/files/a", "/shares", "/cellsx", "/chat"] {
            assert!(!of(hidden), "{hidden}");
        }
        let other = format!("/v1/sessions/{}", SessionId::random());
        for hidden in [other.as_str(), "/v1/sessions", "/v1/runs", "/v1/sessions/"] {
            assert!(!is_shared(hidden, &id), "{hidden}");
        }
    }

    #[test]
    fn tokens_in_queries_are_decoded() {
        let token = |uri: &str| token_in_query(&uri.parse().unwrap());
        assert_eq!(token("/v1/x?after=1&token=a%2Fb%zz").as_deref(), Some("a/b%zz"));
        assert_eq!(token("/v1/x?token_=1"), None);
    }
}
