//! Lenient views of the message contents that sessions act on. Absent and mistyped fields are interpreted as tolerant
//! clients (jupyter_client, JupyterLab) do.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The state in an iopub `status` message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutionState {
    Busy,
    Idle,
    Starting,
    Other,
}

/// Reads the content of a `status` message.
pub fn execution_state(content: &Value) -> ExecutionState {
    match content.get("execution_state").and_then(Value::as_str) {
        Some("busy") => ExecutionState::Busy,
        Some("idle") => ExecutionState::Idle,
        Some("starting") => ExecutionState::Starting,
        _ => ExecutionState::Other,
    }
}

/// The status of a reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplyStatus {
    /// Also for a reply without `status` (xeus kernels omit it).
    Ok,
    Error(ErrorInfo),
    /// The kernel removed the request from its queue without executing it.
    Aborted,
}

/// An error as reported by a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// The class, for example `ValueError`.
    pub ename: String,
    pub evalue: String,
    /// Lines for a terminal, with ANSI colours.
    pub traceback: Vec<String>,
    /// Whether the variables of the session are gone, since the kernel, or what it ran the code in, has ended.
    #[serde(default)]
    pub state_lost: bool,
}

impl ErrorInfo {
    /// Reads the content of an `error` message or of a failed reply.
    pub fn read(content: &Value) -> Self {
        let text = |key: &str| match content.get(key) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        };
        let traceback = match content.get("traceback") {
            Some(Value::Array(lines)) => {
                lines.iter().map(|line| line.as_str().map_or_else(|| line.to_string(), str::to_owned)).collect()
            }
            Some(Value::String(line)) => vec![line.clone()],
            _ => Vec::new(),
        };
        let state_lost = content.get("state_lost") == Some(&Value::Bool(true));
        Self { ename: text("ename"), evalue: text("evalue"), traceback, state_lost }
    }
}

/// Reads the content of any reply.
pub fn reply_status(content: &Value) -> ReplyStatus {
    match content.get("status").and_then(Value::as_str) {
        Some("error") => ReplyStatus::Error(ErrorInfo::read(content)),
        // jupyter_client still accepts the old spelling.
        Some("aborted" | "abort") => ReplyStatus::Aborted,
        _ => ReplyStatus::Ok,
    }
}

/// Whether an `execute_reply` has a payload to display (IPython's pager).
pub fn has_payload(content: &Value) -> bool {
    content.get("payload").and_then(Value::as_array).is_some_and(|payload| !payload.is_empty())
}

/// `execution_count` of a reply, an `execute_input` or an `execute_result`.
pub fn execution_count(content: &Value) -> Option<i64> {
    content.get("execution_count").and_then(Value::as_i64)
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputRequest {
    pub prompt: String,
    /// Whether the input must not be echoed.
    pub password: bool,
}

impl InputRequest {
    /// Reads the content of an `input_request`.
    pub fn read(content: &Value) -> Self {
        Self {
            prompt: content.get("prompt").and_then(Value::as_str).unwrap_or_default().to_owned(),
            password: content.get("password").and_then(Value::as_bool).unwrap_or_default(),
        }
    }
}

/// The current time in Jupyter's format; see [`iso8601`].
pub fn now_iso8601() -> String {
    iso8601(SystemTime::now())
}

/// A time in Jupyter's format: `2026-11-20T12:34:56.123456Z`. Exactly six digits, since `strptime("%f")` in real clients
/// accepts no more.
pub fn iso8601(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = ((since.as_secs() / 86_400) as i64, since.as_secs() % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// Converts days since 1970-01-01 to a Gregorian date. Eras of 400 years have a fixed number of days, and counting years
/// from March puts the leap day at the end. A date crate for these ten lines would be part of every agent.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn times_have_six_fractional_digits() {
        let at = |seconds: u64| iso8601(UNIX_EPOCH + Duration::from_micros(seconds * 1_000_000 + 7));
        assert_eq!(at(0), "1970-01-01T00:00:00.000007Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000007Z");
        assert_eq!(at(1_795_219_199), "2026-11-20T23:59:59.000007Z");
    }

    #[test]
    fn malformed_replies_are_interpreted() {
        assert_eq!(reply_status(&json!({})), ReplyStatus::Ok);
        assert_eq!(reply_status(&Value::Null), ReplyStatus::Ok);
        let ReplyStatus::Error(error) = reply_status(&json!({"status": "error", "evalue": 7, "traceback": "x"})) else {
            panic!("not an error")
        };
        assert_eq!((error.ename.as_str(), error.evalue.as_str()), ("", "7"));
        assert_eq!(error.traceback, ["x"]);
    }
}
