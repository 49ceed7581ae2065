//! Reads tar files. Names that are longer than a header are put together here and not by the tar crate, which would read a
//! name of any length into memory.

use std::io::{self, Read};

use tar::{Entry, EntryType, Header, PaxExtensions};

use super::unpack::{ArchiveSink, MAX_TARGET, bad};
use super::{FileError, PutOptions};

/// The largest extension header in bytes: a long name or a set of attributes.
const MAX_EXTENSION: u64 = 64 << 10;

/// Whether these are the first bytes of a tar file: a header with a right checksum.
pub(super) fn is_tar(head: &[u8]) -> bool {
    let Ok(block) = <&[u8; 512]>::try_from(head) else { return false };
    let header = Header::from_byte_slice(block);
    let sum = |(at, byte): (usize, &u8)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte });
    // An empty archive is all zeros.
    block.iter().all(|byte| *byte == 0)
        || header.cksum().is_ok_and(|known| known == block.iter().enumerate().map(sum).sum::<u32>())
}

/// Reads a tar file of at most so many bytes, after decompression.
pub(in crate::manager) fn read<S: ArchiveSink>(archive: impl Read, most: u64, sink: &mut S) -> Result<(), S::Error> {
    let mut archive = tar::Archive::new(Limited { reader: archive, left: most });
    let mut extensions = Extensions::default();
    for entry in archive.entries().map_err(|error| bad(&error))?.raw(true) {
        let mut entry = entry.map_err(|error| bad(&error))?;
        match entry.header().entry_type() {
            EntryType::GNULongName => extensions.name = Some(read_extension(&mut entry)?),
            EntryType::GNULongLink => extensions.target = Some(read_extension(&mut entry)?),
            EntryType::XHeader => extensions.attributes = Some(read_extension(&mut entry)?),
            // Defaults of all entries, such as a comment.
            EntryType::XGlobalHeader => {}
            _ => read_entry(&mut entry, std::mem::take(&mut extensions), sink)?,
        }
    }
    // The end of compressed data has a checksum.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|error| bad(&error))?;
    Ok(())
}

fn read_entry<S: ArchiveSink>(entry: &mut Entry<impl Read>, extensions: Extensions, sink: &mut S) -> Result<(), S::Error> {
    let attributes = Attributes::parse(extensions, entry)?;
    let name = utf8(attributes.name)?;
    let header = entry.header();
    let kind = header.entry_type();
    let refuse = |what: &str| Err(FileError::BadArchive(format!("{name:?} is {what}, which is not unpacked")).into());
    match kind {
        EntryType::Directory => sink.folder(&name),
        // Before ustar, a slash at the end of the name was the only sign of a folder.
        EntryType::Regular if name.ends_with('/') => sink.folder(&name),
        EntryType::Regular | EntryType::Continuous => {
            let seconds = header.mtime().unwrap_or(0);
            let options = PutOptions {
                is_executable: header.mode().is_ok_and(|mode| mode & 0o100 != 0),
                modified_ms: attributes.modified_ms.or_else(|| i64::try_from(seconds).ok()?.checked_mul(1000)),
                ..PutOptions::default()
            };
            let size = entry.size();
            sink.file(&name, size, options, entry)
        }
        EntryType::Symlink => sink.link(&name, utf8(attributes.target)?),
        EntryType::Link => refuse("a hard link"),
        EntryType::GNUSparse => refuse("a sparse file"),
        EntryType::Block | EntryType::Char | EntryType::Fifo => refuse("a device or pipe"),
        _ => refuse("an entry of an unknown kind"),
    }
}

fn utf8(name: Vec<u8>) -> Result<String, FileError> {
    String::from_utf8(name).map_err(|error| {
        FileError::BadArchive(format!("the name {:?} is not UTF-8", String::from_utf8_lossy(error.as_bytes())))
    })
}

fn read_extension(entry: &mut Entry<impl Read>) -> Result<Vec<u8>, FileError> {
    if entry.size() > MAX_EXTENSION {
        return Err(FileError::BadArchive("the archive has a name or a set of attributes that is too long".to_owned()));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|error| bad(&error))?;
    Ok(bytes)
}

/// Extension headers before an entry.
#[derive(Default)]
struct Extensions {
    /// Of GNU tar, with a NUL at the end.
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    /// Of POSIX: lines with keys and values.
    attributes: Option<Vec<u8>>,
}

/// What an entry is called, with its extension headers.
struct Attributes {
    name: Vec<u8>,
    target: Vec<u8>,
    modified_ms: Option<i64>,
}

impl Attributes {
    fn parse(extensions: Extensions, entry: &Entry<impl Read>) -> Result<Self, FileError> {
        let header = entry.header();
        let up_to_nul = |text: Vec<u8>| text.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let name = extensions.name.map_or_else(|| header.path_bytes().into_owned(), up_to_nul);
        let target = extensions.target.map(up_to_nul);
        let target = target.or_else(|| header.link_name_bytes().map(|target| target.into_owned())).unwrap_or_default();
        let mut all = Self { name, target, modified_ms: None };
        for attribute in PaxExtensions::new(&extensions.attributes.unwrap_or_default()) {
            let attribute = attribute.map_err(|error| bad(&error))?;
            let value = attribute.value_bytes();
            match attribute.key().unwrap_or_default() {
                "path" => all.name = value.to_vec(),
                "linkpath" => all.target = value.to_vec(),
                "mtime" => {
                    let seconds: Option<f64> = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    all.modified_ms =
                        seconds.filter(|seconds| seconds.abs() < 1e11).map(|seconds| (seconds * 1000.0) as i64);
                }
                "size" if value != entry.size().to_string().as_bytes() => return Err(FileError::TooLarge),
                key if key.starts_with("GNU.sparse.") => {
                    return Err(FileError::BadArchive("the archive has a sparse file, which is not unpacked".to_owned()));
                }
                _ => {}
            }
        }
        if all.name.len() > MAX_TARGET {
            return Err(FileError::BadArchive("the archive has a name that is too long".to_owned()));
        }
        Ok(all)
    }
}

/// A reader that fails beyond a number of bytes. Without it, a small compressed file could occupy the thread for hours.
struct Limited<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| io::Error::other("it is too large"))?;
        Ok(read)
    }
}
