//! `cellkeep exec`: run code, print what it prints.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::{Value, json};
use tokio::runtime::Handle as Runtime;

use super::options::{SandboxArgs, exit_of, parse_seconds, write_artifacts};
use super::print::{as_text, is_for_stderr, to_stderr, to_stdout};
use super::signals::Signals;
use super::{Exit, Failure};
use crate::config::Paths;
use crate::kernels::{self, Kernel};
use crate::output::{ArtifactOptions, CellKey, Outputs, StreamStyle, artifacts};
use crate::session::{EventBody, NewCell, RunOptions, RunResult, RunStatus, SessionEvents, SessionHandle, metrics};
use crate::wire::Message;
use crate::wire::content::InputRequest;

/// The largest code that is read; more cannot be sent to a kernel in one piece.
const MAX_CODE: u64 = 16 << 20;
const CELL: CellKey = CellKey(0);

/// Run code and print what it prints. Plots are written with --artifacts.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cellkeep exec -c 'print(6*7)'
  cellkeep exec -k r -c 'plot(cars)' --artifacts plots
  echo 'console.log(1)' | cellkeep exec -k js -
  cellkeep exec script.py --memory 2g --file data.csv

Exit codes: 0 fine, 1 the code failed, 2 usage, 3 no sandbox, 124 timed out, 130 interrupted, 138 the kernel died")]
pub(super) struct ExecArgs {
    /// The kernel: python, r, julia, deno, bash, or an alias (py, js, ts, sh) [default: by the file's name, else python]
    #[arg(short, long, value_name = "NAME")]
    kernel: Option<String>,
    /// The code
    #[arg(short, long, required_unless_present = "file_or_stdin", conflicts_with = "file_or_stdin")]
    code: Option<String>,
    /// A file with the code, or - for standard input
    #[arg(value_name = "FILE|-")]
    file_or_stdin: Option<PathBuf>,
    /// Print one JSON report instead of the output
    #[arg(long)]
    json: bool,
    /// Write images, documents and plot specifications into this folder
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// Stop the code after so many seconds
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) async fn exec(paths: Paths, args: ExecArgs) -> Result<Exit, Failure> {
    let kernel = choose_kernel(&args).map_err(Failure::usage)?;
    let code = read_code(&args).map_err(Failure::usage)?;
    let from_stdin = args.file_or_stdin.as_deref() == Some(Path::new("-"));
    let mut signals = Signals::listen()?;
    let mut session = args.sandbox.session(paths, kernel, Vec::new(), signals.any()).await?;
    let following = signals.follow();
    let _told = following.add(session.handle.clone());
    // Standard input cannot be both the code and the answers.
    let options = RunOptions {
        timeout_seconds: args.timeout.map(|limit| limit.as_secs_f64()),
        allow_stdin: !from_stdin,
        ..RunOptions::default()
    };
    let cell = NewCell { source: code, options, run: true, ..NewCell::default() };
    let ended = match session.handle.add_cell(cell).await {
        Ok(_) => {
            // Asked for just before the session got the code: it knew of nothing to interrupt.
            if following.interruption.is_asked() {
                let _ = session.handle.interrupt().await;
            }
            follow(&session.handle, &mut session.events, args.sandbox.limits().output_memory(), !args.json).await
        }
        Err(error) => Err(error.into()),
    };
    following.finish();
    let destroyed = session.destroy().await;
    let (outputs, result) = ended.map_err(Failure::no_sandbox)?;
    let files = match &args.artifacts {
        Some(folder) => {
            write_artifacts(folder, artifacts(&outputs, CELL, 1, ArtifactOptions::default())).map_err(Failure::usage)?
        }
        None => Vec::new(),
    };
    if args.json {
        tell!("{}", report(&outputs, &result, &files));
    } else {
        tell_end(&outputs, &result, &files, args.artifacts.is_some());
    }
    destroyed.map_err(Failure::no_sandbox)?;
    Ok(exit_of(result.status))
}

fn choose_kernel(args: &ExecArgs) -> anyhow::Result<&'static Kernel> {
    let by_name = args.file_or_stdin.as_deref().and_then(Path::extension).and_then(|extension| extension.to_str());
    let name = args.kernel.as_deref().or(match by_name {
        Some("r" | "R") => Some("r"),
        Some("jl") => Some("julia"),
        Some("js" | "mjs" | "ts" | "jsx" | "tsx") => Some("deno"),
        Some("sh" | "bash") => Some("bash"),
        _ => None,
    });
    Ok(kernels::find(name.unwrap_or("python"))?)
}

