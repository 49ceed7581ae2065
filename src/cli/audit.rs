//! `cellkeep audit`: reads and checks the audit log of a server.

use clap::Args;
use serde_json::Value;

use super::{Exit, Failure};
use crate::audit;
use crate::config::Paths;

/// Print the audit log of a server, oldest first, and check that nothing in it was changed.
#[derive(Args)]
#[command(after_help = "\
Each line is a JSON object with who did what to which session, file, share or token, with which result.
The summary on standard error ends with the hash of the last line. Keep it elsewhere, and pass it to --expect later:
somebody who can write the files can compute all hashes again, but no other log contains this hash.
Exits with 1 if the chain is broken or lacks the expected hash.")]
pub(super) struct AuditArgs {
    /// Only lines about this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only lines about what this principal did
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// Only lines about what was refused or has failed
    #[arg(long)]
    refused: bool,
    /// Check that the log contains a line with this hash
    #[arg(long, value_name = "HASH")]
    expect: Option<String>,
    /// Print only the summary
    #[arg(long)]
    quiet: bool,
}

impl AuditArgs {
    fn shows(&self, line: &Value) -> bool {
        let is = |field: &str, wanted: &Option<String>| wanted.as_deref().is_none_or(|wanted| line[field] == wanted);
        let is_refused = line["status"].as_u64().is_some_and(|status| status >= 400);
        is("session", &self.session) && is("principal", &self.principal) && (is_refused || !self.refused)
    }
}

pub(super) fn run(paths: &Paths, args: &AuditArgs) -> Result<Exit, Failure> {
    let mut is_expected = args.expect.is_none();
    let check = audit::read(paths, |line| {
        is_expected |= args.expect.as_deref() == Some(line.hash);
        if !args.quiet && args.shows(line.value) {
            print_line!("{}", line.text);
        }
    });
    let check = check.map_err(Failure::usage)?;
    for at in &check.breaks {
        eprint_line!("the chain is broken at {at}: a line before it was changed or removed, or this one was added");
    }
    if !is_expected {
        eprint_line!("no line has the expected hash: the log was changed, or the line is older than what is kept");
    }
    let beginning = if check.is_from_start || check.lines == 0 { "" } else { "; older lines were removed" };
    eprint_line!("{} lines{beginning}, last hash {}", check.lines, check.last_hash);
    Ok(if check.breaks.is_empty() && is_expected { Exit::Ok } else { Exit::CellFailed })
}
