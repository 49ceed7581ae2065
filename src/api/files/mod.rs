//! Requests about single files of a session's workspace. [`folder`] has those about folders.

mod conditional;
mod folder;
mod form;

use std::time::SystemTime;

use axum::Json;
use axum::body::Body as RawBody;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};

use super::error::Problem;
use super::input_budget::InputLease;
use super::sandboxes::SandboxInPath;
use super::view::{self, Binary, api_enum};
use super::{Api, Body, Caller, Query, SessionInPath, User, path_field, path_parameter};
use crate::ids::{SandboxId, SessionId};
use crate::manager::{EntryKind, FileError, MAX_FILE, PutOptions, Workspace, WorkspaceEntry, printable};
use crate::mime;
use conditional::{Selection, Validators};
pub(super) use folder::{__path_create, __path_list, __path_upload, create, list, upload};

/// The most bytes of an upload that are in memory at once: a chunk for the sandbox, and what is read from the connection.
const HELD_OF_UPLOAD: u64 = (1 << 20) + (64 << 10);

/// The session or the sandbox in the path, whose files are meant.
pub(super) enum WorkspaceInPath {
    Session(SessionId),
    Sandbox(SandboxId),
}

impl WorkspaceInPath {
    fn open(&self, api: &Api, caller: &Caller) -> Result<Workspace, Problem> {
        Ok(match self {
            Self::Session(id) => api.sessions.workspace(id, &caller.access())?,
            Self::Sandbox(id) => api.sessions.workspace_of_sandbox(id, &caller.access())?,
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for WorkspaceInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if path_field(parts, state, "sandbox").await?.is_empty() {
            return Ok(Self::Session(SessionInPath::from_request_parts(parts, state).await?.0));
        }
        Ok(Self::Sandbox(SandboxInPath::from_request_parts(parts, state).await?.0))
    }
}

impl IntoParams for WorkspaceInPath {
    fn into_params(inside: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        // The description of the same request about a sandbox replaces it.
        SessionInPath::into_params(inside)
    }
}

/// The path of the file in the URL.
pub(super) struct FileInPath(String);

impl<S: Send + Sync> FromRequestParts<S> for FileInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        check_path(path_field(parts, state, "path").await?).map(Self)
    }
}

impl IntoParams for FileInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("path", "The path of the file in the workspace. It may contain slashes.")]
    }
}

/// Refuses NUL, which has a meaning of its own for the agent. The agent checks the rest.
fn check_path(path: String) -> Result<String, Problem> {
    if path.contains('\0') {
        return Err(FileError::Refused(format!("{path:?} is not a path inside the workspace")).into());
    }
    Ok(path)
}

/// An entry of the workspace.
#[derive(Serialize, ToSchema)]
#[schema(as = FileEntry, examples(json!({
    "path": "in/data.csv", "name": "data.csv", "kind": "file", "size": 1048576, "modified_at": "2026-11-30T11:55:05.348000Z",
    "media_type": "text/csv"
})))]
pub(super) struct File {
    /// The path in the workspace. Bytes that are not UTF-8 are replaced, here and in the name.
    path: String,
    name: String,
    kind: FileKind,
    /// The size in bytes.
    size: u64,
    /// The time of the last change.
    #[schema(format = DateTime)]
    modified_at: String,
    /// The media type of a file, by its name. Null if the name says nothing.
    #[schema(required)]
    media_type: Option<&'static str>,
    /// The target of a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    target: Option<String>,
}

api_enum! {
    /// `link` is a symbolic link; `other` is a device, pipe or socket.
    FileKind for EntryKind { File, Folder, Link, Other }
}

impl From<WorkspaceEntry> for File {
    fn from(WorkspaceEntry { path, entry }: WorkspaceEntry) -> Self {
        let name = printable(&entry.name);
        Self {
            path: printable(&path),
            media_type: Some(name.as_str()).filter(|_| entry.kind == EntryKind::File).and_then(mime::of_name),
            name,
            kind: entry.kind.into(),
            size: entry.size,
            modified_at: view::time(entry.modified_ms),
            target: entry.target.as_deref().map(printable),
        }
    }
}

