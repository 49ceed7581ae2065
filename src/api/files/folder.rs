//! Requests about folders of the workspace: a folder as a list or as an archive, and files that are added to it, one by one in a
//! form or as an archive.

use axum::Json;
use axum::body::Body as RawBody;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::form::FormReader;
use super::{File, WorkspaceInPath, check_length, check_path, download_headers, lease_chunk};
use crate::api::error::Problem;
use crate::api::extract::media_type;
use crate::api::view::Binary;
use crate::api::{Api, Caller, Query, User, paging};
use crate::manager::{ArchiveFormat, FileError, MAX_FILE, Position, Staging, Summary, Workspace, WorkspaceEntry, printable};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct ListQuery {
    /// The path of the folder. Empty means the workspace itself.
    #[serde(default)]
    path: String,
    /// `json` lists the folder. `zip`, `tar` and `tar.gz` download it with everything in it.
    #[param(inline, value_type = Option<Format>)]
    format: Option<String>,
    /// `1` lists what is in the folder, `all` also what is in its folders, and `0` the entry with this path itself, which may be
    /// a file or a link.
    #[param(inline, value_type = Option<Depth>)]
    depth: Option<String>,
    /// The largest number of entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Clone, Copy, Debug, ToSchema)]
#[schema(default = "1")]
enum Depth {
    #[schema(rename = "0")]
    Zero,
    #[schema(rename = "1")]
    One,
    #[schema(rename = "all")]
    All,
}

impl Depth {
    fn parse(text: Option<&str>) -> Result<Self, Problem> {
        match text {
            Some("0") => Ok(Self::Zero),
            None | Some("1") => Ok(Self::One),
            Some("all") => Ok(Self::All),
            Some(other) => {
                let detail = format!("{other:?} is not a depth; use 0, 1 or all");
                Err(Problem::bad_request("bad_query", detail).field("depth"))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, ToSchema)]
#[schema(default = "json")]
#[expect(dead_code, reason = "the schema of a query field")]
enum Format {
    #[schema(rename = "json")]
    Json,
    #[schema(rename = "zip")]
    Zip,
    #[schema(rename = "tar")]
    Tar,
    #[schema(rename = "tar.gz")]
    TarGz,
}

/// A page of a folder.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "path": "in", "next_cursor": null, "entries": [{
        "path": "in/data.csv", "name": "data.csv", "kind": "file", "size": 1048576,
        "modified_at": "2026-11-30T11:55:05.348000Z", "media_type": "text/csv"
    }]
})))]
pub(super) struct FileList {
    /// The path of the folder, as in the request.
    path: String,
    /// Ordered by name. A folder is followed by what is in it.
    entries: Vec<File>,
    /// The cursor of the next page; null at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// List a folder, describe an entry, or download a folder as an archive
///
/// Archives contain links as links. Devices, pipes and sockets are left out. An archive has at most 100,000 entries and 4 GB.
#[utoipa::path(
    get, path = "/files/", operation_id = "list_files", tag = "files",
    params(WorkspaceInPath, ListQuery),
    responses((status = 200, description = "The entries, or the archive", content(
        (FileList = "application/json"), (inline(Binary) = "application/zip"), (inline(Binary) = "application/x-tar"),
        (inline(Binary) = "application/gzip")))),
)]
pub(in crate::api) async fn list(
    State(api): State<Api>,
    caller: Caller,
    place: WorkspaceInPath,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let workspace = place.open(&api, &caller)?;
    let path = check_path(query.path)?;
    let format = match query.format.as_deref() {
        None | Some("json") => {
            let (limit, cursor) = (paging::limit(query.limit)?, paging::position::<String>(query.cursor.as_deref())?);
            let is_recursive = match Depth::parse(query.depth.as_deref())? {
                Depth::Zero => {
                    let entry = workspace.stat(&path).await?;
                    let entries = vec![WorkspaceEntry { path: path.clone(), entry }.into()];
                    return Ok(Json(FileList { path, entries, next_cursor: None }).into_response());
                }
                Depth::One => false,
                Depth::All => true,
            };
            let position = cursor.map(|text| Position::parse(&path, text, is_recursive).ok_or_else(paging::bad_cursor));
            let page = workspace.page(&path, is_recursive, position.transpose()?.as_ref(), limit).await?;
            let next_cursor = page.next.map(|position| paging::cursor(&position.as_str()));
            let entries = page.entries.into_iter().map(File::from).collect();
            return Ok(Json(FileList { path, entries, next_cursor }).into_response());
        }
        Some("zip") => ArchiveFormat::Zip,
        Some("tar") => ArchiveFormat::Tar,
        Some("tar.gz") => ArchiveFormat::TarGz,
        Some(other) => {
            let detail = format!("{other:?} is not a format; use json, zip, tar or tar.gz");
            return Err(Problem::bad_request("bad_query", detail).field("format"));
        }
    };
    if query.limit.is_some() || query.cursor.is_some() || query.depth.is_some() {
        let detail = "an archive has everything in the folder: it takes no limit, cursor or depth";
        return Err(Problem::bad_request("bad_query", detail).field("format"));
    }
    let archive = workspace.pack(&path, format).await?;
    Ok((archive_headers(&path, format), RawBody::from_stream(archive)).into_response())
}

