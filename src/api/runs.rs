//! Notebook jobs (`/v1/runs`). Each runs in a session of its own, which ends with the job. Its results can be read
//! afterwards.

use std::collections::{BTreeMap, HashMap};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::error::Problem;
use super::events::{self, EventsQuery, LastEventId};
use super::extract::{self, InvalidInput};
use super::network::RequestedNetwork;
use super::new_session::{Create, RequestedLimits, check_key};
use super::notebooks::{self, ExportQuery, RunOutcome, WaitQuery};
use super::secrets::RequestedSecret;
use super::sessions;
use super::view::{self, ArtifactList, Binary, EventView, NetworkView, NotebookFile};
use super::{Api, Body, Caller, Query, SessionInPath, User, guard, input_budget, paging};
use crate::ids::{Seq, SessionId};
use crate::kernels;
use crate::manager::{JobConfig, KeyKind, NotebookRun, SessionConfig, SessionFilter, SessionRow};

/// A notebook, and how it runs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewRun, examples(json!({
    "notebook": {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}, "parameters": {"year": 2026}
})))]
pub(super) struct JobRequest {
    /// The JSON of the .ipynb file.
    #[schema(value_type = NotebookFile, required)]
    notebook: Option<Box<RawValue>>,
    /// Values of the notebook's parameters. They are set in a cell tagged `injected-parameters`, which is inserted after the
    /// cell tagged `parameters`.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Box<RawValue>>,
    /// Whether cells after a failed cell run.
    #[serde(default)]
    #[schema(default = false)]
    allow_errors: bool,
    /// The seed of the random number generators, set before the first cell if the kernel supports it.
    #[schema(maximum = 4294967295_u32, format = Int64)]
    seed: Option<u32>,
    /// Run the notebook only with the image or environment and the packages of its record (`metadata.cellkeep`).
    #[serde(default)]
    #[schema(default = false)]
    frozen: bool,
    /// The name, an alias or the language of a kernel. The default is the kernel that the notebook names.
    kernel: Option<String>,
    /// A name for people.
    #[schema(max_length = 200)]
    name: Option<String>,
    /// Environment variables of the kernel, as for a new session.
    #[serde(default)]
    env: HashMap<String, String>,
    #[serde(default, deserialize_with = "super::extract::object")]
    limits: RequestedLimits,
    #[schema(value_type = Option<NetworkView>, default = "none")]
    network: Option<RequestedNetwork>,
    /// The names of data mounts, as for a new session.
    #[serde(default)]
    mounts: Vec<String>,
    /// Secrets, as for a new session.
    #[serde(default)]
    secrets: HashMap<String, RequestedSecret>,
    /// Packages that are installed first, as for a new session.
    #[serde(default)]
    #[schema(max_items = 1000)]
    packages: Vec<String>,
    /// More packages: the text of a `requirements.txt`.
    requirements: Option<String>,
    /// The lock of an environment instead, for exactly its packages.
    lock: Option<String>,
    /// The id of an environment, whose packages the run has.
    environment: Option<String>,
    /// Install the packages that the notebook says it needs: in a block of script metadata (PEP 723), and in `%pip install` cells at the
    /// top.
    #[serde(default)]
    #[schema(default = false)]
    install: bool,
    /// The timeout of each cell in seconds.
    #[schema(default = 60, exclusive_minimum = 0, maximum = 315360000)]
    timeout_seconds: Option<f64>,
    /// An alias of `timeout_seconds`, which wins if both are given. It is named like the option of the command line.
    #[schema(exclusive_minimum = 0, maximum = 315360000)]
    timeout: Option<f64>,
    /// The lifetime of the session in seconds. The default is no limit.
    #[schema(maximum = 315360000)]
    ttl_seconds: Option<u64>,
    /// At most 50 labels. A key or a value has at most 200 characters.
    #[serde(default)]
    labels: HashMap<String, String>,
    /// As for a session: a retry with the same key, notebook and parameters gets the same run.
    #[schema(min_length = 1, max_length = 200)]
    key: Option<String>,
}

