//! Authentication: tokens, their principals and their scopes.
//!
//! A token has 256 random bits, so its SHA-256 identifies it and does not reveal it. Only hashes are stored. Looking up a
//! hash need not take constant time, because its timing reveals nothing about the token.

use std::collections::HashMap;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::ids::{self, Access, PrincipalId, SessionId};
use crate::store::{ShareRow, Store, StoreError, TokenRow, now_ms};

/// What a token allows. Each scope from [`Self::Read`] on includes the smaller ones; `Admin` includes all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Reading the metrics of the server, and nothing else.
    Metrics,
    /// Reading the sessions of the principal.
    Read,
    /// Creating, using and ending sessions of the principal.
    Use,
    /// Everything, on the sessions of all principals.
    Admin,
}

impl Scope {
    pub fn name(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Read => "read",
            Self::Use => "use",
            Self::Admin => "admin",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Metrics, Self::Read, Self::Use, Self::Admin].into_iter().find(|scope| scope.name() == name)
    }
}

/// The identity behind a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub principal: PrincipalId,
    pub scope: Scope,
    /// For a share: the one session that it shows.
    pub only: Option<SessionId>,
}

impl Identity {
    /// The sessions that this identity can see.
    pub fn access(&self) -> Access {
        if self.scope < Scope::Admin { Access::Principal(self.principal.clone()) } else { Access::All }
    }

    /// The key for rate limits and stream counts. Users of a share do not use up the limits of its owner.
    pub fn rate_key(&self) -> PrincipalId {
        match &self.only {
            Some(session) => format!("share of {session}").into(),
            None => self.principal.clone(),
        }
    }
}

/// The SHA-256 of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// For requests that need no token. No token has it.
    pub const NONE: Self = Self([0; 32]);

    fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    fn from_row(hash: Vec<u8>) -> Option<Self> {
        hash.try_into().ok().map(Self)
    }
}

/// An identity, and the time at which its token expires, in milliseconds since 1970.
type Grant = (Identity, Option<i64>);

