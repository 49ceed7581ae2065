//! Large responses, and archives that are uploaded. A bounded number of megabytes is produced at once, and slow clients read from spool files. Otherwise a
//! few clients that request much and read nothing would fill the memory of the server.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::ReaderStream;

use super::error::Problem;
use super::{Api, input_budget};
use crate::allocator;
use crate::auth::Identity;
use crate::counters::{InUse, UseCounter, UseGuard};
use crate::ids::PrincipalId;
use crate::manager::FileError;
use crate::policy::leaves_a_share;

/// Responses up to this size are produced without a permit, and stay in memory until they are sent. Bytes.
pub(super) const MAX_SMALL: u64 = 1 << 20;
/// Megabytes of responses that are produced at once. A larger response is produced alone. Producing one takes about six
/// times its size in memory.
const MAX_PRODUCED_MB: u32 = 64;
/// How long a request waits for its permit.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest size of all spooled responses, and of those of one principal. Bytes.
const MAX_SPOOLED: u64 = 4 << 30;
const MAX_SPOOLED_PER_PRINCIPAL: u64 = 1 << 30;
/// Uploads are counted in steps of this size. Bytes.
const UPLOAD_STEP: u64 = 4 << 20;
/// Bytes that are read from a spool file at once.
const READ_SIZE: usize = 64 << 10;

/// Permits for large responses, and the files in which they wait for slow clients.
#[derive(Debug)]
pub struct ResponseSpool {
    permits: Arc<Semaphore>,
    /// Bytes of responses in spool files.
    spooled: Arc<UseCounter>,
    /// Bytes of uploads in spool files.
    uploaded: Arc<UseCounter>,
    folder: PathBuf,
}

/// The permit to produce a large response. It travels with the response as an extension, until the response is spooled.
#[derive(Clone)]
pub(super) struct ProducePermit(#[expect(dead_code, reason = "held")] Arc<OwnedSemaphorePermit>);

impl ResponseSpool {
    /// Spool files are unnamed files in this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_PRODUCED_MB as usize)),
            spooled: Arc::default(),
            uploaded: Arc::default(),
            folder,
        }
    }

    /// Waits for the permit to produce a response of this size. `None` for a small response, which needs no permit.
    pub(super) async fn acquire(&self, bytes: u64) -> Result<Option<ProducePermit>, Problem> {
        if bytes <= MAX_SMALL {
            return Ok(None);
        }
        let megabytes = u32::try_from(bytes >> 20).unwrap_or(u32::MAX).clamp(1, MAX_PRODUCED_MB);
        let permit = tokio::time::timeout(PERMIT_TIMEOUT, self.permits.clone().acquire_many_owned(megabytes)).await;
        permit.ok().and_then(Result::ok).map(|permit| Some(ProducePermit(Arc::new(permit)))).ok_or_else(busy)
    }

    /// Counts bytes of a response in a spool file.
    fn count(&self, principal: &PrincipalId, bytes: u64) -> Result<UseGuard, Problem> {
        // A single file may exceed the limit of a principal, if it is the only one.
        let admits = |used: InUse| {
            used.total.saturating_add(bytes) <= MAX_SPOOLED
                && (used.own == 0 || used.own.saturating_add(bytes) <= MAX_SPOOLED_PER_PRINCIPAL)
        };
        self.spooled.try_count(principal, bytes, admits).ok_or_else(busy)
    }

    /// Counts bytes of an upload in a spool file. Uploads and responses do not use up each other's room, and beside others a
    /// principal may use as much as it leaves free.
    fn count_upload(&self, principal: &PrincipalId, bytes: u64) -> Result<UseGuard, Problem> {
        let admits = |used: InUse| {
            (used.own == 0 || used.own.saturating_add(bytes) <= MAX_SPOOLED_PER_PRINCIPAL)
                && leaves_a_share(used.own, bytes, used.total, MAX_SPOOLED)
        };
        self.uploaded.try_count(principal, bytes, admits).ok_or_else(|| {
            let detail = "too many uploads are being received; retry when others have ended";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(5)
        })
    }

    /// Receives a request body as a file. It counts as it arrives, so that a slow upload holds only what it has sent.
    pub(super) async fn receive(&self, principal: &PrincipalId, body: Body, most: u64) -> Result<SpooledFile, Problem> {
        let mut guards = Vec::new();
        let file = open(self.folder.clone()).await.map_err(|error| cannot_spool("body", &error))?;
        let (mut file, mut received) = (file, 0);
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| input_budget::problem_of(&error).unwrap_or_else(|| FileError::Cut.into()))?;
            received += chunk.len() as u64;
            if received > most {
                return Err(FileError::TooLarge.into());
            }
            while received > guards.len() as u64 * UPLOAD_STEP {
                guards.push(self.count_upload(principal, UPLOAD_STEP)?);
            }
            file.write_all(&chunk).await.map_err(|error| cannot_spool("body", &error))?;
        }
        file.flush().await.map_err(|error| cannot_spool("body", &error))?;
        file.rewind().await.map_err(|error| cannot_spool("body", &error))?;
        Ok(SpooledFile { file: file.into_std().await, _guards: guards })
    }

    /// Moves a body into a spool file, and returns a body that reads from it. The bytes count until that body is sent or
    /// dropped.
    async fn spool(&self, principal: &PrincipalId, body: Body, bytes: u64) -> Result<Body, Problem> {
        let guard = self.count(principal, bytes)?;
        let file = write(self.folder.clone(), body).await.map_err(|error| cannot_spool("response", &error))?;
        let counted = move |_: &io::Result<Bytes>| {
            let _until_the_stream_ends = &guard;
        };
        Ok(Body::from_stream(ReaderStream::with_capacity(file, READ_SIZE).inspect(counted)))
    }
}

