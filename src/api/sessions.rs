//! Requests about sessions: create, read, change, control, delete.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, ToSchema};

use super::error::Problem;
use super::events::ShareFilter;
use super::network::RequestedNetwork;
use super::new_session::{Create, check_seconds, check_texts, check_timeout};
use super::view::{
    ArtifactList, ArtifactView, Binary, CompleteReply, InspectReply, NetworkView, SessionList, SessionView, UsageView,
};
use super::{Api, Body, Caller, Query, SessionInPath, User, paging, view};
use crate::ids::{Access, SessionId, SessionPhase};
use crate::manager::{ArtifactRow, KeyKind, SessionFilter, SessionProperties, SessionRow, now_ms, seconds_in_ms};
use crate::policy::NetworkPolicy;
use crate::session::{SessionError, SessionState};

/// The number of concurrent usage requests to sandboxes, and the timeout of each.
const CONCURRENT_USAGE_REQUESTS: usize = 64;
const USAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request waits for a completion or inspection.
const INTROSPECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Create a session
///
/// The response comes when the kernel of the session is ready.
#[utoipa::path(
    post, path = "/sessions", operation_id = "create_session", tag = "sessions",
    request_body = Create,
    responses((status = 201, description = "The session", body = SessionView,
        headers(("Location" = String, description = "The path of the session")))),
)]
pub(super) async fn create(
    State(api): State<Api>,
    User(caller): User,
    Body(create): Body<Create>,
) -> Result<Response, Problem> {
    let key = create.key.clone();
    let new = create.validate(&api.sessions)?.with_key(KeyKind::Session, key, &[]);
    let id = api.sessions.create(&caller.identity.principal, new).await?;
    let session = read_session(&api, &id, &caller.access()).await?;
    let location = format!("/v1/sessions/{id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(session)).into_response())
}

/// The query of the list of sessions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// The largest number of sessions.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// Labels that a session must have, with their values: `team:research`, or several with commas between them.
    label: Option<String>,
    /// The state that a session must have.
    #[param(inline, value_type = Option<view::SessionState>)]
    state: Option<String>,
}

/// Reads the labels of a query.
pub(super) fn labels(text: Option<&str>) -> Result<HashMap<String, String>, Problem> {
    let pairs = text.into_iter().flat_map(|text| text.split(','));
    let label = |pair: &str| pair.split_once(':').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let bad = || Problem::bad_request("bad_query", "label must be a key and a value: label=team:research").field("label");
    pairs.map(label).collect::<Option<_>>().ok_or_else(bad)
}

fn visible_phase(name: &str) -> Result<SessionPhase, Problem> {
    SessionPhase::VISIBLE.into_iter().find(|phase| phase.as_str() == name).ok_or_else(|| {
        let states = SessionPhase::VISIBLE.map(SessionPhase::as_str).join(", ");
        Problem::bad_request("bad_query", format!("{name:?} is not a state; use one of {states}")).field("state")
    })
}

/// List the sessions that the token can access
#[utoipa::path(
    get, path = "/sessions", operation_id = "list_sessions", tag = "sessions",
    params(ListQuery),
    responses((status = 200, description = "A page of the sessions", body = SessionList)),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<SessionList>, Problem> {
    let filter = SessionFilter {
        labels: labels(query.label.as_deref())?,
        phase: query.state.as_deref().map(visible_phase).transpose()?,
        only_jobs: false,
    };
    let (limit, after) = (paging::limit(query.limit)?, paging::position(query.cursor.as_deref())?);
    let (rows, next) = api.reader.page(&caller.access(), filter, after, limit).await?;
    let counts = api.reader.store().count_cells_of(rows.iter().map(|row| &row.id)).await?;
    let described = rows.into_iter().map(|row| {
        let (api, caller) = (&api, &caller);
        let counts = counts.get(row.id.as_str()).copied().unwrap_or_default();
        async move { describe(api, &row, &caller.access(), counts).await }
    });
    // A session that is deleted meanwhile is left out.
    let sessions =
        stream::iter(described).buffered(CONCURRENT_USAGE_REQUESTS).filter_map(|session| std::future::ready(session.ok()));
    Ok(Json(SessionList { sessions: sessions.collect().await, next_cursor: next.as_ref().map(paging::cursor) }))
}

