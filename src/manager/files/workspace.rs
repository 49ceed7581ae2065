//! The files of one session, by the requests that its agent answers.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt};

use super::owner::WorkspaceOwner;
use super::{ArchiveLoad, FileError, MAX_FILE};
use crate::agent_protocol::{AnswerBody, FILE_CHUNK, FileEntry, FileStat, PutOptions, Request, decode_name};
use crate::link::LinkError;
use crate::session::{AgentRequests, SessionError, Upload};

/// The most requests of one removal. Each removes a bounded number of entries.
const MAX_REMOVALS: usize = 10_000;

/// The longest name of an entry in bytes, as in Linux.
pub(super) const MAX_NAME: usize = 255;

/// The workspace of a session or a sandbox. Paths are relative to it, without `.` and `..`. Clones share it.
#[derive(Clone)]
pub struct Workspace {
    pub(super) owner: WorkspaceOwner,
    pub(super) load: Arc<ArchiveLoad>,
}

fn unexpected() -> FileError {
    SessionError::Link(LinkError::Unexpected).into()
}

/// The bytes of a name, if it can be that of an entry.
fn decode_entry_name(name: &str) -> Option<Vec<u8>> {
    let is_name = |name: &Vec<u8>| {
        (1..=MAX_NAME).contains(&name.len()) && !name.contains(&b'/') && !matches!(name.as_slice(), b"." | b"..")
    };
    decode_name(name).filter(is_name)
}

/// Whether an agent's answer describes the entry at a path. The workspace itself has no name.
fn is_described(path: &str, entry: &FileEntry) -> bool {
    entry.name == path.rsplit('/').next().unwrap_or_default()
}

/// Whether an agent's answer is a page of a folder after a name: names that can exist, in order, so that a list has an end.
fn is_page(after: &str, limit: usize, entries: &[FileEntry], next: Option<&str>) -> bool {
    let Some(after) = decode_name(after) else { return false };
    let mut last = after.clone();
    let are_ordered = entries.iter().all(|entry| match decode_entry_name(&entry.name) {
        Some(name) if name > last => {
            last = name;
            true
        }
        _ => false,
    });
    let next = next.map(decode_entry_name);
    entries.len() <= limit && are_ordered && next.is_none_or(|next| next.is_some_and(|next| next > after && next >= last))
}

impl Workspace {
    pub(super) fn new(owner: WorkspaceOwner, load: Arc<ArchiveLoad>) -> Self {
        Self { owner, load }
    }

    /// Asks the agent. Each request counts as a use, so that the session does not become idle during a slow transfer.
    async fn ask(&self, request: Request) -> Result<(AnswerBody, Bytes), FileError> {
        self.owner.touch();
        Ok(self.owner.ask(request, Bytes::new()).await?)
    }

    async fn tell(&self, request: Request) -> Result<(), FileError> {
        self.ask(request).await.map(drop)
    }

    /// At most `length` bytes of a file from `offset`, with the state of the file at that time.
    pub(super) async fn read_chunk(&self, path: &str, offset: u64, length: u64) -> Result<(FileStat, Bytes), FileError> {
        match self.ask(Request::FileGet { path: path.to_owned(), offset, length }).await? {
            (AnswerBody::File(stat), bytes) => Ok((stat, bytes)),
            _ => Err(unexpected()),
        }
    }

    /// An entry. A symlink is not followed.
    pub async fn stat(&self, path: &str) -> Result<FileEntry, FileError> {
        match self.ask(Request::FileStat { path: path.to_owned() }).await? {
            (AnswerBody::Entry(entry), _) if is_described(path, &entry) => Ok(entry),
            _ => Err(unexpected()),
        }
    }

    /// A page of a folder after the name `after`, and the name after which the next page begins.
    pub(super) async fn list(
        &self,
        path: &str,
        after: &str,
        limit: usize,
    ) -> Result<(Vec<FileEntry>, Option<String>), FileError> {
        match self.ask(Request::FileList { path: path.to_owned(), after: after.to_owned(), limit }).await? {
            (AnswerBody::Listing { entries, next }, _) if is_page(after, limit, &entries, next.as_deref()) => {
                Ok((entries, next))
            }
            _ => Err(unexpected()),
        }
    }

    /// Creates a folder and its parents, where they do not exist.
    pub async fn make_folder(&self, path: &str) -> Result<(), FileError> {
        self.tell(Request::FileMakeFolder { path: path.to_owned() }).await
    }

