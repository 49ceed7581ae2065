//! The most that the clients of a server may ask for. The operator sets it; by default it is what the machine has.

use thiserror::Error;

use super::{Limits, MIB, NetworkLevel, NetworkPolicy};

/// What a machine has, as far as this process may use it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    pub memory_bytes: u64,
    pub cpus: f64,
    /// Processes and threads.
    pub processes: u64,
}

/// A day in seconds.
const DAY: u64 = 86_400;
/// The largest default of the output of one execution, MiB. The server's memory holds several times as much of it.
const MAX_DEFAULT_OUTPUT_MB: u64 = 1024;

/// The ceilings of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// The greatest limits of one session.
    pub limits: Limits,
    /// The widest network policy of a session.
    pub network: NetworkLevel,
    /// The longest timeout of one execution, seconds.
    pub timeout_seconds: u64,
    /// The longest idle timeout of a session, seconds.
    pub idle_timeout_seconds: u64,
    /// The longest lifetime of a session, seconds. `None` is unlimited.
    pub lifetime_seconds: Option<u64>,
    pub principal: PrincipalCeilings,
}

/// The most that one principal may hold or use. `None` is no ceiling of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrincipalCeilings {
    /// Living sessions. `None`: as many as it leaves free for the others, or all if there are no others.
    pub sessions: Option<u64>,
    /// The sum of the process limits of living sessions. `None`: as for sessions.
    pub processes: Option<u64>,
    /// Stored data, MiB.
    pub data_mb: Option<u64>,
    /// Executions: so many at once, and so many in each hour after that (a token bucket).
    pub executions_per_hour: Option<u32>,
    /// Seconds that its sessions live in a day, all sessions together.
    pub session_seconds_per_day: Option<u64>,
}

impl Ceilings {
    /// The defaults for a machine: a session gets at most three quarters of its memory, a quarter of its processes, and all of
    /// its CPUs. The workspace is memory, too.
    pub fn of_machine(machine: Machine) -> Self {
        let (least, most) = (Limits::MIN, Limits::MAX);
        let memory_mb = (machine.memory_bytes / MIB / 4 * 3).clamp(least.memory_mb, most.memory_mb);
        let limits = Limits {
            memory_mb,
            cpus: machine.cpus.clamp(least.cpus, most.cpus),
            pids: (machine.processes / 4).clamp(least.pids, most.pids),
            disk_mb: memory_mb.min(most.disk_mb),
            output_mb: (memory_mb / 16).clamp(Limits::default().output_mb, MAX_DEFAULT_OUTPUT_MB),
        };
        Self {
            limits,
            network: NetworkLevel::None,
            timeout_seconds: DAY,
            idle_timeout_seconds: DAY,
            lifetime_seconds: None,
            principal: PrincipalCeilings::default(),
        }
    }

    /// Checks the limits of a new session.
    ///
    /// # Errors
    /// The first limit above its ceiling.
    pub fn check_limits(&self, asked: &Limits) -> Result<(), AboveCeiling> {
        let most = &self.limits;
        // All limits are exact as floats.
        check("limits.memory_mb", asked.memory_mb as f64, most.memory_mb as f64, "--max-memory-mb")?;
        check("limits.cpus", asked.cpus, most.cpus, "--max-cpus")?;
        check("limits.pids", asked.pids as f64, most.pids as f64, "--max-pids")?;
        check("limits.disk_mb", asked.disk_mb as f64, most.disk_mb as f64, "--max-disk-mb")?;
        check("limits.output_mb", asked.output_mb as f64, most.output_mb as f64, "--max-output-mb")
    }

    /// Checks the timeout of executions, in seconds.
    pub fn check_timeout(&self, asked: Option<f64>) -> Result<(), AboveCeiling> {
        check("timeout_seconds", asked.unwrap_or(0.0), self.timeout_seconds as f64, "--max-timeout")
    }

    /// Checks the idle timeout of a session, in seconds.
    pub fn check_idle_timeout(&self, asked: Option<u64>) -> Result<(), AboveCeiling> {
        let asked = asked.unwrap_or(0) as f64;
        check("idle_timeout_seconds", asked, self.idle_timeout_seconds as f64, "--max-idle-timeout")
    }

    /// Checks the lifetime of a session, in seconds.
    pub fn check_lifetime(&self, asked: Option<u64>) -> Result<(), AboveCeiling> {
        let most = self.lifetime_seconds.unwrap_or(u64::MAX) as f64;
        check("ttl_seconds", asked.unwrap_or(0) as f64, most, "--max-lifetime")
    }

    pub fn allows(&self, network: &NetworkPolicy) -> bool {
        network.level() <= self.network
    }
}

