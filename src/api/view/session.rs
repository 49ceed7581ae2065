//! Sessions as clients see them.

use std::collections::HashMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::{api_enum, time};
use crate::api::secrets::SecretView;
use crate::ids::{Seq, SessionId, SessionPhase};
use crate::manager::{SandboxRecord, SessionConfig, SessionRow};
use crate::policy::{Isolation, IsolationLevel, Limits, NetworkLevel, NetworkPolicy};

/// A kernel with its cells and files. It stays readable after its end, until it is deleted.
#[derive(Serialize, ToSchema)]
#[schema(as = Session, examples(json!({
    "id": "6f1c2a5e-7c0b-4d7c-9d57-0a3d4f0f5a11", "name": "report", "kernel": "python", "language": "python", "state": "idle",
    "why": null, "sandbox": "6f1c2a5e-7c0b-4d7c-9d57-0a3d4f0f5a11", "isolation": {"level": "process", "enforced": ["no network"], "not_enforced": [], "not_stopped": ["vulnerabilities of the machine's kernel"]}, "network": "none", "mounts": ["datasets"], "secrets": [], "environment": null,
    "created_at": "2026-11-30T11:55:05.348000Z", "last_active_at": "2026-11-30T11:56:10.021000Z", "expires_at": null,
    "limits": {"memory_mb": 512, "cpus": 1.0, "pids": 256, "disk_mb": 256, "output_mb": 100}, "timeout_seconds": 60.0,
    "ttl_seconds": null, "idle_timeout_seconds": 3600, "labels": {"team": "research"}, "cells": 2, "queue_length": 0,
    "last_seq": 14,
    "usage": {"memory_bytes": 78643200, "peak_memory_bytes": 81788928, "cpu_seconds": 0.61, "processes": 3}
})))]
pub(in crate::api) struct SessionView {
    #[schema(value_type = String)]
    pub id: SessionId,
    #[schema(required)]
    pub name: Option<String>,
    /// The name of the kernel.
    pub kernel: String,
    /// The language of the kernel.
    pub language: String,
    pub state: SessionState,
    /// The reason why the session ended.
    #[schema(required)]
    pub why: Option<String>,
    /// The id of the sandbox, which other sessions may share. Null until it exists.
    #[schema(required)]
    pub sandbox: Option<String>,
    /// Null until the sandbox exists.
    #[schema(required)]
    pub isolation: Option<IsolationView>,
    pub network: NetworkView,
    /// The names of the data mounts, which the session sees at `/mnt/NAME`.
    pub mounts: Vec<String>,
    /// Without their values. Empty for the token of a share.
    pub secrets: Vec<SecretView>,
    /// The id of the environment whose packages it has.
    #[schema(required)]
    pub environment: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    /// The last use. Running or changing cells, input, completion and access to files count; reading does not.
    #[schema(format = DateTime)]
    pub last_active_at: String,
    /// The end of the lifetime, if it is limited.
    #[schema(required, format = DateTime)]
    pub expires_at: Option<String>,
    pub limits: LimitsView,
    /// The timeout of cells that have none of their own, in seconds.
    #[schema(required)]
    pub timeout_seconds: Option<f64>,
    /// The lifetime in seconds, if it is limited.
    #[schema(required)]
    pub ttl_seconds: Option<u64>,
    /// The idle timeout of the session, or the default of the server, in seconds.
    pub idle_timeout_seconds: u64,
    /// Empty for the token of a share.
    pub labels: HashMap<String, String>,
    /// The number of cells.
    pub cells: usize,
    /// The number of cells that wait for the kernel.
    pub queue_length: usize,
    /// The number of the last event.
    #[schema(value_type = u64)]
    pub last_seq: Seq,
    /// Absent if the session has ended, or if its sandbox does not answer in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub usage: Option<UsageView>,
}

impl SessionView {
    /// A session without the usage of its sandbox. `idle_timeout` is the default of the server in seconds.
    pub fn new(row: &SessionRow, phase: SessionPhase, (cells, queued): (usize, usize), idle_timeout: u64) -> Self {
        let config = SessionConfig::of_row(row);
        let record = sandbox_record(row);
        let sandbox = record.as_ref().map(|record| record.id.to_string());
        let isolation = record.map(|record| IsolationView::new(record.isolation, &config.network));
        Self {
            id: row.id.clone(),
            name: row.name.clone(),
            kernel: row.kernel.clone(),
            language: row.language.clone(),
            state: phase.into(),
            why: row.why.clone(),
            sandbox,
            isolation,
            network: config.network.into(),
            mounts: config.mounts,
            secrets: config.secrets.into_iter().map(SecretView::from).collect(),
            environment: config.environment,
            created_at: time(row.created_at),
            last_active_at: time(row.last_active_at),
            expires_at: row.expires_at.map(time),
            limits: config.limits.into(),
            timeout_seconds: config.timeout_seconds,
            ttl_seconds: config.ttl_seconds,
            idle_timeout_seconds: config.idle_timeout_seconds.unwrap_or(idle_timeout),
            labels: config.labels,
            cells,
            queue_length: queued,
            last_seq: row.last_seq,
            usage: None,
        }
    }
}

