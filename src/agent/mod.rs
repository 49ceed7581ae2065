//! The program inside the sandbox: PID 1, static, one thread.
//!
//! It starts the kernel, owns the kernel's ZeroMQ sockets, and drains them without ever waiting for anyone. What they say
//! becomes numbered events in a bounded buffer ([`buffer`]), kept until the manager has made them safe. So a manager may
//! be slow, die and come back: nothing is lost that the buffer can hold, and what it cannot hold is a named gap.
//!
//! ```text
//!  kernel sockets ─▶ channels ─┐                     ┌─▶ serve (one connection, the newest)
//!  kernel process ─▶ reaper  ──┼─▶ hub ─▶ buffer ────┘
//!  manager frames ─▶ serve   ──┘   one loop, owns all state, awaits nothing but its inputs
//! ```
//!
//! Every input from a kernel carries the generation it belongs to, so that a word from an earlier life never touches a later one.

mod buffer;
mod channels;
mod coalesce;
mod confine;
mod files;
mod handover;
mod hub;
mod kernel;
mod runs;
mod serve;
mod shared_memory;
mod stdio;
mod uploads;
mod usage;

use std::io::Write;
use std::process::ExitCode;

use crate::agent_protocol::Listen;

/// Runs the agent until the manager terminates it. `arguments` are those after the program's name: one JSON [`Listen`],
/// where the configuration and then the manager come.
pub fn main(arguments: &[String]) -> ExitCode {
    let listen: Listen = match arguments {
        [json] => match serde_json::from_str(json) {
            Ok(listen) => listen,
            Err(error) => return fail(&format!("cannot read where to listen: {error}")),
        },
        _ => return fail("usage: cellkeep-agent LISTEN-JSON (started by cellkeep inside a sandbox, not by hand)"),
    };
    if let Err(error) = confine::protect_agent() {
        return fail(&format!("cannot protect itself: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}")),
    };
    let local = tokio::task::LocalSet::new();
    let life = async { hub::run(handover::configuration(&listen).await?).await };
    match local.block_on(&runtime, life) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    // Nobody may be reading any more, which is no reason to panic.
    let _ = writeln!(std::io::stderr(), "cellkeep-agent: {message}");
    ExitCode::FAILURE
}
