//! Packs a folder as an archive, entry by entry while it is sent. Nothing is held of entries that were sent, except for the index
//! at the end of a zip file.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream::{self, Stream, TryStreamExt};
use tokio::sync::mpsc;
use zip::write::{FullFileOptions, StreamWriter};
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::walk::Walk;
use super::{EntryKind, FileEntry, FileError, MAX_ARCHIVE_BYTES, MAX_ARCHIVE_ENTRIES, MAX_FILE, OpenFile, Workspace};
use super::{decode_name, printable};
use crate::wire::content::iso8601;

/// The level of compression: fast, since the archive is made while it is sent.
const LEVEL: u32 = 2;
/// Memory of an archive in progress, and for each entry of the index of a zip file beside its name. Bytes.
const MEMORY: u64 = 2 << 20;
const MEMORY_PER_ENTRY: u64 = 600;
/// How much the index may grow between the check of a folder and its packing. Bytes.
const INDEX_GROWTH: u64 = 1 << 20;
/// Bytes that are collected before they are sent.
const SEND_SIZE: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    Zip,
    Tar,
    /// Compressed by gzip.
    TarGz,
}

impl Workspace {
    /// Packs a folder with everything in it. What cannot be packed is an error before the first byte; a file that changes its
    /// size later ends the stream with an error. Devices, pipes and sockets are left out.
    pub async fn pack(
        &self,
        folder: &str,
        format: ArchiveFormat,
    ) -> Result<impl Stream<Item = Result<Bytes, FileError>> + Send + use<>, FileError> {
        let max_index = self.measure(folder).await? + INDEX_GROWTH;
        let memory = MEMORY + if format == ArchiveFormat::Zip { max_index } else { 0 };
        let packing = self.load.pack(self.owner.principal(), memory)?;
        let (sender, receiver) = mpsc::channel(1);
        let (workspace, folder) = (self.clone(), folder.to_owned());
        // It ends with the receiver.
        tokio::spawn(async move {
            let output = Output { archive: Some(Archive::new(format)), sender };
            let _packing = packing;
            if let Err((error, sender)) = write(&workspace, &folder, output, Extent::new(max_index)).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|bytes| (bytes, receiver))))
    }

    /// Checks that a folder can be packed. Returns the memory of the index of a zip file.
    async fn measure(&self, folder: &str) -> Result<u64, FileError> {
        let mut extent = Extent::new(u64::MAX);
        let mut walk = Walk::new(self, folder, true);
        while let Some(found) = walk.next().await? {
            extent.count(&found.path)?;
            if found.entry.kind == EntryKind::File {
                extent.count_bytes(found.entry.size)?;
                if found.entry.size > MAX_FILE as u64 {
                    return Err(FileError::TooLarge);
                }
                if found.entry.mode & 0o400 == 0 {
                    return Err(FileError::Refused("its mode does not allow to read it".to_owned()).at(&found.path));
                }
            }
        }
        Ok(extent.index)
    }
}

/// How much of a folder was seen, within the limits of an archive. The folder is read twice, and may grow between.
struct Extent {
    entries: usize,
    /// Bytes of the files.
    bytes: u64,
    /// Memory of the index of a zip file.
    index: u64,
    max_index: u64,
}

impl Extent {
    fn new(max_index: u64) -> Self {
        Self { entries: 0, bytes: 0, index: 0, max_index }
    }

    fn count(&mut self, path: &str) -> Result<(), FileError> {
        self.entries += 1;
        self.index += MEMORY_PER_ENTRY + 2 * path.len() as u64;
        self.check()
    }

    fn count_bytes(&mut self, size: u64) -> Result<(), FileError> {
        self.bytes = self.bytes.saturating_add(size);
        self.check()
    }

    fn check(&self) -> Result<(), FileError> {
        if self.index > self.max_index {
            return Err(FileError::ArchiveTooLarge("the folder grows while it is packed".to_owned()));
        }
        if self.entries > MAX_ARCHIVE_ENTRIES || self.bytes > MAX_ARCHIVE_BYTES {
            let megabytes = MAX_ARCHIVE_BYTES >> 20;
            let detail = format!(
                "the folder is larger than an archive may be: {MAX_ARCHIVE_ENTRIES} entries and {megabytes} MB; download a part of it"
            );
            return Err(FileError::ArchiveTooLarge(detail));
        }
        Ok(())
    }
}

type Sender = mpsc::Sender<Result<Bytes, FileError>>;

