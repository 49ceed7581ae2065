//! Agents under the control of an attacker: scripts that send what no real agent sends. The manager is not harmed, and each
//! session ends within its limits in a defined state.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cellkeep::agent_protocol::{
    Answer, AnswerBody, Event, FrameReader, FromAgent, Hello, KernelEvent, KernelState, PREAMBLE, Request, ToAgent,
    encode_event_frames, read_preamble, write_all_vectored,
};
use cellkeep::ids::{Epoch, Generation, SandboxId, Seq};
use cellkeep::link::LinkError;
use cellkeep::policy::{Isolation, IsolationLevel, Limits};
use cellkeep::sandbox::{
    ProcessStamp, Sandbox, SandboxError, SandboxKind, SandboxRecord, SandboxSpec, SandboxState, SandboxStats,
};
use cellkeep::session::{
    self, EventBody, ExecutionResult, ExecutionStatus, MemoryJournal, OutputMode, SessionError, SessionEvents,
    SessionHandle, SessionParts, SessionState,
};
use cellkeep::wire::{Channel, Message};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::support::{PATIENCE, cell};

/// The behaviour of an agent on each connection, after the preamble.
type Script = fn(Agent) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A sandbox whose agent is a script in this process.
struct Scripted(Script);

#[async_trait]
impl Sandbox for Scripted {
    fn kind(&self) -> SandboxKind {
        SandboxKind::Process
    }

    async fn create(&self, _: &SandboxSpec) -> Result<SandboxRecord, SandboxError> {
        unreachable!("the test has the record")
    }

    async fn connect(&self, _: &SandboxRecord) -> Result<UnixStream, SandboxError> {
        let (ours, agents) = UnixStream::pair().unwrap();
        let (reader, writer) = agents.into_split();
        tokio::spawn((self.0)(Agent { reader: FrameReader::new(reader, ToAgent::cap), writer, seq: Seq::default() }));
        Ok(ours)
    }

    async fn inspect(&self, _: &SandboxRecord) -> Result<SandboxState, SandboxError> {
        Ok(SandboxState::Running)
    }

    async fn stats(&self, _: &SandboxRecord) -> Result<SandboxStats, SandboxError> {
        Ok(SandboxStats::default())
    }

    async fn destroy(&self, _: &SandboxRecord) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        Ok(Vec::new())
    }
}

struct Agent {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    seq: Seq,
}

impl Agent {
    async fn say(&mut self, frame: Vec<Bytes>) {
        // Fails if the manager has closed the connection, which is fine.
        let _ = write_all_vectored(&mut self.writer, frame).await;
    }

    async fn hello(&mut self) {
        let hello = Hello {
            epoch: Epoch(1),
            generation: Generation(1),
            first_seq: Seq::FIRST,
            next_seq: Seq::FIRST,
            kernel_state: KernelState::Starting,
            version: "scripted".to_owned(),
        };
        self.writer.write_all(&PREAMBLE).await.unwrap();
        self.say(FromAgent::Hello(hello).encode()).await;
    }

    async fn event(&mut self, event: &Event) {
        self.seq = self.seq.next();
        for frame in encode_event_frames(self.seq, &event.encode()) {
            self.say(frame).await;
        }
    }

    async fn ready(&mut self) {
        self.hello().await;
        let info = json!({"status": "ok"}).to_string();
        self.event(&Event::Kernel { generation: Generation(1), event: KernelEvent::Ready { info } }).await;
    }

    async fn message(&mut self, channel: Channel, parent: &Message, msg_type: &str, content: serde_json::Value) {
        let mut message = Message::new_request("kernel", msg_type, &content);
        message.parent_header = parent.header.clone();
        self.event(&Event::Message { channel, generation: Generation(1), message }).await;
    }

    /// The next submitted message, which is acknowledged as accepted.
    async fn submitted(&mut self) -> Option<Message> {
        loop {
            if let ToAgent::Submit { id, message, .. } = ToAgent::decode(self.reader.next().await.ok()?).unwrap() {
                let answer = Answer { id, body: AnswerBody::Done { repeated: false }, data: Bytes::new() };
                self.say(FromAgent::Answer(answer).encode()).await;
                return Some(message);
            }
        }
    }
}

fn start(script: Script, limits: Limits) -> (SessionHandle, SessionEvents) {
    start_in(Arc::new(Scripted(script)), limits)
}

fn start_in(sandbox: Arc<Scripted>, limits: Limits) -> (SessionHandle, SessionEvents) {
    let record = SandboxRecord {
        id: SandboxId::random(),
        kind: SandboxKind::Process,
        kernel: "python".to_owned(),
        socket: "nowhere".into(),
        isolation: Isolation::new(IsolationLevel::None),
        owner: ProcessStamp::own(),
        keep: false,
        agent_binary: std::path::PathBuf::new(),
        agent: None,
        controllers: None,
        container: None,
        package_set: None,
    };
    let (journal, events) = MemoryJournal::new();
    let parts = SessionParts {
        session: record.id.as_session().clone(),
        sandbox,
        record,
        limits,
        output_mode: OutputMode::Messages,
        journal: Box::new(journal),
        durable: false,
        stored: None,
    };
    (session::start(parts), events)
}

