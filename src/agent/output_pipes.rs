//! The pipes that carry a kernel's output: stdout, stderr, and for some kernels iopub.
//!
//! The kernel's task reads them itself, without waiting: whenever one is readable, before it handles a message from a ZeroMQ socket, and
//! when the kernel has exited. So output comes before the reply that follows it, and none is lost with the process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::iopub_pipe::{Broadcast, FragmentDecoder, Positions};
use super::output_order::{OutputOrder, Stream};
use super::positions_page::PositionsPage;
use super::whole_characters::WholeCharacters;

/// Read size, bytes: the usual capacity of a pipe, so that one read takes all that was in it.
const CHUNK: usize = 64 * 1024;
/// Bytes of broadcasts that one [`OutputPipes::read`] takes, so that the kernel's task can do other things in between.
const MAX_BROADCAST_BYTES: usize = 1 << 20;
/// Chunks of text that one [`OutputPipes::read`] takes before broadcasts. A pipe holds at most 1 MB, so true positions need no
/// more; a kernel that sends false ones cannot keep the task.
const MAX_TEXT_CHUNKS: usize = 64;

/// Reads of what an exited kernel has left in its pipes. Each empties a pipe of broadcasts, or takes a chunk of text.
const MAX_LAST_READS: usize = 64;

/// An output of the kernel process.
#[derive(Debug, PartialEq)]
pub(super) enum Output {
    /// Text of stdout or stderr, which ends with a whole character.
    Text(Stream, Bytes),
    Broadcast(Broadcast),
}

pub(super) struct OutputPipes {
    text: [Option<Pipe>; 2],
    iopub: Option<Pipe>,
    page: Option<PositionsPage>,
    decoder: FragmentDecoder,
    /// Bytes read from the iopub pipe.
    broadcast_bytes: u64,
    order: OutputOrder,
    characters: [WholeCharacters; 2],
    chunk: Box<[u8]>,
    text_chunks: usize,
    /// The last read has left something in a pipe.
    unread: bool,
}

/// The reading end of a pipe.
struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    fn new(end: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&end, true)?;
        // SAFETY: an `OwnedFd` that nothing takes out of the `AsyncFd` stays the same open descriptor.
        #[expect(unsafe_code, reason = "tokio requires this promise")]
        let registered = unsafe { AsyncFd::register_with_interest(end, Interest::READABLE) };
        registered.map(Self).map_err(io::Error::from)
    }

    /// Reads without waiting. `None` at the end; zero if nothing is there yet.
    fn read(&self, chunk: &mut [u8]) -> Option<usize> {
        match rustix::io::retry_on_intr(|| rustix::io::read(self.0.get_ref().as_fd(), &mut *chunk)) {
            Ok(read) => Some(read).filter(|read| *read > 0),
            Err(rustix::io::Errno::AGAIN) => Some(0),
            Err(_) => None,
        }
    }
}