/// Writes all entries. Returns the sender with an error, so that the receiver learns of it.
async fn write(
    workspace: &Workspace,
    folder: &str,
    mut output: Output,
    mut extent: Extent,
) -> Result<(), (FileError, Sender)> {
    let sender = output.sender.clone();
    let writing = async {
        let mut walk = Walk::new(workspace, folder, true);
        while let Some(found) = walk.next().await? {
            extent.count(&found.path)?;
            let name = found.path[folder.len()..].trim_start_matches('/').to_owned();
            match found.entry.kind {
                EntryKind::File => {
                    let Some(file) = open_listed(workspace, &found.path).await? else { continue };
                    extent.count_bytes(file.stat().size)?;
                    write_file(file, name, found.entry, &mut output).await?;
                }
                EntryKind::Folder | EntryKind::Link => {
                    output.write(move |archive| archive.add(&name, &found.entry)).await?;
                }
                EntryKind::Other => {}
            }
        }
        output.finish().await
    };
    writing.await.map_err(|error| (error, sender))
}

/// Opens a file, unless it was removed since the folder was listed.
async fn open_listed(workspace: &Workspace, path: &str) -> Result<Option<OpenFile>, FileError> {
    match workspace.open(path).await {
        Err(FileError::Missing(_)) => Ok(None),
        file => file.map(Some).map_err(|error| error.at(path)),
    }
}

async fn write_file(file: OpenFile, name: String, entry: FileEntry, output: &mut Output) -> Result<(), FileError> {
    let size = file.stat().size;
    let entry = FileEntry { size, ..entry };
    if let Some(bytes) = file.whole() {
        let write = move |archive: &mut Archive| {
            archive.add(&name, &entry)?;
            archive.write_all(&bytes)?;
            archive.end_file(size)
        };
        return output.write(write).await;
    }
    output.write(move |archive| archive.add(&name, &entry)).await?;
    let mut chunks = std::pin::pin!(file.read(0..size));
    while let Some(chunk) = chunks.try_next().await? {
        output.write(move |archive| archive.write_all(&chunk)).await?;
    }
    output.write(move |archive| archive.end_file(size)).await
}

/// An archive, and where its bytes go.
struct Output {
    /// `None` while a thread works on it.
    archive: Option<Archive>,
    sender: Sender,
}

impl Output {
    /// Writes a part of the archive, on a thread because compression takes time. Sends what has come of it.
    async fn write(&mut self, work: impl FnOnce(&mut Archive) -> io::Result<()> + Send + 'static) -> Result<(), FileError> {
        let mut archive = self.archive.take().ok_or(FileError::Cut)?;
        let working = tokio::task::spawn_blocking(move || work(&mut archive).map(|()| archive)).await;
        let archive = working.map_err(io::Error::other).and_then(|archive| archive).map_err(failed)?;
        let bytes = archive.output.take(SEND_SIZE);
        self.archive = Some(archive);
        self.send(bytes).await
    }

    async fn finish(&mut self) -> Result<(), FileError> {
        self.write(Archive::finish).await?;
        let rest = self.archive.take().map(|archive| archive.output.take(0)).unwrap_or_default();
        self.send(rest).await
    }

    async fn send(&self, bytes: Vec<u8>) -> Result<(), FileError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(bytes.into())).await.map_err(|_| FileError::Cut)
    }
}

fn failed(error: io::Error) -> FileError {
    tracing::error!(%error, "cannot write an archive");
    FileError::Cut
}

/// Collects what an archive writes. Clones share the bytes.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    /// The bytes, if there are at least so many.
    fn take(&self, at_least: usize) -> Vec<u8> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.len() < at_least { Vec::new() } else { std::mem::take(&mut *bytes) }
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Archive {
    writer: Writer,
    output: Buffer,
}

enum Writer {
    Zip(Box<ZipWriter<StreamWriter<Buffer>>>),
    Tar(tar::Builder<Buffer>),
    TarGz(tar::Builder<GzEncoder<Buffer>>),
    Finished,
}

impl Archive {
    fn new(format: ArchiveFormat) -> Self {
        let output = Buffer::default();
        let writer = match format {
            ArchiveFormat::Zip => Writer::Zip(Box::new(ZipWriter::new_stream(output.clone()))),
            ArchiveFormat::Tar => Writer::Tar(tar::Builder::new(output.clone())),
            ArchiveFormat::TarGz => {
                Writer::TarGz(tar::Builder::new(GzEncoder::new(output.clone(), Compression::new(LEVEL))))
            }
        };
        Self { writer, output }
    }

