//! The audit log: who did what to which session, file, share or token, with which result, as JSON lines. It has no code, no output and no
//! secrets.
//!
//! Each line contains the hash of the previous line. So a later change, removal or insertion of a line is found. Somebody who can write
//! the files can compute all hashes again: to find that too, keep the latest hash elsewhere, and compare it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::config::Paths;
use crate::private_files;
use crate::wire::content::iso8601;

/// The file that is written, and the beginning of the names of earlier ones.
const FILE: &str = "audit.jsonl";
const EARLIER: &str = "audit-";
/// A file of this size is followed by a new one, and so many earlier ones are kept.
const MAX_BYTES: u64 = 64 << 20;
const MAX_EARLIER: usize = 15;
/// The longest line. Longer texts in it are shortened before.
const MAX_LINE: u64 = 16 << 10;
const MAX_TEXT: usize = 256;
/// The hash before the first line.
const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Something that was done, or refused.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AuditRecord {
    /// What was done: a method and a route, or an event of the server such as `session.ended`.
    pub action: String,
    /// Who did it. `None`: the server itself, or somebody without a valid token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The cell, file, share or token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `ok`, the code of a problem, or the reason of an event.
    pub result: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The id of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// For events of the server: what else belongs to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

/// The audit log of a data folder. Several processes may write it. Clones share it.
#[derive(Clone, Debug)]
pub struct AuditLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    max_bytes: u64,
    /// The size of the file and the hash of its last line after the last write of this process.
    known: Mutex<Option<(u64, String)>>,
}

impl AuditLog {
    pub fn new(paths: &Paths) -> Self {
        Self::with_size(paths.data(), MAX_BYTES)
    }

    fn with_size(folder: &Path, max_bytes: u64) -> Self {
        Self(Arc::new(Inner { folder: folder.to_owned(), max_bytes, known: Mutex::default() }))
    }

    /// Appends a record. A record that cannot be written is an error in the log: an audit must not stop the service.
    pub fn record(&self, record: &AuditRecord) {
        if let Err(error) = self.append(record) {
            tracing::error!(%error, action = record.action, "cannot write the audit log");
        }
    }

    fn append(&self, record: &AuditRecord) -> io::Result<()> {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut file, bytes) = self.open_locked()?;
        let previous = match known.take() {
            Some((size, hash)) if size == bytes => hash,
            _ => self.last_hash(&mut file, bytes)?,
        };
        let mut fields = Map::new();
        fields.insert("time".to_owned(), iso8601(SystemTime::now()).into());
        if let Value::Object(record) = serde_json::to_value(record)? {
            fields.extend(record.into_iter().map(|(name, value)| (name, shortened(value))));
        }
        fields.insert("previous".to_owned(), previous.into());
        let mut line = Value::Object(fields).to_string();
        let hash = hash_of(&line);
        line.push('\n');
        file.write_all(line.as_bytes())?;
        *known = Some((bytes + line.len() as u64, hash));
        Ok(())
    }

    /// The file, locked against other processes, and its size. A full file is moved away first.
    fn open_locked(&self) -> io::Result<(File, u64)> {
        let path = self.0.folder.join(FILE);
        loop {
            let file = private_files::options().create(true).append(true).read(true).open(&path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            let bytes = file.metadata()?.len();
            if bytes > self.0.max_bytes {
                self.rotate(&path)?;
                continue;
            }
            // Another process may have moved it away before it was locked.
            if is_same_file(&file, &path)? {
                return Ok((file, bytes));
            }
        }
    }

    fn rotate(&self, path: &Path) -> io::Result<()> {
        let earlier = files(&self.0.folder)?;
        let number = earlier.iter().filter_map(|path| number_of(path)).max().unwrap_or(0) + 1;
        // It may be gone already, moved by another process.
        let _ = fs::rename(path, self.0.folder.join(format!("{EARLIER}{number:06}.jsonl")));
        let kept = earlier.iter().filter(|path| number_of(path).is_some()).count();
        for oldest in earlier.iter().take(kept.saturating_sub(MAX_EARLIER - 1)) {
            fs::remove_file(oldest)?;
        }
        Ok(())
    }

    /// The hash of the last line of a file. An empty one continues the file before it.
    fn last_hash(&self, file: &mut File, bytes: u64) -> io::Result<String> {
        if bytes > 0 {
            return last_line(file, bytes).map(|line| hash_of(&line));
        }
        let earlier = files(&self.0.folder)?.into_iter().rfind(|path| number_of(path).is_some());
        let Some(earlier) = earlier else { return Ok(START.to_owned()) };
        let mut earlier = File::open(earlier)?;
        let bytes = earlier.metadata()?.len();
        last_line(&mut earlier, bytes).map(|line| hash_of(&line))
    }
}

