//! `cellkeep doctor`: what is usable here, and how to mend what is not.

use super::kernels::{image_status, state_name};
use super::{Exit, Failure};
use crate::config::Paths;
use crate::kernels::{self, Status};
use crate::sandbox::docker::{self, Engine, Images};
use crate::sandbox::process::{self, Controllers, Probe};

/// Exits with 0 when at least one sandbox works.
pub(super) async fn run(paths: &Paths) -> Result<Exit, Failure> {
    tell!("data folder       {}", paths.data().display());
    tell!("running as        uid {}", rustix::process::geteuid().as_raw());
    let process = process_sandbox();
    let docker = docker_sandbox().await;
    let images = if docker { Images::connect().await.ok() } else { None };
    for kernel in kernels::all() {
        let environment = kernels::status(paths, kernel);
        tell!("kernel {:<10} process sandbox: {}", kernel.name, mend(environment, &process::how_to_install(kernel)));
        if let Some(image) = image_status(images.as_ref(), kernel).await {
            tell!("{:<17} docker sandbox: {}", "", mend(image, &format!("run: cellkeep images build {}", kernel.name)));
        }
    }
    if process || docker {
        return Ok(Exit::Ok);
    }
    tell!("\nNo sandbox is usable, so nothing can be run: cellkeep never runs code without one.");
    Ok(Exit::NoSandbox)
}

/// A state, and what mends it.
fn mend(status: Status, remedy: &str) -> String {
    let state = state_name(status);
    if status == Status::Ready { state.to_owned() } else { format!("{state}; {remedy}") }
}

fn process_sandbox() -> bool {
    let works = match process::probe() {
        Probe::Works { version, unmasked } => {
            tell!("process sandbox   usable ({version}, user namespaces)");
            tell!("                  with --network open: {}", process::OPEN_NETWORK);
            if let Some(why) = unmasked {
                tell!("                  parts of /proc that tell about the machine cannot be hidden: {why}");
            }
            true
        }
        Probe::Fails { reason } => {
            tell!("process sandbox   NOT usable: {reason}");
            false
        }
    };
    let controllers = process::controllers();
    let held = |held: bool| if held { "enforced" } else { "NOT enforced" };
    let Controllers { version, memory, cpu, pids, why_not, .. } = &controllers;
    tell!("cgroups           version {version}: memory {}, cpus {}, processes {}", held(*memory), held(*cpu), held(*pids));
    if let Some(why) = why_not {
        tell!("                  {why}");
        tell!(
            "                  without them: memory is watched by the agent, processes are held by rlimit, cpus are not held."
        );
        tell!("                  to mend: run as root");
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
