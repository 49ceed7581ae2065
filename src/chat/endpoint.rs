//! The endpoint of the model: any server with OpenAI's chat completions API, over HTTP or HTTPS.

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
use super::stream::{ModelReply, error_message};
use crate::http_client::{HttpClient, HttpClientError};
use crate::sse_decoder::SseDecoder;
use crate::wire::json as wire_json;

/// How long the body of an error response may take.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an endpoint may be silent. It may have to load a large model first.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(180);
/// How long one reply may take in total.
const REPLY_TIMEOUT: Duration = Duration::from_secs(600);
/// The largest response that is not a stream, in bytes.
const MAX_BODY: usize = 4 << 20;
/// The largest stream in bytes. Its events are many times as large as its text.
const MAX_STREAM: usize = 64 << 20;

/// An API key. It is never printed or logged.
#[derive(Clone)]
pub struct ApiKey(String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl ApiKey {
    /// Reads the key from a text or from a file. Surrounding white space is removed. `None` if neither is given.
    pub fn read(text: Option<&str>, file: Option<&Path>) -> Result<Option<Self>, String> {
        let text = match (text, file) {
            (Some(key), _) if !key.trim().is_empty() => key.to_owned(),
            (_, Some(path)) => {
                let text = std::fs::read_to_string(path);
                text.map_err(|error| format!("cannot read the key of the model in {}: {error}", path.display()))?
            }
            _ => return Ok(None),
        };
        let key = text.trim();
        if key.is_empty() || key.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err("the key of the model must be a single word".to_owned());
        }
        Ok(Some(Self(key.to_owned())))
    }
}

/// The configuration of the model.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// The base URL, to which `/chat/completions` is added.
    pub url: String,
    /// The name of the model at the endpoint.
    pub name: String,
    pub key: Option<ApiKey>,
}

/// A client of the endpoint.
pub(super) struct Endpoint {
    uri: Uri,
    settings: ModelSettings,
    http: HttpClient,
    reply_timeout: Duration,
    /// The endpoint has said that the model accepts no images.
    rejects_images: AtomicBool,
}

impl Endpoint {
    /// Validates the settings. Sends no request, because the endpoint may start later than this server.
    pub fn new(settings: ModelSettings) -> Result<Self, String> {
        let url = settings.url.trim_end_matches('/');
        let invalid = |why: &str| {
            format!("{:?} is not a valid URL of a model ({why}); an example is http://127.0.0.1:11434/v1", settings.url)
        };
        let uri: Uri = format!("{url}/chat/completions").parse().map_err(|_| invalid("it cannot be parsed"))?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("--model-url must not contain a key; use CELLKEEP_MODEL_KEY or --model-key-file".to_owned());
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(invalid("it has no host"));
        }
        let http = HttpClient::for_uri(&uri).map_err(|error| match error {
            HttpClientError::Scheme => invalid(&error.to_string()),
            error => error.to_string(),
        })?;
        Ok(Self { uri, settings, http, reply_timeout: REPLY_TIMEOUT, rejects_images: AtomicBool::new(false) })
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Whether requests may have images.
    pub fn accepts_images(&self) -> bool {
        !self.rejects_images.load(Ordering::Relaxed)
    }

    /// Records that the model accepts no images.
    pub fn disable_images(&self) {
        self.rejects_images.store(true, Ordering::Relaxed);
    }

