//! The network of containers with an open network: a bridge of our own, on which containers do not see each other.

use std::collections::HashMap;

use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::InspectNetworkOptions;
use tokio::sync::Mutex;

use super::engine::{Client, call};
use crate::sandbox::SandboxError;

/// The network's name.
pub(super) const NAME: &str = "cellkeep";

/// Creates the network if it does not exist. One at a time: engines allow two networks of one name.
///
/// # Errors
/// [`SandboxError::Engine`] if the engine refuses.
pub(super) async fn ensure_created(client: &Client) -> Result<(), SandboxError> {
    static CREATING: Mutex<()> = Mutex::const_new(());
    let _one = CREATING.lock().await;
    match call(client.docker.inspect_network(NAME, None::<InspectNetworkOptions>)).await {
        Ok(_) => return Ok(()),
        Err(error) if error.status == Some(404) => {}
        Err(error) => return Err(error.when("cannot inspect the network")),
    }
    let options = [("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned())];
    let request = NetworkCreateRequest {
        name: NAME.to_owned(),
        driver: Some("bridge".to_owned()),
        options: Some(HashMap::from(options)),
        ..NetworkCreateRequest::default()
    };
    call(client.docker.create_network(request)).await.map(drop).map_err(|error| error.when("cannot create the network"))
}