async fn gone(handle: &SessionHandle) -> String {
    let ended = tokio::time::timeout(PATIENCE, handle.ready()).await.expect("an end in time");
    assert!(ended.is_err(), "the session should have ended");
    match handle.state() {
        SessionState::Gone { why } => why,
        state => panic!("the session is {state:?}"),
    }
}

async fn result(handle: &SessionHandle, events: &mut SessionEvents) -> (ExecutionResult, usize) {
    handle.add_cell(cell("1", None)).await.unwrap();
    let mut bytes = 0;
    loop {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("an end");
        match event.body {
            EventBody::Finished(result) => return (*result, bytes),
            EventBody::Message { message, .. } => bytes += message.content.len(),
            _ => {}
        }
    }
}

#[tokio::test]
async fn forged_sequence_numbers_end_the_session() {
    let script: Script = |mut agent| {
        Box::pin(async move {
            read_first(&mut agent).await;
            agent.hello().await;
            agent.seq = Seq(6);
            agent.event(&Event::Kernel { generation: Generation(1), event: KernelEvent::Starting }).await;
            while agent.reader.next().await.is_ok() {}
        })
    };
    let why = gone(&start(script, Limits::default()).0).await;
    assert!(why.contains("does not keep to the protocol") && why.contains("sent event 7"), "{why}");
}

#[tokio::test]
async fn kernel_that_returns_from_death_ends_the_session() {
    // On each connection: the first kernel says hello, the seventh starts, and the connection is cut.
    let script: Script = |mut agent| {
        Box::pin(async move {
            read_first(&mut agent).await;
            agent.hello().await;
            agent.event(&Event::Kernel { generation: Generation(7), event: KernelEvent::Starting }).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        })
    };
    let why = gone(&start(script, Limits::default()).0).await;
    assert!(why.contains("ended before"), "{why}");
}

#[tokio::test]
async fn huge_lengths_and_foreign_preambles_end_the_session() {
    let huge: Script = |mut agent| {
        Box::pin(async move {
            read_first(&mut agent).await;
            agent.hello().await;
            agent.say(vec![Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x82])]).await;
            while agent.reader.next().await.is_ok() {}
        })
    };
    let why = gone(&start(huge, Limits::default()).0).await;
    assert!(why.contains("claims 4294967295 bytes"), "{why}");
    let foreign: Script = |mut agent| Box::pin(async move { agent.say(vec![Bytes::from_static(b"SSH-2.0-x")]).await });
    let why = gone(&start(foreign, Limits::default()).0).await;
    assert!(why.contains("not a cellkeep agent"), "{why}");
}

#[tokio::test]
async fn deep_and_broken_json_end_the_session() {
    let script: Script = |mut agent| {
        Box::pin(async move {
            agent.writer.write_all(&PREAMBLE).await.unwrap();
            let deep = "[".repeat(4000);
            let mut frame = ((deep.len() + 1) as u32).to_le_bytes().to_vec();
            frame.push(0x81);
            frame.extend_from_slice(deep.as_bytes());
            agent.say(vec![frame.into()]).await;
            while agent.reader.next().await.is_ok() {}
        })
    };
    let why = gone(&start(script, Limits::default()).0).await;
    assert!(why.contains("does not keep to the protocol"), "{why}");
}

#[tokio::test]
async fn lost_reply_ends_its_execution() {
    let script: Script = |mut agent| {
        Box::pin(async move {
            read_first(&mut agent).await;
            agent.ready().await;
            while let Some(message) = agent.submitted().await {
                match message.header().msg_type.as_str() {
                    "execute_request" => {
                        let (from, to) = (agent.seq.next(), Seq(agent.seq.0 + 10));
                        agent.seq = to;
                        agent.say(FromAgent::Lost { from, to }.encode()).await;
                    }
                    _ => agent.message(Channel::Shell, &message, "kernel_info_reply", json!({"status": "ok"})).await,
                }
            }
        })
    };
    let (handle, mut events) = start(script, Limits::default());
    handle.ready().await.unwrap();
    let (result, _) = result(&handle, &mut events).await;
    assert_eq!(result.status, ExecutionStatus::Error);
    assert_eq!(result.error.unwrap().ename, "EndLost");
    assert_eq!(handle.state(), SessionState::Idle);
}

/// The preamble of the manager, before its frames.
async fn read_first(agent: &mut Agent) {
    read_preamble(agent.reader.get_mut()).await.unwrap();
}

