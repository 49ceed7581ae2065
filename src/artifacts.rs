//! Blobs on disk, found by the hash of their bytes: the same plot is kept once, however often it is shown.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::fs;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::ids;

/// A folder of blobs.
#[derive(Clone, Debug)]
pub struct Blobs {
    folder: PathBuf,
    /// Held to read by whoever puts blobs and has not yet written down that they are needed, to write by whoever removes.
    in_use: Arc<RwLock<()>>,
}

/// A name that a blob can have: SHA-256 in lower-case hexadecimal digits.
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl Blobs {
    /// Blobs beneath a folder, which is made when it is needed.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), in_use: Arc::default() }
    }

    /// While this is held, nothing is removed: between putting a blob, which may be there already, and writing down that it is
    /// needed, nobody else's deletion may take it away.
    pub async fn putting(&self) -> OwnedRwLockReadGuard<()> {
        self.in_use.clone().read_owned().await
    }

    /// While this is held, nothing is put: what nobody needs when it is looked for is needed by nobody when it is removed.
    pub async fn removing(&self) -> OwnedRwLockWriteGuard<()> {
        self.in_use.clone().write_owned().await
    }

    /// Keeps bytes; gives their hash. They are there whole or not at all, also after a `kill -9`.
    ///
    /// # Errors
    /// When they cannot be written, a full disk among the reasons.
    pub async fn put(&self, bytes: &[u8]) -> io::Result<String> {
        let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.path(&hash);
        if fs::try_exists(&path).await? {
            return Ok(hash);
        }
        let temporary = path.with_file_name(format!("{hash}.{}", ids::random_uuid()));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).await?;
        }
        let written = async {
            fs::write(&temporary, bytes).await?;
            fs::rename(&temporary, &path).await
        };
        if let Err(error) = written.await {
            let _ = fs::remove_file(&temporary).await;
            return Err(error);
        }
        Ok(hash)
    }

    /// The bytes of a blob. `None` when there is none of that name.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub async fn get(&self, hash: &str) -> io::Result<Option<Vec<u8>>> {
        if !is_hash(hash) {
            return Ok(None);
        }
        match fs::read(self.path(hash)).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same to be read piece by piece, with its size in bytes. One that is removed meanwhile can be read to its end.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub async fn open(&self, hash: &str) -> io::Result<Option<(fs::File, u64)>> {
        if !is_hash(hash) {
            return Ok(None);
        }
        match fs::File::open(self.path(hash)).await {
            Ok(file) => {
                let bytes = file.metadata().await?.len();
                Ok(Some((file, bytes)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a blob that nobody needs any more.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub async fn remove(&self, hash: &str) -> io::Result<()> {
        if !is_hash(hash) {
            return Ok(());
        }
        let path = self.path(hash);
        match fs::remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(folder) = path.parent() {
            // Only when it is empty.
            let _ = fs::remove_dir(folder).await;
        }
        Ok(())
    }

    /// Removes everything but the blobs of these names: what a server that was killed between two steps has left.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub async fn keep_only(&self, hashes: &std::collections::HashSet<String>) -> io::Result<usize> {
        let mut removed = 0;
        let mut folders = match fs::read_dir(&self.folder).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            folders => folders?,
        };
        while let Some(folder) = folders.next_entry().await? {
            let Ok(mut files) = fs::read_dir(folder.path()).await else { continue };
            while let Some(file) = files.next_entry().await? {
                let is_kept = file.file_name().to_str().is_some_and(|name| hashes.contains(name));
                if !is_kept && fs::remove_file(file.path()).await.is_ok() {
                    removed += 1;
                }
            }
            // Only when it is empty.
            let _ = fs::remove_dir(folder.path()).await;
        }
        Ok(removed)
    }

    fn path(&self, hash: &str) -> PathBuf {
        self.folder.join(&hash[..2]).join(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_found_by_their_hash_and_by_nothing_else() {
        let folder = std::env::temp_dir().join(format!("cellkeep-blobs-{}", ids::random_uuid()));
        let blobs = Blobs::new(&folder);
        let hash = blobs.put(b"abc").await.unwrap();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(blobs.put(b"abc").await.unwrap(), hash);
        assert_eq!(blobs.get(&hash).await.unwrap().as_deref(), Some(b"abc".as_slice()));
        for odd in ["", "..", "../../etc/passwd", "BA", &hash.to_uppercase(), &"é".repeat(32)] {
            assert_eq!(blobs.get(odd).await.unwrap(), None, "{odd}");
            blobs.remove(odd).await.unwrap();
        }
        let other = blobs.put(b"other").await.unwrap();
        assert_eq!(blobs.keep_only(&[hash.clone()].into()).await.unwrap(), 1);
        assert_eq!(blobs.get(&other).await.unwrap(), None);
        blobs.remove(&hash).await.unwrap();
        assert_eq!(blobs.get(&hash).await.unwrap(), None);
        std::fs::remove_dir(folder).expect("nothing is left in it");
    }
}
