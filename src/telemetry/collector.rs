//! The export of traces: OTLP over HTTP with protobuf, configured by the environment variables of OpenTelemetry. Spans wait
//! in a bounded queue. Spans that do not fit are dropped and counted, and nothing waits for the collector.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, Uri};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::HttpError;
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use tokio::runtime::Handle;

use super::SPANS;
use crate::http_client::HttpClient;

/// The size of the queue in spans, unless `OTEL_BSP_MAX_QUEUE_SIZE` is set. About 2 MB.
const DEFAULT_QUEUE: usize = 2048;
/// How long one attempt to send may take. The exporter gives up after `OTEL_EXPORTER_OTLP_TIMEOUT`, by default 10 s.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest response of a collector, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// An environment variable, if it is set and not blank.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The provider that the environment configures. `None` if it configures no collector.
pub(super) fn from_environment() -> Result<Option<SdkTracerProvider>, String> {
    let is_set_to = |name, value: &str| variable(name).is_some_and(|actual| actual.eq_ignore_ascii_case(value));
    let endpoint = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let Some(endpoint) = endpoint else { return Ok(None) };
    if is_set_to("OTEL_SDK_DISABLED", "true") || is_set_to("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let protocol = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if let Some(protocol) = protocol.filter(|protocol| protocol != "http/protobuf") {
        tracing::warn!(%protocol, "this protocol is not supported; traces are sent as http/protobuf");
    }
    let http = client_for(&endpoint)?;
    let sender = Sender { http, runtime: Handle::current() };
    let exporter = OtlpExporter::builder().with_http().with_http_client(sender).build();
    let exporter = exporter.map_err(|error| error.to_string())?;
    let capacity = variable("OTEL_BSP_MAX_QUEUE_SIZE").and_then(|text| text.parse().ok()).filter(|capacity| *capacity > 0);
    let processor = BoundedProcessor::new(exporter, capacity.unwrap_or(DEFAULT_QUEUE));
    let provider = SdkTracerProvider::builder().with_resource(resource()).with_span_processor(processor);
    // With the default sampler, the `traceparent` of a client could exclude its requests from the traces.
    let has_sampler = variable("OTEL_TRACES_SAMPLER").is_some();
    let provider = if has_sampler { provider } else { provider.with_sampler(Sampler::AlwaysOn) };
    Ok(Some(provider.build()))
}

/// The client for the address of a collector. An error names the scheme and host only, because the rest may be secret.
fn client_for(endpoint: &str) -> Result<HttpClient, String> {
    let unusable = |host: String, error: &str| format!("the collector's address{host} cannot be used: {error}");
    let uri: Uri = endpoint.parse().map_err(|_| unusable(String::new(), "it is not a URL"))?;
    let host = format!(" ({}://{})", uri.scheme_str().unwrap_or("no scheme"), uri.host().unwrap_or("no host"));
    HttpClient::for_uri(&uri).map_err(|error| unusable(host, &error.to_string()))
}

/// The resource attributes from the environment, with our own name as the default.
fn resource() -> Resource {
    let detected = Resource::builder().build();
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let is_named = detected
        .get(&Key::from_static_str("service.name"))
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder();
    let builder = if is_named { builder } else { builder.with_service_name("cellkeep") };
    builder.with_attribute(version).build()
}

/// The HTTP client of the exporter. The exporter calls it on a thread outside of the runtime.
#[derive(Clone, Debug)]
struct Sender {
    http: HttpClient,
    runtime: Handle,
}

#[async_trait]
impl opentelemetry_http::HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sending = async move {
            let response = http.request(request.map(Full::new)).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        // The timer must be created within the runtime as well.
        self.runtime.spawn(async move { tokio::time::timeout(SEND_TIMEOUT, sending).await }).await??
    }
}

/// The batch processor of the SDK with a bound of its own, so that dropped spans are counted.
#[derive(Debug)]
struct BoundedProcessor {
    inner: BatchSpanProcessor,
    /// The number of spans in the queue and in the batch that is being sent.
    queued: Arc<AtomicUsize>,
    capacity: usize,
}

impl BoundedProcessor {
    fn new(exporter: impl SpanExporter + 'static, capacity: usize) -> Self {
        let queued = Arc::<AtomicUsize>::default();
        let counted = CountingExporter { exporter, queued: queued.clone(), is_failing: AtomicBool::new(false) };
        let config = BatchConfigBuilder::default().with_max_queue_size(capacity).build();
        let inner = BatchSpanProcessor::builder(counted).with_batch_config(config).build();
        Self { inner, queued, capacity }
    }
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let add_one = |queued| (queued < self.capacity).then_some(queued + 1);
        match self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_one) {
            Ok(_) => self.inner.on_end(span),
            Err(_) => metrics::counter!(SPANS, "result" => "dropped").increment(1),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// The exporter, with metrics of sent and failed spans.
#[derive(Debug)]
struct CountingExporter<E> {
    exporter: E,
    queued: Arc<AtomicUsize>,
    /// Whether the last attempt failed. Failures in a row are logged once.
    is_failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for CountingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.exporter.export(batch).await;
        self.queued.fetch_sub(count, Ordering::Relaxed);
        let was_failing = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Ok(()) if was_failing => tracing::warn!("the trace collector accepts traces again"),
            Err(error) if !was_failing => tracing::warn!(%error, "cannot send traces; they are dropped"),
            _ => {}
        }
        let outcome = if result.is_ok() { "sent" } else { "failed" };
        metrics::counter!(SPANS, "result" => outcome).increment(count as u64);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use tokio::sync::Semaphore;

    use super::*;

    /// An exporter that waits for permits.
    #[derive(Clone, Debug)]
    struct StuckExporter(Arc<Semaphore>, Arc<Mutex<usize>>);

    impl SpanExporter for StuckExporter {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let _permit = self.0.acquire().await;
            *self.1.lock().unwrap() += batch.len();
            Ok(())
        }
    }

    #[test]
    fn errors_about_addresses_reveal_no_secrets() {
        for (address, expected) in [
            ("grpc://ann:pass@there:4317/key?token=key", "grpc://there"),
            ("http://ann:pass@there:x y/", "not a URL"),
            ("ftp://pass@there", "ftp://there"),
        ] {
            let error = client_for(address).unwrap_err();
            assert!(error.contains(expected) && !error.contains("pass") && !error.contains("key"), "{error}");
        }
    }

    #[test]
    fn hanging_collector_blocks_nothing_and_queue_is_bounded() {
        let stuck = StuckExporter(Arc::new(Semaphore::new(0)), Arc::default());
        let processor = BoundedProcessor::new(stuck.clone(), 600);
        let queued = processor.queued.clone();
        let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
        let tracer = provider.tracer("t");
        let began = Instant::now();
        for _ in 0..20_000 {
            drop(tracer.start("x"));
            assert!(queued.load(Ordering::Relaxed) <= 600);
        }
        assert!(began.elapsed() < Duration::from_secs(20));
        assert!(
            provider.shutdown_with_timeout(Duration::from_millis(50)).is_err(),
            "shutdown does not wait for the hanging collector"
        );
        stuck.0.add_permits(1000);
        while queued.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        assert_eq!(*stuck.1.lock().unwrap(), 600, "queued spans are sent once");
    }
}
