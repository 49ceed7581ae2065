//! A kernel that is installed again while a session uses the old version.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use cellkeep::config::Paths;
use cellkeep::kernels::{self, Status};
use cellkeep::manager::{Manager, SandboxChoice, SessionSpec};
use cellkeep::policy::{Limits, NetworkPolicy};
use cellkeep::sandbox::SandboxKind;

use crate::cli::Cli;
use crate::support::TestSession;

fn install(data: &Path) -> String {
    let ran = Cli::new(&["kernels", "install", "r", "--data"]).path(data).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stderr
}

/// Makes the installed version look as if another version of cellkeep had installed it.
fn make_old(kernels: &Path) {
    let current = fs::canonicalize(kernels.join("r")).unwrap();
    let old = kernels.join(".r@0000");
    fs::rename(current, &old).unwrap();
    fs::write(old.join("fingerprint"), "0000").unwrap();
    fs::remove_file(kernels.join("r")).unwrap();
    symlink(".r@0000", kernels.join("r")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_installation_keeps_version_of_running_session() {
    // A folder that a sandbox's uid can enter, with a path short enough for a socket.
    let data = std::env::temp_dir().join(format!("ck-versions-{}", std::process::id()));
    let paths = Paths::new(&data);
    let kernel = kernels::find("r").unwrap();
    install(&data);
    make_old(&paths.kernels());
    assert_eq!(kernels::status(&paths, kernel), Status::Stale);
    let ran = Cli::new(&["exec", "--sandbox", "process", "-k", "r", "-c", "Sys.sleep(0.1)", "--data"]).path(&data).run();
    assert!(ran.code == 0 && ran.stderr.contains("cellkeep kernels install r"), "{}", ran.stderr);
    let listed = Cli::new(&["kernels", "list", "--data"]).path(&data).run().stdout;
    assert!(listed.contains("stale") && listed.contains("cellkeep kernels install r"), "{listed}");

    let spec = SessionSpec {
        kernel: kernel.clone(),
        sandbox: SandboxChoice::Only(SandboxKind::Process),
        limits: Limits::default(),
        network: NetworkPolicy::None,
        env: Vec::new(),
        mounts: Vec::new(),
        secrets: Vec::new(),
        package_set: None,
    };
    let living = TestSession::new(Manager::new(paths.clone()).create(spec).await.unwrap());
    assert!(install(&data).contains("sessions may still use old versions"));
    assert_eq!(kernels::status(&paths, kernel), Status::Ready);
    let code = "cat(readLines('/opt/kernel/fingerprint', warn = FALSE), file.exists('/opt/kernel/launcher.R'))";
    assert_eq!(living.ok(code).await.trim(), "0000 TRUE", "the old version is complete");
    living.session.destroy().await.unwrap();
    install(&data);
    assert!(!paths.kernels().join(".r@0000").exists(), "no session uses it any more");
    assert_eq!(kernels::status(&paths, kernel), Status::Ready);
    fs::remove_dir_all(data).unwrap();
}
