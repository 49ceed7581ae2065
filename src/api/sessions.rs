//! Sessions: made, shown, changed, steered, ended.

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
use super::events::Shown;
use super::given::object;
use super::{Api, Body, Caller, InPath, User, view};
use crate::ids::SessionId;
use crate::manager::{ArtifactRow, Facts, KeptSpec, NewSession, SandboxRecord, SessionRow, now_ms, seconds_in_ms};
use crate::policy::Limits;
use crate::session::SessionState;

/// Characters of a name or a label.
const MAX_NAME: usize = 200;
/// Sandboxes that are asked at once for what they use, and how long each may take.
const ASKED_AT_ONCE: usize = 64;
const USAGE_DEADLINE: Duration = Duration::from_secs(2);
/// Labels of one session.
const MAX_LABELS: usize = 50;
/// Bytes of one variable as it is handed to a program (Linux's `MAX_ARG_STRLEN`), and of all of them: a program takes 2 MB in all.
const MAX_VARIABLE: usize = 131_072;
const MAX_ENV: usize = 1 << 20;
/// The most seconds that anything may last: ten years.
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

/// Limits as clients give them: unlike those that are stored, they have no field that is not known.
pub(super) fn limits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Limits, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Given {
        memory_mb: Option<u64>,
        cpus: Option<f64>,
        pids: Option<u64>,
        disk_mb: Option<u64>,
        output_mb: Option<u64>,
    }
    let (given, default) = (object::<_, Given>(deserializer)?, Limits::default());
    Ok(Limits {
        memory_mb: given.memory_mb.unwrap_or(default.memory_mb),
        cpus: given.cpus.unwrap_or(default.cpus),
        pids: given.pids.unwrap_or(default.pids),
        disk_mb: given.disk_mb.unwrap_or(default.disk_mb),
        output_mb: given.output_mb.unwrap_or(default.output_mb),
    })
}

/// Seconds that a cell may take where nobody says otherwise.
pub(super) const DEFAULT_TIMEOUT: f64 = 60.0;

impl Create {
    /// Checks the fields that are texts, and fills in what is left out.
    pub fn check(self) -> Result<NewSession, Problem> {
        check_texts(self.name.as_deref(), &self.labels)?;
        let open_network = match self.network.as_deref() {
            None | Some("none") => false,
            Some("open") => true,
            Some(other) => {
                let detail = format!("{other:?} is no network; `none` and `open` are");
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
            spec: KeptSpec {
                limits: self.limits,
                open_network,
                timeout_seconds,
                ttl_seconds: self.ttl_seconds,
                idle_timeout_seconds: self.idle_timeout_seconds,
                labels: self.labels,
                run: None,
            },
        })
    }
}

/// What a program can be started with.
fn check_env(env: &HashMap<String, String>) -> Result<(), Problem> {
    let bad = |detail: String| Err(Problem::unprocessable("bad_env", detail).field("env"));
    // As it is handed over: NAME=VALUE and a NUL.
    let size = |(name, value): (&String, &String)| name.len() + value.len() + 2;
    if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return bad(format!("{:?} is no name of a variable", name.chars().take(MAX_NAME).collect::<String>()));
    }
    if let Some((name, _)) = env.iter().find(|(_, value)| value.contains('\0')) {
        return bad(format!("the value of {name:?} has a NUL"));
    }
    if let Some((name, _)) = env.iter().find(|one| size(*one) > MAX_VARIABLE) {
        let name: String = name.chars().take(MAX_NAME).collect();
        return bad(format!("{name:?} is too large: a variable has at most {} bytes, its name included", MAX_VARIABLE - 2));
    }
    if env.iter().map(size).sum::<usize>() > MAX_ENV {
        return bad(format!("all variables together have at most {} KB; put the rest into files", MAX_ENV >> 10));
    }
    Ok(())
}

/// Seconds that end before calendars do.
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
        let detail = format!("at most {MAX_LABELS} labels of at most {MAX_NAME} characters are kept");
        return Err(Problem::unprocessable("bad_labels", detail).field("labels"));
    }
    Ok(())
}

