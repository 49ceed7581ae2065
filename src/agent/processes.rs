//! The processes of a sandbox: commands that run beside its kernels.
//!
//! Each has a task ([`process_host`]). This is the table by which requests find them.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;

use bytes::BytesMut;
use rustix::process::{Pid, Signal};
use rustix::termios::Winsize;
use tokio::sync::{Notify, mpsc};

use super::buffer::EventBuffer;
use super::input::Input;
use super::process_host;
use super::process_spawn::{Ends, SpawnedProcess, spawn};
use super::programs::Program;
use super::sandbox::Sandbox;
use crate::agent_protocol::{ProcessExit, ProcessInfo, ProcessSpec, RefusalCause, Refused, TerminalSize};
use crate::ids::ProcessId;

/// The most processes of a sandbox: those that run, and those that have ended and are kept.
const MAX_RUNNING: usize = 64;
const MAX_ENDED: usize = 64;
/// Input that waits for a process to read it, bytes.
const MAX_PENDING_INPUT: usize = 1 << 20;
/// The output that is kept of one process, bytes.
pub(super) const MAX_OUTPUT: usize = 16 << 20;
/// The share of the sandbox's memory that the kept output of all processes may use.
const OUTPUT_SHARE: u64 = 4;
/// The character by which a terminal ends the input.
const END_OF_TRANSMISSION: u8 = 4;
/// How much of a command a list shows: arguments, and bytes of each.
const LISTED_ARGUMENTS: usize = 16;
const LISTED_ARGUMENT: usize = 256;

/// One process. Requests use it; its task owns the pipes.
pub(super) struct Process {
    pub spec: ProcessSpec,
    pub program: Rc<Program>,
    pid: Pid,
    started_ms: i64,
    pub ended: Cell<Option<(i64, ProcessExit)>>,
    pub buffer: Rc<RefCell<EventBuffer>>,
    pub input: RefCell<PendingInput>,
    /// Tells the task that there is input.
    pub input_ready: Notify,
    pub ends: Ends,
    size: Cell<Option<TerminalSize>>,
    /// Connections that read the output.
    pub readers: mpsc::Sender<Input>,
}

/// What was accepted for the standard input of a process, and is not written yet.
#[derive(Default)]
pub(super) struct PendingInput {
    pub bytes: BytesMut,
    /// Bytes accepted since the start.
    accepted: u64,
    /// There will be no more. A terminal's end of file is in `bytes`.
    pub closed: bool,
    /// It cannot be written any more.
    pub broken: bool,
}

/// All processes, in the order of their start.
#[derive(Default)]
pub(super) struct Processes(RefCell<Vec<Rc<Process>>>);

impl Processes {
    fn find(&self, id: &ProcessId) -> Option<Rc<Process>> {
        self.0.borrow().iter().find(|process| process.spec.id == *id).cloned()
    }

    fn get(&self, id: &ProcessId) -> Result<Rc<Process>, Refused> {
        let missing = || Refused { reason: format!("there is no process {id}"), cause: RefusalCause::NotFound };
        self.find(id).ok_or_else(missing)
    }

    /// Where connections that read a process's output are sent.
    pub fn readers(&self, id: &ProcessId) -> Option<mpsc::Sender<Input>> {
        self.find(id).map(|process| process.readers.clone())
    }

    pub fn info(&self, id: &ProcessId) -> Result<ProcessInfo, Refused> {
        Ok(self.get(id)?.info())
    }

    /// All processes, with commands that are cut where they are long.
    pub fn list(&self) -> Vec<ProcessInfo> {
        let mut all: Vec<ProcessInfo> = self.0.borrow().iter().map(|process| process.info()).collect();
        for info in &mut all {
            info.command.truncate(LISTED_ARGUMENTS);
            info.command.iter_mut().for_each(|argument| argument.truncate(argument.floor_char_boundary(LISTED_ARGUMENT)));
            info.cwd.truncate(info.cwd.floor_char_boundary(LISTED_ARGUMENT));
        }
        all
    }

