//! Assembles the parts of the server, and serves until it is stopped.

mod connections;
mod counted_input;
mod descriptors;
mod slow_reader;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, future};
use rustix::fs::FlockOperation;
use thiserror::Error;
use tokio::net::TcpListener;

use self::descriptors::Connections;
use crate::allocator;
use crate::api::{self, Api, Guard, InputBudget, RateLimits, ResponseSpool};
use crate::audit::AuditRecord;
use crate::auth::{self, Identity, Scope, Tokens};
use crate::chat::{Chats, ModelSettings};
use crate::config::Paths;
use crate::manager::{Reaper, Retention, ServiceError, ServiceSettings, SessionService};
use crate::page;
use crate::private_files;
use crate::store::{Store, StoreError};
use crate::telemetry::{self, traces};

/// The interval of reloading tokens, because another process may have created or revoked some.
const TOKEN_RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// How long a taken lock of the data folder is tried again, and the pause between two tries.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// How long a stopping server waits for readers when it merges the write-ahead log into the database file.
const MERGE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a stopping server waits for the ends of one-shot executions.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// The ports of other protocols have this part of the connections together, if there are any.
const PROTOCOL_SHARE: usize = 8;

/// The name of the token from the command line or the environment.
const CONFIGURED_TOKEN_NAME: &str = "given with --token";

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    pub listen: SocketAddr,
    /// Addresses of their own for the protocols of other sandboxes. On loopback they need no token.
    pub protocol_listen: Vec<SocketAddr>,
    /// A token that is valid in addition to the stored ones. With `None`, the first start creates one.
    pub token: Option<String>,
    /// Host names that are accepted in addition to those of loopback, if the server listens there.
    pub hosts: Vec<String>,
    /// Origins of pages that may use the API.
    pub origins: Vec<String>,
    /// Whether the metrics need no token.
    pub open_metrics: bool,
    /// Requests per second of each principal. 0 means no limit.
    pub rate_limit: u32,
    /// Whether all sessions end when the server stops.
    pub end_sessions: bool,
    /// The chat model.
    pub model: Option<ModelSettings>,
    pub service: ServiceSettings,
}

