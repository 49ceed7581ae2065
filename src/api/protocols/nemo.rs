//! `/execute` as the local sandbox of the NeMo agent toolkit has it (nvidia-nat up to 1.8: each request is a program of its own, files
//! stay), and as NeMo Skills has it (`language: ipython` with `X-Session-ID`: variables stay, too, in a session).

use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{checked, command_run};
use crate::api::cell_response::read_with_events;
use crate::api::error::Problem;
use crate::api::execution_options::RequestedOptions;
use crate::api::extract::{media_type, read_body};
use crate::api::new_session::Create;
use crate::api::{Api, Caller, User, guard, view};
use crate::ids::{self, Access, SandboxId, SessionId};
use crate::manager::{KeyKind, NewProcess, SessionConfig, SessionFilter, from_ms};
use crate::output::strip_ansi;
use crate::report::ReportOutput;
use crate::session::{CellPhase, CellType, ExecutionStatus, NewCell, SessionState};

/// The key of a principal's sandbox, and the label of a session with its id in this protocol.
const SANDBOX_KEY: &str = "nemo";
const SESSION_LABEL: &str = "nemo-session";
/// The longest id of a session, in bytes.
const MAX_SESSION_ID: usize = 150;
/// The most sessions of a list.
const MAX_LISTED: usize = 1000;
/// The most bytes of each stream of a program.
const MAX_OUTPUT: usize = 16 << 20;
/// The characters of each stream in answers of the Skills variant, unless the request says another number.
const SKILLS_OUTPUT: usize = 1000;
const CUT: &str = "<output cut>";
const RUN_PYTHON: &str = include_str!("run_python.py");

pub(super) fn routes(api: &Api) -> Router<Api> {
    let authorized = Router::new()
        .route("/execute", post(execute))
        .route("/sessions", get(list_sessions))
        .route("/sessions/{id}", delete(delete_session));
    Router::new()
        .route("/", get(async || Json(json!({"status": "ok"}))))
        .route("/health", get(async || Json(json!({"status": "healthy", "worker": "cellkeep"}))))
        .merge(checked(api, authorized, |detail| answer("error", "", detail)))
}

fn answer(status: &str, stdout: &str, stderr: &str) -> Value {
    json!({"process_status": status, "stdout": stdout, "stderr": stderr})
}

/// A request that this protocol refuses, in its words.
fn refused(message: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(answer("error", "", message))).into_response()
}

/// What a request asks for.
#[derive(Debug)]
struct Execution {
    code: String,
    /// Seconds; not more than 0 for code that may not run at all.
    timeout: f64,
    language: Language,
    /// The most characters of each stream.
    max_output: Option<usize>,
    stdin: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Python,
    IPython,
    Shell,
}

impl Execution {
    fn read(body: &[u8]) -> Result<Self, &'static str> {
        let body: Value = serde_json::from_slice(body).map_err(|_| "Invalid JSON data")?;
        let fields = body.as_object().ok_or("Invalid JSON data")?;
        let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
        let code = field("generated_code").ok_or("Missing required field: generated_code")?;
        let timeout = field("timeout").ok_or("Missing required field: timeout")?;
        let language = field("language").ok_or("Missing required field: language")?;
        let language = match language.as_str() {
            Some("python" | "python3") => Language::Python,
            Some("ipython") => Language::IPython,
            Some("shell") => Language::Shell,
            _ => return Err("Only python execution is supported"),
        };
        let max_output = match field("max_output_characters") {
            Some(most) => Some(most.as_u64().ok_or("max_output_characters must be a number")?),
            None => (language != Language::Python).then_some(SKILLS_OUTPUT as u64),
        };
        Ok(Self {
            code: without_fences(code.as_str().ok_or("generated_code must be a string")?).to_owned(),
            timeout: timeout.as_f64().ok_or("timeout must be a number of seconds")?,
            language,
            max_output: max_output.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
            stdin: field("std_input").and_then(Value::as_str).unwrap_or_default().to_owned(),
        })
    }
}

