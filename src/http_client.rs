//! An HTTP and HTTPS client for other servers (models, trace collectors), with connection reuse.

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

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Why a client cannot be created.
#[derive(Debug, Error)]
pub(crate) enum HttpClientError {
    #[error("it must begin with http:// or https://")]
    Scheme,
    /// The root certificates of the system cannot be loaded.
    #[error("the certificates of this machine cannot be read: {0}")]
    Certificates(#[from] io::Error),
}

/// A client for one scheme. It follows no redirects, so that keys and code are sent to the configured server only.
#[derive(Clone, Debug)]
pub(crate) enum HttpClient {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl HttpClient {
    /// A client for the scheme of this address.
    pub fn for_uri(uri: &Uri) -> Result<Self, HttpClientError> {
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

    /// Sends a request, and waits for the head of the response. The caller sets the timeout.
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
    fn only_http_and_https_are_accepted() {
        assert!(matches!(HttpClient::for_uri(&Uri::from_static("http://h:1/x")), Ok(HttpClient::Plain(_))));
        for other in ["ftp://h/x", "/x", "h:1"] {
            assert!(matches!(HttpClient::for_uri(&Uri::from_static(other)), Err(HttpClientError::Scheme)), "{other}");
        }
    }
}