/// The same as a form. Other fields are those of `NewRun` as JSON text.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of a form, which `JobRequest::from_form` reads")]
struct NewRunForm {
    /// The .ipynb file.
    #[schema(value_type = String, format = Binary)]
    notebook: Binary,
    /// The parameters as JSON.
    #[schema(nullable = false)]
    parameters: Option<String>,
    /// The name, an alias or the language of a kernel, as plain text.
    #[schema(nullable = false)]
    kernel: Option<String>,
    /// A name for people, as plain text.
    #[schema(nullable = false)]
    name: Option<String>,
    /// `none`, `packages` or `open` as plain text, or an object with `allow` as JSON.
    #[schema(nullable = false)]
    network: Option<String>,
}

/// A notebook job.
#[derive(Serialize, ToSchema)]
#[schema(as = Run)]
pub(super) struct RunView {
    #[serde(flatten)]
    outcome: RunOutcome,
    #[schema(value_type = String)]
    id: SessionId,
    /// The session of the run. It ends with the run and stays readable.
    #[schema(value_type = String)]
    session: SessionId,
    #[schema(required)]
    name: Option<String>,
    /// The name of the kernel.
    kernel: String,
    #[schema(format = DateTime)]
    created_at: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct RunList {
    /// Oldest first. Runs that are deleted meanwhile are left out.
    runs: Vec<RunView>,
    /// The cursor of the next page; null at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

impl JobRequest {
    /// Reads a multipart form. `notebook` is the file. The other fields are JSON, except for a few that are plain text.
    async fn from_form(mut form: Multipart) -> Result<(Self, Option<Bytes>), Problem> {
        let bad_form = |error: axum::extract::multipart::MultipartError| {
            let problem = || Problem::new(error.status(), "bad_form", error.body_text());
            input_budget::problem_of(&error).unwrap_or_else(problem)
        };
        let (mut fields, mut notebook) = (BTreeMap::new(), None);
        while let Some(field) = form.next_field().await.map_err(bad_form)? {
            let name = field.name().unwrap_or_default().to_owned();
            if name == "notebook" {
                notebook = Some(field.bytes().await.map_err(bad_form)?);
                continue;
            }
            let text = field.text().await.map_err(bad_form)?;
            let is_object = name == "network" && text.trim_start().starts_with('{');
            let is_plain_text = matches!(name.as_str(), "kernel" | "name" | "network") && !is_object;
            let value = if is_plain_text { Value::from(text).to_string() } else { text };
            let value = RawValue::from_string(value).map_err(|_| {
                let detail = format!("{name} is not JSON; texts need quotes here");
                Problem::unprocessable("bad_field", detail).named(Some(name.clone()))
            })?;
            if fields.insert(name.clone(), value).is_some() {
                return Err(Problem::bad_request("bad_form", format!("the form has the field {name:?} twice")));
            }
        }
        let fields = serde_json::to_vec(&fields).map_err(|error| Problem::bad_request("bad_form", error.to_string()))?;
        let job = extract::read_object(&fields).map_err(InvalidInput::in_body)?;
        Ok((job, notebook))
    }
}

async fn read(request: Request) -> Result<(JobRequest, Bytes), Problem> {
    let request = extract::check_length(request)?;
    let (job, file) = if extract::media_type(request.headers()) == "multipart/form-data" {
        let form = Multipart::from_request(input_budget::counted(request), &()).await;
        JobRequest::from_form(form.map_err(|rejection| Problem::bad_request("bad_form", rejection.body_text()))?).await?
    } else {
        let Body(job) = Body::<JobRequest>::from_request(request, &()).await?;
        (job, None)
    };
    let inline = job.notebook.as_ref().map(|notebook| Bytes::copy_from_slice(notebook.get().as_bytes()));
    let notebook = file.or(inline).ok_or_else(|| {
        Problem::unprocessable(
            "missing_field",
            "notebook is missing; send the JSON of the notebook, or a form with a file of that name",
        )
        .field("notebook")
    })?;
    Ok((job, notebook))
}

/// Run a notebook as a job
///
/// The job has a session of its own, which ends with the job. A server that starts after a crash continues its jobs.
#[utoipa::path(
    post, path = "/runs", operation_id = "create_run", tag = "runs",
    params(WaitQuery),
    request_body(content((JobRequest = "application/json"), (NewRunForm = "multipart/form-data"))),
    responses((status = 201, description = "The run", body = RunView,
        headers(("Location" = String, description = "The path of the run")))),
)]
pub(super) async fn create(
    State(api): State<Api>,
    User(caller): User,
    Query(query): Query<WaitQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    let (job, bytes) = read(request).await?;
    check_key(job.key.as_deref())?;
    let notebook = notebooks::parse(bytes.clone()).await?;
    let kernel = match &job.kernel {
        Some(name) => kernels::find(name),
        None => kernels::for_notebook(notebook.kernelspec_name(), notebook.language()),
    };
    let kernel = kernel.map_err(|error| Problem::unprocessable("no_kernel", error.to_string()).field("kernel"))?;
    let mut packages = job.packages;
    if job.install && kernel.language == "python" {
        packages.extend(crate::notebook::requirements(&notebook));
    }
    let run = NotebookRun {
        parameters: notebooks::parameters(job.parameters.as_deref().map(RawValue::get))?,
        from: None,
        allow_errors: job.allow_errors,
        timeout_seconds: job.timeout_seconds.or(job.timeout),
        seed: job.seed,
        frozen: job.frozen,
    };
    let session = Create {
        kernel: Some(kernel.name.clone()),
        sandbox: None,
        name: job.name,
        env: job.env,
        limits: Some(job.limits),
        network: job.network,
        mounts: job.mounts,
        secrets: job.secrets,
        packages,
        requirements: job.requirements,
        lock: job.lock,
        environment: job.environment,
        timeout_seconds: run.timeout_seconds,
        ttl_seconds: job.ttl_seconds,
        idle_timeout_seconds: None,
        labels: job.labels,
        key: None,
    };
    let parameters = job.parameters.as_deref().map_or("", RawValue::get);
    let options = format!("{} {} {:?}", run.allow_errors, run.frozen, run.seed);
    let asked = [&bytes[..], parameters.as_bytes(), options.as_bytes()];
    let session = session.validate(&api.sessions)?.with_key(KeyKind::Run, job.key, &asked);
    let run = NotebookRun { timeout_seconds: session.config.timeout_seconds, ..run };
    let id = api.sessions.start_job(&caller.identity.principal, session, &notebook, run).await?;
    if let Some(wait) = wait {
        let (_, job) = find(&api, &id, &caller).await?;
        let ended = notebooks::until_ended(&api, &id, &caller, Seq::default(), &job.cells);
        if let Ok(ended) = tokio::time::timeout(wait, ended).await {
            ended?;
        }
    }
    let location = [(header::LOCATION, format!("/v1/runs/{id}"))];
    Ok((StatusCode::CREATED, location, Json(show(&api, &id, &caller).await?)).into_response())
}

