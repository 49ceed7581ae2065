//! Unpacks archives. An archive is a file of this process without a name. What is in it goes to a staging folder through the
//! agent, so that nothing appears of an archive that is refused.
//!
//! Readers of archives block, so they have a thread. They hold one chunk of a file in memory, and nothing of entries that they
//! have seen, except for links.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use bytes::BytesMut;
use flate2::read::MultiGzDecoder;
use tokio::runtime::Handle;

use super::staging::{Deadline, check_path};
use super::{
    FileError, MAX_ARCHIVE_BYTES, MAX_ARCHIVE_ENTRIES, MAX_FILE, PutOptions, Staging, Summary, Workspace, tar_reader,
    zip_reader,
};
use crate::agent_protocol::FILE_CHUNK;

/// The largest number of symlinks in an archive, and the length of a link's target in bytes.
const MAX_LINKS: usize = 10_000;
pub(super) const MAX_TARGET: usize = 4096;
/// The largest tar file after decompression, in bytes.
const MAX_TAR: u64 = MAX_ARCHIVE_BYTES + (MAX_ARCHIVE_ENTRIES as u64) * 4096;

impl Workspace {
    /// Unpacks a zip file, a tar file or a compressed tar file (gzip) into a folder, which is created. The archive is recognised
    /// by its bytes. Existing files are replaced.
    pub async fn unpack(&self, into: &str, archive: File) -> Result<Summary, FileError> {
        let _unpacking = self.load.unpack(self.owner.principal())?;
        let deadline = Deadline::begin();
        let staging = self.stage().await?;
        let runtime = Handle::current();
        // A thread cannot be cancelled: it goes on when the client disconnects, and removes the staging folder at its end.
        let unpacking = tokio::task::spawn_blocking(move || {
            let mut sink = Sink { staging, runtime, links: Vec::new(), deadline };
            let unpacked = read_archive(archive, &mut sink).and_then(|()| sink.make_links());
            (sink.staging, unpacked)
        });
        let (staging, unpacked) = unpacking.await.map_err(|error| FileError::BadArchive(error.to_string()))?;
        match unpacked {
            Ok(()) => staging.publish_before(into, deadline).await,
            Err(error) => {
                staging.discard().await;
                Err(match error {
                    FileError::Refused(reason) => FileError::BadArchive(reason),
                    other => other,
                })
            }
        }
    }
}

fn read_archive(archive: File, sink: &mut Sink) -> Result<(), FileError> {
    let mut head = [0; 512];
    let length = read_head(&archive, &mut head).map_err(|error| bad(&error))?;
    match &head[..length] {
        [0x1f, 0x8b, ..] => tar_reader::read(MultiGzDecoder::new(io::BufReader::new(archive)), MAX_TAR, sink),
        [b'P', b'K', 3 | 5, 4 | 6, ..] => zip_reader::read(archive, sink),
        head if tar_reader::is_tar(head) => tar_reader::read(io::BufReader::new(archive), MAX_TAR, sink),
        _ => {
            Err(FileError::BadArchive("the body is neither a zip file nor a tar file, compressed by gzip or not".to_owned()))
        }
    }
}

fn read_head(file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < head.len() {
        match file.read_at(&mut head[length..], length as u64)? {
            0 => break,
            n => length += n,
        }
    }
    Ok(length)
}

/// The error of an archive that cannot be read.
pub(super) fn bad(error: &dyn std::error::Error) -> FileError {
    FileError::BadArchive(format!("the archive cannot be read: {error}"))
}

/// Takes the entries of an archive. Their names are as the archive has them.
pub(in crate::manager) trait ArchiveSink {
    type Error: From<FileError>;

    fn folder(&mut self, name: &str) -> Result<(), Self::Error>;

    /// `bytes` has `size` bytes, if the archive says the truth.
    fn file(&mut self, name: &str, size: u64, options: PutOptions, bytes: &mut dyn Read) -> Result<(), Self::Error>;

    fn link(&mut self, name: &str, target: String) -> Result<(), Self::Error>;
}

/// Takes the entries of an archive, and writes them through the agent.
pub(super) struct Sink {
    staging: Staging,
    runtime: Handle,
    /// Links are made at the end, so that no entry is written through a link of the archive.
    links: Vec<(String, String)>,
    deadline: Deadline,
}

impl ArchiveSink for Sink {
    type Error = FileError;

    fn folder(&mut self, name: &str) -> Result<(), FileError> {
        self.deadline.check()?;
        self.runtime.block_on(self.staging.make_folder(name))
    }

    /// Writes a file, which must have as many bytes as the archive says.
    fn file(&mut self, name: &str, size: u64, options: PutOptions, bytes: &mut dyn Read) -> Result<(), FileError> {
        if size > MAX_FILE as u64 {
            return Err(FileError::TooLarge.at(name));
        }
        self.staging.summary.count_bytes(size)?;
        let (name, mut upload) = self.staging.start_file(name, options)?;
        let mut left = size;
        loop {
            self.deadline.check()?;
            let wanted = usize::try_from(left).unwrap_or(FILE_CHUNK).min(FILE_CHUNK);
            let mut chunk = BytesMut::zeroed(wanted);
            bytes.read_exact(&mut chunk).map_err(|error| bad(&error))?;
            left -= wanted as u64;
            if left == 0 {
                // Reading to the end checks the checksum of a zip file.
                if bytes.read(&mut [0]).map_err(|error| bad(&error))? > 0 {
                    return Err(FileError::BadArchive(format!("{name:?} is larger than the archive says")));
                }
                return self.runtime.block_on(Staging::finish_file(upload, &name, chunk.freeze()));
            }
            self.runtime.block_on(Staging::push(&mut upload, &name, chunk.freeze()))?;
        }
    }

    fn link(&mut self, name: &str, target: String) -> Result<(), FileError> {
        self.deadline.check()?;
        if self.links.len() == MAX_LINKS {
            return Err(FileError::ArchiveTooLarge(format!("there are more than {MAX_LINKS} links")));
        }
        if target.len() > MAX_TARGET {
            return Err(FileError::Refused(format!("{name:?} has a target that is too long")));
        }
        self.links.push((name.to_owned(), target));
        Ok(())
    }
}

impl Sink {
    fn make_links(&mut self) -> Result<(), FileError> {
        let links = std::mem::take(&mut self.links);
        let names: HashSet<String> = links.iter().filter_map(|(name, _)| check_path(name).ok()).collect();
        for (name, target) in &links {
            self.deadline.check()?;
            // A link that is made through another one would be elsewhere than its path says.
            let path = check_path(name)?;
            if path.match_indices('/').any(|(end, _)| names.contains(&path[..end])) {
                return Err(FileError::Refused(format!("{name:?} is below a link of the archive")));
            }
            self.runtime.block_on(self.staging.make_link(name, target))?;
        }
        Ok(())
    }
}
