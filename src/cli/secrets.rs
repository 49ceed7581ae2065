//! `--secret NAME@HOST` and `[secrets]` of the configuration file: what code uses and cannot read.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow, bail};

use crate::config::SecretConfig;
use crate::policy::{Secret, SecretValue};

/// Parses the value of `--secret`, whose value is a variable of this environment, so that the process list does not show it.
pub(super) fn parse(text: &str) -> Result<Secret, String> {
    let (name, hosts) =
        text.split_once('@').ok_or("write NAME@HOST, for a secret in the variable NAME of this environment")?;
    let value = std::env::var(name).map_err(|_| format!("{name} is not set in this environment"))?;
    let hosts: Vec<String> = hosts.split(',').map(str::to_owned).collect();
    Secret::new(name, &hosts, None, None, Some(name), SecretValue::new(value)).map_err(|error| error.to_string())
}

/// Reads the secrets that an operator declares.
///
/// # Errors
/// Names the first that cannot be used, without its value.
pub(super) fn open(secrets: BTreeMap<String, SecretConfig>) -> anyhow::Result<Vec<Secret>> {
    let open =
        |(name, config): (String, SecretConfig)| open_one(&name, config).with_context(|| format!("the secret {name:?}"));
    secrets.into_iter().map(open).collect()
}

fn open_one(name: &str, config: SecretConfig) -> anyhow::Result<Secret> {
    let SecretConfig { hosts, header, format, env, read_only, value, value_file } = config;
    let value = match (value, value_file) {
        (Some(value), None) => value,
        (None, Some(path)) => {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            SecretValue::new(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        _ => bail!("give either `value-file` or `value`"),
    };
    let secret = Secret::new(name, &hosts, header.as_deref(), format.as_deref(), env.as_deref(), value);
    let secret = secret.map_err(|error| anyhow!(error))?;
    Ok(if read_only { secret.read_only() } else { secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_secret_is_read_from_its_file() {
        let path = std::env::temp_dir().join(format!("cellkeep-secret-{}", crate::ids::random_uuid()));
        std::fs::write(&path, "hunter2hunter2\n").unwrap();
        let config = |value: Option<&str>, file: Option<&std::path::Path>| SecretConfig {
            hosts: vec!["a.example".to_owned()],
            header: Some("X-Key".to_owned()),
            value: value.map(|value| SecretValue::new(value.to_owned())),
            value_file: file.map(std::path::Path::to_owned),
            ..SecretConfig::default()
        };
        let read = |config| open([("A".to_owned(), config)].into()).map_err(|error| format!("{error:#}"));
        assert_eq!(read(config(None, Some(&path))).unwrap()[0].value.reveal(), "hunter2hunter2");
        for (config, expected) in [
            (config(None, None), "value-file"),
            (config(Some("hunter2"), None), "8 to 8192"),
            (config(None, Some(std::path::Path::new("/nowhere"))), "/nowhere"),
        ] {
            let error = read(config).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        }
        let printed = toml::to_string(&config(Some("hunter2hunter2"), None)).unwrap();
        assert!(!printed.contains("hunter2"), "{printed}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn secret_option_needs_a_variable_and_hosts() {
        assert!(parse("PATH").unwrap_err().contains("NAME@HOST"));
        assert!(parse("CELLKEEP_NO_SUCH_VARIABLE@a.example").unwrap_err().contains("not set"));
    }
}
