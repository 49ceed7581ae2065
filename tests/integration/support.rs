//! Shared by the tests: sessions, executions, and checks that nothing is left behind.

pub mod browser;
pub mod model;
pub mod mounted;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use cellkeep::config::Paths;
use cellkeep::kernels;
use cellkeep::manager::{Manager, SandboxChoice, Session, SessionSpec};
use cellkeep::output::{OutputTarget, Outputs, StreamStyle, text_of};
use cellkeep::policy::{Limits, NetworkPolicy};
use cellkeep::sandbox::SandboxKind;
use cellkeep::sandbox::docker::{Engine, engine};
use cellkeep::session::{
    EventBody, ExecutionOptions, ExecutionResult, ExecutionStatus, MemoryJournal, NewCell, SessionEvents,
};
use serde_json::Value;

/// The timeout of one execution, so that a hang fails the test instead of blocking CI.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Runs each test in both sandboxes. A test is an async function of a [`TestSandbox`].
macro_rules! in_every_sandbox {
    ($($name:ident),* $(,)?) => {
        mod process {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::support::TestSandbox::process()).await;
            })*
        }
        mod docker {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(place) = crate::support::TestSandbox::docker().await {
                    super::$name(place).await;
                }
            })*
        }
    };
}

/// Skips a test because something is missing on this machine. Fails under CI and in `make test`, where everything is
/// installed: a skipped test must not look as if it had passed.
pub fn skip(reason: &str) {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0" && value != "false");
    assert!(!set("CI") && !set("CELLKEEP_TEST_ALL"), "this test must not be skipped here: {reason}");
    eprintln!("skipped: {reason}");
}

/// Ends the test program with one line that says what to run, if this machine was never set up: otherwise hundreds of tests
/// would fail, each for the same reason.
pub fn require_setup() {
    static CHECKED: Once = Once::new();
    CHECKED.call_once(|| {
        let python = kernels::find("python").unwrap();
        if kernels::status(&Paths::from_environment(), python) == kernels::Status::Missing {
            // To the descriptor: `eprintln` would be captured with the output of this test.
            let _ = std::io::stderr().write_all(NOT_SET_UP.as_bytes());
            std::process::exit(1);
        }
    });
}

const NOT_SET_UP: &str = "
These tests drive real kernels, which are not installed. Run once:  make setup-test web kernels images
Tests that need nothing:  cargo test --lib --test architecture

";

/// The sandbox in which a test runs.
#[derive(Clone, Copy)]
pub struct TestSandbox {
    pub kind: SandboxKind,
}

impl TestSandbox {
    pub fn process() -> Self {
        require_setup();
        Self { kind: SandboxKind::Process }
    }

    /// `None`, with the reason printed, if there is no engine; see [`skip`].
    pub async fn docker() -> Option<Self> {
        require_setup();
        match engine().await {
            Engine::Usable { .. } => Some(Self { kind: SandboxKind::Docker }),
            Engine::Unusable { reason, .. } => {
                skip(&format!("no container engine ({reason}); run: make setup-test images"));
                None
            }
        }
    }

    /// The docker sandbox with gVisor, for the whole process: `None`, with the reason printed, if it is not registered.
    pub async fn gvisor() -> Option<Self> {
        let place = Self::docker().await?;
        if !cellkeep::sandbox::docker::runtimes().await.iter().any(|name| name == "runsc") {
            skip("the engine has no runtime runsc; run: make setup-test");
            return None;
        }
        // SAFETY: nextest runs each test in its own process, and nothing else in this one reads the environment meanwhile.
        #[expect(unsafe_code, reason = "the manager takes the runtime from the environment")]
        unsafe {
            std::env::set_var("CELLKEEP_DOCKER_RUNTIME", "runsc");
        }
        Some(place)
    }

    /// Whether the kernel of the sandbox has Landlock.
    pub fn has_landlock(self) -> bool {
        std::env::var_os("CELLKEEP_DOCKER_RUNTIME").is_none()
    }

    pub async fn session(self, kernel: &str) -> TestSession {
        self.session_with(kernel, Limits::default()).await
    }

    pub async fn session_with(self, kernel: &str, limits: Limits) -> TestSession {
        self.start(kernel, limits, NetworkPolicy::None).await
    }

    pub async fn open_session(self, kernel: &str) -> TestSession {
        self.start(kernel, Limits::default(), NetworkPolicy::Open).await
    }

