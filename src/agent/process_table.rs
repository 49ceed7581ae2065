//! The processes of the sandbox as `/proc` lists them, and to which program each belongs.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::rc::Rc;

use rustix::process::{Pid, Signal};

use super::programs::{Program, VARIABLE};

/// How much of an environment is searched for the variable, bytes.
const MAX_ENVIRONMENT: u64 = 256 << 10;

/// The processes of the sandbox at one moment, without the agent.
pub(super) struct ProcessTable(HashMap<Pid, ProcessRow>);

struct ProcessRow {
    parent: i32,
    group: i32,
    /// When it started, in ticks since the boot. Tells it from a later process with the same PID.
    started: u64,
    is_zombie: bool,
    resident_pages: u64,
}

/// Processes that are about to be killed, and those that are killed already, with the time of their start.
#[derive(Default)]
pub(super) struct Victims {
    all: HashMap<(Pid, u64), Fate>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stopped,
    Killed,
}

/// Processes that belong to no program.
#[derive(Default)]
pub(super) struct Unowned {
    /// Each with the time of its start.
    pub processes: Vec<(Pid, u64)>,
    /// Process groups to which nothing else belongs.
    pub groups: HashSet<Pid>,
}

impl Victims {
    /// Kills groups as a whole, which no process escapes by starting others, and stops the processes of other groups.
    pub fn stop(&mut self, found: Unowned) {
        for group in found.groups {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        for (pid, started) in found.processes {
            let _ = rustix::process::kill_process(pid, Signal::STOP);
            self.all.insert((pid, started), Fate::Stopped);
        }
    }

    /// Kills those that were stopped since the last time, and returns how many.
    pub fn kill_stopped(&mut self) -> usize {
        let mut count = 0;
        for ((pid, _), fate) in self.all.iter_mut().filter(|(_, fate)| **fate == Fate::Stopped) {
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
            *fate = Fate::Killed;
            count += 1;
        }
        count
    }

    fn contains(&self, pid: Pid, row: &ProcessRow) -> bool {
        self.all.contains_key(&(pid, row.started))
    }
}

/// The owners of processes, as far as they were looked for.
type Owners<'a> = HashMap<Pid, Option<&'a Rc<Program>>>;

impl ProcessTable {
    pub fn read() -> Self {
        let own = rustix::process::getpid();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        Self(pids.filter(|pid| *pid != own).filter_map(|pid| Some((pid, ProcessRow::read(pid)?))).collect())
    }

    /// Notes which programs without a process of their own have left others behind. Returns the living processes that belong
    /// to none of the programs, without the known victims.
    pub fn note_survivors(&self, programs: &[Rc<Program>], victims: &Victims) -> Unowned {
        let mut owners = Owners::new();
        let mut found = Unowned::default();
        let (mut survivors, mut shared_groups) = (Vec::new(), HashSet::from([Some(rustix::process::getpgrp())]));
        for (pid, row) in self.living() {
            let group = Pid::from_raw(row.group);
            match self.owner(pid, programs, victims, &mut owners) {
                Some(owner) => {
                    survivors.push(owner);
                    shared_groups.insert(group);
                }
                None if victims.contains(pid, row) => {}
                None => {
                    found.processes.push((pid, row.started));
                    found.groups.extend(group);
                }
            }
        }
        found.groups.retain(|group| !shared_groups.contains(&Some(*group)));
        for program in programs {
            program.note_survivors(survivors.iter().any(|owner| Rc::ptr_eq(owner, program)));
        }
        found
    }

