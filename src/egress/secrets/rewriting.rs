//! The header fields of requests and responses: values put in, values taken out, and what belongs to one connection.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::ActiveSecret;
use super::masking::Values;
use crate::egress::request_head::HOP_BY_HOP;

/// Fields that are dropped besides those of one connection: one would lead around the proxy, and the other is answered by it.
const DROPPED: &[&str] = &["alt-svc", "expect"];

/// Puts secrets into the fields of a request.
pub(super) fn put_in(fields: &mut HeaderMap, secrets: &[&ActiveSecret]) {
    for active in secrets {
        if let Some(placeholder) = &active.placeholder {
            replace(fields, placeholder, active.secret.value.reveal());
        }
    }
    // After the placeholders, so that code cannot have a value set elsewhere by what it writes into a field.
    for active in secrets {
        let Some((name, text)) = active.secret.field() else { continue };
        let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::try_from(text)) else { continue };
        value.set_sensitive(true);
        fields.insert(name, value);
    }
}

fn replace(fields: &mut HeaderMap, placeholder: &str, value: &str) {
    for field in fields.values_mut() {
        let Ok(text) = field.to_str() else { continue };
        let replaced = match replaced_in_basic(text, placeholder, value) {
            Some(basic) => basic,
            None if text.contains(placeholder) => text.replace(placeholder, value),
            None => continue,
        };
        if let Ok(mut replaced) = HeaderValue::try_from(replaced) {
            replaced.set_sensitive(true);
            *field = replaced;
        }
    }
}

/// Basic authentication has the placeholder inside its base64, where it is the password of a URL.
fn replaced_in_basic(text: &str, placeholder: &str, value: &str) -> Option<String> {
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    decoded.contains(placeholder).then(|| format!("{scheme} {}", STANDARD.encode(decoded.replace(placeholder, value))))
}

/// Masks values in the fields of a response.
pub(super) fn mask(fields: &mut HeaderMap, values: &Values) {
    for field in fields.values_mut() {
        if let Some(masked) = values.masked(field.as_bytes()).and_then(|masked| HeaderValue::from_bytes(&masked).ok()) {
            *field = masked;
        }
    }
}

/// Whether a request asks for a WebSocket.
pub(super) fn is_websocket(fields: &HeaderMap) -> bool {
    let has = |name: HeaderName, wanted: &str| {
        let texts = fields.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        texts.flat_map(|text| text.split(',')).any(|part| part.trim().eq_ignore_ascii_case(wanted))
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
}

/// Whether values can be found in a body.
pub(super) fn is_readable(fields: &HeaderMap) -> bool {
    fields.get_all(header::CONTENT_ENCODING).iter().all(|coding| coding == "identity")
}

/// Removes the fields of one connection, also those that `Connection` names.
pub(super) fn drop_hop_by_hop(fields: &mut HeaderMap) {
    let listed: Vec<HeaderName> = fields
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // The length delimits the body, so nobody may have it removed.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST)
        .collect();
    let dropped = HOP_BY_HOP.iter().chain(DROPPED).filter_map(|name| name.parse().ok());
    for name in listed.into_iter().chain(dropped) {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Secret, SecretValue};

    fn active(header: Option<&str>, env: Option<&str>) -> ActiveSecret {
        let value = SecretValue::new("hunter2hunter2".to_owned());
        let secret = Secret::new("A", &["a.example".to_owned()], header, None, env, value).unwrap();
        ActiveSecret { secret, placeholder: env.map(|_| "placeholder".to_owned()) }
    }

    fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn placeholders_are_replaced_in_fields_also_in_basic() {
        // me:placeholder
        let mut request = fields(&[
            ("authorization", "Basic bWU6cGxhY2Vob2xkZXI="),
            ("x-key", "key placeholder"),
            ("x-other", "placehold"),
        ]);
        put_in(&mut request, &[&active(None, Some("A"))]);
        let expected = format!("Basic {}", STANDARD.encode("me:hunter2hunter2"));
        assert!(request["authorization"] == expected && request["x-key"] == "key hunter2hunter2");
        assert!(request["x-other"] == "placehold" && request["x-key"].is_sensitive());
    }

    #[test]
    fn set_field_replaces_those_of_code() {
        let mut request = fields(&[("x-key", "mine")]);
        request.append("x-key", HeaderValue::from_static("another"));
        put_in(&mut request, &[&active(Some("X-Key"), None)]);
        assert_eq!(request.get_all("x-key").iter().collect::<Vec<_>>(), ["hunter2hunter2"]);
    }

    #[test]
    fn values_in_response_fields_are_masked() {
        let mut response = fields(&[("x-echo", "key=hunter2hunter2;"), ("x-other", "none")]);
        mask(&mut response, &Values::new(["hunter2hunter2"].into_iter()));
        assert!(response["x-echo"] == "key=**************;" && response["x-other"] == "none");
    }
}
