//! Extractors for bodies, queries and commands. Unknown fields are refused, because ignoring them would ignore what the
//! client asked for. Errors name the invalid field, in the terms of JSON and not of Rust.

use std::fmt;
use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::BytesMut;
use futures_util::StreamExt as _;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::error::Problem;
use super::{MAX_BODY, input_budget};
use crate::mime;

/// The largest part of a client's text at each end that an error repeats, in bytes.
const MAX_REPEATED: usize = 200;

/// A JSON body. An empty body means `{}`.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let bytes = read_body(request).await?;
        let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes };
        read_object(text).map(Self).map_err(InvalidInput::in_body)
    }
}

/// Reads a whole body. A body whose `Content-Length` is too large is refused at once. The bytes are copied into one buffer: small parts
/// would each keep a whole read buffer.
pub(super) async fn read_body(request: Request) -> Result<Bytes, Problem> {
    let request = check_length(request)?;
    let mut chunks = input_budget::counted(request).into_body().into_data_stream();
    let mut body = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let bad_body = |error: axum::Error| {
            input_budget::problem_of(&error).unwrap_or_else(|| Problem::bad_request("bad_body", error.to_string()))
        };
        let chunk = chunk.map_err(bad_body)?;
        if body.len() + chunk.len() > MAX_BODY {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Refuses a body whose `Content-Length` exceeds the limit.
pub(super) fn check_length(request: Request) -> Result<Request, Problem> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    if length.and_then(|length| length.to_str().ok()?.parse().ok()).is_none_or(|length: u64| length <= MAX_BODY as u64) {
        return Ok(request);
    }
    Err(too_large())
}

fn too_large() -> Problem {
    let detail = format!("the body is larger than {} MB", MAX_BODY >> 20);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

/// The media type of a body without its parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    mime::essence(kind)
}

/// Whether the `Accept` header names this media type explicitly.
pub(super) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    ranges.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(media_type));
        let quality = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
        // A quality of 0 excludes the type.
        is_named && quality.is_none_or(|(_, quality)| quality.trim().parse() != Ok(0.0))
    })
}

/// The fields of the query.
pub(super) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(query_problem(&rejection.body_text())),
        }
    }
}

/// Middleware for paths without query fields: refuses any query.
pub(super) async fn no_query(request: Request, next: Next) -> Result<Response, Problem> {
    let Some(query) = request.uri().query().filter(|query| !query.is_empty()) else { return Ok(next.run(request).await) };
    let name = query.split(['=', '&']).next().unwrap_or_default();
    let field = shorten(&percent_encoding::percent_decode_str(name).decode_utf8_lossy());
    let detail = format!("unknown field `{field}`: this request has no query fields");
    Err(Problem::bad_request("bad_query", detail).named(Some(field)))
}

/// Parses axum's error, which has the form `Failed to deserialize query string: FIELD: MESSAGE`.
fn query_problem(error: &str) -> Problem {
    let error = error.strip_prefix("Failed to deserialize query string: ").unwrap_or(error);
    let (path, message) = error.split_once(": ").unwrap_or(("", error));
    let invalid = InvalidInput::new(path, message, false);
    Problem::bad_request("bad_query", invalid.detail()).named(invalid.field)
}

/// Why a JSON text is not the expected object.
#[derive(Debug)]
pub(super) struct InvalidInput {
    field: Option<String>,
    message: String,
    /// Whether the text is not JSON at all.
    is_syntax: bool,
}

impl InvalidInput {
    fn new(path: &str, message: &str, is_syntax: bool) -> Self {
        let path = if path == "." { "" } else { path };
        // For these errors, the path names the object and the message names the field.
        let missing = ["missing field `", "duplicate field `"].iter().find_map(|start| message.strip_prefix(start));
        let missing = missing.and_then(|rest| rest.split('`').next());
        let field = match (path, missing) {
            _ if is_syntax => None,
            ("", Some(name)) => Some(name.to_owned()),
            (path, Some(name)) => Some(format!("{path}.{name}")),
            ("", None) => None,
            (path, None) => Some(shorten(path)),
        };
        Self { field, message: in_json_terms(&shorten(message)), is_syntax }
    }

