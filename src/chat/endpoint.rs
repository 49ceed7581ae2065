//! The model's endpoint: any server that speaks OpenAI's chat completions, over HTTP or HTTPS.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, Uri};
use serde_json::Value;
use tokio::time::Instant;

use super::error::{ChatError, refusal};
use super::stream::{Answer, Frames, message_of};
use crate::http_client::{HttpClient, HttpClientError};
use crate::wire::json as wire_json;

/// How long the reason of a refusal may take.
const REASON: Duration = Duration::from_secs(10);
/// How long an endpoint may be silent: a large model may have to be loaded first.
const SILENCE: Duration = Duration::from_secs(180);
/// How long one message of a model may take, however much comes of it.
const LONGEST: Duration = Duration::from_secs(600);
/// Bytes of an answer that is no stream, or that says why there is none.
const MAX_BODY: usize = 4 << 20;
/// Bytes of one stream: its frames are many times its text.
const MAX_STREAM: usize = 64 << 20;

/// A key. It is shown nowhere.
#[derive(Clone)]
pub struct Key(String);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a key)")
    }
}

impl Key {
    /// The key in a file, or given as text; surrounding blanks are none of it.
    ///
    /// # Errors
    /// In words, when the file cannot be read or holds no key.
    pub fn read(given: Option<&str>, file: Option<&Path>) -> Result<Option<Self>, String> {
        let text = match (given, file) {
            (Some(key), _) if !key.trim().is_empty() => key.to_owned(),
            (_, Some(path)) => {
                let text = std::fs::read_to_string(path);
                text.map_err(|error| format!("cannot read the model's key in {}: {error}", path.display()))?
            }
            _ => return Ok(None),
        };
        let key = text.trim();
        if key.is_empty() || key.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("the model's key is empty, or more than one word".to_owned());
        }
        Ok(Some(Self(key.to_owned())))
    }
}

/// Which model answers, and where.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// The address below which `/chat/completions` is.
    pub url: String,
    /// The model's name.
    pub name: String,
    /// The key, where the endpoint wants one.
    pub key: Option<Key>,
}

/// A model that can be asked.
pub(super) struct Endpoint {
    uri: Uri,
    settings: ModelSettings,
    http: HttpClient,
    longest: Duration,
    /// It has said that it takes no pictures.
    is_blind: AtomicBool,
}

impl Endpoint {
    /// Checks the settings. Nothing is asked yet: a model may come up later than we do.
    pub fn new(settings: ModelSettings) -> Result<Self, String> {
        let url = settings.url.trim_end_matches('/');
        let wrong =
            |why: &str| format!("{:?} is no address of a model ({why}); one is http://127.0.0.1:11434/v1", settings.url);
        let uri: Uri = format!("{url}/chat/completions").parse().map_err(|_| wrong("it cannot be read"))?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("a key has no place in --model-url: give it by CELLKEEP_MODEL_KEY or --model-key-file".to_owned());
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(wrong("it names no host"));
        }
        let http = HttpClient::to(&uri).map_err(|error| match error {
            HttpClientError::Scheme => wrong(&error.to_string()),
            error => error.to_string(),
        })?;
        Ok(Self { uri, settings, http, longest: LONGEST, is_blind: AtomicBool::new(false) })
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Whether it is shown pictures.
    pub fn takes_pictures(&self) -> bool {
        !self.is_blind.load(Ordering::Relaxed)
    }

    /// It takes none.
    pub fn forget_pictures(&self) {
        self.is_blind.store(true, Ordering::Relaxed);
    }

