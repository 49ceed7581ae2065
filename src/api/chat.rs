//! Talking to the model: the conversation is the session's cells, and happens in the server.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::Problem;
use super::notebooks::Wait;
use super::{Api, Body, Caller, InPath, Query, User, guard, view};
use crate::chat::{AskError, MAX_MESSAGE};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Say {
    text: String,
}

/// Whether there is a model to talk to.
pub(super) async fn model(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    let name = api.chats.model().ok_or(AskError::NoModel)?;
    Ok(Json(json!({"name": name})))
}

pub(super) async fn ask(
    State(api): State<Api>,
    User(caller): User,
    InPath(id): InPath,
    Query(wait): Query<Wait>,
    Body(say): Body<Say>,
) -> Result<Response, Problem> {
    let wait = wait.time()?;
    let _place = guard::place_to_wait(&api, &caller.0, wait)?;
    if say.text.trim().is_empty() {
        return Err(Problem::unprocessable("bad_field", "there is nothing to answer: text is empty").field("text"));
    }
    if say.text.len() > MAX_MESSAGE {
        let detail = format!("a message has at most {} kB; put larger things into files", MAX_MESSAGE >> 10);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "text_too_large", detail).field("text"));
    }
    let cell = api.chats.ask(&id, caller.sees(), say.text).await?;
    if let Some(wait) = wait {
        // Time that is up is no error: the answer is shown as it stands.
        let _ = tokio::time::timeout(wait, api.chats.until_answered(&id)).await;
    }
    let cell = api.keeper.cell(&id, caller.sees(), &cell.id).await?.unwrap_or(cell);
    let body = json!({"state": state(&api, &id), "cell": view::cell(&cell, None)});
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

pub(super) async fn status(State(api): State<Api>, caller: Caller, InPath(id): InPath) -> Result<Json<Value>, Problem> {
    api.keeper.look(&id, caller.sees())?;
    Ok(Json(json!({"state": state(&api, &id), "cell": api.chats.answered_cell(&id)})))
}

fn state(api: &Api, id: &crate::ids::SessionId) -> &'static str {
    if api.chats.answered_cell(id).is_some() { "answering" } else { "idle" }
}

pub(super) async fn cancel(State(api): State<Api>, User(caller): User, InPath(id): InPath) -> Result<StatusCode, Problem> {
    api.keeper.look(&id, caller.sees())?;
    if !api.chats.stop(&id) {
        let detail = "the model does not answer in this session now";
        return Err(Problem::new(StatusCode::CONFLICT, "chat_not_in_progress", detail));
    }
    Ok(StatusCode::ACCEPTED)
}
