//! Finds out which files of the workspace change. The system queues an event for each change (inotify); the queue is read when an
//! execution ends, and otherwise some time after a change. Then the files that it names are compared with what is known of them.
//! Only if events were lost is the whole workspace listed.
//!
//! Regular files are followed, in real folders, except for [`NOT_FOLLOWED`]. A file whose path is not UTF-8 is not: no request could name it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::files::Files;
use crate::agent_protocol::{ChangeKind, FileChange, FileChanges};

/// The most files that are followed. Changes of others are not noticed.
const MAX_FILES: usize = 50_000;
/// The most folders that are watched.
const MAX_FOLDERS: usize = 10_000;
/// The most files in one report, and the most bytes of their paths.
const MAX_REPORTED: usize = 1000;
const MAX_REPORTED_BYTES: usize = 256 << 10;
/// The most events of one reading; the system's queue holds a quarter of them. Code can write faster than this reads.
const MAX_EVENTS: usize = 1 << 16;

/// Folders at the top of the workspace in which programs keep what nobody works with: packages that pip installs, and caches. They are
/// not followed.
const NOT_FOLLOWED: &[&str] = &[".local", ".cache"];

const WATCHED: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, u64),
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self { inode: stat.st_ino, size: stat.st_size as u64, modified: (stat.st_mtime, stat.st_mtime_nsec) }
    }
}

/// See the [module](self) text.
pub(super) struct WorkspaceChanges {
    /// `None` where the system has no inotify instance left.
    queue: Option<Rc<AsyncFd<OwnedFd>>>,
    folders: WatchedFolders,
    /// The files as they were last reported.
    known: BTreeMap<String, Stamp>,
    /// Files that may have changed since, and whether they were written for certain.
    touched: BTreeMap<String, bool>,
    /// Folders that have appeared and disappeared, while the queue is read.
    appeared: BTreeSet<String>,
    disappeared: BTreeSet<String>,
    /// Events were lost, so that everything must be listed.
    events_lost: bool,
    /// Since the last report, something was seen that is not followed: there are too many files or folders.
    is_partial: bool,
}

/// See [`WorkspaceChanges::signal`].
pub(super) struct ChangeSignal(Option<Rc<AsyncFd<OwnedFd>>>);

impl ChangeSignal {
    /// Waits until something has changed since the last call. For one task at a time.
    pub async fn changed(&self) {
        let Some(queue) = &self.0 else { return std::future::pending().await };
        match queue.readable().await {
            // The queue is read later, up to its end.
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        }
    }
}

