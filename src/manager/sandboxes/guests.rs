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
        let SessionConfig { limits, network, mounts, secrets, environment, .. } = config;
        let ceilings = self.ceilings();
        ceilings.check_idle_timeout(new.config.idle_timeout_seconds)?;
        ceilings.check_lifetime(new.config.ttl_seconds)?;
        let ttl_seconds = new.config.ttl_seconds.or(ceilings.lifetime_seconds);
        let config = SessionConfig { limits, network, mounts, secrets, environment, ttl_seconds, ..new.config };
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
        self.put_key(principal, new, id.as_str()).await?;
        let request = Request::StartKernel { session: id.clone(), env: new.env.iter().cloned().collect() };
        if let Err(error) = instance.ask(request, Bytes::new()).await {
            self.remove_guest(&id, instance, allotment).await;
            return Err(error.into());
        }
        let entry = self.start_driver(&id, principal, &new.config, instance, None);
        entry.hold(allotment);
        match entry.handle.ready().await {
            Ok(()) => self.list_guest(id, entry).await,
            Err(error) => {
                self.remove_unlisted(&id, Some(entry), None).await;
                Err(ManagerError::Start(error).into())
            }
        }
    }

    /// Makes a session visible, unless its sandbox has begun to end: then the end has not seen it, so it is removed here.
    async fn list_guest(&self, id: SessionId, entry: SessionEntry) -> Result<SessionId, ServiceError> {
        let access = Access::Principal(entry.principal.clone());
        let sandbox = entry.sandbox().map(|sandbox| sandbox.record.id.clone());
        self.0.registry.insert(id.clone(), Arc::new(entry));
        match sandbox.map(|sandbox| self.find_sandbox(&sandbox, &access)) {
            Some(Err(ended)) => {
                self.delete(&id, &access).await?;
                Err(ended)
            }
            _ => Ok(id),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::reaper::tests::{Engine, service};
    use crate::manager::sandboxes::SandboxEntry;
    use crate::sandbox::SandboxRecord;

    /// A session whose kernel has become ready, in the sandbox of `instance`.
    async fn ready_guest(service: &SessionService, instance: &SandboxInstance) -> (SessionId, SessionEntry) {
        let (id, ann) = (SessionId::random(), PrincipalId::from("ann"));
        let new = NewSession::default();
        let row = new_row(&id, &ann, kernels::find("python").unwrap(), &new);
        service.0.store.insert_session(row).await.unwrap();
        let entry = service.start_driver(&id, &ann, &new.config, instance.for_guest(&id), None);
        (id, entry)
    }

    #[tokio::test(start_paused = true)]
    async fn guest_of_ending_sandbox_is_not_listed() {
        let (folder, service) = service();
        let instance = SandboxInstance::new(
            Arc::new(Engine::default()),
            SandboxRecord::in_name_only(),
            service.0.manager.gateway(),
            None,
        );
        let allotment = service.0.admission.count(&"ann".into(), 1);
        let sandbox = Arc::new(SandboxEntry::new("ann".into(), instance.clone(), allotment));
        service.0.sandboxes.insert(instance.record.id.clone(), sandbox.clone());
        let (id, entry) = ready_guest(&service, &instance).await;
        service.list_guest(id.clone(), entry).await.unwrap();
        assert!(service.0.registry.contains(&id));
        // The end of the sandbox has begun, and has seen no other session.
        sandbox.set_ending();
        let (id, entry) = ready_guest(&service, &instance).await;
        let refused = service.list_guest(id.clone(), entry).await.unwrap_err();
        assert!(matches!(refused, ServiceError::SandboxNotFound { .. }), "{refused}");
        assert!(!service.0.registry.contains(&id));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn guest_of_deleted_session_is_not_listed() {
        let (folder, service) = service();
        let record = SandboxRecord::in_name_only();
        let owner = record.id.as_session().clone();
        let instance = SandboxInstance::new(Arc::new(Engine::default()), record, service.0.manager.gateway(), None);
        let new = NewSession::default();
        let row = new_row(&owner, &"ann".into(), kernels::find("python").unwrap(), &new);
        service.0.store.insert_session(row).await.unwrap();
        let entry = service.start_driver(&owner, &"ann".into(), &new.config, instance.clone(), None);
        service.0.registry.insert(owner.clone(), Arc::new(entry));
        let (id, entry) = ready_guest(&service, &instance).await;
        service.list_guest(id, entry).await.unwrap();
        // Ended, and not removed yet.
        service.0.registry.find(&owner).unwrap().handle.end("it was idle").await.unwrap();
        let (id, entry) = ready_guest(&service, &instance).await;
        assert!(service.list_guest(id.clone(), entry).await.is_err());
        assert!(!service.0.registry.contains(&id));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
