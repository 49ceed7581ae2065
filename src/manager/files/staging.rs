//! Several files that appear together. They are written into a hidden folder, which is merged into its place at the end: a
//! form or an archive that is refused, or whose sender disconnects, leaves the workspace as it was.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::Stream;

use super::owner::WorkspaceOwner;
use super::walk::Walk;
use super::{EntryKind, FileError, MAX_ARCHIVE_BYTES, MAX_ARCHIVE_ENTRIES, PutOptions, Workspace, join};
use crate::ids;
use crate::session::Upload;

/// The beginning of the names of staging folders.
const PREFIX: &str = ".cellkeep-staging-";

/// How long unpacking an archive may take, and how long the check before files are moved.
const DEADLINE: Duration = Duration::from_secs(600);

/// The most folders of an earlier server that are looked for.
const MAX_OLD: usize = 100;

/// Tells the staging folders of this process from those that a killed one has left.
static PROCESS: LazyLock<String> = LazyLock::new(ids::random_uuid);
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub files: usize,
    pub folders: usize,
    pub links: usize,
    /// Bytes of the files.
    pub bytes: u64,
}

impl Summary {
    /// Counts one more entry. The number of entries is limited.
    fn count(&mut self, count: impl FnOnce(&mut Self) -> &mut usize) -> Result<(), FileError> {
        *count(self) += 1;
        if self.files + self.folders + self.links > MAX_ARCHIVE_ENTRIES {
            return Err(FileError::ArchiveTooLarge(format!("there are more than {MAX_ARCHIVE_ENTRIES} entries")));
        }
        Ok(())
    }

    pub(super) fn count_bytes(&mut self, bytes: u64) -> Result<(), FileError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_ARCHIVE_BYTES {
            let detail = format!("there are more than {} MB of files", MAX_ARCHIVE_BYTES >> 20);
            return Err(FileError::ArchiveTooLarge(detail));
        }
        Ok(())
    }
}

/// Until when something must be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub fn begin() -> Self {
        Self(Instant::now() + DEADLINE)
    }

    pub fn check(self) -> Result<(), FileError> {
        if Instant::now() > self.0 {
            return Err(FileError::Busy(format!("unpacking took longer than {} s", DEADLINE.as_secs())));
        }
        Ok(())
    }
}

/// A staging folder. Dropping it removes it with everything in it.
pub struct Staging {
    workspace: Workspace,
    folder: String,
    pub(super) summary: Summary,
}

impl Workspace {
    /// Creates an empty staging folder, and removes those that an earlier server has left.
    pub async fn stage(&self) -> Result<Staging, FileError> {
        for old in self.list("", PREFIX, MAX_OLD).await?.0 {
            if old.name.strip_prefix(PREFIX).is_some_and(|rest| !rest.starts_with(PROCESS.as_str())) {
                self.remove(&old.name, true).await?;
            }
        }
        let folder = format!("{PREFIX}{}-{}", *PROCESS, NUMBERS.fetch_add(1, Ordering::Relaxed));
        let staging = Staging { workspace: self.clone(), folder, summary: Summary::default() };
        self.make_folder(&staging.folder).await?;
        Ok(staging)
    }
}

/// A path below a folder, as archives and forms write it: `./` and slashes at the end are left out.
pub(in crate::manager) fn check_path(name: &str) -> Result<String, FileError> {
    let bad = |why: &str| Err(FileError::Refused(format!("{name:?} {why}")));
    if name.starts_with('/') {
        return bad("is an absolute path");
    }
    if name.contains('\0') {
        return bad("has a NUL");
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return bad("leads out of the folder");
    }
    Ok(parts.join("/"))
}

impl Staging {
    fn path(&self, name: &str) -> String {
        join(&self.folder, name)
    }

    /// Says that a path occurs twice, where the workspace says that something exists.
    fn twice(error: FileError, name: &str) -> FileError {
        match error {
            FileError::Exists(_) | FileError::Missing(_) => {
                FileError::Refused(format!("{name:?} occurs twice, or is both a file and a folder"))
            }
            other => other.at(name),
        }
    }

    /// Starts a file; its path must be new. [`Self::finish_file`] ends it.
    pub(super) fn start_file(
        &mut self,
        name: &str,
        options: PutOptions,
    ) -> Result<(String, Upload<WorkspaceOwner>), FileError> {
        let name = check_path(name)?;
        if name.is_empty() {
            return Err(FileError::Refused("a file has no name".to_owned()));
        }
        self.summary.count(|summary| &mut summary.files)?;
        let upload = self.workspace.upload(&self.path(&name), PutOptions { is_new: true, ..options });
        Ok((name, upload))
    }

    pub(super) async fn push(upload: &mut Upload<WorkspaceOwner>, name: &str, chunk: Bytes) -> Result<(), FileError> {
        upload.push(chunk).await.map_err(|error| Self::twice(error.into(), name))
    }

    pub(super) async fn finish_file(upload: Upload<WorkspaceOwner>, name: &str, chunk: Bytes) -> Result<(), FileError> {
        upload.finish(chunk).await.map(drop).map_err(|error| Self::twice(error.into(), name))
    }

