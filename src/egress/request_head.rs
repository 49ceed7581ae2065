//! The heads of requests to the proxy, and of the responses to them.
//!
//! The proxy serves one request for each connection, so nothing of a second request is ever read. Everything that two programs could
//! understand differently is refused: bare line feeds, two lengths, two hosts.

use httparse::{EMPTY_HEADER, Header, Status};

use crate::policy::{HostName, parse_authority};

/// The largest head, bytes; paths of URLs included.
pub(super) const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;
/// The most digits of a length.
const MAX_DIGITS: usize = 18;

/// Fields that belong to one connection, and are not passed on.
pub(super) const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a client of the proxy asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProxyRequest {
    pub host: HostName,
    pub port: u16,
    pub kind: RequestKind,
    /// The length of the head, bytes; what follows belongs to the body or the tunnel.
    pub length: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// Bytes in both directions.
    Tunnel,
    /// One plain HTTP request: the head to send on, and the length of the body.
    Forward {
        head: Vec<u8>,
        body: u64,
        /// Whether the response has no body, whatever its head says.
        is_head: bool,
    },
}

/// A request that is refused before anything is decided.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadRequest {
    pub status: u16,
    pub reason: String,
}

fn bad(reason: impl Into<String>) -> BadRequest {
    BadRequest { status: 400, reason: reason.into() }
}

/// Finds the end of a head that comes in pieces, reading each byte once.
#[derive(Debug, Default)]
pub(super) struct HeadEnd {
    searched: usize,
}

impl HeadEnd {
    /// Whether it is time to parse: the bytes so far, of which the last piece is new, have an empty line, are too many, or do not
    /// begin as heads do. They begin with a letter, so that the first empty line is the end.
    pub fn is_reached(&mut self, bytes: &[u8]) -> bool {
        // An empty line may have begun in an earlier piece.
        let from = self.searched.saturating_sub(2);
        self.searched = bytes.len();
        let new = &bytes[from..];
        bytes.first().is_some_and(|first| !first.is_ascii_uppercase())
            || bytes.len() >= MAX_HEAD
            || new.windows(2).any(|two| two == b"\n\n")
            || new.windows(3).any(|three| three == b"\n\r\n")
    }
}

/// Reads the head at the beginning of `bytes`; `None` if it is not complete.
///
/// # Errors
/// [`BadRequest`], after which the connection is of no use.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<ProxyRequest>, BadRequest> {
    // The parser would skip empty lines before the head, and wait for more after them.
    if bytes.first().is_some_and(|first| !first.is_ascii_uppercase()) {
        return Err(bad("this is no HTTP request to a proxy"));
    }
    let mut fields = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return Err(BadRequest { status: 431, reason: "the head of the request is too large".into() });
        }
        Err(error) => return Err(bad(format!("this is no HTTP request to a proxy: {error}"))),
    };
    if !has_clean_lines(&bytes[..length]) {
        return Err(bad("the head of the request has line ends that are not CR LF"));
    }
    let (Some(method), Some(target)) = (request.method, request.path) else { return Err(bad("no request line")) };
    let fields: &[Header<'_>] = request.headers;
    let own_host = single(fields, "host")?;
    let body = body_length(fields)?;
    let (host, port, kind) = if method == "CONNECT" {
        let (host, port) = parse_authority(target, None).map_err(|error| bad(error.to_string()))?;
        if body != 0 {
            return Err(bad("a CONNECT request has no body"));
        }
        (host, port, RequestKind::Tunnel)
    } else {
        let (authority, path) = split_target(target)?;
        let (host, port) = parse_authority(authority, Some(80)).map_err(|error| bad(error.to_string()))?;
        let head = forwarded_head(method, &path, &host, port, fields);
        (host, port, RequestKind::Forward { head, body, is_head: method == "HEAD" })
    };
    if let Some(own) = own_host
        && !names_same_host(own, &host, port)
    {
        return Err(bad("the Host field names another host than the request line"));
    }
    Ok(Some(ProxyRequest { host, port, kind, length }))
}

/// Whether every line ends in CR LF, and neither byte is anywhere else.
fn has_clean_lines(head: &[u8]) -> bool {
    head.iter().enumerate().all(|(at, byte)| match byte {
        b'\n' => at > 0 && head[at - 1] == b'\r',
        b'\r' => head.get(at + 1) == Some(&b'\n'),
        byte => *byte != 0,
    })
}

