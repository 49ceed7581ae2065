//! The docker sandbox with gVisor: attacks, and a notebook in each language.

use cellkeep::policy::IsolationLevel;

use crate::cli::{Cli, scratch};
use crate::support::TestSandbox;
use crate::{abuse, egress, neighbours};

/// Runs tests of other modules under gVisor.
macro_rules! under_gvisor {
    ($($module:ident::$name:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if let Some(place) = TestSandbox::gvisor().await {
                $module::$name(place).await;
            }
        })*
    };
}

under_gvisor!(
    abuse::disk_use_is_limited,
    abuse::descriptors_are_limited,
    abuse::network_is_unreachable,
    abuse::host_secrets_are_invisible,
    abuse::agent_socket_is_unreachable,
    abuse::forged_messages_do_not_end_execution,
    abuse::ignored_interrupt_escalates_to_kill,
    egress::code_reaches_hosts_of_its_policy_only,
    neighbours::limits_of_agent_are_protected,
    neighbours::watching_shared_files_is_refused,
    neighbours::planted_names_do_not_stop_restart,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notebook_of_every_language_runs() {
    let Some(place) = TestSandbox::gvisor().await else { return };
    let folder = scratch("gvisor");
    std::fs::create_dir_all(&folder).unwrap();
    for language in ["python", "r", "deno", "bash"] {
        let output = folder.join(language).with_extension("ipynb");
        let notebook = format!("notebooks/{language}.ipynb");
        let ran = Cli::new(&["run", &notebook, "--sandbox", "docker", "-o"]).path(&output).run();
        assert_eq!(ran.code, 0, "{language}: {} {}", ran.stdout, ran.stderr);
    }
    let living = place.session("python").await;
    assert_eq!(living.session.record.isolation.level, IsolationLevel::Gvisor);
    living.end().await;
    std::fs::remove_dir_all(folder).unwrap();
}