/// Download a file
///
/// Ranges (`Range`, `If-Range` with an entity tag) and conditions (`If-None-Match`, `If-Modified-Since`, `If-Match`, `If-Unmodified-Since`) are
/// supported, as is `HEAD`. A request for several ranges gets the whole file. The media type is found by the name, else by the
/// first bytes. A browser never displays the file.
#[utoipa::path(
    get, path = "/files/{*path}", operation_id = "read_file", tag = "files",
    params(WorkspaceInPath, FileInPath),
    responses(
        (status = 200, description = "The bytes of the file", body = inline(Binary), content_type = "*/*",
            headers(("ETag" = String, description = "Identifies the contents"),
                ("Last-Modified" = String, description = "The time of the last change"))),
        (status = 206, description = "A range of the file", body = inline(Binary), content_type = "*/*",
            headers(("Content-Range" = String, description = "Which bytes"))),
        (status = 304, description = "The client has the file already"),
    ),
)]
pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    place: WorkspaceInPath,
    FileInPath(path): FileInPath,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let workspace = place.open(&api, &caller)?;
    let file = workspace.open(&path).await?;
    let size = file.stat().size;
    let validators = Validators::new(&file.stat(), SystemTime::now());
    let mut response = match validators.select(&headers, size, method == Method::GET) {
        Selection::PreconditionFailed => return Err(precondition_failed()),
        Selection::Unsatisfiable => return Ok(unsatisfiable(size)),
        Selection::NotModified => StatusCode::NOT_MODIFIED.into_response(),
        Selection::Whole => {
            let headers = download_headers(&path, Some(file.head()));
            let length = [(header::CONTENT_LENGTH, HeaderValue::from(size))];
            (headers, length, RawBody::from_stream(file.read(0..size))).into_response()
        }
        Selection::Part { first, last } => {
            let headers = download_headers(&path, Some(file.head()));
            let range = [
                (header::CONTENT_LENGTH, (last - first + 1).to_string()),
                (header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}")),
            ];
            (StatusCode::PARTIAL_CONTENT, headers, range, RawBody::from_stream(file.read(first..last + 1))).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert_validators(headers, &validators);
    Ok(response)
}

/// The headers of a download. A browser must never display a file from a sandbox: it is an attachment, its type is not guessed,
/// and if it were displayed, it would have no origin and could load nothing.
fn download_headers(path: &str, head: Option<&[u8]>) -> HeaderMap {
    let name = path.rsplit('/').next().unwrap_or_default();
    let kind = mime::of_name(name).unwrap_or_else(|| head.map_or("application/octet-stream", mime::of_content));
    let is_utf8 = kind.starts_with("text/") && head.is_some_and(mime::is_text);
    let kind = if is_utf8 { format!("{kind}; charset=utf-8") } else { kind.to_owned() };
    let disposition = format!("attachment; filename*=UTF-8''{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
    let values = [
        (header::CONTENT_TYPE, kind.as_str()),
        (header::CONTENT_DISPOSITION, disposition.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::from_str(value).ok()?))).collect()
}

fn insert_validators(headers: &mut HeaderMap, validators: &Validators) {
    for (name, value) in [(header::ETAG, validators.etag()), (header::LAST_MODIFIED, validators.last_modified())] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
}

fn precondition_failed() -> Problem {
    let detail = "the file is not the one that the condition of the request names";
    Problem::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", detail)
}

fn unsatisfiable(size: u64) -> Response {
    let detail = format!("the file has {size} bytes, and none of them is in the range");
    let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", detail);
    ([(header::CONTENT_RANGE, format!("bytes */{size}"))], problem).into_response()
}

/// Write a file, and create the folders on its path
///
/// A previous file is replaced when the upload is complete, so the workspace needs room for both. A file has at most 1 GB. With
/// `If-None-Match: *` an existing file is not replaced.
#[utoipa::path(
    put, path = "/files/{*path}", operation_id = "write_file", tag = "files",
    params(WorkspaceInPath, FileInPath),
    request_body(content = inline(Binary), content_type = "application/octet-stream"),
    responses((status = 204, description = "Written", headers(("ETag" = String, description = "Identifies the contents")))),
)]
pub(super) async fn put(
    State(api): State<Api>,
    User(caller): User,
    place: WorkspaceInPath,
    FileInPath(path): FileInPath,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let length = check_length(&headers)?;
    let _lease = lease_chunk(&api, &caller, length)?;
    let workspace = place.open(&api, &caller)?;
    let options = PutOptions { is_new: must_be_new(&headers)?, ..PutOptions::default() };
    let written = workspace.write(&path, options, body.into_data_stream()).await;
    let stat = match written {
        Err(FileError::Exists(_)) if options.is_new => return Err(precondition_failed()),
        written => written?,
    };
    let mut response = StatusCode::NO_CONTENT.into_response();
    insert_validators(response.headers_mut(), &Validators::new(&stat, SystemTime::now()));
    Ok(response)
}

