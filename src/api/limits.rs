//! What a client may ask for on this server, and how much of it is in use.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::view::{LimitsView, NetworkLevelName};
use super::{Api, Caller};
use crate::policy::{Ceilings, PrincipalCeilings};

/// The greatest values that requests may have, and what the principal holds. `null` is no ceiling.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "session": {
        "limits": {"memory_mb": 6144, "cpus": 2.0, "pids": 8192, "disk_mb": 6144, "output_mb": 384}, "network": "none",
        "timeout_seconds": 86400, "idle_timeout_seconds": 86400, "ttl_seconds": null
    },
    "principal": {
        "sessions": null, "processes": null, "data_mb": null, "executions_per_hour": null, "session_seconds_per_day": null
    },
    "in_use": {"sessions": 3, "processes": 768}, "max_sessions": 100
})))]
#[schema(as = ServerLimits)]
pub(super) struct LimitsReply {
    session: SessionCeilingsView,
    principal: PrincipalCeilingsView,
    in_use: InUseView,
    /// The living sessions that the server may have, of all principals together.
    max_sessions: usize,
}

/// The most that one session may have.
#[derive(Serialize, ToSchema)]
#[schema(as = SessionCeilings)]
struct SessionCeilingsView {
    limits: LimitsView,
    network: NetworkLevelName,
    /// The longest timeout of an execution in seconds.
    timeout_seconds: u64,
    idle_timeout_seconds: u64,
    /// The longest lifetime in seconds.
    #[schema(required)]
    ttl_seconds: Option<u64>,
}

/// The most that one principal may hold or use.
#[derive(Serialize, ToSchema)]
#[schema(as = PrincipalCeilings)]
struct PrincipalCeilingsView {
    /// Living sessions. Null: if there are other principals, as many as are left free for them.
    #[schema(required)]
    sessions: Option<u64>,
    /// The sum of `limits.pids` of living sessions. Null: as for sessions.
    #[schema(required)]
    processes: Option<u64>,
    #[schema(required)]
    data_mb: Option<u64>,
    #[schema(required)]
    executions_per_hour: Option<u32>,
    /// Seconds that its sessions may live in a day, all together.
    #[schema(required)]
    session_seconds_per_day: Option<u64>,
}

/// What the principal of the token holds.
#[derive(Serialize, ToSchema)]
#[schema(as = Held)]
struct InUseView {
    sessions: u64,
    processes: u64,
}

impl SessionCeilingsView {
    fn new(ceilings: &Ceilings) -> Self {
        Self {
            limits: ceilings.limits.clone().into(),
            network: ceilings.network.into(),
            timeout_seconds: ceilings.timeout_seconds,
            idle_timeout_seconds: ceilings.idle_timeout_seconds,
            ttl_seconds: ceilings.lifetime_seconds,
        }
    }
}

impl From<PrincipalCeilings> for PrincipalCeilingsView {
    fn from(ceilings: PrincipalCeilings) -> Self {
        let PrincipalCeilings { sessions, processes, data_mb, executions_per_hour, session_seconds_per_day } = ceilings;
        Self { sessions, processes, data_mb, executions_per_hour, session_seconds_per_day }
    }
}

/// Get the limits of this server
///
/// The greatest values that requests may have, and what the principal of the token holds. Asking for more is refused with
/// `above_ceiling`.
#[utoipa::path(
    get, path = "/limits", operation_id = "get_limits", tag = "server",
    responses((status = 200, description = "The limits", body = LimitsReply)),
)]
pub(super) async fn get(State(api): State<Api>, caller: Caller) -> Json<LimitsReply> {
    let ceilings = api.sessions.ceilings();
    let (sessions, processes) = api.sessions.held(&caller.identity.principal);
    Json(LimitsReply {
        session: SessionCeilingsView::new(ceilings),
        principal: ceilings.principal.clone().into(),
        in_use: InUseView { sessions, processes },
        max_sessions: api.sessions.max_sessions(),
    })
}
