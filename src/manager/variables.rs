//! The variables in a kernel's namespace. Silent code lists them between two cells: it is not counted, defines no name, and
//! runs no code of the values themselves (such as `__repr__` methods).

use std::time::Duration;

use futures_util::TryStreamExt as _;
use serde_json::Value;
use thiserror::Error;

use super::files::Workspace;
use super::{FileError, ServiceError, SessionService};
use crate::ids::{self, Access, SessionId, SessionPhase};
use crate::languages;
use crate::session::SessionState;

/// The largest number of variables in one answer, and the largest size of the file that the kernel writes them to.
const MAX_VARIABLES: usize = 500;
const MAX_FILE: u64 = 1 << 20;
/// The largest number of characters in a field.
const MAX_FIELD: usize = 300;
/// How long the kernel may take.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    /// The type, in the words of its language.
    pub kind: String,
    /// The value, shortened.
    pub summary: String,
}

/// Why the variables cannot be listed.
#[derive(Debug, Error)]
pub enum VariablesError {
    #[error("variables of {language} kernels cannot be listed; Python, R and bash are supported")]
    UnsupportedLanguage { language: String },
    #[error("the kernel is {state}; its variables can be listed while it is idle")]
    Busy { state: &'static str },
    #[error("the kernel cannot list its variables: {0}")]
    Failed(String),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl SessionService {
    /// The variables of a session's kernel, and whether the list was truncated.
    pub async fn variables(&self, id: &SessionId, access: &Access) -> Result<(Vec<Variable>, bool), VariablesError> {
        let handle = self.handle(id, access)?;
        let language = self.reader().row(id, access).await?.language;
        let file = format!(".cellkeep-variables-{}", ids::random_uuid());
        let known = languages::find(&language);
        let code = known.and_then(|known| known.variables_code(&format!("/work/{file}"), MAX_VARIABLES));
        let code = code.ok_or(VariablesError::UnsupportedLanguage { language })?;
        match handle.state() {
            // For a session that has ended, the session returns the error with its reason.
            SessionState::Idle | SessionState::Gone { .. } => {}
            state => return Err(VariablesError::Busy { state: state.name() }),
        }
        // In a task of its own, so that the file is removed even if the client disconnects.
        let workspace = self.workspace(id, access)?;
        let listing = tokio::spawn(async move {
            let reply = handle.run_silently(&code).await;
            let text = read_small_file(&workspace, &file).await;
            let _ = workspace.remove(&file, false).await;
            (reply, text)
        });
        let busy = |_| VariablesError::Busy { state: SessionPhase::Busy.as_str() };
        let listed = tokio::time::timeout(DEADLINE, listing).await.map_err(busy)?;
        let (reply, text) = listed.map_err(|error| VariablesError::Failed(error.to_string()))?;
        let reply = reply.map_err(ServiceError::from)?;
        if reply["status"] == "error" {
            let part = |key: &str| reply.get(key).and_then(Value::as_str).unwrap_or_default().chars().take(MAX_FIELD);
            let message: String = part("ename").chain(": ".chars()).chain(part("evalue")).collect();
            return Err(VariablesError::Failed(message));
        }
        let variables = parse(&text.map_err(|error| VariablesError::Failed(error.to_string()))?);
        let is_truncated = variables.len() >= MAX_VARIABLES;
        Ok((variables, is_truncated))
    }
}

async fn read_small_file(workspace: &Workspace, path: &str) -> Result<String, FileError> {
    let file = workspace.open(path).await?;
    let size = file.stat().size;
    if size > MAX_FILE {
        return Err(FileError::TooLarge);
    }
    let bytes = file.read(0..size).try_fold(Vec::new(), async |mut all, chunk| {
        all.extend_from_slice(&chunk);
        Ok(all)
    });
    Ok(String::from_utf8_lossy(&bytes.await?).into_owned())
}

/// Parses the kernel's file. User code can write anything into it.
fn parse(text: &str) -> Vec<Variable> {
    let field = |text: Option<&str>| text.unwrap_or_default().chars().filter(|c| !c.is_control()).take(MAX_FIELD).collect();
    let lines = text.lines().filter(|line| !line.trim().is_empty()).take(MAX_VARIABLES);
    let mut variables: Vec<Variable> = lines
        .map(|line| {
            let mut fields = line.splitn(3, '\t');
            Variable { name: field(fields.next()), kind: field(fields.next()), summary: field(fields.next()) }
        })
        .collect();
    variables.sort_by_cached_key(|variable| variable.name.to_lowercase());
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_lines_are_still_variables() {
        let variables = parse("b\tint\t7\n\nA\tstr\t'x\ty\u{1b}[0m'\nlone\n");
        let names: Vec<&str> = variables.iter().map(|variable| variable.name.as_str()).collect();
        assert_eq!(names, ["A", "b", "lone"]);
        assert_eq!((variables[0].summary.as_str(), variables[2].kind.as_str()), ("'xy[0m'", ""));
        assert_eq!(parse(&"x\n".repeat(MAX_VARIABLES + 1)).len(), MAX_VARIABLES);
    }
}
