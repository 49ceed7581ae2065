//! Protocols of other sandboxes, so that their clients work unmodified: `/execute` of the NeMo toolkits ([`nemo`]) and Piston's
//! API ([`piston`]). Thin: sandboxes, processes and sessions are those of the API.
//!
//! Clients of these protocols send no token by themselves, but take a URL: a token in it (`http://any:TOKEN@host/`) comes as basic
//! authentication. On a port of their own that only this machine reaches, requests without a token belong to one principal.

mod command_run;
mod nemo;
mod piston;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, Response as HttpResponse, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::error::ProblemCode;
use super::guard::Anonymous;
use super::{Api, MAX_BODY, audit, guard, paced_body, refused_body, trace};
pub use piston::PistonVersions;

/// To whom the sandboxes and sessions of requests without a token belong.
const LOCAL: &str = "local";
/// The largest body of a problem.
const MAX_PROBLEM: usize = 64 << 10;

/// The routes for the port of the API: `/nemo/...` and Piston's `/api/v2/...`, which need a token.
pub(super) fn routes(api: &Api) -> Router<Api> {
    Router::new().nest("/nemo", nemo::routes(api)).nest("/api/v2", piston::routes(api))
}

/// The router of a port of their own, where NeMo's clients expect their routes at the root. With `is_open`, requests need no token.
pub fn router(api: Api, is_open: bool) -> Router {
    let anonymous = is_open.then(|| Anonymous(LOCAL.into()));
    let identify = move |mut request: Request, next: Next| {
        let anonymous = anonymous.clone();
        async move {
            anonymous.map(|anonymous| request.extensions_mut().insert(anonymous));
            next.run(request).await
        }
    };
    nemo::routes(&api)
        .nest("/api/v2", piston::routes(&api))
        .layer(middleware::from_fn(identify))
        .layer(middleware::from_fn(refused_body::drain))
        .layer(middleware::from_fn_with_state(api.clone(), guard::check_host))
        .layer(middleware::from_fn(trace::assign_request_id))
        .with_state(api)
}

/// The checks of all requests to a protocol, whose errors have their own shape.
fn checked(api: &Api, router: Router<Api>, describe: fn(&str) -> Value) -> Router<Api> {
    let in_own_shape = move |request: Request, next: Next| async move { reshape(next.run(request).await, describe).await };
    router
        .layer(middleware::from_fn(paced_body::pace))
        .layer(middleware::from_fn_with_state(api.clone(), guard::authenticate))
        .layer(middleware::from_fn(token_of_url))
        .layer(middleware::from_fn_with_state(api.clone(), audit::record))
        .layer(middleware::from_fn(in_own_shape))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// Middleware that takes the password of basic authentication as the token.
async fn token_of_url(mut request: Request, next: Next) -> Response {
    let headers = request.headers_mut();
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let basic = given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    let decoded = basic.and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok());
    let pair = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some((user, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) {
        // A URL may also have the token in place of the user.
        let token = if password.is_empty() { user } else { password };
        if let Ok(value) = HeaderValue::from_str(&format!("Bearer {token}")) {
            headers.insert(header::AUTHORIZATION, value);
        }
    }
    next.run(request).await
}

/// Gives a problem the shape that clients of a protocol read.
async fn reshape(response: Response, describe: fn(&str) -> Value) -> Response {
    if response.extensions().get::<ProblemCode>().is_none() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, MAX_PROBLEM).await.unwrap_or_default();
    let problem: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let detail = problem["detail"].as_str().unwrap_or_default();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    HttpResponse::from_parts(parts, Body::from(describe(detail).to_string())).into_response()
}
