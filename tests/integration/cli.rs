//! The command line for people and scripts: exit codes, pipes, invalid input, signals.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cellkeep::config::Paths;
use serde_json::{Value, json};

use crate::support::{require_setup, skip};

/// A call of the `cellkeep` binary.
pub struct Cli {
    command: Command,
    input: Vec<u8>,
}

pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Cli {
    pub fn new(arguments: &[&str]) -> Self {
        require_setup();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellkeep"));
        command.args(arguments);
        Self { command, input: Vec::new() }
    }

    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn path(mut self, path: &Path) -> Self {
        self.command.arg(path);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs as another user; `None` is the current one.
    pub fn uid(mut self, uid: Option<u32>) -> Self {
        if let Some(uid) = uid {
            self.command.uid(uid).gid(uid);
        }
        self
    }

    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = bytes.to_vec();
        self
    }

    pub fn start(mut self) -> Child {
        let mut child = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::spawn(move || drop(stdin.write_all(&self.input)));
        child
    }

    pub fn run(self) -> Done {
        let output = self.start().wait_with_output().unwrap();
        Done {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// An empty folder for one test.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn code_cell(source: &str, tags: &[&str]) -> Value {
    json!({"cell_type": "code", "id": format!("c{:x}", source.len() * 7919 + tags.len()), "metadata": {"tags": tags}, "execution_count": null, "outputs": [], "source": source})
}

fn write_notebook(folder: &Path, cells: &[Value]) -> PathBuf {
    let path = folder.join("nb.ipynb");
    let metadata = json!({"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "mine": {"kept": 12345678901234567890123_f64}});
    let notebook = json!({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells});
    std::fs::write(&path, notebook.to_string()).unwrap();
    path
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn exec_prints_output_of_the_code() {
    let ran = Cli::new(&["exec", "-c", "import sys\nprint('out')\nprint('err', file=sys.stderr)\n6*7"]).run();
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "out\n42\n"), "{}", ran.stderr);
    assert_eq!(ran.stderr, "err\n");
}

#[test]
fn failed_write_to_stdout_is_an_error() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for arguments in [&["exec", "-c", "print(1)"][..], &["exec", "--json", "-c", "1"], &["kernels", "list"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_cellkeep")).args(arguments).stdout(full()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains("No space left"), "{stderr}");
    }
    // A closed pipe is not an error.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let arguments = ["exec", "-c", "print(1)"];
    let output = Command::new(env!("CARGO_BIN_EXE_cellkeep")).args(arguments).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn exec_reads_code_and_answers_from_pipes() {
    let ran = Cli::new(&["exec", "-"]).input(b"print('piped')").run();
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "piped\n"), "{}", ran.stderr);
    let folder = scratch("exec-file");
    std::fs::write(folder.join("script.sh"), "echo from $0 bash").unwrap();
    let ran = Cli::new(&["exec"]).path(&folder.join("script.sh")).run();
    assert!(ran.code == 0 && ran.stdout.contains("bash"), "{} {}", ran.stdout, ran.stderr);
    let ran = Cli::new(&["exec", "-c", "print('hello', input())"]).input(b"you\n").run();
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "hello you\n"), "{}", ran.stderr);
    let ran = Cli::new(&["exec", "-c", "input()"]).run();
    assert_eq!(ran.code, 130, "no input: interrupted, not hung: {}", ran.stderr);
    std::fs::write(folder.join("data.csv"), "a,b\n1,2\n").unwrap();
    let ran = Cli::new(&["exec", "-c", "print(open('data.csv').read())", "--file"]).path(&folder.join("data.csv")).run();
    assert!(ran.stdout.contains("1,2"), "{}", ran.stderr);
}