/// A new random token.
pub fn new_secret() -> String {
    let random: [u8; 32] = ids::random_bytes();
    format!("ck_{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random))
}

/// A snapshot of the stored tokens and shares, replaced by [`Self::load`].
#[derive(Debug, Default)]
pub struct Tokens {
    by_hash: ArcSwap<HashMap<TokenHash, Grant>>,
    /// Signals that the snapshot was replaced.
    reloaded: watch::Sender<()>,
    /// Held from reading the store until the snapshot is replaced, so that an older snapshot never replaces a newer one.
    loading: tokio::sync::Mutex<()>,
}

impl Tokens {
    /// Reads the stored tokens and shares. Returns the number of tokens. Changes by another process need another call.
    pub async fn load(&self, store: &Store) -> Result<usize, StoreError> {
        let _loading = self.loading.lock().await;
        let mut by_hash = HashMap::new();
        for row in store.tokens().await? {
            let (Some(hash), Some(scope)) = (TokenHash::from_row(row.hash), Scope::parse(&row.scope)) else { continue };
            by_hash.insert(hash, (Identity { principal: row.principal, scope, only: None }, row.expires_at));
        }
        let count = by_hash.len();
        for (row, principal) in store.shares(None).await? {
            let Some(hash) = TokenHash::from_row(row.hash) else { continue };
            let identity = Identity { principal, scope: Scope::Read, only: Some(row.session) };
            by_hash.insert(hash, (identity, Some(row.expires_at)));
        }
        self.by_hash.store(by_hash.into());
        self.reloaded.send_replace(());
        Ok(count)
    }

    /// The identity behind a token. `None` if the token is unknown, revoked or expired.
    pub fn identify(&self, secret: &str) -> Option<(Identity, TokenHash)> {
        let token = TokenHash::of(secret);
        self.find_valid(token).map(|(identity, _)| (identity, token))
    }

    /// The identity behind a token that is not known: another process may have created it a moment ago.
    pub async fn identify_new(&self, secret: &str, store: &Store) -> Result<Option<(Identity, TokenHash)>, StoreError> {
        if !store.has_token(TokenHash::of(secret).0.to_vec()).await? {
            return Ok(None);
        }
        self.load(store).await?;
        Ok(self.identify(secret))
    }

    fn find_valid(&self, token: TokenHash) -> Option<Grant> {
        let is_valid = |grant: &&Grant| grant.1.is_none_or(|expires_at| expires_at > now_ms());
        self.by_hash.load().get(&token).filter(is_valid).cloned()
    }

    /// Waits until a token is revoked or expires. Streams end then.
    pub async fn until_invalid(&self, token: TokenHash) {
        let mut reloaded = self.reloaded.subscribe();
        while let Some((_, expires_at)) = self.find_valid(token) {
            let left = expires_at.map_or(u64::MAX, |at| at.saturating_sub(now_ms()).max(0).cast_unsigned());
            // Timers are bounded. A token that lasts longer is checked again after a day.
            let left = Duration::from_millis(left).min(Duration::from_secs(86_400));
            tokio::select! {
                changed = reloaded.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(left) => {}
            }
        }
    }
}

/// Stores a token. Returns its public id.
pub async fn store_token(
    store: &Store,
    secret: &str,
    name: &str,
    identity: &Identity,
    expires_at: Option<i64>,
) -> Result<String, StoreError> {
    let id: String = ids::random_uuid().chars().take(8).collect();
    let row = TokenRow {
        id: id.clone(),
        name: name.to_owned(),
        principal: identity.principal.clone(),
        scope: identity.scope.name().to_owned(),
        hash: TokenHash::of(secret).0.to_vec(),
        created_at: now_ms(),
        expires_at,
    };
    store.put_token(row).await?;
    Ok(id)
}

/// Stores a share, whose token can read one session. Returns its public id.
pub async fn store_share(
    store: &Store,
    secret: &str,
    session: &SessionId,
    name: Option<String>,
    expires_at: i64,
) -> Result<String, StoreError> {
    let id: String = ids::random_uuid().chars().take(8).collect();
    let (hash, session) = (TokenHash::of(secret).0.to_vec(), session.clone());
    store.put_share(ShareRow { id: id.clone(), session, name, hash, created_at: now_ms(), expires_at }).await?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_valid_tokens_are_accepted_and_none_is_stored() {
        let folder = std::env::temp_dir().join(format!("cellkeep-auth-{}", ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let store = Store::open(&folder.join("journal.db")).unwrap();
        let (secret, old) = (new_secret(), new_secret());
        let ann = Identity { principal: "ann".into(), scope: Scope::Use, only: None };
        let id = store_token(&store, &secret, "laptop", &ann, None).await.unwrap();
        store_token(&store, &old, "old", &ann, Some(now_ms() - 1)).await.unwrap();
        let tokens = Tokens::default();
        let whose = |secret: &str| tokens.identify(secret).map(|(identity, _)| identity);
        assert_eq!(whose(&secret), None, "tokens are not loaded yet");
        assert!(tokens.identify_new("ck_other", &store).await.unwrap().is_none());
        assert_eq!(tokens.identify_new(&secret, &store).await.unwrap().unwrap().0, ann);
        assert_eq!(tokens.load(&store).await.unwrap(), 2);
        assert_eq!(whose(&secret), Some(ann.clone()));
        assert_eq!((whose(&old), whose(""), whose("ck_x")), (None, None, None));
        let (_, token) = tokens.identify(&secret).unwrap();
        assert!(store.delete_token(&id).await.unwrap());
        tokio::join!(tokens.until_invalid(token), async { tokens.load(&store).await.unwrap() });
        assert_eq!(whose(&secret), None, "it was revoked");
        let admin = Identity { scope: Scope::Admin, ..ann.clone() };
        assert_eq!((ann.access(), admin.access()), (Access::Principal("ann".into()), Access::All));
        // The log must be checked as well, and closing the store removes it.
        for file in std::fs::read_dir(&folder).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
        drop(store);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
