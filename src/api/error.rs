//! Errors as `application/problem+json` (RFC 9457), each with a stable `code`.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::chat::AskError;
use crate::manager::{FileError, ManagerError, PackageError, ProcessError, ServiceError, StoreError, VariablesError};
use crate::policy::AboveCeiling;
use crate::session::{Denied, SessionError};

/// Where each code has its section: what it means, and what to do.
const PROBLEM_PAGE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/problems.md#");

/// Why a request failed (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem, examples(json!({
    "type": "https://github.com/cellkeep/cellkeep/blob/main/docs/problems.md#bad_timeout", "title": "Unprocessable Entity",
    "status": 422, "code": "bad_timeout", "field": "timeout_seconds",
    "detail": "a timeout must be a positive number of seconds, at most 315360000, which is ten years"
})))]
pub(super) struct ProblemView {
    /// The address of the section about the code: what it means, and what to do.
    r#type: String,
    /// The name of the status.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What failed, for people.
    detail: String,
    /// A stable code for programs, for example `no_session`. New versions may have more codes.
    code: &'static str,
    /// The invalid field of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<String>,
}

/// The code of an error response, as an extension of it.
#[derive(Clone, Copy)]
pub(super) struct ProblemCode(pub &'static str);

/// An error response.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    /// Seconds after which a retry makes sense.
    retry_after: Option<u32>,
    /// The invalid field of the request.
    field: Option<Cow<'static, str>>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None, field: None }
    }

    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    pub fn unprocessable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// Sets the invalid field.
    pub fn field(self, field: &'static str) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    /// Sets the invalid field, if it is known.
    pub fn named(self, field: Option<String>) -> Self {
        Self { field: field.map(Cow::Owned), ..self }
    }

    /// Gives the invalid field the name that another request has for it, also in the words for people.
    pub fn rename_fields(self, names: &[(&str, &'static str)]) -> Self {
        let Some((name, other)) = names.iter().find(|(name, _)| self.field.as_deref() == Some(*name)) else { return self };
        let word = name.rsplit('.').next().unwrap_or(name);
        let detail = match self.detail.strip_prefix(word) {
            Some(rest) => format!("{other}{rest}"),
            None => self.detail.replace(&format!("`{word}`"), &format!("`{other}`")),
        };
        Self { detail, ..self }.field(other)
    }

    /// Adds what the client should know besides.
    pub fn and(self, more: &str) -> Self {
        Self { detail: format!("{}; {more}", self.detail), ..self }
    }

    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Whether the cause is only temporary load.
    pub fn is_busy(&self) -> bool {
        self.code == "busy"
    }

    /// The body of the response.
    pub fn view(&self) -> ProblemView {
        ProblemView {
            r#type: format!("{PROBLEM_PAGE}{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            code: self.code,
            field: self.field.as_deref().map(str::to_owned),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.view())).into_response();
        response.extensions_mut().insert(ProblemCode(self.code));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        // Clients above a rate limit or without a token lose their connection, which others can use then.
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", error.to_string()),
            error => {
                tracing::error!(%error, "the journal failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "storage_failed", error.to_string())
            }
        }
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        tracing::error!(%error, "cannot read stored data");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "storage_failed", error.to_string())
    }
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        let detail = error.to_string();
        match error {
            SessionError::Gone { .. } => Self::new(StatusCode::CONFLICT, "session_gone", detail),
            SessionError::Silent => Self::new(StatusCode::GATEWAY_TIMEOUT, "sandbox_silent", detail).retry_after(5),
            SessionError::Link(_) => Self::new(StatusCode::BAD_GATEWAY, "sandbox_unreachable", detail).retry_after(1),
            SessionError::Denied(denied) => denied.into(),
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let detail = denied.to_string();
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, detail.clone());
        match denied {
            Denied::Gone { .. } => conflict("session_gone"),
            Denied::NoCell { .. } => Self::not_found("no_cell", detail),
            Denied::IdTaken { .. } => conflict("cell_exists").field("id"),
            Denied::BadId { .. } => Self::unprocessable("bad_cell_id", detail).field("id"),
            Denied::NotCode { .. } => conflict("not_a_code_cell"),
            Denied::InProgress { .. } => conflict("cell_in_progress"),
            Denied::NotInProgress { .. } => conflict("cell_not_in_progress"),
            Denied::TooMany { .. } => Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", detail).retry_after(5),
            Denied::TooLarge { what, .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail).field(what),
            Denied::NotAsking => conflict("no_input_wanted"),
            Denied::NotReady { .. } => conflict("kernel_not_ready"),
            Denied::Storage(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", detail).retry_after(5),
        }
    }
}

