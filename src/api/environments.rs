//! Requests about environments: packages that are installed once and mounted into sandboxes.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};

use super::error::Problem;
use super::notebooks::WaitQuery;
use super::{Api, Body, Caller, Query, User, guard, path_field, path_parameter, view};
use crate::manager::{EnvironmentDescription, EnvironmentState, Package};
use crate::policy::PackageRequest;

/// The id of the environment in the path.
pub(super) struct EnvironmentInPath(String);

impl<S: Send + Sync> FromRequestParts<S> for EnvironmentInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_field(parts, state, "environment").await.map(Self)
    }
}

impl IntoParams for EnvironmentInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("environment", "The id of the environment.")]
    }
}

/// The packages of a request. `None` if there are none.
pub(super) fn request(
    packages: &[String],
    requirements: Option<&str>,
    lock: Option<&str>,
) -> Result<Option<PackageRequest>, Problem> {
    let bad = |field: &'static str| {
        move |error: crate::policy::PackageRequestError| {
            Problem::unprocessable("bad_packages", error.to_string()).field(field)
        }
    };
    match lock {
        Some(_) if !packages.is_empty() || requirements.is_some() => {
            let detail = "a lock decides all packages; leave out `packages` and `requirements`";
            Err(Problem::unprocessable("bad_packages", detail).field("lock"))
        }
        Some(lock) => PackageRequest::of_lock(lock).map(Some).map_err(bad("lock")),
        None if packages.is_empty() && requirements.is_none() => Ok(None),
        None => PackageRequest::new(packages, requirements).map(Some).map_err(bad("packages")),
    }
}

/// Packages for a kernel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewEnvironment, examples(json!({"kernel": "python", "packages": ["polars>=1", "humanize"]})))]
pub(super) struct CreateEnvironment {
    /// The name, an alias or the language of a kernel.
    #[schema(default = "python")]
    kernel: Option<String>,
    /// As the package manager of the language names them.
    #[serde(default)]
    #[schema(max_items = 1000)]
    packages: Vec<String>,
    /// More packages: the text of a `requirements.txt`. Options in it are refused.
    requirements: Option<String>,
    /// The `lock` of an environment instead, for exactly its packages.
    lock: Option<String>,
}

/// The state of an environment.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = EnvironmentState)]
enum StateView {
    /// The packages are being installed.
    Building,
    Ready,
    /// See `error`. The same request tries again.
    Failed,
}

impl From<EnvironmentState> for StateView {
    fn from(state: EnvironmentState) -> Self {
        match state {
            EnvironmentState::Building => Self::Building,
            EnvironmentState::Ready => Self::Ready,
            EnvironmentState::Failed => Self::Failed,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Package)]
struct PackageView {
    name: String,
    version: String,
    /// Whether it is in the set. If not, the kernel has this version itself.
    installed: bool,
    /// The version that the kernel has itself, and that this one hides.
    #[schema(required)]
    replaces: Option<String>,
}

impl From<Package> for PackageView {
    fn from(package: Package) -> Self {
        let Package { name, version, installed, replaces } = package;
        Self { name, version, installed, replaces }
    }
}

/// Packages that were resolved and installed once. Sandboxes see them read-only, beside those of their kernel.
#[derive(Serialize, ToSchema)]
#[schema(as = Environment, examples(json!({
    "id": "5f0c2f7de6b1a3c4d5e6f708192a3b4c", "kernel": "python", "state": "ready", "requirements": ["humanize"],
    "packages": [{"name": "humanize", "version": "4.14.0", "installed": true, "replaces": null}], "bytes": 700416,
    "error": null, "log": "humanize 4.14.0\n", "created_at": "2026-12-01T11:55:05.348000Z", "ended_at": "2026-12-01T11:55:07.021000Z"
})))]
pub(super) struct EnvironmentView {
    /// Depends on the kernel and the packages: the same request has the same environment.
    id: String,
    /// The name of the kernel.
    kernel: String,
    state: StateView,
    /// What was asked for. Empty for a lock.
    requirements: Vec<String>,
    /// All packages, once it is ready.
    packages: Vec<PackageView>,
    /// The size of the files.
    bytes: u64,
    #[schema(required)]
    error: Option<String>,
    /// The end of what the installation printed, at most 64 KB.
    log: String,
    #[schema(format = DateTime)]
    created_at: String,
    /// The end of the installation.
    #[schema(required, format = DateTime)]
    ended_at: Option<String>,
}

