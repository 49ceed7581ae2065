//! The HTTP API under `/v1`. It translates between HTTP and the manager, and owns no session state. JSON in and out, errors
//! as `application/problem+json`, events over SSE and WebSocket.

mod cells;
mod chat;
mod docs;
mod error;
mod events;
mod extract;
mod files;
mod guard;
mod notebooks;
mod output_text;
mod rate_limit;
mod response_spool;
mod runs;
mod sessions;
mod shares;
mod socket;
mod trace;
mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{delete, get, patch, post, put};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::auth::{Identity, Scope, TokenHash, Tokens};
use crate::chat::Chats;
use crate::ids::{Access, SessionId};
use crate::manager::{SessionReader, SessionService};
use crate::telemetry;
use error::Problem;
use extract::{Body, Query};
pub use guard::Guard;
pub use rate_limit::RateLimits;
pub use response_spool::ResponseSpool;

/// The largest request body in bytes, except for files.
const MAX_BODY: usize = 32 << 20;

/// How long a client may pause between two parts of a request body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The state that handlers share.
#[derive(Clone)]
pub struct Api {
    pub sessions: SessionService,
    pub reader: SessionReader,
    pub chats: Chats,
    pub tokens: Arc<Tokens>,
    pub guard: Arc<Guard>,
    pub rate_limits: Arc<RateLimits>,
    pub spool: Arc<ResponseSpool>,
}

/// The permit of a connection. A connection that has become a WebSocket keeps it.
#[derive(Clone, Debug)]
pub struct OpenConnection(#[expect(dead_code, reason = "held")] Arc<OwnedSemaphorePermit>);

impl OpenConnection {
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(permit))
    }
}

/// Routes below one session that take no query.
fn session_routes() -> Router<Api> {
    Router::new()
        .route("/", get(sessions::get_one).patch(sessions::patch).delete(sessions::delete))
        .route("/interrupt", post(sessions::interrupt))
        .route("/restart", post(sessions::restart))
        .route("/input", post(sessions::input))
        .route("/complete", post(sessions::complete))
        .route("/inspect", post(sessions::inspect))
        .route("/variables", post(sessions::variables))
        .route("/chat", get(chat::status))
        .route("/chat/cancel", post(chat::cancel))
        .route("/shares", get(shares::list).post(shares::create))
        .route("/shares/{share}", delete(shares::delete))
        .route("/artifacts", get(sessions::artifacts))
        .route("/cells/{cell}", patch(cells::patch).delete(cells::delete))
        .route("/cells/{cell}/cancel", post(cells::cancel))
        .route("/notebook", put(notebooks::put))
        .route("/files/{*path}", get(files::get).put(files::put).delete(files::delete))
}

/// Routes below one session that take a query.
fn session_query_routes() -> Router<Api> {
    Router::new()
        .route("/chat", post(chat::ask))
        .route("/events", get(events::stream))
        .route("/socket", get(socket::open))
        .route("/cells", get(cells::list).post(cells::add))
        .route("/cells/{cell}", get(cells::get_one))
        .route("/cells/{cell}/run", post(cells::run))
        .route("/cells/{cell}/outputs/{output}/text", get(output_text::get))
        .route("/notebook", get(notebooks::get))
        .route("/notebook/run", post(notebooks::run))
        .route("/files/", get(files::list))
}

/// All routes of the API.
pub fn router(api: Api) -> Router {
    let without_query = Router::new()
        .route("/sessions", get(sessions::list).post(sessions::create))
        .nest("/sessions/{session}", session_routes())
        .route("/runs", get(runs::list))
        .route("/runs/{session}", get(runs::get_one).delete(runs::delete))
        .route("/runs/{session}/cancel", post(runs::cancel))
        .route("/runs/{session}/artifacts", get(sessions::artifacts))
        .route("/artifacts/{sha256}", get(sessions::artifact))
        .route("/kernels", get(list_kernels))
        .route("/model", get(chat::model))
        .route("/token", get(shares::token))
        .layer(middleware::from_fn(extract::no_query));
    let v1 = without_query
        .nest("/sessions/{session}", session_query_routes())
        .route("/runs", post(runs::create))
        .route("/runs/{session}/events", get(runs::stream))
        .route("/runs/{session}/notebook", get(notebooks::get))
        .layer(middleware::from_fn_with_state(api.clone(), response_spool::spool_large))
        .layer(RequestBodyTimeoutLayer::new(BODY_TIMEOUT))
        .layer(middleware::from_fn(trace::record_span))
        .layer(middleware::from_fn_with_state(api.clone(), guard::authenticate))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    Router::new()
        .nest("/v1", v1)
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async || "ready\n"))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(docs::openapi))
        .route("/docs", get(docs::page))
        .route("/docs.js", get(docs::script))
        .route("/docs.css", get(docs::style))
        .fallback(async || Problem::not_found("no_such_path", "this path does not exist; /v1/sessions does, for example"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not support this method")
        })
        .layer(guard::cors_layer(api.guard.clone()))
        .layer(middleware::from_fn_with_state(api.clone(), guard::check_host))
        .layer(middleware::from_fn(trace::assign_request_id))
        .with_state(api)
}

async fn metrics(State(api): State<Api>) -> Result<String, Problem> {
    api.sessions.update_gauges().await?;
    metrics::gauge!(telemetry::STREAMS).set(api.rate_limits.open_streams() as f64);
    Ok(telemetry::install().map(metrics_exporter_prometheus::PrometheusHandle::render).unwrap_or_default())
}

async fn list_kernels(State(api): State<Api>) -> impl IntoResponse {
    let pool = api.sessions.pool_sizes();
    let mut all = Vec::new();
    for (kernel, sandboxes) in api.sessions.kernels().await {
        all.push(json!({
            "name": kernel.name, "language": kernel.language, "display_name": kernel.display_name,
            "ready": !sandboxes.is_empty(), "sandboxes": sandboxes,
            "pool": pool.get(&kernel.name).copied().unwrap_or(0),
        }));
    }
    axum::Json(json!({"kernels": all}))
}

/// The id of the session in the path.
struct SessionInPath(SessionId);

impl<S: Send + Sync> FromRequestParts<S> for SessionInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(fields) = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Problem::bad_request("bad_path", rejection.body_text()))?;
        let id = fields.get("session").map(String::as_str).unwrap_or_default();
        SessionId::parse(id).map(Self).ok_or_else(|| Problem::not_found("no_session", format!("there is no session {id:?}")))
    }
}

/// A named part of the path.
async fn path_field<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Result<String, Problem> {
    let Path(mut fields) = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, state)
        .await
        .map_err(|rejection| Problem::bad_request("bad_path", rejection.body_text()))?;
    Ok(fields.remove(name).unwrap_or_default())
}

/// The id of the cell in the path.
struct CellInPath(String);

impl<S: Send + Sync> FromRequestParts<S> for CellInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_field(parts, state, "cell").await.map(Self)
    }
}

/// The identity and the token of a request. The guard has authenticated them.
struct Caller {
    identity: Identity,
    token: TokenHash,
}

impl Caller {
    fn access(&self) -> Access {
        self.identity.access()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let identity = parts.extensions.get::<Identity>().cloned();
        let caller = identity.zip(parts.extensions.get::<TokenHash>().copied());
        caller
            .map(|(identity, token)| Self { identity, token })
            .ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "no_token", "a token is required"))
    }
}

/// A caller whose scope allows changes.
struct User(Caller);

impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        if caller.identity.scope < Scope::Use {
            let detail = "this token can only read; a token with the scope `use` is required";
            return Err(Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", detail));
        }
        Ok(Self(caller))
    }
}
