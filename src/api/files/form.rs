//! Reads an upload form. The parser of forms buffers what is before and between the files without a limit of its own, so
//! [`Bounds`] counts the bytes that go into it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use thiserror::Error;

use crate::api::error::Problem;
use crate::api::input_budget;
use crate::manager::{FileError, MAX_ARCHIVE_BYTES};

/// The most bytes that may pass without a byte of a file: before the first part, and in the header of a part.
const MAX_GAP: u64 = 64 << 10;
/// The largest form in bytes: its files, and the headers of all parts.
const MAX_FORM: u64 = MAX_ARCHIVE_BYTES + (256 << 20);

/// Which bound a form exceeded.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
enum Exceeded {
    #[error("the header of a part, or what is before the first part, has more than {} KB", MAX_GAP >> 10)]
    Gap,
    #[error("the form has more than {} MB", MAX_FORM >> 20)]
    Form,
}

impl From<Exceeded> for Problem {
    fn from(exceeded: Exceeded) -> Self {
        match exceeded {
            Exceeded::Gap => Self::bad_request("bad_form", exceeded.to_string()),
            Exceeded::Form => FileError::ArchiveTooLarge(exceeded.to_string()).into(),
        }
    }
}

/// Bounds of a form. Clones share the counters.
#[derive(Clone, Debug, Default)]
struct Bounds(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    /// Bytes since a part began, or since bytes of a file came out of the parser.
    gap: AtomicU64,
    total: AtomicU64,
    exceeded: OnceLock<Exceeded>,
}

impl Bounds {
    /// Counts a chunk that goes into the parser, which thus holds at most [`MAX_GAP`] and one chunk.
    fn count(&self, chunk: &Bytes) -> Result<(), Exceeded> {
        let length = chunk.len() as u64;
        let gap = self.0.gap.fetch_add(length, Ordering::Relaxed);
        let total = self.0.total.fetch_add(length, Ordering::Relaxed) + length;
        let exceeded = if gap > MAX_GAP {
            Exceeded::Gap
        } else if total > MAX_FORM {
            Exceeded::Form
        } else {
            return Ok(());
        };
        Err(*self.0.exceeded.get_or_init(|| exceeded))
    }

    /// A part has begun, or bytes of a file came out of the parser.
    fn advance(&self) {
        self.0.gap.store(0, Ordering::Relaxed);
    }

    /// The body with its bounds. It is pending once after each chunk: the parser reads as long as there are bytes, and must
    /// pass on those of a file before it gets more.
    fn limit(self, body: Body) -> Body {
        let (mut body, mut must_pause) = (body.into_data_stream(), false);
        Body::from_stream(stream::poll_fn(move |context| {
            if std::mem::take(&mut must_pause) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let polled = body.poll_next_unpin(context);
            must_pause = polled.is_ready();
            polled.map_ok(|chunk| self.count(&chunk).map(|()| chunk)).map(|chunk| match chunk? {
                Ok(counted) => Some(counted.map_err(BoxError::from)),
                Err(error) => Some(Err(error.into())),
            })
        }))
    }
}

/// A form whose parts are files.
pub(super) struct FormReader {
    form: Multipart,
    bounds: Bounds,
}

impl FormReader {
    pub async fn new(request: Request) -> Result<Self, Problem> {
        let bounds = Bounds::default();
        let request = request.map(|body| bounds.clone().limit(body));
        let form = Multipart::from_request(request, &()).await;
        let form = form.map_err(|rejection| Problem::bad_request("bad_form", rejection.body_text()))?;
        Ok(Self { form, bounds })
    }

    /// The name and the bytes of the next file.
    pub async fn next_file(
        &mut self,
    ) -> Result<Option<(String, impl Stream<Item = Result<Bytes, MultipartError>> + use<'_>)>, Problem> {
        let field = self.form.next_field().await;
        let bad_form = |error: MultipartError| {
            input_budget::problem_of(&error).unwrap_or_else(|| Problem::bad_request("bad_form", error.body_text()))
        };
        let field = field.map_err(bad_form)?;
        let Some(field) = field else { return Ok(None) };
        let (name, bounds) = (file_name(&field)?, self.bounds.clone());
        bounds.advance();
        Ok(Some((name, field.inspect_ok(move |_| bounds.advance()))))
    }

    /// The bound that was exceeded, if one was.
    pub fn exceeded(&self) -> Option<Problem> {
        self.bounds.0.exceeded.get().map(|exceeded| (*exceeded).into())
    }
}

fn file_name(field: &Field<'_>) -> Result<String, Problem> {
    field.file_name().map(str::to_owned).ok_or_else(|| {
        let detail = format!("the part {:?} is not a file: it has no filename", field.name().unwrap_or_default());
        Problem::bad_request("bad_form", detail)
    })
}

#[cfg(test)]
mod tests {
    use axum::http::header;

    use super::*;

    /// A form that begins like this, and goes on without an end. Counts the bytes that are read.
    async fn endless(start: &'static str) -> (FormReader, Arc<AtomicU64>) {
        let read = Arc::new(AtomicU64::new(0));
        let counter = read.clone();
        let chunks = stream::iter([Bytes::from(start)]).chain(stream::repeat(Bytes::from(vec![b'a'; 1000])));
        let chunks = chunks.map(move |chunk| {
            counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            Ok::<_, BoxError>(chunk)
        });
        let request = Request::builder().header(header::CONTENT_TYPE, "multipart/form-data; boundary=b");
        let form = FormReader::new(request.body(Body::from_stream(chunks)).unwrap()).await.unwrap();
        (form, read)
    }

    #[tokio::test]
    async fn endless_preambles_and_headers_are_refused() {
        for start in ["x", "--b\r\nX: ", "--b\r\n\r\n"] {
            let (mut form, read) = endless(start).await;
            let problem = form.next_file().await.err().unwrap();
            let code = |problem: Problem| serde_json::to_value(problem.view()).unwrap()["code"].clone();
            assert_eq!(
                (code(problem), form.exceeded().map(code)),
                ("bad_form".into(), Some("bad_form".into())),
                "{start:?}"
            );
            assert!(read.load(Ordering::Relaxed) < MAX_GAP + 3000, "{start:?}");
        }
    }

    #[tokio::test]
    async fn long_files_pass_chunk_by_chunk() {
        let (mut form, read) = endless("--b\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\n").await;
        let (name, file) = form.next_file().await.unwrap().unwrap();
        let mut file = std::pin::pin!(file);
        let mut length = 0;
        while length < 10 * MAX_GAP {
            length += file.next().await.unwrap().unwrap().len() as u64;
            assert!(read.load(Ordering::Relaxed) < length + 3000, "what was read was passed on");
        }
        assert_eq!(name, "f");
    }
}
