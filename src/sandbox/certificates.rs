//! The certificates that programs in sandboxes trust: a copy of a file of the operator or of this machine, which sandboxes mount.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::config::Paths;
use crate::private_files;

/// Where systems have the certificates that they trust, in one file.
const SYSTEM: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const NAME: &str = "ca-certificates.crt";
/// The largest file, bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Where a sandbox sees the folder, and the file in it.
pub(super) const FOLDER: &str = "/etc/ssl/certs";
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The file with the certificates that are trusted: this one, or the system's if there is one.
pub fn certificates_source(file: Option<&Path>) -> Option<&Path> {
    file.or_else(|| SYSTEM.iter().map(Path::new).find(|path| path.is_file()))
}

/// Returns a folder with a copy of this file, or of the system's if there is one. Every state of a file has a folder of its own, so that
/// running sandboxes keep theirs.
///
/// # Errors
/// If the operator's file cannot be read, is too large or has no certificate, or the copy cannot be written.
pub fn certificates_folder(paths: &Paths, file: Option<&Path>) -> io::Result<Option<PathBuf>> {
    let Some(source) = certificates_source(file) else { return Ok(None) };
    let found = fs::metadata(source)?;
    let folder = paths.agent().join(format!(
        "certificates-{:x}-{:x}-{:x}",
        found.ino(),
        found.len(),
        found.mtime_nsec() ^ found.mtime()
    ));
    if folder.join(NAME).is_file() {
        return Ok(Some(folder));
    }
    if found.len() > MAX_BYTES {
        return Err(io::Error::other(format!("{} is larger than {} MB", source.display(), MAX_BYTES >> 20)));
    }
    let content = fs::read(source)?;
    if !content.windows(27).any(|text| text == b"-----BEGIN CERTIFICATE-----") {
        return Err(io::Error::other(format!("{} has no certificate in the PEM format", source.display())));
    }
    if content.windows(16).any(|text| text == b"PRIVATE KEY-----") {
        let reason = "has a private key, which every sandbox could read; name a file that has certificates alone";
        return Err(io::Error::other(format!("{} {reason}", source.display())));
    }
    write(&paths.agent(), &folder, &content)?;
    Ok(Some(folder))
}

/// The certificates that a sandbox trusts: those of the folder, and one of its own. `None` if it has neither.
pub(super) fn together(folder: Option<&Path>, own: Option<&str>) -> io::Result<Option<Vec<u8>>> {
    let shared = folder.map(|folder| fs::read(folder.join(NAME))).transpose()?;
    Ok(match (shared, own) {
        (Some(shared), Some(own)) => Some([&shared, &b"\n"[..], own.as_bytes()].concat()),
        (shared, own) => shared.or(own.map(|own| own.as_bytes().to_vec())),
    })
}

/// Writes certificates to a new folder, for every user.
pub(super) fn write_folder(content: &[u8], folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    fs::write(folder.join(NAME), content)?;
    fs::set_permissions(folder.join(NAME), fs::Permissions::from_mode(0o644))
}

/// Writes the copy. Another process may be doing the same.
fn write(parent: &Path, folder: &Path, content: &[u8]) -> io::Result<()> {
    fs::create_dir_all(parent)?;
    // The sandbox's uid must be able to enter the folders, whatever the umask.
    for reachable in [Some(parent), parent.parent()].into_iter().flatten() {
        let _ = fs::set_permissions(reachable, fs::Permissions::from_mode(private_files::enterable_mode()));
    }
    let temporary = parent.join(format!(".certificates-{}", crate::ids::random_uuid()));
    fs::DirBuilder::new().mode(0o755).create(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    let path = temporary.join(NAME);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
    file.write_all(content)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    match fs::rename(&temporary, folder) {
        Err(_) if folder.join(NAME).is_file() => fs::remove_dir_all(&temporary),
        renamed => renamed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_copied_for_every_user() {
        let data = std::env::temp_dir().join(format!("cellkeep-certificates-{}", crate::ids::random_uuid()));
        fs::create_dir(&data).unwrap();
        let (paths, own) = (Paths::new(&data), data.join("own.pem"));
        fs::write(&own, "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n").unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
        let folder = certificates_folder(&paths, Some(&own)).unwrap().unwrap();
        assert_eq!(certificates_folder(&paths, Some(&own)).unwrap(), Some(folder.clone()));
        assert_eq!(fs::read(folder.join(NAME)).unwrap(), fs::read(&own).unwrap());
        assert_eq!(fs::metadata(folder.join(NAME)).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(&own, "a key").unwrap();
        assert!(certificates_folder(&paths, Some(&own)).unwrap_err().to_string().contains("no certificate"));
        assert!(certificates_folder(&paths, Some(Path::new("/nowhere"))).is_err());
        fs::remove_dir_all(data).unwrap();
    }
}