#[test]
fn exec_shell_passes_streams_and_exit_on() {
    let folder = scratch("exec-shell");
    std::fs::write(folder.join("data.csv"), "a,b\n1,2\n").unwrap();
    let line = "wc -l data.csv; echo $COLOUR >&2; exit 5";
    let ran = Cli::new(&["exec", "--shell", line, "--env", "COLOUR=blue", "--file"]).path(&folder.join("data.csv")).run();
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (5, "2 data.csv\n", "blue\n"));
    // More input and output than is kept, and bytes as they are.
    let input: Vec<u8> = (0..24 << 20).map(|at: u32| (at % 251) as u8).collect();
    let child = Cli::new(&["exec", "--shell", "cat"]).input(&input).start();
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout == input, "{} of {} bytes", output.stdout.len(), input.len());
    assert_eq!(Cli::new(&["exec", "--shell", "kill -TERM $$"]).run().code, 143);
    assert_eq!(Cli::new(&["exec", "--shell", "sleep 1000", "--timeout", "0.3"]).run().code, 124);
    assert_eq!(Cli::new(&["exec", "--shell", "no-such-program"]).run().code, 127);
    assert_eq!(Cli::new(&["exec", "--shell", "ls", "-c", "1"]).run().code, 2);
    let line = "trap 'echo interrupted; exit 9' INT; echo up; while :; do sleep 0.1; done";
    let mut child = Cli::new(&["exec", "--shell", line]).start();
    wait_for(&mut child, "up");
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(9));
}

/// The priority of the kernel must not be higher than that of the command.
#[test]
fn kernels_start_with_the_lowest_priority() {
    let output = Command::new("nice")
        .args(["-n", "19", env!("CARGO_BIN_EXE_cellkeep"), "exec", "-c", "import os; print(os.nice(0))"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "19\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn forged_input_requests_need_few_threads() {
    // More input requests than any real kernel sends, and nobody answers. They must not start a thread each.
    let code = "k = get_ipython().kernel
ident, parent = k._shell_parent_ident.get(), k.get_parent()
for i in range(2000):
    k.session.send(k.stdin_socket, 'input_request', {'prompt': 'forged ', 'password': False}, parent, ident=ident)
import time; time.sleep(1); print('asked', flush=True); time.sleep(600)";
    let mut child = Command::new(env!("CARGO_BIN_EXE_cellkeep"))
        .args(["exec", "-c", code])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&mut child, "asked");
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let threads: u32 = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap().trim().parse().unwrap();
    assert!(threads < 20, "{threads} threads");
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
}

#[test]
fn exec_writes_plots_and_reports() {
    let folder = scratch("exec-plots");
    let code = "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\n1/0";
    let ran = Cli::new(&["exec", "--json", "-c", code, "--artifacts"]).path(&folder).run();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["status"], "error");
    assert_eq!(report["error"]["type"], "ZeroDivisionError");
    assert_eq!(report["results"]["plots"][0]["format"], "png");
    let files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() == 1 && std::fs::read(&files[0]).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn exit_codes_distinguish_failures() {
    for (arguments, code) in [
        (vec!["-c", "1/0"], 1),
        (vec!["-c", "import os; os._exit(1)"], 138),
        (vec!["-c", "x = [bytearray(8 << 20) for _ in range(1000)]", "--memory", "128m"], 138),
        (vec!["-c", "import time; time.sleep(600)", "--timeout", "0.5"], 124),
        (vec!["-c", "1", "-k", "cobol"], 2),
        (vec!["-c", "1", "--memory", "much"], 2),
        (vec!["-c", "1", "--memory", "1m"], 2),
        (vec!["-c", "1", "--cpus", "0"], 2),
        (vec!["no-such-file.py"], 2),
        (vec![], 2),
    ] {
        let ran = Cli::new(&["exec"]).args(&arguments).run();
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    let ran = Cli::new(&["exec", "-c", "1", "-k", "cobol"]).run();
    assert!(ran.stderr.contains("python") && ran.stderr.contains("kernels list"), "{}", ran.stderr);
}

#[test]
fn code_never_runs_without_sandbox() {
    let folder = scratch("no-sandbox");
    let ran =
        Cli::new(&["exec", "-c", "print('ran')"]).env("PATH", "/nowhere").env("DOCKER_HOST", "unix:///nowhere.sock").run();
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stdout.is_empty() && ran.stderr.contains("bubblewrap") && ran.stderr.contains("doctor"), "{}", ran.stderr);
    let ran = Cli::new(&["exec", "-c", "1", "--sandbox", "docker"]).env("DOCKER_HOST", "unix:///nowhere.sock").run();
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let ran = Cli::new(&["exec", "-c", "1", "--sandbox", "process", "--data"]).path(&folder).run();
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("cellkeep kernels install python"), "{}", ran.stderr);
}

