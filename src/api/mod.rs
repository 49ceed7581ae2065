//! The HTTP API under `/v1`. It translates between HTTP and the manager, and owns no session state. JSON in and out, errors
//! as `application/problem+json`, events over SSE and WebSocket.

mod audit;
mod audit_limit;
mod cell_response;
mod cells;
mod chat;
mod docs;
mod environments;
mod error;
mod events;
mod execute;
mod execution_options;
mod extract;
mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
mod input_budget;
mod limits;
mod mounts;
mod network;
mod new_session;
mod notebooks;
mod openapi;
mod output_text;
mod paced_body;
mod paging;
mod processes;
mod protocols;
mod rate_limit;
mod refused_body;
mod response_spool;
mod runs;
mod sandboxes;
mod secrets;
mod session_socket;
mod sessions;
mod shares;
mod socket;
mod socket_input;
mod trace;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware;
use axum::routing::get;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ObjectBuilder, Required, Type};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::audit::AuditLog;
use crate::auth::{Identity, Scope, TokenHash, Tokens};
use crate::chat::Chats;
use crate::ids::{Access, SessionId};
use crate::manager::{SandboxKind, SessionReader, SessionService};
use crate::telemetry;
pub use audit_limit::AuditLimit;
use error::Problem;
use extract::{Body, Query};
pub use guard::Guard;
pub use input_budget::InputBudget;
pub use protocols::{PistonVersions, router as protocol_router};
pub use rate_limit::RateLimits;
pub use response_spool::ResponseSpool;
pub use socket_input::ConnectionInput;

/// The largest request body in bytes, except for files.
const MAX_BODY: usize = 32 << 20;

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
    pub input: Arc<InputBudget>,
    pub audit: AuditLog,
    pub audit_limit: AuditLimit,
    pub piston_versions: Arc<PistonVersions>,
}

/// The permit and the input of a connection. A connection that has become a WebSocket keeps it.
#[derive(Clone, Debug)]
pub struct OpenConnection {
    _permit: Arc<OwnedSemaphorePermit>,
    /// What the connection has received.
    pub input: ConnectionInput,
}

impl OpenConnection {
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: Arc::new(permit), input: ConnectionInput::default() }
    }
}

/// Routes below one session that take no query.
fn session_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(sessions::get_one, sessions::patch, sessions::delete))
        .routes(routes!(sessions::interrupt))
        .routes(routes!(sessions::restart))
        .routes(routes!(sessions::input))
        .routes(routes!(sessions::complete))
        .routes(routes!(sessions::inspect))
        .routes(routes!(sessions::variables))
        .routes(routes!(network::get))
        .routes(routes!(sessions::artifacts))
        .routes(routes!(cells::patch, cells::delete))
        .routes(routes!(cells::cancel))
        .routes(routes!(notebooks::put))
        .routes(routes!(chat::status))
        .routes(routes!(chat::cancel))
        .routes(routes!(shares::list, shares::create))
        .routes(routes!(shares::delete))
}

/// Routes below one session that take a query.
fn session_query_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(events::stream))
        .routes(routes!(session_socket::open))
        .routes(routes!(cells::list, cells::add))
        .routes(routes!(cells::get_one))
        .routes(routes!(cells::run))
        .routes(routes!(output_text::get))
        .routes(routes!(notebooks::get))
        .routes(routes!(notebooks::run))
        .routes(routes!(chat::ask))
}

/// Requests about files, which sessions and sandboxes have, without and with a query.
fn file_routes() -> [OpenApiRouter<Api>; 2] {
    let no_query = OpenApiRouter::new().routes(routes!(files::get, files::put, files::patch));
    let query = OpenApiRouter::new().routes(routes!(files::delete)).routes(routes!(files::list, files::create));
    [no_query, query.merge(upload_routes())]
}

/// Routes below one sandbox that take no query.
fn sandbox_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(sandboxes::get_one, sandboxes::patch, sandboxes::delete))
        .routes(routes!(processes::get_one, processes::delete))
        .routes(routes!(processes::signal))
        .routes(routes!(processes::resize))
}

/// Routes below one sandbox that take a query.
fn sandbox_query_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(processes::start, processes::list))
        .routes(routes!(processes::input))
        .routes(routes!(processes::stream))
        .routes(routes!(processes::open_socket))
}

/// Routes below `/v1` that take no query.
fn other_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(sessions::create))
        .routes(routes!(execute::execute))
        .routes(routes!(sandboxes::create, sandboxes::list))
        .routes(routes!(sessions::artifact))
        .routes(routes!(runs::get_one, runs::delete))
        .routes(routes!(runs::cancel))
        .routes(routes!(runs::artifacts))
        .routes(routes!(list_kernels))
        .routes(routes!(limits::get))
        .routes(routes!(mounts::list))
        .routes(routes!(environments::lock))
        .routes(routes!(chat::model))
        .routes(routes!(shares::token))
}

/// Other routes that take a query.
fn other_query_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(sessions::list))
        .routes(routes!(environments::create, environments::list))
        .routes(routes!(environments::events))
        .routes(routes!(environments::get_one, environments::delete))
        .routes(routes!(runs::list, runs::create))
        .routes(routes!(runs::stream))
        .routes(routes!(runs::notebook))
}

/// Routes whose bodies have limits of their own.
fn upload_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(files::upload)).layer(DefaultBodyLimit::disable())
}

