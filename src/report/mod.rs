//! The report of one execution: what the code printed, its files and plots, what it used, and what can be done about its error.
//! `POST /v1/execute` and `cellkeep exec --json` give the same. Pure.
//!
//! The shape has its own field names in camel case, which clients of other services know.

mod plots;
mod suggestions;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::agent_protocol::FileChange;
use crate::mime;
use crate::output::{strip_ansi, text_of};
use crate::session::{ExecutionResult, ExecutionStatus};
use crate::wire::content::ErrorInfo;
pub use plots::Plot;
pub use suggestions::{Failure, Surroundings, Wanted, wanted};

/// All files of a report together have at most this many bytes.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// The end of standard error in which rules look for messages, bytes: some kernels print the reason of an error there.
const STDERR_TAIL: usize = 4 << 10;

/// What an execution has left.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(examples(json!({
    "executionId": "4f1f6a0e-3d0e-4a63-9d3b-3a1c37b2a9c1", "status": "success",
    "output": {"stdout": "42\n", "stderr": "", "exitCode": 0}, "results": {"files": [], "plots": [], "notReturned": []},
    "metrics": {"executionTime": 3.1, "peakMemory": 61.4, "cpuUsage": 87.5}, "error": null
})))]
pub struct ExecutionReport {
    /// The id of the execution. It is that of its session while that exists.
    pub execution_id: String,
    pub status: ReportStatus,
    pub output: ReportOutput,
    pub results: ReportResults,
    pub metrics: ReportMetrics,
    /// Present where the status is not `success`.
    #[schema(required)]
    pub error: Option<ReportError>,
}

/// How the execution ended. What it left until then is in the report in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReportStatus {
    Success,
    /// The code raised an error, or was stopped for another reason, which the error names.
    Error,
    Timeout,
    MemoryExceeded,
}

/// What the code printed, as plain text.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportOutput {
    /// Standard output, and the text of displayed values, in their order.
    pub stdout: String,
    pub stderr: String,
    /// 0 after success. For bash and calls like `sys.exit(3)` the status that the code gave; 124 after a timeout, 137 if memory was
    /// exceeded or the kernel ended, else 1.
    pub exit_code: i32,
}

/// The files and plots of an execution.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportResults {
    /// The files that were asked for and that the execution made or changed, by path.
    pub files: Vec<ReportFile>,
    /// The plots that it displayed.
    pub plots: Vec<Plot>,
    /// What was asked for and is not in `files`.
    pub not_returned: Vec<NotReturned>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ReportFile {
    /// Relative to the workspace.
    pub path: String,
    /// The text, or base64.
    pub content: String,
    pub encoding: FileEncoding,
    #[serde(rename = "type")]
    pub kind: FileKind,
    pub mime: String,
    /// The size in bytes.
    pub size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ReportFileEncoding)]
pub enum FileEncoding {
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

/// The kind of a file, by its type and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ReportFileType)]
pub enum FileKind {
    Data,
    /// An image, a PDF, or the specification of a plot.
    Plot,
    Log,
}

/// A file or pattern that was asked for, and why it is not in the report.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct NotReturned {
    pub path: String,
    pub reason: String,
}

/// What the execution used.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportMetrics {
    /// Milliseconds, without the start of the kernel.
    pub execution_time: f64,
    /// The largest memory of all processes of the sandbox up to the end, in MB (2^20 bytes). Null if it is not known.
    #[schema(required)]
    pub peak_memory: Option<f64>,
    /// CPU time of all processes in percent of the execution's time: 100 is one CPU. Null if it is not known, as after the death of
    /// the kernel.
    #[schema(required)]
    pub cpu_usage: Option<f64>,
}

/// Why the execution did not succeed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportError {
    /// The class of the error in the words of the language, such as `ValueError`.
    #[serde(rename = "type")]
    pub kind: String,
    pub message: String,
    /// As plain text; empty where the kernel gives none.
    pub stack_trace: String,
    /// What can be done about it, the likeliest first.
    pub suggestions: Vec<String>,
}

/// A file that is kept of an execution, or known not to be.
pub struct KeptFile {
    pub change: FileChange,
    /// `None` if the content is not kept.
    pub content: Option<Vec<u8>>,
}

