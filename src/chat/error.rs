//! Errors of turns. Each message says what to do about it.

use thiserror::Error;

use crate::manager::{ServiceError, StoreError};
use crate::session::SessionError;

/// Why a turn failed.
#[derive(Debug, Error)]
pub(super) enum ChatError {
    #[error("the model's endpoint {url} cannot be reached: {why}; is it running, and is --model-url right?")]
    Unreachable { url: String, why: String },
    #[error(
        "the model's endpoint refuses the key ({status}); set CELLKEEP_MODEL_KEY or --model-key-file, and restart the server"
    )]
    Refused { status: u16 },
    #[error("the model's endpoint does not know the model or the path (404: {detail}); check --model and --model-url")]
    NotFound { detail: String },
    #[error("the model's endpoint is over its rate limit (429: {detail}); retry {when}")]
    Busy { detail: String, when: String },
    #[error("the model {model} does not support tools, so it cannot run code ({detail}); choose another one with --model")]
    NoTools { model: String, detail: String },
    #[error("the model's endpoint failed ({status}): {detail}")]
    Endpoint { status: u16, detail: String },
    #[error("the response of the model's endpoint is invalid: {0}")]
    BadStream(String),
    #[error("the model's endpoint has been silent for {seconds} s")]
    Silent { seconds: u64 },
    #[error("one reply of the model took longer than {seconds} s; ask for less at once")]
    Endless { seconds: u64 },
    #[error("the server had an internal error; its log has the details; you can ask again")]
    InternalError,
    #[error("the model stopped after {max} steps, which is the limit of one answer; write again to let it continue")]
    TooManySteps { max: usize },
    #[error("the model sent an empty answer")]
    Empty,
    #[error("the answer was stopped")]
    Stopped,
    #[error(transparent)]
    Service(Box<ServiceError>),
}

impl ChatError {
    /// The stable code for clients.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "model_unreachable",
            Self::Refused { .. } => "model_key_refused",
            Self::NotFound { .. } => "model_not_found",
            Self::Busy { .. } => "model_busy",
            Self::NoTools { .. } => "model_without_tools",
            Self::Endpoint { .. } => "model_failed",
            Self::BadStream(_) => "model_bad_stream",
            Self::Silent { .. } => "model_silent",
            Self::Endless { .. } => "model_endless",
            Self::InternalError => "server_fault",
            Self::TooManySteps { .. } => "too_many_steps",
            Self::Empty => "model_empty",
            Self::Stopped => "stopped",
            Self::Service(_) => "session_failed",
        }
    }
}

impl ChatError {
    /// Whether the request may succeed without images. Models without image support refuse the whole request, and so do
    /// models that cannot read one of the images. Their messages differ.
    pub fn may_concern_images(&self) -> bool {
        matches!(self, Self::Endpoint { .. } | Self::NotFound { .. })
    }

    /// Whether the message says that the model accepts no images at all, and not that one image is bad.
    pub fn says_no_images(&self) -> bool {
        let (status, detail) = match self {
            Self::Endpoint { status, detail } => (*status, detail.to_lowercase()),
            Self::NotFound { detail } => (404, detail.to_lowercase()),
            _ => return false,
        };
        let has = |words: &[&str]| words.iter().any(|word| detail.contains(word));
        matches!(status, 400 | 404 | 415 | 422)
            && has(&["image", "vision", "picture", "multimodal", "multi-modal"])
            && has(&["support", "accept", "capab", "not allowed", "only text", "text-only", "text only"])
            && !has(&[
                "unsupported image",
                "image format",
                "image type",
                "decode",
                "corrupt",
                "invalid image",
                "size",
                "large",
            ])
    }
}

impl From<ServiceError> for ChatError {
    fn from(error: ServiceError) -> Self {
        Self::Service(Box::new(error))
    }
}

impl From<SessionError> for ChatError {
    fn from(error: SessionError) -> Self {
        ServiceError::from(error).into()
    }
}

impl From<StoreError> for ChatError {
    fn from(error: StoreError) -> Self {
        ServiceError::from(error).into()
    }
}

/// The error for the status and message of a response.
pub(super) fn refusal(status: u16, detail: String, retry_after: Option<u64>, model: &str) -> ChatError {
    let lower = detail.to_lowercase();
    match status {
        401 | 403 => ChatError::Refused { status },
        429 => {
            let when = retry_after.map_or("later".to_owned(), |seconds| format!("in {seconds} s"));
            ChatError::Busy { detail, when }
        }
        400 | 404 | 422 | 501 if lower.contains("tool") || lower.contains("function call") => {
            ChatError::NoTools { model: model.to_owned(), detail }
        }
        404 => ChatError::NotFound { detail },
        status => ChatError::Endpoint { status, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_image_does_not_disable_images() {
        let says_no_images = |status, detail: &str| refusal(status, detail.to_owned(), None, "tiny").says_no_images();
        for (status, detail) in [
            (400, "image input is not supported"),
            (400, "This model does not support image_url content"),
            (404, "No endpoints found that support image input"),
            (415, "tiny has no vision capabilities"),
            (422, "only text is allowed, found an image"),
        ] {
            assert!(says_no_images(status, detail), "{detail}");
        }
        for (status, detail) in [
            (400, "You uploaded an unsupported image. Please make sure your image is supported"),
            (400, "Could not decode the image; supported are png and jpeg"),
            (400, "invalid image data"),
            (400, "image is too large; at most 5 MB are supported"),
            (400, "messages[3] is not supported"),
            (500, "image input is not supported"),
            (503, "overloaded"),
            (401, "image input is not supported"),
        ] {
            assert!(!says_no_images(status, detail), "{detail}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let error = |status, detail: &str, after| refusal(status, detail.to_owned(), after, "tiny");
        let cases = [
            (error(401, "", None), "model_key_refused", "CELLKEEP_MODEL_KEY"),
            (error(403, "", None), "model_key_refused", "403"),
            (error(429, "quota", Some(7)), "model_busy", "in 7 s"),
            (error(404, "no model x", None), "model_not_found", "--model"),
            (error(400, "tiny does not support tools", None), "model_without_tools", "tiny"),
            (error(500, "boom", None), "model_failed", "boom"),
        ];
        for (error, code, words) in cases {
            assert_eq!(error.code(), code);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
