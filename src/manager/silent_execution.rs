//! Runs code between two cells that nobody sees: it is not counted, and its output is dropped.

use std::time::Duration;

use serde_json::Value;

use crate::session::SessionHandle;

/// How long the kernel may take.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) async fn run_silently(session: &SessionHandle, code: &str) -> Result<(), String> {
    let reply = tokio::time::timeout(DEADLINE, session.run_silently(code)).await;
    let reply = reply.map_err(|_| "the kernel did not answer".to_owned())?.map_err(|error| error.to_string())?;
    match reply["status"].as_str() {
        Some("error") => Err(format!("{}: {}", plain_text(&reply["ename"]), plain_text(&reply["evalue"]))),
        _ => Ok(()),
    }
}

/// A JSON value as text for people.
pub(super) fn plain_text(value: &Value) -> String {
    match value {
        Value::Null => "not recorded".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
