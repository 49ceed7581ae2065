//! Idempotent creation. A client that names a key may repeat its request: it gets what the first one has created.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::OwnedMutexGuard;

use super::digest_id;
use super::service::SessionService;
use super::session_config::{NewSession, ServiceError, SessionConfig};
use crate::ids::{Access, PrincipalId, SandboxId, SessionId};
use crate::store::{CreationKey, KeyKind, StoreError};

type KeyOfPrincipal = (PrincipalId, KeyKind, String);

/// The keys with which something is being created now. A second request with one of them waits for the first.
pub(super) type KeysInUse = Turns<KeyOfPrincipal>;

/// Whose turn it is, by key.
#[derive(Debug)]
pub(super) struct Turns<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Turns<K> {
    /// Waits for the turn with a key, and keeps it until the guard is dropped.
    pub async fn hold(&self, key: K) -> OwnedMutexGuard<()> {
        let turn = {
            let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody holds or awaits those that only the map has.
            keys.retain(|_, turn| Arc::strong_count(turn) > 1);
            keys.entry(key).or_default().clone()
        };
        turn.lock_owned().await
    }
}

/// What a request asks for, without the values of variables and secrets, which are not stored.
#[derive(Serialize)]
struct Identity<'a> {
    kernel: &'a str,
    sandbox: Option<&'a str>,
    name: &'a Option<String>,
    variables: Vec<&'a str>,
    packages: Option<String>,
    labels: BTreeMap<&'a String, &'a String>,
    config: String,
    more: Vec<String>,
}

impl NewSession {
    /// The request with a key. `more` is what else it asks for.
    pub fn with_key(self, kind: KeyKind, name: Option<String>, more: &[&[u8]]) -> Self {
        let key = name.map(|name| CreationKey { kind, name, digest: self.digest(more) });
        Self { key, ..self }
    }

    fn digest(&self, more: &[&[u8]]) -> String {
        let mut config = self.config.clone();
        let labels = std::mem::take(&mut config.labels);
        let mut variables: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        variables.sort_unstable();
        let identity = Identity {
            kernel: &self.kernel,
            sandbox: self.sandbox.as_ref().map(|sandbox| sandbox.as_str()),
            name: &self.name,
            variables,
            packages: self.packages.as_ref().and_then(|packages| serde_json::to_string(packages).ok()),
            labels: labels.iter().collect(),
            config: serde_json::to_string(&config).unwrap_or_default(),
            more: more.iter().map(|part| digest_id(part)).collect(),
        };
        digest_id(&serde_json::to_vec(&identity).unwrap_or_default())
    }
}

impl SessionService {
    /// Stores the key of what is being created. What a server leaves behind that is killed before has no key, and is removed.
    pub(super) async fn put_key(&self, principal: &PrincipalId, new: &NewSession, id: &str) -> Result<(), StoreError> {
        match &new.key {
            Some(key) => self.0.store.put_creation_key(principal, key.clone(), id.to_owned()).await,
            None => Ok(()),
        }
    }

    /// Creates something with `make`, or finds what was created with the same key before.
    pub(super) async fn create_once<T, F>(
        &self,
        principal: &PrincipalId,
        key: Option<CreationKey>,
        parse: fn(&str) -> Option<T>,
        make: impl FnOnce(Self) -> F,
    ) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let making = make(self.clone());
        let Some(key) = key else { return making.await };
        let (service, principal) = (self.clone(), principal.clone());
        // In a task of its own: the client may disconnect, and its retry must find what was begun.
        let creating = tokio::spawn(async move {
            let _held = service.0.keys_in_use.hold((principal.clone(), key.kind, key.name.clone())).await;
            if let Some((id, digest)) = service.0.store.created_by_key(&principal, &key).await?
                && service.is_created(key.kind, &id, &principal).await?
            {
                let created = parse(&id).filter(|_| digest == key.digest);
                return created.ok_or(ServiceError::KeyOfOtherRequest { key: key.name });
            }
            making.await
        });
        creating.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    /// Whether what a key has created is whole and not about to be deleted.
    async fn is_created(&self, kind: KeyKind, id: &str, principal: &PrincipalId) -> Result<bool, ServiceError> {
        let access = Access::Principal(principal.clone());
        if kind == KeyKind::Sandbox {
            return Ok(SandboxId::parse(id).is_some_and(|id| self.0.sandboxes.find_visible(&id, &access).is_some()));
        }
        let Some(id) = SessionId::parse(id).filter(|id| self.0.registry.contains(id)) else { return Ok(false) };
        if kind == KeyKind::Run && SessionConfig::of_row(&self.reader().row(&id, &access).await?).job.is_none() {
            // The server was killed before its cells were queued.
            self.delete(&id, &access).await?;
            return Ok(false);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn second_request_waits_for_the_first() {
        let keys = Arc::new(KeysInUse::default());
        let key = || (PrincipalId::from("me"), KeyKind::Session, "a".to_owned());
        let first = keys.hold(key()).await;
        let other = (PrincipalId::from("you"), KeyKind::Session, "a".to_owned());
        drop(keys.hold(other).await);
        let second = tokio::spawn({
            let keys = keys.clone();
            async move { drop(keys.hold(key()).await) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap();
        drop(keys.hold((PrincipalId::from("x"), KeyKind::Sandbox, "b".to_owned())).await);
        assert_eq!(keys.0.lock().unwrap().len(), 1, "others are forgotten");
    }

    #[test]
    fn digest_tells_requests_apart_but_not_their_secrets() {
        let new = |kernel: &str, value: &str| NewSession {
            kernel: kernel.to_owned(),
            env: vec![("A".to_owned(), value.to_owned())],
            ..NewSession::default()
        };
        let digest =
            |new: NewSession, more: &[&[u8]]| new.with_key(KeyKind::Run, Some("k".to_owned()), more).key.unwrap().digest;
        let one = digest(new("python", "1"), &[]);
        assert_eq!(one, digest(new("python", "2"), &[]));
        assert_ne!(one, digest(new("r", "1"), &[]));
        assert_ne!(one, digest(new("python", "1"), &[b"notebook"]));
    }
}
