//! Traces by OpenTelemetry: one span for each request, one for each run of a cell with its waiting and its running below it. They
//! say who, when, how long and how it ended; never code, output, variables or tokens, for which there is no attribute here.
//!
//! Spans are made by hand, and not of what is logged (`tracing-opentelemetry`): a run begins in a request, ends long after it, maybe
//! in another process, and is told when its end is in the journal.

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

/// How long a stopping server waits for its collector.
const FAREWELL: Duration = Duration::from_secs(2);
/// The name under which a context is written down.
const TRACEPARENT: &str = "traceparent";

static TRACES: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// Begins to trace if the environment names a collector, as OpenTelemetry says. Once for the process, within its runtime.
///
/// # Errors
/// In words, when it names one that cannot be used. Nothing is traced then.
pub fn install() -> Result<(), String> {
    if let Some(provider) = collector::from_environment()? {
        let tracer = provider.tracer("cellkeep");
        let _ = TRACES.set((provider, tracer));
    }
    Ok(())
}

/// Whether anybody collects traces.
pub fn are_kept() -> bool {
    TRACES.get().is_some()
}

/// Sends what has not been sent yet, for a moment. Nothing is traced afterwards.
pub async fn end() {
    if let Some((provider, _)) = TRACES.get() {
        let ended = tokio::task::spawn_blocking(|| provider.shutdown_with_timeout(FAREWELL)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!("the last traces could not be sent");
        }
    }
}

/// A request that is being answered.
pub struct Answering(Context);

impl Answering {
    /// Begins the span of a request, a child of the one that its `traceparent` names. `route`: the pattern of its path, for paths
    /// hold names of files. `None` where nobody collects.
    pub fn begin(
        headers: &HeaderMap,
        method: &Method,
        route: Option<&str>,
        id: &str,
        session: Option<&str>,
    ) -> Option<Self> {
        let (_, tracer) = TRACES.get()?;
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        // Methods are made up by who asks; a trace's names are to be few.
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

    /// What is done for it.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        work.with_context(self.0.clone()).await
    }

    /// Its answer has begun. One that is dropped before has none: who asked went away.
    pub fn answered(self, status: StatusCode) {
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

/// What is being done now, as a `traceparent`: what is asked of others can name it.
pub fn current() -> Option<String> {
    TRACES.get()?;
    told(&Context::current())
}

/// The same, where what is being done belongs to something that was asked for under this `traceparent`.
pub fn current_below(traceparent: &str) -> Option<String> {
    let (parent, current) = (read(traceparent), current()?);
    parent.span().span_context().is_valid().then_some(current)
}

/// What somebody else does, by the `traceparent` that they sent. One that is not valid names nothing, as the standard says.
pub fn of_others(traceparent: &str) -> Option<String> {
    TRACES.get()?;
    told(&read(traceparent))
}

fn told(context: &Context) -> Option<String> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(context, &mut headers);
    headers.remove(TRACEPARENT)
}

fn read(traceparent: &str) -> Context {
    let headers = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

/// Goes on with what is being done now in another task.
pub fn carry<T: Future>(work: T) -> impl Future<Output = T::Output> {
    work.with_current_context()
}

/// A run that has ended.
#[derive(Debug)]
pub struct Run<'a> {
    /// What asked for it, as a `traceparent`.
    pub parent: Option<&'a str>,
    /// Its session.
    pub session: &'a str,
    /// Its kernel.
    pub kernel: &'a str,
    /// Its cell.
    pub cell: &'a str,
    /// When it was queued, if that is known.
    pub queued_at: Option<SystemTime>,
    /// When the kernel was given it; `None` for never.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub ended_at: SystemTime,
    /// How it ended, by the contract's name.
    pub status: &'static str,
    /// Whether that is a failure.
    pub failed: bool,
    /// Milliseconds of CPU time, and the bytes that its session needed at most.
    pub used: Option<(f64, u64)>,
}

/// Tells of a run that has ended: its whole, and below that how long it waited and how long it ran.
pub fn tell(run: &Run<'_>) {
    let Some((_, tracer)) = TRACES.get() else { return };
    let parent = run.parent.map_or_else(Context::new, read);
    let mut attributes = vec![
        KeyValue::new("cellkeep.session.id", run.session.to_owned()),
        KeyValue::new("cellkeep.cell.id", run.cell.to_owned()),
        KeyValue::new("cellkeep.kernel", run.kernel.to_owned()),
        KeyValue::new("cellkeep.status", run.status),
    ];
    if let Some((cpu_ms, peak_memory_bytes)) = run.used {
        attributes.push(KeyValue::new("cellkeep.cpu_ms", cpu_ms));
        attributes.push(KeyValue::new("cellkeep.peak_memory_bytes", i64::try_from(peak_memory_bytes).unwrap_or(i64::MAX)));
    }
    let begin = run.queued_at.or(run.started_at).unwrap_or(run.ended_at);
    let whole = tracer.span_builder("cell").with_kind(SpanKind::Internal).with_start_time(begin).with_attributes(attributes);
    let mut whole = whole.start_with_context(tracer, &parent);
    if run.failed {
        whole.set_status(Status::error(run.status));
    }
    let inside = Context::new().with_remote_span_context(whole.span_context().clone());
    let part = |name: &'static str, from: Option<SystemTime>, to: SystemTime| {
        if let Some(from) = from {
            let part = tracer.span_builder(name).with_start_time(from).start_with_context(tracer, &inside);
            ended(part, to.max(from));
        }
    };
    part("cell queued", run.queued_at, run.started_at.unwrap_or(run.ended_at));
    part("cell run", run.started_at, run.ended_at);
    ended(whole, run.ended_at.max(begin));
}

fn ended(mut span: opentelemetry_sdk::trace::Span, at: SystemTime) {
    span.end_with_timestamp(at);
}
