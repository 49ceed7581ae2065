//! Requests about the processes of a sandbox.

mod output;
mod socket;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};

pub(super) use self::output::{__path_stream, stream};
use self::output::{CollectedOutput, collect};
pub(super) use self::socket::{__path_open_socket, Command, open_socket};
use super::cells::parse_wait;
use super::error::Problem;
use super::extract::{optional_object, read_body};
use super::new_session::{check_env, check_timeout};
use super::sandboxes::SandboxInPath;
use super::{Api, Body, Caller, Query, User, guard, path_field, path_parameter, view};
use crate::ids::{ProcessId, Seq};
use crate::manager::{NewProcess, ProcessExit, ProcessInfo, TerminalSize};

/// The most bytes of a command with all its arguments. Longer texts belong into files or the input.
const MAX_COMMAND: usize = 64 << 10;
/// The most arguments.
const MAX_ARGUMENTS: usize = 1024;
/// The longest path of a working folder, and the longest key, bytes.
const MAX_CWD: usize = 4096;
const MAX_KEY: usize = 200;
/// The most bytes of one request for input. More waits until the process has read.
const MAX_INPUT: usize = 1 << 20;
/// The shell of `shell`.
const SHELL: &str = "/bin/bash";

/// The id of the process in the path.
pub(super) struct ProcessInPath(ProcessId);

impl<S: Send + Sync> FromRequestParts<S> for ProcessInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = path_field(parts, state, "process").await?;
        let unknown = || Problem::not_found("no_process", format!("there is no process {id:?}"));
        ProcessId::parse(&id).map(Self).ok_or_else(unknown)
    }
}

impl IntoParams for ProcessInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("process", "The id of the process.")]
    }
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TerminalSize, examples(json!({"rows": 24, "cols": 80})))]
pub(super) struct Size {
    #[schema(minimum = 1, maximum = 1000)]
    rows: u16,
    #[schema(minimum = 1, maximum = 1000)]
    cols: u16,
}

impl Size {
    fn check(self) -> Result<TerminalSize, Problem> {
        let fits = |number: u16| (1..=1000).contains(&number);
        match fits(self.rows) && fits(self.cols) {
            true => Ok(TerminalSize { rows: self.rows, cols: self.cols }),
            false => Err(Problem::unprocessable("bad_size", "a terminal has 1 to 1000 rows and columns").field("pty")),
        }
    }
}

/// A command to start: `command` or `shell`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewProcess, examples(json!({"shell": "ls -l | head", "timeout_seconds": 10})))]
pub(super) struct Start {
    /// The program and its arguments. A name without `/` is looked up in `PATH`.
    command: Option<Vec<String>>,
    /// A command line for bash, instead of `command`.
    shell: Option<String>,
    /// Environment variables in addition to those of the sandbox.
    #[serde(default)]
    env: HashMap<String, String>,
    /// The working folder, relative to the workspace. It must exist.
    cwd: Option<String>,
    /// The size of the terminal, for a process that has one. Else it has pipes.
    #[serde(default, deserialize_with = "optional_object")]
    pty: Option<Size>,
    /// Whether the standard input stays open. Else the process reads the end of file at once.
    #[serde(default)]
    stdin: bool,
    /// After this time the process gets SIGTERM, and SIGKILL two seconds later. The default is no limit.
    #[schema(exclusive_minimum = 0, maximum = 315360000)]
    timeout_seconds: Option<f64>,
    /// Chosen by the client, at most 200 bytes. The process is started once for each key: a retry gets the same process. Once
    /// that is forgotten, its key is refused, unless the process was deleted.
    #[schema(max_length = 200)]
    key: Option<String>,
}

