//! Large answers: so many megabytes of them are made at once, and whoever reads one slowly reads it from a file. Else a few
//! clients that ask for much and read nothing would fill the server's memory.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

use super::Api;
use super::error::Problem;
use crate::auth::Identity;
use crate::memory;

/// What weighs no more is made at any time, and is held in memory until it has been sent. Bytes.
pub(super) const LIGHT: u64 = 1 << 20;
/// Megabytes of answers that are made at once. A heavier one is made alone. Making one takes some six times its size.
const MADE_AT_ONCE: u32 = 64;
/// How long an answer may wait to be made.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of all answers that wait in files, and of those of one principal.
const MOST_WAITING: u64 = 4 << 30;
const MOST_OF_ONE: u64 = 1 << 30;
/// Bytes that are read from a file at once.
const PIECE: usize = 64 << 10;

/// Where large answers are made, and wait.
#[derive(Debug)]
pub struct Large {
    making: Arc<Semaphore>,
    waiting: Arc<Waiting>,
    folder: PathBuf,
}

/// The right to make a large answer, until it is dropped.
#[derive(Clone)]
pub(super) struct Making(#[expect(dead_code, reason = "held")] Arc<OwnedSemaphorePermit>);

impl Large {
    /// Answers wait in nameless files in this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { making: Arc::new(Semaphore::new(MADE_AT_ONCE as usize)), waiting: Arc::default(), folder }
    }

    /// Waits for the turn of an answer of so many bytes. `None`: a light one needs none. What is given goes with the answer, as
    /// one of its extensions.
    pub(super) async fn make(&self, bytes: u64) -> Result<Option<Making>, Problem> {
        if bytes <= LIGHT {
            return Ok(None);
        }
        let megabytes = u32::try_from(bytes >> 20).unwrap_or(u32::MAX).clamp(1, MADE_AT_ONCE);
        let turn = tokio::time::timeout(PATIENCE, self.making.clone().acquire_many_owned(megabytes)).await;
        turn.ok().and_then(Result::ok).map(|permit| Some(Making(Arc::new(permit)))).ok_or_else(busy)
    }

    /// Moves a principal's body of so many bytes into a file, and gives one that reads it from there.
    async fn put_aside(&self, principal: &str, body: Body, bytes: u64) -> Result<Body, Problem> {
        let waits = self.waiting.begin(principal, bytes).ok_or_else(busy)?;
        let file = write(self.folder.clone(), body).await.map_err(|error| {
            tracing::error!(%error, "cannot put an answer aside");
            let detail = format!("there is no room to put the answer aside: {error}; ask for less, as by outputs=refs");
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", detail)
        })?;
        let counted = move |_: &io::Result<Bytes>| {
            let _until_the_stream_ends = &waits;
        };
        Ok(Body::from_stream(ReaderStream::with_capacity(file, PIECE).inspect(counted)))
    }
}

/// An answer that is told when its making ends.
pub(super) fn with_turn(turn: Option<Making>, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    turn.map(|turn| response.extensions_mut().insert(turn));
    response
}

fn busy() -> Problem {
    let detail = "so many large answers are being made or read that another has to wait; ask for less, as by outputs=refs";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(5)
}

/// Bytes of the answers that wait, by principal.
#[derive(Debug, Default)]
struct Waiting(Mutex<HashMap<String, u64>>);

impl Waiting {
    fn locked(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer for as long as what is given lives. `None` if there are too many.
    fn begin(self: &Arc<Self>, principal: &str, bytes: u64) -> Option<Waits> {
        let mut all = self.locked();
        let (sum, own) = (all.values().sum::<u64>(), all.get(principal).copied().unwrap_or(0));
        // One that is large by itself may wait, though no other beside it.
        let fits = sum.saturating_add(bytes) <= MOST_WAITING && (own == 0 || own.saturating_add(bytes) <= MOST_OF_ONE);
        fits.then(|| {
            *all.entry(principal.to_owned()).or_default() += bytes;
            Waits { principal: principal.to_owned(), bytes, all: self.clone() }
        })
    }
}

/// An answer in a file counts until it has been sent, or nobody wants it any more.
struct Waits {
    principal: String,
    bytes: u64,
    all: Arc<Waiting>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut all = self.all.locked();
        if let Some(own) = all.get_mut(&self.principal) {
            *own -= self.bytes;
            if *own == 0 {
                all.remove(&self.principal);
            }
        }
    }
}

async fn write(folder: PathBuf, body: Body) -> io::Result<File> {
    let opened = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder)).await;
    let mut file = File::from_std(opened.map_err(io::Error::other)??);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        file.write_all(&piece.map_err(io::Error::other)?).await?;
    }
    file.flush().await?;
    file.rewind().await?;
    Ok(file)
}

/// Puts every answer aside that is in memory as a whole and not light.
pub(super) async fn put_aside(State(api): State<Api>, request: Request, next: Next) -> Response {
    let principal = request.extensions().get::<Identity>().map(|identity| identity.counted_as().into_owned());
    let is_done = !matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = next.run(request).await;
    let making = response.extensions_mut().remove::<Making>();
    let Some(bytes) = response.body().size_hint().exact().filter(|bytes| *bytes > LIGHT) else { return response };
    let (mut head, body) = response.into_parts();
    if is_done {
        // What was done was done, room or not: its answer keeps its turn until it has been sent.
        return Response::from_parts(head, holding(body, making));
    }
    match api.large.put_aside(&principal.unwrap_or_default(), body, bytes).await {
        Ok(body) => {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
            // What this one took is for the next, which is made on other threads.
            memory::give_back();
            drop(making);
            Response::from_parts(head, body)
        }
        Err(problem) => problem.into_response(),
    }
}

fn holding(body: Body, making: Option<Making>) -> Body {
    let held = move |_: &Result<Bytes, axum::Error>| {
        let _until_the_body_ends = &making;
    };
    Body::from_stream(body.into_data_stream().inspect(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_is_counted_until_it_is_read_or_left() {
        let large = Large::new(std::env::temp_dir());
        let bytes = vec![7; 3 << 20];
        let read = large.put_aside("ann", Body::from(bytes.clone()), bytes.len() as u64).await.unwrap();
        let left = large.put_aside("ann", Body::from(bytes.clone()), bytes.len() as u64).await.unwrap();
        assert_eq!(large.waiting.locked()["ann"], 6 << 20);
        assert!(large.put_aside("ann", Body::empty(), MOST_OF_ONE).await.is_err(), "others wait, too");
        assert!(large.put_aside("bob", Body::empty(), MOST_OF_ONE).await.is_ok());
        assert_eq!(axum::body::to_bytes(read, usize::MAX).await.unwrap(), bytes);
        drop(left);
        assert!(large.put_aside("ann", Body::empty(), MOST_WAITING + 1).await.is_err());
        assert_eq!(*large.waiting.locked(), HashMap::new());
    }

    #[tokio::test(start_paused = true)]
    async fn heavy_answers_are_made_one_after_the_other() {
        let large = Large::new(std::env::temp_dir());
        assert!(large.make(LIGHT).await.unwrap().is_none());
        let first = large.make(u64::MAX).await.unwrap();
        assert!(large.make(LIGHT).await.unwrap().is_none(), "light ones do not wait");
        assert!(large.make(2 << 20).await.is_err(), "not for ever");
        drop(first);
        assert!(large.make(2 << 20).await.unwrap().is_some());
    }
}
