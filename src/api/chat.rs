//! Requests about the conversation with the model. It happens in the server, and its messages are cells of the session.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::notebooks::WaitQuery;
use super::view::CellView;
use super::{Api, Body, Caller, Query, SessionInPath, User, guard};
use crate::chat::{AskError, MAX_MESSAGE};
use crate::ids::SessionId;

/// A message to the model.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewMessage, examples(json!({"text": "Plot the sales of each month in sales.csv"})))]
pub(super) struct MessageBody {
    /// Markdown.
    #[schema(min_length = 1)]
    text: String,
}

#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"name": "small-model"})))]
pub(super) struct Model {
    /// The name of the model at its endpoint.
    name: String,
}

/// Get the chat model
///
/// 404 `no_model` if none is configured.
#[utoipa::path(
    get, path = "/model", operation_id = "get_model", tag = "chat",
    responses((status = 200, description = "The model", body = Model)),
)]
pub(super) async fn model(State(api): State<Api>) -> Result<Json<Model>, Problem> {
    let name = api.chats.model().ok_or(AskError::NoModel)?.to_owned();
    Ok(Json(Model { name }))
}

/// Whether the model is answering.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ChatState {
    Idle,
    Answering,
}

/// The message of a person, and the state of the chat.
#[derive(Serialize, ToSchema)]
#[schema(as = SentMessage)]
pub(super) struct Message {
    state: ChatState,
    /// The message as a markdown cell.
    cell: CellView,
}

/// Send a message to the model
///
/// The message, the answer and the cells that the model runs are cells of the session. Their `metadata.cellkeep` has the role.
#[utoipa::path(
    post, path = "/chat", operation_id = "send_message", tag = "chat",
    params(SessionInPath, WaitQuery), request_body = MessageBody,
    responses((status = 202, description = "The message", body = Message)),
)]
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
    let body = Message { state: state(&api, &id), cell: CellView::new(&cell, None) };
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

/// The state of the conversation with the model.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"state": "answering", "cell": "b71c90de"})))]
pub(super) struct ChatStatus {
    state: ChatState,
    /// The cell with the message that is being answered.
    #[schema(required)]
    cell: Option<String>,
}

/// Get the state of the chat
#[utoipa::path(
    get, path = "/chat", operation_id = "get_chat", tag = "chat",
    params(SessionInPath),
    responses((status = 200, description = "The state of the chat", body = ChatStatus)),
)]
pub(super) async fn status(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
) -> Result<Json<ChatStatus>, Problem> {
    api.reader.check_visible(&id, &caller.access())?;
    Ok(Json(ChatStatus { state: state(&api, &id), cell: api.chats.answered_cell(&id) }))
}

fn state(api: &Api, id: &SessionId) -> ChatState {
    if api.chats.answered_cell(id).is_some() { ChatState::Answering } else { ChatState::Idle }
}

/// Cancel the answer and the cell that it runs
///
/// 409 `chat_not_in_progress` if the model is not answering.
#[utoipa::path(
    post, path = "/chat/cancel", operation_id = "cancel_chat", tag = "chat",
    params(SessionInPath),
    responses((status = 202, description = "The answer is being cancelled")),
)]
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
