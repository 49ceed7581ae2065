//! Requests about environments: packages that are installed once and mounted into sandboxes.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt as _};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};

use super::error::Problem;
use super::events::{LastEventId, last_event_id, sse};
use super::notebooks::WaitQuery;
use super::{Api, Body, Caller, Query, User, guard, paging, path_field, path_parameter, view};
use crate::ids::{Access, Seq};
use crate::manager::{BuildEvent, EnvironmentDescription, EnvironmentState, Package, SessionService};
use crate::policy::PackageRequest;

/// The id of the environment in the path.
pub(super) struct EnvironmentInPath(String);

impl<S: Send + Sync> FromRequestParts<S> for EnvironmentInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_field(parts, state, "environment").await.map(Self)
    }
}

impl IntoParams for EnvironmentInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("environment", "The id of the environment.")]
    }
}

/// The packages of a request. `None` if there are none.
pub(super) fn request(
    packages: &[String],
    requirements: Option<&str>,
    lock: Option<&str>,
) -> Result<Option<PackageRequest>, Problem> {
    let bad = |field: &'static str| {
        move |error: crate::policy::PackageRequestError| {
            Problem::unprocessable("bad_packages", error.to_string()).field(field)
        }
    };
    match lock {
        Some(_) if !packages.is_empty() || requirements.is_some() => {
            let detail = "a lock decides all packages; leave out `packages` and `requirements`";
            Err(Problem::unprocessable("bad_packages", detail).field("lock"))
        }
        Some(lock) => PackageRequest::of_lock(lock).map(Some).map_err(bad("lock")),
        None if packages.is_empty() && requirements.is_none() => Ok(None),
        None => PackageRequest::new(packages, requirements).map(Some).map_err(bad("packages")),
    }
}

/// Packages for a kernel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewEnvironment, examples(json!({"kernel": "python", "packages": ["polars>=1", "humanize"]})))]
pub(super) struct CreateEnvironment {
    /// The name, an alias or the language of a kernel.
    #[schema(default = "python")]
    kernel: Option<String>,
    /// As the package manager of the language names them.
    #[serde(default)]
    #[schema(max_items = 1000)]
    packages: Vec<String>,
    /// More packages: the text of a `requirements.txt`. Options in it are refused.
    requirements: Option<String>,
    /// The `lock` of an environment instead, for exactly its packages.
    lock: Option<String>,
}

/// The state of an environment.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = EnvironmentState)]
pub(super) enum StateView {
    /// The packages are being installed.
    Building,
    Ready,
    /// See `error`. The same request tries again.
    Failed,
}

impl From<EnvironmentState> for StateView {
    fn from(state: EnvironmentState) -> Self {
        match state {
            EnvironmentState::Building => Self::Building,
            EnvironmentState::Ready => Self::Ready,
            EnvironmentState::Failed => Self::Failed,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Package)]
struct PackageView {
    name: String,
    version: String,
    /// Whether it is in the set. If not, the kernel has this version itself.
    installed: bool,
    /// The version that the kernel has itself, and that this one hides.
    #[schema(required)]
    replaces: Option<String>,
}

impl From<Package> for PackageView {
    fn from(package: Package) -> Self {
        let Package { name, version, installed, replaces } = package;
        Self { name, version, installed, replaces }
    }
}

/// Packages that were resolved and installed once. Sandboxes see them read-only, beside those of their kernel.
#[derive(Serialize, ToSchema)]
#[schema(as = Environment, examples(json!({
    "id": "5f0c2f7de6b1a3c4d5e6f708192a3b4c", "kernel": "python", "state": "ready", "requirements": ["humanize"],
    "packages": [{"name": "humanize", "version": "4.14.0", "installed": true, "replaces": null}], "bytes": 700416,
    "error": null, "log": "humanize 4.14.0\n", "created_at": "2026-12-01T11:55:05.348000Z", "ended_at": "2026-12-01T11:55:07.021000Z"
})))]
pub(super) struct EnvironmentView {
    /// Depends on the kernel and the packages: the same request has the same environment.
    id: String,
    /// The name of the kernel.
    kernel: String,
    state: StateView,
    /// What was asked for. Empty for a lock.
    requirements: Vec<String>,
    /// All packages, once it is ready.
    packages: Vec<PackageView>,
    /// The size of the files.
    bytes: u64,
    #[schema(required)]
    error: Option<String>,
    /// The end of what the installation printed, at most 64 KB.
    log: String,
    #[schema(format = DateTime)]
    created_at: String,
    /// The end of the installation.
    #[schema(required, format = DateTime)]
    ended_at: Option<String>,
}

