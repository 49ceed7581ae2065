//! Requests about sessions: create, read, change, control, delete.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use super::error::Problem;
use super::events::ShareFilter;
use super::extract::object;
use super::{Api, Body, Caller, SessionInPath, User, view};
use crate::ids::{Access, SessionId};
use crate::manager::{
    ArtifactRow, NewSession, SandboxRecord, SessionConfig, SessionProperties, SessionRow, now_ms, seconds_in_ms,
};
use crate::policy::Limits;
use crate::session::{SessionError, SessionState};

/// The largest number of characters in a name or label.
const MAX_NAME: usize = 200;
/// The number of concurrent usage requests to sandboxes, and the timeout of each.
const CONCURRENT_USAGE_REQUESTS: usize = 64;
const USAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request waits for a completion or inspection.
const INTROSPECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest number of labels.
const MAX_LABELS: usize = 50;
/// The largest size of one environment variable (`MAX_ARG_STRLEN` of Linux) and of all of them, in bytes. Linux accepts 2 MB
/// in all.
const MAX_VARIABLE: usize = 131_072;
const MAX_ENV: usize = 1 << 20;
/// The largest duration in seconds: ten years.
const MAX_SECONDS: u64 = 315_360_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    pub kernel: Option<String>,
    pub name: Option<String>,
    #[serde(default)]
    pub env: HashMap<String, String>,
    #[serde(default, deserialize_with = "limits")]
    pub limits: Limits,
    pub network: Option<String>,
    pub timeout_seconds: Option<f64>,
    pub ttl_seconds: Option<u64>,
    pub idle_timeout_seconds: Option<u64>,
    #[serde(default)]
    pub labels: HashMap<String, String>,
}

/// Reads limits from a request. Unlike stored limits, they must not have unknown fields.
pub(super) fn limits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Limits, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct RequestedLimits {
        memory_mb: Option<u64>,
        cpus: Option<f64>,
        pids: Option<u64>,
        disk_mb: Option<u64>,
        output_mb: Option<u64>,
    }
    let (requested, default) = (object::<_, RequestedLimits>(deserializer)?, Limits::default());
    Ok(Limits {
        memory_mb: requested.memory_mb.unwrap_or(default.memory_mb),
        cpus: requested.cpus.unwrap_or(default.cpus),
        pids: requested.pids.unwrap_or(default.pids),
        disk_mb: requested.disk_mb.unwrap_or(default.disk_mb),
        output_mb: requested.output_mb.unwrap_or(default.output_mb),
    })
}

/// The default timeout of a cell in seconds.
pub(super) const DEFAULT_TIMEOUT: f64 = 60.0;

impl Create {
    /// Validates the request, and adds defaults.
    pub fn validate(self) -> Result<NewSession, Problem> {
        check_texts(self.name.as_deref(), &self.labels)?;
        let open_network = match self.network.as_deref() {
            None | Some("none") => false,
            Some("open") => true,
            Some(other) => {
                let detail = format!("{other:?} is not a network mode; use `none` or `open`");
                return Err(Problem::unprocessable("bad_network", detail).field("network"));
            }
        };
        check_env(&self.env)?;
        check_seconds("ttl_seconds", self.ttl_seconds)?;
        check_seconds("idle_timeout_seconds", self.idle_timeout_seconds)?;
        let timeout_seconds = check_timeout(self.timeout_seconds)?.or(Some(DEFAULT_TIMEOUT));
        Ok(NewSession {
            kernel: self.kernel.unwrap_or_else(|| "python".to_owned()),
            name: self.name,
            env: self.env.into_iter().collect(),
            config: SessionConfig {
                limits: self.limits,
                open_network,
                timeout_seconds,
                ttl_seconds: self.ttl_seconds,
                idle_timeout_seconds: self.idle_timeout_seconds,
                labels: self.labels,
                job: None,
            },
        })
    }
}

