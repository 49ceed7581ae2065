//! Bodies of refused requests. Closing a connection with unread bytes resets it, and a client that is still sending would not see
//! the answer. So the rest is read and dropped, within bounds.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How much of a refused body is read, and for how long: enough for the largest file.
const DRAIN: (u64, Duration) = (2 << 30, Duration::from_secs(30));
/// The same for responses that are not [`ToKnownClient`], and for those above a limit.
const DRAIN_UNKNOWN: (u64, Duration) = (64 << 20, Duration::from_secs(5));
/// Bodies that are read at once to the larger bound.
static LARGE_DRAINS: Semaphore = Semaphore::const_new(32);

/// Marks the response to a request whose token is valid and allows it.
#[derive(Clone, Copy)]
pub(super) struct ToKnownClient;

/// A body that the middleware still has when the handler has dropped it.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<State>>);

struct State {
    body: Body,
    was_read: bool,
}

impl SharedBody {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.with(|state| {
            state.was_read = true;
            Pin::new(&mut state.body).poll_frame(context)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.with(|state| state.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|state| state.body.size_hint())
    }
}

/// Middleware that reads the rest of the body when a request is refused.
pub(super) async fn drain(request: Request, next: Next) -> Response {
    // Such a client sends nothing before it is asked to.
    let waits = request.headers().contains_key(header::EXPECT);
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(head, body)).await;
    }
    let shared = SharedBody(Arc::new(Mutex::new(State { body, was_read: false })));
    let response = next.run(Request::from_parts(head, Body::new(shared.clone()))).await;
    let is_refused = response.status().is_client_error() || response.status().is_server_error();
    if is_refused && !shared.is_end_stream() && (!waits || shared.with(|state| state.was_read)) {
        let is_known = response.extensions().get::<ToKnownClient>().is_some();
        let is_large = is_known && response.status() != StatusCode::TOO_MANY_REQUESTS;
        let permit = if is_large { LARGE_DRAINS.try_acquire().ok() } else { None };
        tokio::spawn(drain_within_bounds(shared, permit));
    }
    response
}

/// Reads a body to the larger bound if it has a permit for that.
async fn drain_within_bounds(body: SharedBody, permit: Option<SemaphorePermit<'static>>) {
    let (bytes, time) = if permit.is_some() { DRAIN } else { DRAIN_UNKNOWN };
    let _ = tokio::time::timeout(time, read_and_drop(body, bytes)).await;
}

async fn read_and_drop(mut body: SharedBody, most: u64) {
    let mut read = 0;
    while read < most
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn refused_body_is_read_to_its_bound() {
        let chunk = Bytes::from(vec![7; 1000]);
        let endless = Body::from_stream(stream::repeat_with(move || Ok::<_, axum::Error>(chunk.clone())));
        let shared = SharedBody(Arc::new(Mutex::new(State { body: endless, was_read: false })));
        read_and_drop(shared.clone(), 10_500).await;
        assert!(shared.with(|state| state.was_read) && !shared.is_end_stream());
        let finite = SharedBody(Arc::new(Mutex::new(State { body: Body::from("rest"), was_read: false })));
        read_and_drop(finite.clone(), 10_500).await;
        assert!(finite.is_end_stream());
    }
}