impl From<FileError> for Problem {
    fn from(error: FileError) -> Self {
        let detail = error.to_string();
        match error {
            FileError::Missing(_) => Self::not_found("no_file", detail),
            FileError::Refused(_) => Self::unprocessable("bad_file", detail).field("path"),
            FileError::Exists(_) => Self::new(StatusCode::CONFLICT, "file_exists", detail).field("path"),
            FileError::BadArchive(_) => Self::unprocessable("bad_archive", detail),
            FileError::ArchiveTooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "archive_too_large", detail),
            FileError::Full(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "workspace_full", detail),
            FileError::Busy(_) => Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_files", detail).retry_after(5),
            FileError::Cut => Self::bad_request("cut_off", detail),
            FileError::TooLarge => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", detail),
            FileError::Service(error) => error.into(),
        }
    }
}

impl From<ProcessError> for Problem {
    fn from(error: ProcessError) -> Self {
        let detail = error.to_string();
        match error {
            ProcessError::NotFound(_) => Self::not_found("no_process", detail),
            ProcessError::NotStarted(_) => Self::unprocessable("bad_command", detail).field("command"),
            ProcessError::Conflict(_) => Self::new(StatusCode::CONFLICT, "process_conflict", detail),
            ProcessError::Busy(_) => Self::new(StatusCode::TOO_MANY_REQUESTS, "process_busy", detail).retry_after(1),
            ProcessError::Service(error) => error.into(),
        }
    }
}

impl From<PackageError> for Problem {
    fn from(error: PackageError) -> Self {
        let detail = error.to_string();
        match error {
            PackageError::NoInstaller { .. } => Self::unprocessable("no_packages", detail).field("kernel"),
            PackageError::Request(_) => Self::unprocessable("bad_packages", detail).field("packages"),
            PackageError::Io(error) => error.into(),
            PackageError::Manager(_) => {
                let detail = "no sandbox could be created for the installation";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_sandbox", detail)
            }
            _ => Self::unprocessable("packages_failed", detail).field("packages"),
        }
    }
}

impl From<VariablesError> for Problem {
    fn from(error: VariablesError) -> Self {
        let detail = error.to_string();
        match error {
            VariablesError::UnsupportedLanguage { .. } => Self::unprocessable("no_variables", detail),
            VariablesError::Busy { .. } => Self::new(StatusCode::CONFLICT, "kernel_busy", detail),
            VariablesError::Failed(_) => Self::new(StatusCode::CONFLICT, "variables_failed", detail),
            VariablesError::Service(error) => error.into(),
        }
    }
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        let detail = error.to_string();
        match error {
            AskError::NoModel => Self::not_found("no_model", detail),
            AskError::TurnInProgress => Self::new(StatusCode::CONFLICT, "chat_in_progress", detail),
            AskError::TooManyTurns => Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_chats", detail).retry_after(5),
            AskError::Service(error) => error.into(),
        }
    }
}

impl From<AboveCeiling> for Problem {
    fn from(error: AboveCeiling) -> Self {
        Self::unprocessable("above_ceiling", error.to_string()).field(error.field)
    }
}