    /// Adds an entry. The bytes of a file follow.
    fn add(&mut self, name: &str, entry: &FileEntry) -> io::Result<()> {
        let name = decode_name(name).unwrap_or_default();
        match &mut self.writer {
            Writer::Zip(zip) => add_to_zip(zip, &name, entry).map_err(io::Error::other),
            Writer::Tar(tar) => add_to_tar(tar, &name, entry),
            Writer::TarGz(tar) => add_to_tar(tar, &name, entry),
            Writer::Finished => Ok(()),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.writer {
            Writer::Zip(zip) => zip.write_all(bytes),
            Writer::Tar(tar) => tar.get_mut().write_all(bytes),
            Writer::TarGz(tar) => tar.get_mut().write_all(bytes),
            Writer::Finished => Ok(()),
        }
    }

    /// Ends a file of this size. In a tar file, it is padded to whole blocks.
    fn end_file(&mut self, size: u64) -> io::Result<()> {
        let padding = (size.next_multiple_of(512) - size) as usize;
        if matches!(self.writer, Writer::Zip(_)) { Ok(()) } else { self.write_all(&[0; 512][..padding]) }
    }

    fn finish(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.writer, Writer::Finished) {
            Writer::Zip(zip) => zip.finish().map(drop).map_err(io::Error::other),
            Writer::Tar(tar) => tar.into_inner().map(drop),
            Writer::TarGz(tar) => tar.into_inner()?.finish().map(drop),
            Writer::Finished => Ok(()),
        }
    }
}

fn add_to_tar(tar: &mut tar::Builder<impl Write>, name: &[u8], entry: &FileEntry) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_mtime(u64::try_from(entry.modified_ms / 1000).unwrap_or(0));
    header.set_size(0);
    let name = Path::new(OsStr::from_bytes(name));
    match entry.kind {
        EntryKind::Link => {
            header.set_entry_type(tar::EntryType::Symlink);
            let target = decode_name(entry.target.as_deref().unwrap_or_default()).unwrap_or_default();
            tar.append_link(&mut header, name, OsStr::from_bytes(&target))
        }
        EntryKind::Folder => {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, name, io::empty())
        }
        _ => {
            header.set_size(entry.size);
            tar.append_data(&mut header, name, io::empty())
        }
    }
}

fn add_to_zip(zip: &mut ZipWriter<impl Write + io::Seek>, name: &[u8], entry: &FileEntry) -> zip::result::ZipResult<()> {
    let seconds = u32::try_from(entry.modified_ms.div_euclid(1000)).ok();
    let options = FullFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(i64::from(LEVEL)))
        .unix_permissions(entry.mode)
        .last_modified_time(zip_time(entry.modified_ms))
        .with_extended_timestamp(seconds, None, None)?;
    let text = String::from_utf8_lossy(name);
    match entry.kind {
        EntryKind::Folder => zip.add_directory(text, options),
        EntryKind::Link => zip.add_symlink(text, printable(entry.target.as_deref().unwrap_or_default()), options),
        _ => zip.start_file_with_options(options.name(name)),
    }
}

/// The time of a zip file, in UTC: from 1980 to 2107.
fn zip_time(ms: i64) -> DateTime {
    let text = iso8601(crate::store::from_ms(ms));
    let number = |at: std::ops::Range<usize>| text.get(at).and_then(|part| part.parse::<u16>().ok()).unwrap_or(0);
    let small = |at| u8::try_from(number(at)).unwrap_or(0);
    let (month, day, hour, minute, second) = (small(5..7), small(8..10), small(11..13), small(14..16), small(17..19));
    DateTime::from_date_and_time(number(0..4), month, day, hour, minute, second).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_folders_exceed_the_extent() {
        let mut extent = Extent::new(2 * MEMORY_PER_ENTRY + 4);
        assert!(extent.count("a").is_ok() && extent.count("b").is_ok());
        assert!(matches!(extent.count("c"), Err(FileError::ArchiveTooLarge(_))));
        let mut extent = Extent::new(u64::MAX);
        assert!(extent.count_bytes(MAX_ARCHIVE_BYTES).is_ok() && extent.count_bytes(1).is_err());
        assert!((0..=MAX_ARCHIVE_ENTRIES).try_for_each(|_| extent.count("")).is_err());
    }
}
