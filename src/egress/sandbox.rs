//! The way out of one sandbox: its policy, and the connection to its agent while the policy needs one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::Gateway;
use super::decisions::{DecisionIndex, DecisionList, DecisionLog, Recorder};
use super::proxy;
use super::traffic::Traffic;
use crate::agent_protocol::{FrameReader, PREAMBLE, StreamFrame, Target, ToAgent, read_preamble, write_all_vectored};
use crate::ids::{PrincipalId, SandboxId};
use crate::policy::{HostName, NetworkPolicy};
use crate::sandbox::{Sandbox, SandboxRecord};
use crate::streams::Streams;

/// Back-off between dials: doubles from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long a change of the policy waits for the agent.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the growth of decisions is recorded.
const FLUSH_INTERVAL: Duration = Duration::from_secs(60);

/// The way out of one sandbox. Clones share it.
#[derive(Clone)]
pub(crate) struct SandboxEgress(Arc<Shared>);

struct Shared {
    state: Arc<SandboxState>,
    engine: Arc<dyn Sandbox>,
    /// Policies are also set where no task runs.
    runtime: Handle,
    /// Runs while a policy has needed the agent's connections.
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What the connections of a sandbox share.
pub(super) struct SandboxState {
    pub gateway: Gateway,
    record: SandboxRecord,
    policy: Mutex<(NetworkPolicy, Option<String>)>,
    decisions: DecisionLog,
    pub traffic: Traffic,
    /// Whether connections of the sandbox come here.
    attached: watch::Sender<bool>,
}

impl SandboxEgress {
    /// The way out of a sandbox whose policy is `none` so far.
    pub fn new(gateway: &Gateway, engine: Arc<dyn Sandbox>, record: &SandboxRecord) -> Self {
        let state = Arc::new(SandboxState::new(gateway, record));
        Self(Arc::new(Shared { state, engine, runtime: Handle::current(), task: Mutex::default() }))
    }

    /// Sets the policy, which holds for connections from now on; `principal` is the owner. Connects to the agent if the policy needs it.
    pub fn set_policy(&self, policy: NetworkPolicy, principal: Option<&PrincipalId>) {
        let needs_proxy = policy.needs_proxy();
        *self.0.state.locked_policy() = (policy, principal.map(ToString::to_string));
        let mut task = self.0.task.lock().unwrap_or_else(PoisonError::into_inner);
        if needs_proxy && task.is_none() {
            *task = Some(self.0.runtime.spawn(run(self.0.engine.clone(), self.0.state.clone())));
        }
    }

    /// Waits until the policy is in force: the first that needs the agent's connections takes a moment.
    pub async fn settle(&self) {
        if self.0.state.policy().needs_proxy() {
            let mut attached = self.0.state.attached.subscribe();
            // Later it is in force at the latest when the agent answers again.
            let _ = tokio::time::timeout(SETTLE_TIMEOUT, attached.wait_for(|attached| *attached)).await;
        }
    }

    pub fn decisions(&self) -> DecisionList {
        self.0.state.decisions.list()
    }

    /// Ends all connections, because the sandbox ends.
    pub fn stop(&self) {
        let task = self.0.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            self.0.state.flush();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        task.into_iter().for_each(|task| task.abort());
    }
}

impl SandboxState {
    fn new(gateway: &Gateway, record: &SandboxRecord) -> Self {
        let settings = gateway.settings();
        Self {
            gateway: gateway.clone(),
            record: record.clone(),
            policy: Mutex::default(),
            decisions: DecisionLog::default(),
            traffic: Traffic::new(settings.max_bytes, settings.bytes_per_second),
            attached: watch::Sender::new(false),
        }
    }

    pub fn id(&self) -> &SandboxId {
        &self.record.id
    }

    fn locked_policy(&self) -> MutexGuard<'_, (NetworkPolicy, Option<String>)> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn policy(&self) -> NetworkPolicy {
        self.locked_policy().0.clone()
    }

    fn recorder(&self) -> Recorder<'_> {
        let principal = self.locked_policy().1.clone();
        Recorder { audit: self.gateway.0.audit.as_ref(), sandbox: self.id(), principal }
    }

    pub fn decide(&self, host: &HostName, port: u16, policy: &NetworkPolicy, refused: Option<&str>) -> DecisionIndex {
        let (host, policy) = (host.to_string(), policy.level().to_string());
        tracing::debug!(sandbox = %self.id(), host, port, policy, refused, "a sandbox connects");
        self.decisions.add(&host, port, &policy, refused, &self.recorder())
    }

    pub fn add_bytes(&self, index: DecisionIndex, bytes: (u64, u64)) {
        self.decisions.add_bytes(index, bytes);
    }

    fn flush(&self) {
        self.decisions.flush(&self.recorder());
    }
}

