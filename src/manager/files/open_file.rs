//! A file that is read chunk by chunk.

use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::{self, Stream};

use super::{FileError, FileStat, MAX_FILE, Workspace};

/// Bytes that are read when a file is opened: enough to recognise its media type, and most files as a whole.
const HEAD: u64 = 64 << 10;

/// A file with its state when it was opened. No descriptor is held: the agent opens the file for each chunk.
pub struct OpenFile {
    workspace: Workspace,
    path: String,
    stat: FileStat,
    head: Bytes,
}

impl Workspace {
    /// Opens a regular file. A symlink is followed within the workspace.
    pub async fn open(&self, path: &str) -> Result<OpenFile, FileError> {
        let (stat, head) = self.read_chunk(path, 0, HEAD).await?;
        if stat.size > MAX_FILE as u64 {
            return Err(FileError::TooLarge);
        }
        Ok(OpenFile { workspace: self.clone(), path: path.to_owned(), stat, head })
    }
}

impl OpenFile {
    pub fn stat(&self) -> FileStat {
        self.stat
    }

    /// The first bytes.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// All bytes, if they were read when the file was opened.
    pub(super) fn whole(&self) -> Option<Bytes> {
        (self.head.len() as u64 == self.stat.size).then(|| self.head.clone())
    }

    /// Reads a range of the bytes, one chunk at a time. Fails if the file is replaced, truncated or changed meanwhile. A file that
    /// grows, such as a log, is read up to the size that it had.
    pub fn read(self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, FileError>> + Send + use<> {
        stream::try_unfold((self, range), |(file, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let bytes = file.chunk(&range).await?;
            let next = range.start + bytes.len() as u64..range.end;
            Ok(Some((bytes, (file, next))))
        })
    }

    /// The next bytes of a range, at least one.
    async fn chunk(&self, range: &Range<u64>) -> Result<Bytes, FileError> {
        let wanted = range.end - range.start;
        if let Some(rest) = self.head.len().checked_sub(range.start as usize).filter(|rest| *rest > 0) {
            let start = range.start as usize;
            return Ok(self.head.slice(start..start + rest.min(usize::try_from(wanted).unwrap_or(rest))));
        }
        let (stat, mut bytes) = self.workspace.read_chunk(&self.path, range.start, wanted).await?;
        if !is_same_file(&self.stat, &stat) || bytes.is_empty() {
            return Err(FileError::Cut);
        }
        // The agent is not trusted to send no more than was asked for.
        bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        Ok(bytes)
    }
}

/// Whether a file that was opened can be read on. The state of one that has grown does not show whether its earlier bytes changed.
fn is_same_file(opened: &FileStat, now: &FileStat) -> bool {
    opened.inode == now.inode && (opened.changed_ns == now.changed_ns && opened.size == now.size || now.size > opened.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewritten_files_are_other_files() {
        let opened = FileStat { size: 10, inode: 7, modified_ns: 1, changed_ns: 1 };
        assert!(is_same_file(&opened, &opened));
        assert!(is_same_file(&opened, &FileStat { size: 11, changed_ns: 2, ..opened }), "a log");
        for other in [FileStat { inode: 8, ..opened }, FileStat { changed_ns: 2, ..opened }, FileStat { size: 9, ..opened }]
        {
            assert!(!is_same_file(&opened, &other), "{other:?}");
        }
    }
}
