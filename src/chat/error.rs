//! Why an answer did not come, in words that say what to do about it.

use thiserror::Error;

use crate::manager::KeeperError;
use crate::session::SessionError;

/// Why an answer did not come, or not to its end.
#[derive(Debug, Error)]
pub(super) enum ChatError {
    #[error("the model's endpoint {url} cannot be reached: {why}; is it running, and is --model-url right?")]
    Unreachable { url: String, why: String },
    #[error(
        "the model's endpoint refuses the key ({status}): set CELLKEEP_MODEL_KEY, or --model-key-file, and start the server again"
    )]
    Refused { status: u16 },
    #[error("the model's endpoint knows no such model or path (404: {detail}); check --model and --model-url")]
    NotThere { detail: String },
    #[error("the model's endpoint takes no more for now (429: {detail}); ask again {when}")]
    Busy { detail: String, when: String },
    #[error("the model {model} does not take tools, so that it cannot run code ({detail}); choose another with --model")]
    NoTools { model: String, detail: String },
    #[error("the model's endpoint failed ({status}): {detail}")]
    Endpoint { status: u16, detail: String },
    #[error("the model's endpoint sent what cannot be read: {0}")]
    BadStream(String),
    #[error("the model's endpoint has been silent for {seconds} s")]
    Silent { seconds: u64 },
    #[error("the model's endpoint has sent one message for {seconds} s and not come to its end; ask for less at once")]
    Endless { seconds: u64 },
    #[error("this server has a fault and could not go on with the answer; its log says more, and you can ask again")]
    Fault,
    #[error("the model wanted to go on after {most} steps, as many as one answer may take; write again to let it go on")]
    TooManySteps { most: usize },
    #[error("the model gave an empty answer")]
    Empty,
    #[error("it was stopped")]
    Stopped,
    #[error(transparent)]
    Keeper(Box<KeeperError>),
}

impl ChatError {
    /// A name that stays the same, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "model_unreachable",
            Self::Refused { .. } => "model_key_refused",
            Self::NotThere { .. } => "model_not_found",
            Self::Busy { .. } => "model_busy",
            Self::NoTools { .. } => "model_without_tools",
            Self::Endpoint { .. } => "model_failed",
            Self::BadStream(_) => "model_bad_stream",
            Self::Silent { .. } => "model_silent",
            Self::Endless { .. } => "model_endless",
            Self::Fault => "server_fault",
            Self::TooManySteps { .. } => "too_many_steps",
            Self::Empty => "model_empty",
            Self::Stopped => "stopped",
            Self::Keeper(_) => "session_failed",
        }
    }
}

impl ChatError {
    /// Whether the refused request may be taken without its pictures: models without eyes refuse all of it, each in words of its own,
    /// and so does one that cannot read one picture.
    pub fn may_be_pictures(&self) -> bool {
        matches!(self, Self::Endpoint { .. } | Self::NotThere { .. })
    }

    /// Whether it says that the model takes no pictures at all, and not that one of them is bad.
    pub fn says_blind(&self) -> bool {
        let (status, detail) = match self {
            Self::Endpoint { status, detail } => (*status, detail.to_lowercase()),
            Self::NotThere { detail } => (404, detail.to_lowercase()),
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

impl From<KeeperError> for ChatError {
    fn from(error: KeeperError) -> Self {
        Self::Keeper(Box::new(error))
    }
}

impl From<SessionError> for ChatError {
    fn from(error: SessionError) -> Self {
        KeeperError::from(error).into()
    }
}

impl From<crate::manager::StoreError> for ChatError {
    fn from(error: crate::manager::StoreError) -> Self {
        KeeperError::from(error).into()
    }
}

/// What a server says that is not in its right mind, shortened.
pub(super) fn refusal(status: u16, detail: String, retry_after: Option<u64>, model: &str) -> ChatError {
    let lower = detail.to_lowercase();
    match status {
        401 | 403 => ChatError::Refused { status },
        429 => {
            let when = retry_after.map_or("in a while".to_owned(), |seconds| format!("in {seconds} s"));
            ChatError::Busy { detail, when }
        }
        400 | 404 | 422 | 501 if lower.contains("tool") || lower.contains("function call") => {
            ChatError::NoTools { model: model.to_owned(), detail }
        }
        404 => ChatError::NotThere { detail },
        status => ChatError::Endpoint { status, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_picture_is_no_blindness() {
        let blind = |status, detail: &str| refusal(status, detail.to_owned(), None, "tiny").says_blind();
        for (status, detail) in [
            (400, "image input is not supported"),
            (400, "This model does not support image_url content"),
            (404, "No endpoints found that support image input"),
            (415, "tiny has no vision capabilities"),
            (422, "only text is allowed, found an image"),
        ] {
            assert!(blind(status, detail), "{detail}");
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
            assert!(!blind(status, detail), "{detail}");
        }
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let told = |status, detail: &str, after| refusal(status, detail.to_owned(), after, "tiny");
        let cases = [
            (told(401, "", None), "model_key_refused", "CELLKEEP_MODEL_KEY"),
            (told(403, "", None), "model_key_refused", "403"),
            (told(429, "quota", Some(7)), "model_busy", "in 7 s"),
            (told(404, "no model x", None), "model_not_found", "--model"),
            (told(400, "tiny does not support tools", None), "model_without_tools", "tiny"),
            (told(500, "boom", None), "model_failed", "boom"),
        ];
        for (error, code, words) in cases {
            assert_eq!(error.code(), code);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
