//! Ends slow uploads. Each request body has a stall budget: time in which the server waits for the client. Every 64 KB that arrive
//! restore one second of it. Otherwise a client that sends a byte now and then would hold a connection, memory and files for days. Time
//! in which the server itself is busy does not count.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use thiserror::Error;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long the server waits for a client in all.
pub(super) const STALL_BUDGET: Duration = Duration::from_secs(60);
/// The bytes that restore one second of the budget.
pub(super) const BYTES_PER_SECOND: f64 = (64 << 10) as f64;

/// The budget is used up.
#[derive(Clone, Copy, Debug, Error)]
#[error(
    "the body came too slowly: the server waits for {} s in all, and a second more for each 64 KB that arrive",
    STALL_BUDGET.as_secs()
)]
pub(super) struct TooSlow;

/// A body whose client must not exceed the stall budget.
struct PacedBody {
    body: Body,
    left: Duration,
    stalled_since: Option<Instant>,
    /// The end of the budget.
    timeout: Pin<Box<Sleep>>,
}

impl PacedBody {
    fn new(body: Body) -> Self {
        Self { body, left: STALL_BUDGET, stalled_since: None, timeout: Box::pin(sleep_until(Instant::now())) }
    }

    fn record_progress(&mut self, bytes: usize) {
        let stalled = self.stalled_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let restored = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND);
        self.left = self.left.saturating_sub(stalled).saturating_add(restored).min(STALL_BUDGET);
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.record_progress(data.map_or(0, Bytes::len));
            return Poll::Ready(frame);
        }
        let left = self.left;
        if self.stalled_since.is_none() {
            let since = *self.stalled_since.insert(Instant::now());
            self.timeout.as_mut().reset(since + left);
        }
        self.timeout.as_mut().poll(context).map(|()| Some(Err(axum::Error::new(TooSlow))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Middleware that gives each request body its budget.
pub(super) async fn pace(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    next.run(request.map(|body| Body::new(PacedBody::new(body)))).await
}

#[cfg(test)]
mod tests {
    use futures_util::stream::{self, StreamExt as _};

    use super::*;

    /// Sends chunks with a pause before each. Returns whether all were received, and how long it took.
    async fn receive(chunks: usize, bytes: usize, pause: Duration) -> (bool, Duration) {
        let chunk = Bytes::from(vec![7; bytes]);
        let sending = stream::iter(0..chunks).then(move |_| {
            let chunk = chunk.clone();
            async move {
                tokio::time::sleep(pause).await;
                Ok::<_, axum::Error>(chunk)
            }
        });
        let began = Instant::now();
        let body = Body::new(PacedBody::new(Body::from_stream(sending)));
        let received = axum::body::to_bytes(body, usize::MAX).await;
        (received.is_ok(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn trickling_body_ends_with_its_budget() {
        let (whole, took) = receive(1000, 1, Duration::from_secs(5)).await;
        assert!(!whole && took <= STALL_BUDGET + Duration::from_secs(5), "{took:?}");
        let (whole, took) = receive(1, 1 << 20, Duration::from_secs(600)).await;
        assert!(!whole && took <= STALL_BUDGET + Duration::from_secs(1), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn steady_body_is_received_however_long() {
        let (whole, took) = receive(400, 128 << 10, Duration::from_secs(1)).await;
        assert!(whole && took > 3 * STALL_BUDGET, "{took:?}");
        let (whole, _) = receive(1, 1, STALL_BUDGET - Duration::from_secs(1)).await;
        assert!(whole, "one pause is within the budget");
    }

    #[tokio::test(start_paused = true)]
    async fn time_of_a_busy_server_does_not_count() {
        let chunks = stream::iter(0..10).map(|_| Ok::<_, axum::Error>(Bytes::from_static(b"x")));
        let mut body = Body::new(PacedBody::new(Body::from_stream(chunks))).into_data_stream();
        for _ in 0..10 {
            tokio::time::sleep(STALL_BUDGET).await;
            assert!(body.next().await.unwrap().is_ok());
        }
    }
}
