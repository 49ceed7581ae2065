//! The agent's first minute: it listens, and the first connection from outside brings its configuration.

use std::io;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use tokio::net::UnixListener;

use super::serve;
use crate::agent_protocol::{AgentConfig, Listen, receive_config};

/// How long the manager may take. One that died meanwhile never comes, and an agent without a configuration is of no use.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for the configuration. The socket stays open all the while, for the manager's next connection.
///
/// # Errors
/// When the socket cannot be opened, or no configuration comes.
pub(super) async fn configuration(listen: &Listen) -> io::Result<AgentConfig> {
    let listener = serve::open_listener(listen)?;
    let received = tokio::time::timeout(DEADLINE, receive(&listener));
    let mut config = received.await.map_err(|_| io::Error::other("no manager has brought a configuration"))??;
    // From here on the socket is known by its number, however it was opened.
    config.listen = Listen::Fd(listener.into_std()?.into_raw_fd());
    Ok(config)
}

async fn receive(listener: &UnixListener) -> io::Result<AgentConfig> {
    loop {
        let (stream, _) = listener.accept().await?;
        if serve::comes_from_outside(&stream) {
            return receive_config(stream)
                .await
                .map_err(|error| io::Error::other(format!("cannot read the configuration: {error}")));
        }
    }
}
