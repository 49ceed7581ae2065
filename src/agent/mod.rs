//! The program inside the sandbox: PID 1, static, one thread.
//!
//! It starts kernels and processes. Each has a task that owns its state, drains it without waiting for anyone, and turns what it
//! says into numbered events in a bounded buffer ([`buffer`]), which keeps them until the manager acknowledges them. A manager
//! may therefore be slow, or die and come back: no event is lost that fits into the buffer, and those that do not are reported
//! as a gap.
//!
//! ```text
//!  manager ─▶ connection ─▶ its target: a kernel, a process, or the sandbox (control)
//!
//!  kernel sockets ─▶ channels     ─┐                             ┌─▶ connection (one at a time, the newest)
//!  kernel output  ─▶ output_pipes ─┼─▶ kernel_host ─▶ buffer ────┘
//!  exits, reaped by sandbox       ─┘   one loop, awaits nothing but its inputs
//! ```
//!
//! Every input from a kernel carries its generation, so that a late message of an earlier kernel never affects a later one.

mod artifact_patterns;
mod bootstrap;
mod buffer;
mod channels;
mod coalesce;
mod confine;
mod connection;
mod control;
mod egress;
mod execution_context;
mod executions;
mod file_requests;
mod files;
mod folders;
mod input;
mod iopub_pipe;
mod kernel;
mod kernel_host;
mod output_order;
mod output_pipes;
mod positions_page;
mod process_host;
mod process_spawn;
mod process_table;
mod processes;
mod programs;
mod sandbox;
mod shared_memory;
mod socket_memory;
mod uploads;
mod usage;
mod whole_characters;
mod workspace_changes;

use std::io::Write;
use std::process::ExitCode;

use crate::agent_protocol::Listen;

/// Runs the agent until the manager terminates it. `arguments`, without the program's name, are one JSON [`Listen`]: the
/// socket on which first the configuration and then the manager's connections arrive.
pub fn main(arguments: &[String]) -> ExitCode {
    let listen: Listen = match arguments {
        [json] => match serde_json::from_str(json) {
            Ok(listen) => listen,
            Err(error) => return fail(&format!("invalid LISTEN-JSON argument: {error}")),
        },
        _ => return fail("usage: cellkeep-agent LISTEN-JSON (cellkeep starts this program inside a sandbox)"),
    };
    // That of the server is narrower. Files of a session have the usual modes, in every kind of sandbox.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if let Err(error) = confine::protect_agent() {
        return fail(&format!("cannot protect the agent process: {error}"));
    }
    // It is executed by a descriptor, whose number would be its name.
    let _ = rustix::thread::set_name(c"cellkeep-agent");
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot create the runtime: {error}")),
    };
    let local = tokio::task::LocalSet::new();
    let agent = async { sandbox::run(bootstrap::receive_configuration(&listen).await?).await };
    match local.block_on(&runtime, agent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    // Standard error may be closed already; that must not panic.
    let _ = writeln!(std::io::stderr(), "cellkeep-agent: {message}");
    ExitCode::FAILURE
}
