//! A channel bounded by the bytes in it, for items of very different sizes. A bound by count would be too tight for small
//! messages or, with messages of a hundred megabytes, no bound at all.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

/// Creates a channel that has room while it holds less than `capacity` bytes (at most [`Semaphore::MAX_PERMITS`]).
pub(crate) fn channel<T>(capacity: usize) -> (ByteBoundedSender<T>, ByteBoundedReceiver<T>) {
    let (items, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(capacity));
    (ByteBoundedSender { items, room: room.clone() }, ByteBoundedReceiver { items: receiver, room })
}

#[derive(Debug)]
pub(crate) struct ByteBoundedSender<T> {
    items: mpsc::UnboundedSender<(T, usize)>,
    room: Arc<Semaphore>,
}

impl<T> ByteBoundedSender<T> {
    /// Waits until there is room or the receiver is dropped. Reserves nothing: [`Self::send`] never waits, even if another
    /// sender was faster.
    pub async fn room(&self) {
        tokio::select! {
            _ = self.room.acquire() => {}
            () = self.items.closed() => {}
        }
    }

    /// Sends an item of `bytes` bytes, even beyond the capacity: one item may exceed all of it. Returns the item if the
    /// receiver was dropped.
    pub fn send(&self, item: T, bytes: usize) -> Result<(), T> {
        let taken = bytes.clamp(1, self.room.available_permits().max(1));
        let taken = self.room.forget_permits(taken);
        self.items.send((item, taken)).map_err(|error| error.0.0)
    }
}

#[derive(Debug)]
pub struct ByteBoundedReceiver<T> {
    items: mpsc::UnboundedReceiver<(T, usize)>,
    room: Arc<Semaphore>,
}

impl<T> ByteBoundedReceiver<T> {
    /// Receives the next item; `None` once the channel is empty and the sender dropped. Cancel safe.
    pub async fn recv(&mut self) -> Option<T> {
        let (item, taken) = self.items.recv().await?;
        self.room.add_permits(taken);
        Some(item)
    }

    /// The next item, if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        let (item, taken) = self.items.try_recv().ok()?;
        self.room.add_permits(taken);
        Some(item)
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn full_channel_has_room_after_receiving() {
        let (sender, mut receiver) = channel(10);
        sender.send("a", 4).unwrap();
        sender.room().await;
        sender.send("b", 1000).unwrap();
        let mut room = polled_once(sender.room());
        assert!(room.is_none(), "the channel is full");
        assert_eq!(receiver.recv().await, Some("a"));
        room = polled_once(sender.room());
        assert!(room.is_some());
        assert_eq!(receiver.recv().await, Some("b"));
        for _ in 0..10 {
            sender.send("c", 1).unwrap();
        }
        assert!(polled_once(sender.room()).is_none(), "exactly the capacity was returned");
        drop(receiver);
        sender.room().await;
        assert_eq!(sender.send("d", 1), Err("d"));
    }

    /// The output of a future if the first poll completes it.
    fn polled_once<F: Future>(future: F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