/// Seconds for `Retry-After`.
fn whole(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        let detail = error.to_string();
        let unavailable = |code| Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail.clone());
        match error {
            ServiceError::SessionNotFound { .. } => Self::not_found("no_session", detail),
            ServiceError::SandboxNotFound { .. } => Self::not_found("no_such_sandbox", detail),
            ServiceError::SandboxOfSession { .. } => Self::new(StatusCode::CONFLICT, "sandbox_of_session", detail),
            ServiceError::OtherKernel { .. } => Self::unprocessable("other_kernel", detail).field("kernel"),
            ServiceError::UnknownKernel(_) => Self::unprocessable("no_kernel", detail).field("kernel"),
            ServiceError::EnvironmentNotFound { .. } => Self::not_found("no_environment", detail),
            ServiceError::EnvironmentOfOtherKernel { .. } => {
                Self::unprocessable("other_kernel", detail).field("environment")
            }
            ServiceError::EnvironmentBusy { .. } | ServiceError::EnvironmentInUse { .. } => {
                Self::new(StatusCode::CONFLICT, "environment_in_use", detail)
            }
            ServiceError::TooManyEnvironments { .. } => Self::new(StatusCode::CONFLICT, "too_many_environments", detail),
            ServiceError::KeyOfOtherRequest { .. } => {
                Self::new(StatusCode::CONFLICT, "key_of_other_request", detail).field("key")
            }
            ServiceError::TooManyBuilds { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_builds", detail).retry_after(10)
            }
            ServiceError::PackagesFailed { .. } => Self::unprocessable("packages_failed", detail).field("packages"),
            ServiceError::Packages(error) => error.into(),
            ServiceError::UnknownMount(_) => Self::unprocessable("no_mount", detail).field("mounts"),
            ServiceError::SessionLimit { .. } | ServiceError::SessionShare { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_sessions", detail).retry_after(10)
            }
            ServiceError::QuotaExceeded { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", detail).retry_after(60)
            }
            ServiceError::ProcessLimit { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_processes", detail).retry_after(10)
            }
            ServiceError::ExecutionLimit { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_executions", detail).retry_after(whole(retry_after))
            }
            ServiceError::TooManyAtOnce { .. } => Self::unprocessable("above_ceiling", detail),
            ServiceError::SessionTimeLimit { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "session_time_used", detail).retry_after(whole(retry_after))
            }
            ServiceError::AboveCeiling(error) => error.into(),
            ServiceError::NetworkNotAllowed { .. } => {
                Self::new(StatusCode::FORBIDDEN, "network_not_allowed", detail).field("network")
            }
            ServiceError::AddressNotAllowed { .. } => Self::unprocessable("bad_network", detail).field("network"),
            ServiceError::NetworkFixed | ServiceError::NetworkOfSandbox { .. } => {
                Self::new(StatusCode::CONFLICT, "network_fixed", detail).field("network")
            }
            ServiceError::TooManyPending { .. } => Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(2),
            // The error names folders of the server, which clients must not see.
            ServiceError::Manager(error) if error.is_disk_full() => StoreError::Full.into(),
            ServiceError::Manager(error) => match *error {
                ManagerError::Limits(limit) => {
                    Self::unprocessable("bad_limits", detail).named(Some(format!("limits.{}", limit.field)))
                }
                ManagerError::Start(_) => unavailable("kernel_did_not_start"),
                _ => unavailable("no_sandbox"),
            },
            ServiceError::Parameter(_) => Self::unprocessable("bad_parameters", detail).field("parameters"),
            ServiceError::RecordMismatch { .. } => Self::new(StatusCode::CONFLICT, "not_as_recorded", detail),
            ServiceError::KernelPreparation(_) => unavailable("kernel_unprepared"),
            ServiceError::Artifacts(error) => error.into(),
            ServiceError::Sandbox(_) => unavailable("no_sandbox"),
            ServiceError::Store(error) => error.into(),
            ServiceError::Session(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::SandboxError;

    #[test]
    fn full_disk_error_hides_server_paths() {
        let source = std::io::ErrorKind::StorageFull.into();
        let error = SandboxError::Io { doing: "cannot write the record in /somewhere".to_owned(), source };
        let remains = SandboxError::Io { doing: "cannot remove".to_owned(), source: std::io::ErrorKind::NotFound.into() };
        let error = SandboxError::Remains { error: Box::new(error), remains: Box::new(remains) };
        let problem = Problem::from(ServiceError::from(ManagerError::from(error)));
        assert_eq!((problem.status, problem.code), (StatusCode::INSUFFICIENT_STORAGE, "storage_full"));
        assert!(!problem.detail.contains("somewhere"), "{}", problem.detail);
    }
}
