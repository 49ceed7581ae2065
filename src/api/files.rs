//! Requests about the workspace of a session: upload, download, list, delete.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};

use super::error::Problem;
use super::view::Binary;
use super::{Api, Caller, Query, SessionInPath, User, path_field, path_parameter};
use crate::manager::{FileEntry, FileError, MAX_FILE};

/// The path of the file in the URL.
pub(super) struct FileInPath(String);

impl<S: Send + Sync> FromRequestParts<S> for FileInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_field(parts, state, "path").await.map(Self)
    }
}

impl IntoParams for FileInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("path", "The path of the file in the workspace. It may contain slashes.")]
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Folder {
    /// The path of the folder. Empty means the workspace itself.
    #[serde(default)]
    path: String,
}

/// An entry of a folder.
#[derive(Serialize, ToSchema)]
#[schema(as = FileEntry)]
struct File {
    /// The name within the folder. Bytes that are not UTF-8 are replaced.
    name: String,
    kind: FileKind,
    /// The size in bytes.
    size: u64,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum FileKind {
    File,
    Folder,
    Link,
    Other,
}

impl From<FileEntry> for File {
    fn from(FileEntry { name, kind, size }: FileEntry) -> Self {
        let kind = match kind.as_str() {
            "file" => FileKind::File,
            "folder" => FileKind::Folder,
            "link" => FileKind::Link,
            _ => FileKind::Other,
        };
        Self { name, kind, size }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "path": "in", "entries": [{"name": "data.csv", "kind": "file", "size": 1048576}], "truncated": false
})))]
pub(super) struct FileList {
    /// The path of the folder, as in the request.
    path: String,
    entries: Vec<File>,
    /// Whether the folder has more entries.
    truncated: bool,
}

/// List a folder of the workspace
#[utoipa::path(
    get, path = "/files/", operation_id = "list_files", tag = "files",
    params(SessionInPath, Folder),
    responses((status = 200, description = "The entries", body = FileList)),
)]
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(Folder { path }): Query<Folder>,
) -> Result<Json<FileList>, Problem> {
    let (entries, truncated) = api.sessions.list_files(&id, &caller.access(), &path).await?;
    Ok(Json(FileList { path, entries: entries.into_iter().map(File::from).collect(), truncated }))
}

/// Download a file
#[utoipa::path(
    get, path = "/files/{*path}", operation_id = "read_file", tag = "files",
    params(SessionInPath, FileInPath),
    responses((status = 200, description = "The bytes of the file", body = inline(Binary),
        content_type = "application/octet-stream")),
)]
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

/// Write a file, and create the folders on its path
///
/// A previous file is replaced when the upload is complete, so the workspace needs room for both. A file has at most 1 GB.
#[utoipa::path(
    put, path = "/files/{*path}", operation_id = "write_file", tag = "files",
    params(SessionInPath, FileInPath),
    request_body(content = inline(Binary), content_type = "application/octet-stream"),
    responses((status = 204, description = "Written")),
)]
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

/// Remove a file or an empty folder
#[utoipa::path(
    delete, path = "/files/{*path}", operation_id = "delete_file", tag = "files",
    params(SessionInPath, FileInPath),
    responses((status = 204, description = "Removed")),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    SessionInPath(id): SessionInPath,
    FileInPath(path): FileInPath,
) -> Result<StatusCode, Problem> {
    api.sessions.remove_file(&id, &caller.access(), &path).await?;
    Ok(StatusCode::NO_CONTENT)
}
