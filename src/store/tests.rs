use super::*;
use crate::ids::{Access, CellPhase, Epoch, PrincipalId, Seq, SessionId, SessionPhase};

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("cellkeep-store-{}", crate::ids::random_uuid()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("journal.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn session(principal: &str) -> SessionRow {
    SessionRow {
        id: SessionId::random(),
        principal: principal.into(),
        name: None,
        kernel: "python".to_owned(),
        language: "python".to_owned(),
        spec: "{}".to_owned(),
        phase: SessionPhase::Starting,
        why: None,
        sandbox: None,
        position: (Epoch(0), Seq(0)),
        last_seq: Seq(0),
        resume: None,
        kernel_info: None,
        created_at: now_ms(),
        last_active_at: now_ms(),
        expires_at: None,
    }
}

fn event(seq: u64, body: &str) -> EventRow {
    let (cell, kind) = (Some("c1".to_owned()), EventKind::OutputAppend);
    EventRow { seq: Seq(seq), first: Seq(seq), time: 7, cell, kind, body: body.to_owned() }
}

fn cell(number: u32, id: &str, place: f64) -> CellRow {
    CellRow {
        number,
        id: id.to_owned(),
        place,
        cell_type: "code".to_owned(),
        source: "1".to_owned(),
        metadata: "{}".to_owned(),
        options: "{}".to_owned(),
        execution: CellState { phase: CellPhase::Queued, ..CellState::default() },
    }
}

#[tokio::test]
async fn full_durability_flushes_each_commit() {
    for (durability, synchronous) in [(Durability::Normal, 1), (Durability::Full, 2)] {
        let folder = Folder::new();
        let store = Store::open_with(&folder.file(), durability).unwrap();
        let read = |connection: &Connection| connection.pragma_query_value(None, "synchronous", |row| row.get(0));
        let value: i64 = store.writer.write(read).await.unwrap();
        assert_eq!(value, synchronous, "of the connection that commits");
        let rows: Vec<_> = (0..200).map(|number| store.insert_session(session(&format!("s{number}")))).collect();
        futures_util::future::try_join_all(rows).await.unwrap();
        assert_eq!(
            store.sessions(&Access::All).await.unwrap().len(),
            200,
            "all are committed, however many waited together"
        );
    }
}

#[tokio::test]
async fn committed_data_survives_reopening() {
    let folder = Folder::new();
    let row = session("a");
    let epoch = Epoch(u64::MAX - 3);
    {
        let store = Store::open(&folder.file()).unwrap();
        store.insert_session(row.clone()).await.unwrap();
        let execution = CellState { phase: CellPhase::Running, id: Some("r".to_owned()), ..CellState::default() };
        let commit = Commit {
            events: vec![event(1, "{}"), event(2, r#"{"x":1}"#)],
            cells: vec![
                CellChange::Put(Box::new(cell(1, "c1", 2.0))),
                CellChange::Put(Box::new(cell(2, "c2", 1.0))),
                CellChange::State { number: 1, execution },
            ],
            artifacts: Vec::new(),
            session: SessionChange {
                phase: Some((SessionPhase::Busy, None)),
                position: Some((epoch, Seq(9))),
                last_seq: Some(Seq(2)),
                ..SessionChange::default()
            },
            folds: vec![(1, Some("1".to_owned())), (2, Some("2".to_owned())), (u32::MAX, Some("3".to_owned()))],
            notebook: Some("{}".to_owned()),
        };
        store.commit(&row.id, commit).await.unwrap();
        let folds = vec![(1, None), (2, Some("two".to_owned())), (7, None)];
        store.commit(&row.id, Commit { folds, ..Commit::default() }).await.unwrap();
    }
    let store = Store::open(&folder.file()).unwrap();
    let stored = store.session(&row.id).await.unwrap().unwrap();
    assert_eq!((stored.phase, stored.position, stored.last_seq), (SessionPhase::Busy, (epoch, Seq(9)), Seq(2)));
    assert_eq!(store.notebook(&row.id).await.unwrap().as_deref(), Some("{}"));
    let ids: Vec<String> = store.cells(&row.id).await.unwrap().into_iter().map(|cell| cell.id).collect();
    assert_eq!(ids, ["c2", "c1"], "by place");
    let folds = store.folds(&row.id).await.unwrap();
    assert_eq!(folds, [(2, "two".to_owned()), (u32::MAX, "3".to_owned())]);
    assert_eq!(store.cell(&row.id, "c1").await.unwrap().unwrap().execution.phase, CellPhase::Running);
    assert_eq!(store.events_after(&row.id, Seq(1), 10, 1000).await.unwrap(), [event(2, r#"{"x":1}"#)]);
    assert_eq!(store.events_after(&row.id, Seq(0), 10, 1).await.unwrap().len(), 1, "bytes bound a page");
    assert_eq!(store.cell_events(&row.id, "c1", Seq(2)).await.unwrap().len(), 1);
    assert_eq!(fs::metadata(folder.file()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn failing_transaction_does_not_undo_others() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let (good, bad) = (session("a"), session("a"));
    store.insert_session(good.clone()).await.unwrap();
    store.insert_session(bad.clone()).await.unwrap();
    let twice = Commit { events: vec![event(1, "{}"), event(1, "{}")], ..Commit::default() };
    let once = Commit { events: vec![event(1, "{}")], ..Commit::default() };
    let (bad_result, good_result) = tokio::join!(store.commit(&bad.id, twice), store.commit(&good.id, once));
    assert!(matches!(bad_result, Err(StoreError::Failed(_))), "{bad_result:?}");
    good_result.unwrap();
    assert!(store.events_after(&bad.id, Seq(0), 10, 10).await.unwrap().is_empty());
    assert_eq!(store.events_after(&good.id, Seq(0), 10, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn full_disk_is_reported_and_corrupts_nothing() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let row = session("a");
    store.insert_session(row.clone()).await.unwrap();
    // SQLite's page limit simulates a full disk: it fails at the same place, with the same code.
    let pages: i64 = store.writer.write(|c| c.pragma_query_value(None, "page_count", |row| row.get(0))).await.unwrap();
    let limit = move |pages: i64| move |c: &Connection| c.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()));
    store.writer.write(limit(pages + 4)).await.unwrap();
    let large = Commit { events: vec![event(1, &"x".repeat(200_000))], ..Commit::default() };
    let small = Commit { events: vec![event(1, "{}")], ..Commit::default() };
    let (refused, _) = tokio::join!(store.commit(&row.id, large.clone()), store.sessions(&Access::All));
    assert_eq!(refused, Err(StoreError::Full));
    store.commit(&row.id, small).await.unwrap();
    store.writer.write(limit(1_000_000)).await.unwrap();
    let large = Commit { events: vec![EventRow { seq: Seq(2), first: Seq(2), ..large.events[0].clone() }], ..large };
    store.commit(&row.id, large).await.unwrap();
    assert_eq!(store.events_after(&row.id, Seq(0), 10, 1 << 20).await.unwrap().len(), 2);
    let check: String = store.read(|c| c.pragma_query_value(None, "integrity_check", |row| row.get(0))).await.unwrap();
    assert_eq!(check, "ok");
}

#[tokio::test]
async fn file_shrinks_after_session_is_deleted() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let (gone, stays) = (session("a"), session("a"));
    for row in [&gone, &stays] {
        store.insert_session(row.clone()).await.unwrap();
        for seq in 1..=40 {
            let commit = Commit { events: vec![event(seq, &"x".repeat(500_000))], ..Commit::default() };
            store.commit(&row.id, commit).await.unwrap();
        }
    }
    store.delete_session(&gone.id).await.unwrap();
    let size = async || {
        assert!(store.merge_log(Duration::from_secs(10)).await.unwrap());
        fs::metadata(folder.file()).unwrap().len()
    };
    let before = size().await;
    assert!(before > 40_000_000, "{before}");
    assert!(store.release_free_pages().await.unwrap(), "one call releases some pages only");
    while store.release_free_pages().await.unwrap() {}
    let after = size().await;
    // The remaining session, and four megabytes of spare pages.
    assert!((20_000_000..26_000_000).contains(&after), "{after}");
    assert_eq!(store.events_after(&stays.id, Seq(0), 100, usize::MAX).await.unwrap().len(), 40);
    let check: String = store.read(|c| c.pragma_query_value(None, "integrity_check", |row| row.get(0))).await.unwrap();
    assert_eq!(check, "ok");
}

#[tokio::test]
async fn file_without_auto_vacuum_is_left_alone() {
    let folder = Folder::new();
    let connection = Connection::open(folder.file()).unwrap();
    connection.execute_batch("PRAGMA auto_vacuum = NONE; CREATE TABLE ballast (bytes BLOB); ").unwrap();
    connection.execute("INSERT INTO ballast VALUES (zeroblob(20000000))", ()).unwrap();
    connection.execute("DROP TABLE ballast", ()).unwrap();
    drop(connection);
    let store = Store::open(&folder.file()).unwrap();
    assert!(!store.release_free_pages().await.unwrap());
}

#[tokio::test]
async fn deleting_session_keeps_artifacts_of_other_sessions() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let (one, two) = (session("a"), session("b"));
    let artifact = |sha256: &str| ArtifactRow {
        sha256: sha256.to_owned(),
        cell: "c1".to_owned(),
        name: "plot.png".to_owned(),
        mime: "image/png".to_owned(),
        bytes: 3,
        width: None,
        height: None,
        seq: Seq(1),
    };
    for (row, hashes) in [(&one, ["shared", "mine"]), (&two, ["shared", "other"])] {
        store.insert_session(row.clone()).await.unwrap();
        let artifacts = hashes.map(artifact).to_vec();
        let cells = vec![CellChange::Put(Box::new(cell(1, "c1", 1.0)))];
        store.commit(&row.id, Commit { events: vec![event(1, "{}")], cells, artifacts, ..Commit::default() }).await.unwrap();
    }
    assert_eq!(
        store.artifact_mime("mine", &Access::Principal("b".into())).await.unwrap(),
        None,
        "an artifact of another principal"
    );
    assert_eq!(store.artifact_mime("mine", &Access::Principal("a".into())).await.unwrap().as_deref(), Some("image/png"));
    assert_eq!(store.delete_session(&one.id).await.unwrap(), ["mine"]);
    assert!(store.session(&one.id).await.unwrap().is_none());
    let left: i64 = store
        .read(|c| {
            let count =
                "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM cells) + (SELECT count(*) FROM artifacts)";
            c.query_row(count, [], |row| row.get(0))
        })
        .await
        .unwrap();
    assert_eq!(left, 1 + 1 + 2, "only rows of the other session are left");
    assert_eq!(store.sessions(&Access::Principal("a".into())).await.unwrap(), []);
    assert_eq!(store.sessions(&Access::All).await.unwrap().len(), 1);
}

#[tokio::test]
async fn newer_format_is_refused() {
    let folder = Folder::new();
    drop(Store::open(&folder.file()).unwrap());
    let connection = Connection::open(folder.file()).unwrap();
    connection.pragma_update(None, "user_version", 999).unwrap();
    let error = Store::open(&folder.file()).err().unwrap();
    assert!(
        matches!(error, StoreError::Newer { found: 999, .. }) && error.to_string().contains("later cellkeep"),
        "{error}"
    );
    fs::write(folder.0.join("text"), "no database, but long enough to be looked at as one".repeat(100)).unwrap();
    assert!(matches!(Store::open(&folder.0.join("text")), Err(StoreError::Failed(_))));
}

#[tokio::test]
async fn tokens_are_stored_by_hash() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let token = TokenRow {
        id: "t1".to_owned(),
        name: "laptop".to_owned(),
        principal: "admin".into(),
        scope: "admin".to_owned(),
        hash: vec![1; 32],
        created_at: 5,
        expires_at: None,
    };
    store.put_token(token.clone()).await.unwrap();
    assert_eq!(store.tokens().await.unwrap(), [token]);
    assert!(store.delete_token("t1").await.unwrap());
    assert!(!store.delete_token("t1").await.unwrap());
}

#[tokio::test]
async fn first_format_is_migrated() {
    let folder = Folder::new();
    let connection = Connection::open(folder.file()).unwrap();
    connection.execute_batch(include_str!("schema_1.sql")).unwrap();
    let row = session("a");
    let columns = "id, principal, kernel, language, spec, state, created_at, last_active_at";
    let insert = format!("INSERT INTO sessions ({columns}) VALUES (?1, 'a', 'python', 'python', '{{}}', 'idle', 1, 2)");
    connection.execute(&insert, [row.id.as_str()]).unwrap();
    let insert = "INSERT INTO events (session, seq, time, cell, type, body) VALUES (?1, 1, 7, 'c1', 'output.append', '{}')";
    connection.execute(insert, [row.id.as_str()]).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    drop(connection);
    let store = Store::open(&folder.file()).unwrap();
    let stored = store.session(&row.id).await.unwrap().unwrap();
    assert_eq!((stored.phase, stored.kernel_info, stored.last_active_at), (SessionPhase::Idle, None, 2));
    assert_eq!(store.events_after(&row.id, Seq(0), 10, 1000).await.unwrap(), [event(1, "{}")]);
}

#[tokio::test]
async fn traceparent_moves_from_options_to_its_column() {
    let folder = Folder::new();
    let connection = Connection::open(folder.file()).unwrap();
    for migration in [
        include_str!("schema_1.sql"),
        include_str!("schema_2.sql"),
        include_str!("schema_3.sql"),
        include_str!("schema_4.sql"),
    ] {
        connection.execute_batch(migration).unwrap();
    }
    let row = session("a");
    let columns = "id, principal, kernel, language, spec, state, created_at, last_active_at";
    let insert = format!("INSERT INTO sessions ({columns}) VALUES (?1, 'a', 'python', 'python', '{{}}', 'idle', 1, 2)");
    connection.execute(&insert, [row.id.as_str()]).unwrap();
    let columns = "session, number, id, place, cell_type, source, metadata, options, state, first_seq, last_seq";
    let insert = format!("INSERT INTO cells ({columns}) VALUES (?1, ?2, ?2, ?2, 'code', '1', '{{}}', ?3, ?4, 1, 1)");
    for (number, options, state) in [
        (1, r#"{"timeout_seconds":2.5,"trace":"00-aa"}"#, "running"),
        (2, r#"{"timeout_seconds":2.5,"trace":"00-bb"}"#, "finished"),
        (3, "not JSON", "queued"),
    ] {
        connection.execute(&insert, rusqlite::params![row.id.as_str(), number, options, state]).unwrap();
    }
    connection.pragma_update(None, "user_version", 4).unwrap();
    drop(connection);
    let store = Store::open(&folder.file()).unwrap();
    let stored = async || {
        let cells = store.cells(&row.id).await.unwrap();
        cells.into_iter().map(|cell| (cell.options, cell.execution.trace, cell.execution.queued_at)).collect::<Vec<_>>()
    };
    let before = stored().await;
    assert_eq!(before.iter().map(|cell| cell.1.as_deref()).collect::<Vec<_>>(), [Some("00-aa"), None, None]);
    // Options and execution states are written independently.
    let options = r#"{"allow_stdin":true}"#.to_owned();
    let execution = CellState { queued_at: Some(7), trace: Some("00-cc".to_owned()), ..CellState::default() };
    let cells =
        vec![CellChange::Options { number: 1, options: options.clone() }, CellChange::State { number: 2, execution }];
    store.commit(&row.id, Commit { cells, ..Commit::default() }).await.unwrap();
    let after = stored().await;
    assert_eq!(after[0], (options, Some("00-aa".to_owned()), None));
    assert_eq!(after[1], (before[1].0.clone(), Some("00-cc".to_owned()), Some(7)));
}

#[tokio::test]
async fn merged_event_has_number_of_last_event() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let row = session("a");
    store.insert_session(row.clone()).await.unwrap();
    let execution = CellState { phase: CellPhase::Finished, first_seq: Seq(1), last_seq: Seq(20), ..CellState::default() };
    let mut finished = cell(1, "c1", 1.0);
    finished.execution = execution;
    let events = (1..=20).map(|seq| event(seq, "{}")).collect();
    let cells = vec![CellChange::Put(Box::new(finished))];
    store.commit(&row.id, Commit { events, cells, ..Commit::default() }).await.unwrap();
    assert!(store.compactable(6, 9).await.unwrap().is_empty(), "too early");
    let cells = store.compactable(7, 9).await.unwrap();
    assert_eq!((cells.len(), cells[0].from, cells[0].to), (1, Seq(1), Seq(20)));
    assert_eq!(store.events_to_compact(&cells[0], 5, 1000).await.unwrap().len(), 5);
    let merged = EventRow { first: Seq(3), ..event(18, "merged") };
    store.merge_events(&cells[0], vec![merged.clone()], Seq(20)).await.unwrap();
    let left = store.events_after(&row.id, Seq(0), 100, 1000).await.unwrap();
    assert_eq!(left.iter().map(|event| event.seq.0).collect::<Vec<_>>(), [1, 2, 18, 19, 20]);
    assert_eq!(left[2], merged);
    assert!(store.compactable(7, 9).await.unwrap().is_empty(), "done");
    assert!(store.bytes().await.unwrap() > 0);
}

#[tokio::test]
async fn turns_and_shares_are_deleted_with_their_session() {
    let folder = Folder::new();
    // A format without conversations and shares.
    let connection = Connection::open(folder.file()).unwrap();
    connection.execute_batch(include_str!("schema_1.sql")).unwrap();
    connection.execute_batch(include_str!("schema_2.sql")).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
    drop(connection);
    let store = Store::open(&folder.file()).unwrap();
    let (one, other) = (session("a"), session("b"));
    for row in [&one, &other] {
        store.insert_session(row.clone()).await.unwrap();
        store.put_turn(&row.id, "c1").await.unwrap();
    }
    assert!(store.put_turn(&one.id, "c1").await.is_err(), "a turn exists already");
    let share = |id: &str, row: &SessionRow, expires_at| ShareRow {
        id: id.to_owned(),
        session: row.id.clone(),
        name: None,
        hash: id.as_bytes().to_vec(),
        created_at: 10,
        expires_at,
    };
    for share in [share("old", &one, 9), share("mine", &one, 99), share("its", &other, 99)] {
        store.put_share(share).await.unwrap();
    }
    let ids = |shares: Vec<(ShareRow, PrincipalId)>| shares.into_iter().map(|(row, of)| (row.id, of)).collect::<Vec<_>>();
    let mine = [("mine".to_owned(), "a".into())];
    assert_eq!(ids(store.shares(Some(&one.id)).await.unwrap()), mine, "creating a share removes expired ones");
    assert!(!store.delete_share(&other.id, "mine").await.unwrap(), "a share of another session");
    store.delete_session(&other.id).await.unwrap();
    assert_eq!(ids(store.shares(None).await.unwrap()), mine);
    assert_eq!(store.turns().await.unwrap(), [(one.id.clone(), "c1".to_owned())]);
    store.delete_turn(&one.id, "c1").await.unwrap();
    assert!(store.delete_share(&one.id, "mine").await.unwrap());
    assert_eq!((store.turns().await.unwrap().len(), store.shares(None).await.unwrap().len()), (0, 0));
}

#[tokio::test]
async fn long_output_is_read_from_both_ends() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let row = session("a");
    store.insert_session(row.clone()).await.unwrap();
    let events: Vec<EventRow> = (1..=100).map(|seq| event(seq, &format!("{{\"n\":{seq:05}}}"))).collect();
    store.commit(&row.id, Commit { events, ..Commit::default() }).await.unwrap();
    let ends = async |from: u64, bytes: usize| {
        let (first, last, bytes_between) = store.ends_of_cell(&row.id, "c1", Seq(from), bytes).await.unwrap();
        let numbers = |events: Vec<EventRow>| events.iter().map(|event| event.seq.0).collect::<Vec<_>>();
        assert_eq!(bytes_between > 0, !last.is_empty());
        (numbers(first), numbers(last))
    };
    assert_eq!(ends(1, 30).await, (vec![1, 2, 3], vec![98, 99, 100]));
    assert_eq!(ends(95, 30).await, ((95..=100).collect(), vec![]), "the two lists meet");
    assert_eq!(ends(1, 1 << 20).await, ((1..=100).collect(), vec![]));
    assert_eq!(ends(101, 30).await, (vec![], vec![]));
}

#[tokio::test]
async fn merging_the_log_waits_briefly_for_readers() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let log = || fs::metadata(folder.file().with_extension("db-wal")).unwrap().len();
    let row = session("ann");
    store.insert_session(row.clone()).await.unwrap();
    assert!(log() > 0);
    assert!(store.merge_log(BUSY_TIMEOUT).await.unwrap());
    assert_eq!(log(), 0);
    // The file alone is complete now.
    let copy = folder.file().with_extension("copy");
    fs::copy(folder.file(), &copy).unwrap();
    assert_eq!(Store::open(&copy).unwrap().session(&row.id).await.unwrap(), Some(row.clone()));

    let reader = Connection::open(folder.file()).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM sessions").unwrap();
    store.insert_session(session("bob")).await.unwrap();
    let began = std::time::Instant::now();
    assert!(!store.merge_log(Duration::from_millis(50)).await.unwrap(), "a reader uses an older snapshot");
    assert!(began.elapsed() < BUSY_TIMEOUT);
    // The store continues, with its own busy timeout.
    store.insert_session(session("cyd")).await.unwrap();
    drop(reader);
    assert!(store.merge_log(BUSY_TIMEOUT).await.unwrap());
    assert_eq!(log(), 0);
    drop(store);
    assert_eq!(Store::open(&folder.file()).unwrap().sessions(&Access::All).await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writers_all_commit_beside_another_program() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let rows: Vec<SessionRow> = (0..16).map(|_| session("a")).collect();
    for row in &rows {
        store.insert_session(row.clone()).await.unwrap();
    }
    let another = Connection::open(folder.file()).unwrap();
    another.busy_timeout(BUSY_TIMEOUT).unwrap();
    let (begun, wait) = std::sync::mpsc::channel();
    let another = std::thread::spawn(move || {
        for _ in 0..20 {
            another.execute_batch("BEGIN IMMEDIATE").unwrap();
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            another.execute_batch("COMMIT").unwrap();
        }
    });
    wait.recv().unwrap();
    let writing = rows.iter().map(|row| {
        let (store, id) = (store.clone(), row.id.clone());
        tokio::spawn(async move {
            for seq in 1..=200 {
                // Some jobs are large.
                let body = if seq % 50 == 0 { format!("\"{}\"", "x".repeat(300_000)) } else { "{}".to_owned() };
                let commit = Commit { events: vec![event(seq, &body)], ..Commit::default() };
                store.commit(&id, commit).await.unwrap();
            }
        })
    });
    for written in writing.collect::<Vec<_>>() {
        tokio::time::timeout(Duration::from_secs(60), written).await.expect("every write is committed").unwrap();
    }
    another.join().unwrap();
    for row in &rows {
        assert_eq!(store.events_after(&row.id, Seq(0), 1000, usize::MAX).await.unwrap().len(), 200);
    }
}

#[tokio::test]
async fn log_is_checkpointed_as_it_grows() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let row = session("a");
    store.insert_session(row.clone()).await.unwrap();
    let log = folder.0.join("journal.db-wal");
    let body = format!("\"{}\"", "x".repeat(4000));
    let began = std::time::Instant::now();
    for seq in 1.. {
        store.commit(&row.id, Commit { events: vec![event(seq, &body)], ..Commit::default() }).await.unwrap();
        // Each commit adds more than two pages, so a log that never restarted would be longer than this.
        if seq > 2000 && fs::metadata(&log).unwrap().len() < seq * 4096 {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{seq} commits, and the log has never restarted");
    }
}

#[tokio::test]
async fn pages_are_read_by_an_index_without_sorting() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    let statements = [
        (sessions::page_statement(true), "sessions_by_principal (principal=? AND (created_at,id)>(?,?))"),
        (sessions::page_statement(false), "sessions_by_creation ((created_at,id)>(?,?))"),
        (cells::page_statement(), "cells_by_place (session=? AND (place,number)>(?,?))"),
    ];
    for (statement, index) in statements {
        let plan = store.read(move |connection| {
            let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}"))?;
            let (mut rows, mut plan) = (explain.raw_query(), Vec::new());
            while let Some(row) = rows.next()? {
                plan.push(row.get::<_, String>(3)?);
            }
            Ok(plan)
        });
        let plan = plan.await.unwrap();
        assert!(plan[0].contains(index) && !plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
    }
}

#[tokio::test]
async fn pages_of_sessions_have_every_row_once() {
    let folder = Folder::new();
    let store = Store::open(&folder.file()).unwrap();
    // Many have the same time, so the id decides.
    for number in 0..25 {
        let spec = format!(
            r#"{{"labels": {{"n": "{}", "k\"": "ä"}}, "run": {}}}"#,
            number % 2,
            if number < 5 { "{}" } else { "null" }
        );
        let principal = if number % 3 == 0 { "a" } else { "b" };
        store.insert_session(SessionRow { created_at: number / 10, spec, ..session(principal) }).await.unwrap();
    }
    let all = async |access: Access, filter: SessionFilter| {
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let rows = store.sessions_page(&access, filter.clone(), after, 4).await.unwrap();
            let Some(last) = rows.last() else { return ids };
            after = Some((last.created_at, last.id.to_string()));
            ids.extend(rows.into_iter().map(|row| row.id));
        }
    };
    let expected: Vec<_> = store.sessions(&Access::All).await.unwrap().into_iter().map(|row| row.id).collect();
    assert_eq!(all(Access::All, SessionFilter::default()).await, expected);
    let count = async |access, filter| all(access, filter).await.len();
    let labels =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let labelled = |pairs: &[(&str, &str)]| SessionFilter { labels: labels(pairs), ..SessionFilter::default() };
    assert_eq!(count(Access::Principal("a".into()), SessionFilter::default()).await, 9);
    assert_eq!(count(Access::All, labelled(&[("n", "1"), ("k\"", "ä")])).await, 12);
    assert_eq!(count(Access::All, labelled(&[("n", "1"), ("k\"", "a")])).await, 0);
    assert_eq!(count(Access::All, SessionFilter { only_jobs: true, ..SessionFilter::default() }).await, 5);
    assert_eq!(count(Access::All, SessionFilter { phase: Some(SessionPhase::Gone), ..SessionFilter::default() }).await, 0);
}
