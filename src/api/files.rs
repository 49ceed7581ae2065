//! Requests about the workspace of a session: upload, download, list, delete.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::Problem;
use super::{Api, Caller, Query, SessionInPath, User, path_field};
use crate::manager::{FileError, MAX_FILE};

/// The path of the file in the URL.
pub(super) struct FileInPath(String);

impl<S: Send + Sync> FromRequestParts<S> for FileInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_field(parts, state, "path").await.map(Self)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Folder {
    #[serde(default)]
    path: String,
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(Folder { path }): Query<Folder>,
) -> Result<Json<Value>, Problem> {
    let (entries, truncated) = api.sessions.list_files(&id, &caller.access(), &path).await?;
    Ok(Json(json!({"path": path, "entries": entries, "truncated": truncated})))
}

pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    FileInPath(path): FileInPath,
) -> Result<Response, Problem> {
    let (size, chunks) = api.sessions.read_file(&id, &caller.access(), &path).await?;
    // A browser must never display a file from a sandbox.
    let headers = [
        (header::CONTENT_LENGTH, HeaderValue::from(size)),
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}

pub(super) async fn put(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    FileInPath(path): FileInPath,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()).and_then(|length| length.parse().ok());
    // Refuses the upload before its body is read.
    if length.is_some_and(|length: u64| length > MAX_FILE as u64) {
        return Err(FileError::TooLarge.into());
    }
    api.sessions.write_file(&id, &caller.access(), &path, body.into_data_stream()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    FileInPath(path): FileInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.remove_file(&id, &caller.access(), &path).await?;
    Ok(StatusCode::NO_CONTENT)
}