#[tokio::test]
async fn agent_without_counting_is_disconnected() {
    let script: Script = |mut agent| {
        Box::pin(async move {
            read_first(&mut agent).await;
            agent.ready().await;
            let Some(run) = agent.submitted().await else { return };
            for _ in 0..100 {
                agent.message(Channel::Iopub, &run, "stream", json!({"name": "stdout", "text": "x".repeat(100_000)})).await;
            }
            agent.message(Channel::Iopub, &run, "status", json!({"execution_state": "idle"})).await;
            agent.message(Channel::Shell, &run, "execute_reply", json!({"status": "ok"})).await;
            while agent.reader.next().await.is_ok() {}
        })
    };
    let (handle, mut events) = start(script, Limits { output_mb: 2, ..Limits::default() });
    handle.ready().await.unwrap();
    let (result, bytes) = result(&handle, &mut events).await;
    assert_eq!(result.status, ExecutionStatus::OutputExceeded);
    assert!((2_000_000..4_000_000).contains(&bytes), "{bytes} bytes were passed on");
}

#[tokio::test]
async fn slow_subscriber_blocks_agent_instead_of_memory() {
    static WRITTEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let script: Script = |mut agent| {
        Box::pin(async move {
            read_first(&mut agent).await;
            agent.ready().await;
            let Some(run) = agent.submitted().await else { return };
            let text = "x".repeat(1 << 20);
            for _ in 0..90 {
                agent.message(Channel::Iopub, &run, "stream", json!({"name": "stdout", "text": text})).await;
                WRITTEN.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            agent.message(Channel::Iopub, &run, "status", json!({"execution_state": "idle"})).await;
            agent.message(Channel::Shell, &run, "execute_reply", json!({"status": "ok"})).await;
            while agent.reader.next().await.is_ok() {}
        })
    };
    let (handle, mut events) = start(script, Limits::default());
    handle.ready().await.unwrap();
    handle.add_cell(cell("1", None)).await.unwrap();
    let mut before = usize::MAX;
    // The agent is blocked once nothing was written for half a second.
    while before != WRITTEN.load(std::sync::atomic::Ordering::Relaxed) {
        before = WRITTEN.load(std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!((8..30).contains(&before), "{before} MB were taken without a reader");
    let mut taken = 0;
    while let Some(event) = tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time") {
        match event.body {
            EventBody::Message { .. } => taken += 1,
            EventBody::Finished(_) => break,
            _ => {}
        }
    }
    assert_eq!(taken, 90, "and all of it comes once there is one");
}

/// An agent that is ready and never responds.
const SILENT: Script = |mut agent| {
    Box::pin(async move {
        read_first(&mut agent).await;
        agent.ready().await;
        while agent.reader.next().await.is_ok() {}
    })
};

#[tokio::test]
async fn session_end_drops_pending_agent_requests() {
    let sandbox = Arc::new(Scripted(SILENT));
    let (handle, events) = start_in(sandbox.clone(), Limits::default());
    handle.ready().await.unwrap();
    handle.add_cell(cell("1", None)).await.unwrap();
    handle.end("it was deleted").await.unwrap();
    drop((handle, events));
    let let_go = async {
        while Arc::strong_count(&sandbox) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, let_go).await.expect("nobody dials a sandbox that is gone");
}

#[tokio::test]
async fn unanswered_agent_requests_are_bounded() {
    let reads: Script = |mut agent| {
        Box::pin(async move {
            read_first(&mut agent).await;
            agent.ready().await;
            while agent.reader.next().await.is_ok() {}
        })
    };
    let does_not_even_read: Script = |mut agent| {
        Box::pin(async move {
            read_first(&mut agent).await;
            agent.ready().await;
            std::future::pending::<()>().await;
        })
    };
    for script in [reads, does_not_even_read] {
        let (handle, _events) = start(script, Limits::default());
        handle.ready().await.unwrap();
        let before = resident();
        let mut asked = 0;
        let refused = loop {
            let question = handle.ask_agent(Request::Usage, Bytes::from(vec![0; 1 << 20]));
            match tokio::time::timeout(Duration::from_millis(5), question).await {
                // The caller is gone; its request is still there.
                Err(_) => asked += 1,
                Ok(answer) => break answer.unwrap_err(),
            }
            assert!(asked < 100, "{asked} MB are held");
        };
        let SessionError::Link(LinkError::Busy) = refused else { panic!("{refused}") };
        assert!(refused.to_string().contains("too many requests to the sandbox are unanswered"), "{refused}");
        let held = resident().saturating_sub(before) >> 20;
        assert!(held < 100, "{held} MB are held");
        // Requests that stop the cell are never refused.
        handle.add_cell(cell("1", None)).await.unwrap();
        handle.interrupt().await.unwrap();
        handle.end("enough").await.unwrap();
    }
}

/// The memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