fn sandbox_record(row: &SessionRow) -> Option<SandboxRecord> {
    serde_json::from_str(row.sandbox.as_deref()?).ok()
}

#[derive(Serialize, ToSchema)]
pub(in crate::api) struct SessionList {
    /// Oldest first. Sessions that are deleted meanwhile are left out.
    pub sessions: Vec<SessionView>,
    /// The cursor of the next page; null at the end.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

/// The state of a session. `gone` means that it has ended.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::api) enum SessionState {
    Starting,
    Idle,
    Busy,
    Interrupting,
    Restarting,
    Gone,
}

impl From<SessionPhase> for SessionState {
    fn from(phase: SessionPhase) -> Self {
        match phase {
            // Clients see sessions from the phase after `Creating` to the one before `Deleting`.
            SessionPhase::Creating | SessionPhase::Starting => Self::Starting,
            SessionPhase::Idle => Self::Idle,
            SessionPhase::Busy => Self::Busy,
            SessionPhase::Interrupting => Self::Interrupting,
            SessionPhase::Restarting => Self::Restarting,
            SessionPhase::Gone | SessionPhase::Deleting => Self::Gone,
        }
    }
}

/// What code in a session reaches: a word, or `{"allow": [hosts]}`.
#[derive(Serialize, ToSchema)]
#[schema(as = Network)]
#[serde(untagged)]
pub(in crate::api) enum NetworkView {
    Word(NetworkMode),
    Hosts(AllowedHosts),
}

#[derive(Serialize, ToSchema)]
pub(in crate::api) struct AllowedHosts {
    /// Names, `*.` for all names below one, and the port if it is not 80 or 443.
    allow: Vec<String>,
}

/// `none`; `packages`: the package indexes of the operator; `open`: what the host reaches, but not the host itself.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::api) enum NetworkMode {
    None,
    Packages,
    Open,
}

impl From<NetworkPolicy> for NetworkView {
    fn from(policy: NetworkPolicy) -> Self {
        match policy {
            NetworkPolicy::None => Self::Word(NetworkMode::None),
            NetworkPolicy::Packages => Self::Word(NetworkMode::Packages),
            NetworkPolicy::Open => Self::Word(NetworkMode::Open),
            NetworkPolicy::Allow(rules) => {
                Self::Hosts(AllowedHosts { allow: rules.iter().map(ToString::to_string).collect() })
            }
        }
    }
}

api_enum! {
    /// The widest network that can be asked for: `none`, `packages`, `allow` (any hosts that are named) or `open`.
    #[schema(as = NetworkLevel)]
    NetworkLevelName for NetworkLevel { None, Packages, Allow, Open }
}

/// The limits of a session.
#[derive(Serialize, ToSchema)]
#[schema(as = Limits)]
pub(in crate::api) struct LimitsView {
    /// Memory of all processes of the session together, in MB.
    memory_mb: u64,
    /// The number of CPUs.
    cpus: f64,
    /// The number of processes and threads.
    pids: u64,
    /// The size of the workspace in MB.
    disk_mb: u64,
    /// Output of one execution in MB.
    output_mb: u64,
}

impl From<Limits> for LimitsView {
    fn from(Limits { memory_mb, cpus, pids, disk_mb, output_mb }: Limits) -> Self {
        Self { memory_mb, cpus, pids, disk_mb, output_mb }
    }
}

/// The actual isolation of a session on this machine.
#[derive(Serialize, ToSchema)]
#[schema(as = Isolation)]
pub(in crate::api) struct IsolationView {
    level: IsolationLevelName,
    /// The limits and measures that the system enforces.
    enforced: Vec<String>,
    /// What was requested but is not enforced here, each with the reason.
    not_enforced: Vec<String>,
    /// The attacks that this level does not stop here.
    not_stopped: Vec<String>,
}

impl IsolationView {
    /// What a sandbox reported when it was created, and the policy in force.
    pub fn new(reported: Isolation, network: &NetworkPolicy) -> Self {
        let Isolation { level, mut enforced, not_enforced, not_stopped } = reported;
        enforced.extend(network.measure());
        Self { level: level.into(), enforced, not_enforced, not_stopped }
    }
}

api_enum! {
    /// How a session is isolated, weakest first.
    #[schema(as = IsolationLevel)]
    IsolationLevelName for IsolationLevel { None, Process, Container, Gvisor, Vm }
}

/// The resources that a session uses.
#[derive(Serialize, ToSchema)]
#[schema(as = Usage)]
pub(in crate::api) struct UsageView {
    pub memory_bytes: u64,
    pub peak_memory_bytes: u64,
    /// The CPU time of all processes since the start of the sandbox.
    pub cpu_seconds: f64,
    pub processes: u64,
}
