//! A least pace for those who read. Whoever takes a byte now and then would else hold what waits for it, memory, a file, a
//! place among the connections, for days.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a reader may keep us waiting in all, while more than it takes is there to be sent.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// What is taken gives time back: a second for so many bytes.
const PACE: f64 = (64 << 10) as f64;

/// A stream whose other end has to read at a least pace, short or long pauses aside.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    /// How long we wait in all.
    most: Duration,
    /// How much longer we wait.
    patience: Duration,
    waits_since: Option<Instant>,
    late: Pin<Box<Sleep>>,
}

impl<S> Paced<S> {
    /// `most`: how long we wait in all.
    pub fn new(stream: S, most: Duration) -> Self {
        Self { stream, most, patience: most, waits_since: None, late: Box::pin(sleep_until(Instant::now())) }
    }

    /// So much was taken.
    fn taken(&mut self, bytes: usize) {
        let waited = self.waits_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let back = Duration::from_secs_f64(bytes as f64 / PACE);
        self.patience = self.patience.saturating_sub(waited).saturating_add(back).min(self.most);
    }

    /// Nothing can be sent now. Tells when that has lasted for too long.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let patience = self.patience;
        if self.waits_since.is_none() {
            let since = *self.waits_since.insert(Instant::now());
            self.late.as_mut().reset(since + patience);
        }
        ready!(self.late.as_mut().poll(context));
        let (patience, kilobytes) = (self.most.as_secs(), PACE / 1024.0);
        let why = format!(
            "it kept us waiting for {patience} s in all, less a second for each {kilobytes} KB that it read; the rest is dropped"
        );
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.after(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.after(context, written)
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

impl<S> Paced<S> {
    fn after(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.taken(bytes);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.wait(context).map(Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Sends so many bytes to a reader that takes so many of them at once, and then rests.
    async fn send(bytes: usize, at_once: usize, rest: Duration) -> (io::Result<()>, Duration) {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; at_once];
            while theirs.read_exact(&mut buffer).await.is_ok() {
                tokio::time::sleep(rest).await;
            }
        });
        let mut paced = Paced::new(ours, PATIENCE);
        let began = Instant::now();
        let sent = paced.write_all(&vec![7; bytes]).await;
        let took = began.elapsed();
        drop(paced);
        reader.await.unwrap();
        (sent, took)
    }

    #[tokio::test(start_paused = true)]
    async fn who_trickles_is_let_go() {
        let (sent, took) = send(64 << 10, 1, Duration::from_secs(100)).await;
        let error = sent.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("less a second for each 64 KB"), "{error}");
        assert!(took >= PATIENCE && took < PATIENCE + Duration::from_secs(5), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_fast_enough_may_take_as_long_as_it_takes() {
        let (sent, took) = send(256 << 20, 128 << 10, Duration::from_secs(1)).await;
        sent.unwrap();
        assert!(took > 3 * PATIENCE, "{took:?}");
        // One long pause is forgiven.
        let (sent, _) = send(1 << 20, 512 << 10, PATIENCE - Duration::from_secs(60)).await;
        sent.unwrap();
    }
}
