//! Content-addressed files: a blob is found by the SHA-256 of its bytes, so equal plots are stored once.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::fs;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::ids;
use crate::private_files;

/// Bytes, which take less than a millisecond.
const HASHED_AT_ONCE: usize = 256 << 10;

/// A folder of blobs. Clones share its lock.
#[derive(Clone, Debug)]
pub struct Blobs {
    folder: PathBuf,
    /// Writers of blobs hold it for reading until their transaction is committed. Removal holds it for writing.
    in_use: Arc<RwLock<()>>,
    /// Whether a blob is on the disk before [`Self::put`] returns.
    flushes: bool,
}

/// Whether a text is a SHA-256 in lower-case hexadecimal digits, the only names that blobs have.
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The name of a blob. Lets other tasks of the thread run in between, since hashing a large plot takes many milliseconds.
async fn hash(bytes: &[u8]) -> String {
    let mut digest = Sha256::new();
    for chunk in bytes.chunks(HASHED_AT_ONCE) {
        digest.update(chunk);
        if chunk.len() == HASHED_AT_ONCE {
            tokio::task::yield_now().await;
        }
    }
    hex::encode(digest.finalize())
}

impl Blobs {
    /// The folder is created when the first blob is stored.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), in_use: Arc::default(), flushes: false }
    }

    /// Sets whether each blob is flushed to the disk (fsync) when it is stored, so that it survives a power cut.
    pub fn flushing(self, flushes: bool) -> Self {
        Self { flushes, ..self }
    }

    /// Prevents removal while the guard lives. It must be held from storing a blob, which may exist already, until the
    /// commit of the row that references it.
    pub async fn putting(&self) -> OwnedRwLockReadGuard<()> {
        self.in_use.clone().read_owned().await
    }

    /// Prevents storing while the guard lives, so that a blob without references stays so until it is removed.
    pub async fn removing(&self) -> OwnedRwLockWriteGuard<()> {
        self.in_use.clone().write_owned().await
    }

    /// Stores bytes, and returns their hash. The write is atomic, also when the process is killed.
    pub async fn put(&self, bytes: &[u8]) -> io::Result<String> {
        let hash = hash(bytes).await;
        let path = self.path(&hash);
        // One of another length was cut off by a power cut, and is written again.
        if fs::metadata(&path).await.is_ok_and(|known| known.len() == bytes.len() as u64) {
            if self.flushes {
                fs::File::open(&path).await?.sync_all().await?;
            }
            self.flush_folders_of(&path).await?;
            return Ok(hash);
        }
        let temporary = path.with_file_name(format!("{hash}.{}", ids::random_uuid()));
        if let Some(parent) = path.parent() {
            // Both levels exist afterwards: the folder of all blobs, and that of the first digits.
            private_files::create_folder(&self.folder)?;
            private_files::create_folder(parent)?;
        }
        let written = async {
            let options = fs::OpenOptions::from(private_files::options().write(true).create_new(true).clone());
            let mut file = options.open(&temporary).await?;
            file.write_all(bytes).await?;
            file.flush().await?;
            if self.flushes {
                file.sync_all().await?;
            }
            fs::rename(&temporary, &path).await?;
            self.flush_folders_of(&path).await
        };
        if let Err(error) = written.await {
            let _ = fs::remove_file(&temporary).await;
            return Err(error);
        }
        Ok(hash)
    }

    /// A name reaches the disk with its folder. The folders may be new themselves.
    async fn flush_folders_of(&self, path: &Path) -> io::Result<()> {
        for folder in path.ancestors().skip(1).take(3).filter(|_| self.flushes) {
            fs::File::open(folder).await?.sync_all().await?;
        }
        Ok(())
    }

    /// The bytes of a blob. `None` if it does not exist.
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

    /// An open file of a blob, and its size in bytes. The file stays readable if the blob is removed meanwhile.
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

    /// Removes a blob. Succeeds if it does not exist.
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
            // Fails if the folder is not empty, which is intended.
            let _ = fs::remove_dir(folder).await;
        }
        Ok(())
    }

    /// Removes all files except these blobs. A killed server may have left such files. Returns the number of removed files.
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
            // Fails if the folder is not empty, which is intended.
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
    async fn blobs_are_found_by_hash_only() {
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