#[test]
fn failed_run_is_written_with_unknown_metadata() {
    let folder = scratch("run-failure");
    let cells = [
        code_cell("print('one')", &[]),
        code_cell("1/0", &["raises-exception"]),
        code_cell("print('skipped')", &["skip-execution"]),
        code_cell("raise ValueError('two')", &[]),
        code_cell("print('never')", &[]),
    ];
    let notebook = write_notebook(&folder, &cells);
    let before: Value = read_json(&notebook);
    let ran = Cli::new(&["run", "--json"]).path(&notebook).run();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["status"], "error");
    assert_eq!(report["cells"].as_array().unwrap().len(), 3);
    let executed = read_json(&folder.join("nb.out.ipynb"));
    assert_eq!(executed["metadata"]["mine"], before["metadata"]["mine"]);
    assert_eq!(executed["metadata"]["language_info"]["name"], "python");
    let outputs = |cell: usize| executed["cells"][cell]["outputs"].clone();
    assert_eq!(outputs(0)[0]["text"], json!(["one\n"]));
    assert_eq!(outputs(1)[0]["ename"], "ZeroDivisionError");
    assert_eq!(outputs(2), json!([]));
    assert_eq!(outputs(3)[0]["ename"], "ValueError");
    assert_eq!(outputs(4), json!([]));
    assert_eq!(executed["cells"][3]["execution_count"], 3);
    let ran = Cli::new(&["run", "--allow-errors"]).path(&notebook).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(read_json(&folder.join("nb.out.ipynb"))["cells"][4]["outputs"][0]["text"], json!(["never\n"]));
}