    /// Sends a request. Returns the stream of the reply.
    pub async fn request(&self, body: &Value) -> Result<ReplyStream, ChatError> {
        let deadline = Instant::now() + self.reply_timeout;
        let mut request = Request::post(&self.uri).header(CONTENT_TYPE, "application/json");
        request = request.header(ACCEPT, "text/event-stream, application/json");
        if let Some(ApiKey(key)) = &self.settings.key {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| ChatError::Refused { status: 401 })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_string())));
        let request = request.map_err(|error| self.unreachable(&error))?;
        let response = tokio::time::timeout(SILENCE_TIMEOUT, self.http.request(request)).await.map_err(|_| silent())?;
        let response = response.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(ReplyStream::new(response, self.reply_timeout, deadline));
        }
        Err(self.read_refusal(response).await)
    }

    async fn read_refusal(&self, response: Response<Incoming>) -> ChatError {
        let status = response.status().as_u16();
        let retry_after = header(response.headers(), RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok());
        let location = header(response.headers(), "location").map(str::to_owned);
        if let (300..=399, Some(to)) = (status, location) {
            // Redirects are not followed, so that the key is sent to the configured server only.
            return ChatError::Endpoint { status, detail: format!("it redirects to {to:?}; use that as --model-url") };
        }
        let body = tokio::time::timeout(ERROR_BODY_TIMEOUT, Limited::new(response.into_body(), MAX_BODY).collect()).await;
        let bytes = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        let detail = match wire_json::parse_lenient(&bytes) {
            Ok(value) => error_message(&value),
            Err(_) => error_message(&Value::from(String::from_utf8_lossy(&bytes[..bytes.len().min(1000)]))),
        };
        refusal(status, detail, retry_after, self.name())
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> ChatError {
        // The root cause is at the end of the chain.
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
    ChatError::Silent { seconds: SILENCE_TIMEOUT.as_secs() }
}

/// The stream of a reply.
pub(super) struct ReplyStream {
    body: Incoming,
    /// `None` if the endpoint does not stream.
    decoder: Option<SseDecoder>,
    /// The body so far, if the endpoint does not stream.
    whole: Vec<u8>,
    bytes: usize,
    timeout: Duration,
    deadline: Instant,
    pub reply: ModelReply,
}

impl ReplyStream {
    fn new(response: Response<Incoming>, timeout: Duration, deadline: Instant) -> Self {
        let is_whole =
            header(response.headers(), CONTENT_TYPE.as_str()).is_some_and(|kind| kind.starts_with("application/json"));
        let decoder = (!is_whole).then(SseDecoder::default);
        Self {
            body: response.into_body(),
            decoder,
            whole: Vec::new(),
            bytes: 0,
            timeout,
            deadline,
            reply: ModelReply::default(),
        }
    }

    /// Waits for the next part. Returns `false` at the end. Cancel safe.
    pub async fn next(&mut self) -> Result<bool, ChatError> {
        if self.reply.done {
            return Ok(false);
        }
        let until = self.deadline.min(Instant::now() + SILENCE_TIMEOUT);
        let is_late = || Instant::now() >= self.deadline;
        let endless = ChatError::Endless { seconds: self.timeout.as_secs() };
        if is_late() {
            // A stream that trickles never runs into the timeout below.
            return Err(endless);
        }
        let frame = tokio::time::timeout_at(until, self.body.frame()).await;
        let frame = frame.map_err(|_| if is_late() { endless } else { silent() })?;
        let chunk = match frame {
            None => return self.end().map(|()| false),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return Err(ChatError::BadStream(format!("it was cut off ({error})"))),
        };
        self.bytes += chunk.len();
        let max = if self.decoder.is_some() { MAX_STREAM } else { MAX_BODY };
        if self.bytes > max {
            return Err(ChatError::BadStream(format!("a reply exceeds {} MB", max >> 20)));
        }
        match &mut self.decoder {
            Some(decoder) => {
                for event in decoder.push(&chunk).map_err(|error| ChatError::BadStream(error.to_string()))? {
                    self.reply.push_event(&event)?;
                }
            }
            None => self.whole.extend_from_slice(&chunk),
        }
        Ok(true)
    }

    fn end(&mut self) -> Result<(), ChatError> {
        match self.decoder.take() {
            Some(decoder) => decoder.finish().map_or(Ok(()), |event| self.reply.push_event(&event)),
            None => self.reply.parse_whole(&self.whole),
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
    fn invalid_urls_are_refused() {
        let good = endpoint("http://127.0.0.1:11434/v1/").unwrap();
        assert_eq!(good.uri.path(), "/v1/chat/completions");
        for bad in ["127.0.0.1:11434", "ftp://x/v1", "http://", "http://a b/v1", ""] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        let keyed = endpoint("https://me:secret@example.org/v1").err().unwrap();
        assert!(keyed.contains("CELLKEEP_MODEL_KEY") && !keyed.contains("secret"), "{keyed}");
    }

    /// A trickling stream is neither silent nor too large.
    #[tokio::test]
    async fn trickling_reply_times_out() {
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
            Endpoint { reply_timeout: Duration::from_millis(300), ..endpoint(&format!("http://{address}/v1")).unwrap() };
        let mut stream = endpoint.request(&Value::Null).await.unwrap();
        let error = loop {
            match stream.next().await {
                Ok(more) => assert!(more),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), "model_endless");
        drop((stream, endpoint));
        trickle.await.unwrap();
    }

    #[test]
    fn keys_are_single_words_and_hidden() {
        let key = ApiKey::read(Some(" sk-1 \n"), None).unwrap().unwrap();
        assert_eq!((key.0.as_str(), format!("{key:?}").as_str()), ("sk-1", "(hidden)"));
        assert!(ApiKey::read(None, None).unwrap().is_none() && ApiKey::read(Some(" "), None).unwrap().is_none());
        assert!(ApiKey::read(Some("a b"), None).is_err());
        assert!(ApiKey::read(None, Some(Path::new("/nowhere/key"))).unwrap_err().contains("/nowhere/key"));
    }
}
