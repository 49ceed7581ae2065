//! The agent's start: it listens, and the first connection of the manager delivers its configuration.

use std::io;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use tokio::net::UnixListener;

use super::connection;
use crate::agent_protocol::{AgentConfig, Listen, receive_config};

/// How long the agent waits for its configuration. If the manager died meanwhile, it never comes, and the agent must exit.
const CONFIG_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits for the configuration. The socket stays open, since the manager connects again afterwards.
///
/// # Errors
/// When the socket cannot be opened, or no configuration arrives in time.
pub(super) async fn receive_configuration(listen: &Listen) -> io::Result<AgentConfig> {
    let listener = connection::open_listener(listen)?;
    let received = tokio::time::timeout(CONFIG_TIMEOUT, receive(&listener));
    let mut config = received.await.map_err(|_| io::Error::other("timed out waiting for the configuration"))??;
    // From here on the socket is identified by its descriptor, however it was opened.
    config.listen = Listen::Fd(listener.into_std()?.into_raw_fd());
    Ok(config)
}

async fn receive(listener: &UnixListener) -> io::Result<AgentConfig> {
    loop {
        let (stream, _) = listener.accept().await?;
        if connection::is_manager(&stream) {
            return receive_config(stream)
                .await
                .map_err(|error| io::Error::other(format!("cannot read the configuration: {error}")));
        }
    }
}
