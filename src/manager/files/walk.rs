//! Reads a folder entry by entry, on request with everything below it, in the order of names. A position in the walk is the
//! path of an entry, so that a page can continue where another one has ended, whatever was created or removed meanwhile.

use std::collections::VecDeque;

use super::workspace::MAX_NAME;
use super::{EntryKind, FileEntry, FileError, Workspace, decode_name, join};

/// Entries that are asked for at once.
const PAGE: usize = 1000;
/// The most entries that are buffered at all levels together. Beyond, levels near the top are read again later.
const MAX_BUFFERED: usize = 4 * PAGE;
/// The longest path in bytes. The agent opens no longer ones.
const MAX_PATH: usize = 4096;
/// The size of the entries of a page, in bytes of their JSON, above which it ends.
const MAX_PAGE_SIZE: usize = 1 << 20;

/// An entry with its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceEntry {
    /// Relative to the workspace.
    pub path: String,
    pub entry: FileEntry,
}

/// A page of a folder.
#[derive(Debug)]
pub struct FilePage {
    pub entries: Vec<WorkspaceEntry>,
    /// Where the next page begins, if there is one.
    pub next: Option<Position>,
}

/// Where a page ends: an entry, by its path below the folder of the list. A path with a slash at its end is a folder whose entries
/// come next, in a recursive list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position(String);

impl Position {
    /// Checks the position that a client sends for a list of a folder.
    pub fn parse(folder: &str, text: String, is_recursive: bool) -> Option<Self> {
        let names = if is_recursive { text.strip_suffix('/').unwrap_or(&text) } else { &text };
        let are_names = names.split('/').all(|name| !matches!(name, "" | "." | ".."));
        // The last name may be longer than a path that is opened.
        let is_path = path_length(&join(folder, names)).is_some_and(|length| length <= MAX_PATH + 1 + MAX_NAME);
        (are_names && is_path && (is_recursive || !names.contains('/'))).then_some(Self(text))
    }