/// Get a session and its resource usage
#[utoipa::path(
    get, path = "/", operation_id = "get_session", tag = "sessions",
    params(SessionInPath),
    responses((status = 200, description = "The session", body = SessionView)),
)]
pub(super) async fn get_one(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
) -> Result<Json<SessionView>, Problem> {
    let mut session = read_session(&api, &id, &caller.access()).await?;
    if caller.is_share() {
        // Labels are the owner's notes about the session: customers, projects, billing.
        session.labels.clear();
        session.secrets.clear();
    }
    Ok(Json(session))
}

async fn read_session(api: &Api, id: &SessionId, access: &Access) -> Result<SessionView, Problem> {
    let row = api.reader.row(id, access).await?;
    let counts = api.reader.store().count_cells(id).await?;
    describe(api, &row, access, counts).await
}

/// A session with its isolation and, while it lives, the usage of its sandbox.
async fn describe(api: &Api, row: &SessionRow, access: &Access, counts: (usize, usize)) -> Result<SessionView, Problem> {
    let handle = api.sessions.peek(&row.id, access)?;
    let state = handle.state();
    let mut session = SessionView::new(row, state.phase(), counts, api.sessions.idle_timeout());
    if let SessionState::Gone { why } = state {
        // The row may be older than the state.
        session.why = Some(why);
        return Ok(session);
    }
    // If the sandbox does not answer, the response has no usage.
    if let Ok(Ok(usage)) = tokio::time::timeout(USAGE_TIMEOUT, handle.usage()).await {
        session.usage = Some(UsageView {
            memory_bytes: usage.memory_bytes,
            peak_memory_bytes: usage.peak_memory_bytes,
            cpu_seconds: usage.cpu_seconds,
            processes: usage.processes,
        });
    }
    Ok(session)
}

/// Changes of a session. Absent fields stay as they are.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SessionPatch, examples(json!({"name": "report", "ttl_seconds": 3600})))]
pub(super) struct Patch {
    #[schema(max_length = 200)]
    name: Option<String>,
    /// Replaces all labels.
    labels: Option<HashMap<String, String>>,
    /// The timeout of cells that have none of their own, in seconds.
    #[schema(exclusive_minimum = 0, maximum = 315360000)]
    timeout_seconds: Option<f64>,
    /// The lifetime in seconds, counted from this request.
    #[schema(maximum = 315360000)]
    ttl_seconds: Option<u64>,
    #[schema(maximum = 315360000)]
    idle_timeout_seconds: Option<u64>,
    /// What code in the session reaches. Connections that it does not allow end. It cannot change to or from `open`.
    #[schema(value_type = Option<NetworkView>)]
    network: Option<RequestedNetwork>,
}

impl Patch {
    fn apply(self, network: Option<NetworkPolicy>, SessionProperties { name, config, expires_at }: &mut SessionProperties) {
        config.network = network.unwrap_or(std::mem::take(&mut config.network));
        *name = self.name.or(name.take());
        config.labels = self.labels.unwrap_or(std::mem::take(&mut config.labels));
        config.timeout_seconds = self.timeout_seconds.or(config.timeout_seconds);
        config.idle_timeout_seconds = self.idle_timeout_seconds.or(config.idle_timeout_seconds);
        if let Some(seconds) = self.ttl_seconds {
            config.ttl_seconds = Some(seconds);
            *expires_at = Some(now_ms().saturating_add(seconds_in_ms(seconds)));
        }
    }
}

/// Change the name, the labels, the timeouts or the network of a session
#[utoipa::path(
    patch, path = "/", operation_id = "update_session", tag = "sessions",
    params(SessionInPath), request_body = Patch,
    responses((status = 200, description = "The session", body = SessionView)),
)]
pub(super) async fn patch(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Body(mut patch): Body<Patch>,
) -> Result<Json<SessionView>, Problem> {
    let network = patch.network.take().map(RequestedNetwork::policy).transpose()?;
    check_texts(patch.name.as_deref(), patch.labels.as_ref().unwrap_or(&HashMap::new()))?;
    let ceilings = api.sessions.ceilings();
    check_timeout(ceilings, patch.timeout_seconds)?;
    check_seconds("ttl_seconds", patch.ttl_seconds)?;
    check_seconds("idle_timeout_seconds", patch.idle_timeout_seconds)?;
    ceilings.check_lifetime(patch.ttl_seconds)?;
    ceilings.check_idle_timeout(patch.idle_timeout_seconds)?;
    if let Some(network) = &network {
        api.sessions.check_network_change(&id, &caller.access(), network).await?;
    }
    api.sessions.update(&id, &caller.access(), |properties| patch.apply(network, properties)).await?;
    read_session(&api, &id, &caller.access()).await.map(Json)
}