    fn detail(&self) -> String {
        match &self.field {
            Some(field) if !self.message.contains(&format!("`{field}`")) => format!("{field}: {}", self.message),
            _ => self.message.clone(),
        }
    }

    /// The problem of a request body.
    pub fn in_body(self) -> Problem {
        if self.is_syntax {
            return Problem::bad_request("bad_json", format!("the body is not JSON: {}", self.message));
        }
        Problem::unprocessable("bad_field", self.detail()).named(self.field)
    }

    /// The problem of a socket command.
    pub fn in_command(self) -> Problem {
        let code = if self.is_syntax { "bad_json" } else { "bad_field" };
        Problem::bad_request(code, self.detail()).named(self.field)
    }
}

/// Parses an object. serde would also accept an array with the values of the fields.
pub(super) fn read_object<T: DeserializeOwned>(text: &[u8]) -> Result<T, InvalidInput> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let mut track = serde_path_to_error::Track::new();
    let read = object(serde_path_to_error::Deserializer::new(&mut json, &mut track));
    let invalid = |path: &str, error: &serde_json::Error| InvalidInput::new(path, &error.to_string(), !error.is_data());
    let value = read.map_err(|error| invalid(&track.path().to_string(), &error))?;
    json.end().map_err(|error| invalid("", &error))?;
    Ok(value)
}

/// Deserializes a nested object, and refuses arrays, like [`read_object`].
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct OnlyMaps<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMaps<T> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_map(OnlyMaps(PhantomData))
}

/// Like [`object`], for a field that may be absent or null.
pub(super) fn optional_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    struct Object<T>(T);
    impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            object(deserializer).map(Self)
        }
    }
    Ok(Option::deserialize(deserializer)?.map(|Object(value)| value))
}