/// Keeps a connection to the agent, and serves the streams that it opens.
async fn run(engine: Arc<dyn Sandbox>, state: Arc<SandboxState>) {
    let mut back_off = BACK_OFF.0;
    loop {
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, attach(&*engine, &state.record)).await {
            Ok(Ok((streams, accepted))) => {
                back_off = BACK_OFF.0;
                state.attached.send_replace(true);
                serve(accepted, &state).await;
                state.attached.send_replace(false);
                drop(streams);
            }
            Ok(Err(reason)) => tracing::debug!(sandbox = %state.id(), reason, "cannot attach to the egress of a sandbox"),
            Err(_) => {}
        }
        tokio::time::sleep(back_off).await;
        back_off = (back_off * 2).min(BACK_OFF.1);
    }
}

type Accepted = tokio::sync::mpsc::Receiver<crate::streams::ByteStream>;

async fn attach(engine: &dyn Sandbox, record: &SandboxRecord) -> Result<(Streams, Accepted), String> {
    let stream = engine.connect(record).await.map_err(|error| error.to_string())?;
    let (mut reader, mut writer) = stream.into_split();
    writer.write_all(&PREAMBLE).await.map_err(|error| error.to_string())?;
    let open = ToAgent::Open { target: Target::Egress };
    write_all_vectored(&mut writer, open.encode()).await.map_err(|error| error.to_string())?;
    read_preamble(&mut reader).await.map_err(|error| error.to_string())?;
    let mut reader = FrameReader::new(reader, StreamFrame::cap);
    // From here on connections of the sandbox become streams.
    reader.next().await.map_err(|error| error.to_string())?;
    Ok(Streams::acceptor(reader, writer))
}

/// The most connections of one sandbox, with those whose streams were reset.
const MAX_CONNECTIONS: usize = 320;

/// Serves streams until the connection ends. Then those that are left end with it.
async fn serve(mut accepted: Accepted, state: &Arc<SandboxState>) {
    let mut connections = JoinSet::new();
    let mut flush = tokio::time::interval(FLUSH_INTERVAL);
    flush.tick().await;
    loop {
        tokio::select! {
            stream = accepted.recv() => match stream {
                // What a stream that was reset has begun ends later: the number of streams is no bound.
                Some(_) if connections.len() >= MAX_CONNECTIONS => {}
                Some(stream) => {
                    let state = state.clone();
                    connections.spawn(async move { proxy::serve(stream, &state).await });
                }
                None => break,
            },
            Some(_) = connections.join_next() => {}
            _ = flush.tick() => state.flush(),
        }
    }
    connections.shutdown().await;
    state.flush();
}

#[cfg(test)]
pub(super) mod testing {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::policy::{Isolation, IsolationLevel};
    use crate::sandbox::{ProcessStamp, SandboxKind};

    /// A sandbox that exists in name only.
    pub fn state(gateway: &Gateway, policy: NetworkPolicy) -> Arc<SandboxState> {
        let record = SandboxRecord {
            id: SandboxId::random(),
            kind: SandboxKind::Process,
            kernel: "python".to_owned(),
            socket: "/nowhere".into(),
            isolation: Isolation::new(IsolationLevel::Process),
            owner: ProcessStamp::own(),
            keep: false,
            agent_binary: "/nowhere".into(),
            agent: None,
            controllers: None,
            container: None,
        };
        let state = SandboxState::new(gateway, &record);
        state.change_policy(policy);
        Arc::new(state)
    }

    /// Serves the streams of an agent in memory.
    pub async fn serve_connection(agent: DuplexStream, state: Arc<SandboxState>) {
        let (reader, writer) = tokio::io::split(agent);
        let (_streams, accepted) = Streams::acceptor(FrameReader::new(reader, StreamFrame::cap), writer);
        serve(accepted, &state).await;
    }

    impl SandboxState {
        pub fn change_policy(&self, policy: NetworkPolicy) {
            self.locked_policy().0 = policy;
        }

        pub fn list_decisions(&self) -> DecisionList {
            self.decisions.list()
        }
    }
}