    /// Starts a process, unless one with this id was started before. Returns it.
    ///
    /// # Errors
    /// If there are too many, if the id belongs to another command, or if the program cannot be started.
    pub fn start(&self, sandbox: &Rc<Sandbox>, spec: ProcessSpec) -> Result<ProcessInfo, Refused> {
        if let Some(known) = self.find(&spec.id) {
            return match known.spec == spec {
                true => Ok(known.info()),
                false => Err(Refused {
                    reason: "this key was used for a process that was started otherwise".to_owned(),
                    cause: RefusalCause::Exists,
                }),
            };
        }
        if self.0.borrow().iter().filter(|process| process.ended.get().is_none()).count() >= MAX_RUNNING {
            let reason = format!("{MAX_RUNNING} processes run in the sandbox already; end one of them");
            return Err(Refused { reason, cause: RefusalCause::Busy });
        }
        let (program, exits) = sandbox.programs.register(spec.id.to_string());
        let SpawnedProcess { pid, ends, stdin } = match spawn(sandbox, &spec, &program) {
            Ok(spawned) => spawned,
            Err(refused) => {
                sandbox.programs.forget(&program);
                return Err(refused);
            }
        };
        let (readers, inputs) = mpsc::channel(16);
        let process = Rc::new(Process {
            size: Cell::new(spec.terminal),
            input: RefCell::new(PendingInput { closed: !spec.stdin && spec.terminal.is_none(), ..Default::default() }),
            spec,
            program,
            pid,
            started_ms: now_ms(),
            ended: Cell::new(None),
            buffer: Rc::new(RefCell::new(EventBuffer::new(MAX_OUTPUT))),
            input_ready: Notify::new(),
            ends,
            readers,
        });
        process_host::spawn(sandbox.clone(), process.clone(), stdin, inputs, exits);
        self.0.borrow_mut().push(process.clone());
        self.forget_oldest(sandbox);
        Ok(process.info())
    }

    /// Forgets the oldest ended processes beyond [`MAX_ENDED`].
    fn forget_oldest(&self, sandbox: &Rc<Sandbox>) {
        let ended: Vec<ProcessId> = {
            let all = self.0.borrow();
            all.iter().filter(|process| process.ended.get().is_some()).map(|process| process.spec.id.clone()).collect()
        };
        for id in ended.iter().take(ended.len().saturating_sub(MAX_ENDED)) {
            self.remove(sandbox, id);
        }
    }

    /// Kills a process, unless it has ended, and forgets it. Its task ends then.
    pub fn remove(&self, sandbox: &Rc<Sandbox>, id: &ProcessId) {
        let Some(process) = self.find(id) else { return };
        self.0.borrow_mut().retain(|one| one.spec.id != *id);
        if process.program.has_processes() {
            sandbox.programs.kill(&process.program);
        }
        sandbox.programs.forget(&process.program);
        process.input_ready.notify_one();
    }

    /// Whether a process is still in the table.
    pub fn has(&self, id: &ProcessId) -> bool {
        self.find(id).is_some()
    }

    /// Accepts input, up to [`MAX_PENDING_INPUT`] that the process has not read.
    pub fn write(&self, id: &ProcessId, offset: Option<u64>, data: &[u8], close: bool) -> Result<ProcessInfo, Refused> {
        let process = self.get(id)?;
        if process.ended.get().is_some() {
            return Err("the process has ended".to_owned().into());
        }
        let mut input = process.input.borrow_mut();
        let was_closed = input.closed;
        input.accept(offset, data, close)?;
        if input.closed && !was_closed && matches!(process.ends, Ends::Terminal(_)) {
            input.bytes.extend_from_slice(&[END_OF_TRANSMISSION]);
        }
        drop(input);
        process.input_ready.notify_one();
        Ok(process.info())
    }

