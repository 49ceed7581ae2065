//! The files that a cell's execution has changed, merged from its events. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::agent_protocol::{ChangeKind, FileChange, FileChanges};
use crate::store::{EventKind, EventRow};

/// The most files of one cell that are named.
const MAX_FILES: usize = 1000;

/// The files that an execution has changed, from its beginning to its last event.
pub fn changed_files<'a>(events: impl IntoIterator<Item = &'a EventRow>) -> FileChanges {
    let mut merged = Merged::default();
    for event in events {
        match event.kind {
            EventKind::CellQueued => merged = Merged::default(),
            EventKind::FilesChanged => merged.add_event(&event.body),
            _ => {}
        }
    }
    merged.into_changes()
}

/// The body of a `files.changed` event.
#[derive(Deserialize)]
struct Body {
    files: Vec<FileChange>,
    truncated: bool,
}

#[derive(Default)]
struct Merged {
    files: BTreeMap<String, FileChange>,
    truncated: bool,
}

impl Merged {
    fn add_event(&mut self, body: &str) {
        let Ok(Body { files, truncated }) = serde_json::from_str(body) else { return };
        self.truncated |= truncated;
        files.into_iter().for_each(|change| self.add(change));
    }

    fn add(&mut self, mut later: FileChange) {
        if let Some(former) = self.files.remove(&later.path) {
            let Some(change) = merge(former.change, later.change) else { return };
            later.change = change;
        }
        if self.files.len() == MAX_FILES {
            self.truncated = true;
            // Artifacts and visible files have precedence.
            let is_minor = |file: &FileChange| !file.artifact && is_hidden(&file.path);
            let minor = self.files.values().find(|file| is_minor(file)).map(|file| file.path.clone());
            let Some(evicted) = minor.filter(|_| !is_minor(&later)) else { return };
            self.files.remove(&evicted);
        }
        self.files.insert(later.path.clone(), later);
    }

    fn into_changes(self) -> FileChanges {
        FileChanges { files: self.files.into_values().collect(), truncated: self.truncated }
    }
}

fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with('.'))
}

/// Two changes after each other as one. `None` if nothing is left of them.
fn merge(former: ChangeKind, later: ChangeKind) -> Option<ChangeKind> {
    match (former, later) {
        (ChangeKind::Created, ChangeKind::Deleted) => None,
        (ChangeKind::Created, _) => Some(ChangeKind::Created),
        (_, ChangeKind::Created) => Some(ChangeKind::Modified),
        (_, later) => Some(later),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ids::Seq;

    fn event(kind: EventKind, files: &[FileChange]) -> EventRow {
        let body = json!({"files": files, "truncated": false}).to_string();
        EventRow { seq: Seq(1), first: Seq(1), time: 0, cell: Some("c".to_owned()), kind, body }
    }

    fn change(path: &str, change: ChangeKind, size: u64) -> FileChange {
        FileChange { path: path.to_owned(), change, size, sha256: None, artifact: false, not_kept: None }
    }

    #[test]
    fn queueing_the_cell_again_begins_anew() {
        let first = event(EventKind::FilesChanged, &[change("a", ChangeKind::Created, 1)]);
        let second = event(EventKind::FilesChanged, &[change("b", ChangeKind::Created, 1)]);
        let changes = changed_files(&[first, event(EventKind::CellQueued, &[]), second]);
        assert_eq!(changes.files, [change("b", ChangeKind::Created, 1)]);
    }

    #[test]
    fn too_many_files_are_truncated() {
        let many: Vec<FileChange> = (0..1500).map(|n| change(&n.to_string(), ChangeKind::Created, 0)).collect();
        let changes = changed_files(&[event(EventKind::FilesChanged, &many)]);
        assert!(changes.files.len() == MAX_FILES && changes.truncated);
    }

    #[test]
    fn visible_file_displaces_hidden_one() {
        let hidden: Vec<FileChange> = (0..1000).map(|n| change(&format!(".x/{n}"), ChangeKind::Created, 0)).collect();
        let rows = [hidden, vec![change("seen", ChangeKind::Created, 0), change(".y", ChangeKind::Created, 0)]];
        let events = rows.map(|files| event(EventKind::FilesChanged, &files));
        let paths: Vec<String> = changed_files(&events).files.into_iter().map(|file| file.path).collect();
        assert!(paths.len() == MAX_FILES && paths.contains(&"seen".to_owned()) && !paths.contains(&".y".to_owned()));
    }

    proptest! {
        /// One file exists or not, and changes at random. The merged reports say how the end differs from the beginning.
        #[test]
        fn merged_reports_equal_the_difference(existed: bool, steps in prop::collection::vec(any::<bool>(), 0..12)) {
            let (mut exists, mut events, mut changed) = (existed, Vec::new(), false);
            for stays in steps {
                let kind = match (exists, stays) {
                    (false, false) => continue,
                    (false, true) => ChangeKind::Created,
                    (true, true) => ChangeKind::Modified,
                    (true, false) => ChangeKind::Deleted,
                };
                (exists, changed) = (stays, true);
                events.push(event(EventKind::FilesChanged, &[change("f", kind, events.len() as u64)]));
            }
            let expected = match (existed, exists) {
                (false, false) => None,
                (false, true) => Some(ChangeKind::Created),
                (true, true) => changed.then_some(ChangeKind::Modified),
                (true, false) => Some(ChangeKind::Deleted),
            };
            let files = changed_files(&events).files;
            prop_assert_eq!(files.first().map(|file| file.change), expected);
            if let Some(file) = files.first() {
                prop_assert_eq!(file.size, events.len() as u64 - 1, "the last report has the size");
            }
        }
    }
}
