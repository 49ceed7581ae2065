//! Parameters on the command line. As in papermill, where a name occurs twice the more specific option wins: -b < -f < -y <
//! -p < -r.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use crate::notebook::parameters::{Literal, Parameters, guess};
use crate::wire::content::{iso8601, now_iso8601};

#[derive(Args, Default)]
pub(in crate::cli) struct ParameterArgs {
    /// Set a parameter; True, False, None and numbers are typed, everything else is text
    #[arg(short, long = "parameter", num_args = 2, value_names = ["NAME", "VALUE"], help_heading = "Parameters", allow_hyphen_values = true)]
    parameters: Vec<String>,
    /// Set a parameter to text, even if it looks like a number
    #[arg(short, long = "raw-parameter", num_args = 2, value_names = ["NAME", "STRING"], help_heading = "Parameters", allow_hyphen_values = true)]
    raw_parameters: Vec<String>,
    /// Read parameters from a YAML file
    #[arg(short = 'f', long = "parameters-file", value_name = "FILE", help_heading = "Parameters")]
    parameter_files: Vec<PathBuf>,
    /// Set parameters from YAML: 'year: 2026' or '{year: 2026}'
    #[arg(short, long = "parameters-yaml", value_name = "YAML", help_heading = "Parameters")]
    yaml: Vec<String>,
    /// Set parameters from base64-encoded YAML. If a name is set twice, the later option in this order wins: -b -f -y -p -r
    #[arg(short, long = "parameters-base64", value_name = "BASE64", help_heading = "Parameters")]
    base64: Vec<String>,
    /// Inject the notebook's paths as PAPERMILL_INPUT_PATH and PAPERMILL_OUTPUT_PATH
    #[arg(long, help_heading = "Parameters")]
    inject_paths: bool,
    /// Inject only PAPERMILL_INPUT_PATH
    #[arg(long, help_heading = "Parameters")]
    inject_input_path: bool,
    /// Inject only PAPERMILL_OUTPUT_PATH
    #[arg(long, help_heading = "Parameters")]
    inject_output_path: bool,
}

impl ParameterArgs {
    /// Reads all sources and merges them.
    pub fn read(&self) -> anyhow::Result<Parameters> {
        let mut all = Parameters::default();
        for text in &self.base64 {
            let bytes = STANDARD.decode(text.trim()).with_context(|| "a value of -b is not valid base64")?;
            all.extend(mapping(&String::from_utf8_lossy(&bytes), "a value of -b")?);
        }
        for path in &self.parameter_files {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            all.extend(mapping(&text, &path.display().to_string())?);
        }
        for text in &self.yaml {
            all.extend(mapping(text, "a value of -y")?);
        }
        let pairs =
            |list: &[String]| list.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect::<Vec<_>>();
        all.extend(pairs(&self.parameters).into_iter().map(|(name, value)| (name, guess(&value))));
        all.extend(pairs(&self.raw_parameters).into_iter().map(|(name, value)| (name, Literal::Text(value))));
        Ok(all)
    }

    /// Adds the paths that `--inject-*paths` asks for.
    pub fn add_paths(&self, parameters: &mut Parameters, source: &Path, target: &Path) {
        let text = |path: &Path| Literal::Text(path.display().to_string());
        if self.inject_paths || self.inject_input_path {
            parameters.set("PAPERMILL_INPUT_PATH".to_owned(), text(source));
        }
        if self.inject_paths || self.inject_output_path {
            parameters.set("PAPERMILL_OUTPUT_PATH".to_owned(), text(target));
        }
    }
}

fn mapping(text: &str, origin: &str) -> anyhow::Result<Vec<(String, Literal)>> {
    match serde_yaml_ng::from_str(text).with_context(|| format!("{origin} is not a YAML mapping of names to values"))? {
        Literal::Map(entries) => Ok(entries),
        Literal::Null => Ok(Vec::new()),
        _ => bail!("{origin} is not a YAML mapping of names to values"),
    }
}

/// The values that placeholders in paths can name: the parameters, and papermill's built-in ones under `pm`.
pub(in crate::cli) fn placeholder_values(parameters: &Parameters, run_id: &str) -> anyhow::Result<Parameters> {
    let mut all = parameters.clone();
    let utc = now_iso8601();
    let builtin =
        [("run_uuid", run_id.to_owned()), ("current_datetime_local", local_time()?), ("current_datetime_utc", utc)];
    let builtin = builtin.map(|(name, value)| (name.to_owned(), Literal::Text(value)));
    all.set("pm".to_owned(), Literal::Map(builtin.into()));
    Ok(all)
}

/// The local time in ISO 8601. The program `date` knows the time zone; a crate for time zones would serve only this line.
fn local_time() -> anyhow::Result<String> {
    let date = std::process::Command::new("date").arg("+%Y-%m-%dT%H:%M:%S.%6N").output();
    match date {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        _ if std::env::var_os("TZ").is_none() => Ok(iso8601(std::time::SystemTime::now())),
        _ => Err(anyhow!("cannot determine the local time: the program `date` failed")),
    }
}
