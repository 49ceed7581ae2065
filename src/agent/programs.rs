//! The programs of a sandbox: kernels and processes, each with the processes that it has started.
//!
//! A program's own process is known by its PID. Its descendants are found by their parents, and those whose parents have
//! exited by [`VARIABLE`], which they inherit. Code can remove that variable from its environment. For that reason, killing a
//! program also kills every process that belongs to no program.

use std::cell::{Cell, RefCell};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;

use rustix::process::{Pid, Signal};
use tokio::sync::mpsc;

use super::process_table::{ProcessTable, Victims};

/// The variable that tells to which program a process belongs.
pub(super) const VARIABLE: &str = "CELLKEEP_PROGRAM";
/// How often the processes are listed while a program is killed: code can start some meanwhile. Stopped processes start none,
/// and they count for the limit of processes, so two or three rounds suffice unless processes continue each other.
const MAX_ROUNDS: usize = 16;

/// One program. It is registered as long as the handle lives.
pub(super) struct Program {
    /// The value of [`VARIABLE`].
    pub id: String,
    pid: Cell<Option<Pid>>,
    exits: mpsc::UnboundedSender<ExitStatus>,
    /// It was killed because the sandbox had exceeded its memory.
    over_memory: Cell<bool>,
    /// The agent has killed it, whatever for.
    is_killed: Cell<bool>,
    /// Its process has exited, and what that has left behind may go on.
    may_have_survivors: Cell<bool>,
}

impl Program {
    /// Notes the program's new process. Called before anything can reap it.
    pub fn started(&self, pid: Pid) {
        self.pid.set(Some(pid));
        self.is_killed.set(false);
        self.over_memory.set(false);
    }

    pub fn pid(&self) -> Option<Pid> {
        self.pid.get()
    }

    /// Whether its process runs, or others may that it has left behind.
    pub fn may_have_processes(&self) -> bool {
        self.pid.get().is_some() || self.may_have_survivors.get()
    }

    /// Notes whether others run that its process has left behind. While its process runs, this means nothing.
    pub fn note_survivors(&self, exist: bool) {
        self.may_have_survivors.set(exist);
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
pub(super) struct Programs {
    all: RefCell<Vec<Rc<Program>>>,
    /// Kills of the out-of-memory killer that ended a program, or are older than the newest program.
    explained_oom_kills: Cell<u64>,
}

impl Programs {
    /// Registers a program. Its exits arrive at the receiver.
    pub fn register(&self, id: String) -> (Rc<Program>, mpsc::UnboundedReceiver<ExitStatus>) {
        let (exits, receiver) = mpsc::unbounded_channel();
        let program = Rc::new(Program {
            id,
            pid: Cell::new(None),
            exits,
            over_memory: Cell::new(false),
            is_killed: Cell::new(false),
            may_have_survivors: Cell::new(false),
        });
        self.all.borrow_mut().push(program.clone());
        (program, receiver)
    }

    pub fn forget(&self, program: &Rc<Program>) {
        self.all.borrow_mut().retain(|one| !Rc::ptr_eq(one, program));
    }

    /// Ignores earlier kills of the out-of-memory killer, because a program is about to start, which they did not end.
    pub fn ignore_oom_kills(&self, until_now: u64) {
        self.explained_oom_kills.set(until_now);
    }

    /// Reaps every exited process: those of programs, and orphans that PID 1 inherits. `oom_kills` counts how often the
    /// out-of-memory killer has killed a process of the sandbox.
    pub fn reap(&self, oom_kills: impl Fn() -> u64) {
        while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            let exited = self.all.borrow().iter().find(|program| program.pid.get() == Some(pid)).cloned();
            if let Some(program) = exited {
                program.pid.set(None);
                program.may_have_survivors.set(true);
                let status = ExitStatus::from_raw(status.as_raw());
                if status.signal() == Some(libc::SIGKILL) && !program.is_killed.get() && self.explain_oom_kill(oom_kills()) {
                    program.over_memory.set(true);
                }
                let _ = program.exits.send(status);
            }
        }
    }

    /// Whether the out-of-memory killer has killed a process that is not accounted for, which is then.
    fn explain_oom_kill(&self, counted: u64) -> bool {
        let explained = self.explained_oom_kills.get();
        let is_new = counted > explained;
        self.explained_oom_kills.set(explained + u64::from(is_new));
        is_new
    }

    /// Whether anything of a program runs: its process, or others that it has left behind.
    pub fn has_processes(&self, program: &Rc<Program>) -> bool {
        if program.pid.get().is_none() && program.may_have_survivors.get() {
            let programs = self.all.borrow().clone();
            ProcessTable::read().note_survivors(&programs, &Victims::default());
        }
        program.may_have_processes()
    }

    /// Kills all processes of a program, and those that belong to none.
    pub fn kill(&self, program: &Rc<Program>) {
        program.is_killed.set(true);
        let others: Vec<Rc<Program>> = self.all.borrow().iter().filter(|one| !Rc::ptr_eq(one, program)).cloned().collect();
        kill_all_but(&others, program.pid.get());
    }

    /// Kills every process of the sandbox but the agent.
    pub fn kill_everything(&self) {
        kill_all(None);
        self.all.borrow().iter().for_each(|program| kill_all(program.pid.get()));
    }

    /// Kills the program to which the process with the most memory belongs, because the sandbox has exceeded its limit. If that
    /// process belongs to none, all those that belong to none are killed.
    pub fn kill_largest(&self) {
        let programs = self.all.borrow().clone();
        match ProcessTable::read().owner_of_largest(&programs) {
            Some(program) => {
                self.kill(program);
                program.over_memory.set(true);
            }
            None => kill_all_but(&programs, None),
        }
    }
}

/// Kills every process that belongs to none of `spared`. Each that shares its group with others is stopped first: a process that
/// is killed makes room for another one, which a fork bomb would start at once. In tests, where the agent is not PID 1, only the
/// process group of `pid`.
fn kill_all_but(spared: &[Rc<Program>], pid: Option<Pid>) {
    let mut victims = Victims::default();
    for _ in 0..MAX_ROUNDS {
        if !is_init() || spared.iter().all(|program| !program.may_have_processes()) {
            return kill_all(pid);
        }
        let table = ProcessTable::read();
        let found = table.note_survivors(spared, &victims);
        if found.processes.is_empty() {
            if victims.kill_stopped() == 0 {
                return;
            }
        } else {
            victims.stop(found);
        }
    }
    // They continue each other faster than they can be stopped. Only this call leaves none out, and spares none either.
    kill_all(pid);
}

fn is_init() -> bool {
    rustix::process::getpid().as_raw_nonzero().get() == 1
}

/// Kills every process of the sandbox but the agent: as PID 1, one call reaches the whole namespace, including daemons. In
/// tests, where the agent is not PID 1, only the process group of `pid`.
fn kill_all(pid: Option<Pid>) {
    if is_init() {
        // SAFETY: a plain system call without memory arguments. rustix has no kill(-1).
        #[expect(unsafe_code, reason = "kill(-1) is the only call that leaves no process out")]
        let _ = unsafe { libc::kill(-1, libc::SIGKILL) };
    } else if let Some(pid) = pid {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_oom_kill_explains_one_death() {
        let programs = Programs::default();
        programs.ignore_oom_kills(1);
        assert!(!programs.explain_oom_kill(1), "an earlier kill ended another process");
        assert!(programs.explain_oom_kill(3) && programs.explain_oom_kill(3), "two were killed at once");
        assert!(!programs.explain_oom_kill(3));
        assert!(programs.explain_oom_kill(4));
    }
}