/// Counts the chunk of an upload that is held in memory.
fn lease_chunk(api: &Api, caller: &Caller, length: Option<u64>) -> Result<InputLease, Problem> {
    let mut lease = api.input.lease(&caller.identity.rate_key());
    lease.grow_to(length.unwrap_or(u64::MAX).min(HELD_OF_UPLOAD))?;
    Ok(lease)
}

/// Refuses an upload of known length before its body is read.
fn check_length(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    match length.and_then(|length| length.parse().ok()) {
        Some(length) if length > MAX_FILE as u64 => Err(FileError::TooLarge.into()),
        length => Ok(length),
    }
}

/// Whether a file may only be created. Other conditions of uploads are not supported, and must not be ignored.
fn must_be_new(headers: &HeaderMap) -> Result<bool, Problem> {
    let mut tags = headers.get_all(header::IF_NONE_MATCH).iter();
    let is_other = [header::IF_MATCH, header::IF_UNMODIFIED_SINCE].iter().any(|name| headers.contains_key(name));
    if is_other || tags.any(|tags| tags != "*") {
        let detail = "uploads support the condition `If-None-Match: *` only: the file is created, and not replaced";
        return Err(Problem::bad_request("bad_condition", detail));
    }
    Ok(headers.contains_key(header::IF_NONE_MATCH))
}

/// A change of an entry.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = FilePatch, examples(json!({"path": "archive/data-2026.csv"})))]
pub(super) struct Patch {
    /// The new path in the workspace. The folders on it are created.
    path: String,
    /// Whether an existing file or empty folder at the new path is replaced.
    #[serde(default)]
    #[schema(default = false)]
    replace: bool,
}

/// Move or rename an entry
///
/// A folder is moved with everything in it. A link is moved itself.
#[utoipa::path(
    patch, path = "/files/{*path}", operation_id = "move_file", tag = "files",
    params(WorkspaceInPath, FileInPath), request_body = Patch,
    responses((status = 200, description = "The entry at its new path", body = File)),
)]
pub(super) async fn patch(
    State(api): State<Api>,
    User(caller): User,
    place: WorkspaceInPath,
    FileInPath(path): FileInPath,
    Body(patch): Body<Patch>,
) -> Result<Json<File>, Problem> {
    let workspace = place.open(&api, &caller)?;
    let to = check_path(patch.path)?;
    workspace.rename(&path, &to, patch.replace).await?;
    let entry = workspace.stat(&to).await?;
    Ok(Json(WorkspaceEntry { path: to, entry }.into()))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteQuery {
    /// Whether a folder is removed with everything in it.
    #[serde(default)]
    #[param(default = false)]
    recursive: bool,
}

/// Remove an entry
///
/// A folder must be empty, unless `recursive` is set. A link is removed itself, not its target.
#[utoipa::path(
    delete, path = "/files/{*path}", operation_id = "delete_file", tag = "files",
    params(WorkspaceInPath, FileInPath, DeleteQuery),
    responses((status = 204, description = "Removed")),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    User(caller): User,
    place: WorkspaceInPath,
    FileInPath(path): FileInPath,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, Problem> {
    place.open(&api, &caller)?.remove(&path, query.recursive).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_refuse_conditions_they_cannot_keep() {
        let must_be_new = |name, value| must_be_new(&HeaderMap::from_iter([(name, HeaderValue::from_static(value))]));
        assert!(must_be_new(header::IF_NONE_MATCH, "*").unwrap());
        assert!(!must_be_new(header::IF_MODIFIED_SINCE, "yesterday").unwrap());
        for (name, value) in [
            (header::IF_NONE_MATCH, "\"a\""),
            (header::IF_MATCH, "*"),
            (header::IF_UNMODIFIED_SINCE, "Wed, 01 Jan 2020 00:00:00 GMT"),
        ] {
            let problem = serde_json::to_value(must_be_new(name, value).unwrap_err().view()).unwrap();
            assert_eq!((&problem["status"], &problem["code"]), (&400.into(), &"bad_condition".into()), "{value}");
        }
    }
}
