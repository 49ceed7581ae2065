//! Machines that allow less: what cannot be had is said, and what can be had still holds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cellkeep::config::Paths;
use cellkeep::kernels;
use cellkeep::manager::{Manager, SandboxChoice, SessionSpec};
use cellkeep::policy::{Limits, Network};
use cellkeep::sandbox::SandboxKind;

use crate::cli::{Cli, scratch};
use crate::support::Living;

/// A folder with a `bwrap` that refuses to hide anything in `/proc`, as in some containers, and is the real one otherwise.
fn refusing_bwrap(folder: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|folder| folder.join("bwrap")).find(|path| path.is_file()).unwrap();
    let script = format!(
        "#!/bin/sh
if echo \"$*\" | grep -q /proc/kallsyms || {{ [ \"$1\" = --args ] && grep -aq /proc/kallsyms /proc/self/fd/$2; }}; then
    echo \"bwrap: Can't bind mount /oldroot/dev/null on /newroot/proc/kallsyms: Operation not permitted\" >&2
    exit 1
fi
exec {} \"$@\"
",
        real.display()
    );
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("bwrap"), script).unwrap();
    fs::set_permissions(folder.join("bwrap"), fs::Permissions::from_mode(0o755)).unwrap();
    folder.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_proc_cannot_be_hidden_it_is_said() {
    let folder = refusing_bwrap(&scratch("refusing"));
    let path =
        std::env::join_paths([folder.clone()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())));
    let path = path.unwrap().into_string().unwrap();
    let doctor = Cli::new(&["doctor"]).env("PATH", &path).run();
    assert!(
        doctor.stdout.contains("cannot be hidden") && doctor.stdout.contains("Operation not permitted"),
        "{}",
        doctor.stdout
    );
    // SAFETY: nextest gives each test a process of its own, and nothing in this one reads the environment meanwhile.
    #[expect(unsafe_code, reason = "the manager looks bubblewrap up in the environment")]
    unsafe {
        std::env::set_var("PATH", path);
    }
    let spec = SessionSpec {
        kernel: kernels::find("python").unwrap().clone(),
        sandbox: SandboxChoice::Only(SandboxKind::Process),
        limits: Limits::default(),
        network: Network::None,
        env: Vec::new(),
    };
    let session = Manager::new(Paths::from_environment()).create(spec).await.unwrap();
    let living = Living { session };
    let not_enforced = living.session.record.isolation.not_enforced.join("\n");
    assert!(not_enforced.contains("/proc: tells about the machine"), "{not_enforced}");
    living.still_works().await;
    living.end().await;
    fs::remove_dir_all(folder).unwrap();
}
