//! The settings that all notebooks of a command share.

use std::time::Duration;

use super::parameter_args::ParameterArgs;
use crate::cli::options::SandboxArgs;
use crate::config::Paths;
use crate::notebook::parameters::Parameters;
use crate::output::StreamStyle;

pub(in crate::cli) struct Settings {
    pub paths: Paths,
    pub sandbox: SandboxArgs,
    pub kernel: Option<String>,
    pub parameters: Parameters,
    pub parameter_args: ParameterArgs,
    pub strict_parameters: bool,
    pub timeout: Option<Duration>,
    pub start_timeout: Option<Duration>,
    pub allow_errors: bool,
    pub style: StreamStyle,
    pub report_mode: bool,
    pub error_marker: bool,
    pub seed: Option<u32>,
    pub frozen: bool,
    pub no_record: bool,
    /// Whether the packages are installed that notebooks say they need.
    pub install: bool,
    /// Whether notebooks are shown and not run.
    pub inspect: bool,
    /// Whether nbval's tags and comments apply.
    pub nbval: bool,
}
