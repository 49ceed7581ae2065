//! Reads zip files by their index at the end, one entry at a time.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use zip::ZipReadOptions;
use zip::read::{Config, ZipFile};
use zip::unstable::read::ZipIterable;

use super::unpack::{ArchiveSink as _, MAX_TARGET, Sink, bad};
use super::{FileError, MAX_ARCHIVE_BYTES, MAX_ARCHIVE_ENTRIES, PutOptions};

/// The kind of an entry in the mode that Unix programs write: none, or that of a file.
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

pub(super) fn read(archive: File, sink: &mut Sink) -> Result<(), FileError> {
    let reader = BufReader::new(Positioned { file: Arc::new(archive), position: 0 });
    let mut body = BufReader::new(reader.get_ref().clone());
    // Headers that contradict the index are an attempt to show different files to different programs.
    let archive = ZipIterable::try_new(reader, Config::default()).map_err(|error| bad(&error))?;
    let mut archive = archive.enforce_header_consistency(true);
    if archive.len() > MAX_ARCHIVE_ENTRIES {
        let detail = format!("the archive has {} entries; the limit is {MAX_ARCHIVE_ENTRIES}", archive.len());
        return Err(FileError::ArchiveTooLarge(detail));
    }
    let mut total: u64 = 0;
    for entry in archive.files().map_err(|error| bad(&error))? {
        total = total.saturating_add(entry.map_err(|error| bad(&error))?.size());
    }
    if total > MAX_ARCHIVE_BYTES {
        let detail = format!("the archive has {total} bytes of files; the limit is {MAX_ARCHIVE_BYTES}");
        return Err(FileError::ArchiveTooLarge(detail));
    }
    for entry in archive.files().map_err(|error| bad(&error))? {
        let entry = entry.map_err(|error| bad(&error))?;
        if entry.encrypted() {
            return Err(FileError::BadArchive("the archive is encrypted".to_owned()));
        }
        read_entry(entry.with_reader(&mut body, ZipReadOptions::new()).map_err(|error| bad(&error))?, sink)?;
    }
    Ok(())
}

fn read_entry(mut entry: ZipFile<'_, impl Read>, sink: &mut Sink) -> Result<(), FileError> {
    let name = entry.name().map_err(|error| bad(&error))?.into_owned();
    if entry.is_dir() {
        return sink.folder(&name);
    }
    if entry.is_symlink() {
        let mut target = String::new();
        entry.by_ref().take(MAX_TARGET as u64 + 1).read_to_string(&mut target).map_err(|error| bad(&error))?;
        return sink.link(&name, target);
    }
    let mode = entry.unix_mode().unwrap_or(0);
    if !matches!(mode & KIND, 0 | REGULAR) {
        return Err(FileError::BadArchive(format!("{name:?} is a device or pipe, which is not unpacked")));
    }
    let options = PutOptions { is_executable: mode & 0o100 != 0, modified_ms: modified_ms(&entry), ..PutOptions::default() };
    let size = entry.size();
    sink.file(&name, size, options, &mut entry)
}

/// The time of the last change. Its old form has no time zone; UTC is assumed.
fn modified_ms(entry: &ZipFile<'_, impl Read>) -> Option<i64> {
    let exact = entry.extra_data_fields().find_map(|field| match field {
        zip::ExtraField::ExtendedTimestamp(times) => times.mod_time(),
        _ => None,
    });
    if let Some(seconds) = exact {
        return Some(i64::from(seconds) * 1000);
    }
    let time = entry.last_modified()?;
    let days = days_since_1970(i64::from(time.year()), i64::from(time.month()), i64::from(time.day()));
    let seconds = i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
    Some((days * 86_400 + seconds) * 1000)
}

/// Days from 1970 to a date of the Gregorian calendar.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March here, so that the leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 719_469
}

/// A file with a position of its own. Duplicated descriptors would share one.
#[derive(Clone)]
struct Positioned {
    file: Arc<File>,
    position: u64,
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Positioned {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_become_days() {
        for (date, days) in [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2000, 3, 1), 11_017), ((2026, 11, 30), 20_787)] {
            assert_eq!(days_since_1970(date.0, date.1, date.2), days, "{date:?}");
        }
    }
}
