//! Notebooks as jobs: each runs on a session of its own, which ends with it. What it has made stays readable.

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
use super::given::{self, Wrong};
use super::notebooks::{self, Outcome, Wait};
use super::sessions::{self, Create, DEFAULT_TIMEOUT, check_timeout};
use super::{Api, Body, Caller, InPath, Query, User, events, guard, view};
use crate::ids::{Seq, SessionId};
use crate::kernels;
use crate::manager::{KeptRun, KeptSpec, NotebookRun, SessionRow};
use crate::policy::Limits;

/// A notebook to be run.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Job {
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
    /// Seconds that each cell may take.
    timeout_seconds: Option<f64>,
    /// The same, as the command line calls it.
    timeout: Option<f64>,
    ttl_seconds: Option<u64>,
    labels: HashMap<String, String>,
}

impl Job {
    /// From a form: `notebook` is the file, the rest are texts; those that are JSON here are JSON there.
    async fn from_form(mut form: Multipart) -> Result<(Self, Option<Bytes>), Problem> {
        let unreadable =
            |error: axum::extract::multipart::MultipartError| Problem::new(error.status(), "bad_form", error.body_text());
        let (mut fields, mut notebook) = (BTreeMap::new(), None);
        while let Some(field) = form.next_field().await.map_err(unreadable)? {
            let name = field.name().unwrap_or_default().to_owned();
            if name == "notebook" {
                notebook = Some(field.bytes().await.map_err(unreadable)?);
                continue;
            }
            let text = field.text().await.map_err(unreadable)?;
            let is_text = matches!(name.as_str(), "kernel" | "name" | "network");
            let value = if is_text { Value::from(text).to_string() } else { text };
            let value = RawValue::from_string(value).map_err(|_| {
                let detail = format!("{name} is not JSON; a text would stand in quotes here");
                Problem::unprocessable("bad_field", detail).named(Some(name.clone()))
            })?;
            if fields.insert(name.clone(), value).is_some() {
                return Err(Problem::bad_request("bad_form", format!("the form has {name:?} twice")));
            }
        }
        let fields = serde_json::to_vec(&fields).map_err(|error| Problem::bad_request("bad_form", error.to_string()))?;
        let job = given::read_object(&fields).map_err(Wrong::in_body)?;
        Ok((job, notebook))
    }
}

async fn read(request: Request) -> Result<(Job, Bytes), Problem> {
    let request = given::check_length(request)?;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let (job, file) = if kind.eq_ignore_ascii_case("multipart/form-data") {
        let form = Multipart::from_request(request, &()).await;
        Job::from_form(form.map_err(|rejection| Problem::bad_request("bad_form", rejection.body_text()))?).await?
    } else {
        let Body(job) = Body::<Job>::from_request(request, &()).await?;
        (job, None)
    };
    let inline = job.notebook.as_ref().map(|notebook| Bytes::copy_from_slice(notebook.get().as_bytes()));
    let notebook = file.or(inline).ok_or_else(|| {
        Problem::unprocessable("missing_field", "notebook is missing: the notebook's JSON, or a file of that name in a form")
            .field("notebook")
    })?;
    Ok((job, notebook))
}

pub(super) async fn create(
    State(api): State<Api>,
    User(caller): User,
    Query(wait): Query<Wait>,
    request: Request,
) -> Result<Response, Problem> {
    let wait = wait.time()?;
    let _place = guard::place_to_wait(&api, &caller.0, wait)?;
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
    let id = api.keeper.start_run(&caller.0.principal, session.check()?, &notebook, run).await?;
    if let Some(wait) = wait {
        let (_, run) = find(&api, &id, &caller).await?;
        let ended = notebooks::until_ended(&api, &id, &caller, Seq::default(), &run.cells);
        if let Ok(ended) = tokio::time::timeout(wait, ended).await {
            ended?;
        }
    }
    let location = [(header::LOCATION, format!("/v1/runs/{id}"))];
    Ok((StatusCode::CREATED, location, Json(show(&api, &id, &caller).await?)).into_response())
}

/// A run's session. One that was made otherwise is none.
async fn find(api: &Api, id: &SessionId, caller: &Caller) -> Result<(SessionRow, KeptRun), Problem> {
    let none = || Problem::not_found("no_run", format!("there is no run {id}"));
    let row = api.keeper.row(id, caller.sees()).await.map_err(|_| none())?;
    let run = run_of(&row).ok_or_else(none)?;
    Ok((row, run))
}

fn run_of(row: &SessionRow) -> Option<KeptRun> {
    serde_json::from_str::<KeptSpec>(&row.spec).ok()?.run
}

async fn show(api: &Api, id: &SessionId, caller: &Caller) -> Result<Value, Problem> {
    let (row, run) = find(api, id, caller).await?;
    describe(api, &row, &run, caller).await
}

async fn describe(api: &Api, row: &SessionRow, run: &KeptRun, caller: &Caller) -> Result<Value, Problem> {
    let mut told = Outcome::of(api, &row.id, caller, &run.cells).await?.json();
    told["id"] = row.id.as_str().into();
    told["session"] = row.id.as_str().into();
    told["name"] = row.name.clone().into();
    told["kernel"] = row.kernel.clone().into();
    told["created_at"] = view::time(row.created_at).into();
    Ok(told)
}

pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<Value>, Problem> {
    let mut runs = Vec::new();
    for row in api.keeper.rows(caller.sees()).await? {
        let Some(run) = run_of(&row) else { continue };
        // One that is deleted meanwhile is left out.
        if let Ok(told) = describe(&api, &row, &run, &caller).await {
            runs.push(told);
        }
    }
    Ok(Json(json!({"runs": runs})))
}

pub(super) async fn get_one(State(api): State<Api>, caller: Caller, InPath(id): InPath) -> Result<Json<Value>, Problem> {
    show(&api, &id, &caller).await.map(Json)
}

pub(super) async fn cancel(State(api): State<Api>, User(caller): User, InPath(id): InPath) -> Result<Response, Problem> {
    let (_, run) = find(&api, &id, &caller).await?;
    let handle = api.keeper.handle(&id, caller.sees())?;
    // The cells behind one that is interrupted are cancelled with it. Where none runs at this moment, they are one by one.
    let _ = handle.interrupt().await;
    for cell in &run.cells {
        let _ = handle.cancel_cell(cell).await;
    }
    Ok((StatusCode::ACCEPTED, Json(show(&api, &id, &caller).await?)).into_response())
}

pub(super) async fn delete(State(api): State<Api>, User(caller): User, InPath(id): InPath) -> Result<StatusCode, Problem> {
    find(&api, &id, &caller).await?;
    api.keeper.delete(&id, caller.sees()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The events of its session, to the run's end.
pub(super) async fn stream(
    State(api): State<Api>,
    caller: Caller,
    InPath(id): InPath,
    Query(query): Query<events::After>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    find(&api, &id, &caller).await?;
    events::of_session(&api, id, &caller, &query, &headers, true)
}