/// The code of a fenced block of markdown, or all of it.
fn without_fences(code: &str) -> &str {
    let trimmed = code.trim();
    let Some(inner) = trimmed.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) else { return code };
    let (info, block) = inner.split_once('\n').unwrap_or(("", inner));
    let is_language = info.trim().chars().all(|character| character.is_ascii_alphanumeric() || character == '+');
    if is_language { block } else { inner }
}

/// Cuts a text to a number of characters.
fn cut(text: String, most: Option<usize>, is_cut: bool) -> String {
    let end = most.and_then(|most| text.char_indices().nth(most)).map(|(end, _)| end);
    match end {
        Some(end) => format!("{}{CUT}", &text[..end]),
        None if is_cut => text + CUT,
        None => text,
    }
}

async fn execute(State(api): State<Api>, User(caller): User, request: Request) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    if !media_type(&headers).ends_with("json") {
        return Ok(refused("Request must be JSON"));
    }
    let execution = match Execution::read(&read_body(request).await?) {
        Ok(execution) => execution,
        Err(message) => return Ok(refused(message)),
    };
    let _slot = guard::open_stream(&api, &caller.identity)?;
    let session = match session_id(&headers) {
        Ok(session) => session,
        Err(message) => return Ok(refused(message)),
    };
    let result = match (execution.language, session) {
        (Language::IPython, None) => return Ok(refused("X-Session-ID header required for ipython sessions")),
        (Language::IPython | Language::Python, Some(session)) => run_in_session(&api, &caller, &session, execution).await?,
        _ => run_program(&api, &caller, execution).await?,
    };
    Ok(Json(result).into_response())
}

fn session_id(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let Some(value) = headers.get("x-session-id") else { return Ok(None) };
    let id = value.to_str().ok().filter(|id| !id.is_empty() && id.len() <= MAX_SESSION_ID);
    id.map(|id| Some(id.to_owned())).ok_or("X-Session-ID must have 1 to 150 printable characters")
}

/// Runs the code as a program in the sandbox of its principal.
async fn run_program(api: &Api, caller: &Caller, execution: Execution) -> Result<Value, Problem> {
    if execution.timeout <= 0.0 {
        return Ok(answer("timeout", "", "Timed out\n"));
    }
    let access = caller.access();
    let new = Create { kernel: Some("python".to_owned()), timeout_seconds: Some(execution.timeout), ..Create::default() };
    let mut new = new.validate(&api.sessions)?;
    // The timeout is that of the program, and does not tell sandboxes apart.
    new.config.timeout_seconds = None;
    let new = new.with_key(KeyKind::Sandbox, Some(SANDBOX_KEY.to_owned()), &[]);
    let sandbox = api.sessions.create_sandbox(&caller.identity.principal, new).await?;
    let code = HiddenFile::write(api, &sandbox, &access, &execution.code).await?;
    let stdin = match execution.stdin.as_str() {
        "" => None,
        text => Some(HiddenFile::write(api, &sandbox, &access, text).await?),
    };
    let program = match execution.language {
        Language::Shell => "exec < \"$2\" /bin/bash \"$1\"",
        Language::Python | Language::IPython => "exec < \"$2\" python3 -c \"$3\" \"$1\"",
    };
    let stdin_path = stdin.as_ref().map_or("/dev/null".to_owned(), HiddenFile::path);
    let command = ["/bin/bash", "-c", program, "-", &code.path(), &stdin_path, RUN_PYTHON].map(str::to_owned).to_vec();
    let timeout_ms = Some(Duration::from_secs_f64(execution.timeout).as_millis().max(1) as u64);
    let process = NewProcess { command, timeout_ms, ..NewProcess::default() };
    let ran = command_run::run(api, &sandbox, &access, process, MAX_OUTPUT).await;
    for file in [Some(code), stdin].into_iter().flatten() {
        file.remove(api, &sandbox, &access).await;
    }
    let ran = ran?;
    if ran.exit.timed_out {
        return Ok(answer("timeout", "", "Timed out\n"));
    }
    let (stdout, mut stderr) = (ran.stdout.text(), ran.stderr.text());
    if ran.exit.out_of_memory {
        stderr += "the code used all of its memory and was killed\n";
    }
    let status = if ran.exit.code == Some(0) { "completed" } else { "error" };
    let most = execution.max_output;
    Ok(answer(status, &cut(stdout, most, ran.stdout.is_cut), &cut(stderr, most, ran.stderr.is_cut)))
}

