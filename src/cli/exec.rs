//! `cellkeep exec`: runs code and prints its output.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::Value;
use tokio::runtime::Handle as Runtime;

use super::exec_report::{self, CollectedFiles, Ran};
use super::options::{SandboxArgs, exit_for, parse_seconds, write_artifacts};
use super::print::{as_text, is_for_stderr, to_stderr, to_stdout};
use super::signals::Signals;
use super::{Exit, Failure, shell};
use crate::config::Paths;
use crate::kernels::{self, KernelSpec};
use crate::languages;
use crate::output::{ArtifactOptions, OutputTarget, Outputs, StreamStyle, artifacts};
use crate::policy::check_artifact_patterns;
use crate::session::{
    EventBody, ExecutionContext, ExecutionOptions, ExecutionResult, ExecutionStatus, NewCell, SessionEvents, SessionHandle,
};
use crate::wire::Message;
use crate::wire::content::InputRequest;

/// The largest source that is accepted, bytes: one message to a kernel cannot be larger.
const MAX_CODE: u64 = 16 << 20;
const CELL: OutputTarget = OutputTarget::cell(0);

/// Run code and print its output. --artifacts writes plots to files.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cellkeep exec -c 'print(6*7)'
  cellkeep exec -k r -c 'plot(cars)' --artifacts plots
  echo 'console.log(1)' | cellkeep exec -k js -
  cellkeep exec script.py --memory 2g --file data.csv
  cellkeep exec --packages humanize -c 'import humanize; print(humanize.naturalsize(1e9))'
  cellkeep exec --artifacts out --return-file '*.csv' script.py
  cellkeep exec --json script.py
  cellkeep exec --file data.csv --shell 'wc -l data.csv'
  cellkeep exec --shell                      an interactive bash in a sandbox

Exit codes: 0 ok, 1 the code failed, 2 usage, 3 no sandbox, 124 timed out, 130 interrupted, 138 the kernel died.
With --shell, the exit code is the command's")]
pub(super) struct ExecArgs {
    /// The kernel: python, r, julia, deno, bash, or an alias (py, js, ts, sh) [default: from the file extension, else
    /// python]
    #[arg(short, long, value_name = "NAME")]
    kernel: Option<String>,
    /// The code to run
    #[arg(short, long, required_unless_present_any = ["file_or_stdin", "shell"], conflicts_with_all = ["file_or_stdin", "shell"])]
    code: Option<String>,
    /// A file with the code to run, or - for standard input
    #[arg(value_name = "FILE|-", conflicts_with = "shell")]
    file_or_stdin: Option<PathBuf>,
    /// Run a command line of bash instead of code, with this terminal or these pipes; without one, an interactive bash. -k
    /// chooses whose packages it has
    #[arg(
        long, value_name = "LINE", num_args = 0..=1, default_missing_value = "exec bash", conflicts_with_all = ["json", "artifacts"]
    )]
    shell: Option<String>,
    /// Print a JSON report instead of the output, the one of POST /v1/execute: text, plots, files, metrics, and for errors
    /// suggestions
    #[arg(long)]
    json: bool,
    /// A file of the workspace that the report (--json) and the folder of --artifacts get if the code makes or changes it: out.csv,
    /// *.csv (in any folder), output/ (all in it)
    #[arg(long = "return-file", value_name = "PATTERN")]
    return_files: Vec<String>,
    /// Write images, documents and plot specifications into this folder
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// Time limit in seconds
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) async fn exec(paths: Paths, args: ExecArgs) -> Result<Exit, Failure> {
    let kernel = choose_kernel(&args).map_err(Failure::usage)?;
    if let Some(line) = &args.shell {
        return shell::run(paths, &args.sandbox, kernel, line, args.timeout).await;
    }
    let code = read_code(&args).map_err(Failure::usage)?;
    check_artifact_patterns(&args.return_files).map_err(Failure::usage)?;
    if !args.return_files.is_empty() && !args.json && args.artifacts.is_none() {
        return Err(Failure::usage(anyhow!("--return-file needs --json or --artifacts DIR, where the files go")));
    }
    let from_stdin = args.file_or_stdin.as_deref() == Some(Path::new("-"));
    let mut signals = Signals::listen()?;
    let packages = args.sandbox.install(&paths, kernel, &[], signals.any()).await?;
    let mut session = args.sandbox.session(paths, kernel, Vec::new(), packages, signals.any()).await?;
    let forwarder = signals.forward();
    let _forwarding = forwarder.register(session.handle.clone());
    // Standard input cannot supply both the code and the answers to its prompts.
    let options = ExecutionOptions {
        timeout_seconds: args.timeout.map(|limit| limit.as_secs_f64()),
        allow_stdin: !from_stdin,
        context: ExecutionContext { artifacts: args.return_files.clone(), ..ExecutionContext::default() },
        ..ExecutionOptions::default()
    };
    let cell = NewCell { source: code.clone(), options, run: true, ..NewCell::default() };
    let finished = match session.handle.add_cell(cell).await {
        Ok(_) => {
            // A signal that came before the cell was queued found nothing to interrupt.
            if forwarder.interrupt.is_requested() {
                let _ = session.handle.interrupt().await;
            }
            run_to_end(&session.handle, &mut session.events, args.sandbox.limits(kernel).output_memory(), !args.json).await
        }
        Err(error) => Err(error.into()),
    };
    forwarder.finish();
    let destroyed = session.destroy().await;
    let Ended { outputs, result, returned } = finished.map_err(Failure::no_sandbox)?;
    let files = match &args.artifacts {
        Some(folder) => {
            let plots = artifacts(&outputs, 1, ArtifactOptions::default());
            let mut written = write_artifacts(folder, plots).map_err(Failure::usage)?;
            written.extend(returned.write(folder).map_err(Failure::usage)?);
            written
        }
        None => Vec::new(),
    };
    if args.json {
        let timeout_seconds = args.timeout.unwrap_or_default().as_secs_f64();
        let ran = Ran { kernel, code: &code, patterns: &args.return_files, timeout_seconds };
        let report = exec_report::report(&ran, &args.sandbox, &outputs, &result, returned);
        print_line!("{}", serde_json::to_string(&report).context("cannot write the report").map_err(Failure::usage)?);
    } else {
        print_summary(&outputs, &result, &files, args.artifacts.is_some());
    }
    destroyed.map_err(Failure::no_sandbox)?;
    Ok(exit_for(result.status))
}

