//! OpenTelemetry traces: one span per request, and one per execution with children for queueing and running. Spans have ids,
//! times and results. They never have code, output, variables or tokens: there is no attribute for them.
//!
//! Spans are created by hand and not from log spans (`tracing-opentelemetry`). An execution begins in a request and ends
//! long after it, possibly in another process, and its span is recorded when its end is committed.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use hyper::{HeaderMap, Method, StatusCode};
use opentelemetry::context::FutureExt as _;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::collector;

/// How long a stopping server waits for the collector.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// The header that carries a context.
const TRACEPARENT: &str = "traceparent";

static TRACES: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// Enables traces if the environment configures a collector. Must be called once, within the runtime. An error means that
/// the configuration is not usable, and that traces stay disabled.
pub fn install() -> Result<(), String> {
    if let Some(provider) = collector::from_environment()? {
        let tracer = provider.tracer("cellkeep");
        let _ = TRACES.set((provider, tracer));
    }
    Ok(())
}

/// Whether a collector is configured.
pub fn is_enabled() -> bool {
    TRACES.get().is_some()
}

/// Sends the queued spans, with a timeout. Disables traces.
pub async fn shut_down() {
    if let Some((provider, _)) = TRACES.get() {
        let ended = tokio::task::spawn_blocking(|| provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!("the last traces could not be sent");
        }
    }
}

/// The span of a request.
pub struct RequestSpan(Context);

impl RequestSpan {
    /// Starts a span below the one in the `traceparent` header. `route` is the pattern of the path, because paths contain
    /// names of files. `None` if traces are disabled.
    pub fn start(
        headers: &HeaderMap,
        method: &Method,
        route: Option<&str>,
        id: &str,
        session: Option<&str>,
    ) -> Option<Self> {
        let (_, tracer) = TRACES.get()?;
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        // Clients can invent methods, but span names must have a low cardinality.
        let method = if is_known(method) { method.as_str() } else { "_OTHER" };
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("cellkeep.request.id", id.to_owned()),
        ];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
        attributes.extend(session.map(|session| KeyValue::new("cellkeep.session.id", session.to_owned())));
        let name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"));
        let span = tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes);
        Some(Self(parent.with_span(span.start_with_context(tracer, &parent))))
    }

    /// Runs work with this span as the current one.
    pub async fn scope<T>(&self, work: impl Future<Output = T>) -> T {
        work.with_context(self.0.clone()).await
    }

    /// Ends the span with the status of the response. A span that is dropped without a status belongs to a client that
    /// disconnected.
    pub fn end(self, status: StatusCode) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if status.is_server_error() {
            span.set_status(Status::error(status.as_u16().to_string()));
        }
        span.end();
    }
}

fn is_known(method: &Method) -> bool {
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD, Method::OPTIONS].contains(method)
}

/// The current span as a `traceparent`, for executions that this request starts.
pub fn current() -> Option<String> {
    TRACES.get()?;
    format_context(&Context::current())
}

/// The current span as a `traceparent`, if the request carried a valid `traceparent`.
pub fn current_in(traceparent: &str) -> Option<String> {
    let (parent, current) = (parse(traceparent), current()?);
    parent.span().span_context().is_valid().then_some(current)
}

/// Normalizes a `traceparent` from a client. `None` if it is invalid, which the standard says to ignore.
pub fn parse_foreign(traceparent: &str) -> Option<String> {
    TRACES.get()?;
    format_context(&parse(traceparent))
}

fn format_context(context: &Context) -> Option<String> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(context, &mut headers);
    headers.remove(TRACEPARENT)
}

fn parse(traceparent: &str) -> Context {
    let headers = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

/// Runs a future of another task with the current span.
pub fn in_current_context<T: Future>(work: T) -> impl Future<Output = T::Output> {
    work.with_current_context()
}

/// A finished execution.
#[derive(Debug)]
pub struct ExecutionSpan<'a> {
    /// The `traceparent` of the request that queued it.
    pub parent: Option<&'a str>,
    pub session: &'a str,
    pub kernel: &'a str,
    pub cell: &'a str,
    pub queued_at: Option<SystemTime>,
    /// `None` if it was never sent to the kernel.
    pub started_at: Option<SystemTime>,
    pub ended_at: SystemTime,
    /// The name of the status in the HTTP API.
    pub status: &'static str,
    pub failed: bool,
    /// CPU time in milliseconds, and the peak memory of the session in bytes.
    pub used: Option<(f64, u64)>,
}

/// Records the span of an execution, with child spans for the time in the queue and in the kernel.
pub fn record_execution(execution: &ExecutionSpan<'_>) {
    let Some((_, tracer)) = TRACES.get() else { return };
    let parent = execution.parent.map_or_else(Context::new, parse);
    let mut attributes = vec![
        KeyValue::new("cellkeep.session.id", execution.session.to_owned()),
        KeyValue::new("cellkeep.cell.id", execution.cell.to_owned()),
        KeyValue::new("cellkeep.kernel", execution.kernel.to_owned()),
        KeyValue::new("cellkeep.status", execution.status),
    ];
    if let Some((cpu_ms, peak_memory_bytes)) = execution.used {
        attributes.push(KeyValue::new("cellkeep.cpu_ms", cpu_ms));
        attributes.push(KeyValue::new("cellkeep.peak_memory_bytes", i64::try_from(peak_memory_bytes).unwrap_or(i64::MAX)));
    }
    let begin = execution.queued_at.or(execution.started_at).unwrap_or(execution.ended_at);
    let whole = tracer.span_builder("cell").with_kind(SpanKind::Internal).with_start_time(begin).with_attributes(attributes);
    let mut whole = whole.start_with_context(tracer, &parent);
    if execution.failed {
        whole.set_status(Status::error(execution.status));
    }
    let below = Context::new().with_remote_span_context(whole.span_context().clone());
    let child = |name: &'static str, from: Option<SystemTime>, to: SystemTime| {
        if let Some(from) = from {
            let span = tracer.span_builder(name).with_start_time(from).start_with_context(tracer, &below);
            end_span(span, to.max(from));
        }
    };
    child("cell queued", execution.queued_at, execution.started_at.unwrap_or(execution.ended_at));
    child("cell run", execution.started_at, execution.ended_at);
    end_span(whole, execution.ended_at.max(begin));
}

fn end_span(mut span: opentelemetry_sdk::trace::Span, at: SystemTime) {
    span.end_with_timestamp(at);
}