fn all<'a>(fields: &'a [Header<'_>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// The value of a field that may be there once.
fn single<'a>(fields: &'a [Header<'_>], name: &'a str) -> Result<Option<&'a str>, BadRequest> {
    let mut values = all(fields, name);
    let first = values.next();
    if values.next().is_some() {
        return Err(bad(format!("the field {name} is there twice")));
    }
    let text = first.map(|value| std::str::from_utf8(value).map_err(|_| bad(format!("the field {name} is not text"))));
    text.transpose()
}

/// The length of the body, which must be known in advance.
fn body_length(fields: &[Header<'_>]) -> Result<u64, BadRequest> {
    let length = single(fields, "content-length")?;
    let is_chunked = all(fields, "transfer-encoding").next().is_some();
    match length {
        Some(_) if is_chunked => Err(bad("the request has both Content-Length and Transfer-Encoding")),
        None if is_chunked => {
            let reason = "plain HTTP requests need a Content-Length here, not Transfer-Encoding; or use https".to_owned();
            Err(BadRequest { status: 411, reason })
        }
        None => Ok(0),
        Some(text) if text.is_empty() || text.len() > MAX_DIGITS || !text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(bad("the Content-Length is not a number"))
        }
        Some(text) => text.parse().map_err(|_| bad("the Content-Length is not a number")),
    }
}

/// Splits an absolute `http` URL into the authority and the path to request.
fn split_target(target: &str) -> Result<(&str, String), BadRequest> {
    const SCHEME: &str = "http://";
    let is_http = target.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME));
    if !is_http {
        return Err(bad("a proxy takes CONNECT requests and requests for whole http:// URLs"));
    }
    let rest = &target[SCHEME.len()..];
    if rest.contains('#') {
        return Err(bad("the URL has a fragment"));
    }
    let end = rest.find(['/', '?', '\\']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok((authority, format!("{slash}{path}")))
}

fn names_same_host(own: &str, host: &HostName, port: u16) -> bool {
    parse_authority(own, Some(port)).is_ok_and(|(own, own_port)| own == *host && own_port == port)
}

/// The head as the server gets it: origin form, one Host of ours, and the end of the connection after the response.
fn forwarded_head(method: &str, path: &str, host: &HostName, port: u16, fields: &[Header<'_>]) -> Vec<u8> {
    let port = if port == 80 { String::new() } else { format!(":{port}") };
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}{port}\r\n").into_bytes();
    copy_end_to_end(fields, &["host"], &mut head);
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    head
}

