//! The native HTTP face, `/v1`: translates, owns no state. JSON in and out, errors as problems, events by SSE and WebSocket.

mod cells;
mod chat;
mod docs;
mod error;
mod events;
mod files;
mod given;
mod guard;
mod large;
mod notebooks;
mod pace;
mod runs;
mod sessions;
mod shares;
mod socket;
mod text;
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

use crate::auth::{Identity, Scope, Shown, Tokens};
use crate::chat::Chats;
use crate::ids::SessionId;
use crate::manager::Keeper;
use crate::telemetry;
use error::Problem;
use given::{Body, Query};
pub use guard::Guard;
pub use large::Large;
pub use pace::Pace;

/// Bytes of a request's body, files aside.
const MAX_BODY: usize = 32 << 20;

/// How long a client may leave us waiting for the next piece of a body.
const BODY_PAUSE: Duration = Duration::from_secs(60);

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    /// The sessions.
    pub keeper: Keeper,
    /// Conversations with the model.
    pub chats: Chats,
    /// Who may do what.
    pub tokens: Arc<Tokens>,
    /// Which hosts and origins are ours.
    pub guard: Arc<Guard>,
    /// How many requests are taken.
    pub pace: Arc<Pace>,
    /// Where large answers are made, and wait.
    pub large: Arc<Large>,
}

/// A connection counts as open for as long as one of these lives, also when it has become a WebSocket.
#[derive(Clone, Debug)]
pub struct OpenConnection(#[expect(dead_code, reason = "held")] Arc<OwnedSemaphorePermit>);

impl OpenConnection {
    /// One that was let in by this permit.
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(permit))
    }
}

/// All routes.
pub fn router(api: Api) -> Router {
    let one = Router::new()
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
        .route("/files/{*path}", get(files::get).put(files::put).delete(files::delete));
    let one_by_query = Router::new()
        .route("/chat", post(chat::ask))
        .route("/events", get(events::stream))
        .route("/socket", get(socket::open))
        .route("/cells", get(cells::list).post(cells::add))
        .route("/cells/{cell}", get(cells::get_one))
        .route("/cells/{cell}/run", post(cells::run))
        .route("/cells/{cell}/outputs/{output}/text", get(text::get))
        .route("/notebook", get(notebooks::get))
        .route("/notebook/run", post(notebooks::run))
        .route("/files/", get(files::list));
    let by_path = Router::new()
        .route("/sessions", get(sessions::list).post(sessions::create))
        .nest("/sessions/{session}", one)
        .route("/runs", get(runs::list))
        .route("/runs/{session}", get(runs::get_one).delete(runs::delete))
        .route("/runs/{session}/cancel", post(runs::cancel))
        .route("/runs/{session}/artifacts", get(sessions::artifacts))
        .route("/artifacts/{sha256}", get(sessions::artifact))
        .route("/kernels", get(list_kernels))
        .route("/model", get(chat::model))
        .route("/token", get(shares::token))
        .layer(middleware::from_fn(given::no_query));
    let v1 = by_path
        .nest("/sessions/{session}", one_by_query)
        .route("/runs", post(runs::create))
        .route("/runs/{session}/events", get(runs::stream))
        .route("/runs/{session}/notebook", get(notebooks::get))
        .layer(middleware::from_fn_with_state(api.clone(), large::put_aside))
        .layer(RequestBodyTimeoutLayer::new(BODY_PAUSE))
        .layer(middleware::from_fn(trace::tell))
        .layer(middleware::from_fn_with_state(api.clone(), guard::identify))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    Router::new()
        .nest("/v1", v1)
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async || "ready\n"))
        .route("/metrics", get(figures))
        .route("/openapi.json", get(docs::openapi))
        .route("/docs", get(docs::page))
        .route("/docs.js", get(docs::script))
        .route("/docs.css", get(docs::style))
        .fallback(async || Problem::not_found("no_such_path", "there is nothing at this path; /v1/sessions is one"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
        })
        .layer(guard::sharing(api.guard.clone()))
        .layer(middleware::from_fn_with_state(api.clone(), guard::check_host))
        .layer(middleware::from_fn(trace::name))
        .with_state(api)
}

async fn figures(State(api): State<Api>) -> Result<String, Problem> {
    api.keeper.measure().await?;
    metrics::gauge!(telemetry::STREAMS).set(api.pace.streams() as f64);
    Ok(telemetry::install().map(metrics_exporter_prometheus::PrometheusHandle::render).unwrap_or_default())
}

async fn list_kernels(State(api): State<Api>) -> impl IntoResponse {
    let pool = api.keeper.pool_sizes();
    let mut all = Vec::new();
    for (kernel, sandboxes) in api.keeper.kernels().await {
        all.push(json!({
            "name": kernel.name, "language": kernel.language, "display_name": kernel.display_name,
            "ready": !sandboxes.is_empty(), "sandboxes": sandboxes,
            "pool": pool.get(&kernel.name).copied().unwrap_or(0),
        }));
    }
    axum::Json(json!({"kernels": all}))
}

/// The session in the path.
struct InPath(SessionId);

impl<S: Send + Sync> FromRequestParts<S> for InPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(fields) = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Problem::bad_request("bad_path", rejection.body_text()))?;
        let id = fields.get("session").map(String::as_str).unwrap_or_default();
        SessionId::parse(id).map(Self).ok_or_else(|| Problem::not_found("no_session", format!("there is no session {id:?}")))
    }
}

/// Another name in the path.
async fn path_field<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Result<String, Problem> {
    let Path(mut fields) = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, state)
        .await
        .map_err(|rejection| Problem::bad_request("bad_path", rejection.body_text()))?;
    Ok(fields.remove(name).unwrap_or_default())
}

/// The cell in the path.
struct CellInPath(String);

impl<S: Send + Sync> FromRequestParts<S> for CellInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_field(parts, state, "cell").await.map(Self)
    }
}

/// Who asks, and by which token, put there by the guard.
struct Caller(Identity, Shown);

impl Caller {
    fn sees(&self) -> Option<&str> {
        self.0.sees()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let found = parts.extensions.get::<Identity>().cloned().zip(parts.extensions.get::<Shown>().copied());
        found
            .map(|(identity, shown)| Self(identity, shown))
            .ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "no_token", "a token is needed"))
    }
}

/// Who asks, and may change things.
struct User(Caller);

impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        if caller.0.scope < Scope::Use {
            let detail = "this token may only look; one of scope `use` is needed";
            return Err(Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", detail));
        }
        Ok(Self(caller))
    }
}
