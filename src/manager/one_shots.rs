//! Sessions and sandboxes for one request (`POST /v1/execute`, Piston's). They wait for a place rather than being refused, and are deleted afterwards,
//! unless their client may ask again with a key.

use std::time::{Duration, Instant};

use futures_util::future;
use tokio::sync::OwnedMutexGuard;

use super::service::SessionService;
use super::session_config::{NewSession, ServiceError};
use crate::ids::{Access, PrincipalId, SandboxId, SessionId};

/// How long a request waits for a place, and how long it waits at most before it looks again: a place that is free may be of
/// no use to the first that waits, and of use to the next.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

const NOT_ENDED: &str = "cannot end a one-shot execution; it ends at its time limit";

impl SessionService {
    /// As [`Self::create`], once there is a place for the session: many requests at once wait for each other.
    pub async fn create_one_shot(&self, principal: &PrincipalId, new: NewSession) -> Result<SessionId, ServiceError> {
        self.once_there_is_a_place(|| self.create(principal, new.clone())).await
    }

    /// As [`Self::create_sandbox`], once there is a place for it.
    pub async fn create_one_shot_sandbox(
        &self,
        principal: &PrincipalId,
        new: NewSession,
    ) -> Result<SandboxId, ServiceError> {
        self.once_there_is_a_place(|| self.create_sandbox(principal, new.clone())).await
    }

    /// Waits until no other request begins the execution of this session, and keeps others waiting.
    pub async fn hold_beginning(&self, id: &SessionId) -> OwnedMutexGuard<()> {
        self.0.beginnings.hold(id.clone()).await
    }

    async fn once_there_is_a_place<T, F>(&self, create: impl Fn() -> F) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match create().await {
                Err(error) if error.is_lack_of_place() && Instant::now() < deadline => {
                    let _ = tokio::time::timeout(LOOK_AGAIN, self.place_is_free()).await;
                }
                result => return result,
            }
        }
    }

    async fn place_is_free(&self) {
        let (session, start) = (self.0.admission.released(), self.pending_released());
        future::select(std::pin::pin!(session), std::pin::pin!(start)).await;
    }

    /// Deletes the session of an execution whose client has its report, in the background. With `keeps_results`, the session ends
    /// and can be read like others that have ended.
    pub fn finish_one_shot(&self, id: SessionId, access: Access, keeps_results: bool) {
        let service = self.clone();
        self.0.finishing.spawn(async move {
            let finished = match service.handle(&id, &access) {
                Ok(handle) if keeps_results => handle.end("its only execution has ended").await.map_err(ServiceError::from),
                Ok(_) => service.delete(&id, &access).await,
                Err(error) => Err(error),
            };
            match finished {
                // Its client may have deleted it meanwhile.
                Ok(()) | Err(ServiceError::SessionNotFound { .. }) => {}
                Err(error) => tracing::warn!(session = %id, %error, "{NOT_ENDED}"),
            }
        });
    }

    /// Deletes the sandbox of one request, in the background.
    pub fn finish_one_shot_sandbox(&self, id: SandboxId, access: Access) {
        let service = self.clone();
        self.0.finishing.spawn(async move {
            if let Err(error) = service.delete_sandbox(&id, &access).await {
                tracing::warn!(sandbox = %id, %error, "{NOT_ENDED}");
            }
        });
    }

    /// Waits until all sessions and sandboxes of one request are gone. No request may come any more.
    pub async fn finish_one_shots(&self) {
        self.0.finishing.close();
        self.0.finishing.wait().await;
    }
}