    /// Asks, and gives the answer by pieces.
    pub async fn ask(&self, body: &Value) -> Result<Asked, ChatError> {
        let deadline = Instant::now() + self.longest;
        let mut request = Request::post(&self.uri).header(CONTENT_TYPE, "application/json");
        request = request.header(ACCEPT, "text/event-stream, application/json");
        if let Some(Key(key)) = &self.settings.key {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| ChatError::Refused { status: 401 })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_string())));
        let request = request.map_err(|error| self.unreachable(&error))?;
        let answered = tokio::time::timeout(SILENCE, self.http.request(request)).await.map_err(|_| silent())?;
        let response = answered.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(Asked::new(response, self.longest, deadline));
        }
        Err(self.refused(response).await)
    }

    async fn refused(&self, response: Response<Incoming>) -> ChatError {
        let status = response.status().as_u16();
        let retry_after = header(response.headers(), RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok());
        let location = header(response.headers(), "location").map(str::to_owned);
        if let (300..=399, Some(to)) = (status, location) {
            // The key goes nowhere but to where it was meant for.
            return ChatError::Endpoint { status, detail: format!("it is elsewhere, at {to:?}; give that as --model-url") };
        }
        let body = tokio::time::timeout(REASON, Limited::new(response.into_body(), MAX_BODY).collect()).await;
        let bytes = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        let detail = match wire_json::parse_lenient(&bytes) {
            Ok(value) => message_of(&value),
            Err(_) => message_of(&Value::from(String::from_utf8_lossy(&bytes[..bytes.len().min(1000)]))),
        };
        refusal(status, detail, retry_after, self.name())
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> ChatError {
        // What went wrong is at the end of the chain.
        let mut cause = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        ChatError::Unreachable { url: self.settings.url.clone(), why: cause.to_string() }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn silent() -> ChatError {
    ChatError::Silent { seconds: SILENCE.as_secs() }
}

/// An answer that is on its way.
pub(super) struct Asked {
    body: Incoming,
    /// `None`: the endpoint does not stream.
    frames: Option<Frames>,
    whole: Vec<u8>,
    bytes: usize,
    longest: Duration,
    deadline: Instant,
    pub answer: Answer,
}

impl Asked {
    fn new(response: Response<Incoming>, longest: Duration, deadline: Instant) -> Self {
        let is_whole =
            header(response.headers(), CONTENT_TYPE.as_str()).is_some_and(|kind| kind.starts_with("application/json"));
        let frames = (!is_whole).then(Frames::default);
        Self {
            body: response.into_body(),
            frames,
            whole: Vec::new(),
            bytes: 0,
            longest,
            deadline,
            answer: Answer::default(),
        }
    }

    /// Waits for more of it; `false` at its end. Cancel safe.
    pub async fn more(&mut self) -> Result<bool, ChatError> {
        if self.answer.done {
            return Ok(false);
        }
        let until = self.deadline.min(Instant::now() + SILENCE);
        let is_late = || Instant::now() >= self.deadline;
        let endless = ChatError::Endless { seconds: self.longest.as_secs() };
        if is_late() {
            // What trickles in is always there in time.
            return Err(endless);
        }
        let frame = tokio::time::timeout_at(until, self.body.frame()).await;
        let frame = frame.map_err(|_| if is_late() { endless } else { silent() })?;
        let piece = match frame {
            None => return self.end().map(|()| false),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return Err(ChatError::BadStream(format!("it was cut off before its end ({error})"))),
        };
        self.bytes += piece.len();
        let most = if self.frames.is_some() { MAX_STREAM } else { MAX_BODY };
        if self.bytes > most {
            return Err(ChatError::BadStream(format!("one answer has more than {} MB", most >> 20)));
        }
        match &mut self.frames {
            Some(frames) => {
                for event in frames.push(&piece)? {
                    self.answer.take(&event)?;
                }
            }
            None => self.whole.extend_from_slice(&piece),
        }
        Ok(true)
    }

    fn end(&mut self) -> Result<(), ChatError> {
        match self.frames.take() {
            Some(frames) => frames.finish().map_or(Ok(()), |event| self.answer.take(&event)),
            None => self.answer.take_whole(&self.whole),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn endpoint(url: &str) -> Result<Endpoint, String> {
        Endpoint::new(ModelSettings { url: url.to_owned(), name: "m".to_owned(), key: None })
    }

    #[test]
    fn addresses_are_checked_at_the_start() {
        let good = endpoint("http://127.0.0.1:11434/v1/").unwrap();
        assert_eq!(good.uri.path(), "/v1/chat/completions");
        for bad in ["127.0.0.1:11434", "ftp://x/v1", "http://", "http://a b/v1", ""] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        let keyed = endpoint("https://me:secret@example.org/v1").err().unwrap();
        assert!(keyed.contains("CELLKEEP_MODEL_KEY") && !keyed.contains("secret"), "{keyed}");
    }

    /// What trickles in is neither silent nor too large, and ends all the same.
    #[tokio::test]
    async fn an_answer_has_a_deadline() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let trickle = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\nnull") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            while stream.write_all(b": still here\n\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let endpoint =
            Endpoint { longest: Duration::from_millis(300), ..endpoint(&format!("http://{address}/v1")).unwrap() };
        let mut asked = endpoint.ask(&Value::Null).await.unwrap();
        let error = loop {
            match asked.more().await {
                Ok(more) => assert!(more),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), "model_endless");
        drop((asked, endpoint));
        trickle.await.unwrap();
    }

    #[test]
    fn keys_are_one_word_and_shown_nowhere() {
        let key = Key::read(Some(" sk-1 \n"), None).unwrap().unwrap();
        assert_eq!((key.0.as_str(), format!("{key:?}").as_str()), ("sk-1", "(a key)"));
        assert!(Key::read(None, None).unwrap().is_none() && Key::read(Some(" "), None).unwrap().is_none());
        assert!(Key::read(Some("a b"), None).is_err());
        assert!(Key::read(None, Some(Path::new("/nowhere/key"))).unwrap_err().contains("/nowhere/key"));
    }
}
