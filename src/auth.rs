//! Who may do what: tokens, their principals and their scopes.
//!
//! A token is 256 random bits, so that its SHA-256 is as good as the token for finding it, and useless for making it: only
//! hashes are stored, and a comparison that takes its time with a hash gives nothing away.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::ids::{self, SessionId};
use crate::store::{ShareRow, Store, StoreError, TokenRow, now_ms};

/// What a token allows. Each allows what those after it allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Looking at its principal's sessions.
    Read,
    /// Making, using and ending sessions of its principal.
    Use,
    /// Everything, on everybody's sessions.
    Admin,
}

impl Scope {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Use => "use",
            Self::Admin => "admin",
        }
    }

    /// The scope of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Read, Self::Use, Self::Admin].into_iter().find(|scope| scope.name() == name)
    }
}

/// Whoever shows a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose sessions these are.
    pub principal: String,
    /// What may be done.
    pub scope: Scope,
    /// The one session that may be seen, for a link that was shared.
    pub only: Option<SessionId>,
}

impl Identity {
    /// Whose sessions may be seen; everybody's for none.
    pub fn sees(&self) -> Option<&str> {
        (self.scope < Scope::Admin).then_some(self.principal.as_str())
    }

    /// Whose requests and streams these are: who only has a link takes nothing of what its maker may open.
    pub fn counted_as(&self) -> Cow<'_, str> {
        match &self.only {
            Some(session) => Cow::Owned(format!("share of {session}")),
            None => Cow::Borrowed(&self.principal),
        }
    }
}

/// A token that was shown, by its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown(Hash);

type Hash = [u8; 32];

fn hash(secret: &str) -> Hash {
    Sha256::digest(secret.as_bytes()).into()
}

/// A new random token.
pub fn new_secret() -> String {
    let random: [u8; 32] = ids::random_bytes();
    format!("ck_{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random))
}

/// The tokens that are valid now.
#[derive(Debug, Default)]
pub struct Tokens {
    by_hash: RwLock<HashMap<Hash, (Identity, Option<i64>)>>,
    /// Tells that they were read again.
    loaded: watch::Sender<()>,
    /// Held while they are read and put in place: who reads later knows more, and must not be overtaken.
    loading: tokio::sync::Mutex<()>,
}

impl Tokens {
    /// Reads the stored tokens, and the links that were shared; those of another process that come later need [`Self::load`] again.
    /// Gives the number of tokens.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&self, store: &Store) -> Result<usize, StoreError> {
        let _turn = self.loading.lock().await;
        let mut by_hash = HashMap::new();
        for row in store.tokens().await? {
            let (Ok(hash), Some(scope)) = (Hash::try_from(row.hash), Scope::parse(&row.scope)) else { continue };
            by_hash.insert(hash, (Identity { principal: row.principal, scope, only: None }, row.expires_at));
        }
        let count = by_hash.len();
        for (row, principal) in store.shares(None).await? {
            let Ok(hash) = Hash::try_from(row.hash) else { continue };
            by_hash
                .insert(hash, (Identity { principal, scope: Scope::Read, only: Some(row.session) }, Some(row.expires_at)));
        }
        *self.by_hash.write().unwrap_or_else(PoisonError::into_inner) = by_hash;
        self.loaded.send_replace(());
        Ok(count)
    }

    /// Who shows this token. `None` for one that is not valid (any more).
    pub fn identify(&self, secret: &str) -> Option<(Identity, Shown)> {
        let shown = Shown(hash(secret));
        self.find(shown).map(|(identity, _)| (identity, shown))
    }

    /// Whose it is, and until when, if it is valid now.
    fn find(&self, shown: Shown) -> Option<(Identity, Option<i64>)> {
        let by_hash = self.by_hash.read().unwrap_or_else(PoisonError::into_inner);
        by_hash.get(&shown.0).filter(|(_, expires_at)| expires_at.is_none_or(|at| at > now_ms())).cloned()
    }

    /// Waits until a token is not valid any more: for what is served for longer than a moment.
    pub async fn until_invalid(&self, shown: Shown) {
        let mut loaded = self.loaded.subscribe();
        while let Some((_, expires_at)) = self.find(shown) {
            let left = expires_at.map_or(u64::MAX, |at| at.saturating_sub(now_ms()).max(0).cast_unsigned());
            // What is further away than a day is looked at again before.
            let left = Duration::from_millis(left).min(Duration::from_secs(86_400));
            tokio::select! {
                changed = loaded.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(left) => {}
            }
        }
    }
}

/// Stores a token; gives its public id.
///
/// # Errors
/// [`StoreError`].
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
        hash: hash(secret).to_vec(),
        created_at: now_ms(),
        expires_at,
    };
    store.put_token(row).await?;
    Ok(id)
}

/// Stores a link by which others may read a session; gives its public id.
///
/// # Errors
/// [`StoreError`].
pub async fn store_share(
    store: &Store,
    secret: &str,
    session: &SessionId,
    name: Option<String>,
    expires_at: i64,
) -> Result<String, StoreError> {
    let id: String = ids::random_uuid().chars().take(8).collect();
    let (hash, session) = (hash(secret).to_vec(), session.clone());
    store.put_share(ShareRow { id: id.clone(), session, name, hash, created_at: now_ms(), expires_at }).await?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_valid_tokens_are_known_and_none_is_stored() {
        let folder = std::env::temp_dir().join(format!("cellkeep-auth-{}", ids::random_uuid()));
        std::fs::create_dir(&folder).unwrap();
        let store = Store::open(&folder.join("journal.db")).unwrap();
        let (secret, old) = (new_secret(), new_secret());
        let ann = Identity { principal: "ann".to_owned(), scope: Scope::Use, only: None };
        let id = store_token(&store, &secret, "laptop", &ann, None).await.unwrap();
        store_token(&store, &old, "old", &ann, Some(now_ms() - 1)).await.unwrap();
        let tokens = Tokens::default();
        let whose = |secret: &str| tokens.identify(secret).map(|(identity, _)| identity);
        assert_eq!(whose(&secret), None, "not before they are loaded");
        assert_eq!(tokens.load(&store).await.unwrap(), 2);
        assert_eq!(whose(&secret), Some(ann.clone()));
        assert_eq!((whose(&old), whose(""), whose("ck_x")), (None, None, None));
        let (_, shown) = tokens.identify(&secret).unwrap();
        assert!(store.delete_token(&id).await.unwrap());
        tokio::join!(tokens.until_invalid(shown), async { tokens.load(&store).await.unwrap() });
        assert_eq!(whose(&secret), None, "it was revoked");
        assert_eq!((ann.sees(), Identity { scope: Scope::Admin, ..ann.clone() }.sees()), (Some("ann"), None));
        // While the store is open: its closing merges the log into the file, and removes it.
        for file in std::fs::read_dir(&folder).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
        drop(store);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
