//! The versions of an environment: one folder per fingerprint, and a link that says which is current.
//!
//! ```text
//! kernels/python            ─▶ .python-0123456789abcdef
//! kernels/.python-0123456789abcdef/   the current one
//! kernels/.python-fedcba9876543210/   an older one, while sessions may use it
//! ```
//!
//! Sandboxes mount a version's folder, never the link: what becomes current later changes nothing under a running session.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

fn version_name(kernel: &str, fingerprint: &str) -> String {
    format!(".{kernel}-{fingerprint}")
}

/// The folder of the current version, with no link in its path.
///
/// # Errors
/// Where there is none.
pub(super) fn current(kernels: &Path, kernel: &str) -> io::Result<PathBuf> {
    fs::canonicalize(kernels.join(kernel))
}

/// Whether the version of that fingerprint is there, current or not.
pub(super) fn exists(kernels: &Path, kernel: &str, fingerprint: &str) -> bool {
    kernels.join(version_name(kernel, fingerprint)).is_dir()
}

/// Makes a whole folder the version of that fingerprint. If another process was quicker its one stands.
///
/// # Errors
/// What the system says.
pub(super) fn add(kernels: &Path, kernel: &str, fingerprint: &str, staging: &Path) -> io::Result<()> {
    match fs::rename(staging, kernels.join(version_name(kernel, fingerprint))) {
        Err(_) if exists(kernels, kernel, fingerprint) => fs::remove_dir_all(staging),
        other => other,
    }
}

/// Makes a version the current one, at once: nobody ever finds none, or half of one.
///
/// # Errors
/// What the system says.
pub(super) fn make_current(kernels: &Path, kernel: &str, fingerprint: &str) -> io::Result<()> {
    let (link, new) = (kernels.join(kernel), kernels.join(format!(".link-{}", crate::ids::random_uuid())));
    symlink(version_name(kernel, fingerprint), &new)?;
    if fs::symlink_metadata(&link).is_ok_and(|found| found.is_dir()) {
        // An environment itself lies where the link belongs. It becomes a version that is not current.
        renameat_with(CWD, &new, CWD, &link, RenameFlags::EXCHANGE)?;
        return fs::rename(&new, kernels.join(version_name(kernel, &crate::ids::random_uuid())));
    }
    fs::rename(&new, &link).inspect_err(|_| drop(fs::remove_file(&new)))
}

/// The folders of all versions but the current one.
///
/// # Errors
/// What the system says.
pub(super) fn others(kernels: &Path, kernel: &str) -> io::Result<Vec<PathBuf>> {
    let current = current(kernels, kernel)?;
    let prefix = version_name(kernel, "");
    let mut others = Vec::new();
    for entry in fs::read_dir(kernels)? {
        let path = entry?.path();
        let is_version = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        if is_version && fs::canonicalize(&path)? != current {
            others.push(path);
        }
    }
    Ok(others)
}

/// Removes all versions but the current one. Only for when no session uses them.
///
/// # Errors
/// What the system says.
pub(super) fn remove_others(kernels: &Path, kernel: &str) -> io::Result<()> {
    others(kernels, kernel)?.into_iter().try_for_each(fs::remove_dir_all)
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
    fn an_old_version_stays_until_it_is_removed() {
        let kernels = scratch("stays");
        assert!(current(&kernels, "r").is_err());
        install(&kernels, "one");
        let mounted = current(&kernels, "r").unwrap();
        install(&kernels, "two");
        assert_eq!((what(&kernels).as_str(), fs::read_to_string(mounted.join("what")).unwrap().as_str()), ("two", "one"));
        // Back to what is still there, without making it anew.
        make_current(&kernels, "r", "one").unwrap();
        assert_eq!(what(&kernels), "one");
        fs::create_dir(kernels.join(".rust-one")).unwrap();
        remove_others(&kernels, "r").unwrap();
        assert!(exists(&kernels, "r", "one") && !exists(&kernels, "r", "two"));
        assert!(kernels.join(".rust-one").exists(), "another kernel's");
        fs::remove_dir_all(kernels).unwrap();
    }

    #[test]
    fn the_second_of_two_installations_changes_nothing() {
        let kernels = scratch("second");
        install(&kernels, "one");
        install(&kernels, "one");
        assert_eq!((what(&kernels).as_str(), fs::read_dir(&kernels).unwrap().count()), ("one", 2));
        fs::remove_dir_all(kernels).unwrap();
    }

    #[test]
    fn an_environment_in_the_links_place_gives_way() {
        let kernels = scratch("folder");
        fs::create_dir(kernels.join("r")).unwrap();
        fs::write(kernels.join("r/what"), "old").unwrap();
        install(&kernels, "new");
        assert_eq!(what(&kernels), "new");
        assert_eq!(fs::read_dir(&kernels).unwrap().count(), 3, "and stays, for those who use it");
        remove_others(&kernels, "r").unwrap();
        assert_eq!(fs::read_dir(&kernels).unwrap().count(), 2);
        fs::remove_dir_all(kernels).unwrap();
    }
}
