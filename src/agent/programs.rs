//! The programs of a sandbox: kernels and processes, each with the processes that it has started.
//!
//! A program's own process is known by its PID. Its descendants are found by their parents, and those whose parents have
//! exited by [`VARIABLE`], which they inherit. Code can remove that variable from its environment. For that reason, killing a
//! program also kills every process that belongs to no program.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;

use rustix::process::{Pid, Signal};
use tokio::sync::mpsc;

/// The variable that tells to which program a process belongs.
pub(super) const VARIABLE: &str = "CELLKEEP_PROGRAM";
/// How much of an environment is searched for the variable, bytes.
const MAX_ENVIRONMENT: u64 = 256 << 10;
/// How often the processes are listed while a program is killed: code can start some meanwhile.
const MAX_ROUNDS: usize = 200;

/// One program. It is registered as long as the handle lives.
pub(super) struct Program {
    /// The value of [`VARIABLE`].
    pub id: String,
    pid: Cell<Option<Pid>>,
    exits: mpsc::UnboundedSender<ExitStatus>,
    over_memory: Cell<bool>,
    /// Its process has exited and has left others behind, which go on.
    has_survivors: Cell<bool>,
}

impl Program {
    /// Notes the program's new process. Called before anything can reap it.
    pub fn started(&self, pid: Pid) {
        self.pid.set(Some(pid));
    }

    pub fn pid(&self) -> Option<Pid> {
        self.pid.get()
    }

    /// Notes that its process has exited, and that what it has started may go on.
    pub fn note_survivors(&self) {
        self.has_survivors.set(ProcessTable::read().living().any(|pid| program_of(pid).as_ref() == Some(&self.id)));
    }

    pub fn has_processes(&self) -> bool {
        self.pid.get().is_some() || self.has_survivors.get()
    }

    /// Whether it was killed because the sandbox exceeded its memory; resets it.
    pub fn take_over_memory(&self) -> bool {
        self.over_memory.take()
    }

    /// Sends a signal to the process group of the program's process.
    pub fn signal_group(&self, signal: Signal) {
        if let Some(pid) = self.pid.get() {
            // Fails only if the group has exited.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }
}

/// All programs of the sandbox.
#[derive(Default)]
pub(super) struct Programs(RefCell<Vec<Rc<Program>>>);

impl Programs {
    /// Registers a program. Its exits arrive at the receiver.
    pub fn register(&self, id: String) -> (Rc<Program>, mpsc::UnboundedReceiver<ExitStatus>) {
        let (exits, receiver) = mpsc::unbounded_channel();
        let program = Rc::new(Program {
            id,
            pid: Cell::new(None),
            exits,
            over_memory: Cell::new(false),
            has_survivors: Cell::new(false),
        });
        self.0.borrow_mut().push(program.clone());
        (program, receiver)
    }

    pub fn forget(&self, program: &Rc<Program>) {
        self.0.borrow_mut().retain(|one| !Rc::ptr_eq(one, program));
    }

    /// Reaps every exited process: those of programs, and orphans that PID 1 inherits.
    pub fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            let exited = self.0.borrow().iter().find(|program| program.pid.get() == Some(pid)).cloned();
            if let Some(program) = exited {
                program.pid.set(None);
                let _ = program.exits.send(ExitStatus::from_raw(status.as_raw()));
            }
        }
    }

