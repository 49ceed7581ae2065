//! Puts the parts together and serves them until told to stop.

mod connections;
mod pace;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use thiserror::Error;
use tokio::net::TcpListener;

use crate::api::{self, Api, Guard, Large, Pace};
use crate::auth::{self, Identity, Scope, Tokens};
use crate::chat::{Chats, ModelSettings};
use crate::config::Paths;
use crate::manager::{Keeper, KeeperError, KeeperSettings};
use crate::memory;
use crate::page;
use crate::store::{Store, StoreError};
use crate::telemetry::{self, traces};

/// Between two looks at the stored tokens: another process may have made or revoked one.
const RELOAD_TOKENS: Duration = Duration::from_secs(2);

/// How long a stopping server merges the journal's log into its file.
const MERGE: Duration = Duration::from_secs(3);

/// The name of a token that was given to the server when it was started.
const GIVEN: &str = "given with --token";

/// What is to be served, and to whom.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The token that is valid beside the stored ones. `None`: one is made at the first start.
    pub token: Option<String>,
    /// Names of this server beside those of loopback, if it listens there.
    pub hosts: Vec<String>,
    /// Origins of pages that may use it.
    pub origins: Vec<String>,
    /// Requests a second that are taken of each principal; 0: as many as come.
    pub rate_limit: u32,
    /// Whether all sessions end with it.
    pub end_sessions: bool,
    /// The model that people can talk to.
    pub model: Option<ModelSettings>,
    /// How sessions are kept.
    pub keeper: KeeperSettings,
}

/// Why there is no server.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another one uses the data folder.
    #[error("another cellkeep serves the data folder {folder}; stop it, or give this one another with --data")]
    Running {
        /// The folder.
        folder: String,
    },
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}; give another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Something on this machine failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// The model's settings make no sense.
    #[error("{0}")]
    Model(String),
    /// The journal failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What an earlier server has left cannot be taken up.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

/// What a person needs to know once the server is up.
#[derive(Clone, Debug)]
pub struct Welcome {
    /// Where it listens.
    pub address: SocketAddr,
    /// A token that was made now. It is shown this once.
    pub new_token: Option<String>,
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    move |source| ServerError::Io { doing, source }
}

/// Serves until `stop` is done. Sessions live on, and the next server takes them up.
///
/// # Errors
/// [`ServerError`] when it cannot start.
pub async fn serve(
    paths: &Paths,
    settings: ServerSettings,
    welcome: impl FnOnce(Welcome),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServerError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(paths.data())
        .map_err(io_error("cannot make the data folder"))?;
    let _lock = lock(paths)?;
    memory::keep_little();
    telemetry::install();
    if let Err(error) = traces::install() {
        tracing::warn!(error, "no traces are kept");
    }
    let store = Store::open(&paths.journal())?;
    // Before a token is made, which is shown only when it is certain that this server serves.
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|source| ServerError::Listen { address: settings.listen, source })?;
    let address = listener.local_addr().map_err(io_error("cannot tell where it listens"))?;
    let keeper = Keeper::new(paths, store.clone(), settings.keeper);
    let chats = Chats::new(keeper.clone(), settings.model).map_err(ServerError::Model)?;
    keeper.recover().await?;
    chats.recover().await?;
    let tokens = Arc::new(Tokens::default());
    let new_token = first_token(&store, &tokens, settings.token.as_deref()).await?;
    tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.look_after().await }
    });
    tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.fill_pool().await }
    });
    tokio::spawn(reload(tokens.clone(), store.clone()));
    let guard = Guard { loopback: address.ip().is_loopback(), hosts: settings.hosts, origins: settings.origins };
    let router = api::router(Api {
        keeper: keeper.clone(),
        chats,
        tokens,
        guard: Arc::new(guard),
        pace: Arc::new(Pace::new(settings.rate_limit)),
        large: Arc::new(Large::new(paths.data().to_owned())),
    })
    .merge(page::router());
    welcome(Welcome { address, new_token });
    connections::serve(listener, router, stop).await;
    keeper.drain_pool().await;
    if settings.end_sessions {
        keeper.delete_all().await;
    }
    traces::end().await;
    // What is still said by sessions that live on goes into the log anew, and the next server takes it up.
    if let Err(error) = store.merge_log(MERGE).await {
        tracing::warn!(%error, "the journal's log is left to the next server");
    }
    Ok(())
}

/// One server for each data folder: two would both drive its sessions.
fn lock(paths: &Paths) -> Result<fs::File, ServerError> {
    let file = fs::File::create(paths.data().join("serve.lock")).map_err(io_error("cannot make the lock file"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServerError::Running { folder: paths.data().display().to_string() }),
        Err(error) => Err(io_error("cannot lock the data folder")(error.into())),
    }
}

/// Loads the tokens; makes the first, if there is none and none was given.
async fn first_token(store: &Store, tokens: &Tokens, given: Option<&str>) -> Result<Option<String>, StoreError> {
    let admin = Identity { principal: "admin".to_owned(), scope: Scope::Admin, only: None };
    if let Some(secret) = given {
        // One that was given before is not valid any more.
        for row in store.tokens().await?.into_iter().filter(|row| row.name == GIVEN) {
            store.delete_token(&row.id).await?;
        }
        auth::store_token(store, secret, GIVEN, &admin, None).await?;
    }
    if tokens.load(store).await? > 0 {
        return Ok(None);
    }
    let secret = auth::new_secret();
    auth::store_token(store, &secret, "made at the first start", &admin, None).await?;
    tokens.load(store).await?;
    Ok(Some(secret))
}

async fn reload(tokens: Arc<Tokens>, store: Store) {
    loop {
        tokio::time::sleep(RELOAD_TOKENS).await;
        if let Err(error) = tokens.load(&store).await {
            tracing::error!(%error, "cannot read the tokens");
        }
    }
}