/// A request body in a file without a name. Its bytes count until it is dropped.
pub(super) struct SpooledFile {
    pub file: std::fs::File,
    _guards: Vec<UseGuard>,
}

/// A response that carries its permit.
pub(super) fn with_permit(permit: Option<ProducePermit>, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    permit.map(|permit| response.extensions_mut().insert(permit));
    response
}

fn busy() -> Problem {
    let detail =
        "too many large responses are being produced or read; retry, or request less, for example with outputs=refs";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(5)
}

fn cannot_spool(what: &str, error: &io::Error) -> Problem {
    tracing::error!(%error, what, "cannot write a spool file");
    let hint = if what == "response" { "; request less, for example with outputs=refs" } else { "" };
    let detail = format!("the {what} cannot be spooled: {error}{hint}");
    Problem::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", detail)
}

async fn open(folder: PathBuf) -> io::Result<File> {
    let opened = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder)).await;
    Ok(File::from_std(opened.map_err(io::Error::other)??))
}

async fn write(folder: PathBuf, body: Body) -> io::Result<File> {
    let mut file = open(folder).await?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        file.write_all(&chunk.map_err(io::Error::other)?).await?;
    }
    file.flush().await?;
    file.rewind().await?;
    Ok(file)
}

/// Middleware that spools each response whose whole body is in memory and not small.
pub(super) async fn spool_large(State(api): State<Api>, request: Request, next: Next) -> Response {
    let principal = request.extensions().get::<Identity>().map(Identity::rate_key);
    let has_effect = !matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = next.run(request).await;
    let permit = response.extensions_mut().remove::<ProducePermit>();
    let Some(bytes) = response.body().size_hint().exact().filter(|bytes| *bytes > MAX_SMALL) else { return response };
    let (mut head, body) = response.into_parts();
    if has_effect {
        // The request has had its effect, so its response must not fail for want of room. It keeps its permit until it is
        // sent.
        return Response::from_parts(head, holding(body, permit));
    }
    let principal = principal.unwrap_or_else(|| "".into());
    match api.spool.spool(&principal, body, bytes).await {
        Ok(body) => {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
            // The next response is produced on other threads, which have heaps of their own.
            allocator::release_free_memory();
            drop(permit);
            Response::from_parts(head, body)
        }
        Err(problem) => problem.into_response(),
    }
}

/// A body that holds its permit until it is sent or dropped.
fn holding(body: Body, permit: Option<ProducePermit>) -> Body {
    let held = move |_: &Result<Bytes, axum::Error>| {
        let _until_the_body_ends = &permit;
    };
    Body::from_stream(body.into_data_stream().inspect(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn spooled_bytes_count_until_body_is_read_or_dropped() {
        let spool = ResponseSpool::new(std::env::temp_dir());
        let (ann, bob) = (PrincipalId::from("ann"), PrincipalId::from("bob"));
        let bytes = vec![7; 3 << 20];
        let read = spool.spool(&ann, Body::from(bytes.clone()), bytes.len() as u64).await.unwrap();
        let dropped = spool.spool(&ann, Body::from(bytes.clone()), bytes.len() as u64).await.unwrap();
        assert_eq!(spool.spooled.total(), 6 << 20);
        assert!(spool.spool(&ann, Body::empty(), MAX_SPOOLED_PER_PRINCIPAL).await.is_err(), "beside other responses");
        assert!(spool.spool(&bob, Body::empty(), MAX_SPOOLED_PER_PRINCIPAL).await.is_ok());
        assert_eq!(axum::body::to_bytes(read, usize::MAX).await.unwrap(), bytes);
        drop(dropped);
        assert!(spool.spool(&ann, Body::empty(), MAX_SPOOLED + 1).await.is_err());
        assert_eq!(spool.spooled.total(), 0);
    }

    #[tokio::test]
    async fn uploads_count_what_has_arrived_and_beside_responses() {
        let spool = Arc::new(ResponseSpool::new(std::env::temp_dir()));
        let ann = PrincipalId::from("ann");
        let (sender, chunks) = tokio::sync::mpsc::unbounded_channel::<Result<Bytes, axum::Error>>();
        let stream = futures_util::stream::unfold(chunks, async |mut chunks| Some((chunks.recv().await?, chunks)));
        let receiving = tokio::spawn({
            let (spool, ann) = (spool.clone(), ann.clone());
            async move { spool.receive(&ann, Body::from_stream(stream), 1 << 30).await.map(|received| received.file) }
        });
        sender.send(Ok(Bytes::from(vec![7; 5 << 20]))).unwrap();
        while spool.uploaded.total() < 2 * UPLOAD_STEP {
            tokio::task::yield_now().await;
        }
        assert_eq!(spool.uploaded.total(), 2 * UPLOAD_STEP, "not the largest size");
        assert!(spool.spool(&ann, Body::empty(), MAX_SPOOLED_PER_PRINCIPAL).await.is_ok(), "responses have their own room");
        drop(sender);
        assert_eq!(receiving.await.unwrap().unwrap().metadata().unwrap().len(), 5 << 20);
        assert_eq!(spool.uploaded.total(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn large_responses_wait_for_permits() {
        let spool = ResponseSpool::new(std::env::temp_dir());
        assert!(spool.acquire(MAX_SMALL).await.unwrap().is_none());
        let first = spool.acquire(u64::MAX).await.unwrap();
        assert!(spool.acquire(MAX_SMALL).await.unwrap().is_none(), "small responses do not wait");
        assert!(spool.acquire(2 << 20).await.is_err(), "waiting has a timeout");
        drop(first);
        assert!(spool.acquire(2 << 20).await.unwrap().is_some());
    }
}
