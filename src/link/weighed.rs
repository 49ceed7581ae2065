//! A queue bounded by the bytes in it, for things of very unequal size: a bound by count would be either too tight for
//! small messages or, with messages of a hundred megabytes, no bound at all.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

/// Makes a queue that takes more as long as less than `capacity` bytes are in it (at most [`Semaphore::MAX_PERMITS`]).
pub(crate) fn channel<T>(capacity: usize) -> (WeighedSender<T>, WeighedReceiver<T>) {
    let (items, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(capacity));
    (WeighedSender { items, room: room.clone() }, WeighedReceiver { items: receiver, room })
}

/// The end that puts in.
#[derive(Debug)]
pub(crate) struct WeighedSender<T> {
    items: mpsc::UnboundedSender<(T, usize)>,
    room: Arc<Semaphore>,
}

impl<T> WeighedSender<T> {
    /// Waits until there is room, or the other end is gone. Losing the race for it costs nothing: sending never waits.
    pub async fn room(&self) {
        tokio::select! {
            _ = self.room.acquire() => {}
            () = self.items.closed() => {}
        }
    }

    /// Puts an item in, also over the capacity: one item may be larger than all of it. Gives the item back when the
    /// other end is gone.
    pub fn send(&self, item: T, weight: usize) -> Result<(), T> {
        let taken = weight.clamp(1, self.room.available_permits().max(1));
        let taken = self.room.forget_permits(taken);
        self.items.send((item, taken)).map_err(|error| error.0.0)
    }
}

/// The end that takes out.
#[derive(Debug)]
pub struct WeighedReceiver<T> {
    items: mpsc::UnboundedReceiver<(T, usize)>,
    room: Arc<Semaphore>,
}

impl<T> WeighedReceiver<T> {
    /// The next item; `None` when the queue is empty and its other end gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<T> {
        let (item, taken) = self.items.recv().await?;
        self.room.add_permits(taken);
        Some(item)
    }

    /// The next item, if one waits.
    pub fn try_recv(&mut self) -> Option<T> {
        let (item, taken) = self.items.try_recv().ok()?;
        self.room.add_permits(taken);
        Some(item)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_has_no_room_until_something_is_taken() {
        let (sender, mut receiver) = channel(10);
        sender.send("a", 4).unwrap();
        sender.room().await;
        sender.send("b", 1000).unwrap();
        let mut room = polled_once(sender.room());
        assert!(room.is_none(), "the queue is full");
        assert_eq!(receiver.recv().await, Some("a"));
        room = polled_once(sender.room());
        assert!(room.is_some());
        assert_eq!(receiver.recv().await, Some("b"));
        for _ in 0..10 {
            sender.send("c", 1).unwrap();
        }
        assert!(polled_once(sender.room()).is_none(), "all of the capacity had come back, and no more");
        drop(receiver);
        sender.room().await;
        assert_eq!(sender.send("d", 1), Err("d"));
    }

    /// The result of a future that is polled once.
    fn polled_once<F: Future>(future: F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