/// Checks the limits of Linux for environment variables.
fn check_env(env: &HashMap<String, String>) -> Result<(), Problem> {
    let bad = |detail: String| Err(Problem::unprocessable("bad_env", detail).field("env"));
    // A program gets NAME=VALUE and a NUL.
    let size = |(name, value): (&String, &String)| name.len() + value.len() + 2;
    if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return bad(format!("{:?} is not a valid name of a variable", name.chars().take(MAX_NAME).collect::<String>()));
    }
    if let Some((name, _)) = env.iter().find(|(_, value)| value.contains('\0')) {
        return bad(format!("the value of {name:?} contains a NUL"));
    }
    if let Some((name, _)) = env.iter().find(|variable| size(*variable) > MAX_VARIABLE) {
        let name: String = name.chars().take(MAX_NAME).collect();
        return bad(format!("{name:?} is too large: a variable has at most {} bytes, including its name", MAX_VARIABLE - 2));
    }
    if env.iter().map(size).sum::<usize>() > MAX_ENV {
        return bad(format!("all variables together have at most {} KB; use files for larger data", MAX_ENV >> 10));
    }
    Ok(())
}

/// Bounds a duration, so that dates do not overflow.
fn check_seconds(field: &'static str, seconds: Option<u64>) -> Result<(), Problem> {
    match seconds {
        Some(seconds) if seconds > MAX_SECONDS => {
            let detail = format!("{field} is at most {MAX_SECONDS}, which is ten years");
            Err(Problem::unprocessable("bad_timeout", detail).field(field))
        }
        _ => Ok(()),
    }
}

fn check_texts(name: Option<&str>, labels: &HashMap<String, String>) -> Result<(), Problem> {
    let too_long = |text: &str| text.chars().count() > MAX_NAME;
    if name.is_some_and(too_long) {
        let detail = format!("a name has at most {MAX_NAME} characters");
        return Err(Problem::unprocessable("bad_name", detail).field("name"));
    }
    if labels.len() > MAX_LABELS || labels.iter().any(|(key, value)| too_long(key) || too_long(value)) {
        let detail = format!("a session has at most {MAX_LABELS} labels of at most {MAX_NAME} characters");
        return Err(Problem::unprocessable("bad_labels", detail).field("labels"));
    }
    Ok(())
}

/// Checks a timeout, which must be positive.
pub(super) fn check_timeout(seconds: Option<f64>) -> Result<Option<f64>, Problem> {
    match seconds {
        Some(seconds) if !(seconds > 0.0 && seconds <= MAX_SECONDS as f64) => {
            let detail =
                format!("a timeout must be a positive number of seconds, at most {MAX_SECONDS}, which is ten years");
            Err(Problem::unprocessable("bad_timeout", detail).field("timeout_seconds"))
        }
        seconds => Ok(seconds),
    }
}