impl Start {
    fn validate(self, api: &Api) -> Result<NewProcess, Problem> {
        let bad = |detail: &str| Problem::unprocessable("bad_command", detail).field("command");
        let command = match (self.command, self.shell) {
            (Some(command), None) => command,
            (None, Some(line)) => vec![SHELL.to_owned(), "-c".to_owned(), line],
            _ => return Err(bad("a process has either a `command`, a list of texts, or a `shell` command line")),
        };
        if command.first().is_none_or(String::is_empty) {
            return Err(bad("the first text of a command is the program"));
        }
        if command.len() > MAX_ARGUMENTS || command.iter().map(String::len).sum::<usize>() > MAX_COMMAND {
            let detail = format!(
                "a command has at most {MAX_ARGUMENTS} texts of {} KB together; put longer ones into a file or the input",
                MAX_COMMAND >> 10
            );
            return Err(bad(&detail));
        }
        if command.iter().any(|text| text.contains('\0')) {
            return Err(bad("a command must not contain NUL"));
        }
        let cwd = self.cwd.unwrap_or_default();
        if cwd.len() > MAX_CWD || cwd.contains('\0') {
            return Err(Problem::unprocessable("bad_command", "that is no path of a folder").field("cwd"));
        }
        if self.key.as_ref().is_some_and(|key| key.is_empty() || key.len() > MAX_KEY) {
            let detail = format!("a key has 1 to {MAX_KEY} bytes");
            return Err(Problem::unprocessable("bad_command", detail).field("key"));
        }
        check_env(&self.env)?;
        let timeout = check_timeout(api.sessions.ceilings(), self.timeout_seconds)?;
        Ok(NewProcess {
            command,
            env: self.env.into_iter().collect::<BTreeMap<_, _>>(),
            cwd,
            terminal: self.pty.map(Size::check).transpose()?,
            stdin: self.stdin,
            timeout_ms: timeout.map(|seconds| Duration::from_secs_f64(seconds).as_millis().max(1) as u64),
            key: self.key,
        })
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = ProcessExit)]
pub(super) struct ExitView {
    /// The exit code, unless a signal ended the process.
    #[schema(required)]
    exit_code: Option<i32>,
    /// The number of the signal that ended it.
    #[schema(required)]
    signal: Option<i32>,
    /// Whether it was ended because `timeout_seconds` were over.
    timed_out: bool,
    /// Whether it was killed because the sandbox had exceeded its memory.
    out_of_memory: bool,
}

impl From<ProcessExit> for ExitView {
    fn from(ProcessExit { code, signal, timed_out, out_of_memory }: ProcessExit) -> Self {
        Self { exit_code: code, signal, timed_out, out_of_memory }
    }
}

/// A process of a sandbox. It stays readable after its end, until it is deleted or the sandbox ends. The 64 processes that
/// ended last are kept; one whose background processes still run is kept if another can go.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Process, examples(json!({
    "id": "8c2f0bd5-6d3f-4e55-9a56-1b2c3d4e5f60", "command": ["/bin/bash", "-c", "ls -l | head"], "cwd": "", "pty": null,
    "pid": 42, "state": "exited", "started_at": "2026-11-30T11:55:05.348000Z", "ended_at": "2026-11-30T11:55:05.401000Z",
    "exit": {"exit_code": 0, "signal": null, "timed_out": false, "out_of_memory": false},
    "first_seq": 1, "last_seq": 2, "input_bytes": 0
})))]
pub(super) struct ProcessView {
    #[schema(value_type = String)]
    id: ProcessId,
    /// In lists, long commands are cut.
    command: Vec<String>,
    /// The working folder, relative to the workspace.
    cwd: String,
    /// The size of its terminal, if it has one.
    #[schema(required)]
    pty: Option<Size>,
    /// The number of the process inside the sandbox.
    pid: i32,
    state: ProcessState,
    #[schema(format = DateTime)]
    started_at: String,
    #[schema(required, format = DateTime)]
    ended_at: Option<String>,
    /// How it ended, if it has.
    #[schema(required)]
    exit: Option<ExitView>,
    /// The number of the oldest event that is kept.
    #[schema(value_type = u64)]
    first_seq: Seq,
    /// The number of the newest event; 0 if there is none.
    last_seq: u64,
    /// Bytes of input that were accepted.
    input_bytes: u64,
    /// With `wait`, and once the process has ended: what it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    output: Option<CollectedOutput>,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ProcessState {
    Running,
    Exited,
}