/// The session of a job, and its configuration. A session without a job is not found.
async fn find(api: &Api, id: &SessionId, caller: &Caller) -> Result<(SessionRow, JobConfig), Problem> {
    let none = || Problem::not_found("no_run", format!("there is no run {id}"));
    let row = api.reader.row(id, &caller.access()).await.map_err(|_| none())?;
    let job = SessionConfig::of_row(&row).job.ok_or_else(none)?;
    Ok((row, job))
}

async fn show(api: &Api, id: &SessionId, caller: &Caller) -> Result<RunView, Problem> {
    let (row, job) = find(api, id, caller).await?;
    describe(api, &row, &job, caller).await
}

async fn describe(api: &Api, row: &SessionRow, job: &JobConfig, caller: &Caller) -> Result<RunView, Problem> {
    Ok(RunView {
        outcome: RunOutcome::read(api, &row.id, caller, &job.cells).await?,
        id: row.id.clone(),
        session: row.id.clone(),
        name: row.name.clone(),
        kernel: row.kernel.clone(),
        created_at: view::time(row.created_at),
    })
}

/// The query of the list of runs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// The largest number of runs.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// Labels that a run must have, with their values: `team:research`, or several with commas between them.
    label: Option<String>,
}

/// List the notebook runs
#[utoipa::path(
    get, path = "/runs", operation_id = "list_runs", tag = "runs",
    params(ListQuery),
    responses((status = 200, description = "A page of the runs", body = RunList)),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<RunList>, Problem> {
    let labels = sessions::labels(query.label.as_deref())?;
    let filter = SessionFilter { labels, only_jobs: true, ..SessionFilter::default() };
    let (limit, after) = (paging::limit(query.limit)?, paging::position(query.cursor.as_deref())?);
    let (rows, next) = api.reader.page(&caller.access(), filter, after, limit).await?;
    let mut runs = Vec::new();
    for row in rows {
        let Some(job) = SessionConfig::of_row(&row).job else { continue };
        // A job that is deleted meanwhile is left out.
        if let Ok(run) = describe(&api, &row, &job, &caller).await {
            runs.push(run);
        }
    }
    Ok(Json(RunList { runs, next_cursor: next.as_ref().map(paging::cursor) }))
}

