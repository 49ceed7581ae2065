//! The versions of an environment: one folder per fingerprint, and a symlink to the current one.
//!
//! ```text
//! kernels/python            ─▶ .python@0123456789abcdef
//! kernels/.python@0123456789abcdef/   the current one
//! kernels/.python@fedcba9876543210/   an older one, while sessions may use it
//! ```
//!
//! Sandboxes mount the folder of a version, never the symlink: a later installation changes nothing under a running session.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

fn version_name(kernel: &str, fingerprint: &str) -> String {
    format!(".{kernel}@{fingerprint}")
}

/// The folder of the current version, with symlinks resolved.
///
/// # Errors
/// If there is none.
pub(super) fn current(kernels: &Path, kernel: &str) -> io::Result<PathBuf> {
    fs::canonicalize(kernels.join(kernel))
}

/// Whether the version with this fingerprint exists, current or not.
pub(super) fn exists(kernels: &Path, kernel: &str, fingerprint: &str) -> bool {
    kernels.join(version_name(kernel, fingerprint)).is_dir()
}

/// Moves a complete staging folder to the version with this fingerprint. If another process was faster, its version is kept.
pub(super) fn add(kernels: &Path, kernel: &str, fingerprint: &str, staging: &Path) -> io::Result<()> {
    match fs::rename(staging, kernels.join(version_name(kernel, fingerprint))) {
        Err(_) if exists(kernels, kernel, fingerprint) => fs::remove_dir_all(staging),
        other => other,
    }
}

/// Makes a version the current one, atomically: there is always a complete current version.
pub(super) fn make_current(kernels: &Path, kernel: &str, fingerprint: &str) -> io::Result<()> {
    let (link, new) = (kernels.join(kernel), kernels.join(format!(".link-{}", crate::ids::random_uuid())));
    symlink(version_name(kernel, fingerprint), &new)?;
    if fs::symlink_metadata(&link).is_ok_and(|found| found.is_dir()) {
        // An environment folder is in the place of the symlink. It becomes an old version.
        renameat_with(CWD, &new, CWD, &link, RenameFlags::EXCHANGE)?;
        return fs::rename(&new, kernels.join(version_name(kernel, &crate::ids::random_uuid())));
    }
    fs::rename(&new, &link).inspect_err(|_| drop(fs::remove_file(&new)))
}

/// The folders of all versions except the current one.
pub(super) fn old_versions(kernels: &Path, kernel: &str) -> io::Result<Vec<PathBuf>> {
    let current = current(kernels, kernel)?;
    let prefix = version_name(kernel, "");
    let mut old = Vec::new();
    for entry in fs::read_dir(kernels)? {
        let path = entry?.path();
        let is_version = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        if is_version && fs::canonicalize(&path)? != current {
            old.push(path);
        }
    }
    Ok(old)
}

/// Removes all versions except the current one. The caller ensures that no session uses them.
pub(super) fn remove_old(kernels: &Path, kernel: &str) -> io::Result<()> {
    old_versions(kernels, kernel)?.into_iter().try_for_each(fs::remove_dir_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let kernels = std::env::temp_dir().join(format!("cellkeep-versions-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&kernels);
        fs::create_dir_all(&kernels).unwrap();
        kernels
    }

    fn install(kernels: &Path, fingerprint: &str) {
        let staging = kernels.join("staging");
        fs::create_dir(&staging).unwrap();
        fs::write(staging.join("what"), fingerprint).unwrap();
        add(kernels, "r", fingerprint, &staging).unwrap();
        make_current(kernels, "r", fingerprint).unwrap();
    }

    fn what(kernels: &Path) -> String {
        fs::read_to_string(kernels.join("r/what")).unwrap()
    }

    #[test]
    fn old_version_stays_until_removed() {
        let kernels = scratch("stays");
        assert!(current(&kernels, "r").is_err());
        install(&kernels, "one");
        let mounted = current(&kernels, "r").unwrap();
        install(&kernels, "two");
        assert_eq!((what(&kernels).as_str(), fs::read_to_string(mounted.join("what")).unwrap().as_str()), ("two", "one"));
        // An old version can become current again without a new installation.
        make_current(&kernels, "r", "one").unwrap();
        assert_eq!(what(&kernels), "one");
        fs::create_dir(kernels.join(".r-minimal@one")).unwrap();
        remove_old(&kernels, "r").unwrap();
        assert!(exists(&kernels, "r", "one") && !exists(&kernels, "r", "two"));
        assert!(kernels.join(".r-minimal@one").exists(), "another kernel's");
        fs::remove_dir_all(kernels).unwrap();
    }

    #[test]
    fn second_installation_changes_nothing() {
        let kernels = scratch("second");
        install(&kernels, "one");
        install(&kernels, "one");
        assert_eq!((what(&kernels).as_str(), fs::read_dir(&kernels).unwrap().count()), ("one", 2));
        fs::remove_dir_all(kernels).unwrap();
    }

    #[test]
    fn folder_in_place_of_symlink_is_kept() {
        let kernels = scratch("folder");
        fs::create_dir(kernels.join("r")).unwrap();
        fs::write(kernels.join("r/what"), "old").unwrap();
        install(&kernels, "new");
        assert_eq!(what(&kernels), "new");
        assert_eq!(fs::read_dir(&kernels).unwrap().count(), 3, "the old environment stays for sessions that use it");
        remove_old(&kernels, "r").unwrap();
        assert_eq!(fs::read_dir(&kernels).unwrap().count(), 2);
        fs::remove_dir_all(kernels).unwrap();
    }
}
