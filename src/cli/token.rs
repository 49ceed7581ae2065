//! `cellkeep token`: manages the access tokens of a server.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Failure};
use crate::audit::{AuditLog, AuditRecord};
use crate::auth::{self, Identity, Scope};
use crate::config::Paths;
use crate::private_files;
use crate::store::{Durability, Store, now_ms};

/// Create, list and revoke access tokens of a server. A running server notices a new one at once, and that one was revoked within seconds.
#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Create a token and print it; it cannot be shown again
    Create {
        /// The name of the token
        #[arg(value_parser = parse_name)]
        name: String,
        /// The principal whose sessions it can access; other principals cannot see them [default: NAME]
        #[arg(long, value_name = "NAME", value_parser = parse_name)]
        principal: Option<String>,
        /// The scope: admin (everything), use (the principal's own sessions), read, or metrics (only GET /metrics)
        #[arg(long, default_value = "use", value_parser = ["admin", "use", "read", "metrics"])]
        scope: String,
        /// Days until it expires [default: never]
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: Option<u32>,
    },
    /// List all tokens, without their secrets
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token
    Revoke {
        /// The token's id, from `cellkeep token list`
        id: String,
    },
}

pub(super) async fn run(paths: &Paths, command: TokenCommand) -> Result<Exit, Failure> {
    let store = open(paths)?;
    match command {
        TokenCommand::Create { name, principal, scope, days } => {
            let scope = Scope::parse(&scope).unwrap_or(Scope::Use);
            let identity = Identity { principal: principal.unwrap_or_else(|| name.clone()).into(), scope, only: None };
            let expires_at = days.map(|days| now_ms().saturating_add(i64::from(days) * 86_400_000));
            let secret = auth::new_secret();
            let id = auth::store_token(&store, &secret, &name, &identity, expires_at).await.map_err(Failure::usage)?;
            let details = json!({"principal": identity.principal.as_str(), "scope": scope.name(), "days": days});
            record(paths, "token.created", &id, Some(details));
            eprint_line!("token {id} of {}, scope {}; it cannot be shown again:", identity.principal, scope.name());
            print_line!("{secret}");
        }
        TokenCommand::List { json } => list(&store, json).await?,
        TokenCommand::Revoke { id } => {
            if !store.delete_token(&id).await.map_err(Failure::usage)? {
                return Err(Failure::usage(anyhow::anyhow!("there is no token {id:?}; `cellkeep token list` lists all")));
            }
            record(paths, "token.revoked", &id, None);
            eprint_line!("token {id} is revoked");
        }
    }
    Ok(Exit::Ok)
}

/// Records what the user of this process did with a token.
fn record(paths: &Paths, action: &str, token: &str, details: Option<Value>) {
    let uid = rustix::process::getuid().as_raw();
    AuditLog::new(paths).record(&AuditRecord {
        action: action.to_owned(),
        principal: Some(format!("uid {uid} of this machine")),
        target: Some(token.to_owned()),
        result: "ok".to_owned(),
        details,
        ..AuditRecord::default()
    });
}

/// Refuses blank names.
fn parse_name(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("a name needs at least one character that is not a space") } else { Ok(text.to_owned()) }
}

fn open(paths: &Paths) -> Result<Store, Failure> {
    private_files::by_default();
    private_files::create_data_folder(paths.data()).map_err(Failure::usage)?;
    // A revocation must not be undone by a power cut.
    Store::open_with(&paths.journal(), Durability::Full).map_err(Failure::usage)
}

async fn list(store: &Store, as_json: bool) -> Result<(), Failure> {
    let tokens = store.tokens().await.map_err(Failure::usage)?;
    if as_json {
        let values = tokens.iter().map(|token| {
            serde_json::json!({
                "id": token.id, "name": token.name, "principal": token.principal, "scope": token.scope,
                "created_at": token.created_at, "expires_at": token.expires_at,
            })
        });
        print_line!("{}", values.collect::<serde_json::Value>());
        return Ok(());
    }
    print_line!("{:<10} {:<6} {:<20} NAME", "ID", "SCOPE", "PRINCIPAL");
    for token in tokens {
        print_line!("{:<10} {:<6} {:<20} {}", token.id, token.scope, token.principal, token.name);
    }
    Ok(())
}
