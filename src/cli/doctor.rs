//! `cellkeep doctor`: checks what works on this machine, and shows how to fix what does not.

use super::kernels::{image_status, state_name};
use super::{Exit, Failure};
use crate::config::Paths;
use crate::kernels::{self, Status};
use crate::sandbox::docker::{self, Engine, Images};
use crate::sandbox::process::{self, Controllers, Probe};

/// Exits with 0 if at least one sandbox works, else with 3.
pub(super) async fn run(paths: &Paths) -> Result<Exit, Failure> {
    tell!("data folder       {}", paths.data().display());
    tell!("running as        uid {}", rustix::process::geteuid().as_raw());
    let process = process_sandbox();
    let docker = docker_sandbox().await;
    let images = if docker { Images::connect().await.ok() } else { None };
    for kernel in kernels::all() {
        let environment = kernels::status(paths, kernel);
        tell!("kernel {:<10} process sandbox: {}", kernel.name, with_remedy(environment, &process::how_to_install(kernel)));
        if let Some(image) = image_status(images.as_ref(), kernel).await {
            tell!(
                "{:<17} docker sandbox: {}",
                "",
                with_remedy(image, &format!("run: cellkeep images build {}", kernel.name))
            );
        }
    }
    if process || docker {
        return Ok(Exit::Ok);
    }
    tell!("\nNo sandbox works, and cellkeep never runs code without one.");
    Ok(Exit::NoSandbox)
}

/// The status, followed by the remedy unless it is ready.
fn with_remedy(status: Status, remedy: &str) -> String {
    let state = state_name(status);
    if status == Status::Ready { state.to_owned() } else { format!("{state}; {remedy}") }
}

fn process_sandbox() -> bool {
    let works = match process::probe() {
        Probe::Works { version, unmasked } => {
            tell!("process sandbox   usable ({version}, user namespaces)");
            tell!("                  with --network open: {}", process::OPEN_NETWORK);
            if let Some(why) = unmasked {
                tell!("                  parts of /proc that describe the host cannot be hidden: {why}");
            }
            true
        }
        Probe::Fails { reason } => {
            tell!("process sandbox   NOT usable: {reason}");
            false
        }
    };
    let controllers = process::controllers();
    let enforced = |enforced: bool| if enforced { "enforced" } else { "NOT enforced" };
    let Controllers { version, memory, cpu, pids, why_not, .. } = &controllers;
    tell!(
        "cgroups           version {version}: memory {}, cpus {}, processes {}",
        enforced(*memory),
        enforced(*cpu),
        enforced(*pids)
    );
    if let Some(why) = why_not {
        tell!("                  {why}");
        tell!("                  without them: the agent watches memory, rlimits cap processes, and cpus are not limited.");
        tell!("                  to fix: run as root");
    }
    works
}

async fn docker_sandbox() -> bool {
    match docker::engine().await {
        Engine::Usable { description, warnings } => {
            tell!("docker sandbox    usable ({description})");
            for warning in warnings {
                tell!("                  {warning}");
            }
            true
        }
        Engine::Unusable { reason, remedy } => {
            tell!("docker sandbox    NOT usable: {reason}");
            tell!("                  {remedy}");
            false
        }
    }
}