    /// The program to which the process with the most memory belongs.
    pub fn owner_of_largest<'a>(&self, programs: &'a [Rc<Program>]) -> Option<&'a Rc<Program>> {
        let (largest, _) = self.living().max_by_key(|(_, row)| row.resident_pages)?;
        self.owner(largest, programs, &Victims::default(), &mut Owners::new())
    }

    fn living(&self) -> impl Iterator<Item = (Pid, &ProcessRow)> {
        self.0.iter().filter(|(_, row)| !row.is_zombie).map(|(pid, row)| (*pid, row))
    }

    /// The program among `programs` to which a process belongs: its own, or that of its nearest ancestor that has one, by PID or
    /// variable.
    fn owner<'a>(
        &self,
        pid: Pid,
        programs: &'a [Rc<Program>],
        victims: &Victims,
        owners: &mut Owners<'a>,
    ) -> Option<&'a Rc<Program>> {
        let mut line = Vec::new();
        let mut owner = None;
        let mut ancestor = Some(pid);
        while let Some((one, row)) = ancestor.and_then(|one| Some((one, self.0.get(&one)?))) {
            if let Some(known) = owners.get(&one) {
                owner = *known;
                break;
            }
            let of_pid = programs.iter().find(|program| program.pid() == Some(one));
            // PIDs can be reused while the table is read, so a circle is possible: it ends here.
            owners.insert(one, of_pid);
            if of_pid.is_some() {
                owner = of_pid;
                break;
            }
            line.push((one, row));
            ancestor = Pid::from_raw(row.parent);
        }
        // From the oldest ancestor on, so that each variable is read once.
        for (one, row) in line.into_iter().rev() {
            if owner.is_none() && !victims.contains(one, row) {
                let id = program_of(one);
                owner = id.and_then(|id| programs.iter().find(|program| program.id == id && program.may_have_processes()));
            }
            owners.insert(one, owner);
        }
        owner
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
        let group = fields.next()?.parse().ok()?;
        // The number of threads, the start and the resident set are the 20th, 22nd and 24th field of all.
        let threads: u64 = fields.nth(14)?.parse().ok()?;
        let started = fields.nth(1)?.parse().ok()?;
        let resident_pages = fields.nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
        // A process whose first thread has ended looks like a zombie while others go on.
        let is_zombie = matches!(state, "Z" | "X") && threads <= 1;
        Some(Self { parent, group, started, is_zombie, resident_pages })
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

    use super::super::programs::Programs;
    use super::*;

    fn spawn(id: &str, script: &str) -> std::process::Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env(VARIABLE, id).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// The first line that a process prints.
    fn first_line(child: &mut std::process::Child) -> String {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        line
    }

    /// A process that waits for ever. It runs its program already: while it is loaded, a process has no environment.
    fn spawn_waiting(id: &str) -> std::process::Child {
        let mut child = spawn(id, "echo ready; read line");
        first_line(&mut child);
        child
    }

    #[test]
    fn processes_belong_to_ancestors_and_marked_programs() {
        let programs = Programs::default();
        let (own, _own_exits) = programs.register("own".into());
        let (other, _other_exits) = programs.register("other".into());
        let mut child = spawn("own", "env -i sh -c 'sleep 60 & echo $!; wait' & wait");
        own.started(Pid::from_child(&child));
        let grandchild = Pid::from_raw(first_line(&mut child).trim().parse().unwrap()).unwrap();
        let stranger = spawn_waiting("unknown");
        let mut orphan = spawn_waiting("other");
        let table = ProcessTable::read();
        let both = [own.clone(), other.clone()];
        let owner = |pid: Pid| {
            let owner = table.owner(pid, &both, &Victims::default(), &mut Owners::new());
            owner.map(|program| program.id.clone())
        };
        assert_eq!(owner(grandchild).as_deref(), Some("own"), "by its ancestor, without the variable");
        assert_eq!(owner(Pid::from_child(&stranger)), None);
        assert_eq!(owner(Pid::from_child(&orphan)), None, "its program has no processes");
        assert_eq!(program_of(Pid::from_child(&orphan)).as_deref(), Some("other"));
        // An orphan is recognised by its variable, once its program has lost its process.
        other.note_survivors(true);
        other.started(Pid::from_child(&stranger));
        assert_eq!(owner(Pid::from_child(&orphan)).as_deref(), Some("other"));
        // All at once. They share the group of this test.
        let found = table.note_survivors(&both, &Victims::default());
        assert!(!found.processes.iter().any(|(pid, _)| [grandchild, Pid::from_child(&orphan)].contains(pid)));
        assert!(!found.groups.contains(&rustix::process::getpgrp()));
        orphan.kill().unwrap();
        orphan.wait().unwrap();
        for mut process in [child, stranger] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        rustix::process::kill_process(grandchild, Signal::KILL).unwrap();
    }

    #[test]
    fn program_without_survivors_is_forgotten() {
        let programs = Programs::default();
        let (own, _exits) = programs.register("program-without-survivors".into());
        own.note_survivors(true);
        assert!(!programs.has_processes(&own));
    }
}
