//! One-shot execution: code in a session of its own, which is used once.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::cell_response::{no_cell, read_with_events};
use super::error::Problem;
use super::execution_options::RequestedOptions;
use super::network::RequestedNetwork;
use super::new_session::{Create, RequestedLimits, bound_lifetime};
use super::response_spool::{self, ProducePermit};
use super::secrets::RequestedSecret;
use super::view::{self, NetworkView};
use super::{Api, Body, Caller, User, guard};
use crate::ids::{Access, SessionId};
use crate::kernels;
use crate::manager::{EventRow, KeyKind, NewSession, SessionConfig, StoreError, changed_files, printable};
use crate::report::{ExecutionReport, Finished, KeptFile, MAX_FILE_BYTES, Surroundings, failure, wanted};
use crate::session::{Cell, CellPhase, ExecutionContext, ExecutionResult, NewCell};
use crate::telemetry::traces;

/// The id of the only cell.
const CELL: &str = "execution";
/// How much longer than its execution a session may live whose server ends meanwhile, seconds.
const GRACE: u64 = 120;
/// How long the sandbox may take to say what its code has used, and what is in its workspace.
const INQUIRY_TIMEOUT: Duration = Duration::from_secs(2);
/// The most files of the workspace that suggestions look at.
const MAX_LISTED: usize = 1000;
/// The most files of a request.
const MAX_INPUTS: usize = 100;

/// Code that runs once, and what it needs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(as = ExecuteRequest, examples(json!({
    "code": "import pandas as pd\npd.DataFrame({'x': [1, 2]}).to_csv('out.csv')", "language": "python", "timeout": 30,
    "returnFiles": ["*.csv"]
})))]
pub(super) struct Execute {
    code: String,
    /// `python`, `r`, `julia`, `javascript`, `typescript`, `bash`, or the name of another kernel of this server.
    #[schema(default = "python")]
    language: Option<String>,
    /// The time limit of the code in seconds.
    #[schema(default = 60, exclusive_minimum = 0, maximum = 315360000)]
    timeout: Option<f64>,
    /// Memory of all processes together, in MB. The default of Julia is 1024.
    #[schema(default = 512, minimum = 64, maximum = 16777216)]
    memory_limit: Option<u64>,
    /// The number of CPUs. Fractions are allowed.
    #[schema(default = 1, minimum = 0.01, maximum = 256)]
    cpu_limit: Option<f64>,
    /// Whether the report has what the code printed.
    #[schema(default = true)]
    capture_output: Option<bool>,
    /// Files that the report has if the code creates or modifies them: `*.csv` (in any folder), `plots/*.png`, or `output/` for
    /// everything in that folder. At most 32, without braces; together at most 64 MB.
    return_files: Option<Vec<String>>,
    /// Packages that are installed first. The first execution with them waits for that. The server must allow the network `packages`.
    #[schema(max_items = 1000)]
    install_packages: Option<Vec<String>>,
    /// Environment variables of the code.
    environment: Option<HashMap<String, String>>,
    /// The working folder, relative to the workspace. It is created.
    working_dir: Option<String>,
    /// Files that are in the workspace before the code runs, at most 100.
    #[schema(max_items = 100)]
    files: Option<Vec<InputFile>>,
    /// What the code reaches.
    #[schema(value_type = Option<NetworkView>, default = "none")]
    network: Option<RequestedNetwork>,
    /// The names of data mounts, as for a session.
    mounts: Option<Vec<String>>,
    /// Secrets, as for a session.
    secrets: Option<HashMap<String, RequestedSecret>>,
    /// Chosen by the client, at most 200 bytes: a retry with the same key and the same fields gets the report of the first request, also if
    /// the server was killed meanwhile. The session of the execution then stays among those that have ended. Values of variables and
    /// secrets are not compared.
    #[schema(min_length = 1, max_length = 200)]
    key: Option<String>,
}

/// A file for the code.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ExecuteFile)]
struct InputFile {
    /// Relative to the workspace. Its folders are created.
    path: String,
    content: String,
    /// `utf-8` or `base64`.
    #[schema(default = "utf-8")]
    encoding: Option<String>,
}

