//! The options of an execution in a request: time limit, input, environment, working folder, and the files to keep as artifacts.

use std::collections::{BTreeMap, HashMap};

use super::Api;
use super::error::Problem;
use super::new_session::{check_env, check_timeout};
use crate::ids::{Access, SessionId};
use crate::kernels;
use crate::policy::check_artifact_patterns;
use crate::session::{ExecutionContext, ExecutionOptions};

/// The most bytes of environment variables: they are part of the request to the kernel, with up to six times as many bytes.
const MAX_ENV: usize = 8 << 10;
/// The longest path of a working folder in bytes.
const MAX_FOLDER: usize = 4096;

/// The options of an execution in a request. The session has the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RequestedOptions {
    pub timeout_seconds: Option<f64>,
    pub allow_stdin: Option<bool>,
    pub artifacts: Option<Vec<String>>,
    pub hash_files: Option<bool>,
    pub env: Option<HashMap<String, String>>,
    pub cwd: Option<String>,
}

impl RequestedOptions {
    pub async fn resolve(self, api: &Api, id: &SessionId, access: &Access) -> Result<ExecutionOptions, Problem> {
        let timeout_seconds = match check_timeout(api.sessions.ceilings(), self.timeout_seconds)? {
            Some(seconds) => Some(seconds),
            None => api.sessions.cell_timeout(id, access)?,
        };
        let allow_stdin = self.allow_stdin.unwrap_or(false);
        let context = self.context()?;
        if !context.env.is_empty() || context.cwd.is_some() {
            check_kernel_takes_context(api, id, access).await?;
        }
        Ok(ExecutionOptions { timeout_seconds, allow_stdin, context, ..ExecutionOptions::default() })
    }

    fn context(self) -> Result<ExecutionContext, Problem> {
        let (artifacts, env) = (self.artifacts.unwrap_or_default(), self.env.unwrap_or_default());
        check_artifact_patterns(&artifacts)
            .map_err(|error| Problem::unprocessable("bad_artifacts", error.to_string()).field("artifacts"))?;
        check_env(&env)?;
        if env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_ENV {
            let detail =
                format!("the variables of one execution have at most {} KB; a session may have more", MAX_ENV >> 10);
            return Err(Problem::unprocessable("bad_env", detail).field("env"));
        }
        let cwd = self.cwd.map(|folder| check_folder(&folder)).transpose()?;
        let env: BTreeMap<String, String> = env.into_iter().collect();
        Ok(ExecutionContext { env, cwd, artifacts, hash_files: self.hash_files.unwrap_or(false) })
    }
}

async fn check_kernel_takes_context(api: &Api, id: &SessionId, access: &Access) -> Result<(), Problem> {
    let row = api.reader.row(id, access).await?;
    if kernels::find(&row.kernel).is_ok_and(|kernel| kernel.ignores_context) {
        let detail = format!(
            "{} cannot set env or cwd for one cell; set env for the whole session, or change both in the code",
            row.kernel
        );
        return Err(Problem::unprocessable("no_execution_context", detail));
    }
    Ok(())
}

/// The folder without `.` and empty parts.
fn check_folder(folder: &str) -> Result<String, Problem> {
    let parts: Vec<&str> = folder.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if folder.starts_with('/') || folder.len() > MAX_FOLDER || folder.contains('\0') || parts.contains(&"..") {
        let detail = "the working folder must be a path inside the workspace, relative to it";
        return Err(Problem::unprocessable("bad_cwd", detail).field("cwd"));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_folder_is_normalised() {
        let folder = |path: &str| check_folder(path).ok();
        assert_eq!(folder("./a//b/."), Some("a/b".to_owned()));
        assert_eq!(folder(""), Some(String::new()));
        for bad in ["/a", "a/..", "..", "a\0b", &"a/".repeat(3000)] {
            assert_eq!(folder(bad), None, "{bad:?}");
        }
    }
}
