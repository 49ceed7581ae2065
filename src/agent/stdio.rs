//! Reads the stdout and stderr of the kernel process, in chunks that never split a UTF-8 character.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::input::Input;
use crate::ids::Generation;

/// Read size, bytes.
const CHUNK: usize = 16 * 1024;

/// Forwards a pipe to the hub until its end.
pub(super) async fn read(generation: Generation, name: &'static str, fd: OwnedFd, inputs: mpsc::Sender<Input>) {
    let Ok(mut reader) = pipe::Receiver::from_owned_fd(fd) else { return };
    let mut chunk = vec![0; CHUNK];
    let mut held = 0;
    while let Ok(read @ 1..) = reader.read(&mut chunk[held..]).await {
        let filled = held + read;
        let whole = filled - incomplete_tail(&chunk[..filled]);
        let bytes = Bytes::copy_from_slice(&chunk[..whole]);
        chunk.copy_within(whole..filled, 0);
        held = filled - whole;
        if !bytes.is_empty() && inputs.send(Input::Stdio { generation, name, bytes }).await.is_err() {
            return;
        }
    }
    if held > 0 {
        let bytes = Bytes::copy_from_slice(&chunk[..held]);
        let _ = inputs.send(Input::Stdio { generation, name, bytes }).await;
    }
}

/// The length of an incomplete character at the end, at most three bytes. Bytes that are not UTF-8 count as complete.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let start = tail.iter().rposition(|byte| byte & 0b1100_0000 == 0b1100_0000);
    start.map(|at| &tail[at..]).filter(|start| start.len() < char_length(start[0])).map_or(0, <[u8]>::len)
}

/// The length of the UTF-8 character that starts with this byte.
fn char_length(first: u8) -> usize {
    match first {
        0b1100_0000..=0b1101_1111 => 2,
        0b1110_0000..=0b1110_1111 => 3,
        0b1111_0000..=0b1111_0111 => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_incomplete_characters_wait() {
        for (bytes, waiting) in [
            (&b""[..], 0),
            (b"abc", 0),
            ("aü".as_bytes(), 0),
            (&"aü".as_bytes()[..2], 1),
            (&"a€".as_bytes()[..3], 2),
            (&"😀".as_bytes()[..3], 3),
            ("😀".as_bytes(), 0),
            (b"\xff\xff", 0),
            (b"\x80\x80\x80\x80", 0),
        ] {
            assert_eq!(incomplete_tail(bytes), waiting, "{bytes:x?}");
        }
    }

    #[tokio::test]
    async fn long_text_arrives_in_whole_characters() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (sender, mut inputs) = mpsc::channel(4);
        let sent = format!("x{}\u{fffd}", "ü€😀".repeat(20_000));
        let writing = std::thread::spawn({
            let mut bytes = sent.clone().into_bytes();
            // The last character is incomplete.
            bytes.push(0xe2);
            move || writer.write_all(&bytes).unwrap()
        });
        let reading = tokio::spawn(read(Generation(1), "stdout", reader.into(), sender));
        let mut pieces = Vec::new();
        while let Some(Input::Stdio { bytes, .. }) = inputs.recv().await {
            pieces.push(bytes);
        }
        reading.await.unwrap();
        writing.join().unwrap();
        assert_eq!(pieces.pop().unwrap(), &[0xe2][..]);
        let text: String = pieces.iter().map(|piece| std::str::from_utf8(piece).unwrap()).collect();
        assert!(text == sent && pieces.len() > 5);
    }

    proptest! {
        #[test]
        fn text_cut_anywhere_stays_valid(text in "\\PC{1,10}", cut in 0usize..40) {
            let bytes = &text.as_bytes()[..cut.min(text.len())];
            prop_assert!(std::str::from_utf8(&bytes[..bytes.len() - incomplete_tail(bytes)]).is_ok());
        }
    }
}