#[test]
fn parameters_reach_the_kernel_typed() {
    let folder = scratch("run-parameters");
    let cells = [code_cell("a = b = c = d = 0", &["parameters"]), code_cell("print(repr((a, b, c, d)))", &[])];
    let notebook = write_notebook(&folder, &cells);
    std::fs::write(folder.join("params.yaml"), "a: over\nd: [1, {k: \"it's $x\"}]\n").unwrap();
    let ran = Cli::new(&["run", "-p", "a", "-7", "-r", "b", "07", "-p", "c", "None", "-f"])
        .path(&folder.join("params.yaml"))
        .path(&notebook)
        .run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let executed = read_json(&folder.join("nb.out.ipynb"));
    let text = executed["cells"][2]["outputs"][0]["text"][0].as_str().unwrap().to_owned();
    assert_eq!(text.trim(), r#"(-7, '07', None, [1, {'k': "it's $x"}])"#);
    let ran = Cli::new(&["run", "-p", "a b", "1"]).path(&notebook).run();
    assert!(ran.code == 2 && ran.stderr.contains("a b"), "{}", ran.stderr);
}

#[test]
fn symlink_to_the_result_is_followed() {
    let folder = scratch("run-link");
    let notebook = write_notebook(&folder, &[code_cell("print('linked')", &[])]);
    std::fs::create_dir(folder.join("elsewhere")).unwrap();
    let link = folder.join("result.ipynb");
    // First to a file that does not exist, then to one that does.
    std::os::unix::fs::symlink("elsewhere/real.ipynb", &link).unwrap();
    for _ in 0..2 {
        let ran = Cli::new(&["run", "--sandbox", "process", "-o"]).path(&link).path(&notebook).run();
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(link.is_symlink());
        let executed = read_json(&folder.join("elsewhere/real.ipynb"));
        assert_eq!(executed["cells"][0]["outputs"][0]["text"], json!(["linked\n"]));
        assert_eq!(std::fs::read_dir(folder.join("elsewhere")).unwrap().count(), 1, "no temporary file is left");
    }
}

#[test]
fn run_reads_stdin_and_writes_stdout() {
    let folder = scratch("run-pipes");
    let notebook = write_notebook(&folder, &[code_cell("print('piped')", &[])]);
    let ran = Cli::new(&["run", "-"]).input(&std::fs::read(notebook).unwrap()).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let executed: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(executed["cells"][0]["outputs"][0]["text"], json!(["piped\n"]));
}

#[test]
fn display_update_changes_earlier_cell() {
    let folder = scratch("run-display-id");
    let cells = [
        code_cell("from IPython.display import display\nh = display('one', display_id=True)", &[]),
        code_cell("h.update('two')", &[]),
    ];
    let notebook = write_notebook(&folder, &cells);
    let ran = Cli::new(&["run"]).path(&notebook).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(read_json(&folder.join("nb.out.ipynb"))["cells"][0]["outputs"][0]["data"]["text/plain"], json!(["'two'"]));
}

#[test]
fn deaths_and_timeouts_are_recorded_as_errors() {
    let folder = scratch("run-deaths");
    for (source, code, ename) in [
        ("print('before', flush=True)\nimport os, time; time.sleep(0.3); os._exit(1)", 138, "KernelDied"),
        ("print('before', flush=True)\nx = [bytearray(8 << 20) for _ in range(1000)]", 138, "OutOfMemory"),
        ("print('before')\nimport time; time.sleep(600)", 124, "CellTimeout"),
    ] {
        let notebook = write_notebook(&folder, &[code_cell(source, &[]), code_cell("print('never')", &[])]);
        let ran = Cli::new(&["run", "--timeout", "3", "--memory", "256m"]).path(&notebook).run();
        assert_eq!(ran.code, code, "{}", ran.stderr);
        let executed = read_json(&folder.join("nb.out.ipynb"));
        let outputs = executed["cells"][0]["outputs"].as_array().unwrap();
        assert_eq!(outputs[0]["text"], json!(["before\n"]));
        assert_eq!(outputs.last().unwrap()["ename"], ename);
        assert_eq!(executed["cells"][1]["outputs"], json!([]));
    }
}

#[test]
fn invalid_notebooks_are_refused_with_reason() {
    let folder = scratch("run-bad");
    let whole = std::fs::read(write_notebook(&folder, &[code_cell("1", &[])])).unwrap();
    for (bytes, reason) in [
        (b"".to_vec(), "empty"),
        (b"print('hello')".to_vec(), "JSON"),
        (b"{\"a\": 1}".to_vec(), "notebook"),
        (whole[..whole.len() / 2].to_vec(), "JSON"),
        (br#"{"nbformat": 2, "nbformat_minor": 0, "metadata": {}, "worksheets": []}"#.to_vec(), "not supported"),
        (b"\x00\xff\xfe".to_vec(), ""),
        (vec![b'['; 1_000_000], ""),
    ] {
        let path = folder.join("bad.ipynb");
        std::fs::write(&path, &bytes).unwrap();
        let ran = Cli::new(&["run"]).path(&path).run();
        assert_eq!(ran.code, 2, "{}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]), ran.stderr);
        assert!(ran.stderr.to_lowercase().contains(&reason.to_lowercase()), "{reason}: {}", ran.stderr);
    }
    let mut unknown: Value = serde_json::from_slice(&whole).unwrap();
    unknown["metadata"]["kernelspec"] = json!({"name": "cobol", "display_name": "COBOL"});
    let path = folder.join("unknown.ipynb");
    std::fs::write(&path, unknown.to_string()).unwrap();
    let ran = Cli::new(&["run"]).path(&path).run();
    assert!(ran.code == 2 && ran.stderr.contains("cobol"), "{}", ran.stderr);
    let ran = Cli::new(&["run"]).path(&path).args(&["--kernel", "python"]).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let ran = Cli::new(&["run"]).path(&path).args(&["--kernel", "python", "-o", "/proc/no/such/folder/x.ipynb"]).run();
    assert!(ran.code == 2 && ran.stderr.contains("/proc/no/such/folder"), "{}", ran.stderr);
}

#[test]
fn old_newer_and_huge_notebooks_run() {
    let folder = scratch("run-versions");
    for fixture in ["v3.ipynb", "v4.99.ipynb"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/notebooks").join(fixture);
        let out = folder.join(fixture);
        let ran = Cli::new(&["run", "--allow-errors", "--kernel", "python", "-o"]).path(&out).path(&source).run();
        assert_eq!(ran.code, 0, "{fixture}: {}", ran.stderr);
        assert_eq!(read_json(&out)["nbformat"], 4);
    }
    let mut cell = code_cell("print('small')", &[]);
    cell["outputs"] = json!([{"output_type": "stream", "name": "stdout", "text": "x".repeat(100 << 20)}]);
    let mut kept = code_cell("  ", &[]);
    kept["outputs"] = json!([{"output_type": "display_data", "metadata": {}, "data": {"image/png": "A".repeat(100 << 20)}}]);
    let notebook = write_notebook(&folder, &[cell, kept]);
    let ran = Cli::new(&["run"]).path(&notebook).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let size = std::fs::metadata(folder.join("nb.out.ipynb")).unwrap().len();
    assert!((100 << 20..120 << 20).contains(&size), "{size}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn manager_secrets_are_invisible_in_sandbox() {
    let canary = format!("canary-{}", cellkeep::ids::random_uuid());
    let code = r"
import glob, os
needle = 'canary-' + '-'.join(PARTS)
hits = []
for root in ['/proc', '/run', '/tmp', '/work', '/etc', '/dev', '/var', '/opt/cellkeep']:
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in ('task', 'map_files', 'pagemap')]
        for name in files:
            path = os.path.join(folder, name)
            try:
                if os.path.isfile(path) and name not in ('kmsg', 'kcore', 'mem', 'pagemap', 'clear_refs'):
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                    data = os.read(fd, 1 << 20)
                    os.close(fd)
                    if needle.encode() in data: hits.append(path)
            except OSError: pass
if any(needle in name + value for name, value in os.environ.items()): hits.append('environ')
# This very code is in the memory of the kernel; only places that others wrote count.
print('hits', [hit for hit in hits])
";
    // The code must not contain the canary in one piece.
    let parts: Vec<String> = canary.split('-').skip(1).map(|part| format!("'{part}'")).collect();
    let code = code.replace("PARTS", &format!("[{}]", parts.join(", ")));
    for sandbox in ["process", "docker"] {
        let ran = Cli::new(&["exec", "--sandbox", sandbox, "-c", &code]).env("MY_SECRET", &canary).run();
        if sandbox == "docker" && ran.code == 3 {
            skip(&format!("no docker: {}", ran.stderr));
            continue;
        }
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(ran.stdout.trim(), "hits []", "in the {sandbox} sandbox");
    }
}

/// Reads the child's stdout until it contains `text`.
fn wait_for(child: &mut Child, text: &str) {
    read_until(child.stdout.as_mut().unwrap(), text);
}

pub fn wait_for_stderr(child: &mut Child, text: &str) {
    read_until(child.stderr.as_mut().unwrap(), text);
}

fn read_until(stream: &mut impl std::io::Read, text: &str) {
    let (mut seen, mut byte) = (String::new(), [0]);
    while !seen.contains(text) && stream.read(&mut byte).unwrap() == 1 {
        seen.push(byte[0] as char);
    }
    assert!(seen.contains(text), "the stream ended with {seen:?}");
}

pub fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn second_ctrl_c_kills_the_kernel() {
    // Printed inside the try: an interrupt that arrives at once must not hit the code before it.
    let code = "import time\ntry:\n    print('started', flush=True)\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('heeded', flush=True)";
    let mut child = Cli::new(&["exec", "-c", code]).start();
    wait_for(&mut child, "started");
    signal(&child, rustix::process::Signal::INT);
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&done.stdout).contains("heeded"));
    let code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('started', flush=True)\nwhile True: pass";
    let mut child = Cli::new(&["exec", "-c", code]).start();
    wait_for(&mut child, "started");
    signal(&child, rustix::process::Signal::INT);
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
}

#[test]
fn signals_work_while_writing_results() {
    let folder = scratch("run-late-signal");
    let notebook = write_notebook(&folder, &[code_cell("print('piped')", &[])]);
    let fifo = folder.join("fifo.ipynb");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    // The command has run the cells and blocks on the FIFO until somebody reads it.
    let mut child = Cli::new(&["run", "--sandbox", "process", "-o"]).path(&fifo).path(&notebook).start();
    wait_for_stderr(&mut child, "ok");
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, rustix::process::Signal::TERM);
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "the results are not written yet");
    signal(&child, rustix::process::Signal::TERM);
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// The folders of the sandboxes that a process owns.
pub fn sandboxes_of(pid: u32) -> Vec<PathBuf> {
    let records = std::fs::read_dir(Paths::from_environment().sandboxes()).into_iter().flatten().flatten();
    let belongs = |folder: &PathBuf| {
        std::fs::read(folder.join("record.json"))
            .is_ok_and(|bytes| serde_json::from_slice::<Value>(&bytes).is_ok_and(|record| record["owner"]["pid"] == pid))
    };
    records.map(|entry| entry.path()).filter(belongs).collect()
}