fn read_code(args: &ExecArgs) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    match (&args.code, &args.file_or_stdin) {
        (Some(code), _) => return Ok(code.clone()),
        (None, Some(path)) if path == Path::new("-") => {
            std::io::stdin().take(MAX_CODE + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
        }
        (None, Some(path)) => {
            let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            file.take(MAX_CODE + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        }
        (None, None) => return Err(anyhow!("there is no code; give -c CODE, a file, or - for standard input")),
    }
    if bytes.len() as u64 > MAX_CODE {
        return Err(anyhow!("the code is larger than {} MB", MAX_CODE >> 20));
    }
    String::from_utf8(bytes).map_err(|error| anyhow!("the code is not UTF-8 text: {error}"))
}

/// Follows the one cell to its end; prints as it goes if `live`.
async fn follow(
    session: &SessionHandle,
    events: &mut SessionEvents,
    memory: usize,
    live: bool,
) -> anyhow::Result<(Vec<Value>, RunResult)> {
    let mut outputs = Outputs::new(StreamStyle::Terminal).with_memory(memory);
    outputs.start(CELL);
    let questions = asker(session.clone());
    while let Some(event) = events.recv().await {
        match event.body {
            EventBody::Message { msg_type, message } => {
                if live {
                    print_live(&msg_type, &message);
                }
                outputs.apply(CELL, &msg_type, &message.content);
            }
            EventBody::Input { prompt, password } => drop(questions.try_send(InputRequest { prompt, password })),
            EventBody::Finished(result) => return Ok((outputs.finish(CELL), *result)),
            body => {
                if let Some(notice) = body.notice() {
                    say!("cellkeep: {notice}");
                }
            }
        }
    }
    Err(anyhow!("the session ended without a word"))
}

/// Streams go where they belong as they come; displays as their text.
fn print_live(msg_type: &str, message: &Message) {
    let text = as_text(msg_type, message);
    if is_for_stderr(msg_type, message) {
        to_stderr(&text);
    } else {
        to_stdout(&text);
    }
}

/// Where questions go that the terminal is to answer, one after the other. A kernel waits for its answer before it asks again;
/// of questions that come faster, which are nobody's, those are dropped for which there is no place.
fn asker(session: SessionHandle) -> SyncSender<InputRequest> {
    let (questions, asked) = std::sync::mpsc::sync_channel(1);
    // Reading blocks for as long as nobody types. The end of the process ends it.
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        asked.into_iter().for_each(|question| answer_from_terminal(&runtime, &session, question));
    });
    questions
}

/// Asks the person at the terminal, or takes a line of standard input. At its end the code is interrupted.
fn answer_from_terminal(runtime: &Runtime, session: &SessionHandle, InputRequest { prompt, password }: InputRequest) {
    let _ = write!(std::io::stderr(), "{prompt}");
    if password && std::io::stdin().is_terminal() {
        let _ = write!(std::io::stderr(), "(shown as you type) ");
    }
    let mut line = String::new();
    // A session that is over needs no answer.
    let _ = match std::io::stdin().read_line(&mut line) {
        Ok(1..) => runtime.block_on(session.input(line.trim_end_matches(['\n', '\r']))),
        _ => {
            say!("cellkeep: the code asks for input and there is none; interrupting it");
            runtime.block_on(session.interrupt())
        }
    };
}

fn tell_end(outputs: &[Value], result: &RunResult, files: &[PathBuf], told_where: bool) {
    for file in files {
        say!("wrote {}", file.display());
    }
    let pictures = artifacts(outputs, CELL, 1, ArtifactOptions::default()).len();
    if pictures > 0 && !told_where {
        say!("cellkeep: {pictures} plot file(s) were not kept; --artifacts DIR writes them");
    }
    // An ordinary error has been printed already, as an output.
    if let Some(error) = result.error.as_ref().filter(|_| !matches!(result.status, RunStatus::Ok | RunStatus::Error)) {
        say!("cellkeep: {}", error.evalue);
    }
}

fn report(outputs: &[Value], result: &RunResult, files: &[PathBuf]) -> Value {
    json!({
        "status": result.status.name(),
        "execution_count": result.execution_count,
        "outputs": outputs,
        "error": result.error.as_ref().map(|error| json!({
            "ename": error.ename, "evalue": error.evalue, "traceback": error.traceback,
        })),
        "metrics": metrics(result),
        "artifacts": files,
    })
}