/// Why the server cannot start.
#[derive(Debug, Error)]
pub enum ServerError {
    #[error("another cellkeep uses the data folder {folder}; stop it, or choose another folder with --data")]
    DataFolderInUse { folder: String },
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot listen on {address}: {source}; choose another address with --protocol-listen")]
    ListenForProtocols { address: SocketAddr, source: io::Error },
    #[error("{operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
    /// The settings of the model are invalid.
    #[error("{0}")]
    Model(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Recovery failed.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// What a person must know once the server is ready.
#[derive(Clone, Debug)]
pub struct Welcome {
    pub address: SocketAddr,
    /// The addresses for the protocols of other sandboxes, and whether they need no token.
    pub protocols: Vec<(SocketAddr, bool)>,
    /// The token that the first start has created. It is shown only once.
    pub new_token: Option<String>,
}

fn io_error(operation: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    move |source| ServerError::Io { operation, source }
}

/// Serves until `stop` completes. Sessions live on, and the next server continues them.
pub async fn serve(
    paths: &Paths,
    settings: ServerSettings,
    welcome: impl FnOnce(Welcome),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServerError> {
    private_files::by_default();
    private_files::create_data_folder(paths.data()).map_err(io_error("cannot create the data folder"))?;
    let _lock = lock(paths).await?;
    allocator::limit_free_memory();
    telemetry::install();
    if let Err(error) = traces::install() {
        tracing::warn!(error, "traces are disabled");
    }
    let store = Store::open_with(&paths.journal(), settings.service.durability)?;
    // Listening comes before the creation of the first token, because the token is shown only if the server starts.
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|source| ServerError::Listen { address: settings.listen, source })?;
    let mut protocol_listeners = Vec::new();
    for address in settings.protocol_listen {
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServerError::ListenForProtocols { address, source })?;
        protocol_listeners.push((listener, address.ip().is_loopback()));
    }
    let address = listener.local_addr().map_err(io_error("cannot read the address of the listener"))?;
    let mut service = settings.service;
    let asked = service.egress.max_connections;
    let connections = Connections::by_limit(asked);
    if connections.of_sandboxes < asked {
        let most = connections.of_sandboxes;
        tracing::warn!(asked, most, "too few file descriptors for the connections of sandboxes (--egress-max-connections)");
    }
    service.egress.max_connections = connections.of_sandboxes;
    let sessions = SessionService::new(paths, store.clone(), service);
    let chats = Chats::new(sessions.clone(), settings.model).map_err(ServerError::Model)?;
    sessions.recover().await?;
    chats.recover().await?;
    let tokens = Arc::new(Tokens::default());
    let new_token = first_token(&store, &tokens, settings.token.as_deref()).await?;
    spawn_background_tasks(&sessions, &tokens, &store);
    let guard = Guard {
        loopback: address.ip().is_loopback(),
        hosts: settings.hosts,
        origins: settings.origins,
        open_metrics: settings.open_metrics,
    };
    let api = Api {
        reader: sessions.reader().clone(),
        sessions: sessions.clone(),
        chats,
        tokens,
        guard: Arc::new(guard),
        rate_limits: Arc::new(RateLimits::new(settings.rate_limit)),
        input: Arc::<InputBudget>::default(),
        audit: sessions.audit().clone(),
        audit_limit: api::AuditLimit::default(),
        spool: Arc::new(ResponseSpool::new(paths.data().to_owned())),
        piston_versions: Arc::default(),
    };
    let router = api::router(api.clone()).merge(page::router());
    let audit = sessions.audit().clone();
    audit.record(&started(&sessions));
    let protocols = protocol_listeners.iter().map(|(listener, is_open)| Ok((listener.local_addr()?, *is_open)));
    let protocols = protocols.collect::<io::Result<_>>().map_err(io_error("cannot read the address of a listener"))?;
    welcome(Welcome { address, protocols, new_token });
    let stop = stop.shared();
    let of_protocols = if protocol_listeners.is_empty() { 0 } else { connections.of_clients / PROTOCOL_SHARE };
    let of_api = connections.of_clients - of_protocols;
    let of_port = (of_protocols / protocol_listeners.len().max(1)).max(1);
    let protocols = protocol_listeners.into_iter().map(|(listener, is_open)| {
        connections::serve(of_port, listener, api::protocol_router(api.clone(), is_open), stop.clone())
    });
    let protocols = future::join_all(protocols);
    future::join(connections::serve(of_api, listener, router, stop.clone()), protocols).await;
    if tokio::time::timeout(FINISH_TIMEOUT, sessions.finish_one_shots()).await.is_err() {
        tracing::warn!("some one-shot executions have not ended; the next server ends them");
    }
    sessions.drain_pool().await;
    if settings.end_sessions {
        sessions.delete_all().await;
    }
    audit.record(&AuditRecord { action: "server.stopped".to_owned(), result: "ok".to_owned(), ..AuditRecord::default() });
    traces::shut_down().await;
    // Sessions that live on may still write to a new log, which the next server reads.
    if let Err(error) = store.merge_log(MERGE_TIMEOUT).await {
        tracing::warn!(%error, "cannot merge the journal's log; the next server will");
    }
    Ok(())
}

/// The record of a start, with the policy of the operator.
fn started(sessions: &SessionService) -> AuditRecord {
    let ceilings = sessions.ceilings();
    let details = serde_json::json!({
        "limits": ceilings.limits, "network": ceilings.network, "max_sessions": sessions.max_sessions(),
        "max_timeout_seconds": ceilings.timeout_seconds,
    });
    let (action, result) = ("server.started".to_owned(), "ok".to_owned());
    AuditRecord { action, result, details: Some(details), ..AuditRecord::default() }
}

/// Starts the tasks that run for ever: lifetimes, retention, the warm pool, reloading of tokens, upkeep of the metrics.
fn spawn_background_tasks(sessions: &SessionService, tokens: &Arc<Tokens>, store: &Store) {
    let (reaper, retention, pool) = (Reaper::new(sessions.clone()), Retention::new(sessions.clone()), sessions.clone());
    tokio::spawn(async move { reaper.run().await });
    tokio::spawn(async move { retention.run().await });
    tokio::spawn(async move { pool.fill_pool().await });
    tokio::spawn(reload_tokens(tokens.clone(), store.clone()));
    tokio::spawn(telemetry::maintain());
}

/// Locks the data folder: two servers would drive the same sessions.
///
/// The lock belongs to the open file. A server that is killed while it starts a program leaves a copy of it in the child until that
/// executes the program, which takes milliseconds; on a loaded machine, longer. So a lock that is taken is tried again for a while.
async fn lock(paths: &Paths) -> Result<fs::File, ServerError> {
    let path = paths.data().join("serve.lock");
    let file = private_files::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(io_error("cannot create the lock file"))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(LOCK_RETRY).await,
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ServerError::DataFolderInUse { folder: paths.data().display().to_string() });
            }
            Err(error) => return Err(io_error("cannot lock the data folder")(error.into())),
        }
    }
}

/// Loads the tokens. Creates and returns the first one, if none is stored and none is configured.
async fn first_token(store: &Store, tokens: &Tokens, configured: Option<&str>) -> Result<Option<String>, StoreError> {
    let admin = Identity { principal: "admin".into(), scope: Scope::Admin, only: None };
    if let Some(secret) = configured {
        // The configured token of an earlier start is revoked.
        for row in store.tokens().await?.into_iter().filter(|row| row.name == CONFIGURED_TOKEN_NAME) {
            store.delete_token(&row.id).await?;
        }
        auth::store_token(store, secret, CONFIGURED_TOKEN_NAME, &admin, None).await?;
    }
    if tokens.load(store).await? > 0 {
        return Ok(None);
    }
    let secret = auth::new_secret();
    auth::store_token(store, &secret, "created at the first start", &admin, None).await?;
    tokens.load(store).await?;
    Ok(Some(secret))
}

async fn reload_tokens(tokens: Arc<Tokens>, store: Store) {
    loop {
        tokio::time::sleep(TOKEN_RELOAD_INTERVAL).await;
        if let Err(error) = tokens.load(&store).await {
            tracing::error!(%error, "cannot reload the tokens");
        }
    }
}
