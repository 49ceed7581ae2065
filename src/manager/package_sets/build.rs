//! Makes a package set: runs the kernel's installer in a sandbox, checks what it resolved, and takes its files.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use super::disk::Staging;
use super::unpack::unpack;
use super::{BuildLog, Package, PackageError, PackageSet, WantedPackages};
use crate::agent_protocol::{AnswerBody, FILE_CHUNK, PutOptions, Request};
use crate::ids::Seq;
use crate::manager::sandboxes::{NewProcess, OneShotSandbox, ProcessOutput};
use crate::manager::{Manager, ProcessStream, SessionSpec, digest_id};
use crate::policy::{MAX_LOCK, NetworkPolicy};
use crate::session::{AgentRequests as _, Upload};
use crate::store::now_ms;

/// The most packages of a set, and the longest name or version, bytes.
const MAX_PACKAGES: usize = 5_000;
const MAX_NAME: usize = 200;
/// The lines of the installer that an error has.
const ERROR_LINES: usize = 40;
/// The longest line that is kept, in characters, and the most lines that are passed on.
const MAX_LINE: usize = 500;
const MAX_LINES: usize = 5_000;
/// Names of compilers in the messages of a package that needs one.
const COMPILERS: &[&str] = &["gcc", "g++", "cc1", "clang", "gfortran", "cargo", "rustc", "cmake", "pkg-config", "make: "];

/// Builds the set that answers `key`.
pub(super) async fn build(
    manager: &Manager,
    wanted: &WantedPackages,
    key: &str,
    log: &BuildLog,
) -> Result<PackageSet, PackageError> {
    let seconds = manager.package_rules().build_seconds;
    let end = Instant::now() + Duration::from_secs(seconds);
    let lock = match wanted.request.lock.as_ref().or(wanted.known_lock.as_ref()) {
        Some(lock) => lock.clone(),
        None => {
            let installer = Installer::start(manager, wanted, log).await?;
            let resolved = tokio::time::timeout_at(end, installer.resolve()).await;
            installer.finish(resolved).await?
        }
    };
    // What resolves may have run code of packages, which could lie about the result. So the lock is read and installed by another sandbox.
    let installer = Installer::start(manager, wanted, log).await?;
    let installed = tokio::time::timeout_at(end, installer.install(lock, key)).await;
    installer.finish(installed).await
}

struct Installer<'a> {
    manager: &'a Manager,
    wanted: &'a WantedPackages,
    sandbox: OneShotSandbox,
    log: &'a BuildLog,
}

impl<'a> Installer<'a> {
    async fn start(manager: &'a Manager, wanted: &'a WantedPackages, log: &'a BuildLog) -> Result<Self, PackageError> {
        let spec = SessionSpec {
            kernel: wanted.kernel.clone(),
            sandbox: wanted.sandbox,
            limits: manager.installer_limits(),
            network: NetworkPolicy::Packages,
            env: Vec::new(),
            mounts: Vec::new(),
            secrets: Vec::new(),
            package_set: None,
        };
        let sandbox = manager.create_temporary_sandbox(spec, wanted.scope.as_ref()).await?;
        Ok(Self { manager, wanted, sandbox, log })
    }

    /// Ends the sandbox, and returns the result of what was done in it.
    async fn finish<T>(self, done: Result<Result<T, PackageError>, Elapsed>) -> Result<T, PackageError> {
        let destroyed = self.sandbox.destroy().await;
        let done = done.map_err(|_| PackageError::TooSlow(self.manager.package_rules().build_seconds))??;
        destroyed?;
        Ok(done)
    }

    /// The lock of the request.
    async fn resolve(&self) -> Result<String, PackageError> {
        self.write("requirements.txt", self.wanted.request.text()).await?;
        self.step("resolve").await?;
        self.read("lock.txt").await
    }

