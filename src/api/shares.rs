//! Shares: tokens that can read one session and change nothing.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};

use super::error::Problem;
use super::view::{self, api_enum};
use super::{Api, Body, Caller, SessionInPath, User, path_field, path_parameter};
use crate::auth::{self, Scope};
use crate::ids::SessionId;
use crate::manager::{now_ms, seconds_in_ms};

/// The default and the largest lifetime of a share in days.
const DEFAULT_DAYS: u32 = 7;
const MAX_DAYS: u32 = 365;
/// The largest number of shares of a session.
const MAX_SHARES: usize = 100;
/// The largest number of characters in a name.
const MAX_NAME: usize = 200;

/// A new share. All fields are optional.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewShare, examples(json!({"name": "for the review", "days": 7})))]
pub(super) struct Create {
    /// A name for people.
    #[schema(max_length = 200)]
    name: Option<String>,
    /// The lifetime in days.
    #[schema(default = 7, minimum = 1, maximum = 365)]
    days: Option<u32>,
}

/// A share, without its token.
#[derive(Serialize, ToSchema)]
#[schema(as = Share)]
struct ShareView {
    id: String,
    #[schema(required)]
    name: Option<String>,
    /// The id of the session that the share shows.
    #[schema(value_type = String)]
    session: SessionId,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    expires_at: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ShareList {
    /// Shares that have not expired.
    shares: Vec<ShareView>,
}

/// A new share with its token. Only this answer has the token.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "id": "5b1f0c", "name": "for the review", "session": "6f1c2a5e-7c0b-4d7c-9d57-0a3d4f0f5a11",
    "created_at": "2026-11-30T11:55:05.348000Z", "expires_at": "2026-12-07T11:55:05.348000Z", "token": "ck_...",
    "path": "/#token=ck_...&session=6f1c2a5e-7c0b-4d7c-9d57-0a3d4f0f5a11"
})))]
struct CreatedShare {
    #[serde(flatten)]
    share: ShareView,
    /// The token, which can read the session and nothing else.
    token: String,
    /// The path and fragment of the page that shows the session, relative to the address of the server. It contains the
    /// token.
    path: String,
}

api_enum! {
    /// What a token may do: read the metrics of the server only, read the sessions of its principal, use them, or everything on the
    /// sessions of all principals.
    #[schema(as = Scope)]
    ScopeName for Scope { Metrics, Read, Use, Admin }
}

/// The permissions of a token.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"scope": "use", "session": null, "principal": "my-program", "model": null})))]
pub(super) struct TokenInfo {
    scope: ScopeName,
    /// For the token of a share: the session that it can read.
    #[schema(value_type = Option<String>, required)]
    session: Option<SessionId>,
    /// The principal. Null for the token of a share.
    #[schema(required)]
    principal: Option<String>,
    /// The name of the chat model, if there is one and the token may use it.
    #[schema(required)]
    model: Option<String>,
}

/// The id of the share in the path.
pub(super) struct ShareInPath(String);

impl<S: Send + Sync> FromRequestParts<S> for ShareInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_field(parts, state, "share").await.map(Self)
    }
}

impl IntoParams for ShareInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("share", "The id of the share.")]
    }
}

/// Create a share
///
/// A share is a token that can read this session without its files, and nothing else.
#[utoipa::path(
    post, path = "/shares", operation_id = "create_share", tag = "shares",
    params(SessionInPath), request_body = Option<Create>,
    responses((status = 201, description = "The share", body = CreatedShare)),
)]
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
    let path = format!("/#token={secret}&session={id}");
    let (created_at, expires_at) = (view::time(now_ms()), view::time(expires_at));
    let share = ShareView { id: share, name: create.name, session: id, created_at, expires_at };
    Ok((StatusCode::CREATED, Json(CreatedShare { share, token: secret, path })).into_response())
}

/// List the shares of a session
#[utoipa::path(
    get, path = "/shares", operation_id = "list_shares", tag = "shares",
    params(SessionInPath),
    responses((status = 200, description = "The shares", body = ShareList)),
)]
pub(super) async fn list(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<Json<ShareList>, Problem> {
    api.reader.check_visible(&id, &caller.access())?;
    let now = now_ms();
    let shares = api.reader.store().shares(Some(&id)).await?.into_iter().filter(|(share, _)| share.expires_at > now);
    let shares = shares.map(|(share, _)| ShareView {
        id: share.id,
        name: share.name,
        session: id.clone(),
        created_at: view::time(share.created_at),
        expires_at: view::time(share.expires_at),
    });
    Ok(Json(ShareList { shares: shares.collect() }))
}

/// Revoke a share
///
/// Its open streams end.
#[utoipa::path(
    delete, path = "/shares/{share}", operation_id = "delete_share", tag = "shares",
    params(SessionInPath, ShareInPath),
    responses((status = 204, description = "Revoked")),
)]
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

/// Get the permissions of the token of this request
#[utoipa::path(
    get, path = "/token", operation_id = "get_token", tag = "server",
    responses((status = 200, description = "The permissions", body = TokenInfo)),
)]
pub(super) async fn token(State(api): State<Api>, caller: Caller) -> Json<TokenInfo> {
    let identity = &caller.identity;
    // A share does not reveal the owner of the session.
    let principal = identity.only.is_none().then(|| identity.principal.to_string());
    let model = api.chats.model().filter(|_| identity.scope >= Scope::Use).map(str::to_owned);
    Json(TokenInfo { scope: identity.scope.into(), session: identity.only.clone(), principal, model })
}
