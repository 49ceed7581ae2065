//! The names and descriptions of the Prometheus metrics, and traces if a collector is configured.

mod collector;
pub mod traces;

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// The bucket bounds of all histograms in seconds: from the start of a pooled session to a long execution.
const BUCKETS: &[f64] = &[0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Created sessions.
pub const SESSIONS_CREATED: &str = "cellkeep_sessions_created_total";
/// Seconds from the request for a session until its kernel is ready, by source (`pool` or `new`).
pub const START_SECONDS: &str = "cellkeep_session_start_seconds";
/// Seconds that executions took, by status.
pub const RUN_SECONDS: &str = "cellkeep_run_seconds";
/// Committed events.
pub const EVENTS: &str = "cellkeep_events_total";
/// Bytes of committed events.
pub const EVENT_BYTES: &str = "cellkeep_event_bytes_total";
/// Seconds from passing a transaction to the store until its commit.
pub const COMMIT_SECONDS: &str = "cellkeep_commit_seconds";
/// Seconds from receiving an event until it is published: the delay of a subscriber that keeps up.
pub const LAG_SECONDS: &str = "cellkeep_event_lag_seconds";
/// Open event streams and sockets.
pub const STREAMS: &str = "cellkeep_streams";
/// Sessions by phase.
pub const SESSIONS: &str = "cellkeep_sessions";
/// Ready sessions in the pool, by kernel.
pub const POOL: &str = "cellkeep_pool_ready";
/// Queued cells.
pub const QUEUED: &str = "cellkeep_queued_cells";

/// Trace spans by result: `sent`, `failed` (by the collector), or `dropped` (the queue was full).
pub const SPANS: &str = "cellkeep_trace_spans_total";

/// How often the samples of histograms are sorted into their buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the memory of the recorder small. It keeps each sample of a histogram until somebody reads the metrics, or until this. Never
/// returns.
pub async fn maintain() {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        if let Some(handle) = install() {
            handle.run_upkeep();
        }
    }
}

/// Installs the metrics recorder once per process, and returns the handle that renders the metrics. `None` if another
/// recorder is installed.
pub fn install() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let install = || {
        let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), BUCKETS);
        let handle = builder.ok()?.install_recorder().ok()?;
        metrics::describe_counter!(SESSIONS_CREATED, "Created sessions");
        metrics::describe_histogram!(
            START_SECONDS,
            metrics::Unit::Seconds,
            "From the request for a session until its kernel is ready"
        );
        metrics::describe_histogram!(RUN_SECONDS, metrics::Unit::Seconds, "Duration of executions, by status");
        metrics::describe_counter!(EVENTS, "Events written to the journal");
        metrics::describe_counter!(EVENT_BYTES, metrics::Unit::Bytes, "Bytes of events written to the journal");
        metrics::describe_histogram!(
            COMMIT_SECONDS,
            metrics::Unit::Seconds,
            "From passing a transaction to the store until its commit"
        );
        metrics::describe_histogram!(LAG_SECONDS, metrics::Unit::Seconds, "From receiving an event until it is published");
        metrics::describe_counter!(SPANS, "Trace spans, by result");
        metrics::describe_gauge!(STREAMS, "Open event streams and sockets");
        metrics::describe_gauge!(SESSIONS, "Sessions by state");
        metrics::describe_gauge!(POOL, "Ready sessions in the warm pool");
        metrics::describe_gauge!(QUEUED, "Queued cells");
        Some(handle)
    };
    HANDLE.get_or_init(install).as_ref()
}