impl OutputPipes {
    /// `iopub`: the pipe of broadcasts, and the page that the kernel reads positions from, for a kernel that uses them.
    ///
    /// # Errors
    /// If a pipe cannot be registered with the runtime.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd, iopub: Option<(OwnedFd, PositionsPage)>) -> io::Result<Self> {
        let (iopub, page) = iopub.unzip();
        Ok(Self {
            text: [Some(Pipe::new(stdout)?), Some(Pipe::new(stderr)?)],
            iopub: iopub.map(Pipe::new).transpose()?,
            page,
            decoder: FragmentDecoder::default(),
            broadcast_bytes: 0,
            order: OutputOrder::default(),
            characters: Default::default(),
            chunk: vec![0; CHUNK].into(),
            text_chunks: 0,
            unread: false,
        })
    }

    /// Waits until [`Self::read`] may find something; for ever once all pipes have ended.
    pub async fn readable(&self) {
        std::future::poll_fn(|context| {
            if self.unread {
                return Poll::Ready(());
            }
            for Pipe(end) in self.text.iter().chain([&self.iopub]).flatten() {
                if let Poll::Ready(Ok(mut guard)) = end.poll_read_ready(context) {
                    // Cleared before the read, which takes everything or sets `unread`: so no later write goes unnoticed.
                    guard.clear_ready();
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Takes what is in the pipes, in the order in which it was written. Whatever was written before the call is returned, up
    /// to [`MAX_BROADCAST_BYTES`] of broadcasts.
    pub fn read(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.unread = false;
        for stream in Stream::BOTH {
            self.read_text(stream);
        }
        // Broadcasts that were written before that text are in their pipe by now.
        self.text_chunks = 0;
        let complete = self.read_broadcasts(&mut outputs);
        if complete {
            let released = self.order.release_all();
            self.add_text(released, &mut outputs);
        }
        self.unread |= !complete;
        outputs
    }

    /// Takes the rest, when no process of the sandbox writes any more: the kernel has exited and the others were killed.
    pub fn finish(&mut self) -> Vec<Output> {
        let mut outputs = self.read();
        // A process that is no more of the kernel's may have kept a pipe and go on writing; the pipes had less than this.
        for _ in 0..MAX_LAST_READS {
            if !self.unread {
                break;
            }
            outputs.extend(self.read());
        }
        for stream in Stream::BOTH {
            let rest = self.characters[stream as usize].finish();
            outputs.extend((!rest.is_empty()).then_some(Output::Text(stream, rest)));
        }
        outputs
    }

    /// Reads a chunk of text. `false` if there was none.
    fn read_text(&mut self, stream: Stream) -> bool {
        let Some(pipe) = &self.text[stream as usize] else { return false };
        if let Some(page) = &mut self.page {
            page.begin_change();
        }
        let read = pipe.read(&mut self.chunk);
        let bytes = &self.chunk[..read.unwrap_or(0)];
        self.order.push(stream, Bytes::copy_from_slice(bytes));
        let total = self.order.read(stream);
        if let Some(page) = &mut self.page {
            page.end_change(stream, total);
        }
        self.unread |= bytes.len() == CHUNK;
        if read.is_none() {
            self.text[stream as usize] = None;
        }
        !bytes.is_empty()
    }

    /// Reads and adds broadcasts, each after the text that precedes it. `false` if more may be in the pipe.
    fn read_broadcasts(&mut self, outputs: &mut Vec<Output>) -> bool {
        let mut taken = 0;
        while let Some(pipe) = self.iopub.as_ref().filter(|_| taken < MAX_BROADCAST_BYTES) {
            let Some(read) = pipe.read(&mut self.chunk) else {
                self.iopub = None;
                return true;
            };
            self.broadcast_bytes += read as u64;
            if let Some(page) = &mut self.page {
                page.set_broadcast_bytes(self.broadcast_bytes);
            }
            self.decoder.push(&self.chunk[..read]);
            while let Some((positions, broadcast)) = self.decoder.next() {
                self.add_text_before(&positions, outputs);
                outputs.push(Output::Broadcast(broadcast));
            }
            if read < CHUNK {
                return true;
            }
            taken += read;
        }
        self.iopub.is_none()
    }

    fn add_text_before(&mut self, positions: &Positions, outputs: &mut Vec<Output>) {
        for stream in Stream::BOTH {
            while self.text_chunks < MAX_TEXT_CHUNKS && self.order.misses(stream, positions) && self.read_text(stream) {
                self.text_chunks += 1;
            }
        }
        let released = self.order.release_until(positions);
        self.add_text(released, outputs);
    }

    fn add_text(&mut self, released: Vec<(Stream, Bytes)>, outputs: &mut Vec<Output>) {
        for (stream, bytes) in released {
            let whole = self.characters[stream as usize].push(bytes);
            outputs.extend((!whole.is_empty()).then_some(Output::Text(stream, whole)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::wire::Message;

    /// The writing ends of the pipes, as a kernel has them.
    struct Kernel {
        stdout: io::PipeWriter,
        stderr: io::PipeWriter,
        iopub: io::PipeWriter,
        written: [u64; 2],
    }

    fn open() -> (Kernel, OutputPipes) {
        let ((out, stdout), (err, stderr), (messages, iopub)) =
            (io::pipe().unwrap(), io::pipe().unwrap(), io::pipe().unwrap());
        let (page, _) = PositionsPage::create().unwrap();
        let pipes = OutputPipes::new(out.into(), err.into(), Some((messages.into(), page))).unwrap();
        (Kernel { stdout, stderr, iopub, written: [0, 0] }, pipes)
    }

    impl Kernel {
        fn print(&mut self, stream: Stream, text: &str) {
            self.written[stream as usize] += text.len() as u64;
            let mut pipe = if stream == Stream::Stdout { &self.stdout } else { &self.stderr };
            pipe.write_all(text.as_bytes()).unwrap();
        }

        fn set_owner(&self, owner: &str) {
            let mut fragment = (owner.len() as u16).to_le_bytes().to_vec();
            fragment.extend([3, 0, 0, 0, 0, 0]);
            fragment.extend(self.written.iter().flat_map(|at| at.to_le_bytes()));
            fragment.extend(owner.as_bytes());
            (&self.iopub).write_all(&fragment).unwrap();
        }
    }

    fn text(stream: Stream, text: &str) -> Output {
        Output::Text(stream, Bytes::copy_from_slice(text.as_bytes()))
    }

    fn owner(name: &str) -> Output {
        Output::Broadcast(Broadcast::TextOwner(Some(name.into())))
    }

    #[tokio::test]
    async fn pipes_that_filled_meanwhile_are_read_in_order() {
        let (mut kernel, mut pipes) = open();
        kernel.print(Stream::Stdout, "one");
        kernel.set_owner("a");
        kernel.print(Stream::Stderr, "two");
        kernel.print(Stream::Stdout, "three ü");
        kernel.set_owner("b");
        kernel.print(Stream::Stdout, "four");
        pipes.readable().await;
        let expected = [
            text(Stream::Stdout, "one"),
            owner("a"),
            text(Stream::Stdout, "three ü"),
            text(Stream::Stderr, "two"),
            owner("b"),
            text(Stream::Stdout, "four"),
        ];
        assert_eq!(pipes.read(), expected);
        assert_eq!(pipes.read(), []);
    }

    #[tokio::test]
    async fn everything_is_read_after_sudden_death() {
        let (mut kernel, mut pipes) = open();
        let long = "x".repeat(60_000);
        kernel.print(Stream::Stdout, &long);
        kernel.set_owner("a");
        kernel.stdout.write_all(&"ü".as_bytes()[..1]).unwrap();
        drop(kernel);
        let last = Output::Text(Stream::Stdout, Bytes::copy_from_slice(&"ü".as_bytes()[..1]));
        assert_eq!(pipes.finish(), [text(Stream::Stdout, &long), owner("a"), last]);
        assert_eq!(pipes.finish(), []);
    }

    #[tokio::test]
    async fn more_text_than_a_chunk_precedes_its_broadcast() {
        let (mut kernel, mut pipes) = open();
        rustix::pipe::fcntl_setpipe_size(&kernel.stdout, 1 << 20).unwrap();
        let long = "x".repeat(300_000);
        kernel.print(Stream::Stdout, &long);
        kernel.set_owner("a");
        let outputs = pipes.read();
        let length: usize =
            outputs.iter().map(|output| if let Output::Text(_, bytes) = output { bytes.len() } else { 0 }).sum();
        assert_eq!((length, outputs.last()), (300_000, Some(&owner("a"))));
    }

    #[tokio::test]
    async fn many_large_messages_are_read_in_parts() {
        let (kernel, mut pipes) = open();
        let message = Message::new_request("s", "display_data", &serde_json::json!({"data": "x".repeat(3000)}));
        let payload = message.pack().concat();
        let mut fragment = (payload.len() as u16).to_le_bytes().to_vec();
        fragment.extend([2, 0, 1, 0, 0, 0]);
        fragment.extend([0xff; 16]);
        fragment.extend(&payload);
        let writing = std::thread::spawn(move || {
            for _ in 0..1000 {
                (&kernel.iopub).write_all(&fragment).unwrap();
            }
        });
        let mut count = 0;
        while count < 1000 {
            pipes.readable().await;
            count += pipes.read().len();
        }
        writing.join().unwrap();
        assert_eq!(count, 1000);
    }
}