/// The request with its fields checked.
struct Plan {
    new: NewSession,
    code: String,
    language: String,
    options: RequestedOptions,
    files: Vec<(String, Bytes)>,
    captures_output: bool,
}

impl Plan {
    fn new(api: &Api, request: Execute) -> Result<Self, Problem> {
        let files = request.files.unwrap_or_default().into_iter().map(InputFile::decode).collect::<Result<Vec<_>, _>>()?;
        if files.len() > MAX_INPUTS {
            let detail = format!("{} files are too many; at most {MAX_INPUTS} are possible", files.len());
            return Err(Problem::unprocessable("bad_file", detail).field("files"));
        }
        let name = request.language.unwrap_or_else(|| "python".to_owned()).to_lowercase();
        let kernel = kernels::find(&name).ok();
        // Variables of one execution leave the choice of a session that is ready; some kernels do not take them.
        let of_session = kernel.is_some_and(|kernel| kernel.ignores_context);
        let (session_env, env) = match request.environment.unwrap_or_default() {
            env if of_session => (env, None),
            env => (HashMap::new(), (!env.is_empty()).then_some(env)),
        };
        let session = Create {
            kernel: Some(name.clone()),
            env: session_env,
            limits: Some(RequestedLimits::of_execution(request.memory_limit, request.cpu_limit)),
            network: request.network,
            mounts: request.mounts.unwrap_or_default(),
            secrets: request.secrets.unwrap_or_default(),
            packages: request.install_packages.unwrap_or_default(),
            timeout_seconds: request.timeout,
            key: request.key,
            ..Create::default()
        };
        let options = RequestedOptions {
            timeout_seconds: None,
            artifacts: request.return_files,
            env,
            cwd: request.working_dir.filter(|folder| !folder.is_empty()),
            ..RequestedOptions::default()
        };
        let described = described(&options);
        let mut asked = vec![name.as_bytes(), request.code.as_bytes(), described.as_bytes()];
        asked.extend(files.iter().flat_map(|(path, bytes)| [path.as_bytes(), &bytes[..]]));
        let key = session.key.clone();
        let mut new = session.validate(&api.sessions)?.with_key(KeyKind::Execution, key, &asked);
        new.config.one_shot = new.key.is_none();
        bound_lifetime(&mut new, &api.sessions, GRACE);
        let captures_output = request.capture_output.unwrap_or(true);
        let language = kernel.map_or(name, |kernel| kernel.language.clone());
        Ok(Self { new, code: request.code, language, options, files, captures_output })
    }

    /// Whether the client may ask again for the same execution.
    fn has_key(&self) -> bool {
        self.new.key.is_some()
    }
}

/// What the options of the code ask for, in one spelling, without the values of variables.
fn described(options: &RequestedOptions) -> String {
    let mut variables: Vec<&str> = options.env.iter().flat_map(|env| env.keys().map(String::as_str)).collect();
    variables.sort_unstable();
    format!("{:?}", (&options.artifacts, &options.cwd, variables))
}

impl InputFile {
    fn decode(self) -> Result<(String, Bytes), Problem> {
        let bad = |detail: String| Problem::unprocessable("bad_file", detail).field("files");
        let bytes = match self.encoding.as_deref() {
            None | Some("utf-8") => self.content.into_bytes(),
            Some("base64") => STANDARD
                .decode(self.content.as_bytes())
                .map_err(|error| bad(format!("the content of {:?} is not base64: {error}", printable(&self.path))))?,
            Some(other) => return Err(bad(format!("{other:?} is not an encoding; use utf-8 or base64"))),
        };
        Ok((self.path, bytes.into()))
    }
}

