//! The `cellkeep` command. See [`cellkeep::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cellkeep::cli::main()
}
