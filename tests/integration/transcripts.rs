//! Recorded transcripts of real kernels, replayed through the pure modules.
//!
//! `CELLKEEP_RECORD=1 cargo nextest run transcripts` records them again from the kernels in the process sandbox, byte for
//! byte. A diff of the fixtures shows what an upgrade of a kernel changed.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use cellkeep::agent_protocol::{Event, KernelEvent, Target};
use cellkeep::config::Paths;
use cellkeep::ids::SessionId;
use cellkeep::kernels;
use cellkeep::link::{Link, LinkEvent, Position};
use cellkeep::manager::Manager;
use cellkeep::output::{OutputTarget, Outputs, StreamStyle, text_of};
use cellkeep::policy::{Limits, Network};
use cellkeep::sandbox::{SandboxKind, SandboxSpec};
use cellkeep::wire::content::{ErrorInfo, ExecutionState, ReplyStatus, execution_count, execution_state, reply_status};
use cellkeep::wire::requests::KernelRequest;
use cellkeep::wire::{Channel, Message, Signer};
use jupyter_protocol::{ExecutionState as OracleState, JupyterMessage, JupyterMessageContent, ReplyStatus as OracleStatus};
use serde_json::{Value, json};

use crate::support::PATIENCE;

/// The cells of each transcript: a value and streams, a display, an error.
const SCRIPTS: &[(&str, [&str; 3])] = &[
    ("python", ["print('out'); 6*7", "from IPython.display import HTML, display\ndisplay(HTML('<b>bold</b>'))", "1/0"]),
    ("r", ["cat('out\\n'); 6*7", "data.frame(x = 1:2, y = c('a', 'b'))", "stop('no')"]),
    ("deno", ["console.log('out'); 6*7", "Deno.jupyter.html`<b>bold</b>`", "throw new Error('no')"]),
    ("bash", ["echo out; echo 42", "echo bold", "false"]),
];

fn fixture(kernel: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wire").join(format!("{kernel}.jsonl"))
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn line(channel: Channel, message: &Message) -> String {
    json!({
        "channel": channel.name(), "header": text(&message.header), "parent_header": text(&message.parent_header),
        "metadata": text(&message.metadata), "content": text(&message.content),
    })
    .to_string()
}

fn read_fixture(kernel: &str) -> Vec<(Channel, Message)> {
    let lines = fs::read_to_string(fixture(kernel)).unwrap();
    let read = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap();
        let part = |name: &str| Bytes::from(json[name].as_str().unwrap().to_owned());
        let channel = Channel::ALL.into_iter().find(|channel| json["channel"] == channel.name()).unwrap();
        let message = Message {
            identities: Vec::new(),
            header: part("header"),
            parent_header: part("parent_header"),
            metadata: part("metadata"),
            content: part("content"),
            buffers: Vec::new(),
        };
        (channel, message)
    };
    lines.lines().map(read).collect()
}