fn choose_kernel(args: &ExecArgs) -> anyhow::Result<&'static KernelSpec> {
    let by_extension = args.file_or_stdin.as_deref().and_then(Path::extension).and_then(|extension| extension.to_str());
    let by_extension = by_extension.and_then(languages::of_source_file).map(|language| language.name.as_str());
    let name = args.kernel.as_deref().or(by_extension);
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
        (None, None) => return Err(anyhow!("no code; give -c CODE, a file, or - for standard input")),
    }
    if bytes.len() as u64 > MAX_CODE {
        return Err(anyhow!("the code is larger than the limit of {} MB", MAX_CODE >> 20));
    }
    String::from_utf8(bytes).map_err(|error| anyhow!("the code is not UTF-8 text: {error}"))
}

/// What a cell leaves at its end.
struct Ended {
    outputs: Vec<Value>,
    result: ExecutionResult,
    returned: CollectedFiles,
}

/// Collects the outputs of the cell until it finishes; prints them as they arrive if `live`. `memory`: cap of the outputs,
/// bytes.
async fn run_to_end(
    session: &SessionHandle,
    events: &mut SessionEvents,
    memory: usize,
    live: bool,
) -> anyhow::Result<Ended> {
    let mut returned = CollectedFiles::default();
    let mut outputs = Outputs::new(StreamStyle::Terminal).with_memory(memory);
    outputs.start(CELL);
    let prompts = spawn_prompter(session.clone());
    while let Some(event) = events.recv().await {
        match event.body {
            EventBody::Message { msg_type, message } => {
                if live {
                    print_live(&msg_type, &message);
                }
                outputs.apply(CELL, &msg_type, &message.content);
            }
            EventBody::Input { prompt, password } => drop(prompts.try_send(InputRequest { prompt, password })),
            EventBody::Finished(result) => {
                return Ok(Ended { outputs: outputs.finish(CELL), result: *result, returned });
            }
            body => {
                returned.add(&body);
                if let Some(notice) = body.notice() {
                    eprint_line!("cellkeep: {notice}");
                }
            }
        }
    }
    Err(anyhow!("the session ended before the code finished"))
}

/// Prints an output: stdout and displays to standard output, stderr and errors to standard error.
fn print_live(msg_type: &str, message: &Message) {
    let text = as_text(msg_type, message);
    if is_for_stderr(msg_type, message) {
        to_stderr(&text);
    } else {
        to_stdout(&text);
    }
}

/// Starts a thread that answers the code's input requests from the terminal, one at a time. A kernel waits for an answer
/// before it asks again; requests that arrive faster are forged, and dropped when the channel is full.
fn spawn_prompter(session: SessionHandle) -> SyncSender<InputRequest> {
    let (sender, requests) = std::sync::mpsc::sync_channel(1);
    // A read blocks until a line is typed. Only the end of the process ends this thread.
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        requests.into_iter().for_each(|request| answer_from_terminal(&runtime, &session, request));
    });
    sender
}

/// Prints the prompt and sends a line of standard input to the code. At the end of input the code is interrupted.
fn answer_from_terminal(runtime: &Runtime, session: &SessionHandle, InputRequest { prompt, password }: InputRequest) {
    let _ = write!(std::io::stderr(), "{prompt}");
    if password && std::io::stdin().is_terminal() {
        let _ = write!(std::io::stderr(), "(your input is visible) ");
    }
    let mut line = String::new();
    // Fails only for a session that has ended.
    let _ = match std::io::stdin().read_line(&mut line) {
        Ok(1..) => runtime.block_on(session.input(line.trim_end_matches(['\n', '\r']))),
        _ => {
            eprint_line!("cellkeep: the code requests input, but standard input has ended; interrupting it");
            runtime.block_on(session.interrupt())
        }
    };
}

fn print_summary(outputs: &[Value], result: &ExecutionResult, files: &[PathBuf], are_written: bool) {
    for file in files {
        eprint_line!("wrote {}", file.display());
    }
    let pictures = artifacts(outputs, 1, ArtifactOptions::default()).len();
    if pictures > 0 && !are_written {
        eprint_line!("cellkeep: {pictures} plot file(s) were not written; use --artifacts DIR to keep them");
    }
    // Ordinary errors were printed as outputs. Some kernels only say that there is one.
    let is_printed =
        result.status == ExecutionStatus::Error && outputs.iter().any(|output| output["output_type"] == "error");
    if let Some(error) = result.error.as_ref().filter(|_| result.status != ExecutionStatus::Ok && !is_printed) {
        eprint_line!("cellkeep: {}", error.evalue);
    }
}
