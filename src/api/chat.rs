//! Requests about the conversation with the model. It happens in the server, and its messages are cells of the session.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::Problem;
use super::notebooks::WaitQuery;
use super::{Api, Body, Caller, Query, SessionInPath, User, guard, view};
use crate::chat::{AskError, MAX_MESSAGE};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageBody {
    text: String,
}

/// The configured model.
pub(super) async fn model(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    let name = api.chats.model().ok_or(AskError::NoModel)?;
    Ok(Json(json!({"name": name})))
}

pub(super) async fn ask(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    Query(query): Query<WaitQuery>,
    Body(message): Body<MessageBody>,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let _slot = guard::acquire_wait_slot(&api, &caller.identity, wait)?;
    if message.text.trim().is_empty() {
        return Err(Problem::unprocessable("bad_field", "text must not be empty").field("text"));
    }
    if message.text.len() > MAX_MESSAGE {
        let detail = format!("a message has at most {} kB; put larger things into files", MAX_MESSAGE >> 10);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "text_too_large", detail).field("text"));
    }
    let cell = api.chats.ask(&id, &caller.access(), message.text).await?;
    if let Some(wait) = wait {
        // A timeout is not an error: the response has the current state.
        let _ = tokio::time::timeout(wait, api.chats.until_answered(&id)).await;
    }
    let cell = api.reader.cell(&id, &caller.access(), &cell.id).await?.unwrap_or(cell);
    let body = json!({"state": state(&api, &id), "cell": view::cell(&cell, None)});
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

pub(super) async fn status(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
) -> Result<Json<Value>, Problem> {
    api.reader.check_visible(&id, &caller.access())?;
    Ok(Json(json!({"state": state(&api, &id), "cell": api.chats.answered_cell(&id)})))
}

fn state(api: &Api, id: &crate::ids::SessionId) -> &'static str {
    if api.chats.answered_cell(id).is_some() { "answering" } else { "idle" }
}

pub(super) async fn cancel(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
) -> Result<StatusCode, Problem> {
    api.reader.check_visible(&id, &caller.access())?;
    if !api.chats.stop(&id) {
        let detail = "the model is not answering in this session";
        return Err(Problem::new(StatusCode::CONFLICT, "chat_not_in_progress", detail));
    }
    Ok(StatusCode::ACCEPTED)
}