/// Run code once, and get its results
///
/// The code runs in a session of its own, one of the pool if that fits, which is deleted afterwards. The response comes when it has
/// ended; errors of the code, timeouts and limits are reports with status 200, with what was left until then. Many requests at once
/// wait for each other up to a minute. Code whose client disconnects runs to its end.
#[utoipa::path(
    post, path = "/execute", operation_id = "execute", tag = "execute",
    request_body = Execute,
    responses((status = 200, description = "The report of the execution", body = ExecutionReport)),
)]
pub(super) async fn execute(
    State(api): State<Api>,
    User(caller): User,
    Body(request): Body<Execute>,
) -> Result<Response, Problem> {
    let slot = guard::open_stream(&api, &caller.identity)?;
    let plan = Plan::new(&api, request).map_err(in_own_words)?;
    // In a task of its own: the session must be ended if the client disconnects.
    let executing = tokio::spawn(traces::in_current_context(async move {
        let _slot = slot;
        run(&api, &caller, plan).await
    }));
    let (report, permit) = executing.await.map_err(|error| StoreError::Failed(error.to_string()))?.map_err(in_own_words)?;
    Ok(response_spool::with_permit(permit, Json(report)))
}

/// Names the fields of the request in place of those of sessions and cells.
fn in_own_words(problem: Problem) -> Problem {
    problem.rename_fields(&[
        ("timeout_seconds", "timeout"),
        ("limits.memory_mb", "memoryLimit"),
        ("limits.cpus", "cpuLimit"),
        ("packages", "installPackages"),
        ("env", "environment"),
        ("cwd", "workingDir"),
        ("artifacts", "returnFiles"),
        ("kernel", "language"),
    ])
}

async fn run(api: &Api, caller: &Caller, plan: Plan) -> Result<(ExecutionReport, Option<ProducePermit>), Problem> {
    let access = caller.access();
    let id = api.sessions.create_one_shot(&caller.identity.principal, plan.new.clone()).await?;
    if let Err(problem) = execute_in(api, &id, &access, &plan).await {
        // Nothing has run, so a retry begins anew.
        api.sessions.finish_one_shot(id, access, false);
        return Err(problem);
    }
    let report = report(api, &id, &access, &plan).await;
    api.sessions.finish_one_shot(id.clone(), access, plan.has_key() || report.is_err());
    report.map_err(|problem| problem.and(&format!("the code has run, and its results are in the session {id}")))
}

/// Runs the code in its session, to its end.
async fn execute_in(api: &Api, id: &SessionId, access: &Access, plan: &Plan) -> Result<(), Problem> {
    let cell = match plan.has_key() {
        true => begin_once(api, id, access, plan).await?,
        false => begin(api, id, access, plan).await?,
    };
    if cell.execution.phase != CellPhase::Finished {
        // If the session ends first, the store has the end of the cell.
        let _ = api.sessions.handle(id, access)?.ended(&cell).await;
    }
    Ok(())
}

/// As [`begin`], unless another request with the same key has begun it.
async fn begin_once(api: &Api, id: &SessionId, access: &Access, plan: &Plan) -> Result<Cell, Problem> {
    let _beginning = api.sessions.hold_beginning(id).await;
    match api.reader.cell(id, access, CELL).await? {
        Some(cell) => Ok(cell),
        None => begin(api, id, access, plan).await,
    }
}

/// The report of an execution that has ended.
async fn report(
    api: &Api,
    id: &SessionId,
    access: &Access,
    plan: &Plan,
) -> Result<(ExecutionReport, Option<ProducePermit>), Problem> {
    let file_bytes = bytes_of_artifacts(api, id, access, plan).await?;
    let (cell, events, permit) = read_with_events(api, id, access, CELL, file_bytes).await?;
    let result = cell.execution.result.clone().ok_or_else(|| no_cell(CELL))?;
    let outputs = view::outputs(&events, api.reader.blobs(), false).await?;
    let context = &cell.options.context;
    let surroundings = surroundings(api, id, access, plan, &failure(&plan.language, &plan.code, &result, &outputs)).await;
    let report = ExecutionReport::new(Finished {
        execution_id: id.to_string(),
        language: &plan.language,
        code: &plan.code,
        result: &result,
        outputs: &outputs,
        files: kept_files(api, &events, context).await?,
        patterns: &context.artifacts,
        sandbox_peak: sandbox_peak(api, id, access, &result).await,
        surroundings: &surroundings,
    });
    Ok((if plan.captures_output { report } else { report.without_output() }, permit))
}

