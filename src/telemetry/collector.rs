//! The collector that traces go to: OTLP over HTTP as protobuf, by the variables that OpenTelemetry names. What it does not take in
//! time is dropped and counted; nothing waits for it, and no more than a queue of it is held.

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

/// Spans that wait at most, where `OTEL_BSP_MAX_QUEUE_SIZE` says nothing: 2 MB or so.
const QUEUE: usize = 2048;
/// How long one try to send may take; the exporter gives up for good by `OTEL_EXPORTER_OTLP_TIMEOUT`, else after 10 s.
const SENDING: Duration = Duration::from_secs(10);
/// Bytes of a collector's answer.
const MAX_ANSWER: usize = 64 << 10;

/// A variable that says something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// What the environment asks for. `None`: no traces.
pub(super) fn from_environment() -> Result<Option<SdkTracerProvider>, String> {
    let off = |name, value: &str| variable(name).is_some_and(|said| said.eq_ignore_ascii_case(value));
    let endpoint = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let Some(endpoint) = endpoint else { return Ok(None) };
    if off("OTEL_SDK_DISABLED", "true") || off("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let protocol = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if let Some(protocol) = protocol.filter(|protocol| protocol != "http/protobuf") {
        tracing::warn!(%protocol, "traces are sent as http/protobuf all the same, for nothing else is spoken here");
    }
    let http = client_for(&endpoint)?;
    let sender = Sender { http, runtime: Handle::current() };
    let exporter = OtlpExporter::builder().with_http().with_http_client(sender).build();
    let exporter = exporter.map_err(|error| error.to_string())?;
    let most = variable("OTEL_BSP_MAX_QUEUE_SIZE").and_then(|text| text.parse().ok()).filter(|most| *most > 0);
    let processor = Bounded::new(exporter, most.unwrap_or(QUEUE));
    let provider = SdkTracerProvider::builder().with_resource(resource()).with_span_processor(processor);
    // By default a caller's `traceparent` could take its requests out of the traces.
    let is_chosen = variable("OTEL_TRACES_SAMPLER").is_some();
    let provider = if is_chosen { provider } else { provider.with_sampler(Sampler::AlwaysOn) };
    Ok(Some(provider.build()))
}

/// The client for a collector's address. Of one that cannot be used, no more is told than where it leads: the rest may be secret.
fn client_for(endpoint: &str) -> Result<HttpClient, String> {
    let unusable = |place: String, error: &str| format!("the collector's address{place} cannot be used: {error}");
    let uri: Uri = endpoint.parse().map_err(|_| unusable(String::new(), "it is no URL"))?;
    let place = format!(" ({}://{})", uri.scheme_str().unwrap_or("no scheme"), uri.host().unwrap_or("no host"));
    HttpClient::to(&uri).map_err(|error| unusable(place, &error.to_string()))
}

/// Who we are, as the environment says, else by our name.
fn resource() -> Resource {
    let said = Resource::builder().build();
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let is_named =
        said.get(&Key::from_static_str("service.name")).is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder();
    let builder = if is_named { builder } else { builder.with_service_name("cellkeep") };
    builder.with_attribute(version).build()
}

/// Sends for the exporter, whose thread is none of the runtime's, by the client that we have anyway.
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
        // A timer, too, is to be made within the runtime.
        self.runtime.spawn(async move { tokio::time::timeout(SENDING, sending).await }).await??
    }
}

/// The library's own processor with a count of what it holds, so that what is dropped is known.
#[derive(Debug)]
struct Bounded {
    inner: BatchSpanProcessor,
    held: Arc<AtomicUsize>,
    most: usize,
}

impl Bounded {
    fn new(exporter: impl SpanExporter + 'static, most: usize) -> Self {
        let held = Arc::<AtomicUsize>::default();
        let counted = Counted { exporter, held: held.clone(), fails: AtomicBool::new(false) };
        let config = BatchConfigBuilder::default().with_max_queue_size(most).build();
        let inner = BatchSpanProcessor::builder(counted).with_batch_config(config).build();
        Self { inner, held, most }
    }
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let one_more = |held| (held < self.most).then_some(held + 1);
        match self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
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

/// The exporter with a count of what became of its spans.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    held: Arc<AtomicUsize>,
    /// Its last try has failed: that is told once.
    fails: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.exporter.export(batch).await;
        self.held.fetch_sub(count, Ordering::Relaxed);
        let failed = self.fails.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Ok(()) if failed => tracing::warn!("traces are taken again"),
            Err(error) if !failed => tracing::warn!(%error, "traces cannot be sent, and are dropped"),
            _ => {}
        }
        let what = if result.is_ok() { "sent" } else { "failed" };
        metrics::counter!(SPANS, "result" => what).increment(count as u64);
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

    /// A collector that takes nothing until it is let.
    #[derive(Clone, Debug)]
    struct Stuck(Arc<Semaphore>, Arc<Mutex<usize>>);

    impl SpanExporter for Stuck {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let _let = self.0.acquire().await;
            *self.1.lock().unwrap() += batch.len();
            Ok(())
        }
    }

    #[test]
    fn an_address_that_cannot_be_used_is_told_without_what_may_be_secret() {
        for (address, told) in [
            ("grpc://ann:pass@there:4317/key?token=key", "grpc://there"),
            ("http://ann:pass@there:x y/", "no URL"),
            ("ftp://pass@there", "ftp://there"),
        ] {
            let error = client_for(address).unwrap_err();
            assert!(error.contains(told) && !error.contains("pass") && !error.contains("key"), "{error}");
        }
    }

    #[test]
    fn a_collector_that_hangs_holds_up_nobody_and_fills_nothing() {
        let stuck = Stuck(Arc::new(Semaphore::new(0)), Arc::default());
        let processor = Bounded::new(stuck.clone(), 600);
        let held = processor.held.clone();
        let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
        let tracer = provider.tracer("t");
        let began = Instant::now();
        for _ in 0..20_000 {
            drop(tracer.start("x"));
            assert!(held.load(Ordering::Relaxed) <= 600);
        }
        assert!(began.elapsed() < Duration::from_secs(20));
        assert!(provider.shutdown_with_timeout(Duration::from_millis(50)).is_err(), "it hangs; who stops does not wait");
        stuck.0.add_permits(1000);
        while held.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        assert_eq!(*stuck.1.lock().unwrap(), 600, "what was held was sent, once");
    }
}
