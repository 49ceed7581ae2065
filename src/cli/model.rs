//! Which model people can talk to: its options, and what they come to.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use crate::chat::{Key, ModelSettings};
use crate::config::ModelConfig;

/// A model to talk to.
#[derive(Args)]
pub(super) struct ModelArgs {
    /// A model's endpoint that speaks OpenAI's chat completions, as http://127.0.0.1:11434/v1; people can then talk to it
    #[arg(long, value_name = "URL", env = "CELLKEEP_MODEL_URL")]
    model_url: Option<String>,
    /// The model's name at that endpoint
    #[arg(long = "model", value_name = "NAME", env = "CELLKEEP_MODEL")]
    model_name: Option<String>,
    /// A file with the key for that endpoint, if CELLKEEP_MODEL_KEY does not hold it
    #[arg(long, value_name = "FILE", env = "CELLKEEP_MODEL_KEY_FILE")]
    model_key_file: Option<PathBuf>,
}

impl ModelArgs {
    /// What flags and environment say, else what the file says.
    pub fn over(&self, file: ModelConfig) -> ModelConfig {
        ModelConfig {
            url: self.model_url.clone().or(file.url).filter(|url| !url.is_empty()),
            name: self.model_name.clone().or(file.name).filter(|name| !name.is_empty()),
            key_file: self.model_key_file.clone().or(file.key_file),
        }
    }

    /// The model, if one is named. Its key is read now, and stands in no configuration.
    pub fn settings(&self, config: ModelConfig) -> anyhow::Result<Option<ModelSettings>> {
        let (url, name) = match (config.url, config.name) {
            (Some(url), Some(name)) => (url, name),
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(anyhow!("a model's endpoint needs a model: give its name with --model")),
            (None, Some(_)) => return Err(anyhow!("a model needs an endpoint: give its address with --model-url")),
        };
        let given = std::env::var("CELLKEEP_MODEL_KEY").ok();
        let key = Key::read(given.as_deref(), config.key_file.as_deref()).map_err(|error| anyhow!(error))?;
        Ok(Some(ModelSettings { url, name, key }))
    }
}