/// The last line, whole or cut off by a crash, without its end. What was cut off gets an end, and breaks no chain.
fn last_line(file: &mut File, bytes: u64) -> io::Result<String> {
    file.seek(SeekFrom::Start(bytes.saturating_sub(2 * MAX_LINE)))?;
    let mut end = Vec::new();
    file.take(2 * MAX_LINE).read_to_end(&mut end)?;
    if end.last().is_some_and(|byte| *byte != b'\n') {
        // Fails for an earlier file, to which nothing is added.
        let _ = file.write_all(b"\n");
    }
    let text = String::from_utf8_lossy(&end);
    Ok(text.trim_end_matches('\n').rsplit('\n').next().unwrap_or_default().to_owned())
}

fn hash_of(line: &str) -> String {
    hex::encode(Sha256::digest(line.as_bytes()))
}

/// Texts of clients are shortened, so that no line is long.
fn shortened(value: Value) -> Value {
    match value {
        Value::String(text) if text.len() > MAX_TEXT => {
            text.chars().take(MAX_TEXT / 2).chain("...".chars()).collect::<String>().into()
        }
        value => value,
    }
}

fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let of = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match fs::metadata(path) {
        Ok(there) => Ok(of(there) == of(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The number of an earlier file. `None` for the one that is written.
fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(EARLIER)?.strip_suffix(".jsonl")?.parse().ok()
}

/// The files of the log, oldest first; the last one is written.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    all.retain(|path| number_of(path).is_some() || path.file_name().is_some_and(|name| name == FILE));
    all.sort_by_key(|path| number_of(path).unwrap_or(u64::MAX));
    Ok(all)
}

/// A line of the log.
#[derive(Clone, Copy, Debug)]
pub struct AuditLine<'a> {
    pub text: &'a str,
    /// `null` if it is not JSON.
    pub value: &'a Value,
    /// The hash that the next line must have as its `previous`.
    pub hash: &'a str,
}

/// The outcome of reading a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditCheck {
    /// The number of lines.
    pub lines: u64,
    /// The hash of the last line.
    pub last_hash: String,
    /// The lines whose `previous` is not the hash of the line before, by file and number from 1.
    pub breaks: Vec<String>,
    /// Whether the beginning of the chain is there. Old files are removed.
    pub is_from_start: bool,
}