/// A file of one request in the workspace that requests share.
struct HiddenFile(String);

impl HiddenFile {
    async fn write(api: &Api, sandbox: &SandboxId, access: &Access, text: &str) -> Result<Self, Problem> {
        let name = format!(".execute-{}", ids::random_uuid());
        let workspace = api.sessions.workspace_of_sandbox(sandbox, access)?;
        workspace.write_bytes(&name, Bytes::copy_from_slice(text.as_bytes())).await?;
        Ok(Self(name))
    }

    /// Its path in the sandbox.
    fn path(&self) -> String {
        format!("/work/{}", self.0)
    }

    /// Code that has removed it, or a sandbox that has ended, needs nothing more.
    async fn remove(self, api: &Api, sandbox: &SandboxId, access: &Access) {
        if let Ok(workspace) = api.sessions.workspace_of_sandbox(sandbox, access) {
            let _ = workspace.remove(&self.0, false).await;
        }
    }
}

/// Runs the code in a session whose variables stay.
async fn run_in_session(api: &Api, caller: &Caller, name: &str, execution: Execution) -> Result<Value, Problem> {
    let access = caller.access();
    let (id, mut is_new) = find_or_create(api, caller, name).await?;
    let before = api.reader.last_cell(&id, &access).await?;
    is_new |= before.is_none_or(|cell| {
        cell.execution.result.as_ref().and_then(|result| result.error.as_ref()).is_some_and(|error| error.state_lost)
    });
    let requested = RequestedOptions { timeout_seconds: Some(execution.timeout.max(0.001)), ..RequestedOptions::default() };
    let options = requested.resolve(api, &id, &access).await?;
    let handle = api.sessions.handle_for_write(&id, &access)?;
    api.sessions.admit_executions(&id, &access, 1)?;
    let cell = NewCell { source: execution.code, cell_type: Some(CellType::Code), options, run: true, ..NewCell::default() };
    let cell = handle.add_cell(cell).await?;
    if cell.execution.phase != CellPhase::Finished {
        // If the session ends first, the store has the end of the cell.
        let _ = handle.ended(&cell).await;
    }
    let (cell, events, _permit) = read_with_events(api, &id, &access, &cell.id, 0).await?;
    let outputs = view::outputs(&events, api.reader.blobs(), true).await?;
    let Some(result) = &cell.execution.result else { return Ok(answer("error", "", "the session has ended\n")) };
    let ReportOutput { stdout, mut stderr, .. } = ReportOutput::new(result, &outputs);
    let status = match result.status {
        ExecutionStatus::Ok => "completed",
        ExecutionStatus::Timeout => "timeout",
        _ => "error",
    };
    if status == "timeout" {
        stderr += &format!("Execution timed out after {} seconds\n", execution.timeout);
    } else if let Some(error) = &result.error {
        stderr += &format!("{}\n", strip_ansi(&error.traceback.join("\n")));
    }
    is_new |= result.error.as_ref().is_some_and(|error| error.state_lost);
    let most = execution.max_output;
    let mut result = answer(status, &cut(stdout, most, false), &cut(stderr, most, false));
    result["new_session_created"] = is_new.into();
    Ok(result)
}

