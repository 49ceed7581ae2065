//! The memory of input that has not arrived as a whole: bodies that are collected, and messages of WebSockets. It is counted before it
//! is allocated. Otherwise a few clients that send most of a large body and then wait would fill the memory of the server.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::StatusCode;
use hyper::body::{Frame, SizeHint};
use thiserror::Error;

use super::error::Problem;
use super::paced_body::TooSlow;
use crate::counters::{InUse, UseCounter, UseGuard};
use crate::ids::PrincipalId;
use crate::policy::leaves_a_share;

/// Bytes of incomplete input of all clients, and of one principal.
const MAX_IN_ALL: u64 = 128 << 20;
const MAX_EACH: u64 = 64 << 20;
/// Input is counted in steps of this size.
const STEP: u64 = 16 << 10;

/// The budget of a server.
#[derive(Debug, Default)]
pub struct InputBudget {
    held: Arc<UseCounter>,
}

impl InputBudget {
    /// A lease for one body or connection of a principal, which holds nothing yet.
    pub(super) fn lease(self: &Arc<Self>, principal: &PrincipalId) -> InputLease {
        InputLease { budget: self.clone(), principal: principal.clone(), held: Vec::new(), bytes: 0 }
    }
}

/// The part of the budget that one body or connection holds, until it is dropped.
#[derive(Debug)]
pub(super) struct InputLease {
    budget: Arc<InputBudget>,
    principal: PrincipalId,
    held: Vec<UseGuard>,
    bytes: u64,
}

/// The budget does not suffice.
#[derive(Clone, Copy, Debug, Error)]
#[error("too much input is being received at once")]
pub(super) struct OutOfBudget;

impl InputLease {
    /// Makes sure that the lease holds at least this many bytes. Beside others, a principal may hold as much as it leaves free.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), OutOfBudget> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else { return Ok(()) };
        // Doubling keeps the list of guards short.
        let more = more.max(self.bytes.min(MAX_EACH / 64)).next_multiple_of(STEP);
        let admits = |used: InUse| {
            used.own.saturating_add(more) <= MAX_EACH && leaves_a_share(used.own, more, used.total, MAX_IN_ALL)
        };
        self.held.push(self.budget.held.try_count(&self.principal, more, admits).ok_or(OutOfBudget)?);
        self.bytes += more;
        Ok(())
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        self.held.clear();
        self.bytes = 0;
    }
}

/// Where the input of a request is counted. An extension of the request.
#[derive(Clone, Debug)]
pub(super) struct InputAccount {
    pub budget: Arc<InputBudget>,
    pub principal: PrincipalId,
}

/// A request whose body is about to be collected: what has arrived of it is counted until the body is dropped.
pub(super) fn counted(request: Request) -> Request {
    let Some(account) = request.extensions().get::<InputAccount>().cloned() else { return request };
    let lease = account.budget.lease(&account.principal);
    request.map(|body| Body::new(CountedBody { body, lease, received: 0 }))
}

/// A body whose bytes are counted as they arrive.
struct CountedBody {
    body: Body,
    lease: InputLease,
    received: u64,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.received += frame.data_ref().map_or(0, |data| data.len() as u64);
            let received = self.received;
            if let Err(error) = self.lease.grow_to(received) {
                return Poll::Ready(Some(Err(axum::Error::new(error))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The problem of a body that could not be received, if the server has ended it.
pub(super) fn problem_of(error: &(dyn Error + 'static)) -> Option<Problem> {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.find_map(|cause| {
        let is_refused = cause.downcast_ref::<OutOfBudget>().map(|refused| (*refused).into());
        is_refused.or_else(|| Some(Problem::bad_request("too_slow", cause.downcast_ref::<TooSlow>()?.to_string())))
    })
}

impl From<OutOfBudget> for Problem {
    fn from(error: OutOfBudget) -> Self {
        let detail = format!("{error}, by you or by all clients together; retry when other requests have been sent");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_much_input", detail).retry_after(5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    /// The leases that a principal gets, each of this many bytes.
    fn take(budget: &Arc<InputBudget>, name: &str, bytes: u64) -> Vec<InputLease> {
        let name = PrincipalId::from(name);
        let next = || {
            let mut lease = budget.lease(&name);
            lease.grow_to(bytes).ok().map(|()| lease)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn half_sent_input_is_bounded_for_each_and_in_all() {
        let budget = Arc::<InputBudget>::default();
        let mut all = Vec::new();
        for (name, count) in [("a", 2), ("b", 1), ("c", 1)] {
            let leases = take(&budget, name, 30 * MB);
            assert_eq!(leases.len(), count, "{name}");
            all.extend(leases);
        }
        assert_eq!(take(&budget, "d", 30 * MB).len(), 0);
        assert!(budget.lease(&"d".into()).grow_to(MB).is_ok(), "small bodies of others are received");
        drop(all);
        let again = take(&budget, "d", 30 * MB);
        assert_eq!(again.len(), 2);
        drop(again);
        assert_eq!(budget.held.total(), 0);
    }

    #[test]
    fn growing_in_small_steps_counts_about_the_bytes() {
        let budget = Arc::<InputBudget>::default();
        let mut lease = budget.lease(&"a".into());
        for bytes in (0..30 * MB).step_by(8 << 10) {
            lease.grow_to(bytes).unwrap();
        }
        assert!((30 * MB - STEP..=31 * MB).contains(&budget.held.total()), "{}", budget.held.total());
        assert!(lease.held.len() < 60, "{}", lease.held.len());
        lease.clear();
        assert_eq!(budget.held.total(), 0);
        lease.grow_to(1).unwrap();
        assert_eq!(budget.held.total(), STEP);
    }

    #[tokio::test]
    async fn refused_body_has_its_own_problem() {
        let account = InputAccount { budget: Arc::default(), principal: "a".into() };
        let mut request = Request::new(Body::from(vec![1; 65 << 20]));
        request.extensions_mut().insert(account.clone());
        let error = axum::body::to_bytes(counted(request).into_body(), usize::MAX).await.unwrap_err();
        let problem = serde_json::to_value(problem_of(&error).unwrap().view()).unwrap();
        assert_eq!((&problem["status"], &problem["code"]), (&429.into(), &"too_much_input".into()));
        assert_eq!(account.budget.held.total(), 0);
        assert!(problem_of(&std::io::Error::other("cut")).is_none());
    }
}