    /// Writes a file of a form.
    pub async fn write<E>(&mut self, name: &str, chunks: impl Stream<Item = Result<Bytes, E>>) -> Result<(), FileError> {
        let name = check_path(name)?;
        self.summary.count(|summary| &mut summary.files)?;
        let options = PutOptions { is_new: true, ..PutOptions::default() };
        let written = self.workspace.write(&self.path(&name), options, chunks).await;
        self.summary.count_bytes(written.map_err(|error| Self::twice(error, &name))?.size)
    }

    pub(super) async fn make_folder(&mut self, name: &str) -> Result<(), FileError> {
        let name = check_path(name)?;
        if name.is_empty() {
            return Ok(());
        }
        self.summary.count(|summary| &mut summary.folders)?;
        self.workspace.make_folder(&self.path(&name)).await.map_err(|error| Self::twice(error, &name))
    }

    /// Creates a symlink whose target is below the folder.
    pub(super) async fn make_link(&mut self, name: &str, target: &str) -> Result<(), FileError> {
        let name = check_path(name)?;
        if !stays_below(&name, target) {
            return Err(FileError::Refused(format!("{name:?} is a link to {target:?}, which is outside of the folder")));
        }
        self.summary.count(|summary| &mut summary.links)?;
        self.workspace.make_link(&self.path(&name), target).await.map_err(|error| Self::twice(error, &name))
    }

    /// Merges everything into a folder of the workspace, which is created. Files are replaced one by one; a file never replaces
    /// a folder or the reverse, which is checked before anything is moved.
    pub async fn publish(self, into: &str) -> Result<Summary, FileError> {
        self.publish_before(into, Deadline::begin()).await
    }

    /// The same. Nothing is moved if the check does not end before the deadline.
    pub(super) async fn publish_before(self, into: &str, deadline: Deadline) -> Result<Summary, FileError> {
        let summary = self.summary;
        let moved = async {
            self.merge(into, MergeStep::Check(deadline)).await?;
            self.workspace.make_folder(into).await?;
            self.merge(into, MergeStep::Move).await
        };
        let moved = moved.await;
        self.discard().await;
        moved.map(|()| summary)
    }

    /// Removes the folder.
    pub async fn discard(mut self) {
        if self.workspace.remove(&self.folder, true).await.is_ok() {
            self.folder.clear();
        }
    }

    async fn merge(&self, into: &str, step: MergeStep) -> Result<(), FileError> {
        let mut walk = Walk::new(&self.workspace, &self.folder, true);
        while let Some(staged) = walk.next().await? {
            if let MergeStep::Check(deadline) = step {
                deadline.check()?;
            }
            let name = staged.path[self.folder.len()..].trim_start_matches('/');
            let to = join(into, name);
            let is_folder = staged.entry.kind == EntryKind::Folder;
            let replace = match self.workspace.stat(&to).await {
                Ok(existing) if is_folder && existing.kind == EntryKind::Folder => continue,
                Ok(existing) if is_folder || existing.kind == EntryKind::Folder => {
                    let detail = "exists, and only one of both is a folder".to_owned();
                    return Err(FileError::Exists(detail).at(&to));
                }
                Ok(_) => true,
                Err(FileError::Missing(_)) => false,
                Err(error) => return Err(error.at(&to)),
            };
            if matches!(step, MergeStep::Move) {
                self.workspace.rename(&staged.path, &to, replace).await.map_err(|error| error.at(&to))?;
            }
            if is_folder {
                walk.skip_folder();
            }
        }
        Ok(())
    }
}

/// A pass through the staging folder.
#[derive(Clone, Copy, Debug)]
enum MergeStep {
    /// Nothing is moved.
    Check(Deadline),
    Move,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.folder.is_empty() {
            return;
        }
        let (workspace, folder) = (self.workspace.clone(), std::mem::take(&mut self.folder));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Fails if the session has ended, and the folder with it.
            runtime.spawn(async move { workspace.remove(&folder, true).await });
        }
    }
}

/// Whether the target of a link stays below the folder in which the link has this path. `..` may only be at the beginning: behind
/// a name it leads to where that name leads, which may be another link.
fn stays_below(link: &str, target: &str) -> bool {
    let parts: Vec<&str> = target.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let up = parts.iter().take_while(|part| **part == "..").count();
    let is_plain = !parts[up..].contains(&"..");
    !target.is_empty() && !target.starts_with('/') && is_plain && up <= link.matches('/').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_archives_stay_below() {
        for (name, path) in [("a", "a"), ("./a//b/", "a/b"), (".", ""), ("", ""), ("..a/b..", "..a/b..")] {
            assert_eq!(check_path(name).unwrap(), path);
        }
        for hostile in ["/a", "..", "a/../b", "a\0b", "./../x", "//"] {
            assert!(check_path(hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn targets_of_links_stay_below() {
        for (link, target) in [("a", "b"), ("d/a", "../b"), ("d/a", ".."), ("d/e/a", "../../x/y"), ("a", "./b")] {
            assert!(stays_below(link, target), "{link} -> {target}");
        }
        for (link, target) in
            [("a", "/etc"), ("a", ".."), ("d/a", "../.."), ("a", "x/../y"), ("d/a", "x/../../y"), ("a", "")]
        {
            assert!(!stays_below(link, target), "{link} -> {target}");
        }
    }
}