    /// Kills all processes of a program, and those that belong to none.
    pub fn kill(&self, program: &Rc<Program>) {
        if self.0.borrow().iter().all(|other| Rc::ptr_eq(other, program) || !other.has_processes()) {
            return kill_all(program.pid.get());
        }
        let others: Vec<Rc<Program>> = self.0.borrow().iter().filter(|other| !Rc::ptr_eq(other, program)).cloned().collect();
        for _ in 0..MAX_ROUNDS {
            let table = ProcessTable::read();
            let victims: Vec<Pid> = table.living().filter(|pid| table.owner(*pid, &others).is_none()).collect();
            if victims.is_empty() {
                return;
            }
            for pid in victims {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Kills every process of the sandbox but the agent.
    pub fn kill_everything(&self) {
        kill_all(None);
        self.0.borrow().iter().for_each(|program| kill_all(program.pid.get()));
    }

    /// Kills the program to which the process with the most memory belongs, because the sandbox has exceeded its limit.
    pub fn kill_largest(&self) {
        let programs = self.0.borrow().clone();
        let table = ProcessTable::read();
        let largest = table.living().max_by_key(|pid| table.resident_pages(*pid));
        let owner = largest.and_then(|pid| table.owner(pid, &programs));
        // What belongs to no program is killed along with any.
        let running = || programs.iter().find(|program| program.has_processes());
        if let Some(program) = owner.or_else(running) {
            program.over_memory.set(true);
            self.kill(program);
        }
    }
}

/// Kills every process of the sandbox but the agent: as PID 1, one call reaches the whole namespace, including daemons. In
/// tests, where the agent is not PID 1, only the process group of `pid`.
fn kill_all(pid: Option<Pid>) {
    if rustix::process::getpid().as_raw_nonzero().get() == 1 {
        // SAFETY: a plain system call without memory arguments. rustix has no kill(-1).
        #[expect(unsafe_code, reason = "kill(-1) is the only call that leaves no process out")]
        let _ = unsafe { libc::kill(-1, libc::SIGKILL) };
    } else if let Some(pid) = pid {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

/// The processes of the sandbox at one moment, without the agent.
struct ProcessTable(HashMap<Pid, ProcessRow>);

struct ProcessRow {
    parent: i32,
    is_zombie: bool,
    resident_pages: u64,
}

impl ProcessTable {
    fn read() -> Self {
        let own = rustix::process::getpid();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        Self(pids.filter(|pid| *pid != own).filter_map(|pid| Some((pid, ProcessRow::read(pid)?))).collect())
    }

    fn living(&self) -> impl Iterator<Item = Pid> {
        self.0.iter().filter(|(_, row)| !row.is_zombie).map(|(pid, _)| *pid)
    }

    fn resident_pages(&self, pid: Pid) -> u64 {
        self.0.get(&pid).map_or(0, |row| row.resident_pages)
    }

    /// The program among `programs` to which a process belongs.
    fn owner<'a>(&self, pid: Pid, programs: &'a [Rc<Program>]) -> Option<&'a Rc<Program>> {
        let mut ancestor = Some(pid);
        // PIDs can be reused while the table is read, so a circle is possible.
        for _ in 0..=self.0.len() {
            let Some(one) = ancestor else { break };
            if let Some(found) = programs.iter().find(|program| program.pid.get() == Some(one)) {
                return Some(found);
            }
            ancestor = self.0.get(&one).and_then(|row| Pid::from_raw(row.parent));
        }
        let id = program_of(pid)?;
        programs.iter().find(|program| program.id == id && program.has_processes())
    }
}

impl ProcessRow {
    fn read(pid: Pid) -> Option<Self> {
        let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // The name in parentheses may contain anything, so fields are counted after it.
        let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        // Threads and the resident set are the 20th and the 24th field of all.
        let threads: u64 = fields.nth(15)?.parse().ok()?;
        let resident_pages = fields.nth(3).and_then(|field| field.parse().ok()).unwrap_or(0);
        // A process whose first thread has ended looks like a zombie while others go on.
        let is_zombie = matches!(state, "Z" | "X") && threads <= 1;
        Some(Self { parent, is_zombie, resident_pages })
    }
}

/// The value of [`VARIABLE`] in the environment of a process.
fn program_of(pid: Pid) -> Option<String> {
    let mut environment = Vec::new();
    let file = fs::File::open(format!("/proc/{}/environ", pid.as_raw_nonzero())).ok()?;
    file.take(MAX_ENVIRONMENT).read_to_end(&mut environment).ok()?;
    environment.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"=")?;
        std::str::from_utf8(value).ok().map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn spawn(id: &str, script: &str) -> std::process::Child {
        Command::new("sh").args(["-c", script]).env(VARIABLE, id).stdout(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn processes_belong_to_ancestors_and_marked_programs() {
        let programs = Programs::default();
        let (own, _own_exits) = programs.register("own".into());
        let (other, _other_exits) = programs.register("other".into());
        let mut child = spawn("own", "sleep 60 & echo $!; wait");
        own.started(Pid::from_child(&child));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        let grandchild = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let stranger = spawn("unknown", "exec sleep 60");
        let table = ProcessTable::read();
        let both = [own.clone(), other];
        let owner = |pid| table.owner(pid, &both).map(|program| program.id.clone());
        assert_eq!(owner(grandchild).as_deref(), Some("own"));
        assert_eq!(owner(Pid::from_child(&stranger)), None);
        assert_eq!(program_of(grandchild).as_deref(), Some("own"));
        // An orphan is recognised by its variable.
        own.started(Pid::from_child(&stranger));
        assert_eq!(owner(grandchild).as_deref(), Some("own"));
        for mut process in [child, stranger] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        rustix::process::kill_process(grandchild, Signal::KILL).unwrap();
    }
}