/// End a session and delete its data
#[utoipa::path(
    delete, path = "/", operation_id = "delete_session", tag = "sessions",
    params(SessionInPath),
    responses((status = 204, description = "Deleted")),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.delete(&id, &caller.access()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Interrupt the running cell
///
/// A kernel that does not react to the interrupt is stopped by escalating signals: SIGINT, again, SIGTERM, SIGKILL.
#[utoipa::path(
    post, path = "/interrupt", operation_id = "interrupt_kernel", tag = "kernel",
    params(SessionInPath),
    responses((status = 202, description = "Accepted")),
)]
pub(super) async fn interrupt(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.handle(&id, &caller.access())?.interrupt().await?;
    Ok(StatusCode::ACCEPTED)
}

/// Restart the kernel
///
/// Cells and files stay; queued cells are cancelled.
#[utoipa::path(
    post, path = "/restart", operation_id = "restart_kernel", tag = "kernel",
    params(SessionInPath),
    responses((status = 202, description = "Accepted")),
)]
pub(super) async fn restart(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.handle(&id, &caller.access())?.restart().await?;
    Ok(StatusCode::ACCEPTED)
}

/// The input that the running code requests.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"value": "yes"})))]
pub(super) struct Input {
    /// The text, without a line end.
    value: String,
}

/// Send the input that the running code requests
///
/// 409 `no_input_wanted` if it requests none.
#[utoipa::path(
    post, path = "/input", operation_id = "send_input", tag = "kernel",
    params(SessionInPath), request_body = Input,
    responses((status = 202, description = "Sent")),
)]
pub(super) async fn input(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Body(Input { value }): Body<Input>,
) -> Result<StatusCode, Problem> {
    api.sessions.handle(&id, &caller.access())?.input(&value).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Code, and a position in it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"code": "pri", "cursor_pos": 3})))]
pub(super) struct CodePosition {
    code: String,
    /// The position of the cursor in Unicode characters. The default is the end of the code.
    cursor_pos: Option<usize>,
}

impl CodePosition {
    fn cursor(&self) -> Result<usize, Problem> {
        let length = self.code.chars().count();
        let cursor = self.cursor_pos.unwrap_or(length);
        if cursor > length {
            let detail = format!("cursor_pos is {cursor}, but the code has only {length} characters");
            return Err(Problem::unprocessable("bad_cursor", detail).field("cursor_pos"));
        }
        Ok(cursor)
    }
}

/// Request code completions from the kernel
///
/// A kernel that cannot answer while a cell runs answers after it: 409 `kernel_busy` if that takes longer than 10 seconds.
#[utoipa::path(
    post, path = "/complete", operation_id = "complete_code", tag = "kernel",
    params(SessionInPath), request_body = CodePosition,
    responses((status = 200, description = "The completions", body = CompleteReply)),
)]
pub(super) async fn complete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Body(position): Body<CodePosition>,
) -> Result<Json<Value>, Problem> {
    let handle = api.sessions.handle(&id, &caller.access())?;
    with_timeout(handle.complete(&position.code, position.cursor()?)).await
}

/// Request the kernel's documentation of the name at the cursor
///
/// A kernel that cannot answer while a cell runs answers after it: 409 `kernel_busy` if that takes longer than 10 seconds.
#[utoipa::path(
    post, path = "/inspect", operation_id = "inspect_code", tag = "kernel",
    params(SessionInPath), request_body = CodePosition,
    responses((status = 200, description = "The documentation", body = InspectReply)),
)]
pub(super) async fn inspect(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Body(position): Body<CodePosition>,
) -> Result<Json<Value>, Problem> {
    let handle = api.sessions.handle(&id, &caller.access())?;
    with_timeout(handle.inspect(&position.code, position.cursor()?)).await
}

/// A variable of the kernel.
#[derive(Serialize, ToSchema)]
struct Variable {
    name: String,
    /// The type, in the words of the language.
    #[serde(rename = "type")]
    kind: String,
    /// A short text that shows the value.
    summary: String,
}

#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "variables": [{"name": "rows", "type": "list", "summary": "[1, 2, 3]"}], "truncated": false
})))]
pub(super) struct VariableList {
    /// At most 500, sorted by name.
    variables: Vec<Variable>,
    /// Whether there are more.
    truncated: bool,
}

