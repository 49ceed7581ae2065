//! The way out of one sandbox: its policy, and the connection to its agent while the policy needs one.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::Gateway;
use super::client::{Client, LargePieces};
use super::decisions::{DecisionIndex, DecisionList, DecisionLog, Recorder};
use super::listener::{Listener, Slot};
use super::proxy;
use super::secrets::SandboxSecrets;
use super::shares::{Place, Share};
use super::traffic::Traffic;
use crate::agent_protocol::{
    EGRESS_PORT, FrameReader, PREAMBLE, StreamFrame, Target, ToAgent, read_preamble, write_all_vectored,
};
use crate::descriptors;
use crate::ids::{PrincipalId, SandboxId};
use crate::policy::{HostName, HostRule, NetworkPolicy};
use crate::sandbox::{Sandbox, SandboxRecord};
use crate::streams::{ByteStream, Streams};

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
    listener: Slot,
    large_pieces: LargePieces,
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
            self.0.state.listener.interrupt();
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
            traffic: Traffic::new(settings.max_bytes, settings.bytes_per_second, record.folder().join("transferred")),
            attached: watch::Sender::new(false),
            listener: Slot::default(),
            large_pieces: LargePieces::default(),
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
    tokio::join!(stay_attached(&*engine, &state), recording, state.traffic.store_growth());
}

async fn stay_attached(engine: &dyn Sandbox, state: &Arc<SandboxState>) {
    let mut back_off = BACK_OFF.0;
    loop {
        let began = Instant::now();
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, attach(engine, state)).await {
            Ok(Ok(incoming)) => {
                state.attached.send_replace(true);
                serve(incoming, state).await;
                state.attached.send_replace(false);
            }
            Ok(Err(reason)) => tracing::debug!(sandbox = %state.id(), reason, "cannot attach to the egress of a sandbox"),
            Err(_) => {}
        }
        // An agent that takes connections only to close them is asked as seldom as one that takes none.
        back_off = if began.elapsed() > BACK_OFF.1 { BACK_OFF.0 } else { (back_off * 2).min(BACK_OFF.1) };
        tokio::time::sleep(back_off).await;
    }
}

/// The connections of a sandbox, as they come. Dropping it ends the connection to the agent.
enum Incoming {
    /// Accepted here.
    Sockets { accepted: mpsc::Receiver<(Client, Place)>, _task: JoinSet<()> },
    /// Accepted by the agent.
    Streams { accepted: mpsc::Receiver<ByteStream>, _streams: Streams },
}

impl Incoming {
    /// The next connection, and its place if it has one already; `None` when no more come. Nothing is lost if it is not waited for.
    async fn next(&mut self) -> Option<(Client, Option<Place>)> {
        match self {
            Self::Sockets { accepted, .. } => accepted.recv().await.map(|(client, place)| (client, Some(place))),
            Self::Streams { accepted, .. } => accepted.recv().await.map(|stream| (Client::Stream(stream), None)),
        }
    }
}

/// Takes over the proxy port, or the streams of its connections where the agent cannot hand over a socket.
async fn attach(engine: &dyn Sandbox, state: &Arc<SandboxState>) -> Result<Incoming, String> {
    match take_listener(engine, state).await {
        Ok(incoming) => return Ok(incoming),
        Err(reason) => tracing::debug!(sandbox = %state.id(), reason, "the proxy port of a sandbox is not handed over"),
    }
    let stream = engine.connect(&state.record).await.map_err(|error| error.to_string())?;
    let (reader, writer) = open(stream, Target::Egress).await?;
    let mut reader = FrameReader::new(reader, StreamFrame::cap);
    // From here on connections of the sandbox become streams.
    reader.next().await.map_err(|error| error.to_string())?;
    let (streams, accepted) = Streams::acceptor(reader, writer);
    Ok(Incoming::Streams { accepted, _streams: streams })
}