/// Seconds that make sense; a negative number or none at all is a mistake rather than a wish.
pub(super) fn check_timeout(seconds: Option<f64>) -> Result<Option<f64>, Problem> {
    match seconds {
        Some(seconds) if !(seconds > 0.0 && seconds <= MAX_SECONDS as f64) => {
            let detail = format!("a timeout is a number of seconds above 0, at most {MAX_SECONDS}, which is ten years");
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
    let id = api.keeper.create(&caller.0.principal, create.check()?).await?;
    let session = show(&api, &id, caller.sees()).await?;
    let location = format!("/v1/sessions/{id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(session)).into_response())
}

pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<Value>, Problem> {
    let rows = api.keeper.rows(caller.sees()).await?;
    let counts = api.keeper.store().count_all_cells().await?;
    let described = rows.into_iter().map(|row| {
        let (api, caller) = (&api, &caller);
        let counts = counts.get(row.id.as_str()).copied().unwrap_or_default();
        async move { describe(api, &row, caller.sees(), counts).await }
    });
    // One that is deleted meanwhile is left out.
    let sessions = stream::iter(described).buffered(ASKED_AT_ONCE).filter_map(|session| std::future::ready(session.ok()));
    Ok(Json(json!({"sessions": sessions.collect::<Vec<_>>().await})))
}

pub(super) async fn get_one(State(api): State<Api>, caller: Caller, InPath(id): InPath) -> Result<Json<Value>, Problem> {
    show(&api, &id, caller.sees()).await.map(Json)
}

async fn show(api: &Api, id: &SessionId, principal: Option<&str>) -> Result<Value, Problem> {
    let row = api.keeper.row(id, principal).await?;
    let counts = api.keeper.store().count_cells(id).await?;
    describe(api, &row, principal, counts).await
}

/// A session with its isolation, and with its sandbox's usage while it has one.
async fn describe(
    api: &Api,
    row: &SessionRow,
    principal: Option<&str>,
    (cells, queued): (usize, usize),
) -> Result<Value, Problem> {
    let handle = api.keeper.look(&row.id, principal)?;
    let state = handle.state();
    let record = row.sandbox.as_deref().and_then(|record| serde_json::from_str::<SandboxRecord>(record).ok());
    let isolation = record.and_then(|record| serde_json::to_value(record.isolation).ok());
    let mut session = view::session(row, state.name(), isolation, (cells, queued), api.keeper.idle_timeout());
    if let SessionState::Gone { why } = &state {
        // The row may have been read a moment before its end.
        session["why"] = why.as_str().into();
    }
    let is_gone = matches!(state, SessionState::Gone { .. });
    let usage = async { if is_gone { None } else { handle.usage().await.ok() } };
    // A sandbox that does not answer is shown without its figures.
    if let Ok(Some(usage)) = tokio::time::timeout(USAGE_DEADLINE, usage).await {
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
    /// Counted from now.
    ttl_seconds: Option<u64>,
    idle_timeout_seconds: Option<u64>,
}

impl Patch {
    fn apply(self, Facts { name, spec, expires_at }: &mut Facts) {
        *name = self.name.or(name.take());
        spec.labels = self.labels.unwrap_or(std::mem::take(&mut spec.labels));
        spec.timeout_seconds = self.timeout_seconds.or(spec.timeout_seconds);
        spec.idle_timeout_seconds = self.idle_timeout_seconds.or(spec.idle_timeout_seconds);
        if let Some(seconds) = self.ttl_seconds {
            spec.ttl_seconds = Some(seconds);
            *expires_at = Some(now_ms().saturating_add(seconds_in_ms(seconds)));
        }
    }
}

pub(super) async fn patch(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    Body(patch): Body<Patch>,
) -> Result<Json<Value>, Problem> {
    check_texts(patch.name.as_deref(), patch.labels.as_ref().unwrap_or(&HashMap::new()))?;
    check_timeout(patch.timeout_seconds)?;
    check_seconds("ttl_seconds", patch.ttl_seconds)?;
    check_seconds("idle_timeout_seconds", patch.idle_timeout_seconds)?;
    api.keeper.change(&id, caller.sees(), |facts| patch.apply(facts)).await?;
    show(&api, &id, caller.sees()).await.map(Json)
}

pub(super) async fn delete(State(api): State<Api>, User(caller): User, InPath(id): InPath) -> Result<StatusCode, Problem> {
    api.keeper.delete(&id, caller.sees()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn interrupt(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
) -> Result<StatusCode, Problem> {
    api.keeper.handle(&id, caller.sees())?.interrupt().await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn restart(State(api): State<Api>, User(caller): User, InPath(id): InPath) -> Result<StatusCode, Problem> {
    api.keeper.handle(&id, caller.sees())?.restart().await?;
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
    InPath(id): InPath,
    Body(Input { value }): Body<Input>,
) -> Result<StatusCode, Problem> {
    api.keeper.handle(&id, caller.sees())?.input(&value).await?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    code: String,
    /// In Unicode characters; the end where it is left out.
    cursor_pos: Option<usize>,
}

impl Place {
    fn cursor(&self) -> Result<usize, Problem> {
        let length = self.code.chars().count();
        let cursor = self.cursor_pos.unwrap_or(length);
        if cursor > length {
            let detail = format!("cursor_pos is {cursor}, and the code has {length} characters");
            return Err(Problem::unprocessable("bad_cursor", detail).field("cursor_pos"));
        }
        Ok(cursor)
    }
}

pub(super) async fn complete(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    Body(place): Body<Place>,
) -> Result<Json<Value>, Problem> {
    let handle = api.keeper.handle(&id, caller.sees())?;
    in_time(handle.complete(&place.code, place.cursor()?)).await
}

pub(super) async fn inspect(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    Body(place): Body<Place>,
) -> Result<Json<Value>, Problem> {
    let handle = api.keeper.handle(&id, caller.sees())?;
    in_time(handle.inspect(&place.code, place.cursor()?)).await
}

pub(super) async fn variables(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
) -> Result<Json<Value>, Problem> {
    let (variables, may_be_more) = api.keeper.variables(&id, caller.sees()).await?;
    let variables = variables.into_iter().map(|one| json!({"name": one.name, "type": one.kind, "summary": one.summary}));
    Ok(Json(json!({"variables": variables.collect::<Value>(), "truncated": may_be_more})))
}

/// A kernel that runs a cell answers after it.
async fn in_time(asking: impl Future<Output = Result<Value, crate::session::SessionError>>) -> Result<Json<Value>, Problem> {
    match tokio::time::timeout(std::time::Duration::from_secs(10), asking).await {
        Ok(answer) => Ok(Json(answer?)),
        Err(_) => {
            let detail = "the kernel is busy and has not answered within 10 s; ask again when its cell has ended";
            Err(Problem::new(StatusCode::CONFLICT, "kernel_busy", detail))
        }
    }
}

pub(super) async fn artifacts(State(api): State<Api>, caller: Caller, InPath(id): InPath) -> Result<Json<Value>, Problem> {
    api.keeper.look(&id, caller.sees())?;
    let rows = artifacts_of(&api, &caller, &id).await?;
    Ok(Json(json!({"artifacts": rows.iter().map(view::artifact).collect::<Vec<_>>()})))
}

/// What a session has shown, as far as it is shown to this caller.
async fn artifacts_of(api: &Api, caller: &Caller, id: &SessionId) -> Result<Vec<ArtifactRow>, Problem> {
    let mut rows = api.keeper.store().artifacts(id).await?;
    if let Some(shown) = Shown::to(caller, api, id) {
        shown.retain(&mut rows, |row| (Some(row.cell.as_str()), row.seq)).await?;
    }
    Ok(rows)
}

/// Types that a browser may show in place: images that hold no script.
const SHOWN: &[&str] = &["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp"];

pub(super) async fn artifact(
    State(api): State<Api>,
    caller: Caller,
    Path(sha256): Path<String>,
) -> Result<Response, Problem> {
    let none = || Problem::not_found("no_artifact", format!("there is no artifact {sha256:?}"));
    let principal = caller.sees().map(str::to_owned);
    let store = api.keeper.store();
    let mime = match &caller.0.only {
        // Who has a link sees what this session shows.
        Some(session) => {
            let rows = artifacts_of(&api, &caller, session).await?;
            rows.into_iter().find(|row| row.sha256 == sha256).map(|row| row.mime)
        }
        None => store.artifact_mime(&sha256, principal).await?,
    };
    let mime = mime.ok_or_else(none)?;
    let (file, bytes) = api.keeper.blobs().open(&sha256).await?.ok_or_else(none)?;
    // The kernel named the type: it may be anything, and what is not known to be harmless is only to be saved.
    let shown = SHOWN.contains(&mime.as_str());
    let kind = HeaderValue::from_str(&mime).ok().filter(|_| !mime.starts_with("text/html"));
    let headers = [
        (header::CONTENT_LENGTH, HeaderValue::from(bytes)),
        (header::CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/octet-stream"))),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static(if shown { "inline" } else { "attachment" })),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; sandbox"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable")),
    ];
    Ok((headers, axum::body::Body::from_stream(ReaderStream::new(file))).into_response())
}
