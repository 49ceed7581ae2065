//! The installations that run on this server: how many, of whom, and what they print.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::session_config::ServiceError;
use crate::ids::{PrincipalId, Seq};

/// The installations that run at once, and those of one principal that wait or run.
const MAX_BUILDS: usize = 2;
const MAX_BUILDS_OF_PRINCIPAL: usize = 4;
/// The end of a log that is kept, bytes.
const MAX_LOG: usize = 64 << 10;

/// The installations of this server. Clones share them.
#[derive(Clone)]
pub(super) struct Builds(Arc<BuildsInner>);

struct BuildsInner {
    running: Mutex<HashMap<String, Arc<Build>>>,
    places: Semaphore,
}

impl Default for Builds {
    fn default() -> Self {
        Self(Arc::new(BuildsInner { running: Mutex::default(), places: Semaphore::new(MAX_BUILDS) }))
    }
}

/// One installation.
pub(super) struct Build {
    pub principal: PrincipalId,
    /// Held while it runs. All installations of a principal share it, so that one runs at a time and leaves a place to others.
    turn: Arc<tokio::sync::Mutex<()>>,
    log: Mutex<LogLines>,
    /// The number of the last line.
    last_line: watch::Sender<u64>,
    ended: watch::Sender<bool>,
}

/// The last lines of an installation, which are numbered from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLines {
    /// The number of the first line that is kept.
    pub first: u64,
    pub lines: VecDeque<String>,
    bytes: usize,
}

impl Default for LogLines {
    fn default() -> Self {
        Self { first: 1, lines: VecDeque::new(), bytes: 0 }
    }
}

impl LogLines {
    /// Lines that were stored as text.
    pub fn parse(first: u64, text: &str) -> Self {
        Self { first: first.max(1), lines: text.lines().map(str::to_owned).collect(), bytes: text.len() }
    }

    fn push(&mut self, line: &str) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line.to_owned());
        while self.bytes > MAX_LOG
            && let Some(line) = self.lines.pop_front()
        {
            self.bytes -= line.len() + 1;
            self.first += 1;
        }
    }

    /// The lines, each with a newline.
    pub fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }

    /// The number of the last line, 0 before the first.
    pub fn last(&self) -> u64 {
        self.first - 1 + self.lines.len() as u64
    }

    /// The lines with larger numbers.
    pub fn after(&self, seq: Seq) -> impl Iterator<Item = (Seq, &str)> {
        let numbered = self.lines.iter().zip(self.first..).map(|(line, number)| (Seq(number), line.as_str()));
        numbered.skip_while(move |(number, _)| *number <= seq)
    }
}

/// Ends an installation for those who wait when it is dropped, however that comes.
pub(super) struct BegunBuild {
    builds: Builds,
    id: String,
    pub build: Arc<Build>,
}

impl BegunBuild {
    /// Waits for a place.
    pub async fn turn(&self) -> (tokio::sync::MutexGuard<'_, ()>, Option<SemaphorePermit<'_>>) {
        let turn = self.build.turn.lock().await;
        // Nobody closes it.
        (turn, self.builds.0.places.acquire().await.ok())
    }
}

impl Drop for BegunBuild {
    fn drop(&mut self) {
        self.builds.running().remove(&self.id);
        self.build.ended.send_replace(true);
    }
}

impl Build {
    fn lines(&self) -> MutexGuard<'_, LogLines> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn log(&self) -> LogLines {
        self.lines().clone()
    }

    pub fn write(&self, line: &str) {
        let mut log = self.lines();
        log.push(line);
        self.last_line.send_replace(log.last());
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Waits for lines after this one, or for the end. Returns `true` once it has ended.
    pub async fn wrote_after(&self, seq: Seq) -> bool {
        let mut last_line = self.last_line.subscribe();
        tokio::select! {
            biased;
            () = self.ended() => true,
            _ = last_line.wait_for(|last| *last > seq.0) => false,
        }
    }
}

impl Builds {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Arc<Build>>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: &str) -> Option<Arc<Build>> {
        self.running().get(id).cloned()
    }

    /// Begins an installation, unless it runs already.
    ///
    /// # Errors
    /// If the principal has too many.
    pub fn begin(&self, id: &str, principal: &PrincipalId) -> Result<Option<BegunBuild>, ServiceError> {
        let mut running = self.running();
        if running.contains_key(id) {
            return Ok(None);
        }
        let of_principal: Vec<_> = running.values().filter(|build| build.principal == *principal).collect();
        if of_principal.len() >= MAX_BUILDS_OF_PRINCIPAL {
            return Err(ServiceError::TooManyBuilds { limit: MAX_BUILDS_OF_PRINCIPAL });
        }
        let build = Arc::new(Build {
            principal: principal.clone(),
            turn: of_principal.first().map(|build| build.turn.clone()).unwrap_or_default(),
            log: Mutex::default(),
            last_line: watch::Sender::new(0),
            ended: watch::Sender::new(false),
        });
        running.insert(id.to_owned(), build.clone());
        Ok(Some(BegunBuild { builds: self.clone(), id: id.to_owned(), build }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn log_keeps_its_end_with_the_numbers() {
        let builds = Builds::default();
        let begun = builds.begin("a", &"me".into()).unwrap().unwrap();
        let build = begun.build.clone();
        for number in 1..=20_000 {
            build.write(&format!("línea {number}"));
        }
        let log = build.log();
        assert!(log.text().len() <= MAX_LOG && log.text().ends_with("línea 20000\n"));
        assert_eq!((log.last(), log.lines[0].clone()), (20_000, format!("línea {}", log.first)));
        assert_eq!(log.after(Seq(19_998)).collect::<Vec<_>>(), [(Seq(19_999), "línea 19999"), (Seq(20_000), "línea 20000")]);
        assert_eq!((log.after(Seq(0)).count(), log.after(Seq(20_000)).count()), (log.lines.len(), 0));
        assert_eq!(LogLines::parse(log.first, &log.text()), log);
        assert!(!build.wrote_after(Seq(0)).await);
        drop(begun);
        assert!(build.wrote_after(Seq(20_000)).await);
    }

    #[test]
    fn builds_of_one_principal_are_bounded() {
        let builds = Builds::default();
        let begin = |number: usize| builds.begin(&number.to_string(), &"me".into()).unwrap().unwrap();
        let mut begun: Vec<_> = (0..MAX_BUILDS_OF_PRINCIPAL).map(begin).collect();
        assert!(Arc::ptr_eq(&begun[0].build.turn, &begun[1].build.turn), "one runs at a time");
        assert!(builds.begin("0", &"me".into()).unwrap().is_none(), "it runs");
        assert!(builds.begin("x", &"me".into()).is_err() && builds.begin("x", &"you".into()).is_ok());
        begun.pop();
        assert!(builds.begin("y", &"me".into()).unwrap().is_some());
    }
}
