//! Traces: what a collector receives about requests and executions, what it never receives, and what a missing collector
//! costs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use futures_util::SinkExt as _;
use hyper::Method;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Said;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message as Text;

use crate::serve::{Socket, next_message, socket};
use crate::server::{RemoteSession, Server, TOKEN};
use crate::support::model::{Model, Say};
use crate::support::{PATIENCE, TestSandbox};

/// Heads and bodies of requests.
type Taken = Arc<Mutex<Vec<(String, Vec<u8>)>>>;
/// A span with the attributes of its resource.
type Told = (Span, HashMap<String, String>);

/// A fake collector that stores requests.
#[derive(Clone)]
struct Collector {
    address: std::net::SocketAddr,
    taken: Taken,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self { address: listener.local_addr().unwrap(), taken: Arc::default() };
        let taken = collector.taken.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(take_all(stream, taken.clone()));
            }
        });
        collector
    }

    /// All received spans, with the attributes of their resources.
    fn spans(&self) -> Vec<Told> {
        let taken = self.taken.lock().unwrap();
        let requests = taken.iter().map(|(_, body)| ExportTraceServiceRequest::decode(body.as_slice()).unwrap());
        let resources = requests.flat_map(|request| request.resource_spans);
        let spans = resources.flat_map(|resource| {
            let who: HashMap<_, _> = resource
                .resource
                .unwrap()
                .attributes
                .into_iter()
                .map(|pair| (pair.key, said(pair.value.unwrap().value)))
                .collect();
            let scopes = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            scopes.map(move |span| (span, who.clone())).collect::<Vec<_>>()
        });
        spans.collect()
    }

    /// Waits for a span with this name and attribute.
    async fn span(&self, name: &str, attribute: (&str, &str)) -> Told {
        let found = async {
            loop {
                let fits = |span: &Span| span.name == name && attribute_of(span, attribute.0) == attribute.1;
                if let Some(found) = self.spans().into_iter().find(|(span, _)| fits(span)) {
                    return found;
                }
                tokio::time::sleep(crate::server::PACE).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("no span {name} {attribute:?} in {:#?}", self.spans()))
    }

    async fn child(&self, name: &str, of: &Span) -> Span {
        let found = self.spans().into_iter().find(|(span, _)| span.name == name && span.parent_span_id == of.span_id);
        let (span, _) = found.unwrap_or_else(|| panic!("no {name} below {of:#?}"));
        assert_eq!(span.trace_id, of.trace_id);
        span
    }
}

fn said(value: Option<Said>) -> String {
    match value {
        Some(Said::StringValue(text)) => text,
        Some(Said::IntValue(number)) => number.to_string(),
        Some(Said::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn attribute_of(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|pair| pair.key == key);
    found.map(|pair| said(pair.value.clone().unwrap().value)).unwrap_or_default()
}

async fn take_all(mut stream: TcpStream, taken: Taken) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
        };
        let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
        let length: usize = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())?;
        while bytes.len() < head + length {
            (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
        }
        taken.lock().unwrap().push((text, bytes[head..head + length].to_vec()));
        bytes.drain(..head + length);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")
            .await
            .ok()?;
    }
}