fn check(field: &'static str, asked: f64, most: f64, option: &'static str) -> Result<(), AboveCeiling> {
    if asked <= most { Ok(()) } else { Err(AboveCeiling { field, asked, most, option }) }
}

/// A request for more than the operator allows.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{field} is {asked}, and this server allows at most {most}; the operator can raise that with {option}")]
pub struct AboveCeiling {
    /// The field of the request.
    pub field: &'static str,
    asked: f64,
    most: f64,
    /// The option of `cellkeep serve`.
    option: &'static str,
}

/// Whether a principal that holds `own` may take `more` of what has this `limit`, of which `total` is held by all.
///
/// Beside other principals, one may hold at most as much as is left free then: so a newcomer always finds something, however
/// many are greedy, and nothing is set aside for principals that ask for nothing.
pub fn leaves_a_share(own: u64, more: u64, total: u64, limit: u64) -> bool {
    let free = limit.saturating_sub(total).saturating_sub(more);
    // A principal that holds nothing may take what is left, also if nothing is free then.
    (own == 0 && total.saturating_add(more) <= limit) || own.saturating_add(more) <= free
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { memory_bytes: 8 << 30, cpus: 2.0, processes: 32_768 };

    #[test]
    fn defaults_never_exceed_the_machine() {
        let ceilings = Ceilings::of_machine(MACHINE);
        let expected = Limits { memory_mb: 6144, cpus: 2.0, pids: 8192, disk_mb: 6144, output_mb: 384 };
        assert_eq!(ceilings.limits, expected);
        assert!(ceilings.allows(&NetworkPolicy::None) && !ceilings.allows(&NetworkPolicy::Packages));
        let ceilings = Ceilings { network: NetworkLevel::Allow, ..ceilings };
        assert!(ceilings.allows(&NetworkPolicy::Packages) && !ceilings.allows(&NetworkPolicy::Open));
        for machine in [
            Machine { memory_bytes: 0, cpus: 0.0, processes: 0 },
            Machine { memory_bytes: u64::MAX, cpus: 1e9, processes: u64::MAX },
        ] {
            assert_eq!(Ceilings::of_machine(machine).limits.validate(), Ok(()), "{machine:?}");
        }
    }

    #[test]
    fn each_excess_names_field_maximum_and_option() {
        let ceilings = Ceilings { lifetime_seconds: Some(60), ..Ceilings::of_machine(MACHINE) };
        let most = ceilings.limits.clone();
        assert_eq!(ceilings.check_limits(&most), Ok(()));
        for (asked, field, option) in [
            (Limits { memory_mb: 6145, ..most.clone() }, "limits.memory_mb", "--max-memory-mb"),
            (Limits { cpus: 2.5, ..most.clone() }, "limits.cpus", "--max-cpus"),
            (Limits { pids: 8193, ..most.clone() }, "limits.pids", "--max-pids"),
            (Limits { disk_mb: 6145, ..most.clone() }, "limits.disk_mb", "--max-disk-mb"),
            (Limits { output_mb: 385, ..most.clone() }, "limits.output_mb", "--max-output-mb"),
        ] {
            let error = ceilings.check_limits(&asked).unwrap_err();
            assert_eq!((error.field, error.option), (field, option));
        }
        let message = ceilings.check_timeout(Some(86_401.0)).unwrap_err().to_string();
        let expected = "timeout_seconds is 86401, and this server allows at most 86400; \
                        the operator can raise that with --max-timeout";
        assert_eq!(message, expected);
        assert!(ceilings.check_timeout(Some(f64::NAN)).is_err() && ceilings.check_timeout(None).is_ok());
        assert!(ceilings.check_idle_timeout(Some(86_401)).is_err() && ceilings.check_idle_timeout(Some(86_400)).is_ok());
        assert!(ceilings.check_lifetime(Some(61)).is_err() && ceilings.check_lifetime(Some(60)).is_ok());
        assert!(Ceilings::of_machine(MACHINE).check_lifetime(Some(u64::MAX)).is_ok());
    }

    /// Principals that take whatever they can get, one after the other.
    fn take_all(limit: u64, principals: usize) -> Vec<u64> {
        let mut held = vec![0; principals];
        for principal in 0..principals {
            while leaves_a_share(held[principal], 1, held.iter().sum(), limit) {
                held[principal] += 1;
            }
        }
        held
    }

    #[test]
    fn greedy_principals_leave_something_for_newcomers() {
        assert_eq!(take_all(100, 4), [50, 25, 12, 6]);
        assert_eq!(take_all(1, 2), [1, 0]);
        assert_eq!(take_all(2, 3), [1, 1, 0]);
        assert_eq!(take_all(3, 4), [1, 1, 1, 0]);
        assert!(take_all(100, 100).iter().sum::<u64>() <= 100);
    }
}