/// Get a run
#[utoipa::path(
    get, path = "/runs/{session}", operation_id = "get_run", tag = "runs",
    params(SessionInPath),
    responses((status = 200, description = "The run", body = RunView)),
)]
pub(super) async fn get_one(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
) -> Result<Json<RunView>, Problem> {
    show(&api, &id, &caller).await.map(Json)
}

/// Cancel a run
///
/// Its results so far stay.
#[utoipa::path(
    post, path = "/runs/{session}/cancel", operation_id = "cancel_run", tag = "runs",
    params(SessionInPath),
    responses((status = 202, description = "The run is being cancelled", body = RunView)),
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<Response, Problem> {
    let (_, job) = find(&api, &id, &caller).await?;
    let handle = api.sessions.handle(&id, &caller.access())?;
    // An interrupted cell cancels the cells after it. If no cell runs at this moment, each cell must be cancelled.
    let _ = handle.interrupt().await;
    for cell in &job.cells {
        let _ = handle.cancel_cell(cell).await;
    }
    Ok((StatusCode::ACCEPTED, Json(show(&api, &id, &caller).await?)).into_response())
}

/// Delete a run and its results
///
/// An unfinished run is ended.
#[utoipa::path(
    delete, path = "/runs/{session}", operation_id = "delete_run", tag = "runs",
    params(SessionInPath),
    responses((status = 204, description = "Deleted")),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<StatusCode, Problem> {
    find(&api, &id, &caller).await?;
    api.sessions.delete(&id, &caller.access()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stream the events of a run
///
/// The events of its session, until the session ends. A stream that is opened after all events of an ended session were seen
/// is answered by 204, which stops an `EventSource`.
#[utoipa::path(
    get, path = "/runs/{session}/events", operation_id = "stream_run_events", tag = "runs",
    params(SessionInPath, EventsQuery, LastEventId),
    responses(
        (status = 200, description = "Events", body = EventView, content_type = "text/event-stream"),
        (status = 204, description = "There are no more events")),
)]
pub(super) async fn stream(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    find(&api, &id, &caller).await?;
    events::stream_session(&api, id, &caller, &query, &headers, true)
}

/// Export the notebook of a run with the outputs so far
///
/// As for a session.
#[utoipa::path(
    get, path = "/runs/{session}/notebook", operation_id = "export_run", tag = "runs",
    params(SessionInPath, ExportQuery),
    responses((status = 200, description = "The document", content(
        (NotebookFile = "application/x-ipynb+json"), (String = "text/html"), (String = "text/markdown"), (String = "text/*")))),
)]
pub(super) async fn notebook(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(query): Query<ExportQuery>,
) -> Result<Response, Problem> {
    notebooks::export(&api, &caller, id, &query).await
}

/// List the plots and files that the cells of a run have displayed
#[utoipa::path(
    get, path = "/runs/{session}/artifacts", operation_id = "list_run_artifacts", tag = "runs",
    params(SessionInPath),
    responses((status = 200, description = "The artifacts", body = ArtifactList)),
)]
pub(super) async fn artifacts(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
) -> Result<Json<ArtifactList>, Problem> {
    sessions::list_artifacts(&api, &caller, &id).await
}