/// Reads all lines, oldest first, and checks the chain.
///
/// # Errors
/// A file cannot be read.
pub fn read(paths: &Paths, mut show: impl FnMut(&AuditLine<'_>)) -> io::Result<AuditCheck> {
    let mut check = AuditCheck { last_hash: START.to_owned(), ..AuditCheck::default() };
    for path in files(paths.data())? {
        let mut reader = BufReader::new(File::open(&path)?);
        for number in 1.. {
            let mut line = Vec::new();
            // A line that somebody else wrote may have any length.
            if reader.by_ref().take(4 * MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches('\n');
            let value: Value = serde_json::from_str(text).unwrap_or(Value::Null);
            let previous = value["previous"].as_str().unwrap_or_default();
            if check.lines == 0 {
                check.is_from_start = previous == START;
            } else if previous != check.last_hash {
                check.breaks.push(format!("{} line {number}", path.display()));
            }
            check.lines += 1;
            check.last_hash = hash_of(text);
            show(&AuditLine { text, value: &value, hash: &check.last_hash });
        }
    }
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let folder = std::env::temp_dir().join(format!("cellkeep-audit-{}", crate::ids::random_uuid()));
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn read(&self) -> (Vec<Value>, AuditCheck) {
            let mut lines = Vec::new();
            let check = read(&Paths::new(&self.0), |line| lines.push(line.value.clone())).unwrap();
            (lines, check)
        }

        fn file(&self) -> PathBuf {
            self.0.join(FILE)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn did(action: &str) -> AuditRecord {
        AuditRecord { action: action.to_owned(), result: "ok".to_owned(), ..AuditRecord::default() }
    }

    #[test]
    fn writers_continue_each_others_chain() {
        let folder = Folder::new();
        let (first, second) = (AuditLog::with_size(&folder.0, MAX_BYTES), AuditLog::with_size(&folder.0, MAX_BYTES));
        for number in 0..10 {
            [&first, &second][number % 2].record(&did(&number.to_string()));
        }
        let (lines, check) = folder.read();
        assert_eq!((check.lines, check.breaks.len(), check.is_from_start), (10, 0, true));
        assert!(lines.iter().enumerate().all(|(number, line)| line["action"].as_str().unwrap().parse() == Ok(number)));
        assert!(!private_files::is_open_to_others(&fs::metadata(folder.file()).unwrap()));
    }

    #[test]
    fn changed_removed_and_inserted_lines_break_the_chain() {
        let folder = Folder::new();
        let log = AuditLog::with_size(&folder.0, MAX_BYTES);
        ["a", "b", "c", "d"].iter().for_each(|action| log.record(&did(action)));
        let text = fs::read_to_string(folder.file()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let without = lines.iter().filter(|line| !line.contains("\"b\"")).copied().collect::<Vec<_>>().join("\n") + "\n";
        for (forged, at) in [
            (text.replace("\"b\"", "\"x\""), 3),
            (without, 2),
            (text.replacen(lines[1], &format!("{}\n{{\"action\": \"forged\"}}", lines[1]), 1), 3),
        ] {
            fs::write(folder.file(), &forged).unwrap();
            let breaks = folder.read().1.breaks;
            assert!(breaks[0].ends_with(&format!("line {at}")), "{breaks:?}");
        }
    }

    #[test]
    fn chain_goes_on_over_files_and_old_ones_go() {
        let folder = Folder::new();
        let log = AuditLog::with_size(&folder.0, 1000);
        for number in 0..200 {
            log.record(&did(&number.to_string()));
        }
        let (lines, check) = folder.read();
        assert_eq!(check.breaks, Vec::<String>::new());
        assert!(!check.is_from_start && (40..200).contains(&lines.len()), "{}", lines.len());
        assert_eq!(lines.last().unwrap()["action"], "199");
        assert_eq!(files(&folder.0).unwrap().len(), MAX_EARLIER + 1);
    }

    #[test]
    fn line_that_was_cut_off_is_followed_by_whole_ones() {
        let folder = Folder::new();
        AuditLog::with_size(&folder.0, MAX_BYTES).record(&did("a"));
        let text = fs::read_to_string(folder.file()).unwrap();
        fs::write(folder.file(), &text[..text.len() / 2]).unwrap();
        AuditLog::with_size(&folder.0, MAX_BYTES).record(&did("b"));
        let (lines, check) = folder.read();
        assert_eq!((lines.len(), lines[1]["action"].as_str(), check.breaks.len()), (2, Some("b"), 0));
    }

    #[test]
    fn texts_of_clients_are_short() {
        let folder = Folder::new();
        AuditLog::with_size(&folder.0, MAX_BYTES).record(&AuditRecord { target: Some("ä".repeat(1 << 20)), ..did("a") });
        assert!(fs::metadata(folder.file()).unwrap().len() < 2000);
    }
}