impl From<EnvironmentDescription> for EnvironmentView {
    fn from(EnvironmentDescription { row, set, log }: EnvironmentDescription) -> Self {
        let request: PackageRequest = serde_json::from_str(&row.request).unwrap_or_default();
        let (packages, bytes) = set.map(|set| (set.packages, set.bytes)).unwrap_or_default();
        Self {
            id: row.id,
            kernel: row.kernel,
            state: row.state.into(),
            requirements: request.requirements.into_iter().collect(),
            packages: packages.into_iter().map(PackageView::from).collect(),
            bytes,
            error: row.error,
            log: log.text(),
            created_at: view::time(row.created_at),
            ended_at: row.ended_at.map(view::time),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct EnvironmentList {
    /// Oldest first.
    environments: Vec<EnvironmentView>,
    /// The `cursor` of the next page.
    #[schema(required)]
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// The most environments of the page.
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// An event of an installation.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = EnvironmentEvent, examples(json!({"type": "line", "seq": 1, "text": "humanize 4.14.0"})))]
pub(super) enum EventView {
    /// What the installation printed.
    Line {
        #[schema(value_type = u64)]
        seq: Seq,
        text: String,
    },
    /// Lines that are not kept any more.
    Lost {
        /// The first of them.
        #[schema(value_type = u64)]
        from: Seq,
        /// The last of them.
        #[schema(value_type = u64)]
        seq: Seq,
    },
    /// The last event.
    Ended {
        #[schema(value_type = u64)]
        seq: Seq,
        state: StateView,
        #[schema(required)]
        error: Option<String>,
    },
}

impl From<BuildEvent> for EventView {
    fn from(event: BuildEvent) -> Self {
        match event {
            BuildEvent::Line { seq, text } => Self::Line { seq, text },
            BuildEvent::Lost { from, seq } => Self::Lost { from, seq },
            BuildEvent::Ended { seq, state, error } => Self::Ended { seq, state: state.into(), error },
        }
    }
}

impl EventView {
    fn seq(&self) -> Seq {
        let (Self::Line { seq, .. } | Self::Lost { seq, .. } | Self::Ended { seq, .. }) = self;
        *seq
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EnvironmentEventsQuery {
    /// Only events with larger numbers. A `Last-Event-ID` header wins over it.
    after: Option<u64>,
    /// The token, for clients that cannot set the `Authorization` header.
    // Read by the guard.
    #[serde(rename = "token")]
    #[param(value_type = Option<String>)]
    _token: Option<IgnoredAny>,
}

/// Install packages for a kernel
///
/// They are installed in a sandbox of their own, which reaches the package indexes and nothing else. Sessions name the environment, or
/// the same packages. A request for packages that are installed already is answered at once. The server must allow the network
/// `packages`.
#[utoipa::path(
    post, path = "/environments", operation_id = "create_environment", tag = "environments",
    params(WaitQuery), request_body = CreateEnvironment,
    responses((status = 201, description = "The environment, ready or not", body = EnvironmentView,
        headers(("Location" = String, description = "The path of the environment")))),
)]
pub(super) async fn create(
    State(api): State<Api>,
    User(caller): User,
    Query(query): Query<WaitQuery>,
    Body(create): Body<CreateEnvironment>,
) -> Result<Response, Problem> {
    let CreateEnvironment { kernel, packages, requirements, lock } = create;
    let wait = query.duration()?;
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    let request = request(&packages, requirements.as_deref(), lock.as_deref())?.ok_or_else(|| {
        Problem::unprocessable("bad_packages", "name packages: `packages`, `requirements` or `lock`").field("packages")
    })?;
    let kernel = kernel.unwrap_or_else(|| "python".to_owned());
    let id = api.sessions.create_environment(&caller.identity.principal, &kernel, request).await?;
    let view = read(&api, &id, &caller, wait).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/environments/{id}"))], Json(view)).into_response())
}

/// Reads an environment, after the end of its installation if that comes in time.
async fn read(api: &Api, id: &str, caller: &Caller, wait: Option<std::time::Duration>) -> Result<EnvironmentView, Problem> {
    if let Some(wait) = wait {
        // A caller that may not see it must not wait for it.
        api.sessions.environment(id, &caller.access()).await?;
        let _ = tokio::time::timeout(wait, api.sessions.environment_ended(id)).await;
    }
    Ok(api.sessions.environment(id, &caller.access()).await?.into())
}

/// List the environments
#[utoipa::path(
    get, path = "/environments", operation_id = "list_environments", tag = "environments", params(ListQuery),
    responses((status = 200, description = "The environments that the token can access", body = EnvironmentList)),
)]
pub(super) async fn list(
    State(api): State<Api>,
    User(caller): User,
    Query(query): Query<ListQuery>,
) -> Result<Json<EnvironmentList>, Problem> {
    let limit = paging::limit(query.limit)?;
    let after = paging::position::<(i64, String)>(query.cursor.as_deref())?;
    let (page, has_more) = api.sessions.list_environments(&caller.access(), after, limit).await?;
    let last = page.last().filter(|_| has_more);
    let next_cursor = last.map(|last| paging::cursor(&(last.row.created_at, &last.row.id)));
    Ok(Json(EnvironmentList { environments: page.into_iter().map(EnvironmentView::from).collect(), next_cursor }))
}

/// Stream the log of an installation
///
/// Sends the kept lines after a number, then new ones as they are printed, as server-sent events, until the installation has ended. A
/// client that reconnects continues after the last number that it has seen.
#[utoipa::path(
    get, path = "/environments/{environment}/events", operation_id = "stream_environment_log", tag = "environments",
    params(EnvironmentInPath, EnvironmentEventsQuery, LastEventId),
    responses((status = 200, description = "Events", body = EventView, content_type = "text/event-stream")),
)]
pub(super) async fn events(
    State(api): State<Api>,
    User(caller): User,
    EnvironmentInPath(id): EnvironmentInPath,
    Query(query): Query<EnvironmentEventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = last_event_id(&headers)?.unwrap_or(Seq(query.after.unwrap_or(0)));
    // Of an environment that cannot be seen, the response is an error.
    api.sessions.environment(&id, &caller.access()).await?;
    let state = LogStream { sessions: api.sessions.clone(), access: caller.access(), id, after, is_finished: false };
    let pages = stream::unfold(state, async |mut state| Some((state.next().await?, state)));
    let events = pages.flat_map(|page| stream::iter(page.into_iter().map(|event| Ok(as_sse(&event)))));
    sse(events, &api, &caller)
}

