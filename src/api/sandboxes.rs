//! Requests about sandboxes: create, list, read, change, delete.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};

use super::error::Problem;
use super::extract::object;
use super::network::RequestedNetwork;
use super::new_session::{Create, RequestedLimits, check_seconds, check_texts};
use super::secrets::{RequestedSecret, SecretView};
use super::view::{self, IsolationView, LimitsView, NetworkView};
use super::{Api, Body, Caller, User, path_field, path_parameter};
use crate::ids::{SandboxId, SessionId};
use crate::manager::{KeyKind, SandboxChange, SandboxDescription};

/// The id of the sandbox in the path.
pub(super) struct SandboxInPath(pub SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for SandboxInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = path_field(parts, state, "sandbox").await?;
        let unknown = || Problem::not_found("no_such_sandbox", format!("there is no sandbox {id:?}"));
        SandboxId::parse(&id).map(Self).ok_or_else(unknown)
    }
}

impl IntoParams for SandboxInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("sandbox", "The id of the sandbox. That of a session's own sandbox is the id of the session.")]
    }
}

/// The configuration of a new sandbox. All fields are optional.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewSandbox, examples(json!({"kernel": "python", "name": "analysis", "ttl_seconds": 3600})))]
pub(super) struct CreateSandbox {
    /// The kernel whose environment the sandbox has. Its sessions have this kernel.
    #[schema(default = "python")]
    kernel: Option<String>,
    /// A name for people.
    #[schema(max_length = 200)]
    name: Option<String>,
    /// Environment variables of kernels and processes. They exist only in the sandbox and are not stored.
    #[serde(default)]
    env: HashMap<String, String>,
    #[serde(default, deserialize_with = "object")]
    limits: RequestedLimits,
    #[schema(value_type = Option<NetworkView>, default = "none")]
    network: Option<RequestedNetwork>,
    /// The names of data mounts, as for a session.
    #[serde(default)]
    mounts: Vec<String>,
    /// Secrets, as for a session. All sessions and processes use them.
    #[serde(default)]
    secrets: HashMap<String, RequestedSecret>,
    /// Packages that are installed first, as for a session.
    #[serde(default)]
    #[schema(max_items = 1000)]
    packages: Vec<String>,
    /// More packages: the text of a `requirements.txt`.
    requirements: Option<String>,
    /// The lock of an environment instead, for exactly its packages.
    lock: Option<String>,
    /// The id of an environment, whose packages the sandbox has.
    environment: Option<String>,
    /// The lifetime in seconds. The default is no limit.
    #[schema(maximum = 315360000)]
    ttl_seconds: Option<u64>,
    /// The sandbox ends after this many seconds without use. A request that uses it counts, and so do its sessions and a process
    /// that runs. The default is that of the server.
    #[schema(maximum = 315360000)]
    idle_timeout_seconds: Option<u64>,
    /// At most 50 labels. A key or a value has at most 200 characters.
    #[serde(default)]
    labels: HashMap<String, String>,
    /// As for a session: a retry with the same key gets the same sandbox.
    #[schema(min_length = 1, max_length = 200)]
    key: Option<String>,
}

impl CreateSandbox {
    /// The request for a session with the same fields.
    fn into_session(self) -> Create {
        Create {
            kernel: self.kernel,
            sandbox: None,
            name: self.name,
            env: self.env,
            limits: Some(self.limits),
            network: self.network,
            mounts: self.mounts,
            secrets: self.secrets,
            packages: self.packages,
            requirements: self.requirements,
            lock: self.lock,
            environment: self.environment,
            timeout_seconds: None,
            ttl_seconds: self.ttl_seconds,
            idle_timeout_seconds: self.idle_timeout_seconds,
            labels: self.labels,
            key: self.key,
        }
    }
}

