//! Folders and files that only the user of this process can read, whatever the umask.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes everything that this process creates private, unless it gets other rights explicitly.
pub(crate) fn by_default() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Creates a private folder, and its missing parents. An existing folder becomes private.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    restrict(path, 0o700)
}

/// Creates a data folder. Under root, sandboxes have other uids, which must be able to enter it: their environments and the agent are below
/// it. They cannot list it.
pub(crate) fn create_data_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    restrict(path, enterable_mode())
}

/// The mode of a folder that sandboxes pass through.
pub(crate) fn enterable_mode() -> u32 {
    if rustix::process::geteuid().is_root() { 0o711 } else { 0o700 }
}

/// Sets the mode of a folder of ours. A folder of another user, such as a mounted volume, keeps its mode.
fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    match fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        set => set,
    }
}

/// Options that create a private file.
pub(crate) fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.mode(0o600);
    options
}

/// The bits of a mode that give other users rights.
pub(crate) fn is_open_to_others(metadata: &fs::Metadata) -> bool {
    metadata.permissions().mode() & 0o077 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_files_are_private_whatever_the_umask() {
        let folder = std::env::temp_dir().join(format!("cellkeep-private-{}", crate::ids::random_uuid()));
        fs::DirBuilder::new().mode(0o755).create(&folder).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        create_folder(&folder).unwrap();
        create_folder(&folder.join("a/b")).unwrap();
        let file = folder.join("file");
        options().create_new(true).write(true).open(&file).unwrap();
        assert_eq!(
            [&folder, &folder.join("a"), &folder.join("a/b"), &file].map(|path| mode(path)),
            [0o700, 0o700, 0o700, 0o600]
        );
        create_data_folder(&folder).unwrap();
        assert_eq!(mode(&folder), enterable_mode());
        assert!(!is_open_to_others(&fs::metadata(&file).unwrap()));
        fs::remove_dir_all(folder).unwrap();
    }
}