fn archive_headers(path: &str, format: ArchiveFormat) -> HeaderMap {
    let (extension, media_type) = match format {
        ArchiveFormat::Zip => ("zip", "application/zip"),
        ArchiveFormat::Tar => ("tar", "application/x-tar"),
        ArchiveFormat::TarGz => ("tar.gz", "application/gzip"),
    };
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("workspace");
    let mut headers = download_headers(&format!("{}.{extension}", printable(name)), None);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct FolderQuery {
    /// The path of the folder. Empty means the workspace itself.
    #[serde(default)]
    path: String,
}

/// Create a folder, and the folders on its path
///
/// An existing folder is not an error.
#[utoipa::path(
    put, path = "/files/", operation_id = "create_folder", tag = "files",
    params(WorkspaceInPath, FolderQuery),
    responses((status = 204, description = "The folder exists")),
)]
pub(in crate::api) async fn create(
    State(api): State<Api>,
    User(caller): User,
    place: WorkspaceInPath,
    Query(query): Query<FolderQuery>,
) -> Result<StatusCode, Problem> {
    place.open(&api, &caller)?.make_folder(&check_path(query.path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Files to upload. Each part of the form is a file; the names of the parts have no meaning.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the schema of a form, which `FormReader` reads")]
struct FileForm {
    /// Files with their names, which may contain folders.
    #[schema(value_type = Vec<String>, format = Binary)]
    file: Vec<Binary>,
}

/// What was added to a folder.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"path": "in", "files": 2, "folders": 1, "links": 0, "bytes": 1048576})))]
pub(in crate::api) struct Uploaded {
    /// The path of the folder, as in the request.
    path: String,
    files: usize,
    folders: usize,
    links: usize,
    /// The bytes of all files.
    bytes: u64,
}

/// Add files to a folder
///
/// The body is a form with files, or an archive: a zip file, a tar file, or a tar file that is compressed by gzip. An archive is
/// recognised by its bytes. The folder is created. Existing files are replaced; nothing is changed if the request is refused.
///
/// Refused are archives with paths or links that lead out of the folder, with hard links, sparse files, devices or pipes, with
/// an entry that occurs twice, with names that are not UTF-8, encrypted ones, and those with more than 100,000 entries or 4 GB of
/// files. An archive or a file has at most 1 GB.
#[utoipa::path(
    post, path = "/files/", operation_id = "upload_files", tag = "files",
    params(WorkspaceInPath, FolderQuery),
    request_body(content((FileForm = "multipart/form-data"), (inline(Binary) = "application/zip"),
        (inline(Binary) = "application/x-tar"), (inline(Binary) = "application/gzip"))),
    responses((status = 201, description = "The files are in the folder", body = Uploaded)),
)]
pub(in crate::api) async fn upload(
    State(api): State<Api>,
    User(caller): User,
    place: WorkspaceInPath,
    Query(query): Query<FolderQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let workspace = place.open(&api, &caller)?;
    let path = check_path(query.path)?;
    // A body that cannot go there is refused before it is read.
    match workspace.page(&path, false, None, 1).await {
        Ok(_) | Err(FileError::Missing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let summary = if media_type(request.headers()) == "multipart/form-data" {
        let _lease = lease_chunk(&api, &caller, None)?;
        upload_form(&workspace, &path, request).await?
    } else {
        check_length(request.headers())?;
        let archive = api.spool.receive(&caller.identity.rate_key(), request.into_body(), MAX_FILE as u64).await?;
        workspace.unpack(&path, archive.file).await?
    };
    let Summary { files, folders, links, bytes } = summary;
    Ok((StatusCode::CREATED, Json(Uploaded { path, files, folders, links, bytes })).into_response())
}

async fn upload_form(workspace: &Workspace, into: &str, request: Request) -> Result<Summary, Problem> {
    let mut form = FormReader::new(request).await?;
    let mut staging = workspace.stage().await?;
    match stage_files(&mut form, &mut staging).await {
        Ok(()) => Ok(staging.publish(into).await?),
        Err(problem) => {
            staging.discard().await;
            // A bound of the form is the cause of what the parser reports.
            Err(form.exceeded().unwrap_or(problem))
        }
    }
}

async fn stage_files(form: &mut FormReader, staging: &mut Staging) -> Result<(), Problem> {
    let mut is_empty = true;
    while let Some((name, chunks)) = form.next_file().await? {
        staging.write(&name, chunks).await?;
        is_empty = false;
    }
    if is_empty { Err(Problem::bad_request("bad_form", "the form has no file")) } else { Ok(()) }
}
