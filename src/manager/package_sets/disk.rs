//! The folder of package sets.
//!
//! ```text
//! packages/requests/KEY      the id of the set that answers a request
//! packages/requests/KEY.lock locked while the packages of a request are installed
//! packages/sets/ID/set.json  what is in it; changed when it is used
//! packages/sets/ID/files/    what sandboxes see
//! ```
//!
//! A set is made in a staging folder beside the others and appears complete, by renaming. Several processes may do so at once.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::PackageSet;

const REQUESTS: &str = "requests";
const SETS: &str = "sets";
const SET: &str = "set.json";
const FILES: &str = "files";

/// The files of a set.
pub(super) fn files(root: &Path, id: &str) -> PathBuf {
    root.join(SETS).join(id).join(FILES)
}

/// The set that answers a request, and notes that it is used now.
pub(super) fn find(root: &Path, key: &str) -> Option<PackageSet> {
    let id = fs::read_to_string(root.join(REQUESTS).join(key)).ok()?;
    let set = read(root, id.trim())?;
    let file = fs::File::open(root.join(SETS).join(&set.id).join(SET)).ok()?;
    // A set whose use cannot be noted can be removed earlier.
    let _ = file.set_modified(SystemTime::now());
    Some(set)
}

pub(super) fn read(root: &Path, id: &str) -> Option<PackageSet> {
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let text = is_id.then(|| fs::read(root.join(SETS).join(id).join(SET)).ok())??;
    serde_json::from_slice(&text).ok()
}

/// All sets, with the time of their last use.
pub(super) fn list(root: &Path) -> Vec<(PackageSet, SystemTime)> {
    let entries = fs::read_dir(root.join(SETS)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let one = |id: String| {
        let used = fs::metadata(root.join(SETS).join(&id).join(SET)).and_then(|metadata| metadata.modified());
        Some((read(root, &id)?, used.unwrap_or(SystemTime::UNIX_EPOCH)))
    };
    names.filter_map(one).collect()
}

/// A set that is being made. Its folder is removed when this is dropped before [`Self::publish`].
pub(super) struct Staging {
    root: PathBuf,
    folder: PathBuf,
}

impl Staging {
    /// # Errors
    /// If the folders cannot be created.
    pub fn new(root: &Path) -> io::Result<Self> {
        create_folders(root)?;
        let folder = root.join(SETS).join(format!(".new-{}", crate::ids::random_uuid()));
        create_folder(&folder)?;
        create_folder(&folder.join(FILES))?;
        Ok(Self { root: root.to_owned(), folder })
    }

    pub fn files(&self) -> PathBuf {
        self.folder.join(FILES)
    }

    /// Makes the set appear, as the answer to the request `key`. One of the same id that is there already is kept.
    pub fn publish(self, set: &PackageSet, key: &str) -> io::Result<()> {
        // After a power cut, a set that is there is whole.
        rustix::fs::syncfs(fs::File::open(&self.folder)?)?;
        write(&self.folder.join(SET), &serde_json::to_vec(set)?)?;
        let target = self.root.join(SETS).join(&set.id);
        match fs::rename(&self.folder, &target) {
            Err(error) if !target.join(SET).exists() => return Err(error),
            // It counts as used now.
            Err(_) => fs::File::open(target.join(SET))?.set_modified(SystemTime::now())?,
            Ok(()) => {}
        }
        let (request, new) = (self.root.join(REQUESTS).join(key), self.folder.with_extension("request"));
        write(&new, set.id.as_bytes())?;
        fs::rename(new, request)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A set that nobody finds any more. The requests that it answered are made anew when they come again.
pub(super) struct HiddenSet {
    folder: PathBuf,
    hidden: PathBuf,
}

/// Hides a set. `None` if there is none.
pub(super) fn hide(root: &Path, id: &str) -> io::Result<Option<HiddenSet>> {
    let (folder, hidden) = (root.join(SETS).join(id), root.join(SETS).join(format!(".old-{}", crate::ids::random_uuid())));
    match fs::rename(&folder, &hidden) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Some(HiddenSet { folder, hidden })),
    }
}

impl HiddenSet {
    pub fn show_again(self) -> io::Result<()> {
        fs::rename(self.hidden, self.folder)
    }

    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(self.hidden)
    }
}

/// Removes what killed installations and removals have left behind, and the names of requests whose set was removed.
pub(super) fn remove_leftovers(root: &Path, older_than: std::time::Duration) {
    let is_old = |path: &Path| {
        let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > older_than))
    };
    for entry in fs::read_dir(root.join(SETS)).into_iter().flatten().flatten() {
        let path = entry.path();
        // Also sets that another version of the server has written in another way.
        let is_set = entry.file_name().to_str().is_some_and(|id| read(root, id).is_some());
        if !is_set && is_old(&path) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
    for entry in fs::read_dir(root.join(REQUESTS)).into_iter().flatten().flatten() {
        let is_answered = fs::read_to_string(entry.path()).is_ok_and(|id| root.join(SETS).join(id.trim()).is_dir());
        if !is_answered && is_old(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The file that is locked while the packages of a request are installed.
pub(super) fn request_lock(root: &Path, key: &str) -> io::Result<fs::File> {
    create_folders(root)?;
    let path = root.join(REQUESTS).join(key).with_extension("lock");
    fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Creates the folders of package sets. The uids of sandboxes must be able to enter all of them.
fn create_folders(root: &Path) -> io::Result<()> {
    [root.to_owned(), root.join(REQUESTS), root.join(SETS)].iter().try_for_each(|folder| create_folder(folder))
}

/// Creates a folder that everybody may enter, whatever the umask is. One that is there is kept as it is.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(id: &str) -> PackageSet {
        PackageSet { id: id.repeat(32), ..PackageSet::test() }
    }

    #[test]
    fn published_set_is_found_by_request_until_removed() {
        let root = std::env::temp_dir().join(format!("cellkeep-sets-{}", crate::ids::random_uuid()));
        for (key, id) in [("one", "a"), ("other", "a"), ("third", "b")] {
            let staging = Staging::new(&root).unwrap();
            fs::write(staging.files().join("x"), id).unwrap();
            staging.publish(&set(id), key).unwrap();
        }
        assert_eq!((find(&root, "other").unwrap(), list(&root).len()), (set("a"), 2));
        assert_eq!(fs::read(files(&root, &set("b").id).join("x")).unwrap(), b"b");
        drop(Staging::new(&root).unwrap());
        hide(&root, &set("a").id).unwrap().unwrap().show_again().unwrap();
        assert!(find(&root, "one").is_some());
        hide(&root, &set("a").id).unwrap().unwrap().remove().unwrap();
        assert!(find(&root, "one").is_none() && find(&root, "third").is_some());
        remove_leftovers(&root, std::time::Duration::ZERO);
        assert_eq!(fs::read_dir(root.join(REQUESTS)).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root.join(SETS)).unwrap().count(), 1);
        assert!(read(&root, "../../etc").is_none());
        fs::remove_dir_all(root).unwrap();
    }
}
