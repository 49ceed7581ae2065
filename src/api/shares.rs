//! Shares: tokens that can read one session and change nothing.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::Problem;
use super::{Api, Body, Caller, SessionInPath, User, path_field, view};
use crate::auth::{self, Scope};
use crate::manager::{now_ms, seconds_in_ms};

/// The default and the largest lifetime of a share in days.
const DEFAULT_DAYS: u32 = 7;
const MAX_DAYS: u32 = 365;
/// The largest number of shares of a session.
const MAX_SHARES: usize = 100;
/// The largest number of characters in a name.
const MAX_NAME: usize = 200;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    name: Option<String>,
    days: Option<u32>,
}

/// The id of the share in the path.
pub(super) struct ShareInPath(String);

impl<S: Send + Sync> FromRequestParts<S> for ShareInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_field(parts, state, "share").await.map(Self)
    }
}

pub(super) async fn create(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Body(create): Body<Create>,
) -> Result<Response, Problem> {
    api.reader.check_visible(&id, &caller.access())?;
    let days = create.days.unwrap_or(DEFAULT_DAYS);
    if !(1..=MAX_DAYS).contains(&days) {
        return Err(Problem::unprocessable("bad_days", format!("days must be 1 to {MAX_DAYS}")).field("days"));
    }
    if create.name.as_ref().is_some_and(|name| name.chars().count() > MAX_NAME) {
        let detail = format!("a name has at most {MAX_NAME} characters");
        return Err(Problem::unprocessable("bad_name", detail).field("name"));
    }
    let store = api.reader.store();
    let now = now_ms();
    if store.shares(Some(&id)).await?.iter().filter(|(share, _)| share.expires_at > now).count() >= MAX_SHARES {
        let detail = format!("this session has {MAX_SHARES} shares already, which is the limit; revoke some");
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many", detail));
    }
    let secret = auth::new_secret();
    let expires_at = now_ms().saturating_add(seconds_in_ms(u64::from(days) * 86_400));
    let share = auth::store_share(store, &secret, &id, create.name.clone(), expires_at).await?;
    api.tokens.load(store).await?;
    let created = json!({
        "id": share, "name": create.name, "session": id, "created_at": view::time(now_ms()),
        "expires_at": view::time(expires_at), "token": secret, "path": format!("/#token={secret}&session={id}"),
    });
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

pub(super) async fn list(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<Json<Value>, Problem> {
    api.reader.check_visible(&id, &caller.access())?;
    let now = now_ms();
    let shares = api.reader.store().shares(Some(&id)).await?.into_iter().filter(|(share, _)| share.expires_at > now);
    let shares = shares.map(|(share, _)| {
        json!({
            "id": share.id, "name": share.name, "session": id, "created_at": view::time(share.created_at),
            "expires_at": view::time(share.expires_at),
        })
    });
    Ok(Json(json!({"shares": shares.collect::<Value>()})))
}

pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    ShareInPath(share): ShareInPath,
) -> Result<StatusCode, Problem> {
    api.reader.check_visible(&id, &caller.access())?;
    if !api.reader.store().delete_share(&id, &share).await? {
        return Err(Problem::not_found("no_share", format!("this session has no share {share:?}")));
    }
    // This ends the streams of the share.
    api.tokens.load(api.reader.store()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What the token of the request can do. The page adapts to it.
pub(super) async fn token(State(api): State<Api>, caller: Caller) -> Json<Value> {
    let identity = &caller.identity;
    // A share does not reveal the owner of the session.
    let principal = identity.only.is_none().then_some(&identity.principal);
    let model = api.chats.model().filter(|_| identity.scope >= Scope::Use);
    Json(json!({"scope": identity.scope.name(), "session": identity.only, "principal": principal, "model": model}))
}
