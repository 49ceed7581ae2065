//! The options of `cellkeep serve` about what clients may ask for.

use clap::Args;

use crate::config::CeilingsConfig;
use crate::policy::{Ceilings, LimitOutOfRange, Limits, NetworkLevel, PrincipalCeilings};

/// The most that clients may ask for. The defaults are what the machine has.
#[derive(Args)]
#[command(next_help_heading = "Ceilings for clients")]
pub(super) struct CeilingArgs {
    /// The greatest memory of a session, MB [default: three quarters of the machine's]
    #[arg(long, value_name = "MB", env = "CELLKEEP_MAX_MEMORY_MB")]
    max_memory_mb: Option<u64>,
    /// The most CPUs of a session [default: the machine's]
    #[arg(long, value_name = "N", env = "CELLKEEP_MAX_CPUS")]
    max_cpus: Option<f64>,
    /// The most processes and threads of a session [default: a quarter of what the machine allows]
    #[arg(long, value_name = "N", env = "CELLKEEP_MAX_PIDS")]
    max_pids: Option<u64>,
    /// The greatest workspace of a session, MB; it is memory [default: three quarters of the machine's memory]
    #[arg(long, value_name = "MB", env = "CELLKEEP_MAX_DISK_MB")]
    max_disk_mb: Option<u64>,
    /// The most output of one execution, MB [default: a sixteenth of the memory of a session, 100 to 1024]
    #[arg(long, value_name = "MB", env = "CELLKEEP_MAX_OUTPUT_MB")]
    max_output_mb: Option<u64>,
    /// The longest timeout of an execution [default: 86400]
    #[arg(long, value_name = "SECS", env = "CELLKEEP_MAX_TIMEOUT")]
    max_timeout: Option<u64>,
    /// The longest idle timeout of a session [default: 86400, or --idle-timeout if that is longer]
    #[arg(long, value_name = "SECS", env = "CELLKEEP_MAX_IDLE_TIMEOUT")]
    max_idle_timeout: Option<u64>,
    /// The longest lifetime of a session; 0 is unlimited [default: 0]
    #[arg(long, value_name = "SECS", env = "CELLKEEP_MAX_LIFETIME")]
    max_lifetime: Option<u64>,
    /// The widest network that clients may ask for: none, packages (package indexes), allow (any hosts that they name), or open (all that
    /// this machine reaches) [default: none; without a value: open]
    #[arg(
        long, value_name = "POLICY", env = "CELLKEEP_ALLOW_NETWORK", num_args = 0..=1, require_equals = true,
        default_missing_value = "open", value_parser = parse_level
    )]
    allow_network: Option<NetworkLevel>,
    /// The most living sessions of one principal; 0: as many as it leaves free for the others [default: 0]
    #[arg(long, value_name = "COUNT", env = "CELLKEEP_MAX_SESSIONS_PER_PRINCIPAL")]
    max_sessions_per_principal: Option<u64>,
    /// The most processes of the living sessions of one principal, by their limits; 0: as many as it leaves free [default: 0]
    #[arg(long, value_name = "COUNT", env = "CELLKEEP_MAX_PROCESSES_PER_PRINCIPAL")]
    max_processes_per_principal: Option<u64>,
    /// The most stored data of one principal, MB; 0: only --max-data-mb holds [default: 0]
    #[arg(long, value_name = "MB", env = "CELLKEEP_MAX_DATA_MB_PER_PRINCIPAL")]
    max_data_mb_per_principal: Option<u64>,
    /// The most executions of one principal: so many at once, and so many in each hour after that; 0 is unlimited [default: 0]
    #[arg(long, value_name = "COUNT", env = "CELLKEEP_MAX_EXECUTIONS_PER_HOUR")]
    max_executions_per_hour: Option<u32>,
    /// The seconds that the sessions of one principal may live in a day, all together; 0 is unlimited [default: 0]
    #[arg(long, value_name = "SECS", env = "CELLKEEP_MAX_SESSION_SECONDS_PER_DAY")]
    max_session_seconds_per_day: Option<u64>,
}

