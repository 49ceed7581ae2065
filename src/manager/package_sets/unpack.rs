//! Writes the files of a package set. They come from a sandbox as a tar file: only regular files and folders are taken, under plain
//! relative paths.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::PackageError;
use super::disk::create_folder;

/// The most files and folders of a set, and the deepest path.
const MAX_ENTRIES: u64 = 500_000;
const MAX_DEPTH: usize = 64;
/// What a file or folder occupies on the disk besides its content, bytes, at most; content occupies whole blocks.
const BLOCK: u64 = 4096;
/// The longest path, bytes. Longer names than a header holds are in entries of their own, which have no bound in the format.
const MAX_PATH: u64 = 4096;

/// Unpacks a tar file into an empty folder. Returns the bytes that it occupies.
///
/// # Errors
/// [`PackageError::TooLarge`] beyond `max_bytes`, [`PackageError::BadInstaller`] for anything that a set cannot have.
pub(super) fn unpack(archive: impl Read, into: &Path, max_bytes: u64) -> Result<u64, PackageError> {
    let mut archive = tar::Archive::new(archive);
    let mut budget = Budget { max_bytes, bytes: 0, entries: 0 };
    let mut long_name = None;
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut text = Vec::new();
                (&mut entry).take(MAX_PATH).read_to_end(&mut text).map_err(unreadable)?;
                text.retain(|byte| *byte != 0);
                long_name = Some(text);
            }
            EntryType::Directory => drop(make_folders(into, &relative(&name)?, &mut budget)?),
            EntryType::Regular | EntryType::Continuous => {
                budget.charge(entry.size())?;
                let is_executable = entry.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
                write_file(into, &relative(&name)?, is_executable, &mut entry, &mut budget)?;
            }
            // tar writes what links lead to; this one leads nowhere.
            EntryType::Symlink | EntryType::GNULongLink => {}
            kind => return Err(bad(&format!("an entry of the kind {kind:?}"))),
        }
    }
    Ok(budget.bytes)
}

/// What may still be written.
struct Budget {
    max_bytes: u64,
    bytes: u64,
    entries: u64,
}

impl Budget {
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
}

fn unreadable(error: io::Error) -> PackageError {
    PackageError::BadInstaller(format!("its set cannot be read: {error}"))
}

fn bad(what: &str) -> PackageError {
    PackageError::BadInstaller(format!("the set has {what}"))
}

fn relative(name: &[u8]) -> Result<PathBuf, PackageError> {
    let text = std::str::from_utf8(name).map_err(|_| bad("a name that is not UTF-8"))?;
    if text.len() as u64 >= MAX_PATH || text.contains('\0') {
        return Err(bad("a name that is too long"));
    }
    let mut path = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            _ => return Err(bad("a path that leaves its folder")),
        }
    }
    if path.components().count() > MAX_DEPTH {
        return Err(bad("folders that are too deep"));
    }
    Ok(path)
}

fn make_folders(into: &Path, path: &Path, budget: &mut Budget) -> Result<PathBuf, PackageError> {
    let mut folder = into.to_owned();
    for part in path.components() {
        folder.push(part);
        if !folder.is_dir() {
            budget.charge(0)?;
            create_folder(&folder)?;
        }
    }
    Ok(folder)
}

fn write_file(
    into: &Path,
    path: &Path,
    is_executable: bool,
    content: &mut impl Read,
    budget: &mut Budget,
) -> Result<(), PackageError> {
    let name = path.file_name().ok_or_else(|| bad("a file without a name"))?;
    let folder = make_folders(into, path.parent().unwrap_or(Path::new("")), budget)?;
    let target = folder.join(name);
    // A name that is there twice is refused, so nothing is written through what is there.
    let created = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target);
    let mut file = created.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => bad("a file twice"),
        _ => PackageError::Io(error),
    })?;
    io::copy(content, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(if is_executable { 0o755 } else { 0o644 }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
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
