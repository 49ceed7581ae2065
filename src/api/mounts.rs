//! The data mounts of the server.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Api, Caller};

/// A read-only folder that the operator shares with sandboxes.
#[derive(Serialize, ToSchema)]
#[schema(as = Mount, examples(json!({"name": "datasets", "path": "/mnt/datasets", "description": "Sales since 2010"})))]
pub(super) struct MountView {
    /// The name to ask for in `mounts` of a new session.
    name: String,
    /// The path in the sandbox.
    path: String,
    /// As the operator describes it.
    #[schema(required)]
    description: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct MountList {
    /// By name.
    mounts: Vec<MountView>,
}

/// List the data mounts
///
/// The read-only folders that sessions may ask for by name. The operator chooses them.
#[utoipa::path(
    get, path = "/mounts", operation_id = "list_mounts", tag = "server",
    responses((status = 200, description = "The data mounts", body = MountList)),
)]
pub(super) async fn list(State(api): State<Api>, _caller: Caller) -> Json<MountList> {
    let view = |mount: &crate::policy::DataMount| MountView {
        name: mount.name.clone(),
        path: mount.path(),
        description: mount.description.clone(),
    };
    Json(MountList { mounts: api.sessions.mounts().iter().map(view).collect() })
}
