//! `cellkeep doctor`: checks what works on this machine, and shows how to fix what does not.

use super::kernels::{image_status, missing_commands, state_name};
use super::{Exit, Failure};
use crate::config::Paths;
use crate::kernels::{self, Status};
use crate::machine;
use crate::policy::{Ceilings, IsolationLevel, Limits};
use crate::sandbox::docker::{self, Engine, Images};
use crate::sandbox::process::{self, Controllers, Probe};

/// Exits with 0 if at least one sandbox works, else with 3.
pub(super) async fn run(paths: &Paths) -> Result<Exit, Failure> {
    print_line!("data folder       {}", paths.data().display());
    print_line!("running as        uid {}", rustix::process::geteuid().as_raw());
    let process = process_sandbox(paths);
    let docker = docker_sandbox().await;
    let images = if docker { Images::connect().await.ok() } else { None };
    for kernel in kernels::all() {
        let environment = kernels::status(paths, kernel);
        print_line!(
            "kernel {:<10} process sandbox: {}",
            kernel.name,
            with_remedy(environment, &process::how_to_install(kernel))
        );
        if let Some(image) = image_status(images.as_ref(), kernel).await {
            print_line!("{:<17} docker sandbox: {}", "", with_remedy(image, &docker::how_to_get(kernel)));
        }
    }
    print_ceilings();
    levels(docker).await;
    let commands = missing_commands().map_or("all installed".to_owned(), |remedy| format!("some missing; {remedy}"));
    print_line!("commands          process sandbox: {commands}");
    if process || docker {
        return Ok(Exit::Ok);
    }
    print_line!("\nNo sandbox works, and cellkeep never runs code without one.");
    Ok(Exit::NoSandbox)
}

/// What each isolation level does not stop, and whether this machine has it.
async fn levels(docker: bool) {
    let runtimes = if docker { docker::runtimes().await } else { Vec::new() };
    let has = |name: &str| runtimes.iter().find(|runtime| runtime.contains(name));
    for (level, sandbox, runtime) in [
        (IsolationLevel::Process, "process", None),
        (IsolationLevel::Container, "docker", None),
        (IsolationLevel::Gvisor, "docker", Some("runsc")),
        (IsolationLevel::Vm, "docker", Some("kata")),
    ] {
        let how = match runtime.map(|name| (name, has(name))) {
            None => format!("{sandbox} sandbox"),
            Some((_, Some(registered))) => format!("docker sandbox with CELLKEEP_DOCKER_RUNTIME={registered}"),
            Some((name, None)) => format!("not here: the engine has no runtime {name}"),
        };
        print_line!("level {:<11} {how}", level.to_string());
        print_line!("{:<17} does not stop: {}", "", level.not_stopped().join("; "));
    }
}

/// The status, followed by the remedy unless it is ready.
fn with_remedy(status: Status, remedy: &str) -> String {
    let state = state_name(status);
    if matches!(status, Status::Ready | Status::Own) { state.to_owned() } else { format!("{state}; {remedy}") }
}

/// Shows what `cellkeep serve` lets one session have on this machine.
fn print_ceilings() {
    let Limits { memory_mb, cpus, pids, disk_mb, output_mb } = Ceilings::of_machine(machine::detect()).limits;
    print_line!(
        "ceilings          cellkeep serve gives a session at most {memory_mb} MB of memory, {cpus} CPUs, {pids} processes,"
    );
    print_line!("                  {disk_mb} MB of workspace, {output_mb} MB of output, and no network;");
    print_line!("                  to change: --max-memory-mb, --allow-network and others in cellkeep serve --help");
}

fn process_sandbox(paths: &Paths) -> bool {
    let works = match process::probe() {
        Probe::Works { version, unmasked } => {
            print_line!("process sandbox   usable ({version}, user namespaces)");
            match process::slirp4netns() {
                Ok(_) => print_line!("                  with --network open: {}", process::OPEN_NETWORK),
                Err(why) => print_line!("                  no open network: {why}"),
            }
            if let Some(why) = unmasked {
                print_line!("                  parts of /proc that describe the host cannot be hidden: {why}");
            }
            if let Some(why) = process::own_mounts_refused(paths) {
                print_line!("                  {} ({why})", process::SHARED);
            }
            if !rustix::process::geteuid().is_root() {
                print_line!("                  as this user it does not stop: {}", process::NOT_STOPPED_AS_USER.join("; "));
            }
            true
        }
        Probe::Fails { reason } => {
            print_line!("process sandbox   NOT usable: {reason}");
            false
        }
    };
    let controllers = process::controllers();
    let enforced = |enforced: bool| if enforced { "enforced" } else { "NOT enforced" };
    let Controllers { version, memory, cpu, pids, why_not, .. } = &controllers;
    print_line!(
        "cgroups           version {version}: memory {}, cpus {}, processes {}",
        enforced(*memory),
        enforced(*cpu),
        enforced(*pids)
    );
    if let Some(why) = why_not {
        print_line!("                  {why}");
        print_line!(
            "                  without them: the agent watches memory, rlimits cap processes, and cpus are not limited."
        );
        print_line!("                  not stopped then: {}", process::NOT_STOPPED_WITHOUT_CGROUP.join("; "));
        print_line!("                  to fix: run as root");
    }
    works
}

async fn docker_sandbox() -> bool {
    match docker::engine().await {
        Engine::Usable { description, warnings } => {
            print_line!("docker sandbox    usable ({description})");
            for warning in warnings {
                print_line!("                  {warning}");
            }
            true
        }
        Engine::Unusable { reason, remedy } => {
            print_line!("docker sandbox    NOT usable: {reason}");
            print_line!("                  {remedy}");
            false
        }
    }
}
