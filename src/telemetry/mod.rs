//! Figures for Prometheus: what is counted where it happens, and how it is rendered. And, where a collector is named, traces.

mod collector;
pub mod traces;

use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Seconds at which the histograms of starts and runs are cut: from a pooled session to a long cell.
const BUCKETS: &[f64] = &[0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Sessions that were made.
pub const SESSIONS_CREATED: &str = "cellkeep_sessions_created_total";
/// Seconds from asking for a session to its kernel's readiness, by whether it came from the pool.
pub const START_SECONDS: &str = "cellkeep_session_start_seconds";
/// Seconds that runs took, by their status.
pub const RUN_SECONDS: &str = "cellkeep_run_seconds";
/// Events written.
pub const EVENTS: &str = "cellkeep_events_total";
/// Bytes of events written.
pub const EVENT_BYTES: &str = "cellkeep_event_bytes_total";
/// Seconds from handing a piece to the store to its commit.
pub const COMMIT_SECONDS: &str = "cellkeep_commit_seconds";
/// Seconds from an event's being taken in to its being told: how far readers are behind who keep up.
pub const LAG_SECONDS: &str = "cellkeep_event_lag_seconds";
/// Event streams and sockets that are open, when asked.
pub const STREAMS: &str = "cellkeep_streams";
/// Sessions by state, when asked.
pub const SESSIONS: &str = "cellkeep_sessions";
/// Sessions ready in the pool by kernel, when asked.
pub const POOL: &str = "cellkeep_pool_ready";
/// Cells that wait for their turn, when asked.
pub const QUEUED: &str = "cellkeep_queued_cells";

/// Spans of traces, by what became of them: sent, refused by their collector, or dropped since too many waited for it.
pub const SPANS: &str = "cellkeep_trace_spans_total";

/// Begins to count, once for the process; gives what renders the figures. `None` where something else counts already.
pub fn install() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let install = || {
        let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), BUCKETS);
        let handle = builder.ok()?.install_recorder().ok()?;
        metrics::describe_counter!(SESSIONS_CREATED, "Sessions that were made");
        metrics::describe_histogram!(START_SECONDS, metrics::Unit::Seconds, "From asking for a session to its readiness");
        metrics::describe_histogram!(RUN_SECONDS, metrics::Unit::Seconds, "How long runs took, by status");
        metrics::describe_counter!(EVENTS, "Events written to the journal");
        metrics::describe_counter!(EVENT_BYTES, metrics::Unit::Bytes, "Bytes of events written to the journal");
        metrics::describe_histogram!(
            COMMIT_SECONDS,
            metrics::Unit::Seconds,
            "From handing a piece to the store to its commit"
        );
        metrics::describe_histogram!(LAG_SECONDS, metrics::Unit::Seconds, "From taking an event in to telling it");
        metrics::describe_counter!(SPANS, "Spans of traces, by what became of them");
        metrics::describe_gauge!(STREAMS, "Event streams and sockets that are open");
        metrics::describe_gauge!(SESSIONS, "Sessions by state");
        metrics::describe_gauge!(POOL, "Sessions ready in the warm pool");
        metrics::describe_gauge!(QUEUED, "Cells that wait for their turn");
        Some(handle)
    };
    HANDLE.get_or_init(install).as_ref()
}