    /// Installs the packages of a lock, and publishes the set.
    async fn install(&self, lock: String, key: &str) -> Result<PackageSet, PackageError> {
        self.write("lock.txt", lock.clone()).await?;
        self.step("resolve").await?;
        let packages = parse_packages(&self.read("packages.json").await?)?;
        let rules = self.manager.package_rules();
        let mut installed = packages.iter().filter(|package| package.installed);
        if let Some(denied) = installed.find(|package| !rules.permits(&package.name)) {
            return Err(PackageError::Denied(denied.name.clone()));
        }
        for package in &packages {
            (self.log)(&describe(package));
        }
        self.step("install").await?;
        let (staging, bytes) = self.take_files(rules.max_mb << 20).await?;
        let identity = (key, &self.wanted.kernel.name, &lock);
        let set = PackageSet {
            id: digest_id(serde_json::to_string(&identity).unwrap_or_default().as_bytes()),
            kernel: self.wanted.kernel.name.clone(),
            sandbox: self.sandbox.kind(),
            scope: self.wanted.scope.clone(),
            lock,
            packages,
            bytes,
            created_at: now_ms(),
        };
        tokio::task::block_in_place(|| staging.publish(&set, key))?;
        (self.log)(&format!("{} MB in {} packages", bytes >> 20, set.packages.iter().filter(|one| one.installed).count()));
        Ok(set)
    }

    /// Writes a file of the workspace.
    async fn write(&self, path: &str, text: String) -> Result<(), PackageError> {
        let mut upload = Upload::new(self.sandbox.clone(), path, PutOptions::default());
        let mut rest = Bytes::from(text);
        while rest.len() > FILE_CHUNK {
            upload.push(rest.split_to(FILE_CHUNK)).await?;
        }
        upload.finish(rest).await?;
        Ok(())
    }

    /// Reads a file of the workspace.
    async fn read(&self, path: &str) -> Result<String, PackageError> {
        let mut content = Vec::new();
        loop {
            let offset = content.len() as u64;
            let get = Request::FileGet { path: path.to_owned(), offset, length: FILE_CHUNK as u64 };
            let (answer, data) = self.sandbox.ask(get, Bytes::new()).await?;
            match answer {
                AnswerBody::File(_) if data.is_empty() => break,
                AnswerBody::File(_) if content.len() + data.len() <= MAX_LOCK => content.extend_from_slice(&data),
                _ => return Err(PackageError::BadInstaller(format!("{path} is missing or too large"))),
            }
        }
        String::from_utf8(content).map_err(|_| PackageError::BadInstaller(format!("{path} is not UTF-8")))
    }

    /// Runs the installer for one step, and passes on what it prints.
    async fn step(&self, step: &str) -> Result<(), PackageError> {
        let command = self.wanted.kernel.install_packages.iter().cloned().chain([step.to_owned()]).collect();
        let processes = self.sandbox.processes();
        let id = processes.start(NewProcess { command, ..NewProcess::default() }).await?.id;
        let mut output = processes.read(&id, Seq::default()).await?;
        let mut lines = Lines { log: self.log, begun: Vec::new(), last: VecDeque::new(), count: 0 };
        loop {
            match output.next().await {
                Some(ProcessOutput::Data { data, .. }) => lines.push(&data),
                Some(ProcessOutput::Lost { .. }) => {}
                Some(ProcessOutput::Exited { exit, .. }) if exit.code == Some(0) => return Ok(()),
                Some(ProcessOutput::Exited { .. }) => return Err(PackageError::Failed(lines.explain())),
                None => return Err(PackageError::Failed("the sandbox of the installation has ended".to_owned())),
            }
        }
    }

    /// Copies the files of the set out of the sandbox. Returns the bytes that they occupy.
    async fn take_files(&self, max_bytes: u64) -> Result<(Staging, u64), PackageError> {
        let staging = Staging::new(&self.manager.paths.package_sets())?;
        // What links lead to, which tar reads as any code of the sandbox can.
        let command = [
            "tar",
            "--format=gnu",
            "--dereference",
            "--hard-dereference",
            "--ignore-failed-read",
            "-C",
            "set",
            "-cf",
            "-",
            ".",
        ];
        let command = command.map(str::to_owned).to_vec();
        let processes = self.sandbox.processes();
        let id = processes.start(NewProcess { command, ..NewProcess::default() }).await?.id;
        let mut output = processes.read(&id, Seq::default()).await?;
        let (sender, receiver) = mpsc::channel(16);
        let reader = ChunkReader { receiver, chunk: Bytes::new() };
        // The thread owns the folder: if the installation takes too long, it is removed once the thread has ended.
        let unpacking =
            tokio::task::spawn_blocking(move || unpack(reader, &staging.files(), max_bytes).map(|bytes| (staging, bytes)));
        let copied = loop {
            match output.next().await {
                Some(ProcessOutput::Data { stream: ProcessStream::Stdout, data, .. }) => {
                    // The thread has an error that says more.
                    if sender.send(Ok(data)).await.is_err() {
                        break true;
                    }
                }
                Some(ProcessOutput::Data { .. }) => {}
                Some(ProcessOutput::Exited { exit, .. }) => break exit.code == Some(0),
                Some(ProcessOutput::Lost { .. }) | None => break false,
            }
        };
        if !copied {
            let _ = sender.send(Err(io::Error::other("the files of the set ended early"))).await;
        }
        drop(sender);
        unpacking.await.map_err(|error| PackageError::Io(io::Error::other(error)))?
    }
}