impl From<EnvironmentDescription> for EnvironmentView {
    fn from(EnvironmentDescription { row, set }: EnvironmentDescription) -> Self {
        let request: PackageRequest = serde_json::from_str(&row.request).unwrap_or_default();
        let (packages, bytes) = set.map(|set| (set.packages, set.bytes)).unwrap_or_default();
        Self {
            id: row.id,
            kernel: row.kernel,
            state: row.state.into(),
            requirements: request.requirements.into_iter().collect(),
            packages: packages.into_iter().map(PackageView::from).collect(),
            bytes,
            error: row.error,
            log: row.log,
            created_at: view::time(row.created_at),
            ended_at: row.ended_at.map(view::time),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct EnvironmentList {
    /// Oldest first.
    environments: Vec<EnvironmentView>,
}

/// Install packages for a kernel
///
/// They are installed in a sandbox of their own, which reaches the package indexes and nothing else. Sessions name the environment, or
/// the same packages. A request for packages that are installed already is answered at once. The server must allow the network
/// `packages`.
#[utoipa::path(
    post, path = "/environments", operation_id = "create_environment", tag = "environments",
    params(WaitQuery), request_body = CreateEnvironment,
    responses((status = 201, description = "The environment, ready or not", body = EnvironmentView,
        headers(("Location" = String, description = "The path of the environment")))),
)]
pub(super) async fn create(
    State(api): State<Api>,
    User(caller): User,
    Query(query): Query<WaitQuery>,
    Body(create): Body<CreateEnvironment>,
) -> Result<Response, Problem> {
    let CreateEnvironment { kernel, packages, requirements, lock } = create;
    let wait = query.duration()?;
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    let request = request(&packages, requirements.as_deref(), lock.as_deref())?.ok_or_else(|| {
        Problem::unprocessable("bad_packages", "name packages: `packages`, `requirements` or `lock`").field("packages")
    })?;
    let kernel = kernel.unwrap_or_else(|| "python".to_owned());
    let id = api.sessions.create_environment(&caller.identity.principal, &kernel, request).await?;
    let view = read(&api, &id, &caller, wait).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/environments/{id}"))], Json(view)).into_response())
}

/// Reads an environment, after the end of its installation if that comes in time.
async fn read(api: &Api, id: &str, caller: &Caller, wait: Option<std::time::Duration>) -> Result<EnvironmentView, Problem> {
    if let Some(wait) = wait {
        // A caller that may not see it must not wait for it.
        api.sessions.environment(id, &caller.access()).await?;
        let _ = tokio::time::timeout(wait, api.sessions.environment_ended(id)).await;
    }
    Ok(api.sessions.environment(id, &caller.access()).await?.into())
}

/// List the environments
#[utoipa::path(
    get, path = "/environments", operation_id = "list_environments", tag = "environments",
    responses((status = 200, description = "All environments that the token can access", body = EnvironmentList)),
)]
pub(super) async fn list(State(api): State<Api>, User(caller): User) -> Result<Json<EnvironmentList>, Problem> {
    let all = api.sessions.list_environments(&caller.access()).await?;
    Ok(Json(EnvironmentList { environments: all.into_iter().map(EnvironmentView::from).collect() }))
}

/// Get an environment
#[utoipa::path(
    get, path = "/environments/{environment}", operation_id = "get_environment", tag = "environments",
    params(EnvironmentInPath, WaitQuery),
    responses((status = 200, description = "The environment", body = EnvironmentView)),
)]
pub(super) async fn get_one(
    State(api): State<Api>,
    User(caller): User,
    EnvironmentInPath(id): EnvironmentInPath,
    Query(query): Query<WaitQuery>,
) -> Result<Json<EnvironmentView>, Problem> {
    let wait = query.duration()?;
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    read(&api, &id, &caller, wait).await.map(Json)
}

/// Get the lock of an environment
///
/// All packages with their versions and hashes, as the package manager of the language reads them. `lock` of a new environment takes it
/// on this or another server.
#[utoipa::path(
    get, path = "/environments/{environment}/lock", operation_id = "get_environment_lock", tag = "environments",
    params(EnvironmentInPath),
    responses((status = 200, description = "The lock", body = String, content_type = "text/plain")),
)]
pub(super) async fn lock(
    State(api): State<Api>,
    User(caller): User,
    EnvironmentInPath(id): EnvironmentInPath,
) -> Result<String, Problem> {
    let environment = api.sessions.environment(&id, &caller.access()).await?;
    let missing = || Problem::new(StatusCode::CONFLICT, "environment_not_ready", "its packages are not installed");
    environment.set.map(|set| set.lock).ok_or_else(missing)
}

/// Forget an environment and remove its packages
#[utoipa::path(
    delete, path = "/environments/{environment}", operation_id = "delete_environment", tag = "environments",
    params(EnvironmentInPath),
    responses((status = 204, description = "Removed")),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    EnvironmentInPath(id): EnvironmentInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.delete_environment(&id, &caller.access()).await?;
    Ok(StatusCode::NO_CONTENT)
}
