//! Sessions in a sandbox that was not created for them.

use std::sync::Arc;

use bytes::Bytes;

use crate::agent_protocol::Request;
use crate::ids::{Access, PrincipalId, SandboxId, SessionId};
use crate::kernels::{self, KernelSpec};
use crate::manager::ManagerError;
use crate::manager::admission::Allotment;
use crate::manager::registry::{SandboxInstance, SessionEntry};
use crate::manager::removal_backlog::Leftover;
use crate::manager::service::{SessionService, new_row};
use crate::manager::session_config::{NewSession, ServiceError, SessionConfig};
use crate::store::{SessionRow, StoreError};

impl SessionService {
    /// Creates a session in a sandbox that exists, and waits until its kernel is ready. Limits and network are those of the
    /// sandbox. After an error, nothing is left behind.
    pub(in crate::manager) async fn create_in_sandbox(
        &self,
        principal: &PrincipalId,
        sandbox: &SandboxId,
        new: NewSession,
    ) -> Result<SessionId, ServiceError> {
        let access = Access::Principal(principal.clone());
        let instance = self.find_sandbox(sandbox, &access)?;
        let kernel = kernels::find(&instance.record.kernel)?.clone();
        if !new.kernel.is_empty() && kernels::find(&new.kernel)?.name != kernel.name {
            return Err(ServiceError::OtherKernel { sandbox: sandbox.to_string(), kernel: kernel.name });
        }
        let config = self.sandbox(sandbox, &access).await?.config;
        let SessionConfig { limits, network, mounts, .. } = config;
        let ceilings = self.ceilings();
        ceilings.check_idle_timeout(new.config.idle_timeout_seconds)?;
        ceilings.check_lifetime(new.config.ttl_seconds)?;
        let ttl_seconds = new.config.ttl_seconds.or(ceilings.lifetime_seconds);
        let config = SessionConfig { limits, network, mounts, ttl_seconds, ..new.config };
        let new = NewSession { config, ..new };
        // Its processes are within the limit of the sandbox, which is counted already.
        let allotment = self.admit(principal, 0).await?;
        let turn = self.begin_creation()?;
        let (service, principal) = (self.clone(), principal.clone());
        // In a task of its own: the client may disconnect, and what has begun must be finished or undone.
        let creating = tokio::spawn(async move {
            let _turn = turn;
            let _permit = service.permit_start().await?;
            service.start_guest(&principal, &kernel, &new, &instance, allotment).await
        });
        creating.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    async fn start_guest(
        &self,
        principal: &PrincipalId,
        kernel: &KernelSpec,
        new: &NewSession,
        instance: &SandboxInstance,
        allotment: Allotment,
    ) -> Result<SessionId, ServiceError> {
        let id = SessionId::random();
        let instance = instance.for_guest(&id);
        let sandbox = serde_json::to_string(&instance.record).ok();
        self.0.store.insert_session(SessionRow { sandbox, ..new_row(&id, principal, kernel, new) }).await?;
        let request = Request::StartKernel { session: id.clone(), env: new.env.iter().cloned().collect() };
        if let Err(error) = instance.ask(request, Bytes::new()).await {
            self.remove_guest(&id, instance, allotment).await;
            return Err(error.into());
        }
        let entry = self.start_driver(&id, principal, &new.config, instance, None);
        entry.hold(allotment);
        match entry.handle.ready().await {
            Ok(()) => {
                self.0.registry.insert(id.clone(), Arc::new(entry));
                Ok(id)
            }
            Err(error) => {
                self.remove_unlisted(&id, Some(entry), None).await;
                Err(ManagerError::Start(error).into())
            }
        }
    }

    /// Removes a session whose kernel may not have started.
    async fn remove_guest(&self, id: &SessionId, instance: SandboxInstance, allotment: Allotment) {
        if let Err(error) = self.commit_deletion(id).await {
            tracing::warn!(session = %id, %error, "cannot commit the deletion of a session");
        }
        self.remove_or_defer(id, Leftover::new(Some(Arc::new(instance)), Some(allotment))).await;
    }

    /// Ends a session whose sandbox ends.
    pub(in crate::manager) async fn end_guest(&self, entry: &SessionEntry, why: &str) {
        // Fails if it has ended before, which is fine.
        let _ = entry.handle.end(why).await;
        entry.clear_sandbox();
    }
}
