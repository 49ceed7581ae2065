//! The processes of a sandbox: commands that run beside its kernels.
//!
//! Each has a task ([`process_host`]). This is the table by which requests find them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
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
/// The most ids of forgotten processes that are not started again.
const MAX_FORGOTTEN: usize = 1024;
/// Input that waits for a process to read it, bytes.
const MAX_PENDING_INPUT: usize = 1 << 20;
/// The output that is kept of one process, bytes.
pub(super) const MAX_OUTPUT: usize = 16 << 20;
/// The share of the sandbox's memory that the kept output of all processes may use.
const OUTPUT_SHARE: u64 = 4;
/// The character by which a terminal ends a line, and the input where the line is empty.
const END_OF_TRANSMISSION: u8 = 4;
/// What ends a line of a terminal.
const LINE_ENDS: &[u8] = b"\n\r\x04";
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
    /// The last of them has not ended a line.
    is_within_line: bool,
    /// There will be no more. A terminal's end of input is in `bytes`.
    pub closed: bool,
    /// It cannot be written any more.
    pub broken: bool,
}

/// All processes.
#[derive(Default)]
pub(super) struct Processes {
    /// In the order of their start.
    all: RefCell<Vec<Rc<Process>>>,
    /// Those that have ended, in the order of their ends.
    ended: RefCell<VecDeque<Rc<Process>>>,
    /// The ids of processes that were forgotten because later ones have ended. A retry must not start them again.
    forgotten: RefCell<VecDeque<ProcessId>>,
}

impl Processes {
    fn find(&self, id: &ProcessId) -> Option<Rc<Process>> {
        self.all.borrow().iter().find(|process| process.spec.id == *id).cloned()
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
        let mut all: Vec<ProcessInfo> = self.all.borrow().iter().map(|process| process.info()).collect();
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
        if self.forgotten.borrow().contains(&spec.id) {
            let reason = format!(
                "the process with this key has ended, and is forgotten because {MAX_ENDED} others have ended since; use another key"
            );
            return Err(Refused { reason, cause: RefusalCause::Exists });
        }
        if self.all.borrow().iter().filter(|process| process.ended.get().is_none()).count() >= MAX_RUNNING {
            let reason = format!("{MAX_RUNNING} processes run in the sandbox already; end one of them");
            return Err(Refused { reason, cause: RefusalCause::Busy });
        }
        let (program, exits) = sandbox.programs.register(spec.id.to_string());
        sandbox.programs.ignore_oom_kills(sandbox.meter.borrow().oom_kills());
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
        self.all.borrow_mut().push(process.clone());
        Ok(process.info())
    }

    /// Notes that a process has ended, and forgets those that ended first beyond [`MAX_ENDED`]. One that has left others behind
    /// is kept if another can go, since these end with it.
    pub fn note_end(&self, sandbox: &Sandbox, process: &Rc<Process>) {
        self.ended.borrow_mut().push_back(process.clone());
        while self.ended.borrow().len() > MAX_ENDED {
            let is_over = |process: &Rc<Process>| !sandbox.programs.has_processes(&process.program);
            let first = self.ended.borrow().iter().position(is_over).unwrap_or(0);
            let Some(first) = self.ended.borrow_mut().remove(first) else { return };
            let mut forgotten = self.forgotten.borrow_mut();
            forgotten.push_back(first.spec.id.clone());
            if forgotten.len() > MAX_FORGOTTEN {
                forgotten.pop_front();
            }
            drop(forgotten);
            self.drop_process(sandbox, &first);
        }
    }

    /// Kills a process, unless it has ended, and forgets it. Its id can be used again.
    pub fn remove(&self, sandbox: &Sandbox, id: &ProcessId) {
        let Some(process) = self.find(id) else { return };
        self.ended.borrow_mut().retain(|one| !Rc::ptr_eq(one, &process));
        self.drop_process(sandbox, &process);
    }

    /// Kills what is left of a process, and takes it from the table. Its task ends then.
    fn drop_process(&self, sandbox: &Sandbox, process: &Rc<Process>) {
        self.all.borrow_mut().retain(|one| !Rc::ptr_eq(one, process));
        if sandbox.programs.has_processes(&process.program) {
            sandbox.programs.kill(&process.program);
        }
        sandbox.programs.forget(&process.program);
        process.input_ready.notify_one();
    }

    /// Whether a process is still in the table. Another one with its id does not count.
    pub fn has(&self, process: &Rc<Process>) -> bool {
        self.all.borrow().iter().any(|one| Rc::ptr_eq(one, process))
    }

    /// Accepts input, up to [`MAX_PENDING_INPUT`] that the process has not read.
    pub fn write(&self, id: &ProcessId, offset: Option<u64>, data: &[u8], close: bool) -> Result<ProcessInfo, Refused> {
        let process = self.get(id)?;
        let mut input = process.input.borrow_mut();
        let was_closed = input.closed;
        let has_ended = process.ended.get().is_some();
        let ended = |refused| if has_ended { "the process has ended".to_owned().into() } else { refused };
        input.accept(offset, data, close).map_err(ended)?;
        if input.closed && !was_closed && matches!(process.ends, Ends::Terminal(_)) {
            input.end_terminal();
        }
        drop(input);
        process.input_ready.notify_one();
        Ok(process.info())
    }

    pub fn signal(&self, sandbox: &Sandbox, id: &ProcessId, signal: i32) -> Result<(), Refused> {
        let process = self.get(id)?;
        let signal = Signal::from_named_raw(signal).ok_or_else(|| Refused::from(format!("there is no signal {signal}")))?;
        match signal {
            // Also what the process has left behind.
            Signal::KILL if sandbox.programs.has_processes(&process.program) => sandbox.programs.kill(&process.program),
            signal if process.program.pid().is_some() => process.program.signal_group(signal),
            _ => return Err("the process has ended".to_owned().into()),
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
        let all = self.all.borrow();
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
        if new.is_empty() && (!close || self.closed) {
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
        self.is_within_line = new.last().map_or(self.is_within_line, |last| !LINE_ENDS.contains(last));
        self.closed |= close;
        Ok(())
    }

    /// Appends what ends the input of a terminal: within a line, the first character only ends the line.
    fn end_terminal(&mut self) {
        let count = 1 + usize::from(self.is_within_line);
        self.bytes.extend_from_slice(&[END_OF_TRANSMISSION; 2][..count]);
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
        input.broken = true;
        assert!(input.accept(Some(3), b"de", true).is_ok(), "nor is it once the process has ended");
        assert!(input.accept(Some(4), b"ef", false).is_err());
    }

    #[test]
    fn unfinished_line_is_ended_before_the_input() {
        for (text, end) in [("", "\x04"), ("a\n", "\x04"), ("a", "\x04\x04"), ("a\r", "\x04"), ("a\x04", "\x04")] {
            let mut input = PendingInput::default();
            input.accept(None, text.as_bytes(), true).unwrap();
            input.end_terminal();
            assert_eq!(&input.bytes[..], format!("{text}{end}").as_bytes());
        }
        let mut input = PendingInput::default();
        input.accept(None, b"a", false).unwrap();
        input.accept(None, b"", true).unwrap();
        input.end_terminal();
        assert_eq!(&input.bytes[..], b"a\x04\x04");
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