async fn take_listener(engine: &dyn Sandbox, state: &Arc<SandboxState>) -> Result<Incoming, String> {
    let stream = engine.connect(&state.record).await.map_err(|error| error.to_string())?;
    let _ = descriptors::permit_descriptors(&stream, true);
    let (reader, writer) = open(stream, Target::ProxyListener).await?;
    let connection = reader.reunite(writer).map_err(|error| error.to_string())?;
    let address = SocketAddr::from(([127, 0, 0, 1], EGRESS_PORT));
    accept_from(connection, address, state).await.map_err(|error| error.to_string())
}

/// Accepts the connections to the socket that comes on this connection, as long as it is open.
async fn accept_from(connection: UnixStream, address: SocketAddr, state: &Arc<SandboxState>) -> io::Result<Incoming> {
    let (listener, connection) = state.listener.receive(connection, address).await?;
    let (sender, accepted) = mpsc::channel(1);
    let (state, mut task) = (state.clone(), JoinSet::new());
    task.spawn(async move {
        let ended = tokio::select! {
            result = accept(&listener, &state, sender) => result,
            // It sends nothing more, and closes the connection when it or another manager accepts.
            ended = connection.ready(Interest::READABLE) => ended.map(drop),
        };
        tracing::debug!(sandbox = %state.id(), ?ended, "the proxy port of a sandbox is no longer ours");
    });
    Ok(Incoming::Sockets { accepted, _task: task })
}

/// Accepts connections for which there are places.
async fn accept(listener: &Listener, state: &SandboxState, accepted: mpsc::Sender<(Client, Place)>) -> io::Result<()> {
    loop {
        let Ok(room) = accepted.reserve().await else { return Ok(()) };
        listener.ready().await?;
        let Some(place) = state.current().share.connections.wait().await else { return Ok(()) };
        if let Some(socket) = listener.accept().await? {
            room.send((Client::Socket { socket, pieces: state.large_pieces.clone() }, place));
        }
    }
}

/// Attaches a connection to the agent to a target.
async fn open(stream: UnixStream, target: Target) -> Result<(OwnedReadHalf, OwnedWriteHalf), String> {
    let (mut reader, mut writer) = stream.into_split();
    writer.write_all(&PREAMBLE).await.map_err(|error| error.to_string())?;
    write_all_vectored(&mut writer, ToAgent::Open { target }.encode()).await.map_err(|error| error.to_string())?;
    read_preamble(&mut reader).await.map_err(|error| error.to_string())?;
    Ok((reader, writer))
}

/// The most connections of one sandbox. Its agent opens as many streams, of which some end later than it knows.
const MAX_SOCKETS: usize = 128;
const MAX_STREAMS: usize = 320;
/// How long a stream waits for others to end, when there are too many connections.
const PLACE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves connections until no more come. Then those that are left end.
async fn serve(mut incoming: Incoming, state: &Arc<SandboxState>) {
    let mut connections = JoinSet::new();
    let most = if let Incoming::Sockets { .. } = incoming { MAX_SOCKETS } else { usize::MAX };
    loop {
        tokio::select! {
            next = incoming.next(), if connections.len() < most => match next {
                // A connection ends a moment after its stream: the number of streams is no bound.
                Some(_) if connections.len() >= MAX_STREAMS => {}
                Some((client, place)) => {
                    let state = state.clone();
                    connections.spawn(async move { serve_one(client, place, &state).await });
                }
                None => break,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn serve_one(client: Client, place: Option<Place>, state: &SandboxState) {
    let place = match place {
        Some(place) => Some(place),
        None => state.current().share.connections.acquire(PLACE_TIMEOUT).await,
    };
    match place {
        Some(_) => proxy::serve(client, state).await,
        None => proxy::refuse_for_load(&client).await,
    }
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
        let (streams, accepted) = Streams::acceptor(FrameReader::new(reader, StreamFrame::cap), writer);
        serve(Incoming::Streams { accepted, _streams: streams }, &state).await;
    }

    /// Serves connections to a socket, which the other end of `connection` sends.
    pub async fn serve_listener(connection: UnixStream, address: SocketAddr, state: Arc<SandboxState>) {
        let incoming = accept_from(connection, address, &state).await.unwrap();
        serve(incoming, &state).await;
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