/// Copies the fields that are not for one connection only, and not one of `but`.
fn copy_end_to_end(fields: &[Header<'_>], but: &[&str], head: &mut Vec<u8>) {
    let is_named = |names: &[&str], name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    let listed: Vec<&str> = all(fields, "connection")
        .filter_map(|value| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        // The length delimits the body, so nobody may have it removed.
        .filter(|name| !name.eq_ignore_ascii_case("content-length"))
        .collect();
    for field in fields {
        if is_named(HOP_BY_HOP, field.name) || is_named(but, field.name) || is_named(&listed, field.name) {
            continue;
        }
        head.extend_from_slice(field.name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(field.value);
        head.extend_from_slice(b"\r\n");
    }
}

/// The head of a response as the client gets it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResponseHead {
    pub head: Vec<u8>,
    /// The length of the head that was read, bytes.
    pub length: usize,
    /// Whether it is the response, and not an announcement of it such as `100 Continue`.
    pub is_final: bool,
    /// The length of the body; `None`: until the connection ends.
    pub body: Option<u64>,
}

/// Reads the head of a response, and says in it that the connection ends after it; `None` if it is not complete.
///
/// # Errors
/// If it is not a response, is too large, or switches protocols.
pub(super) fn parse_response(bytes: &[u8], is_head: bool) -> Result<Option<ResponseHead>, &'static str> {
    if bytes.first().is_some_and(|first| *first != b'H') {
        return Err("its response is not HTTP");
    }
    let mut fields = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err("the head of its response is too large"),
        Err(_) => return Err("its response is not HTTP"),
    };
    let code = response.code.unwrap_or(0);
    if code == 101 {
        return Err("it wants to switch protocols, which needs https");
    }
    let is_final = code >= 200;
    let mut head = format!("HTTP/1.1 {code} {}\r\n", response.reason.unwrap_or("")).into_bytes();
    let fields: &[Header<'_>] = response.headers;
    copy_response_fields(fields, &mut head);
    let is_chunked = all(fields, "transfer-encoding").next().is_some();
    let body = if is_head || matches!(code, 204 | 304) {
        Some(0)
    } else if is_chunked {
        None
    } else {
        body_length(fields).ok().filter(|_| all(fields, "content-length").next().is_some())
    };
    head.extend_from_slice(if is_final { b"Connection: close\r\n\r\n" } else { b"\r\n" });
    Ok(Some(ResponseHead { head, length, is_final, body }))
}

/// As [`copy_end_to_end`], but the body is passed on as it is, so its encoding stays.
fn copy_response_fields(fields: &[Header<'_>], head: &mut Vec<u8>) {
    const DROPPED: &[&str] = &["connection", "keep-alive", "proxy-connection", "proxy-authenticate", "upgrade"];
    for field in fields.iter().filter(|field| !DROPPED.iter().any(|name| field.name.eq_ignore_ascii_case(name))) {
        head.extend_from_slice(field.name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(field.value);
        head.extend_from_slice(b"\r\n");
    }
}

/// A response of the proxy itself. Many clients show only the status line of a refused CONNECT, so the reason begins there.
pub(super) fn own_response(status: u16, reason: &str, body: &str) -> Vec<u8> {
    let clean = |text: &str| -> String {
        text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).take(300).collect()
    };
    let reason = clean(reason);
    let length = body.len() + 1;
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\nProxy-Agent: cellkeep\r\n\r\n{body}\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forwarded(request: &str) -> (String, u64) {
        match parse(request.as_bytes()).unwrap().unwrap().kind {
            RequestKind::Forward { head, body, .. } => (String::from_utf8(head).unwrap(), body),
            RequestKind::Tunnel => panic!("a tunnel"),
        }
    }

    fn status(request: &str) -> u16 {
        parse(request.as_bytes()).expect_err(request).status
    }

    #[test]
    fn connect_names_host_and_port() {
        let text = "CONNECT PyPI.org.:443 HTTP/1.1\r\nHost: pypi.org:443\r\nProxy-Connection: keep-alive\r\n\r\nrest";
        let request = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!((request.host.as_str(), request.port, &request.kind), ("pypi.org", 443, &RequestKind::Tunnel));
        assert_eq!(&text[request.length..], "rest");
        let request = parse(b"CONNECT [::ffff:127.0.0.1]:22 HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert_eq!((request.host.to_string().as_str(), request.port), ("[::ffff:127.0.0.1]", 22));
        assert_eq!(parse(b"CONNECT a.com:443 HTTP/1.1\r\nHost: a.com\r\n"), Ok(None));
    }

    #[test]
    fn plain_request_is_sent_on_in_origin_form() {
        let (head, body) = forwarded(
            "POST http://A.com:8080?q=1 HTTP/1.1\r\nHost: a.com:8080\r\nConnection: x-hop, Content-Length\r\nX-Hop: 1\r\nTE: trailers\r\n\
             Proxy-Authorization: Basic eA==\r\nAccept: */*\r\nContent-Length: 5\r\nUpgrade: h2c\r\n\r\nhello",
        );
        let expected =
            "POST /?q=1 HTTP/1.1\r\nHost: a.com:8080\r\nAccept: */*\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
        assert_eq!((head.as_str(), body), (expected, 5));
        let (head, _) = forwarded("GET HTTP://a.com HTTP/1.0\r\n\r\n");
        assert_eq!(head, "GET / HTTP/1.1\r\nHost: a.com\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let with = |fields: &str| format!("POST http://a.com/ HTTP/1.1\r\nHost: a.com\r\n{fields}\r\n\r\n");
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: 0x5",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Host: a.com",
            "X: 1\nY: 2",
            "X: 1\r\n folded",
            "X : 1",
        ] {
            assert_eq!(status(&with(fields)), 400, "{fields}");
        }
        for line in ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"] {
            assert_eq!(status(&with(line)), 411, "{line}");
        }
        for request in [
            "GET http://a.com/ HTTP/1.1\r\nHost: b.com\r\n\r\n",
            "GET http://a.com/ HTTP/1.1\r\nHost: a.com:8080\r\n\r\n",
            "GET http://a.com/ HTTP/1.1\r\nHost:\r\n\r\n",
            "GET http://user@a.com/ HTTP/1.1\r\n\r\n",
            "GET http://a.com@b.com/ HTTP/1.1\r\n\r\n",
            "GET http://a.com\\@b.com/ HTTP/1.1\r\nHost: b.com\r\n\r\n",
            "GET http://a.com/#x HTTP/1.1\r\n\r\n",
            "GET https://a.com/ HTTP/1.1\r\n\r\n",
            "GET ftp://a.com/ HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.com\r\n\r\n",
            "GET http:/// HTTP/1.1\r\n\r\n",
            "GET http://a..b/ HTTP/1.1\r\n\r\n",
            "GET http://a.com/ HTTP/1.1\n\n",
            "CONNECT a.com HTTP/1.1\r\n\r\n",
            "CONNECT a.com:0 HTTP/1.1\r\n\r\n",
            "CONNECT a.com:99999 HTTP/1.1\r\n\r\n",
            "CONNECT http://a.com:443 HTTP/1.1\r\n\r\n",
            "CONNECT a.com:443 HTTP/1.1\r\nHost: b.com:443\r\n\r\n",
            "CONNECT a.com:443 HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
            "\x05\x01\x00",
            "GET http://a.com/ HTTP/2.0\r\n\r\n",
        ] {
            assert_eq!(status(request), 400, "{request:?}");
        }
        assert_eq!(status(&with(&"X: 1\r\n".repeat(MAX_HEADERS))), 431);
        assert_eq!(status(&format!("GET http://a.com/{}", "a".repeat(MAX_HEAD))), 431);
    }

    #[test]
    fn heads_are_parsed_once_however_they_come() {
        let head = format!("GET http://a.com/ HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
        let empty_lines = "\r\n".repeat(MAX_HEAD / 2);
        let lower_case = "x".repeat(MAX_HEAD);
        for (text, times) in [(&head, 1), (&format!("{head}rest"), 5)] {
            let mut end = HeadEnd::default();
            let reached = (1..=text.len()).filter(|length| end.is_reached(&text.as_bytes()[..*length]));
            // Nobody asks again once the end was reached: what follows is no part of the head.
            assert!(reached.count() <= times, "{}", text.len());
        }
        for text in [&empty_lines, &lower_case] {
            assert!(HeadEnd::default().is_reached(&text.as_bytes()[..1]) && parse(&text.as_bytes()[..1]).is_err());
            assert!(parse_response(&text.as_bytes()[..1], false).is_err());
        }
        let mut whole = HeadEnd::default();
        assert!(!whole.is_reached(b"GET / HTTP/1.1\r\n\r") && whole.is_reached(b"GET / HTTP/1.1\r\n\r\n"));
    }

    #[test]
    fn responses_end_their_connection() {
        let text =
            "HTTP/1.0 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\nbody";
        let response = parse_response(text.as_bytes(), false).unwrap().unwrap();
        let expected = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        assert_eq!(String::from_utf8(response.head).unwrap(), expected);
        assert_eq!((&text[response.length..], response.is_final, response.body), ("body", true, None));
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n";
        assert_eq!(parse_response(sized, false).unwrap().unwrap().body, Some(7));
        assert_eq!(parse_response(sized, true).unwrap().unwrap().body, Some(0));
        let early = parse_response(b"HTTP/1.1 100 Continue\r\n\r\n", false).unwrap().unwrap();
        assert_eq!((early.head.as_slice(), early.is_final), (&b"HTTP/1.1 100 Continue\r\n\r\n"[..], false));
        assert!(parse_response(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", false).is_err());
        assert!(parse_response(b"SSH-2.0\r\n", false).is_err());
        assert_eq!(parse_response(b"HTTP/1.1 2", false), Ok(None));
    }

    #[test]
    fn own_responses_cannot_be_split() {
        let text = String::from_utf8(own_response(403, "no\r\nX: 1 ä", "why")).unwrap();
        assert!(text.starts_with("HTTP/1.1 403 no??X: 1 ?\r\n") && text.ends_with("\r\n\r\nwhy\n"), "{text}");
    }

    proptest! {
        #[test]
        fn arbitrary_heads_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse_response(&bytes, false);
        }

        #[test]
        fn forwarded_requests_have_one_host_and_end(
            host in "[a-z]{1,9}\\.[a-z]{2,4}", fields in prop::collection::vec(("[A-Za-z-]{1,12}", "[ -~]{0,12}"), 0..6),
        ) {
            let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let text = format!("GET http://{host}/ HTTP/1.1\r\n{fields}\r\n");
            if let Ok(Some(ProxyRequest { kind: RequestKind::Forward { head, .. }, length, .. })) = parse(text.as_bytes()) {
                prop_assert_eq!(length, text.len());
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                prop_assert_eq!(head.matches("\r\nhost:").count(), 1);
                prop_assert_eq!(head.matches("\r\nconnection:").count(), 1);
                prop_assert!(head.ends_with("\r\nconnection: close\r\n\r\n") && head.matches("\r\n\r\n").count() == 1);
            }
        }
    }
}