/// List the variables of the kernel
///
/// For Python, R and bash, between two cells: 409 `kernel_busy` while a cell runs. It does not count as an execution.
#[utoipa::path(
    post, path = "/variables", operation_id = "list_variables", tag = "kernel",
    params(SessionInPath),
    responses((status = 200, description = "The variables", body = VariableList)),
)]
pub(super) async fn variables(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<Json<VariableList>, Problem> {
    let (variables, truncated) = api.sessions.variables(&id, &caller.access()).await?;
    let variables = variables.into_iter().map(|variable| Variable {
        name: variable.name,
        kind: variable.kind,
        summary: variable.summary,
    });
    Ok(Json(VariableList { variables: variables.collect(), truncated }))
}

/// Waits for the reply of the kernel. A kernel without subshells replies only after the running cell.
async fn with_timeout(reply: impl Future<Output = Result<Value, SessionError>>) -> Result<Json<Value>, Problem> {
    match tokio::time::timeout(INTROSPECTION_TIMEOUT, reply).await {
        Ok(reply) => Ok(Json(reply?)),
        Err(_) => {
            let detail = "the kernel is busy and has not replied within 10 s; retry when its cell has ended";
            Err(Problem::new(StatusCode::CONFLICT, "kernel_busy", detail))
        }
    }
}

/// List the plots and files that cells have displayed
#[utoipa::path(
    get, path = "/artifacts", operation_id = "list_artifacts", tag = "artifacts",
    params(SessionInPath),
    responses((status = 200, description = "The artifacts", body = ArtifactList)),
)]
pub(super) async fn artifacts(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
) -> Result<Json<ArtifactList>, Problem> {
    list_artifacts(&api, &caller, &id).await
}

/// The artifacts of a session or of the session of a job.
pub(super) async fn list_artifacts(api: &Api, caller: &Caller, id: &SessionId) -> Result<Json<ArtifactList>, Problem> {
    api.reader.check_visible(id, &caller.access())?;
    let rows = visible_artifacts(api, caller, id).await?;
    Ok(Json(ArtifactList { artifacts: rows.into_iter().map(ArtifactView::from).collect() }))
}

/// The artifacts of a session that the caller can see.
async fn visible_artifacts(api: &Api, caller: &Caller, id: &SessionId) -> Result<Vec<ArtifactRow>, Problem> {
    let mut rows = api.reader.store().artifacts(id).await?;
    if let Some(filter) = ShareFilter::for_caller(caller, api, id) {
        filter.retain(&mut rows, |row| (Some(row.cell.as_str()), row.seq)).await?;
    }
    Ok(rows)
}

/// Types that a browser may display: images that cannot contain scripts.
const INLINE_TYPES: &[&str] = &["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp"];

/// Download an artifact
///
/// Images that cannot contain scripts are sent with the disposition `inline`, everything else as an attachment.
#[utoipa::path(
    get, path = "/artifacts/{sha256}", operation_id = "get_artifact", tag = "artifacts",
    params(("sha256" = String, Path, description = "The hash of the artifact")),
    responses((status = 200, description = "The bytes, with the media type of the artifact", body = inline(Binary), content_type = "*/*")),
)]
pub(super) async fn artifact(
    State(api): State<Api>,
    caller: Caller,
    Path(sha256): Path<String>,
) -> Result<Response, Problem> {
    let none = || Problem::not_found("no_artifact", format!("there is no artifact {sha256:?}"));
    let store = api.reader.store();
    let mime = match &caller.identity.only {
        // A share sees the artifacts of its session only.
        Some(session) => {
            let rows = visible_artifacts(&api, &caller, session).await?;
            rows.into_iter().find(|row| row.sha256 == sha256).map(|row| row.mime)
        }
        None => store.artifact_mime(&sha256, &caller.access()).await?,
    };
    let mime = mime.ok_or_else(none)?;
    let (file, bytes) = api.reader.blobs().open(&sha256).await?.ok_or_else(none)?;
    // The kernel chose the type, so only types that are known to be harmless are displayed. The others are downloads.
    let is_inline = INLINE_TYPES.contains(&mime.as_str());
    let kind = HeaderValue::from_str(&mime).ok().filter(|_| !mime.starts_with("text/html"));
    let headers = [
        (header::CONTENT_LENGTH, HeaderValue::from(bytes)),
        (header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/octet-stream"))),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static(if is_inline { "inline" } else { "attachment" })),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; sandbox"),
        ),
    ];
    Ok((headers, axum::body::Body::from_stream(ReaderStream::new(file))).into_response())
}
