//! The body of a response on its way to the client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::masking::Masker;

/// The body of a response with its values masked. Trailers are left out.
pub(super) struct MaskedBody {
    body: Incoming,
    /// `None` if values cannot be found in it.
    masker: Option<Masker>,
    is_over: bool,
}

impl MaskedBody {
    pub fn new(body: Incoming, masker: Option<Masker>) -> Self {
        Self { body, masker, is_over: false }
    }
}

impl Body for MaskedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        while !self.is_over {
            let passed = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match (frame.into_data(), &mut self.masker) {
                    (Ok(data), Some(masker)) => masker.pass(&data),
                    (Ok(data), None) => data,
                    (Err(_), _) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.is_over = true;
                    self.masker.as_mut().map(Masker::finish).unwrap_or_default()
                }
            };
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
        }
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        // As long as nothing was read, which is when it is asked for.
        self.body.size_hint()
    }
}