/// The routes below `/v1`, which need a token.
fn v1_routes() -> OpenApiRouter<Api> {
    let no_query = || middleware::from_fn(extract::no_query);
    // Nesting a second router at the same path would replace its description, so the two are merged first.
    let with_files = |query: OpenApiRouter<Api>, plain: OpenApiRouter<Api>| {
        let [plain_files, query_files] = file_routes();
        query.merge(query_files).merge(plain.merge(plain_files).layer(no_query()))
    };
    let one_session = with_files(session_query_routes(), session_routes());
    let all_others = other_query_routes().merge(other_routes().layer(no_query()));
    let one_sandbox = with_files(sandbox_query_routes(), sandbox_routes());
    all_others.nest("/sessions/{session}", one_session).nest("/sandboxes/{sandbox}", one_sandbox)
}

/// The routes outside `/v1`. Only the metrics need a token.
fn public_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(ready))
        .routes(routes!(metrics))
        .routes(routes!(docs::openapi))
        .routes(routes!(docs::page))
        .route("/docs.css", get(docs::style))
}

/// All routes of the API.
pub fn router(api: Api) -> Router {
    let v1 = Router::from(v1_routes())
        .layer(middleware::from_fn_with_state(api.clone(), response_spool::spool_large))
        .layer(middleware::from_fn(paced_body::pace))
        .layer(middleware::from_fn(trace::record_span))
        .layer(middleware::from_fn_with_state(api.clone(), guard::authenticate))
        .layer(middleware::from_fn_with_state(api.clone(), audit::record))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    Router::new()
        .nest("/v1", v1)
        .merge(protocols::routes(&api))
        .merge(Router::from(public_routes()))
        .fallback(async || Problem::not_found("no_such_path", "this path does not exist; /v1/sessions does, for example"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not support this method")
        })
        .layer(middleware::from_fn(refused_body::drain))
        .layer(guard::cors_layer(api.guard.clone()))
        .layer(middleware::from_fn_with_state(api.clone(), guard::check_host))
        .layer(middleware::from_fn(guard::no_store))
        .layer(middleware::from_fn(trace::assign_request_id))
        .with_state(api)
}

/// Whether the server process accepts requests
#[utoipa::path(
    get, path = "/healthz", operation_id = "get_health", tag = "server", security(()),
    responses((status = 200, description = "It does", body = String, example = "ok\n")),
)]
async fn health() -> &'static str {
    "ok\n"
}

/// Whether the server is ready
///
/// It has finished its recovery and accepts requests. Until then, connections wait. It does not check the disk, the kernels or
/// the sandboxes, and answers like `/healthz`.
#[utoipa::path(
    get, path = "/readyz", operation_id = "get_readiness", tag = "server", security(()),
    responses((status = 200, description = "It is", body = String, example = "ready\n")),
)]
async fn ready() -> &'static str {
    "ready\n"
}

/// Get the metrics of the server
///
/// For tokens with the scope `metrics` or `admin`. With `--open-metrics`, no token is needed.
#[utoipa::path(
    get, path = "/metrics", operation_id = "get_metrics", tag = "server",
    responses((status = 200, description = "Metrics in the Prometheus text format", body = String)),
)]
async fn metrics(State(api): State<Api>, headers: HeaderMap) -> Result<String, Problem> {
    guard::check_metrics(&api, &headers).await?;
    api.sessions.update_gauges().await?;
    metrics::gauge!(telemetry::STREAMS).set(api.rate_limits.open_streams() as f64);
    Ok(telemetry::install().map(metrics_exporter_prometheus::PrometheusHandle::render).unwrap_or_default())
}

/// A kernel that this server knows.
#[derive(Serialize, ToSchema)]
#[schema(as = Kernel)]
struct KernelView {
    name: &'static str,
    language: &'static str,
    /// The name for people.
    display_name: &'static str,
    /// Whether this server can run the kernel.
    ready: bool,
    /// The sandboxes that can run the kernel.
    sandboxes: Vec<SandboxName>,
    /// The number of ready sessions of this kernel in the pool.
    pool: usize,
}

view::api_enum! {
    #[schema(as = SandboxKind)]
    SandboxName for SandboxKind { Process, Docker }
}

#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"kernels": [{
    "name": "python", "language": "python", "display_name": "Python 3", "ready": true, "sandboxes": ["process"], "pool": 1
}]})))]
struct KernelList {
    kernels: Vec<KernelView>,
}

/// List the kernels and the sandboxes that can run them
#[utoipa::path(
    get, path = "/kernels", operation_id = "list_kernels", tag = "server",
    responses((status = 200, description = "All kernels", body = KernelList)),
)]
async fn list_kernels(State(api): State<Api>) -> axum::Json<KernelList> {
    let pool = api.sessions.pool_sizes();
    let kernels = api.sessions.kernels().await.into_iter().map(|(kernel, sandboxes)| KernelView {
        name: &kernel.name,
        language: &kernel.language,
        display_name: &kernel.display_name,
        ready: !sandboxes.is_empty(),
        sandboxes: sandboxes.into_iter().map(SandboxName::from).collect(),
        pool: pool.get(&kernel.name).copied().unwrap_or(0),
    });
    axum::Json(KernelList { kernels: kernels.collect() })
}

/// The description of a path parameter.
fn path_parameter(name: &str, description: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
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

impl IntoParams for SessionInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("session", "The id of the session. The id of a run is that of its session.")]
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

impl IntoParams for CellInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("cell", "The id of the cell.")]
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

    /// Whether it uses a share, which shows one session without its workspace.
    fn is_share(&self) -> bool {
        self.identity.only.is_some()
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
