//! The program inside a sandbox. See [`cellkeep::agent`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    cellkeep::agent::main(&arguments)
}