async fn record(kernel: &str, codes: &[&str]) {
    let sandbox = Manager::new(Paths::from_environment()).sandbox(SandboxKind::Process).await.unwrap();
    let session = SessionId::random();
    let spec = SandboxSpec {
        id: session.clone().into(),
        session: Some(session),
        kernel: kernels::find(kernel).unwrap().clone(),
        limits: Limits::default(),
        network: Network::None,
        certificates: None,
        own_certificate: None,
        network_env: Vec::new(),
        env: Vec::new(),
        mounts: Vec::new(),
        package_set: None,
        orphan_seconds: Some(20),
    };
    let record = sandbox.create(&spec).await.unwrap();
    let (link, mut events) =
        Link::open(sandbox.clone(), record.clone(), Target::Kernel(record.id.as_session().clone()), Position::default());
    let mut lines = Vec::new();
    let mut to_run = codes.iter().enumerate();
    loop {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        let LinkEvent::Event { event, .. } = event else { continue };
        let is_idle = match event {
            Event::Kernel { event: KernelEvent::Ready { info }, .. } => {
                lines.push(json!({"channel": "shell", "header": "{\"msg_type\":\"kernel_info_reply\"}", "parent_header": "{}", "metadata": "{}", "content": info}).to_string());
                true
            }
            Event::Message { channel, message, .. } => {
                lines.push(line(channel, &message));
                message.header().msg_type == "execute_reply"
            }
            Event::Kernel { .. } | Event::File { .. } | Event::Process(_) => false,
        };
        if is_idle {
            // Late output (Deno's) belongs to the previous execution.
            tokio::time::sleep(std::time::Duration::from_millis(400)).await;
            while !events.is_empty()
                && let Some(LinkEvent::Event { event: Event::Message { channel, message, .. }, .. }) = events.recv().await
            {
                lines.push(line(channel, &message));
            }
            let Some((number, code)) = to_run.next() else { break };
            let request = KernelRequest::execute(code, false);
            let message = request.into_message(&format!("run-{number}"), "recorder", std::time::SystemTime::now());
            link.submit(Channel::Shell, None, message).await.unwrap();
        }
    }
    sandbox.destroy(&record).await.unwrap();
    fs::create_dir_all(fixture(kernel).parent().unwrap()).unwrap();
    fs::write(fixture(kernel), lines.join("\n") + "\n").unwrap();
}

