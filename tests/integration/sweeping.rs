//! The sweep removes everything that dead managers left behind, and nothing that is alive.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use cellkeep::config::Paths;
use cellkeep::ids::SessionId;
use cellkeep::policy::{Isolation, IsolationLevel};
use cellkeep::sandbox::process::ProcessSandbox;
use cellkeep::sandbox::{ProcessStamp, Sandbox, SandboxKind, SandboxRecord, sweep};

use crate::cli::scratch;

/// A data folder, and an unrelated process, which the sweep must not kill.
struct TestFolder {
    paths: Paths,
    bystander: Child,
}

impl TestFolder {
    fn new(name: &str) -> Self {
        let bystander = Command::new("sleep").arg("600").spawn().unwrap();
        Self { paths: Paths::new(&scratch(name)), bystander }
    }

    /// The bystander's stamp, with another boot or namespace.
    fn stamp(&self, boot: u64, namespace: u64) -> ProcessStamp {
        let own = ProcessStamp::of(self.bystander.id().cast_signed()).unwrap();
        ProcessStamp { boot: own.boot ^ boot, namespace: own.namespace + namespace, ..own }
    }

    /// Writes a record of a sandbox whose owner and agent are `stamp`.
    fn record(&self, stamp: ProcessStamp, agent_binary: &Path) -> PathBuf {
        let session = SessionId::random();
        let folder = self.paths.sandboxes().join(session.as_str());
        let record = SandboxRecord {
            id: session.into(),
            kind: SandboxKind::Process,
            kernel: "python".into(),
            socket: folder.join("agent.sock"),
            isolation: Isolation::new(IsolationLevel::Process),
            owner: stamp,
            keep: false,
            agent_binary: agent_binary.to_owned(),
            agent: Some(stamp),
            controllers: None,
            container: None,
            package_set: None,
        };
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("record.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        folder
    }

    /// A folder without a record.
    fn folder_without_record(&self) -> PathBuf {
        let folder = self.paths.sandboxes().join(SessionId::random().as_str());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("record.tmp"), "{").unwrap();
        folder
    }

    async fn sweep(&self) -> usize {
        sweep(&ProcessSandbox::new(self.paths.clone()), &self.paths).await.unwrap()
    }

    fn end(mut self) {
        assert!(self.bystander.try_wait().unwrap().is_none(), "an unrelated process was killed");
        self.bystander.kill().unwrap();
        self.bystander.wait().unwrap();
        fs::remove_dir_all(self.paths.data()).unwrap();
    }
}

fn make_old(path: &Path) {
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
}

#[tokio::test]
async fn foreign_pids_are_never_killed() {
    let data = TestFolder::new("foreign");
    let binary = Path::new("/nowhere");
    let other_boot = data.record(data.stamp(1, 0), binary);
    let [young, old, listening] = [(); 3].map(|()| data.record(data.stamp(0, 1), binary));
    let socket = UnixListener::bind(listening.join("agent.sock")).unwrap();
    for aged in [&old, &listening] {
        make_old(aged);
    }
    assert_eq!(data.sweep().await, 2);
    assert!(!other_boot.exists() && !old.exists(), "these sandboxes cannot be alive");
    assert!(young.exists() && listening.exists(), "these sandboxes may be alive");
    drop(socket);
    assert_eq!(data.sweep().await, 1);
    data.end();
}

#[tokio::test]
async fn only_sandboxes_of_dead_owners_are_destroyed() {
    let data = TestFolder::new("own");
    let living = data.record(data.stamp(0, 0), Path::new("/nowhere"));
    assert_eq!(data.sweep().await, 0);
    assert!(living.exists());
    let gone = ProcessStamp { started: 1, ..data.stamp(0, 0) };
    let dead = data.record(gone, Path::new("/nowhere"));
    assert_eq!(data.sweep().await, 1);
    assert!(living.exists() && !dead.exists());
    data.end();
}

#[tokio::test]
async fn old_folders_without_record_are_removed() {
    let data = TestFolder::new("half-made");
    let [young, old, listening] = [(); 3].map(|()| data.folder_without_record());
    let _socket = UnixListener::bind(listening.join("agent.sock")).unwrap();
    for aged in [&old, &listening] {
        make_old(aged);
    }
    data.sweep().await;
    assert!(young.exists(), "it may be about to get its record");
    assert!(listening.exists(), "it may belong to another version");
    assert!(!old.exists());
    data.end();
}

#[tokio::test]
async fn unused_agent_binaries_are_removed() {
    let data = TestFolder::new("agents");
    let folder = data.paths.agent();
    fs::create_dir_all(&folder).unwrap();
    let [used, unused, young] = ["cellkeep-agent-1", "cellkeep-agent-2", "cellkeep-agent-3"].map(|name| folder.join(name));
    for path in [&used, &unused, &young] {
        fs::write(path, "").unwrap();
    }
    for aged in [&used, &unused] {
        make_old(aged);
    }
    let living = data.record(data.stamp(0, 0), &used);
    data.sweep().await;
    assert!(used.exists() && young.exists() && living.exists());
    assert!(!unused.exists());
    data.end();
}

#[tokio::test]
async fn empty_cgroups_are_removed() {
    let controllers = cellkeep::sandbox::process::controllers();
    let hierarchy = match controllers.version {
        2 if controllers.memory => "",
        1 if controllers.memory => "memory",
        _ => return eprintln!("skipped: this user cannot create cgroups"),
    };
    let data = TestFolder::new("cgroups");
    let parent = Path::new("/sys/fs/cgroup").join(hierarchy).join("cellkeep");
    let [young, old, occupied] = [(); 3].map(|()| parent.join(SessionId::random().as_str()));
    for group in [&young, &old, &occupied] {
        fs::create_dir(group).unwrap();
    }
    fs::write(occupied.join("cgroup.procs"), data.bystander.id().to_string()).unwrap();
    for aged in [&old, &occupied] {
        make_old(aged);
    }
    data.sweep().await;
    assert!(young.exists() && occupied.exists() && !old.exists());
    data.end();
    for group in [&young, &occupied] {
        fs::remove_dir(group).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_contains_cgroup_controllers() {
    let living = crate::support::TestSandbox::process().session("bash").await;
    let record = living.session.record.clone();
    let sandbox = ProcessSandbox::new(Paths::from_environment());
    let recorded = record.controllers.clone().unwrap();
    assert_eq!(recorded, cellkeep::sandbox::process::controllers());
    if recorded.memory {
        assert!(sandbox.stats(&record).await.unwrap().memory_bytes > 0);
    }
    living.end().await;
}