    pub(super) async fn make_link(&self, path: &str, target: &str) -> Result<(), FileError> {
        self.tell(Request::FileLink { path: path.to_owned(), target: target.to_owned() }).await
    }

    /// Moves an entry. The parents of the new path are created. `replace` allows that a file or an empty folder is replaced.
    pub async fn rename(&self, path: &str, to: &str, replace: bool) -> Result<(), FileError> {
        self.tell(Request::FileMove { path: path.to_owned(), to: to.to_owned(), replace }).await
    }

    /// Removes a file, a symlink or a folder; `recursive` with everything in it.
    pub async fn remove(&self, path: &str, recursive: bool) -> Result<(), FileError> {
        for _ in 0..MAX_REMOVALS {
            match self.ask(Request::FileRemove { path: path.to_owned(), recursive }).await? {
                (AnswerBody::Removed { more: true }, _) => {}
                (AnswerBody::Removed { more: false }, _) => return Ok(()),
                _ => return Err(unexpected()),
            }
        }
        Err(FileError::Busy("files are being created as fast as they are removed; stop what creates them".to_owned()))
    }

    /// Starts an upload of one file.
    pub(super) fn upload(&self, path: &str, options: PutOptions) -> Upload<WorkspaceOwner> {
        Upload::new(self.owner.clone(), path, options)
    }

    /// As [`Self::write`], for content that is at hand.
    pub async fn write_bytes(&self, path: &str, content: Bytes) -> Result<FileStat, FileError> {
        self.write(path, PutOptions::default(), stream::iter([Ok::<_, Infallible>(content)])).await
    }

    /// Writes a file and creates its folders. The file appears as a whole with its last chunk. Until then, and after an
    /// error, an existing file stays unchanged; the workspace needs room for both.
    pub async fn write<E>(
        &self,
        path: &str,
        options: PutOptions,
        chunks: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<FileStat, FileError> {
        let mut chunks = std::pin::pin!(chunks);
        let mut upload = self.upload(path, options);
        let mut buffer = BytesMut::new();
        while let Some(chunk) = chunks.next().await.transpose().map_err(|_| FileError::Cut)? {
            buffer.extend_from_slice(&chunk);
            if upload.length() + buffer.len() as u64 > MAX_FILE as u64 {
                return Err(FileError::TooLarge);
            }
            // A full chunk stays in the buffer, because it may be the last one.
            while buffer.len() > FILE_CHUNK {
                upload.push(buffer.split_to(FILE_CHUNK).freeze()).await?;
            }
            self.owner.touch();
        }
        Ok(upload.finish(buffer.freeze()).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_protocol::EntryKind;

    fn entry(name: &str) -> FileEntry {
        FileEntry { name: name.to_owned(), kind: EntryKind::File, size: 0, modified_ms: 0, mode: 0o644, target: None }
    }

    fn is_page_of(after: &str, names: &[&str], next: Option<&str>) -> bool {
        let entries: Vec<FileEntry> = names.iter().map(|name| entry(name)).collect();
        is_page(after, 3, &entries, next)
    }

    #[test]
    fn pages_of_agents_are_checked() {
        let long = "n".repeat(256);
        assert!(is_page_of("", &["..c", "a", "b\0ff"], None));
        assert!(is_page_of("a", &["b"], Some("b")));
        assert!(is_page_of("a", &[], Some("b")), "all entries of a page may have been removed");
        assert!(is_page_of("", &[&long[1..]], None));
        for (names, next) in [
            (&["b", "c", "d", "e"][..], None),
            (&["a"], None),
            (&["c", "b"], None),
            (&["b", "b"], None),
            (&[""], None),
            (&["b/c"], None),
            (&["b\0zz"], None),
            (&[&long], None),
            (&["b", "c"], Some("b")),
            (&[], Some("a")),
            (&[], Some("")),
            (&[], Some("b/c")),
        ] {
            assert!(!is_page_of("a", names, next), "{names:?} {next:?}");
        }
        assert!(!is_page_of("", &["."], None) && !is_page_of("", &[".."], None));
    }

    #[test]
    fn described_entries_have_the_name_asked_for() {
        assert!(is_described("a/b", &entry("b")) && is_described("", &entry("")));
        assert!(!is_described("a/b", &entry("a/b")) && !is_described("b", &entry("c")));
    }
}