pub(super) async fn create(
    State(api): State<Api>,
    User(caller): User,
    Body(create): Body<Create>,
) -> Result<Response, Problem> {
    let id = api.sessions.create(&caller.identity.principal, create.validate()?).await?;
    let session = read_session(&api, &id, &caller.access()).await?;
    let location = format!("/v1/sessions/{id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(session)).into_response())
}

pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<Value>, Problem> {
    let rows = api.reader.rows(&caller.access()).await?;
    let counts = api.reader.store().count_all_cells().await?;
    let described = rows.into_iter().map(|row| {
        let (api, caller) = (&api, &caller);
        let counts = counts.get(row.id.as_str()).copied().unwrap_or_default();
        async move { describe(api, &row, &caller.access(), counts).await }
    });
    // A session that is deleted meanwhile is left out.
    let sessions =
        stream::iter(described).buffered(CONCURRENT_USAGE_REQUESTS).filter_map(|session| std::future::ready(session.ok()));
    Ok(Json(json!({"sessions": sessions.collect::<Vec<_>>().await})))
}

pub(super) async fn get_one(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
) -> Result<Json<Value>, Problem> {
    read_session(&api, &id, &caller.access()).await.map(Json)
}

async fn read_session(api: &Api, id: &SessionId, access: &Access) -> Result<Value, Problem> {
    let row = api.reader.row(id, access).await?;
    let counts = api.reader.store().count_cells(id).await?;
    describe(api, &row, access, counts).await
}

/// A session with its isolation and, while it lives, the usage of its sandbox.
async fn describe(api: &Api, row: &SessionRow, access: &Access, (cells, queued): (usize, usize)) -> Result<Value, Problem> {
    let handle = api.sessions.peek(&row.id, access)?;
    let state = handle.state();
    let record = row.sandbox.as_deref().and_then(|record| serde_json::from_str::<SandboxRecord>(record).ok());
    let isolation = record.and_then(|record| serde_json::to_value(record.isolation).ok());
    let mut session = view::session(row, state.phase(), isolation, (cells, queued), api.sessions.idle_timeout());
    if let SessionState::Gone { why } = &state {
        // The row may be older than the state.
        session["why"] = why.as_str().into();
    }
    let is_gone = matches!(state, SessionState::Gone { .. });
    let usage = async { if is_gone { None } else { handle.usage().await.ok() } };
    // If the sandbox does not answer, the response has no usage.
    if let Ok(Some(usage)) = tokio::time::timeout(USAGE_TIMEOUT, usage).await {
        session["usage"] = json!({
            "memory_bytes": usage.memory_bytes, "peak_memory_bytes": usage.peak_memory_bytes,
            "cpu_seconds": usage.cpu_seconds, "processes": usage.processes,
        });
    }
    Ok(session)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Patch {
    name: Option<String>,
    labels: Option<HashMap<String, String>>,
    timeout_seconds: Option<f64>,
    /// Counts from the time of the request.
    ttl_seconds: Option<u64>,
    idle_timeout_seconds: Option<u64>,
}

impl Patch {
    fn apply(self, SessionProperties { name, config, expires_at }: &mut SessionProperties) {
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

pub(super) async fn patch(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Body(patch): Body<Patch>,
) -> Result<Json<Value>, Problem> {
    check_texts(patch.name.as_deref(), patch.labels.as_ref().unwrap_or(&HashMap::new()))?;
    check_timeout(patch.timeout_seconds)?;
    check_seconds("ttl_seconds", patch.ttl_seconds)?;
    check_seconds("idle_timeout_seconds", patch.idle_timeout_seconds)?;
    api.sessions.update(&id, &caller.access(), |properties| patch.apply(properties)).await?;
    read_session(&api, &id, &caller.access()).await.map(Json)
}

pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.delete(&id, &caller.access()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn interrupt(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.handle(&id, &caller.access())?.interrupt().await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn restart(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.handle(&id, &caller.access())?.restart().await?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    value: String,
}

pub(super) async fn input(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Body(Input { value }): Body<Input>,
) -> Result<StatusCode, Problem> {
    api.sessions.handle(&id, &caller.access())?.input(&value).await?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CodePosition {
    code: String,
    /// In Unicode characters. The default is the end of the code.
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

pub(super) async fn complete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Body(position): Body<CodePosition>,
) -> Result<Json<Value>, Problem> {
    let handle = api.sessions.handle(&id, &caller.access())?;
    with_timeout(handle.complete(&position.code, position.cursor()?)).await
}

pub(super) async fn inspect(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Body(position): Body<CodePosition>,
) -> Result<Json<Value>, Problem> {
    let handle = api.sessions.handle(&id, &caller.access())?;
    with_timeout(handle.inspect(&position.code, position.cursor()?)).await
}

pub(super) async fn variables(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<Json<Value>, Problem> {
    let (variables, is_truncated) = api.sessions.variables(&id, &caller.access()).await?;
    let variables = variables
        .into_iter()
        .map(|variable| json!({"name": variable.name, "type": variable.kind, "summary": variable.summary}));
    Ok(Json(json!({"variables": variables.collect::<Value>(), "truncated": is_truncated})))
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

pub(super) async fn artifacts(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
) -> Result<Json<Value>, Problem> {
    api.reader.check_visible(&id, &caller.access())?;
    let rows = visible_artifacts(&api, &caller, &id).await?;
    Ok(Json(json!({"artifacts": rows.iter().map(view::artifact).collect::<Vec<_>>()})))
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
        (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable")),
    ];
    Ok((headers, axum::body::Body::from_stream(ReaderStream::new(file))).into_response())
}
