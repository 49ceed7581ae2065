//! Disconnects slow readers. Each connection has a stall budget of 10 minutes; every 64 KB read restores one second of it. A single
//! pause is bounded more tightly, by `WRITE_TIMEOUT` in `connections.rs`.
//! Without it, a client that reads a byte now and then would occupy memory, a spool file and a connection for days.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long the server waits for a reader in total, while there is data to send.
pub(super) const STALL_BUDGET: Duration = Duration::from_secs(600);
/// The bytes that restore one second of the budget.
const BYTES_PER_SECOND: f64 = (64 << 10) as f64;

/// A stream whose reader must not exceed the stall budget.
#[derive(Debug)]
pub(super) struct SlowReaderLimit<S> {
    stream: S,
    budget: Duration,
    /// The part of the budget that is left.
    left: Duration,
    stalled_since: Option<Instant>,
    /// The end of the budget.
    timeout: Pin<Box<Sleep>>,
}

impl<S> SlowReaderLimit<S> {
    pub fn new(stream: S, budget: Duration) -> Self {
        let timeout = Box::pin(sleep_until(Instant::now()));
        Self { stream, budget, left: budget, stalled_since: None, timeout }
    }

    /// Restores budget after the reader has read some bytes.
    fn record_progress(&mut self, bytes: usize) {
        let stalled = self.stalled_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let restored = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND);
        self.left = self.left.saturating_sub(stalled).saturating_add(restored).min(self.budget);
    }

    /// Polls the timeout while nothing can be sent.
    fn poll_stall(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let left = self.left;
        if self.stalled_since.is_none() {
            let since = *self.stalled_since.insert(Instant::now());
            self.timeout.as_mut().reset(since + left);
        }
        ready!(self.timeout.as_mut().poll(context));
        let (budget, kilobytes) = (self.budget.as_secs(), BYTES_PER_SECOND / 1024.0);
        let why = format!(
            "the reader stalled for {budget} s in total, less a second for each {kilobytes} KB that it read; the rest is dropped"
        );
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SlowReaderLimit<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SlowReaderLimit<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.account(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.account(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S> SlowReaderLimit<S> {
    /// Updates the budget after a write.
    fn account(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.record_progress(bytes);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.poll_stall(context).map(Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Sends bytes to a reader that reads `at_once` of them and then pauses.
    async fn send(bytes: usize, at_once: usize, pause: Duration) -> (io::Result<()>, Duration) {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; at_once];
            while theirs.read_exact(&mut buffer).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        });
        let mut limited = SlowReaderLimit::new(ours, STALL_BUDGET);
        let began = Instant::now();
        let sent = limited.write_all(&vec![7; bytes]).await;
        let took = began.elapsed();
        drop(limited);
        reader.await.unwrap();
        (sent, took)
    }

    #[tokio::test(start_paused = true)]
    async fn trickling_reader_is_disconnected() {
        let (sent, took) = send(64 << 10, 1, Duration::from_secs(100)).await;
        let error = sent.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("less a second for each 64 KB"), "{error}");
        assert!(took >= STALL_BUDGET && took < STALL_BUDGET + Duration::from_secs(5), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn steady_reader_is_never_disconnected() {
        let (sent, took) = send(256 << 20, 128 << 10, Duration::from_secs(1)).await;
        sent.unwrap();
        assert!(took > 3 * STALL_BUDGET, "{took:?}");
        // One long pause is within the budget.
        let (sent, _) = send(1 << 20, 512 << 10, STALL_BUDGET - Duration::from_secs(60)).await;
        sent.unwrap();
    }
}
