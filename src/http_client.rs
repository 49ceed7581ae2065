//! Requests to servers of others, over HTTP or HTTPS, on connections that are kept for the next one.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use thiserror::Error;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// Why an address cannot be asked.
#[derive(Debug, Error)]
pub(crate) enum HttpClientError {
    /// It is neither HTTP nor HTTPS.
    #[error("it begins with http:// or https://")]
    Scheme,
    /// Whom to trust cannot be told.
    #[error("this machine's certificates cannot be read: {0}")]
    Certificates(#[from] io::Error),
}

/// A client of one kind of server. It follows no redirect: what is sent goes nowhere but to where it was meant for.
#[derive(Clone, Debug)]
pub(crate) enum HttpClient {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl HttpClient {
    /// One for addresses like this.
    pub fn to(uri: &Uri) -> Result<Self, HttpClientError> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        match uri.scheme_str() {
            Some("http") => Ok(Self::Plain(Client::builder(TokioExecutor::new()).build(connector))),
            Some("https") => {
                connector.enforce_http(false);
                let builder = HttpsConnectorBuilder::new().with_native_roots()?;
                let https = builder.https_only().enable_http1().wrap_connector(connector);
                Ok(Self::Tls(Client::builder(TokioExecutor::new()).build(https)))
            }
            _ => Err(HttpClientError::Scheme),
        }
    }

    /// Sends a request, and waits for the head of its answer. How long is the caller's business.
    pub async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        match self {
            Self::Plain(client) => client.request(request).await,
            Self::Tls(client) => client.request(request).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_is_spoken() {
        assert!(matches!(HttpClient::to(&Uri::from_static("http://h:1/x")), Ok(HttpClient::Plain(_))));
        for other in ["ftp://h/x", "/x", "h:1"] {
            assert!(matches!(HttpClient::to(&Uri::from_static(other)), Err(HttpClientError::Scheme)), "{other}");
        }
    }
}