fn parse_level(text: &str) -> Result<NetworkLevel, String> {
    let all = [NetworkLevel::None, NetworkLevel::Packages, NetworkLevel::Allow, NetworkLevel::Open];
    let found = all.into_iter().find(|level| level.to_string() == text);
    found.ok_or_else(|| "use none, packages, allow or open".to_owned())
}

impl CeilingArgs {
    /// Merges with the configuration file and the defaults of the machine.
    pub fn merged_over(&self, file: CeilingsConfig, defaults: &Ceilings, idle_timeout: Option<u64>) -> CeilingsConfig {
        let Limits { memory_mb, cpus, pids, disk_mb, output_mb } = defaults.limits;
        let idle = defaults.idle_timeout_seconds.max(idle_timeout.unwrap_or(0));
        CeilingsConfig {
            memory_mb: self.max_memory_mb.or(file.memory_mb).or(Some(memory_mb)),
            cpus: self.max_cpus.or(file.cpus).or(Some(cpus)),
            pids: self.max_pids.or(file.pids).or(Some(pids)),
            disk_mb: self.max_disk_mb.or(file.disk_mb).or(Some(disk_mb)),
            output_mb: self.max_output_mb.or(file.output_mb).or(Some(output_mb)),
            timeout: self.max_timeout.or(file.timeout).or(Some(defaults.timeout_seconds)),
            idle_timeout: self.max_idle_timeout.or(file.idle_timeout).or(Some(idle)),
            lifetime: self.max_lifetime.or(file.lifetime).or(Some(0)),
            network: self.allow_network.or(file.network).or(Some(defaults.network)),
            sessions_per_principal: self.max_sessions_per_principal.or(file.sessions_per_principal).or(Some(0)),
            processes_per_principal: self.max_processes_per_principal.or(file.processes_per_principal).or(Some(0)),
            data_mb_per_principal: self.max_data_mb_per_principal.or(file.data_mb_per_principal).or(Some(0)),
            executions_per_hour: self.max_executions_per_hour.or(file.executions_per_hour).or(Some(0)),
            session_seconds_per_day: self.max_session_seconds_per_day.or(file.session_seconds_per_day).or(Some(0)),
        }
    }
}

/// The ceilings of a configuration, in which 0 stands for no ceiling.
///
/// # Errors
/// A limit that no session can have.
pub(super) fn ceilings(config: CeilingsConfig, defaults: Ceilings) -> Result<Ceilings, LimitOutOfRange> {
    let limits = Limits {
        memory_mb: config.memory_mb.unwrap_or(defaults.limits.memory_mb),
        cpus: config.cpus.unwrap_or(defaults.limits.cpus),
        pids: config.pids.unwrap_or(defaults.limits.pids),
        disk_mb: config.disk_mb.unwrap_or(defaults.limits.disk_mb),
        output_mb: config.output_mb.unwrap_or(defaults.limits.output_mb),
    };
    limits.validate()?;
    let set = |value: Option<u64>| value.filter(|value| *value > 0);
    Ok(Ceilings {
        limits,
        network: config.network.unwrap_or(defaults.network),
        timeout_seconds: config.timeout.unwrap_or(defaults.timeout_seconds).max(1),
        idle_timeout_seconds: config.idle_timeout.unwrap_or(defaults.idle_timeout_seconds),
        lifetime_seconds: set(config.lifetime),
        principal: PrincipalCeilings {
            sessions: set(config.sessions_per_principal),
            processes: set(config.processes_per_principal),
            data_mb: set(config.data_mb_per_principal),
            executions_per_hour: config.executions_per_hour.filter(|count| *count > 0),
            session_seconds_per_day: set(config.session_seconds_per_day),
        },
    })
}
