//! The network policy in requests, and what code in a session has asked for.

use std::fmt;

use axum::Json;
use axum::extract::State;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::view::{self, NetworkView};
use super::{Api, SessionInPath, User};
use crate::egress::{Decision, DecisionList};
use crate::manager::SessionConfig;
use crate::policy::NetworkPolicy;

/// What code in a session reaches: `none`; `packages`, the package indexes of the operator; `open`, what the host reaches but not the host
/// itself; or the named hosts.
#[derive(Debug)]
pub(super) enum RequestedNetwork {
    Word(String),
    Hosts(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowJson {
    allow: Vec<String>,
}

impl<'de> Deserialize<'de> for RequestedNetwork {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrObject;
        impl<'de> Visitor<'de> for WordOrObject {
            type Value = RequestedNetwork;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`none`, `packages`, `open` or an object with `allow`")
            }

            fn visit_str<E>(self, text: &str) -> Result<RequestedNetwork, E> {
                Ok(RequestedNetwork::Word(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RequestedNetwork, A::Error> {
                let AllowJson { allow } = AllowJson::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RequestedNetwork::Hosts(allow))
            }
        }
        deserializer.deserialize_any(WordOrObject)
    }
}

impl RequestedNetwork {
    pub fn policy(self) -> Result<NetworkPolicy, Problem> {
        let bad = |detail: String| Problem::unprocessable("bad_network", detail).field("network");
        match self {
            Self::Word(word) => match word.as_str() {
                "none" => Ok(NetworkPolicy::None),
                "packages" => Ok(NetworkPolicy::Packages),
                "open" => Ok(NetworkPolicy::Open),
                other => {
                    let other: String = other.chars().take(100).collect();
                    let detail = format!(
                        "{other:?} is not a network; use `none`, `packages`, `open` or {{\"allow\": [\"example.com\"]}}"
                    );
                    Err(bad(detail))
                }
            },
            Self::Hosts(hosts) => NetworkPolicy::allowing(&hosts).map_err(|error| bad(error.to_string())),
        }
    }
}

/// The network of a session: its policy, and the decisions about the connections of its code.
#[derive(Serialize, ToSchema)]
#[schema(as = SessionNetwork, examples(json!({
    "policy": "packages", "decisions": [{
        "host": "pypi.org", "port": 443, "policy": "packages", "allowed": true, "reason": null, "connections": 3, "sent_bytes": 2310,
        "received_bytes": 184022, "first_at": "2026-11-30T11:55:05.348000Z", "last_at": "2026-11-30T11:55:07.120000Z"
    }], "unlisted": 0
})))]
pub(super) struct SessionNetworkView {
    policy: NetworkView,
    /// At most 200, oldest first. They are those since the server started; the audit log has all.
    decisions: Vec<DecisionView>,
    /// The number of connections to hosts that are not listed.
    unlisted: u64,
}

/// Connections to one host and port that were decided in the same way.
#[derive(Serialize, ToSchema)]
#[schema(as = NetworkDecision)]
struct DecisionView {
    host: String,
    port: u16,
    /// The policy at the time.
    policy: String,
    allowed: bool,
    /// Why the connections are refused.
    #[schema(required)]
    reason: Option<String>,
    connections: u64,
    /// The bytes that code in the session sent and received, of connections that have ended.
    sent_bytes: u64,
    received_bytes: u64,
    #[schema(format = DateTime)]
    first_at: String,
    #[schema(format = DateTime)]
    last_at: String,
}

impl From<Decision> for DecisionView {
    fn from(decision: Decision) -> Self {
        Self {
            host: decision.host,
            port: decision.port,
            policy: decision.policy,
            allowed: decision.refused.is_none(),
            reason: decision.refused,
            connections: decision.connections,
            sent_bytes: decision.sent_bytes,
            received_bytes: decision.received_bytes,
            first_at: view::time(decision.first_at),
            last_at: view::time(decision.last_at),
        }
    }
}

/// Get the network policy of a session and the decisions about its connections
#[utoipa::path(
    get, path = "/network", operation_id = "get_network", tag = "sessions",
    params(SessionInPath),
    responses((status = 200, description = "The network", body = SessionNetworkView)),
)]
pub(super) async fn get(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<Json<SessionNetworkView>, Problem> {
    let row = api.reader.row(&id, &caller.access()).await?;
    let DecisionList { decisions, unlisted } = api.sessions.network_decisions(&id, &caller.access())?;
    Ok(Json(SessionNetworkView {
        policy: SessionConfig::of_row(&row).network.into(),
        decisions: decisions.into_iter().map(DecisionView::from).collect(),
        unlisted,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Result<NetworkPolicy, String> {
        let requested: RequestedNetwork = serde_json::from_str(json).map_err(|error| error.to_string())?;
        requested.policy().map_err(|problem| serde_json::to_value(problem.view()).unwrap()["detail"].to_string())
    }

    #[test]
    fn policies_are_words_or_lists_of_hosts() {
        assert_eq!(policy(r#""packages""#), Ok(NetworkPolicy::Packages));
        assert_eq!(
            policy(r#"{"allow": ["a.com"]}"#),
            NetworkPolicy::allowing(&["a.com"]).map_err(|error| error.to_string())
        );
        for (json, expected) in [
            (r#""opne""#, "opne"),
            (r#""allow""#, "is not a network"),
            (r#"{"allow": []}"#, "names no host"),
            (r#"{"allow": ["*"]}"#, "star"),
            (r#"{"allow": ["a..b"]}"#, "empty part"),
            (r#"{"alow": ["a.com"]}"#, "unknown field `alow`"),
            (r#"{"allow": "a.com"}"#, "invalid type"),
            ("true", "`none`, `packages`, `open` or an object with `allow`"),
        ] {
            let error = policy(json).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
