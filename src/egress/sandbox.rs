//! The way out of one sandbox: its policy, and the connection to its agent while the policy needs one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::Gateway;
use super::decisions::{DecisionIndex, DecisionList, DecisionLog, Recorder};
use super::proxy;
use super::secrets::SandboxSecrets;
use super::shares::Share;
use super::traffic::Traffic;
use crate::agent_protocol::{FrameReader, PREAMBLE, StreamFrame, Target, ToAgent, read_preamble, write_all_vectored};
use crate::ids::{PrincipalId, SandboxId};
use crate::policy::{HostName, HostRule, NetworkPolicy};
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
    current: watch::Sender<CurrentPolicy>,
    decisions: DecisionLog,
    pub traffic: Traffic,
    pub secrets: Option<Arc<SandboxSecrets>>,
    /// Whether connections of the sandbox come here.
    attached: watch::Sender<bool>,
}

/// The policy in force, and whose it is.
#[derive(Clone)]
pub(super) struct CurrentPolicy {
    pub policy: NetworkPolicy,
    principal: Option<String>,
    /// What all sandboxes of the owner may use together.
    pub share: Arc<Share>,
}

/// What a connection is for.
pub(super) struct Asked<'a> {
    pub host: &'a HostName,
    pub port: u16,
    pub is_tunnel: bool,
}

impl Asked<'_> {
    /// Whether a policy allows it. Port 80 is for plain requests, unless the policy names it.
    pub fn is_allowed(&self, policy: &NetworkPolicy, packages: &[HostRule]) -> bool {
        let is_plain_port = self.port == 80 && self.is_tunnel;
        policy.allows(self.host, self.port, packages)
            && (!is_plain_port || policy.allows_any_bytes(self.host, self.port, packages))
    }
}

impl SandboxEgress {
    /// The way out of a sandbox whose policy is `none` so far.
    pub fn new(
        gateway: &Gateway,
        engine: Arc<dyn Sandbox>,
        record: &SandboxRecord,
        secrets: Option<Arc<SandboxSecrets>>,
    ) -> Self {
        let state = Arc::new(SandboxState::new(gateway, record, secrets));
        Self(Arc::new(Shared { state, engine, runtime: Handle::current(), task: Mutex::default() }))
    }

    /// Sets the policy; `principal` is the owner. Connections that it does not allow end. Connects to the agent if the policy needs it.
    pub fn set_policy(&self, policy: NetworkPolicy, principal: Option<&PrincipalId>) {
        let needs_proxy = policy.needs_proxy();
        self.0.state.set_current(policy, principal.map(ToString::to_string));
        let mut task = self.0.task.lock().unwrap_or_else(PoisonError::into_inner);
        if needs_proxy && task.is_none() {
            *task = Some(self.0.runtime.spawn(run(self.0.engine.clone(), self.0.state.clone())));
        }
    }

