//! The parameters that a command line gives, in papermill's order: what is more particular wins.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use crate::notebook::parameters::{Literal, Parameters, guess};
use crate::wire::content::{iso8601, now_iso8601};

/// Parameters for a notebook.
#[derive(Args, Default)]
pub(in crate::cli) struct GivenArgs {
    /// A parameter; True, False, None and numbers are read as such
    #[arg(short, long = "parameter", num_args = 2, value_names = ["NAME", "VALUE"], help_heading = "Parameters", allow_hyphen_values = true)]
    parameters: Vec<String>,
    /// A parameter whose value is text, whatever it looks like
    #[arg(short, long = "raw-parameter", num_args = 2, value_names = ["NAME", "STRING"], help_heading = "Parameters", allow_hyphen_values = true)]
    raw_parameters: Vec<String>,
    /// A YAML file with parameters
    #[arg(short = 'f', long = "parameters-file", value_name = "FILE", help_heading = "Parameters")]
    parameter_files: Vec<PathBuf>,
    /// Parameters as YAML: 'year: 2026' or '{year: 2026}'
    #[arg(short, long = "parameters-yaml", value_name = "YAML", help_heading = "Parameters")]
    yaml: Vec<String>,
    /// Parameters as YAML in base64. Where a name is given twice: -b < -f < -y < -p < -r
    #[arg(short, long = "parameters-base64", value_name = "BASE64", help_heading = "Parameters")]
    base64: Vec<String>,
    /// Give the notebook its paths, as PAPERMILL_INPUT_PATH and PAPERMILL_OUTPUT_PATH
    #[arg(long, help_heading = "Parameters")]
    inject_paths: bool,
    /// Only PAPERMILL_INPUT_PATH
    #[arg(long, help_heading = "Parameters")]
    inject_input_path: bool,
    /// Only PAPERMILL_OUTPUT_PATH
    #[arg(long, help_heading = "Parameters")]
    inject_output_path: bool,
}

impl GivenArgs {
    /// Reads all of them.
    pub fn read(&self) -> anyhow::Result<Parameters> {
        let mut all = Parameters::default();
        for text in &self.base64 {
            let bytes = STANDARD.decode(text.trim()).with_context(|| "a value of -b is not base64")?;
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

    /// Adds the paths, where they are asked for.
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

fn mapping(text: &str, place: &str) -> anyhow::Result<Vec<(String, Literal)>> {
    match serde_yaml_ng::from_str(text).with_context(|| format!("{place} is not a YAML mapping of names to values"))? {
        Literal::Map(entries) => Ok(entries),
        Literal::Null => Ok(Vec::new()),
        _ => bail!("{place} is not a YAML mapping of names to values"),
    }
}

/// What a path can name: the parameters, and papermill's built-in ones.
pub(in crate::cli) fn for_paths(parameters: &Parameters, run_id: &str) -> anyhow::Result<Parameters> {
    let mut all = parameters.clone();
    let utc = now_iso8601();
    let builtin =
        [("run_uuid", run_id.to_owned()), ("current_datetime_local", local_time()?), ("current_datetime_utc", utc)];
    let builtin = builtin.map(|(name, value)| (name.to_owned(), Literal::Text(value)));
    all.set("pm".to_owned(), Literal::Map(builtin.into()));
    Ok(all)
}

/// The time where this machine is. The system's `date` knows the zone; a crate for time zones would be for this one line.
fn local_time() -> anyhow::Result<String> {
    let asked = std::process::Command::new("date").arg("+%Y-%m-%dT%H:%M:%S.%6N").output();
    match asked {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        _ if std::env::var_os("TZ").is_none() => Ok(iso8601(std::time::SystemTime::now())),
        _ => Err(anyhow!("cannot tell the local time: the program `date` does not work here")),
    }
}