impl From<ProcessInfo> for ProcessView {
    fn from(info: ProcessInfo) -> Self {
        Self {
            id: info.id,
            command: info.command,
            cwd: info.cwd,
            pty: info.terminal.map(|TerminalSize { rows, cols }| Size { rows, cols }),
            pid: info.pid,
            state: if info.ended.is_some() { ProcessState::Exited } else { ProcessState::Running },
            started_at: view::time(info.started_ms),
            ended_at: info.ended.map(|(at, _)| view::time(at)),
            exit: info.ended.map(|(_, exit)| exit.into()),
            first_seq: info.first_seq,
            last_seq: info.next_seq.0.saturating_sub(1),
            input_bytes: info.input_bytes,
            output: None,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct ProcessList {
    /// Oldest first.
    processes: Vec<ProcessView>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StartQuery {
    /// Seconds that the response may wait for the end of the process. If it ends meanwhile, the response has its output.
    #[param(minimum = 0, maximum = 3600)]
    wait: Option<f64>,
}

/// Start a process
///
/// A command of its own beside the kernels: with pipes or a terminal, in the workspace, with the limits of the sandbox. It goes on
/// when this server restarts. Counts as an execution for ceilings.
#[utoipa::path(
    post, path = "/processes", operation_id = "start_process", tag = "processes",
    params(SandboxInPath, StartQuery), request_body = Start,
    responses((status = 201, description = "The process", body = ProcessView,
        headers(("Location" = String, description = "The path of the process")))),
)]
pub(super) async fn start(
    State(api): State<Api>,
    User(caller): User,
    SandboxInPath(sandbox): SandboxInPath,
    Query(query): Query<StartQuery>,
    Body(start): Body<Start>,
) -> Result<Response, Problem> {
    let (new, wait) = (start.validate(&api)?, parse_wait(query.wait)?);
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    let (info, processes) = api.sessions.start_process(&sandbox, &caller.access(), new).await?;
    let id = info.id.clone();
    let mut view = ProcessView::from(info);
    if let Some(wait) = wait
        && let Some(output) = collect(&processes, &id, wait).await?
    {
        view = ProcessView { output: Some(output), ..processes.get(&id).await?.into() };
    }
    let location = format!("/v1/sandboxes/{sandbox}/processes/{id}");
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(view)).into_response())
}

/// List the processes of a sandbox
#[utoipa::path(
    get, path = "/processes", operation_id = "list_processes", tag = "processes",
    params(SandboxInPath),
    responses((status = 200, description = "The processes that run, and those that ended last", body = ProcessList)),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    SandboxInPath(sandbox): SandboxInPath,
) -> Result<Json<ProcessList>, Problem> {
    let all = api.sessions.processes(&sandbox, &caller.access())?.list().await?;
    Ok(Json(ProcessList { processes: all.into_iter().map(ProcessView::from).collect() }))
}

/// Get a process
#[utoipa::path(
    get, path = "/processes/{process}", operation_id = "get_process", tag = "processes",
    params(SandboxInPath, ProcessInPath),
    responses((status = 200, description = "The process", body = ProcessView)),
)]
pub(super) async fn get_one(
    State(api): State<Api>,
    caller: Caller,
    SandboxInPath(sandbox): SandboxInPath,
    ProcessInPath(id): ProcessInPath,
) -> Result<Json<ProcessView>, Problem> {
    Ok(Json(api.sessions.processes(&sandbox, &caller.access())?.get(&id).await?.into()))
}

/// Kill a process and forget it with its output
#[utoipa::path(
    delete, path = "/processes/{process}", operation_id = "delete_process", tag = "processes",
    params(SandboxInPath, ProcessInPath),
    responses((status = 204, description = "Killed and forgotten")),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SandboxInPath(sandbox): SandboxInPath,
    ProcessInPath(id): ProcessInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.processes(&sandbox, &caller.access())?.remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct InputQuery {
    /// The number of bytes that were sent before. With it, a retry sends nothing twice: what the process has already is
    /// skipped.
    offset: Option<u64>,
    /// Whether the input ends with this. A terminal gets the character that ends it.
    #[serde(default)]
    close: bool,
}

