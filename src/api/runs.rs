//! Notebook jobs (`/v1/runs`). Each runs in a session of its own, which ends with the job. Its results can be read
//! afterwards.

use std::collections::{BTreeMap, HashMap};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::error::Problem;
use super::extract::{self, InvalidInput};
use super::notebooks::{self, RunOutcome, WaitQuery};
use super::sessions::{self, Create, DEFAULT_TIMEOUT, check_timeout};
use super::{Api, Body, Caller, Query, SessionInPath, User, events, guard, view};
use crate::ids::{Seq, SessionId};
use crate::kernels;
use crate::manager::{JobConfig, NotebookRun, SessionConfig, SessionRow};
use crate::policy::Limits;

/// The body of a request that starts a job.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct JobRequest {
    notebook: Option<Box<RawValue>>,
    parameters: Option<Box<RawValue>>,
    allow_errors: bool,
    seed: Option<u32>,
    frozen: bool,
    kernel: Option<String>,
    name: Option<String>,
    env: HashMap<String, String>,
    #[serde(deserialize_with = "sessions::limits")]
    limits: Limits,
    network: Option<String>,
    /// The timeout of each cell in seconds.
    timeout_seconds: Option<f64>,
    /// An alias of `timeout_seconds`, named like the option of the command line.
    timeout: Option<f64>,
    ttl_seconds: Option<u64>,
    labels: HashMap<String, String>,
}

impl JobRequest {
    /// Reads a multipart form. `notebook` is the file. The other fields are JSON, except for a few that are plain text.
    async fn from_form(mut form: Multipart) -> Result<(Self, Option<Bytes>), Problem> {
        let bad_form =
            |error: axum::extract::multipart::MultipartError| Problem::new(error.status(), "bad_form", error.body_text());
        let (mut fields, mut notebook) = (BTreeMap::new(), None);
        while let Some(field) = form.next_field().await.map_err(bad_form)? {
            let name = field.name().unwrap_or_default().to_owned();
            if name == "notebook" {
                notebook = Some(field.bytes().await.map_err(bad_form)?);
                continue;
            }
            let text = field.text().await.map_err(bad_form)?;
            let is_plain_text = matches!(name.as_str(), "kernel" | "name" | "network");
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
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let (job, file) = if kind.eq_ignore_ascii_case("multipart/form-data") {
        let form = Multipart::from_request(request, &()).await;
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

pub(super) async fn create(
    State(api): State<Api>,
    User(caller): User,
    Query(query): Query<WaitQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    let (job, bytes) = read(request).await?;
    let notebook = notebooks::parse(bytes).await?;
    let kernel = match &job.kernel {
        Some(name) => kernels::find(name),
        None => kernels::for_notebook(notebook.kernelspec_name(), notebook.language()),
    };
    let kernel = kernel.map_err(|error| Problem::unprocessable("no_kernel", error.to_string()).field("kernel"))?;
    let run = NotebookRun {
        parameters: notebooks::parameters(job.parameters.as_deref().map(RawValue::get))?,
        from: None,
        allow_errors: job.allow_errors,
        timeout_seconds: check_timeout(job.timeout_seconds.or(job.timeout))?.or(Some(DEFAULT_TIMEOUT)),
        seed: job.seed,
        frozen: job.frozen,
    };
    let session = Create {
        kernel: Some(kernel.name.clone()),
        name: job.name,
        env: job.env,
        limits: job.limits,
        network: job.network,
        timeout_seconds: run.timeout_seconds,
        ttl_seconds: job.ttl_seconds,
        idle_timeout_seconds: None,
        labels: job.labels,
    };
    let id = api.sessions.start_job(&caller.identity.principal, session.validate()?, &notebook, run).await?;
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

async fn show(api: &Api, id: &SessionId, caller: &Caller) -> Result<Value, Problem> {
    let (row, job) = find(api, id, caller).await?;
    describe(api, &row, &job, caller).await
}

async fn describe(api: &Api, row: &SessionRow, job: &JobConfig, caller: &Caller) -> Result<Value, Problem> {
    let mut json = RunOutcome::read(api, &row.id, caller, &job.cells).await?.to_json();
    json["id"] = row.id.as_str().into();
    json["session"] = row.id.as_str().into();
    json["name"] = row.name.clone().into();
    json["kernel"] = row.kernel.clone().into();
    json["created_at"] = view::time(row.created_at).into();
    Ok(json)
}

pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<Value>, Problem> {
    let mut runs = Vec::new();
    for row in api.reader.rows(&caller.access()).await? {
        let Some(job) = SessionConfig::of_row(&row).job else { continue };
        // A job that is deleted meanwhile is left out.
        if let Ok(json) = describe(&api, &row, &job, &caller).await {
            runs.push(json);
        }
    }
    Ok(Json(json!({"runs": runs})))
}

pub(super) async fn get_one(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
) -> Result<Json<Value>, Problem> {
    show(&api, &id, &caller).await.map(Json)
}

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

pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<StatusCode, Problem> {
    find(&api, &id, &caller).await?;
    api.sessions.delete(&id, &caller.access()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The events of the job's session until it ends.
pub(super) async fn stream(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(query): Query<events::EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    find(&api, &id, &caller).await?;
    events::stream_session(&api, id, &caller, &query, &headers, true)
}