/// A box with files, in which sessions and processes live. They share its limits, its network and its environment.
#[derive(Serialize, ToSchema)]
#[schema(as = Sandbox, examples(json!({
    "id": "0d1f1c7e-31a5-4d8f-8f5c-8d1d8a4f8c55", "name": "analysis", "kernel": "python",
    "isolation": {"level": "process", "enforced": ["no network"], "not_enforced": [], "not_stopped": ["vulnerabilities of the machine's kernel"]},
    "network": "none", "mounts": [], "secrets": [], "environment": null, "limits": {"memory_mb": 512, "cpus": 1.0, "pids": 256, "disk_mb": 256, "output_mb": 100},
    "labels": {}, "created_at": "2026-11-30T11:55:05.348000Z", "last_active_at": "2026-11-30T11:56:10.021000Z",
    "expires_at": null, "ttl_seconds": null, "idle_timeout_seconds": 3600, "ends_with_session": false,
    "sessions": ["6f1c2a5e-7c0b-4d7c-9d57-0a3d4f0f5a11"]
})))]
pub(super) struct SandboxView {
    #[schema(value_type = String)]
    id: SandboxId,
    #[schema(required)]
    name: Option<String>,
    /// The kernel whose environment it has.
    kernel: String,
    isolation: IsolationView,
    network: NetworkView,
    /// The names of the data mounts, which it sees at `/mnt/NAME`.
    mounts: Vec<String>,
    /// Without their values.
    secrets: Vec<SecretView>,
    /// The id of the environment whose packages it has.
    #[schema(required)]
    environment: Option<String>,
    limits: LimitsView,
    labels: HashMap<String, String>,
    #[schema(format = DateTime)]
    created_at: String,
    /// The last use of the sandbox or of one of its sessions.
    #[schema(format = DateTime)]
    last_active_at: String,
    /// The end of the lifetime, if it is limited.
    #[schema(required, format = DateTime)]
    expires_at: Option<String>,
    #[schema(required)]
    ttl_seconds: Option<u64>,
    idle_timeout_seconds: u64,
    /// Whether it was created for the session of the same id, and ends with it.
    ends_with_session: bool,
    /// The living sessions in it.
    #[schema(value_type = Vec<String>)]
    sessions: Vec<SessionId>,
}

impl SandboxView {
    fn new(sandbox: SandboxDescription, idle_timeout: u64) -> Self {
        let SandboxDescription { id, name, kernel, config, record, created_at, last_used_at, expires_at, .. } = sandbox;
        Self {
            id,
            name,
            kernel,
            isolation: IsolationView::new(record.isolation, &config.network),
            network: config.network.into(),
            mounts: config.mounts,
            secrets: config.secrets.into_iter().map(SecretView::from).collect(),
            environment: config.environment,
            limits: config.limits.into(),
            labels: config.labels,
            created_at: view::time(created_at),
            last_active_at: view::time(last_used_at),
            expires_at: expires_at.map(view::time),
            ttl_seconds: config.ttl_seconds,
            idle_timeout_seconds: config.idle_timeout_seconds.unwrap_or(idle_timeout),
            ends_with_session: sandbox.is_of_session,
            sessions: sandbox.sessions,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct SandboxList {
    /// Oldest first. The sandboxes of sessions are not among them.
    sandboxes: Vec<SandboxView>,
}

/// Create a sandbox
///
/// It has no session yet: `POST /v1/sessions` with its id as `sandbox` starts one in it, as often as wanted. Its sessions share
/// files, limits and network, and each has a kernel of its own.
#[utoipa::path(
    post, path = "/sandboxes", operation_id = "create_sandbox", tag = "sandboxes",
    request_body = CreateSandbox,
    responses((status = 201, description = "The sandbox", body = SandboxView,
        headers(("Location" = String, description = "The path of the sandbox")))),
)]
pub(super) async fn create(
    State(api): State<Api>,
    User(caller): User,
    Body(create): Body<CreateSandbox>,
) -> Result<Response, Problem> {
    let key = create.key.clone();
    let new = create.into_session().validate(&api.sessions)?.with_key(KeyKind::Sandbox, key, &[]);
    let id = api.sessions.create_sandbox(&caller.identity.principal, new).await?;
    let view = read(&api, &id, &caller).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/sandboxes/{id}"))], Json(view)).into_response())
}

async fn read(api: &Api, id: &SandboxId, caller: &Caller) -> Result<SandboxView, Problem> {
    Ok(SandboxView::new(api.sessions.sandbox(id, &caller.access()).await?, api.sessions.idle_timeout()))
}

/// List the sandboxes that were created by themselves
#[utoipa::path(
    get, path = "/sandboxes", operation_id = "list_sandboxes", tag = "sandboxes",
    responses((status = 200, description = "All sandboxes that the token can access", body = SandboxList)),
)]
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Json<SandboxList>, Problem> {
    let idle_timeout = api.sessions.idle_timeout();
    let all = api.sessions.list_sandboxes(&caller.access()).await?;
    Ok(Json(SandboxList { sandboxes: all.into_iter().map(|one| SandboxView::new(one, idle_timeout)).collect() }))
}

