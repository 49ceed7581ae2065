//! What a kernel's namespace holds, asked for between two cells by code that nobody sees: nothing is counted, no name is left behind, and
//! no code of the values' own is run.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::Value;
use thiserror::Error;

use super::{FileError, Keeper, KeeperError};
use crate::ids::{self, SessionId};
use crate::session::SessionState;

/// Variables of one answer, and bytes of the file that the kernel leaves them in.
const MOST: usize = 500;
const MAX_FILE: u64 = 1 << 20;
/// Characters of each field.
const MAX_FIELD: usize = 300;
/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(10);

const PYTHON: &str = include_str!("variables/python.py");
const R: &str = include_str!("variables/r.R");
const BASH: &str = include_str!("variables/bash.sh");

/// A variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its type, as its language calls it.
    pub kind: String,
    /// A short look at its value.
    pub summary: String,
}

/// Why variables cannot be told.
#[derive(Debug, Error)]
pub enum VariablesError {
    /// This kernel cannot be asked.
    #[error("the names of a {language} kernel cannot be listed; those of Python, R and bash can")]
    Unknown {
        /// Its language.
        language: String,
    },
    /// It runs a cell, or is not ready.
    #[error("the kernel is {state}; its variables are told when it is idle")]
    Busy {
        /// What it does.
        state: &'static str,
    },
    /// It did not do what it was asked.
    #[error("the kernel cannot tell its variables: {0}")]
    Failed(String),
    /// The session cannot be asked.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

impl Keeper {
    /// The variables of a session's kernel, and whether there may be more.
    ///
    /// # Errors
    /// [`VariablesError`].
    pub async fn variables(&self, id: &SessionId, principal: Option<&str>) -> Result<(Vec<Variable>, bool), VariablesError> {
        let handle = self.handle(id, principal)?;
        let language = self.row(id, principal).await?.language;
        let file = format!(".cellkeep-variables-{}", ids::random_uuid());
        let code = code(&language, &format!("/work/{file}")).ok_or(VariablesError::Unknown { language })?;
        match handle.state() {
            // The session itself says why it is over.
            SessionState::Idle | SessionState::Gone { .. } => {}
            state => return Err(VariablesError::Busy { state: state.name() }),
        }
        // The file goes also when nobody waits for what is in it any more.
        let (keeper, id, principal) = (self.clone(), id.clone(), principal.map(str::to_owned));
        let asking = tokio::spawn(async move {
            let reply = handle.run_silently(&code).await;
            let session = (&id, principal.as_deref());
            let read = keeper.read_whole(session, &file).await;
            let _ = keeper.remove_file(session, &file).await;
            (reply, read)
        });
        let busy = |_| VariablesError::Busy { state: "busy" };
        let told = tokio::time::timeout(PATIENCE, asking).await.map_err(busy)?;
        let (reply, read) = told.map_err(|error| VariablesError::Failed(error.to_string()))?;
        let reply = reply.map_err(KeeperError::from)?;
        if reply["status"] == "error" {
            let text = |key: &str| reply.get(key).and_then(Value::as_str).unwrap_or_default().chars().take(MAX_FIELD);
            let told: String = text("ename").chain(": ".chars()).chain(text("evalue")).collect();
            return Err(VariablesError::Failed(told));
        }
        let variables = parse(&read.map_err(|error| VariablesError::Failed(error.to_string()))?);
        let may_be_more = variables.len() >= MOST;
        Ok((variables, may_be_more))
    }

    async fn read_whole(&self, session: (&SessionId, Option<&str>), path: &str) -> Result<String, FileError> {
        let (size, pieces) = self.read_file(session, path).await?;
        if size > MAX_FILE {
            return Err(FileError::TooLarge);
        }
        let mut pieces = std::pin::pin!(pieces);
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Code that writes a line for each variable: name, type and summary, with tabs between them.
fn code(language: &str, path: &str) -> Option<String> {
    let quoted = Value::from(path).to_string();
    Some(match language {
        // A text of JSON is one of Python.
        "python" => format!(
            "exec(compile({}, '<variables>', 'exec'), {{'ns': globals(), 'path': {quoted}, 'most': {MOST}}})",
            Value::from(PYTHON)
        ),
        "R" => R.replace("MOST", &MOST.to_string()).replace("PATH", &quoted),
        "bash" => BASH.replace("MOST", &MOST.to_string()).replace("> PATH", &format!("> {path}")),
        _ => return None,
    })
}

/// What the kernel wrote is the user's: anything may stand there.
fn parse(text: &str) -> Vec<Variable> {
    let field = |text: Option<&str>| text.unwrap_or_default().chars().filter(|c| !c.is_control()).take(MAX_FIELD).collect();
    let lines = text.lines().filter(|line| !line.trim().is_empty()).take(MOST);
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
    fn lines_are_variables_whatever_stands_in_them() {
        let variables = parse("b\tint\t7\n\nA\tstr\t'x\ty\u{1b}[0m'\nlone\n");
        let names: Vec<&str> = variables.iter().map(|variable| variable.name.as_str()).collect();
        assert_eq!(names, ["A", "b", "lone"]);
        assert_eq!((variables[0].summary.as_str(), variables[2].kind.as_str()), ("'xy[0m'", ""));
        assert_eq!(parse(&"x\n".repeat(MOST + 1)).len(), MOST);
    }

    #[test]
    fn paths_are_put_into_code_whole() {
        for (language, holds) in [("python", "'path': \"/work/x\""), ("R", "\"/work/x\""), ("bash", "> /work/x")] {
            let code = code(language, "/work/x").unwrap();
            assert!(code.contains(holds) && !code.contains("MOST"), "{code}");
        }
        assert_eq!(code("typescript", "/work/x"), None);
    }
}
