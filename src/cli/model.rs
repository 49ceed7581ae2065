//! Options of the chat model.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use crate::chat::{ApiKey, ModelSettings};
use crate::config::ModelConfig;

#[derive(Args)]
pub(super) struct ModelArgs {
    /// The chat model's endpoint (OpenAI chat completions API), for example http://127.0.0.1:11434/v1; enables chat
    #[arg(long, value_name = "URL", env = "CELLKEEP_MODEL_URL")]
    model_url: Option<String>,
    /// The name of the model at that endpoint
    #[arg(long = "model", value_name = "NAME", env = "CELLKEEP_MODEL")]
    model_name: Option<String>,
    /// A file with the API key of that endpoint, unless CELLKEEP_MODEL_KEY holds it
    #[arg(long, value_name = "FILE", env = "CELLKEEP_MODEL_KEY_FILE")]
    model_key_file: Option<PathBuf>,
}

impl ModelArgs {
    /// Merges with the configuration file; flags and environment win.
    pub fn merged_over(&self, file: ModelConfig) -> ModelConfig {
        ModelConfig {
            url: self.model_url.clone().or(file.url).filter(|url| !url.is_empty()),
            name: self.model_name.clone().or(file.name).filter(|name| !name.is_empty()),
            key_file: self.model_key_file.clone().or(file.key_file),
        }
    }

    /// The settings, if a model is configured. Reads the key, which is never part of the configuration.
    pub fn settings(&self, config: ModelConfig) -> anyhow::Result<Option<ModelSettings>> {
        let (url, name) = match (config.url, config.name) {
            (Some(url), Some(name)) => (url, name),
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(anyhow!("the model endpoint needs the name of a model: set --model")),
            (None, Some(_)) => return Err(anyhow!("the model needs an endpoint: set --model-url")),
        };
        let from_env = std::env::var("CELLKEEP_MODEL_KEY").ok();
        let key = ApiKey::read(from_env.as_deref(), config.key_file.as_deref()).map_err(|error| anyhow!(error))?;
        Ok(Some(ModelSettings { url, name, key }))
    }
}