/// Get a sandbox
#[utoipa::path(
    get, path = "/", operation_id = "get_sandbox", tag = "sandboxes",
    params(SandboxInPath),
    responses((status = 200, description = "The sandbox", body = SandboxView)),
)]
pub(super) async fn get_one(
    State(api): State<Api>,
    caller: Caller,
    SandboxInPath(id): SandboxInPath,
) -> Result<Json<SandboxView>, Problem> {
    read(&api, &id, &caller).await.map(Json)
}

/// Changes of a sandbox. Absent fields stay as they are.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SandboxPatch, examples(json!({"ttl_seconds": 3600})))]
pub(super) struct PatchSandbox {
    #[schema(max_length = 200)]
    name: Option<String>,
    /// Replaces all labels.
    labels: Option<HashMap<String, String>>,
    /// The lifetime in seconds, counted from this request.
    #[schema(maximum = 315360000)]
    ttl_seconds: Option<u64>,
    #[schema(maximum = 315360000)]
    idle_timeout_seconds: Option<u64>,
    /// What code in the sandbox reaches. Connections that it does not allow end. It cannot change to or from `open`.
    #[schema(value_type = Option<NetworkView>)]
    network: Option<RequestedNetwork>,
}

/// Change the name, the labels, the lifetime or the network of a sandbox
///
/// The sandbox of a session is changed with the session.
#[utoipa::path(
    patch, path = "/", operation_id = "update_sandbox", tag = "sandboxes",
    params(SandboxInPath), request_body = PatchSandbox,
    responses((status = 200, description = "The sandbox", body = SandboxView)),
)]
pub(super) async fn patch(
    State(api): State<Api>,
    User(caller): User,
    SandboxInPath(id): SandboxInPath,
    Body(patch): Body<PatchSandbox>,
) -> Result<Json<SandboxView>, Problem> {
    let PatchSandbox { name, labels, ttl_seconds, idle_timeout_seconds, network } = patch;
    let network = network.map(RequestedNetwork::policy).transpose()?;
    check_texts(name.as_deref(), labels.as_ref().unwrap_or(&HashMap::new()))?;
    let ceilings = api.sessions.ceilings();
    check_seconds("ttl_seconds", ttl_seconds)?;
    check_seconds("idle_timeout_seconds", idle_timeout_seconds)?;
    ceilings.check_lifetime(ttl_seconds)?;
    ceilings.check_idle_timeout(idle_timeout_seconds)?;
    let change = SandboxChange { name, labels, ttl_seconds, idle_timeout_seconds, network };
    api.sessions.change_sandbox(&id, &caller.access(), change).await?;
    read(&api, &id, &caller).await.map(Json)
}

/// End a sandbox with its sessions and processes
///
/// The sessions stay readable until they are deleted. The sandbox of a session ends with the session: 409 `sandbox_of_session`.
#[utoipa::path(
    delete, path = "/", operation_id = "delete_sandbox", tag = "sandboxes",
    params(SandboxInPath),
    responses((status = 204, description = "Ended")),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SandboxInPath(id): SandboxInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.delete_sandbox(&id, &caller.access()).await?;
    Ok(StatusCode::NO_CONTENT)
}
