//! Writes the files of a package set. They come from a sandbox as a tar file: only regular files and folders are taken, under plain
//! relative paths.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::PackageError;
use super::disk::create_folder;
use crate::manager::files::{ArchiveSink, FileError, PutOptions, check_path, read_tar};

/// The most files and folders of a set, and the deepest path.
const MAX_ENTRIES: u64 = 500_000;
const MAX_DEPTH: usize = 64;
/// What a file or folder occupies on the disk besides its content, bytes, at most; content occupies whole blocks.
const BLOCK: u64 = 4096;
/// What a tar file has behind its entries, bytes, at most. An entry needs less there than it is counted for.
const TAR_END: u64 = 1 << 20;

/// Unpacks a tar file into an empty folder. Returns the bytes that it occupies.
///
/// # Errors
/// [`PackageError::TooLarge`] beyond `max_bytes`, [`PackageError::BadInstaller`] for anything that a set cannot have.
pub(super) fn unpack(archive: impl Read, into: &Path, max_bytes: u64) -> Result<u64, PackageError> {
    let mut sink = SetSink { into: into.to_owned(), max_bytes, bytes: 0, entries: 0 };
    read_tar(archive, max_bytes.saturating_add(TAR_END), &mut sink)?;
    Ok(sink.bytes)
}

impl From<FileError> for PackageError {
    fn from(error: FileError) -> Self {
        Self::BadInstaller(format!("its set cannot be read: {error}"))
    }
}

/// Writes entries, as long as they have room.
struct SetSink {
    into: PathBuf,
    max_bytes: u64,
    bytes: u64,
    entries: u64,
}

impl ArchiveSink for SetSink {
    type Error = PackageError;

    fn folder(&mut self, name: &str) -> Result<(), PackageError> {
        self.make_folders(&relative(name)?).map(drop)
    }

    fn file(&mut self, name: &str, size: u64, options: PutOptions, bytes: &mut dyn Read) -> Result<(), PackageError> {
        self.charge(size)?;
        let path = relative(name)?;
        let file_name = path.file_name().ok_or_else(|| bad("a file without a name"))?;
        let target = self.make_folders(path.parent().unwrap_or(Path::new("")))?.join(file_name);
        // A name that is there twice is refused, so nothing is written through what is there.
        let created = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target);
        let mut file = created.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => bad("a file twice"),
            _ => PackageError::Io(error),
        })?;
        io::copy(bytes, &mut file)?;
        file.set_permissions(fs::Permissions::from_mode(if options.is_executable { 0o755 } else { 0o644 }))?;
        Ok(())
    }

    /// tar writes what links lead to; this one leads nowhere.
    fn link(&mut self, _: &str, _: String) -> Result<(), PackageError> {
        Ok(())
    }
}

impl SetSink {
    /// Counts a file or folder with so many bytes of content.
    fn charge(&mut self, content: u64) -> Result<(), PackageError> {
        let occupied = content.checked_next_multiple_of(BLOCK).and_then(|bytes| bytes.checked_add(BLOCK));
        self.bytes = self.bytes.saturating_add(occupied.unwrap_or(u64::MAX));
        self.entries += 1;
        if self.bytes > self.max_bytes {
            return Err(PackageError::TooLarge(self.max_bytes >> 20));
        }
        if self.entries > MAX_ENTRIES {
            return Err(bad(&format!("more than {MAX_ENTRIES} files")));
        }
        Ok(())
    }

    fn make_folders(&mut self, path: &Path) -> Result<PathBuf, PackageError> {
        let mut folder = self.into.clone();
        for part in path.components() {
            folder.push(part);
            if !folder.is_dir() {
                self.charge(0)?;
                create_folder(&folder)?;
            }
        }
        Ok(folder)
    }
}

fn bad(what: &str) -> PackageError {
    PackageError::BadInstaller(format!("the set has {what}"))
}

fn relative(name: &str) -> Result<PathBuf, PackageError> {
    let path = PathBuf::from(check_path(name)?);
    if path.components().count() > MAX_DEPTH {
        return Err(bad("folders that are too deep"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::*;

    fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o4755);
            // `append_data` refuses paths that leave the folder.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn try_unpack(entries: &[(&str, EntryType, &[u8])], max: u64) -> (PathBuf, Result<u64, PackageError>) {
        let into = std::env::temp_dir().join(format!("cellkeep-unpack-{}", crate::ids::random_uuid()));
        create_folder(&into).unwrap();
        let unpacked = unpack(&archive(entries)[..], &into, max);
        (into, unpacked)
    }

    #[test]
    fn files_and_folders_arrive_with_plain_modes() {
        let entries: &[(&str, EntryType, &[u8])] = &[
            ("./", EntryType::Directory, b""),
            ("./lib/a.py", EntryType::Regular, b"x=1"),
            ("./bin/run", EntryType::Regular, b"#!"),
            ("./lib/link", EntryType::Symlink, b""),
        ];
        let (into, unpacked) = try_unpack(entries, 1 << 20);
        // Two files of a block and two folders, each with what describes it.
        assert_eq!(unpacked.unwrap(), 6 * BLOCK);
        let mode = |path: &str| fs::metadata(into.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("bin/run"), mode("lib")), (0o755, 0o755), "no setuid");
        assert!(fs::symlink_metadata(into.join("lib/link")).is_err());
        fs::remove_dir_all(into).unwrap();
    }

    #[test]
    fn hostile_archives_are_refused() {
        for entries in [
            &[("../a", EntryType::Regular, &b"x"[..])],
            &[("/etc/a", EntryType::Regular, b"x")],
            &[("dev", EntryType::Char, b"")],
            &[("pipe", EntryType::Fifo, b"")],
            &[("big", EntryType::Regular, &[0; 4097])],
            &[("a/b/c/d", EntryType::Directory, b"")],
        ] {
            let (into, unpacked) = try_unpack(entries, 2 * BLOCK);
            assert!(unpacked.is_err(), "{entries:?}");
            fs::remove_dir_all(into).unwrap();
        }
        let twice: &[(&str, EntryType, &[u8])] = &[("a", EntryType::Regular, b"1"), ("a", EntryType::Regular, b"2")];
        let (into, unpacked) = try_unpack(twice, 1 << 20);
        assert!(unpacked.is_err());
        fs::remove_dir_all(into).unwrap();
    }
}