    /// Waits until the policy is in force: the first that needs the agent's connections takes a moment.
    pub async fn settle(&self) {
        if self.0.state.current().policy.needs_proxy() {
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
            self.0.state.flush_at_end();
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
    fn new(gateway: &Gateway, record: &SandboxRecord, secrets: Option<Arc<SandboxSecrets>>) -> Self {
        let settings = gateway.settings();
        Self {
            gateway: gateway.clone(),
            record: record.clone(),
            current: watch::Sender::new(CurrentPolicy {
                policy: NetworkPolicy::default(),
                principal: None,
                share: gateway.0.shares.of(""),
            }),
            decisions: DecisionLog::default(),
            secrets,
            traffic: Traffic::new(settings.max_bytes, settings.bytes_per_second),
            attached: watch::Sender::new(false),
        }
    }

    pub fn id(&self) -> &SandboxId {
        &self.record.id
    }

    fn set_current(&self, policy: NetworkPolicy, principal: Option<String>) {
        let share = self.gateway.0.shares.of(principal.as_deref().unwrap_or_default());
        self.current.send_replace(CurrentPolicy { policy, principal, share });
    }

    pub fn current(&self) -> CurrentPolicy {
        self.current.borrow().clone()
    }

    /// Whether the policy lets a connection carry any bytes.
    pub fn allows_any_bytes(&self, asked: &Asked<'_>, policy: &NetworkPolicy) -> bool {
        policy.allows_any_bytes(asked.host, asked.port, &self.gateway.0.packages)
    }

    /// Waits until a policy is in force that does not allow this.
    pub async fn until_refused(&self, asked: &Asked<'_>) {
        let is_refused = |current: &CurrentPolicy| !asked.is_allowed(&current.policy, &self.gateway.0.packages);
        // The sender lives as long as `self`.
        let _ = self.current.subscribe().wait_for(is_refused).await;
    }

    fn with_recorder<T>(&self, record: impl FnOnce(&Recorder<'_>) -> T) -> T {
        let CurrentPolicy { principal, share, .. } = self.current();
        record(&Recorder { audit: self.gateway.0.audit.as_ref(), sandbox: self.id(), principal, share: &share })
    }

    pub fn decide(&self, asked: &Asked<'_>, policy: &NetworkPolicy, refused: Option<&str>) -> DecisionIndex {
        let (host, port, policy) = (asked.host.to_string(), asked.port, policy.level().to_string());
        tracing::debug!(sandbox = %self.id(), host, port, policy, refused, "a sandbox connects");
        self.with_recorder(|recorder| self.decisions.add(&host, port, &policy, refused, recorder))
    }

    pub fn add_bytes(&self, index: DecisionIndex, bytes: (u64, u64)) {
        self.decisions.add_bytes(index, bytes);
    }

    fn flush(&self) {
        self.with_recorder(|recorder| self.decisions.flush(recorder));
    }

    fn flush_at_end(&self) {
        self.with_recorder(|recorder| self.decisions.flush_at_end(recorder));
    }
}

/// Keeps a connection to the agent and serves the streams that it opens; records how the decisions grow.
async fn run(engine: Arc<dyn Sandbox>, state: Arc<SandboxState>) {
    let recording = async {
        let mut flush = tokio::time::interval(FLUSH_INTERVAL);
        loop {
            flush.tick().await;
            state.flush();
        }
    };
    tokio::join!(stay_attached(&*engine, &state), recording);
}

async fn stay_attached(engine: &dyn Sandbox, state: &Arc<SandboxState>) {
    let mut back_off = BACK_OFF.0;
    loop {
        let began = Instant::now();
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, attach(engine, &state.record)).await {
            Ok(Ok((streams, accepted))) => {
                state.attached.send_replace(true);
                serve(accepted, state).await;
                state.attached.send_replace(false);
                drop(streams);
            }
            Ok(Err(reason)) => tracing::debug!(sandbox = %state.id(), reason, "cannot attach to the egress of a sandbox"),
            Err(_) => {}
        }
        // An agent that takes connections only to close them is asked as seldom as one that takes none.
        back_off = if began.elapsed() > BACK_OFF.1 { BACK_OFF.0 } else { (back_off * 2).min(BACK_OFF.1) };
        tokio::time::sleep(back_off).await;
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

/// The most connections of one sandbox.
const MAX_CONNECTIONS: usize = 320;

/// Serves streams until the connection ends. Then those that are left end with it.
async fn serve(mut accepted: Accepted, state: &Arc<SandboxState>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = accepted.recv() => match stream {
                // A connection ends a moment after its stream: the number of streams is no bound.
                Some(_) if connections.len() >= MAX_CONNECTIONS => {}
                Some(stream) => {
                    let state = state.clone();
                    connections.spawn(async move { proxy::serve(stream, &state).await });
                }
                None => break,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

#[cfg(test)]
pub(super) mod testing {
    use tokio::io::DuplexStream;

    use super::*;

    /// A sandbox that exists in name only.
    pub fn state(gateway: &Gateway, policy: NetworkPolicy) -> Arc<SandboxState> {
        state_with(gateway, policy, None)
    }

    pub fn state_with(gateway: &Gateway, policy: NetworkPolicy, secrets: Option<Arc<SandboxSecrets>>) -> Arc<SandboxState> {
        let state = SandboxState::new(gateway, &SandboxRecord::in_name_only(), secrets);
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
            self.set_current(policy, Some("ann".to_owned()));
        }

        pub fn change_owner(&self, owner: &str) {
            self.set_current(self.current().policy, Some(owner.to_owned()));
        }

        pub fn list_decisions(&self) -> DecisionList {
            self.decisions.list()
        }
    }
}
