//! Requests of the command line to a server (`cellkeep serve`, here or elsewhere).

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use serde_json::Value;
use thiserror::Error;

use crate::cli::{Exit, Failure};
use crate::http_client::HttpClient;

/// The largest answer, bytes.
const MAX_ANSWER: usize = 32 << 20;
/// How long a server may take to begin an answer. Packages of a new sandbox are installed in that time.
const TIMEOUT: Duration = Duration::from_secs(900);
/// The longest token, bytes.
const MAX_TOKEN: u64 = 4096;

/// Which server is used, and with which token.
#[derive(Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ServerArgs {
    /// The address of the server
    #[arg(long, value_name = "URL", env = "CELLKEEP_SERVER", default_value = "http://127.0.0.1:7788", global = true)]
    server: String,
    /// A file with the token [default: the variable CELLKEEP_TOKEN]
    #[arg(long, value_name = "FILE", env = "CELLKEEP_TOKEN_FILE", global = true)]
    token_file: Option<PathBuf>,
}

/// Why a request has no answer.
#[derive(Debug, Error)]
pub(super) enum RequestError {
    #[error("no answer from {url}: {why}. Is `cellkeep serve` running there? --server names another address")]
    Unreachable { url: String, why: String },
    #[error("{detail}")]
    Refused {
        status: u16,
        /// The code of the problem, see docs/problems.md.
        code: String,
        detail: String,
    },
    #[error("{url} does not answer as a Cellkeep server: {why}")]
    NotAServer { url: String, why: String },
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        let exit = match &error {
            RequestError::Unreachable { .. } => Exit::NoSandbox,
            _ => Exit::Usage,
        };
        Self { exit, error: error.into() }
    }
}

/// A connection to a server. Clones share it.
#[derive(Clone)]
pub(super) struct ServerClient {
    http: HttpClient,
    url: String,
    authorization: HeaderValue,
}

impl ServerClient {
    pub fn new(args: &ServerArgs) -> Result<Self, Failure> {
        let url = args.server.trim_end_matches('/').to_owned();
        let uri: Uri = url.parse().map_err(|_| Failure::usage(anyhow!("--server {url:?} is not a URL")))?;
        let http = HttpClient::for_uri(&uri).map_err(|error| Failure::usage(anyhow!("--server {url:?}: {error}")))?;
        let token = read_token(args.token_file.as_deref()).map_err(Failure::usage)?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Failure::usage(anyhow!("the token has characters that no token has")))?;
        authorization.set_sensitive(true);
        Ok(Self { http, url, authorization })
    }

    /// Sends a request, and reads the answer as JSON. `null` if it is empty.
    pub async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, RequestError> {
        let (kind, body) = ("application/json", body.map(ToString::to_string).unwrap_or_default());
        let answer = self.collect(self.open(method, path, kind, body.into()).await?).await?;
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).map_err(|error| self.not_a_server(&error))
    }

    /// Sends bytes.
    pub async fn post_bytes(&self, path: &str, body: Bytes) -> Result<(), RequestError> {
        let answer = self.open(Method::POST, path, "application/octet-stream", body).await?;
        self.collect(answer).await.map(drop)
    }

    /// Opens a stream of events.
    pub async fn stream(&self, path: &str) -> Result<Incoming, RequestError> {
        Ok(self.open(Method::GET, path, "application/json", Bytes::new()).await?.into_body())
    }

    async fn open(&self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<Response<Incoming>, RequestError> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        let request = request.header(AUTHORIZATION, &self.authorization).header(CONTENT_TYPE, kind);
        let request = request.body(Full::new(body)).map_err(|error| self.not_a_server(&error))?;
        let answer = match tokio::time::timeout(TIMEOUT, self.http.request(request)).await {
            Ok(answer) => answer.map_err(|error| self.unreachable(root_cause(&error)))?,
            Err(_) => return Err(self.unreachable(format!("it took longer than {} s", TIMEOUT.as_secs()))),
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let problem: Value = serde_json::from_slice(&self.collect(answer).await?).unwrap_or_default();
        let text = |field: &str| problem[field].as_str().map(str::to_owned);
        let code = text("code").ok_or_else(|| self.not_a_server(&format!("status {status}")))?;
        let detail = text("detail").unwrap_or_else(|| format!("status {status}"));
        Err(RequestError::Refused { status, code, detail })
    }

    async fn collect(&self, answer: Response<Incoming>) -> Result<Bytes, RequestError> {
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| self.unreachable(error.to_string()))
    }

    fn unreachable(&self, why: String) -> RequestError {
        RequestError::Unreachable { url: self.url.clone(), why }
    }

    fn not_a_server(&self, why: &dyn std::fmt::Display) -> RequestError {
        RequestError::NotAServer { url: self.url.clone(), why: why.to_string() }
    }
}

/// The root cause is at the end of the chain.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn read_token(file: Option<&Path>) -> anyhow::Result<String> {
    let Some(path) = file else {
        let found = std::env::var("CELLKEEP_TOKEN").ok().filter(|token| !token.is_empty());
        return found.ok_or_else(|| {
            anyhow!("there is no token: export CELLKEEP_TOKEN=$(cellkeep token create NAME) on the machine of the server, or --token-file")
        });
    };
    let mut text = String::new();
    let opened = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    opened.take(MAX_TOKEN).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}