/// The outputs and the reply of each execution in a transcript.
fn replay(kernel: &str) -> Vec<(Vec<Value>, ReplyStatus)> {
    let signer = Signer::new(b"key").unwrap();
    let mut outputs = Outputs::new(StreamStyle::Terminal);
    let mut replies = vec![None; 3];
    for (channel, message) in read_fixture(kernel) {
        // Both encodings of a message are lossless.
        assert_eq!(Message::unpack(&message.pack().concat().into()).unwrap(), message);
        assert_eq!(Message::from_frames(message.to_frames(&signer), &signer).unwrap(), message);
        let (header, parent) = (message.header(), message.parent());
        assert!(!header.msg_type.is_empty(), "{message:?}");
        let Some(run) = parent.msg_id.strip_prefix("run-").and_then(|number| number.parse::<u32>().ok()) else { continue };
        match channel {
            Channel::Iopub => drop(outputs.apply(OutputTarget::cell(run), &header.msg_type, &message.content)),
            Channel::Shell => replies[run as usize] = Some(reply_status(&message.content_value())),
            _ => {}
        }
    }
    replies
        .into_iter()
        .enumerate()
        .map(|(run, reply)| {
            (outputs.outputs(OutputTarget::cell(run as u32)).to_vec(), reply.expect("every execution has a reply"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn transcripts_of_real_kernels_replay_correctly() {
    for (kernel, codes) in SCRIPTS {
        if std::env::var_os("CELLKEEP_RECORD").is_some() {
            record(kernel, codes).await;
        }
        let runs = replay(kernel);
        let (first, reply) = &runs[0];
        assert_eq!(*reply, ReplyStatus::Ok, "{kernel}");
        assert!(text_of(first).contains("out") && text_of(first).contains("42"), "{kernel}: {first:?}");
        let (second, reply) = &runs[1];
        assert_eq!(*reply, ReplyStatus::Ok, "{kernel}");
        assert_eq!(second.len(), 1, "{kernel}: {second:?}");
        if *kernel != "bash" {
            assert!(second[0]["data"]["text/html"].is_string(), "{kernel}: {second:?}");
        }
        let (third, reply) = &runs[2];
        assert!(matches!(reply, ReplyStatus::Error(_)), "{kernel}: {reply:?} {third:?}");
    }
}

#[test]
fn bare_julia_replies_are_ok() {
    // IJulia answers an interrupt with `{}` and a shutdown with an echo, neither with a status. It cannot run here, so these
    // two are written by hand from its source.
    for content in ["{}", r#"{"restart": false}"#] {
        let mut message = Message::new_request("julia", "interrupt_reply", &json!({}));
        message.content = Bytes::from_static(content.as_bytes());
        assert_eq!(reply_status(&message.content_value()), ReplyStatus::Ok);
        assert_eq!(message.header().msg_type, "interrupt_reply");
    }
}

/// Parses a message with `jupyter-protocol`. `None` where its strict types refuse what a kernel sends.
fn oracle(message: &Message) -> Option<JupyterMessage> {
    let part = |bytes: &Bytes| serde_json::from_slice::<Value>(bytes).ok();
    let whole = json!({
        "header": part(&message.header)?, "parent_header": part(&message.parent_header)?,
        "metadata": part(&message.metadata)?, "content": part(&message.content)?,
    });
    JupyterMessage::from_value(whole).ok()
}

fn assert_same_content(ours: &Value, oracle: &JupyterMessageContent) {
    match oracle {
        JupyterMessageContent::Status(status) => {
            let expected = match status.execution_state {
                OracleState::Busy => ExecutionState::Busy,
                OracleState::Idle => ExecutionState::Idle,
                OracleState::Starting => ExecutionState::Starting,
                _ => ExecutionState::Other,
            };
            assert_eq!(execution_state(ours), expected);
        }
        JupyterMessageContent::ExecuteReply(reply) => {
            let expected = match (&reply.status, &reply.error) {
                (OracleStatus::Ok, _) => ReplyStatus::Ok,
                (OracleStatus::Aborted, _) => ReplyStatus::Aborted,
                (OracleStatus::Error, error) => {
                    let error = error.as_ref().map(|error| ErrorInfo {
                        state_lost: false,
                        ename: error.ename.clone(),
                        evalue: error.evalue.clone(),
                        traceback: error.traceback.clone(),
                    });
                    ReplyStatus::Error(error.unwrap_or_default())
                }
            };
            assert_eq!(reply_status(ours), expected);
            assert_eq!(execution_count(ours).unwrap_or(0) as usize, reply.execution_count.value());
        }
        JupyterMessageContent::ExecuteInput(input) => {
            assert_eq!(execution_count(ours).unwrap_or(0) as usize, input.execution_count.value());
        }
        JupyterMessageContent::ExecuteResult(result) => {
            assert_eq!(execution_count(ours).unwrap_or(0) as usize, result.execution_count.value());
        }
        JupyterMessageContent::ErrorOutput(error) => {
            let ours = ErrorInfo::read(ours);
            assert_eq!(
                (ours.ename, ours.evalue, ours.traceback),
                (error.ename.clone(), error.evalue.clone(), error.traceback.clone())
            );
        }
        JupyterMessageContent::StreamContent(stream) => assert_eq!(ours["text"], stream.text),
        _ => {}
    }
}

#[test]
fn transcripts_agree_with_jupyter_protocol() {
    for (kernel, _) in SCRIPTS {
        let mut compared = 0;
        for (_, message) in read_fixture(kernel) {
            let Some(oracle) = oracle(&message) else { continue };
            compared += 1;
            let (header, parent) = (message.header(), message.parent());
            assert_eq!(header.msg_type, oracle.header.msg_type, "{kernel}");
            assert_eq!(header.msg_type, oracle.content.message_type(), "{kernel}");
            assert_eq!((&header.msg_id, &header.session), (&oracle.header.msg_id, &oracle.header.session), "{kernel}");
            let expected = oracle.parent_header.as_ref().map(|parent| (parent.msg_id.as_str(), parent.msg_type.as_str()));
            assert_eq!((parent.msg_id.as_str(), parent.msg_type.as_str()), expected.unwrap_or_default(), "{kernel}");
            assert_same_content(&message.content_value(), &oracle.content);
        }
        assert!(compared > 10, "{kernel}: only {compared} messages were compared");
    }
}
