//! Environment variables of a kernel are hidden from other users of the host, and a failed start says why.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use cellkeep::config::Paths;
use cellkeep::kernels;
use cellkeep::manager::{Manager, SandboxChoice, SessionSpec};
use cellkeep::policy::{Limits, NetworkPolicy};
use cellkeep::sandbox::SandboxKind;

use crate::cli::{Cli, scratch};
use crate::support::{TestSandbox, TestSession};

in_every_sandbox!(environment_is_visible_to_kernel_only);

fn spec(kind: SandboxKind, env: Vec<(String, String)>) -> SessionSpec {
    SessionSpec {
        kernel: kernels::find("python").unwrap().clone(),
        sandbox: SandboxChoice::Only(kind),
        limits: Limits::default(),
        network: NetworkPolicy::None,
        env,
        mounts: Vec::new(),
        secrets: Vec::new(),
        package_set: None,
    }
}

/// The arguments of all processes, and the files below `folder` that contain `needle`.
fn found_on_the_host(needle: &str, folder: &Path) -> Vec<String> {
    let holds = |path: &Path| fs::read(path).is_ok_and(|data| String::from_utf8_lossy(&data).contains(needle));
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
    let files = fs::read_dir(folder).unwrap().flatten().flat_map(|entry| {
        let deeper = fs::read_dir(entry.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        deeper.chain([entry.path()]).collect::<Vec<_>>()
    });
    processes.chain(files).filter(|path| holds(path)).map(|path| path.display().to_string()).collect()
}

async fn environment_is_visible_to_kernel_only(place: TestSandbox) {
    let canary = format!("canary-{}", cellkeep::ids::random_uuid());
    // Together they exceed the limit of one argument (128 KiB).
    let big = |name: &str| (name.to_owned(), "x".repeat(100 << 10));
    let env = vec![("TOKEN".to_owned(), canary.clone()), big("BIG1"), big("BIG2"), big("BIG3")];
    let session = Manager::new(Paths::from_environment()).create(spec(place.kind, env)).await.unwrap();
    let living = TestSession::new(session);
    let record = living.session.record.clone();
    let folder = Paths::from_environment().sandboxes().join(record.id.as_str());
    assert_eq!(found_on_the_host(&canary, &folder), Vec::<String>::new());
    if let Some(container) = &record.container {
        let shown = Command::new("docker").args(["inspect", container]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("cellkeep.sandbox") && !shown.contains(&canary), "{shown}");
    }
    if let Some(agent) = record.agent {
        let environment = fs::read(format!("/proc/{}/environ", agent.pid)).unwrap();
        assert_eq!(String::from_utf8_lossy(&environment), "PWD=/work\0", "bubblewrap's only word");
    }
    let code = r"
import os
print(os.environ['TOKEN'], [len(os.environ[f'BIG{i}']) for i in (1, 2, 3)])
for name in ['cmdline', 'environ']:
    try:
        print(name, len(open(f'/proc/1/{name}').read()) < 200)
    except OSError:
        print(name, True)
";
    let text = living.ok(code).await;
    assert!(text.contains(&canary) && text.contains("[102400, 102400, 102400]"), "{text}");
    assert!(text.contains("cmdline True") && text.contains("environ True"), "{text}");
    living.end().await;
}

#[test]
fn variable_can_come_from_callers_environment() {
    let ran = Cli::new(&["exec", "--env", "TOKEN", "--sandbox", "process", "-c", "import os; print(os.environ['TOKEN'])"])
        .env("TOKEN", "from the caller")
        .run();
    assert_eq!((ran.code, ran.stdout.trim()), (0, "from the caller"), "{}", ran.stderr);
    let ran = Cli::new(&["exec", "--env", "NO_SUCH_VARIABLE", "-c", "1"]).run();
    assert!(ran.code == 2 && ran.stderr.contains("NO_SUCH_VARIABLE is not set"), "{}", ran.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bubblewrap_errors_after_process_id_are_reported() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only as root do sandboxes have a uid that can be kept out");
    }
    let folder = scratch("unreachable");
    let data = folder.join("data");
    fs::create_dir_all(&data).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(Paths::from_environment().kernels(), data.join("kernels")).unwrap();
    let refused = Manager::new(Paths::new(&data)).create(spec(SandboxKind::Process, Vec::new())).await;
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("find source path") && message.contains("Permission denied"), "{message}");
    assert!(message.contains("must be able to enter the data folder"), "{message}");
    assert_eq!(fs::read_dir(data.join("s")).unwrap().count(), 0, "nothing is left behind");
    fs::remove_dir_all(folder).unwrap();
}