    async fn start(self, kernel: &str, limits: Limits, network: NetworkPolicy) -> TestSession {
        let spec = SessionSpec {
            kernel: kernels::find(kernel).unwrap().clone(),
            sandbox: SandboxChoice::Only(self.kind),
            limits,
            network,
            env: vec![("GIVEN".to_owned(), "to the kernel".to_owned())],
            mounts: Vec::new(),
            secrets: Vec::new(),
            package_set: None,
        };
        let session = Manager::new(Paths::from_environment()).create(spec).await;
        TestSession::new(session.unwrap_or_else(|error| panic!("no session: {error}")))
    }
}

/// The result of an execution.
#[derive(Debug)]
pub struct Execution {
    pub result: ExecutionResult,
    pub outputs: Vec<Value>,
    pub notices: Vec<String>,
}

impl Execution {
    pub fn text(&self) -> String {
        text_of(&self.outputs)
    }

    pub fn status(&self) -> ExecutionStatus {
        self.result.status
    }

    pub fn error(&self) -> String {
        self.result.error.as_ref().map(|error| format!("{}: {}", error.ename, error.evalue)).unwrap_or_default()
    }
}

/// A session under test.
pub struct TestSession {
    pub session: Session,
    pub events: tokio::sync::Mutex<SessionEvents>,
}

/// A code cell that is executed at once.
pub fn cell(source: &str, timeout: Option<Duration>) -> NewCell {
    let options =
        ExecutionOptions { timeout_seconds: timeout.map(|limit| limit.as_secs_f64()), ..ExecutionOptions::default() };
    NewCell { source: source.to_owned(), options, run: true, ..NewCell::default() }
}

impl TestSession {
    pub fn new(mut session: Session) -> Self {
        let events = std::mem::replace(&mut session.events, MemoryJournal::new().1);
        Self { session, events: events.into() }
    }

    pub async fn run(&self, code: &str) -> Execution {
        self.run_with(cell(code, Some(Duration::from_secs(120)))).await
    }

    pub async fn run_for(&self, code: &str, timeout: Duration) -> Execution {
        self.run_with(cell(code, Some(timeout))).await
    }

    pub async fn run_with(&self, cell: NewCell) -> Execution {
        let mut events = self.events.lock().await;
        let cell = self.session.handle.add_cell(cell).await.expect("a live session accepts a cell");
        let mut outputs = Outputs::new(StreamStyle::Terminal);
        let mut notices = Vec::new();
        outputs.start(OutputTarget::cell(0));
        let all = async {
            loop {
                let event = events.recv().await.expect("an execution ends with Finished");
                let is_own = event.cell.as_ref() == Some(&cell.id);
                match event.body {
                    EventBody::Message { msg_type, message } if is_own => {
                        outputs.apply(OutputTarget::cell(0), &msg_type, &message.content);
                    }
                    EventBody::Finished(result) if is_own => return *result,
                    body => notices.extend(body.notice()),
                }
            }
        };
        let result = tokio::time::timeout(PATIENCE, all).await.expect("the execution ends");
        Execution { result, outputs: outputs.finish(OutputTarget::cell(0)), notices }
    }

    /// Executes code that must succeed, and returns its text.
    pub async fn ok(&self, code: &str) -> String {
        let ran = self.run(code).await;
        assert_eq!(ran.status(), ExecutionStatus::Ok, "{}\n{}", ran.error(), ran.text());
        ran.text()
    }

    /// Asserts that the session still works.
    pub async fn assert_works(&self) {
        tokio::time::timeout(PATIENCE, self.session.handle.ready())
            .await
            .expect("the kernel becomes ready")
            .expect("the session is alive");
        let text = self.ok("print(6*7)").await;
        assert!(text.contains("42"), "{text}");
    }

    /// Ends the session, and asserts that nothing of it is left.
    pub async fn end(self) {
        let record = self.session.record.clone();
        self.session.destroy().await.expect("the session can be destroyed");
        let id = record.id.as_str();
        assert!(!Paths::from_environment().sandboxes().join(id).exists(), "its folder is left");
        for hierarchy in ["", "memory", "cpu", "pids", "cpuacct"] {
            let group = PathBuf::from("/sys/fs/cgroup").join(hierarchy).join("cellkeep").join(id);
            assert!(!group.exists(), "its cgroup is left: {}", group.display());
        }
        if let Some(agent) = record.agent {
            assert!(!agent.is_alive(), "its agent is still running");
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        assert!(!mounts.contains(id), "a mount is left");
    }
}