/// Replaces the names of Rust types in a message of serde.
fn in_json_terms(message: &str) -> String {
    const WORDS: &[(&str, &str)] = &[
        ("expected usize", "expected a whole number from 0 on"),
        ("expected u64", "expected a whole number from 0 on"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected f64", "expected a number"),
        ("expected a map", "expected an object"),
        ("invalid type: map", "invalid type: object"),
        ("invalid type: sequence", "invalid type: array"),
        ("invalid type: unit value", "invalid type: null"),
        ("invalid type: floating point", "invalid type: number"),
        ("invalid float literal", "a number is expected"),
        ("cannot parse float from empty string", "a number is expected"),
        ("invalid digit found in string", "a whole number from 0 on is expected"),
        ("cannot parse integer from empty string", "a whole number from 0 on is expected"),
        ("number too large to fit in target type", "the number is too large"),
    ];
    WORDS.iter().fold(message.to_owned(), |text, (rust, json)| text.replace(rust, json))
}

/// Keeps the two ends of a text from a client, which may have megabytes.
fn shorten(text: &str) -> String {
    if text.len() <= 2 * MAX_REPEATED {
        return text.to_owned();
    }
    let head = &text[..text.floor_char_boundary(MAX_REPEATED)];
    let tail = &text[text.ceil_char_boundary(text.len() - MAX_REPEATED)..];
    format!("{head}…{tail}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        size: u64,
        share: f64,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        name: String,
        seed: Option<u32>,
        place: Option<usize>,
        flag: Option<bool>,
        #[serde(default, deserialize_with = "object")]
        inner: Inner,
        #[serde(default)]
        env: HashMap<String, String>,
        raw: Option<Box<RawValue>>,
    }

    fn body_of(problem: &Problem) -> serde_json::Value {
        serde_json::to_value(problem.view()).unwrap()
    }

    fn problem(text: &str) -> (String, String) {
        let body = body_of(&read_object::<Outer>(text.as_bytes()).unwrap_err().in_body());
        let field = body.get("field").and_then(|field| field.as_str()).unwrap_or_default();
        (field.to_owned(), body["detail"].as_str().unwrap().to_owned())
    }

    #[test]
    fn valid_objects_are_parsed() {
        let text = r#"{"name": "n", "seed": 4294967295, "inner": {"size": 5, "share": 1}, "env": {"a": "b"}, "raw": {"$x": [1e999]}} "#;
        let read: Outer = read_object(text.as_bytes()).unwrap();
        assert_eq!((read.name.as_str(), read.seed, read.inner.size, read.inner.share), ("n", Some(u32::MAX), 5, 1.0));
        assert_eq!((read.env["a"].as_str(), read.raw.unwrap().get()), ("b", r#"{"$x": [1e999]}"#));
        assert_eq!((read.place, read.flag), (None, None));
    }

    #[test]
    fn errors_name_the_field_without_rust_types() {
        let cases = [
            (r#"{}"#, "name", "missing field `name`"),
            (r#"{"name": 5}"#, "name", "name: invalid type: integer `5`, expected a string"),
            (r#"{"name": "n", "nmae": 5}"#, "nmae", "unknown field `nmae`"),
            (r#"{"name": "n", "seed": 4294967296}"#, "seed", "expected a whole number from 0 to 4294967295"),
            (r#"{"name": "n", "seed": -1}"#, "seed", "expected a whole number from 0 to 4294967295"),
            (r#"{"name": "n", "place": 1.5}"#, "place", "expected a whole number from 0 on"),
            (r#"{"name": "n", "place": "x"}"#, "place", "expected a whole number from 0 on"),
            (r#"{"name": "n", "flag": []}"#, "flag", "invalid type: array, expected a boolean"),
            (r#"{"name": "n", "inner": {"size": {}}}"#, "inner.size", "invalid type: object, expected a whole number"),
            (r#"{"name": "n", "inner": {"share": "x"}}"#, "inner.share", "expected a number"),
            (r#"{"name": "n", "inner": {"szie": 5}}"#, "inner.szie", "unknown field `szie`"),
            (r#"{"name": "n", "inner": [5, 1]}"#, "inner", "invalid type: array, expected an object"),
            (r#"{"name": "n", "inner": null}"#, "inner", "expected an object"),
            (r#"{"name": "n", "env": []}"#, "env", "invalid type: array, expected an object"),
            (r#"{"name": "n", "env": {"a": 1}}"#, "env.a", "expected a string"),
            (r#"{"name": "n", "name": "m"}"#, "name", "duplicate field `name`"),
            (r#"["n"]"#, "", "invalid type: array, expected an object"),
            (r#"5"#, "", "invalid type: integer `5`, expected an object"),
        ];
        for (text, field, detail) in cases {
            let actual = problem(text);
            assert!(actual.0 == field && actual.1.contains(detail), "{text}: {actual:?}");
            for rust in ["struct", "usize", "u64", "u32", "f64", "map", "sequence", "Option"] {
                assert!(!actual.1.contains(rust), "{text}: {actual:?}");
            }
        }
        for text in ["{", "", r#"{"name": "n"} x"#, "{\"name\": \"\u{1}\"}", r#"{"inner": {"share": 1e999}}"#] {
            let body = body_of(&read_object::<Outer>(text.as_bytes()).unwrap_err().in_body());
            assert_eq!((&body["code"], body.get("field")), (&"bad_json".into(), None), "{text}");
        }
        let long = problem(&format!(r#"{{"name": "n", "{}": 1}}"#, "ä".repeat(1 << 20)));
        assert!(long.0.len() < 1000 && long.1.len() < 2000, "long texts are shortened");
    }

    #[test]
    fn accept_header_is_matched_with_case_and_quality() {
        let wants = |accept: &'static str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, header::HeaderValue::from_static(accept))]);
            accepts(&headers, "text/event-stream")
        };
        for yes in
            ["text/event-stream", "TEXT/EVENT-STREAM", "a/b, text/event-stream;q=0.1", "text/event-stream ; charset=x"]
        {
            assert!(wants(yes), "{yes}");
        }
        for no in
            ["", "*/*", "text/event-stream;q=0", "text/event-stream; Q=0.000", "text/event-streams", "x/text/event-stream"]
        {
            assert!(!wants(no), "{no}");
        }
    }

    #[test]
    fn query_errors_name_the_field() {
        for (error, field, detail) in [
            ("Failed to deserialize query string: wait: invalid float literal", "wait", "wait: a number is expected"),
            ("Failed to deserialize query string: waitt: unknown field `waitt`, expected `wait`", "waitt", "unknown field"),
        ] {
            let body = body_of(&query_problem(error));
            assert_eq!(body["field"], field);
            assert!(body["detail"].as_str().unwrap().contains(detail), "{body}");
        }
    }
}
