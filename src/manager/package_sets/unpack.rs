//! Writes the files of a package set. They come from a sandbox as a tar file: only regular files and folders are taken, under plain
//! relative paths.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::PackageError;
use super::disk::create_folder;

/// The most files and folders of a set.
const MAX_ENTRIES: u64 = 500_000;
/// The longest path, bytes. Longer names than a header holds are in entries of their own, which have no bound in the format.
const MAX_PATH: u64 = 4096;

/// Unpacks a tar file into an empty folder. Returns the bytes of all files.
///
/// # Errors
/// [`PackageError::TooLarge`] beyond `max_bytes`, [`PackageError::BadInstaller`] for anything that a set cannot have.
pub(super) fn unpack(archive: impl Read, into: &Path, max_bytes: u64) -> Result<u64, PackageError> {
    let mut archive = tar::Archive::new(archive);
    let (mut bytes, mut entries, mut long_name) = (0u64, 0u64, None);
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(bad(&format!("more than {MAX_ENTRIES} files")));
        }
        let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut text = Vec::new();
                (&mut entry).take(MAX_PATH).read_to_end(&mut text)?;
                text.retain(|byte| *byte != 0);
                long_name = Some(text);
            }
            EntryType::Directory => drop(make_folders(into, &relative(&name)?)?),
            EntryType::Regular | EntryType::Continuous => {
                bytes = bytes.saturating_add(entry.size());
                if bytes > max_bytes {
                    return Err(PackageError::TooLarge(max_bytes >> 20));
                }
                let is_executable = entry.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
                write_file(into, &relative(&name)?, is_executable, &mut entry)?;
            }
            // Packages have none; a library would be named by a link into the environment at most.
            EntryType::Symlink | EntryType::Link => {}
            kind => return Err(bad(&format!("an entry of the kind {kind:?}"))),
        }
    }
    Ok(bytes)
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
    Ok(path)
}

fn make_folders(into: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut folder = into.to_owned();
    for part in path.components() {
        folder.push(part);
        create_folder(&folder)?;
    }
    Ok(folder)
}

fn write_file(into: &Path, path: &Path, is_executable: bool, content: &mut impl Read) -> Result<(), PackageError> {
    let name = path.file_name().ok_or_else(|| bad("a file without a name"))?;
    let folder = make_folders(into, path.parent().unwrap_or(Path::new("")))?;
    let target = folder.join(name);
    // A name that is there twice is refused, so nothing is written through what is there.
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
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
        let (into, unpacked) = try_unpack(entries, 100);
        assert_eq!(unpacked.unwrap(), 5);
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
            &[("big", EntryType::Regular, &[0; 101])],
        ] {
            let (into, unpacked) = try_unpack(entries, 100);
            assert!(unpacked.is_err(), "{entries:?}");
            assert_eq!(fs::read_dir(&into).unwrap().count(), 0, "{entries:?}");
            fs::remove_dir_all(into).unwrap();
        }
        let twice: &[(&str, EntryType, &[u8])] = &[("a", EntryType::Regular, b"1"), ("a", EntryType::Regular, b"2")];
        let (into, unpacked) = try_unpack(twice, 100);
        assert!(unpacked.is_err());
        fs::remove_dir_all(into).unwrap();
    }
}