/// Write to the standard input of a process
///
/// The body is what the process reads, at most 1 MB. 429 `process_busy` if 1 MB waits already because the process does not read.
#[utoipa::path(
    post, path = "/processes/{process}/input", operation_id = "write_process_input", tag = "processes",
    params(SandboxInPath, ProcessInPath, InputQuery),
    request_body(content = inline(view::Binary), content_type = "application/octet-stream"),
    responses((status = 200, description = "The process", body = ProcessView)),
)]
pub(super) async fn input(
    State(api): State<Api>,
    User(caller): User,
    SandboxInPath(sandbox): SandboxInPath,
    ProcessInPath(id): ProcessInPath,
    Query(query): Query<InputQuery>,
    request: axum::extract::Request,
) -> Result<Json<ProcessView>, Problem> {
    let data = read_body(request).await?;
    if data.len() > MAX_INPUT {
        let detail = format!("one request has at most {} KB of input; send the rest in others", MAX_INPUT >> 10);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
    }
    let processes = api.sessions.processes(&sandbox, &caller.access())?;
    Ok(Json(processes.write(&id, query.offset, data, query.close).await?.into()))
}

/// A signal, by its name or number.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ProcessSignal, examples(json!({"signal": "SIGINT"})))]
pub(super) struct SendSignal {
    /// The name, such as `SIGINT` or `TERM`, or the number as text.
    signal: String,
}

/// The signals that can be sent, by name.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("TERM", libc::SIGTERM),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("WINCH", libc::SIGWINCH),
];

fn signal_number(name: &str) -> Result<i32, Problem> {
    let plain = name.strip_prefix("SIG").unwrap_or(name);
    let found = SIGNALS.iter().find(|(known, number)| *known == plain || plain.parse() == Ok(*number));
    found.map(|(_, number)| *number).ok_or_else(|| {
        let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
        let detail = format!("that is no signal; use one of {}", names.join(", "));
        Problem::unprocessable("bad_signal", detail).field("signal")
    })
}

/// Send a signal to a process
///
/// It reaches the process group. `SIGKILL` reaches everything that the process has started, also after its end.
#[utoipa::path(
    post, path = "/processes/{process}/signal", operation_id = "signal_process", tag = "processes",
    params(SandboxInPath, ProcessInPath), request_body = SendSignal,
    responses((status = 202, description = "Sent")),
)]
pub(super) async fn signal(
    State(api): State<Api>,
    User(caller): User,
    SandboxInPath(sandbox): SandboxInPath,
    ProcessInPath(id): ProcessInPath,
    Body(SendSignal { signal }): Body<SendSignal>,
) -> Result<StatusCode, Problem> {
    let number = signal_number(&signal)?;
    api.sessions.processes(&sandbox, &caller.access())?.signal(&id, number).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Change the size of the terminal of a process
#[utoipa::path(
    post, path = "/processes/{process}/resize", operation_id = "resize_process", tag = "processes",
    params(SandboxInPath, ProcessInPath), request_body = Size,
    responses((status = 202, description = "Changed")),
)]
pub(super) async fn resize(
    State(api): State<Api>,
    User(caller): User,
    SandboxInPath(sandbox): SandboxInPath,
    ProcessInPath(id): ProcessInPath,
    Body(size): Body<Size>,
) -> Result<StatusCode, Problem> {
    let size = size.check()?;
    api.sessions.processes(&sandbox, &caller.access())?.resize(&id, size).await?;
    Ok(StatusCode::ACCEPTED)
}

/// What an event stream needs of its request.
fn last_seen(headers: &HeaderMap, after: Option<u64>) -> Result<Seq, Problem> {
    Ok(super::events::last_event_id(headers)?.unwrap_or(Seq(after.unwrap_or(0))))
}