/// The session with this name, and whether it is new.
async fn find_or_create(api: &Api, caller: &Caller, name: &str) -> Result<(SessionId, bool), Problem> {
    let create = async || {
        let labels = [(SESSION_LABEL.to_owned(), name.to_owned())].into();
        let new = Create { kernel: Some("python".to_owned()), labels, ..Create::default() }.validate(&api.sessions)?;
        let new = new.with_key(KeyKind::Session, Some(format!("{SESSION_LABEL}:{name}")), &[]);
        Ok::<_, Problem>(api.sessions.create(&caller.identity.principal, new).await?)
    };
    let id = create().await?;
    if !matches!(api.sessions.peek(&id, &caller.access())?.state(), SessionState::Gone { .. }) {
        return Ok((id, false));
    }
    // It was idle for too long, or its kernel did not start again.
    api.sessions.delete(&id, &caller.access()).await?;
    Ok((create().await?, true))
}

async fn list_sessions(State(api): State<Api>, caller: Caller) -> Result<Json<Value>, Problem> {
    let (rows, _) = api.reader.page(&caller.access(), SessionFilter::default(), None, MAX_LISTED).await?;
    let seconds = |ms: i64| from_ms(ms).duration_since(std::time::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    let mut sessions = Map::new();
    for row in rows {
        let Some(name) = SessionConfig::of_row(&row).labels.remove(SESSION_LABEL) else { continue };
        let is_alive = !matches!(api.sessions.peek(&row.id, &caller.access())?.state(), SessionState::Gone { .. });
        let described = json!({
            "backend": "ipython", "created": seconds(row.created_at), "last_used": seconds(row.last_active_at), "alive": is_alive
        });
        sessions.insert(name, described);
    }
    Ok(Json(json!({"sessions": sessions, "backend": "ipython"})))
}

async fn delete_session(State(api): State<Api>, User(caller): User, Path(name): Path<String>) -> Result<Response, Problem> {
    let filter = SessionFilter { labels: [(SESSION_LABEL.to_owned(), name.clone())].into(), ..SessionFilter::default() };
    let (rows, _) = api.reader.page(&caller.access(), filter, None, MAX_LISTED).await?;
    if rows.is_empty() {
        let error = format!("IPython session {name} not found");
        return Ok((StatusCode::NOT_FOUND, Json(json!({"error": error}))).into_response());
    }
    for row in rows {
        api.sessions.delete(&row.id, &caller.access()).await?;
    }
    Ok(Json(json!({"message": format!("IPython session {name} deleted successfully")})).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_refused_in_the_words_of_the_protocol() {
        let refusal = |body: &str| Execution::read(body.as_bytes()).unwrap_err();
        assert_eq!(refusal("{"), "Invalid JSON data");
        assert_eq!(refusal("[]"), "Invalid JSON data");
        assert_eq!(refusal("{}"), "Missing required field: generated_code");
        assert_eq!(refusal(r#"{"generated_code": "1"}"#), "Missing required field: timeout");
        assert_eq!(refusal(r#"{"generated_code": "1", "timeout": 1}"#), "Missing required field: language");
        let other = r#"{"generated_code": "1", "timeout": 1, "language": "lean4"}"#;
        assert_eq!(refusal(other), "Only python execution is supported");
    }

    #[test]
    fn fences_are_removed() {
        for (code, expected) in [
            ("print(1)", "print(1)"),
            ("```python\nprint(1)\n```", "print(1)\n"),
            ("  ```\nprint(1)```  ", "print(1)"),
            ("```print(1)```", "print(1)"),
            ("'```'", "'```'"),
            ("```", "```"),
        ] {
            assert_eq!(without_fences(code), expected, "{code:?}");
        }
    }

    #[test]
    fn long_output_is_cut() {
        assert_eq!(cut("äöü".to_owned(), Some(2), false), "äö<output cut>");
        assert_eq!(cut("äö".to_owned(), Some(2), false), "äö");
        assert_eq!(cut("äö".to_owned(), None, true), "äö<output cut>");
        let asked = |more: &str| {
            let body = format!(r#"{{"generated_code": "1", "timeout": 1, {more}}}"#);
            Execution::read(body.as_bytes()).unwrap().max_output
        };
        assert_eq!(asked(r#""language": "python""#), None);
        assert_eq!(asked(r#""language": "ipython""#), Some(1000));
        assert_eq!(asked(r#""language": "python", "max_output_characters": 7"#), Some(7));
    }
}