    pub fn signal(&self, sandbox: &Sandbox, id: &ProcessId, signal: i32) -> Result<(), Refused> {
        let process = self.get(id)?;
        let signal = Signal::from_named_raw(signal).ok_or_else(|| Refused::from(format!("there is no signal {signal}")))?;
        if process.program.pid().is_none() {
            return Err("the process has ended".to_owned().into());
        }
        match signal {
            Signal::KILL => sandbox.programs.kill(&process.program),
            signal => process.program.signal_group(signal),
        }
        Ok(())
    }

    pub fn resize(&self, id: &ProcessId, size: TerminalSize) -> Result<(), Refused> {
        let process = self.get(id)?;
        let Ends::Terminal(end) = &process.ends else { return Err("the process has no terminal".to_owned().into()) };
        process.size.set(Some(size));
        let window = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(end.get_ref().as_fd(), window).map_err(super::files::refusal_of)
    }

    /// Keeps the output of all processes together within its share of the memory: the oldest of the longest is dropped.
    pub fn bound_output(&self, sandbox: &Sandbox) {
        let limit = (sandbox.config.limits.memory_bytes() / OUTPUT_SHARE) as usize;
        let all = self.0.borrow();
        let mut total: usize = all.iter().map(|process| process.buffer.borrow().size()).sum();
        while total > limit {
            let Some(longest) = all.iter().max_by_key(|process| process.buffer.borrow().size()) else { return };
            let mut buffer = longest.buffer.borrow_mut();
            let before = buffer.size();
            buffer.drop_oldest();
            total -= before - buffer.size();
        }
    }
}

impl Process {
    fn info(&self) -> ProcessInfo {
        let buffer = self.buffer.borrow();
        ProcessInfo {
            id: self.spec.id.clone(),
            command: self.spec.command.clone(),
            cwd: self.spec.cwd.clone(),
            terminal: self.size.get(),
            pid: self.pid.as_raw_nonzero().get(),
            started_ms: self.started_ms,
            ended: self.ended.get(),
            first_seq: buffer.first(),
            next_seq: buffer.next_seq(),
            input_bytes: self.input.borrow().accepted,
        }
    }
}

impl PendingInput {
    fn accept(&mut self, offset: Option<u64>, data: &[u8], close: bool) -> Result<(), Refused> {
        let offset = offset.unwrap_or(self.accepted);
        let known = self.accepted.checked_sub(offset).ok_or_else(|| {
            Refused::from(format!("input from byte {offset} on leaves a gap: {} bytes were accepted", self.accepted))
        })?;
        let new = data.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
        if new.is_empty() && !close {
            return Ok(());
        }
        if self.broken || (self.closed && !new.is_empty()) {
            return Err("its standard input is closed".to_owned().into());
        }
        if self.bytes.len() + new.len() > MAX_PENDING_INPUT {
            let reason = "the process does not read its input; send the rest later".to_owned();
            return Err(Refused { reason, cause: RefusalCause::Busy });
        }
        self.bytes.extend_from_slice(new);
        self.accepted += new.len() as u64;
        self.closed |= close;
        Ok(())
    }
}

pub(super) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_input_is_accepted_once() {
        let mut input = PendingInput::default();
        input.accept(Some(0), b"abc", false).unwrap();
        input.accept(Some(0), b"abcd", false).unwrap();
        input.accept(Some(2), b"c", false).unwrap();
        input.accept(None, b"e", true).unwrap();
        assert_eq!((&input.bytes[..], input.accepted), (&b"abcde"[..], 5));
        assert!(input.accept(Some(9), b"x", false).unwrap_err().reason.contains("leaves a gap"));
        assert!(input.accept(None, b"x", false).unwrap_err().reason.contains("closed"));
        assert!(input.accept(Some(4), b"e", true).is_ok(), "a retry after the end is no error");
    }

    #[test]
    fn unread_input_is_bounded() {
        let mut input = PendingInput::default();
        input.accept(None, &vec![0; MAX_PENDING_INPUT], false).unwrap();
        let refused = input.accept(None, b"x", false).unwrap_err();
        assert_eq!(refused.cause, RefusalCause::Busy);
        input.bytes.clear();
        assert!(input.accept(None, b"x", false).is_ok());
    }
}