/// Puts the files into the workspace, and queues the code.
async fn begin(api: &Api, id: &SessionId, access: &Access, plan: &Plan) -> Result<Cell, Problem> {
    let options = plan.options.clone().resolve(api, id, access).await?;
    let workspace = api.sessions.workspace(id, access)?;
    if let Some(folder) = &options.context.cwd {
        workspace.make_folder(folder).await?;
    }
    for (path, bytes) in &plan.files {
        workspace.write_bytes(path, bytes.clone()).await?;
    }
    let handle = api.sessions.handle_for_write(id, access)?;
    api.sessions.admit_executions(id, access, 1)?;
    let cell = NewCell { id: Some(CELL.to_owned()), source: plan.code.clone(), options, run: true, ..NewCell::default() };
    Ok(handle.add_cell(cell).await?)
}

/// The bytes of the files in the report.
async fn bytes_of_artifacts(api: &Api, id: &SessionId, access: &Access, plan: &Plan) -> Result<u64, Problem> {
    if plan.options.artifacts.as_ref().is_none_or(Vec::is_empty) {
        return Ok(0);
    }
    let cell = api.reader.cell(id, access, CELL).await?.ok_or_else(|| no_cell(CELL))?;
    let files = api.reader.changed_files(id, &cell).await?.files;
    let sizes = files.iter().filter(|file| file.artifact).map(|file| file.size);
    Ok(sizes.fold(0, u64::saturating_add).min(MAX_FILE_BYTES))
}

/// The files that were asked for, up to a limit of their content.
async fn kept_files(api: &Api, events: &[EventRow], context: &ExecutionContext) -> Result<Vec<KeptFile>, Problem> {
    let mut kept = Vec::new();
    let mut total = 0;
    if context.artifacts.is_empty() {
        return Ok(kept);
    }
    for change in changed_files(events).files {
        let hash = change.sha256.clone().filter(|_| change.artifact && total + change.size <= MAX_FILE_BYTES);
        let content = match hash {
            Some(hash) => api.reader.blobs().get(&hash).await?,
            None => None,
        };
        total += content.as_ref().map_or(0, |content| content.len() as u64);
        if change.artifact || change.not_kept.is_some() {
            kept.push(KeptFile { change, content });
        }
    }
    Ok(kept)
}

/// The peak of the sandbox where that of the execution is not known, since its kernel has ended.
async fn sandbox_peak(api: &Api, id: &SessionId, access: &Access, result: &ExecutionResult) -> Option<u64> {
    if result.used.is_some() {
        return None;
    }
    let handle = api.sessions.peek(id, access).ok()?;
    tokio::time::timeout(INQUIRY_TIMEOUT, handle.usage()).await.ok()?.ok().map(|usage| usage.peak_memory_bytes)
}

/// What the suggestions for a failure need to know. What cannot be read is left out.
async fn surroundings(
    api: &Api,
    id: &SessionId,
    access: &Access,
    plan: &Plan,
    failure: &crate::report::Failure<'_>,
) -> Surroundings {
    let SessionConfig { limits, network, timeout_seconds, .. } = &plan.new.config;
    let mut surroundings = Surroundings {
        has_network: *network != crate::policy::NetworkPolicy::None,
        memory_mb: limits.memory_mb,
        timeout_seconds: timeout_seconds.unwrap_or_default(),
        ..Surroundings::default()
    };
    let wanted = wanted(failure);
    if wanted.names
        && let Ok(Ok((variables, _))) = tokio::time::timeout(INQUIRY_TIMEOUT, api.sessions.variables(id, access)).await
    {
        surroundings.names = variables.into_iter().map(|variable| variable.name).collect();
    }
    if wanted.files
        && let Ok(workspace) = api.sessions.workspace(id, access)
        && let Ok(Ok(page)) = tokio::time::timeout(INQUIRY_TIMEOUT, workspace.page("", true, None, MAX_LISTED)).await
    {
        surroundings.files = page.entries.into_iter().map(|entry| entry.path).collect();
    }
    surroundings
}