/// The end of an execution, from which a report is made.
pub struct Finished<'a> {
    pub execution_id: String,
    /// The name of the kernel's language.
    pub language: &'a str,
    pub code: &'a str,
    pub result: &'a ExecutionResult,
    /// As nbformat objects, with inline data.
    pub outputs: &'a [Value],
    pub files: Vec<KeptFile>,
    /// The patterns that were asked for.
    pub patterns: &'a [String],
    /// The peak memory of the sandbox in bytes, for an execution whose own is not known.
    pub sandbox_peak: Option<u64>,
    pub surroundings: &'a Surroundings,
}

impl ReportOutput {
    /// `outputs`: nbformat objects.
    pub fn new(result: &ExecutionResult, outputs: &[Value]) -> Self {
        Self::with_plots(result, outputs).0
    }

    /// The text, and the plots that it leaves out: the text beside a plot only names it.
    fn with_plots(result: &ExecutionResult, outputs: &[Value]) -> (Self, Vec<Plot>) {
        let (mut shown, mut plots) = (Vec::new(), Vec::new());
        for output in outputs {
            match plots::of_output(output) {
                Some(plot) => plots.push(plot),
                None if is_stream(output, "stdout") || is_display(output) => shown.push(output.clone()),
                None => {}
            }
        }
        let stdout = strip_ansi(&text_of(&shown));
        (Self { stdout, stderr: stream(outputs, "stderr"), exit_code: exit_code(result) }, plots)
    }
}

impl ExecutionReport {
    pub fn new(finished: Finished<'_>) -> Self {
        let Finished { result, outputs, .. } = finished;
        let status = status_of(result.status);
        let (output, plots) = ReportOutput::with_plots(result, outputs);
        let error = (status != ReportStatus::Success).then(|| {
            let failure = failure(finished.language, finished.code, result, outputs);
            let suggestions = suggestions::suggest(&failure, finished.surroundings);
            let ErrorInfo { ename, evalue, traceback, .. } = result.error.clone().unwrap_or_default();
            ReportError {
                kind: ename,
                message: strip_ansi(&evalue),
                stack_trace: strip_ansi(&traceback.join("\n")),
                suggestions,
            }
        });
        let (files, not_returned) = files_of(finished.files, finished.patterns);
        Self {
            execution_id: finished.execution_id,
            status,
            output,
            results: ReportResults { files, plots, not_returned },
            metrics: metrics_of(result, finished.sandbox_peak),
            error,
        }
    }

    /// Leaves out what the code printed.
    pub fn without_output(mut self) -> Self {
        (self.output.stdout, self.output.stderr) = (String::new(), String::new());
        self
    }
}

/// What the rules for suggestions look at.
pub fn failure<'a>(language: &'a str, code: &'a str, result: &'a ExecutionResult, outputs: &[Value]) -> Failure<'a> {
    let (kind, message) = result.error.as_ref().map_or(("", ""), |error| (error.ename.as_str(), error.evalue.as_str()));
    let stderr = stream(outputs, "stderr");
    let tail = stderr.ceil_char_boundary(stderr.len().saturating_sub(STDERR_TAIL));
    Failure {
        language,
        code,
        status: status_of(result.status),
        text: format!("{}\n{kind}: {}", &stderr[tail..], strip_ansi(message)),
    }
}

fn status_of(status: ExecutionStatus) -> ReportStatus {
    match status {
        ExecutionStatus::Ok => ReportStatus::Success,
        ExecutionStatus::Timeout => ReportStatus::Timeout,
        ExecutionStatus::MemoryExceeded => ReportStatus::MemoryExceeded,
        ExecutionStatus::Error
        | ExecutionStatus::Interrupted
        | ExecutionStatus::OutputExceeded
        | ExecutionStatus::KernelDied
        | ExecutionStatus::Cancelled => ReportStatus::Error,
    }
}

/// As shells have it.
fn exit_code(result: &ExecutionResult) -> i32 {
    let given = || {
        let error = result.error.as_ref()?;
        let text = match error.ename.as_str() {
            "SystemExit" => error.evalue.as_str(),
            // bash: "exit status 127", "the shell exited with status 7 (exit, ...".
            _ => error.evalue.split_once("status ")?.1.split(' ').next()?,
        };
        text.trim().parse().ok().filter(|code| (1..=255).contains(code))
    };
    match result.status {
        ExecutionStatus::Ok => 0,
        ExecutionStatus::Timeout => 124,
        ExecutionStatus::Interrupted => 130,
        ExecutionStatus::MemoryExceeded | ExecutionStatus::KernelDied => 137,
        ExecutionStatus::Error => given().unwrap_or(1),
        ExecutionStatus::OutputExceeded | ExecutionStatus::Cancelled => 1,
    }
}