impl WorkspaceChanges {
    /// Follows the workspace from now on.
    pub fn new(files: &Files) -> Self {
        let queue = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC);
        let mut changes = Self {
            queue: queue.ok().and_then(|queue| register(queue).ok()).map(Rc::new),
            folders: WatchedFolders::default(),
            known: BTreeMap::new(),
            touched: BTreeMap::new(),
            appeared: BTreeSet::new(),
            disappeared: BTreeSet::new(),
            events_lost: false,
            is_partial: false,
        };
        changes.known = changes.walk(files, "");
        changes
    }

    /// Tells when there are changes, without a borrow of what follows them.
    pub fn signal(&self) -> ChangeSignal {
        ChangeSignal(self.queue.clone())
    }

    /// All changes since the last call, by path.
    pub fn take(&mut self, files: &Files) -> FileChanges {
        self.read_queue(files);
        if std::mem::take(&mut self.events_lost) || self.queue.is_none() {
            self.compare_all(files);
        }
        let touched = std::mem::take(&mut self.touched);
        let changed = touched.into_iter().filter_map(|(path, written)| self.compare(files, path, written)).collect();
        FileChanges { files: changed, truncated: std::mem::take(&mut self.is_partial) }
    }

    /// Takes note of a change at `path` that is not the code's, and is not reported.
    pub fn absorb(&mut self, files: &Files, path: &str) {
        self.read_queue(files);
        remove_beneath(&mut self.touched, path);
        remove_beneath(&mut self.known, path);
        match stamp(files, path) {
            Some(stamp) => drop(self.known.insert(path.to_owned(), stamp)),
            None => {
                let found = self.walk(files, path);
                self.known.extend(found);
            }
        }
    }

    /// How a file differs from what is known of it, which is updated.
    fn compare(&mut self, files: &Files, path: String, was_written: bool) -> Option<FileChange> {
        let (before, now) = (self.known.get(&path).copied(), stamp(files, &path));
        let change = match (before, now) {
            (None, None) => return None,
            (None, Some(_)) if self.known.len() >= MAX_FILES => {
                self.is_partial = true;
                return None;
            }
            (None, Some(_)) => ChangeKind::Created,
            (Some(_), None) => ChangeKind::Deleted,
            (Some(before), Some(now)) if !was_written && before == now => return None,
            (Some(_), Some(_)) => ChangeKind::Modified,
        };
        match now {
            Some(now) => self.known.insert(path.clone(), now),
            None => self.known.remove(&path),
        };
        Some(FileChange { path, change, size: now.map_or(0, |now| now.size), sha256: None, artifact: false, not_kept: None })
    }

    /// Marks all files that differ from what is known of them.
    fn compare_all(&mut self, files: &Files) {
        let now = self.walk(files, "");
        let differs = |path: &String| self.known.get(path) != now.get(path);
        let differing: Vec<String> = self.known.keys().chain(now.keys()).filter(|path| differs(path)).cloned().collect();
        self.touched.extend(differing.into_iter().map(|path| (path, false)));
    }

    // ---- the queue ----------------------------------------------------------------------------------------------------

    fn read_queue(&mut self, files: &Files) {
        // Taken out meanwhile, because handling events adds watches.
        let Some(queue) = self.queue.take() else { return };
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(queue.get_ref(), &mut buffer);
        for _ in 0..MAX_EVENTS {
            let Ok(event) = reader.next() else { break };
            let name = event.file_name().map(|name| name.to_str());
            match name {
                Some(Ok(name)) => self.handle_event(queue.get_ref(), event.wd(), event.events(), name),
                Some(Err(_)) => {}
                None if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => self.events_lost = true,
                None if event.events().contains(ReadFlags::IGNORED) => self.folders.forget(event.wd()),
                None => {}
            }
        }
        for folder in std::mem::take(&mut self.disappeared) {
            keys_beneath(&self.known, &folder).into_iter().for_each(|path| self.touch(path, false));
        }
        let mut walked: Option<String> = None;
        for folder in std::mem::take(&mut self.appeared) {
            // The folder before was walked with all that is beneath it.
            if walked.as_deref().is_none_or(|walked| !is_beneath(&folder, walked)) {
                let found = self.walk_with(files, Some(queue.get_ref()), &folder);
                found.into_keys().for_each(|path| self.touch(path, false));
                walked = Some(folder);
            }
        }
        self.queue = Some(queue);
    }

    fn touch(&mut self, path: String, was_written: bool) {
        if self.touched.len() < MAX_FILES || self.touched.contains_key(&path) {
            *self.touched.entry(path).or_default() |= was_written;
        } else {
            self.is_partial = true;
        }
    }

    fn handle_event(&mut self, queue: &OwnedFd, watch: i32, events: ReadFlags, name: &str) {
        let Some(folder) = self.folders.path_of(watch) else { return };
        let path = join(folder, name);
        let appears = events.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        if !events.contains(ReadFlags::ISDIR) {
            // Closing a file that was open for writing may have changed it through a mapping, or not at all.
            let was_written = !events.contains(ReadFlags::CLOSE_WRITE);
            self.touch(path, was_written);
        } else if appears && !NOT_FOLLOWED.contains(&path.as_str()) {
            // It is walked when the queue has been read, since it may be gone or full by then, and may have come and gone often.
            self.appeared.insert(path);
        } else if events.contains(ReadFlags::MOVED_FROM) {
            self.folders.unwatch_beneath(queue, &path);
            self.disappeared.insert(path);
        }
    }

    // ---- folders ------------------------------------------------------------------------------------------------------

    fn walk(&mut self, files: &Files, root: &str) -> BTreeMap<String, Stamp> {
        let queue = self.queue.take();
        let found = self.walk_with(files, queue.as_ref().map(|queue| queue.get_ref()), root);
        self.queue = queue;
        found
    }

    /// Watches a folder and all beneath, and returns the files there.
    fn walk_with(&mut self, files: &Files, queue: Option<&OwnedFd>, root: &str) -> BTreeMap<String, Stamp> {
        let (mut found, mut waiting) = (BTreeMap::new(), vec![root.to_owned()]);
        let mut budget = MAX_FILES + MAX_FOLDERS;
        while let Some(path) = waiting.pop().filter(|_| budget > 0) {
            let Ok(folder) = files.open_plain(&path, OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
            if let Some(queue) = queue {
                self.is_partial |= !self.folders.watch(queue, &folder, &path);
            }
            for (name, stat) in entries(&folder).take(budget) {
                budget -= 1;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory if path.is_empty() && NOT_FOLLOWED.contains(&name.as_str()) => {}
                    FileType::RegularFile if found.len() < MAX_FILES => {
                        found.insert(join(&path, &name), Stamp::of(&stat));
                    }
                    FileType::Directory if waiting.len() < MAX_FOLDERS => waiting.push(join(&path, &name)),
                    FileType::RegularFile | FileType::Directory => self.is_partial = true,
                    _ => {}
                }
            }
        }
        self.is_partial |= budget == 0;
        found
    }
}