/// The packages that an installer names.
fn parse_packages(text: &str) -> Result<Vec<Package>, PackageError> {
    let bad = |why: String| PackageError::BadInstaller(format!("packages.json: {why}"));
    let packages: Vec<Package> = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    let is_plain = |text: &str| text.len() <= MAX_NAME && !text.chars().any(char::is_control);
    let texts = |package: &Package| is_plain(&package.name) && is_plain(&package.version);
    let replaced = |package: &Package| package.replaces.as_deref().is_none_or(is_plain);
    match packages.len() <= MAX_PACKAGES && packages.iter().all(|package| texts(package) && replaced(package)) {
        true => Ok(packages),
        false => Err(bad("too many packages, or a name that cannot be one".to_owned())),
    }
}

fn describe(package: &Package) -> String {
    let Package { name, version, installed, replaces } = package;
    match (installed, replaces) {
        (false, _) => format!("{name} {version} (in the environment)"),
        (true, Some(before)) => format!("{name} {version} (instead of {before})"),
        (true, None) => format!("{name} {version}"),
    }
}

/// Splits output into lines.
struct Lines<'a> {
    log: &'a BuildLog,
    begun: Vec<u8>,
    last: VecDeque<String>,
    count: usize,
}

impl Lines<'_> {
    fn push(&mut self, data: &[u8]) {
        for &byte in data {
            match byte {
                b'\n' | b'\r' => self.finish(),
                _ if self.begun.len() < 4 * MAX_LINE => self.begun.push(byte),
                _ => {}
            }
        }
    }

    fn finish(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.begun)).trim_end().to_owned();
        let line: String = line.chars().filter(|letter| !letter.is_control()).take(MAX_LINE).collect();
        if line.is_empty() {
            return;
        }
        self.count += 1;
        if self.count <= MAX_LINES {
            (self.log)(&line);
        }
        if self.last.len() == ERROR_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The last lines, with advice if it is known what they mean.
    fn explain(mut self) -> String {
        self.finish();
        let text = self.last.make_contiguous().join("\n");
        let needs_compiler =
            COMPILERS.iter().any(|compiler| text.contains(compiler)) && text.to_lowercase().contains("build");
        let advice = match () {
            () if text.contains("No space left on device") => {
                "The packages need more room than a set may have, which the operator decides (--packages-max-mb)."
            }
            () if needs_compiler => {
                "A package has no binary release for this kernel and must be compiled, and sandboxes have no compiler. Ask for a version \
                 with a binary release, or let the operator build an image: cellkeep images build --from"
            }
            () => return text,
        };
        format!("{text}\n{advice}")
    }
}

/// Reads chunks that another task sends.
struct ChunkReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn lines_are_bounded_and_compilers_explained() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let log: BuildLog = Arc::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
        let mut lines = Lines { log: &log, begun: Vec::new(), last: VecDeque::new(), count: 0 };
        lines.push(b"first\r\n\n\x1b[1msecond\n");
        lines.push(&[b'x'; 10_000]);
        lines.push(b"\nFailed to build: error: command 'gcc' failed");
        let text = lines.explain();
        assert_eq!(seen.lock().unwrap()[..2], ["first", "[1msecond"]);
        assert_eq!(seen.lock().unwrap()[2].len(), MAX_LINE);
        assert!(text.contains("command 'gcc' failed\nA package has no binary release"), "{text}");
    }
}
