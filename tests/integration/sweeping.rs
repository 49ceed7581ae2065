//! What dead managers left behind: all of it goes, and nothing that lives.

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

/// A data folder of its own, and a process that has nothing to do with it.
struct Ground {
    paths: Paths,
    bystander: Child,
}

impl Ground {
    fn new(name: &str) -> Self {
        let bystander = Command::new("sleep").arg("600").spawn().unwrap();
        Self { paths: Paths::new(&scratch(name)), bystander }
    }

    /// The bystander as a stamp from elsewhere would have it.
    fn stamp(&self, boot: u64, namespace: u64) -> ProcessStamp {
        let own = ProcessStamp::of(self.bystander.id().cast_signed()).unwrap();
        ProcessStamp { boot: own.boot ^ boot, namespace: own.namespace + namespace, ..own }
    }

    /// Writes a record of a sandbox whose owner and agent are `stamp`.
    fn record(&self, stamp: ProcessStamp, agent_binary: &Path) -> PathBuf {
        let session = SessionId::random();
        let folder = self.paths.sandboxes().join(session.as_str());
        let record = SandboxRecord {
            session,
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
        };
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("record.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        folder
    }

    /// A folder without a record.
    fn half_made(&self) -> PathBuf {
        let folder = self.paths.sandboxes().join(SessionId::random().as_str());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("record.tmp"), "{").unwrap();
        folder
    }

    async fn sweep(&self) -> usize {
        sweep(&ProcessSandbox::new(self.paths.clone()), &self.paths).await.unwrap()
    }

    fn end(mut self) {
        assert!(self.bystander.try_wait().unwrap().is_none(), "a process that is not ours was ended");
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
async fn a_number_of_another_boot_or_namespace_is_nobody_here() {
    let ground = Ground::new("foreign");
    let binary = Path::new("/nowhere");
    let other_boot = ground.record(ground.stamp(1, 0), binary);
    let [young, old, listening] = [(); 3].map(|()| ground.record(ground.stamp(0, 1), binary));
    let socket = UnixListener::bind(listening.join("agent.sock")).unwrap();
    for left_alone in [&old, &listening] {
        make_old(left_alone);
    }
    assert_eq!(ground.sweep().await, 2);
    assert!(!other_boot.exists() && !old.exists(), "nothing of theirs can be left");
    assert!(young.exists() && listening.exists(), "theirs may live");
    drop(socket);
    assert_eq!(ground.sweep().await, 1);
    ground.end();
}

#[tokio::test]
async fn ones_own_dead_are_ended_and_the_living_are_not() {
    let ground = Ground::new("own");
    let living = ground.record(ground.stamp(0, 0), Path::new("/nowhere"));
    assert_eq!(ground.sweep().await, 0);
    assert!(living.exists());
    let gone = ProcessStamp { started: 1, ..ground.stamp(0, 0) };
    let dead = ground.record(gone, Path::new("/nowhere"));
    assert_eq!(ground.sweep().await, 1);
    assert!(living.exists() && !dead.exists());
    ground.end();
}

#[tokio::test]
async fn folders_without_a_record_go_when_nobody_can_want_them() {
    let ground = Ground::new("half-made");
    let [young, old, listening] = [(); 3].map(|()| ground.half_made());
    let _socket = UnixListener::bind(listening.join("agent.sock")).unwrap();
    for left_alone in [&old, &listening] {
        make_old(left_alone);
    }
    ground.sweep().await;
    assert!(young.exists(), "it may be in the making");
    assert!(listening.exists(), "it may be another version's");
    assert!(!old.exists());
    ground.end();
}

#[tokio::test]
async fn agents_that_no_sandbox_uses_go() {
    let ground = Ground::new("agents");
    let folder = ground.paths.agent();
    fs::create_dir_all(&folder).unwrap();
    let [used, unused, young] = ["cellkeep-agent-1", "cellkeep-agent-2", "cellkeep-agent-3"].map(|name| folder.join(name));
    for path in [&used, &unused, &young] {
        fs::write(path, "").unwrap();
    }
    for left_alone in [&used, &unused] {
        make_old(left_alone);
    }
    let living = ground.record(ground.stamp(0, 0), &used);
    ground.sweep().await;
    assert!(used.exists() && young.exists() && living.exists());
    assert!(!unused.exists());
    ground.end();
}

#[tokio::test]
async fn cgroups_without_a_sandbox_go() {
    let controllers = cellkeep::sandbox::process::controllers();
    let hierarchy = match controllers.version {
        2 if controllers.memory => "",
        1 if controllers.memory => "memory",
        _ => return eprintln!("skipped: no cgroups can be made here"),
    };
    let ground = Ground::new("cgroups");
    let ours = Path::new("/sys/fs/cgroup").join(hierarchy).join("cellkeep");
    let [young, old, lived_in] = [(); 3].map(|()| ours.join(SessionId::random().as_str()));
    for group in [&young, &old, &lived_in] {
        fs::create_dir(group).unwrap();
    }
    fs::write(lived_in.join("cgroup.procs"), ground.bystander.id().to_string()).unwrap();
    for left_alone in [&old, &lived_in] {
        make_old(left_alone);
    }
    ground.sweep().await;
    assert!(young.exists() && lived_in.exists() && !old.exists());
    ground.end();
    for group in [&young, &lived_in] {
        fs::remove_dir(group).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controllers_of_a_sandbox_are_in_its_record() {
    let living = crate::support::Place::process().session("bash").await;
    let record = living.session.record.clone();
    let sandbox = ProcessSandbox::new(Paths::from_environment());
    let held = record.controllers.clone().unwrap();
    assert_eq!(held, cellkeep::sandbox::process::controllers());
    if held.memory {
        assert!(sandbox.stats(&record).await.unwrap().memory_bytes > 0);
    }
    living.end().await;
}