fn is_stream(output: &Value, name: &str) -> bool {
    output["output_type"] == "stream" && output["name"] == name
}

fn stream(outputs: &[Value], name: &str) -> String {
    let wanted = outputs.iter().filter(|output| is_stream(output, name));
    strip_ansi(&text_of(&wanted.cloned().collect::<Vec<_>>()))
}

fn is_display(output: &Value) -> bool {
    output["output_type"] == "execute_result" || output["output_type"] == "display_data"
}

fn metrics_of(result: &ExecutionResult, sandbox_peak: Option<u64>) -> ReportMetrics {
    let wall_ms = result.wall.as_secs_f64() * 1000.0;
    let peak = result.used.as_ref().map(|used| used.peak_memory_bytes).or(sandbox_peak);
    let cpu = result.used.as_ref().filter(|_| wall_ms > 0.0).map(|used| used.cpu_seconds * 1000.0 / wall_ms * 100.0);
    ReportMetrics {
        execution_time: round(wall_ms),
        peak_memory: peak.map(|bytes| round(bytes as f64 / f64::from(1 << 20))),
        cpu_usage: cpu.map(round),
    }
}

/// To three decimals, so that reports are readable.
fn round(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// The files that are returned, and what is not.
fn files_of(kept: Vec<KeptFile>, patterns: &[String]) -> (Vec<ReportFile>, Vec<NotReturned>) {
    let (mut files, mut missing) = (Vec::new(), Vec::new());
    let mut total = 0;
    for KeptFile { change, content } in kept {
        let refused = |reason: String| NotReturned { path: change.path.clone(), reason };
        match content {
            Some(content) if total + content.len() as u64 <= MAX_FILE_BYTES => {
                total += content.len() as u64;
                files.push(report_file(change.path, content));
            }
            _ => {
                let too_large = || format!("all files together exceed {} MB", MAX_FILE_BYTES >> 20);
                missing.push(refused(change.not_kept.clone().unwrap_or_else(too_large)));
            }
        }
    }
    let is_known = |pattern: &str| {
        let mut paths = files.iter().map(|file| &file.path).chain(missing.iter().map(|missing| &missing.path));
        is_pattern(pattern) || paths.any(|path| names(pattern, path))
    };
    let unknown = patterns
        .iter()
        .filter(|pattern| !is_known(pattern))
        .map(|pattern| NotReturned { path: pattern.clone(), reason: "the code made no such file".to_owned() });
    let unknown: Vec<NotReturned> = unknown.collect();
    missing.extend(unknown);
    (files, missing)
}

/// Whether it can match several files, so that it need not match one.
fn is_pattern(pattern: &str) -> bool {
    pattern.ends_with('/') || pattern.contains(['*', '?', '['])
}

/// Whether a plain name or path stands for this file: a name without a folder matches in all folders.
fn names(pattern: &str, path: &str) -> bool {
    path == pattern || !pattern.contains('/') && path.rsplit('/').next() == Some(pattern)
}

fn report_file(path: String, content: Vec<u8>) -> ReportFile {
    let mime = mime::of_name_or_bytes(&path).to_owned();
    let size = content.len() as u64;
    let kind = kind_of(&path, &mime);
    let (content, encoding) = match String::from_utf8(content) {
        Ok(text) if !text.contains('\0') => (text, FileEncoding::Utf8),
        Ok(text) => (STANDARD.encode(text), FileEncoding::Base64),
        Err(bytes) => (STANDARD.encode(bytes.as_bytes()), FileEncoding::Base64),
    };
    ReportFile { path, content, encoding, kind, mime, size }
}

fn kind_of(path: &str, mime: &str) -> FileKind {
    let ending = path.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    if mime.starts_with("image/") || mime == "application/pdf" {
        FileKind::Plot
    } else if matches!(ending.as_str(), "log" | "out" | "err") {
        FileKind::Log
    } else {
        FileKind::Data
    }
}

#[cfg(test)]
mod tests;