fn as_sse(event: &EventView) -> Event {
    Event::default().id(event.seq().to_string()).data(serde_json::to_string(event).unwrap_or_default())
}

struct LogStream {
    sessions: SessionService,
    access: Access,
    id: String,
    after: Seq,
    is_finished: bool,
}

impl LogStream {
    async fn next(&mut self) -> Option<Vec<EventView>> {
        if self.is_finished {
            return None;
        }
        // An error means that it was deleted.
        let events = self.sessions.environment_events(&self.id, &self.access, self.after).await.ok()?;
        let page: Vec<EventView> = events.into_iter().map(EventView::from).collect();
        self.after = page.last()?.seq();
        self.is_finished = matches!(page.last(), Some(EventView::Ended { .. }));
        Some(page)
    }
}

/// Get an environment
#[utoipa::path(
    get, path = "/environments/{environment}", operation_id = "get_environment", tag = "environments",
    params(EnvironmentInPath, WaitQuery),
    responses((status = 200, description = "The environment", body = EnvironmentView)),
)]
pub(super) async fn get_one(
    State(api): State<Api>,
    User(caller): User,
    EnvironmentInPath(id): EnvironmentInPath,
    Query(query): Query<WaitQuery>,
) -> Result<Json<EnvironmentView>, Problem> {
    let wait = query.duration()?;
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    read(&api, &id, &caller, wait).await.map(Json)
}

/// Get the lock of an environment
///
/// All packages with their versions and hashes, as the package manager of the language reads them. `lock` of a new environment takes it
/// on this or another server.
#[utoipa::path(
    get, path = "/environments/{environment}/lock", operation_id = "get_environment_lock", tag = "environments",
    params(EnvironmentInPath),
    responses((status = 200, description = "The lock", body = String, content_type = "text/plain")),
)]
pub(super) async fn lock(
    State(api): State<Api>,
    User(caller): User,
    EnvironmentInPath(id): EnvironmentInPath,
) -> Result<String, Problem> {
    let lock = api.sessions.environment_lock(&id, &caller.access()).await?;
    let missing = || Problem::new(StatusCode::CONFLICT, "environment_not_ready", "its packages are not installed");
    lock.ok_or_else(missing)
}

/// Forget an environment and remove its packages
#[utoipa::path(
    delete, path = "/environments/{environment}", operation_id = "delete_environment", tag = "environments",
    params(EnvironmentInPath),
    responses((status = 204, description = "Removed")),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    EnvironmentInPath(id): EnvironmentInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.delete_environment(&id, &caller.access()).await?;
    Ok(StatusCode::NO_CONTENT)
}