fn register(queue: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor for its whole life.
    #[expect(unsafe_code, reason = "the safe constructor is deprecated")]
    unsafe { AsyncFd::register(queue) }.map_err(Into::into)
}

/// The watched folders, by path and by watch descriptor.
#[derive(Default)]
struct WatchedFolders {
    by_path: BTreeMap<String, i32>,
    by_watch: HashMap<i32, String>,
}

impl WatchedFolders {
    fn path_of(&self, watch: i32) -> Option<&str> {
        self.by_watch.get(&watch).map(String::as_str)
    }

    /// Watches a folder, once. `false` if there are too many.
    fn watch(&mut self, queue: &OwnedFd, folder: &OwnedFd, path: &str) -> bool {
        if self.by_path.len() >= MAX_FOLDERS && !self.by_path.contains_key(path) {
            return false;
        }
        // By its descriptor, because the path may lead elsewhere by now.
        let Ok(watch) = inotify::add_watch(queue, format!("/proc/self/fd/{}", folder.as_raw_fd()), WATCHED) else {
            return false;
        };
        if let Some(former) = self.by_watch.insert(watch, path.to_owned()).filter(|former| former != path) {
            self.by_path.remove(&former);
        }
        self.by_path.insert(path.to_owned(), watch);
        true
    }

    fn unwatch_beneath(&mut self, queue: &OwnedFd, path: &str) {
        for path in keys_beneath(&self.by_path, path) {
            if let Some(watch) = self.by_path.remove(&path) {
                self.by_watch.remove(&watch);
                let _ = inotify::remove_watch(queue, watch);
            }
        }
    }

    /// The system has ended a watch.
    fn forget(&mut self, watch: i32) {
        if let Some(path) = self.by_watch.remove(&watch)
            && self.by_path.get(&path) == Some(&watch)
        {
            self.by_path.remove(&path);
        }
    }
}

/// The changes for a report: if there are too many, visible files have precedence over hidden ones.
pub(super) fn shortened(FileChanges { mut files, truncated }: FileChanges) -> FileChanges {
    let is_hidden = |file: &FileChange| file.path.split('/').any(|part| part.starts_with('.') || part == "__pycache__");
    let all = files.len();
    if all > MAX_REPORTED {
        files.sort_by_cached_key(|file| (is_hidden(file), file.path.clone()));
        files.truncate(MAX_REPORTED);
    }
    let mut bytes = 0;
    files.retain(|file| {
        bytes += file.path.len();
        bytes <= MAX_REPORTED_BYTES
    });
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    FileChanges { truncated: truncated || files.len() < all, files }
}

fn is_beneath(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn stamp(files: &Files, path: &str) -> Option<Stamp> {
    let file = files.open_plain(path, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    FileType::from_raw_mode(stat.st_mode).is_file().then(|| Stamp::of(&stat))
}

fn entries(folder: &OwnedFd) -> impl Iterator<Item = (String, Stat)> {
    let listed = Dir::read_from(folder).into_iter().flatten().filter_map(Result::ok);
    listed.filter_map(move |entry| {
        let name = entry.file_name().to_str().ok().filter(|name| !matches!(*name, "." | ".."))?;
        let stat: Result<Stat, Errno> = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
        Some((name.to_owned(), stat.ok()?))
    })
}

/// The keys that are `path` or lie beneath it; all for the empty path.
fn keys_beneath<V>(map: &BTreeMap<String, V>, path: &str) -> Vec<String> {
    // `0` follows `/` in the order of bytes.
    let (from, to) = (format!("{path}/"), format!("{path}0"));
    match path.is_empty() {
        true => map.keys().cloned().collect(),
        false => {
            map.range(from..to).map(|(key, _)| key.clone()).chain(map.contains_key(path).then(|| path.to_owned())).collect()
        }
    }
}

fn remove_beneath<V>(map: &mut BTreeMap<String, V>, path: &str) {
    for key in keys_beneath(map, path) {
        map.remove(&key);
    }
}
