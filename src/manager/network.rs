//! The network policy of sessions: checked, changed while they run, and what code asked for.

use super::service::SessionService;
use super::session_config::{ServiceError, SessionConfig};
use crate::egress::DecisionList;
use crate::ids::{Access, SandboxId, SessionId};
use crate::policy::{HostRule, NetworkPolicy};
use crate::session::SessionError;

impl SessionService {
    /// Checks a policy against the ceiling of the server, and addresses in it against those that the operator permits.
    pub(super) fn check_network(&self, asked: &NetworkPolicy) -> Result<(), ServiceError> {
        if !self.ceilings().allows(asked) {
            return Err(ServiceError::NetworkNotAllowed { asked: asked.level(), most: self.ceilings().network });
        }
        let gateway = self.0.manager.gateway();
        let is_permitted = |rule: &HostRule| {
            let host = rule.host();
            !host.is_address() || rule.ports().into_iter().all(|port| gateway.permits_address(host, port))
        };
        match asked.rules().iter().find(|rule| !is_permitted(rule)) {
            Some(rule) => Err(ServiceError::AddressNotAllowed { host: rule.host().to_string() }),
            None => Ok(()),
        }
    }

    /// Checks whether the policy of a session may become this one. What follows is a change of its properties.
    pub async fn check_network_change(
        &self,
        id: &SessionId,
        access: &Access,
        asked: &NetworkPolicy,
    ) -> Result<(), ServiceError> {
        let entry = self.0.registry.find_visible(id, access)?;
        match entry.sandbox() {
            None => return Err(SessionError::Gone { why: "its sandbox has ended".to_owned() }.into()),
            Some(sandbox) if sandbox.is_shared() => {
                return Err(ServiceError::NetworkOfSandbox { sandbox: sandbox.record.id.to_string() });
            }
            Some(_) => {}
        }
        let row = self.0.store.session(id).await?.ok_or_else(|| ServiceError::not_found(id))?;
        self.check_new_network(&SessionConfig::of_row(&row).network, asked)
    }

    /// Checks whether a policy may follow another in the same sandbox.
    pub(super) fn check_new_network(&self, before: &NetworkPolicy, asked: &NetworkPolicy) -> Result<(), ServiceError> {
        self.check_network(asked)?;
        if before.interface() == asked.interface() { Ok(()) } else { Err(ServiceError::NetworkFixed) }
    }

    /// Stores the policy of a sandbox with the sessions in it that do not have it yet, since they show it as theirs.
    pub(super) async fn show_network_of_sandbox(
        &self,
        sandbox: &SandboxId,
        network: &NetworkPolicy,
    ) -> Result<(), ServiceError> {
        for (id, _) in self.sessions_in(sandbox) {
            let network = network.clone();
            let changed = self.0.store.change_session(&id, move |row| {
                let config = SessionConfig::of_row(row);
                if config.network != network {
                    row.spec = SessionConfig { network, ..config }.to_json();
                }
            });
            changed.await?;
        }
        Ok(())
    }

    /// What code in the sandbox of a session has asked for, since this server serves it.
    pub fn network_decisions(&self, id: &SessionId, access: &Access) -> Result<DecisionList, ServiceError> {
        let entry = self.0.registry.find_visible(id, access)?;
        Ok(entry.sandbox().map(|sandbox| sandbox.egress.decisions()).unwrap_or_default())
    }
}