async fn traced(name: &str, env: &[(&'static str, String)], arguments: &[&str]) -> Server {
    let mut server = Server::start(name, TestSandbox::process(), arguments).await;
    server.stop().await;
    server.env.extend(env.iter().cloned());
    server.env.push(("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()));
    server.start_again().await;
    server
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_executions_have_spans_without_content() {
    let collector = Collector::start().await;
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address)),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=the-collectors".to_owned()),
        ("OTEL_SERVICE_NAME", "notebooks".to_owned()),
    ];
    let mut server = traced("traces", &env, &[]).await;
    let client = server.client();
    let session = client.create(json!({"kernel": "python", "env": {"SECRET": "canary-env"}})).await;
    let asked = client.with("traceparent", &format!("00-{TRACE}-b7ad6b7169203331-01"));
    let source = "import os\nprint('canary-output', os.environ['SECRET'])\n1/0 # canary-code";
    client.post(&session.path("/cells?x=canary-query"), json!({"source": ""})).await.problem(400, "bad_query");
    let cells = session.path("/cells?wait=60");
    asked.post(&cells, json!({"source": source, "id": "fails"})).await.is(201);

    let (cell, who) = collector.span("cell", ("cellkeep.cell.id", "fails")).await;
    assert_eq!((who["service.name"].as_str(), who["service.version"].as_str()), ("notebooks", env!("CARGO_PKG_VERSION")));
    assert_eq!(hex(&cell.trace_id), TRACE);
    for (key, value) in
        [("cellkeep.session.id", session.id.as_str()), ("cellkeep.kernel", "python"), ("cellkeep.status", "error")]
    {
        assert_eq!(attribute_of(&cell, key), value);
    }
    assert!(attribute_of(&cell, "cellkeep.cpu_ms").parse::<f64>().unwrap() >= 0.0);
    assert_eq!(cell.status.as_ref().map(|status| (status.code, status.message.as_str())), Some((2, "error")));
    let (queued, run) = (collector.child("cell queued", &cell).await, collector.child("cell run", &cell).await);
    assert_eq!(
        (cell.start_time_unix_nano, queued.end_time_unix_nano, run.end_time_unix_nano),
        (queued.start_time_unix_nano, run.start_time_unix_nano, cell.end_time_unix_nano)
    );
    assert!(cell.start_time_unix_nano < cell.end_time_unix_nano);
    // The execution is a child of its request, and the request is a child of the client's span.
    let (request, _) = collector.span("POST /v1/sessions/{session}/cells", ("http.response.status_code", "201")).await;
    assert_eq!((hex(&request.trace_id).as_str(), hex(&request.parent_span_id).as_str()), (TRACE, "b7ad6b7169203331"));
    assert_eq!((cell.parent_span_id.clone(), request.kind), (request.span_id.clone(), 2));
    assert_eq!(attribute_of(&request, "cellkeep.session.id"), session.id);

    // A request without a token has no span. A client with a token cannot suppress its spans.
    client
        .anonymous()
        .with("traceparent", &format!("00-{TRACE}-b7ad6b7169203331-01"))
        .with("authorization", "Bearer nobody's")
        .get("/v1/kernels")
        .await
        .problem(401, "bad_token");
    let silent = client.with("traceparent", "00-11111111111111111111111111111111-b7ad6b7169203331-00");
    silent.get("/v1/kernels").await.is(200);
    let (told, _) = collector.span("GET /v1/kernels", ("http.response.status_code", "200")).await;
    assert_eq!(hex(&told.trace_id), "1".repeat(32));
    let of_kernels = collector.spans().into_iter().filter(|(span, _)| span.name == "GET /v1/kernels").count();
    assert_eq!(of_kernels, 1);

    // An execution that continues under a later server keeps its parent.
    asked
        .post(&session.path("/cells"), json!({"source": "input('canary-prompt')", "id": "waits", "allow_stdin": true}))
        .await;
    session.cell_until("waits", |cell| cell["state"] == "running").await;
    asked.post(&session.path("/cells"), json!({"source": "1", "id": "behind"})).await.is(201);
    server.kill().await;
    let killed_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    server.start_again().await;
    client.surely(Method::POST, &session.path("/input"), json!({"value": "canary-input"}).to_string()).await;
    let (went_on, _) = collector.span("cell", ("cellkeep.cell.id", "waits")).await;
    assert_eq!((hex(&went_on.trace_id).as_str(), attribute_of(&went_on, "cellkeep.status").as_str()), (TRACE, "ok"));
    // So does an execution that was only queued, with the time of its queueing.
    let (behind, _) = collector.span("cell", ("cellkeep.cell.id", "behind")).await;
    assert_eq!(hex(&behind.trace_id), TRACE);
    for whole in [&went_on, &behind] {
        let (queued, run) = (collector.child("cell queued", whole).await, collector.child("cell run", whole).await);
        assert!(queued.start_time_unix_nano < killed_at && run.end_time_unix_nano > killed_at, "{queued:#?} {run:#?}");
        assert_eq!(whole.start_time_unix_nano, queued.start_time_unix_nano);
    }
    // Another execution of the cell has another parent, and an untraced one has none.
    client.post(&session.path("/cells/fails/run?wait=60"), json!({})).await.is(200);
    collector.span("POST /v1/sessions/{session}/cells/{cell}/run", ("http.response.status_code", "200")).await;
    let runs = |spans: Vec<Told>| {
        let runs =
            spans.into_iter().filter(|(span, _)| span.name == "cell" && attribute_of(span, "cellkeep.cell.id") == "fails");
        runs.map(|(span, _)| hex(&span.trace_id)).collect::<Vec<_>>()
    };
    // A stopping server sends its queued spans.
    client.post(&session.path("/cells?wait=60"), json!({"source": "1", "id": "last"})).await.is(201);
    assert!(server.stop().await.success());
    collector.span("cell", ("cellkeep.cell.id", "last")).await;
    let runs = runs(collector.spans());
    assert!(runs.len() == 2 && runs[0] == TRACE && runs[1] != TRACE, "{runs:?}");

    for (head, body) in collector.taken.lock().unwrap().iter() {
        assert!(head.starts_with("post /v1/traces ") && head.contains("x-key: the-collectors"), "{head}");
        for secret in ["canary", TOKEN, "ZeroDivision", "the-collectors"] {
            assert!(!body.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} was sent");
        }
    }
    assert!(!server.stderr().contains("the-collectors"));
    server.start_again().await;
    session.delete().await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socket_and_model_executions_have_the_right_parent() {
    let collector = Collector::start().await;
    let model = Model::start([Say::Run("I count.", "6*7"), Say::Text("Done.")]).await;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address))];
    let arguments = ["--model-url", &model.url(), "--model", "tiny"];
    let server = traced("traces-asked", &env, &arguments).await;
    let held = server.client().create(json!({"kernel": "bash"})).await;
    let (of_socket, of_command, other) = ("5".repeat(32), "6".repeat(32), "b7ad6b7169203331");
    let parent = |trace: &str| format!("00-{trace}-{other}-01");

    // A command may carry its own context. Otherwise the socket's context is used, if it has one.
    let known = RemoteSession { client: held.client.with("traceparent", &parent(&of_socket)), id: held.id.clone() };
    let (mut known, mut unknown) = (socket(&known, "after=0").await, socket(&held, "after=0").await);
    let run = async |socket: &mut Socket, cell: &str, traceparent: Option<&str>| {
        let run = json!({"op": "run", "source": "echo", "cell": cell, "traceparent": traceparent});
        socket.send(Text::text(run.to_string())).await.unwrap();
        next_message(socket, |event| event["type"] == "cell.finished" && event["cell"] == cell).await;
        collector.span("cell", ("cellkeep.cell.id", cell)).await.0
    };
    let said = run(&mut known, "said", Some(&parent(&of_command))).await;
    assert_eq!((hex(&said.trace_id), hex(&said.parent_span_id).as_str()), (of_command.clone(), other));
    let silent = run(&mut known, "silent", None).await;
    let (opening, _) = collector.span("GET /v1/sessions/{session}/socket", ("http.response.status_code", "101")).await;
    assert_eq!((&silent.trace_id, &silent.parent_span_id), (&opening.trace_id, &opening.span_id));
    assert_eq!((hex(&opening.trace_id), hex(&opening.parent_span_id).as_str()), (of_socket.clone(), other));
    // An invalid context is ignored, as in a header.
    let bad = run(&mut known, "bad", Some(&"00-not-a-context".repeat(9))).await;
    assert_eq!(hex(&bad.trace_id), of_socket);
    // Executions over a socket without a context have no common parent.
    let (one, two) = (run(&mut unknown, "one", None).await, run(&mut unknown, "two", None).await);
    assert!(one.parent_span_id.is_empty() && two.parent_span_id.is_empty() && one.trace_id != two.trace_id);
    assert_eq!(run(&mut unknown, "three", Some(&parent(&of_command))).await.trace_id, said.trace_id);

    // An execution by the model is a child of the request with the message.
    let asking = held.client.with("traceparent", &parent(TRACE));
    asking.post(&held.path("/chat?wait=60"), json!({"text": "Count"})).await.is(202);
    let listed = held.client.get(&held.path("/cells")).await.is(200);
    let cells = listed["cells"].as_array().unwrap();
    let made = cells.iter().find(|cell| cell["source"] == "6*7").unwrap()["id"].as_str().unwrap();
    let (ran, _) = collector.span("cell", ("cellkeep.cell.id", made)).await;
    let (chat, _) = collector.span("POST /v1/sessions/{session}/chat", ("http.response.status_code", "202")).await;
    assert_eq!((hex(&ran.trace_id).as_str(), ran.parent_span_id), (TRACE, chat.span_id));
    held.delete().await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_collector_does_not_block_the_server() {
    // The collector accepts connections and never responds.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let env = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("http://{}/v1/traces", silent.local_addr().unwrap())),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "20".to_owned()),
    ];
    let mut server = traced("no-collector", &env, &[]).await;
    let client = server.client();
    for _ in 0..30 {
        client.get("/v1/sessions").await.is(200);
    }
    let figures = client.until("/metrics", |reply| reply.text().contains("result=\"dropped\"")).await.text();
    assert!(figures.contains("cellkeep_trace_spans_total"), "{figures}");
    let began = std::time::Instant::now();
    assert!(server.stop().await.success());
    assert!(began.elapsed() < std::time::Duration::from_secs(8), "a stop does not wait for it");
    // An invalid address is reported, and has no other effect.
    server.env.push(("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://x:4317".to_owned()));
    server.start_again().await;
    client.get("/v1/sessions").await.is(200);
    assert!(server.stderr().contains("grpc://x)"), "{}", server.stderr());
    server.end().await;
}