    /// The position behind an entry.
    fn behind(folder: &str, WorkspaceEntry { path, entry }: &WorkspaceEntry, is_recursive: bool) -> Self {
        let below = path.strip_prefix(folder).map_or(path.as_str(), |below| below.trim_start_matches('/'));
        let is_entered = is_recursive && entry.kind == EntryKind::Folder;
        Self(format!("{below}{}", if is_entered { "/" } else { "" }))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The length of a path in bytes; none if it cannot be decoded.
fn path_length(path: &str) -> Option<usize> {
    decode_name(path).map(|path| path.len())
}

/// A folder of the walk: what of it was read and is still to come.
struct Level {
    path: String,
    /// The last name that was returned or skipped.
    after: String,
    page: VecDeque<FileEntry>,
    /// The name after which the folder continues when the page is empty; `None` at its end.
    next: Option<String>,
}

impl Level {
    /// A folder after one of its names; from its beginning if the name is empty.
    fn after(path: String, name: &str) -> Self {
        Self { path, after: name.to_owned(), page: VecDeque::new(), next: Some(name.to_owned()) }
    }

    /// Forgets the page, which is read again when it is needed.
    fn forget(&mut self) {
        self.page.clear();
        self.next = Some(self.after.clone());
    }
}

/// A walk through a folder, depth first.
pub(super) struct Walk {
    workspace: Workspace,
    levels: Vec<Level>,
    is_recursive: bool,
    page: usize,
}

impl Walk {
    pub fn new(workspace: &Workspace, root: &str, is_recursive: bool) -> Self {
        Self { workspace: workspace.clone(), levels: vec![Level::after(root.to_owned(), "")], is_recursive, page: PAGE }
    }

    /// A walk that continues at a position.
    fn after(workspace: &Workspace, root: &str, position: &Position, is_recursive: bool) -> Self {
        let mut levels = Vec::new();
        let mut folder = root.to_owned();
        for name in position.0.split('/') {
            levels.push(Level::after(folder.clone(), name));
            folder = join(&folder, name);
        }
        Self { workspace: workspace.clone(), levels, is_recursive, page: PAGE }
    }

    /// The next entry. Folders come before what is in them.
    pub async fn next(&mut self) -> Result<Option<WorkspaceEntry>, FileError> {
        loop {
            let is_root = self.levels.len() == 1;
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            if let Some(entry) = level.page.pop_front() {
                level.after.clone_from(&entry.name);
                let path = join(&level.path, &entry.name);
                if self.is_recursive && entry.kind == EntryKind::Folder {
                    if path_length(&path).is_none_or(|length| length > MAX_PATH) {
                        return Err(
                            FileError::Refused(format!("a path in it is longer than {MAX_PATH} bytes")).at(&level.path)
                        );
                    }
                    self.levels.push(Level::after(path.clone(), ""));
                    self.bound_memory();
                }
                return Ok(Some(WorkspaceEntry { path, entry }));
            }
            let Some(after) = level.next.take() else {
                self.levels.pop();
                continue;
            };
            match self.workspace.list(&level.path, &after, self.page).await {
                Ok((entries, next)) => {
                    level.page = entries.into();
                    level.next = next;
                }
                // A folder below the root that was removed meanwhile.
                Err(FileError::Missing(_)) if !is_root => drop(self.levels.pop()),
                Err(error) if is_root => return Err(error),
                Err(error) => return Err(error.at(&level.path)),
            }
        }
    }

    /// Leaves out what is in the folder that was returned last.
    pub fn skip_folder(&mut self) {
        self.levels.pop();
    }

    fn bound_memory(&mut self) {
        let mut buffered: usize = self.levels.iter().map(|level| level.page.len()).sum();
        for level in &mut self.levels {
            if buffered <= MAX_BUFFERED {
                return;
            }
            buffered -= level.page.len();
            level.forget();
        }
    }
}

impl Workspace {
    /// At most `limit` entries of a folder, after the position at which another page has ended. `recursive` adds what is in its
    /// folders. A page of long names ends earlier.
    pub async fn page(
        &self,
        folder: &str,
        is_recursive: bool,
        position: Option<&Position>,
        limit: usize,
    ) -> Result<FilePage, FileError> {
        let mut walk = match position {
            Some(position) => Walk::after(self, folder, position, is_recursive),
            None => Walk::new(self, folder, is_recursive),
        };
        walk.page = PAGE.min(limit + 1);
        let (mut entries, mut size) = (Vec::new(), 0);
        while let Some(found) = walk.next().await? {
            size += found.entry.json_size() + found.path.len();
            if let Some(last) = entries.last().filter(|_| entries.len() == limit || size > MAX_PAGE_SIZE) {
                let next = Some(Position::behind(folder, last, is_recursive));
                return Ok(FilePage { entries, next });
            }
            entries.push(found);
        }
        Ok(FilePage { entries, next: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_clients_are_checked() {
        let is_position = |text: &str, is_recursive| Position::parse("folder", text.to_owned(), is_recursive).is_some();
        for text in ["a", "..a", "b\0ff"] {
            assert!(is_position(text, true) && is_position(text, false), "{text:?}");
        }
        for text in ["a/", "a/b", "a/b/"] {
            assert!(is_position(text, true) && !is_position(text, false), "{text:?}");
        }
        for text in ["", "/", "a//", "a//b", "/a", ".", "a/..", "../a", "b\0zz", &"a/".repeat(49_000), &"n".repeat(4400)] {
            assert!(!is_position(text, true) && !is_position(text, false), "{text:?}");
        }
    }

    #[test]
    fn positions_name_the_last_entry() {
        let entry =
            FileEntry { name: "b".to_owned(), kind: EntryKind::Folder, size: 0, modified_ms: 0, mode: 0o755, target: None };
        let found = WorkspaceEntry { path: "folder/a/b".to_owned(), entry };
        assert_eq!(Position::behind("folder", &found, true).as_str(), "a/b/");
        assert_eq!(Position::behind("", &found, false).as_str(), "folder/a/b");
    }
}