#[test]
fn sandbox_of_killed_command_is_swept() {
    let mut child =
        Cli::new(&["exec", "--sandbox", "process", "-c", "print('started', flush=True)\nimport time; time.sleep(600)"])
            .start();
    wait_for(&mut child, "started");
    let folders = sandboxes_of(child.id());
    assert_eq!(folders.len(), 1);
    signal(&child, rustix::process::Signal::KILL);
    let pid = child.id();
    child.wait().unwrap();
    assert_eq!(sandboxes_of(pid), folders, "the sandbox outlives the command at first");
    // The next command sweeps it away, whether or not its agent has exited by then.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !sandboxes_of(pid).is_empty() {
        assert!(Instant::now() < deadline, "the sandbox is never swept away");
        assert_eq!(Cli::new(&["exec", "--sandbox", "process", "-c", "import time; time.sleep(0.5)"]).run().code, 0);
    }
}

#[test]
fn doctor_lists_and_help_work() {
    let ran = Cli::new(&["doctor"]).run();
    assert!(
        ran.code == 0 && ran.stdout.contains("process sandbox") && ran.stdout.contains("docker sandbox"),
        "{}",
        ran.stdout
    );
    for said in
        ["with --network open: the internet", "level gvisor", "does not stop: vulnerabilities of the machine's kernel"]
    {
        assert!(ran.stdout.contains(said), "{said}: {}", ran.stdout);
    }
    for text in [ran.stdout, Cli::new(&["kernels", "list"]).run().stdout] {
        assert!(text.contains("cellkeep images build julia"), "julia exists only for docker: {text}");
        assert!(!text.contains("kernels install julia"), "{text}");
    }
    assert!(Cli::new(&["exec", "--help"]).run().stdout.contains("but not this machine"));
    let ran = Cli::new(&["kernels", "list", "--json"]).run();
    let kernels: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(kernels.as_array().unwrap().len(), 6);
    for help in
        [vec!["--help"], vec!["run", "--help"], vec!["exec", "--help"], vec!["kernels", "--help"], vec!["images", "--help"]]
    {
        assert_eq!(Cli::new(&help).run().code, 0);
    }
}
