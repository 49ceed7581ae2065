//! Secrets that code uses and cannot read: the server's proxy puts their values into requests to the hosts that they are for. Code has a
//! placeholder, or nothing.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{HostName, HostRule, PolicyError};

/// The most secrets of one sandbox, and the most hosts of one secret.
pub const MAX_SECRETS: usize = 20;
const MAX_HOSTS: usize = 20;
const MAX_NAME: usize = 64;
/// The lengths of a value, bytes. A short one would be found in responses by chance.
const MIN_VALUE: usize = 8;
const MAX_VALUE: usize = 8 * 1024;
/// Where the value stands in a format.
const SLOT: &str = "{}";
/// Fields that say where a request goes, and how long it is.
const REFUSED_FIELDS: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A value that no text shows.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretValue(String);

impl SecretValue {
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself, for the request that it goes into and for the server's own files.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

/// How requests get the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SecretUse {
    /// The proxy sets a header field in every request.
    Header {
        /// The name of the field.
        header: String,
        /// The value of the field, with `{}` for the secret.
        format: String,
    },
    /// Code finds a placeholder in an environment variable, which the proxy replaces in the header fields of requests.
    Env { env: String },
}

/// A secret without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretDescription {
    pub name: String,
    /// The hosts that get the value: over TLS, and in plain requests where the rule names the port.
    pub hosts: Vec<HostRule>,
    /// Whether only requests that read get the value: GET and HEAD.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    #[serde(flatten)]
    pub usage: SecretUse,
}

/// A secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    #[serde(flatten)]
    pub description: SecretDescription,
    pub value: SecretValue,
}

/// What is wrong with a secret. Never the value itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SecretError {
    #[error("a secret's name is made of letters, digits and _, begins with no digit, and has at most {MAX_NAME} characters")]
    Name,
    #[error("the secret {name}: {error}")]
    Host { name: String, error: PolicyError },
    #[error("the secret {name} has {count} hosts; it must have 1 to {MAX_HOSTS}")]
    Hosts { name: String, count: usize },
    #[error("the secret {name}: give either `header` (with a `format` if needed) or `env`")]
    Usage { name: String },
    #[error("the secret {name}: {header:?} is not a header field that can be set")]
    Header { name: String, header: String },
    #[error("the secret {name}: the format is text with one {{}}, where the value goes")]
    Format { name: String },
    #[error("the secret {name}: {variable:?} is not the name of a variable")]
    Variable { name: String, variable: String },
    #[error("the value of the secret {name} must have {MIN_VALUE} to {MAX_VALUE} printable ASCII characters")]
    Value { name: String },
}

impl Secret {
    /// Checks the parts of a secret.
    ///
    /// # Errors
    /// The first part that is wrong.
    pub fn new(
        name: &str,
        hosts: &[String],
        header: Option<&str>,
        format: Option<&str>,
        env: Option<&str>,
        value: SecretValue,
    ) -> Result<Self, SecretError> {
        if !is_variable(name) {
            return Err(SecretError::Name);
        }
        let name = name.to_owned();
        if hosts.is_empty() || hosts.len() > MAX_HOSTS {
            return Err(SecretError::Hosts { name, count: hosts.len() });
        }
        let hosts = hosts.iter().map(|host| host.parse()).collect::<Result<Vec<HostRule>, _>>();
        let hosts = hosts.map_err(|error| SecretError::Host { name: name.clone(), error })?;
        let usage = match (header, format, env) {
            (Some(header), format, None) => {
                let format = format.unwrap_or(SLOT);
                if !is_field(header) {
                    return Err(SecretError::Header { name, header: shortened(header) });
                }
                if format.matches(SLOT).count() != 1 || format.len() > MAX_VALUE || !is_printable(format) {
                    return Err(SecretError::Format { name });
                }
                SecretUse::Header { header: header.to_ascii_lowercase(), format: format.to_owned() }
            }
            (None, None, Some(env)) if is_variable(env) => SecretUse::Env { env: env.to_owned() },
            (None, None, Some(env)) => return Err(SecretError::Variable { name, variable: shortened(env) }),
            _ => return Err(SecretError::Usage { name }),
        };
        if !(MIN_VALUE..=MAX_VALUE).contains(&value.0.len()) || !is_printable(&value.0) || value.0.trim() != value.0 {
            return Err(SecretError::Value { name });
        }
        Ok(Self { description: SecretDescription { name, hosts, read_only: false, usage }, value })
    }

    /// The same secret, for requests that read.
    pub fn read_only(mut self) -> Self {
        self.description.read_only = true;
        self
    }

    /// The value of the header field that the proxy sets, and its name.
    pub fn field(&self) -> Option<(&str, String)> {
        match &self.description.usage {
            SecretUse::Header { header, format } => Some((header, format.replacen(SLOT, &self.value.0, 1))),
            SecretUse::Env { .. } => None,
        }
    }
}

impl SecretDescription {
    /// Whether requests to a host get the value.
    pub fn is_for(&self, host: &HostName, port: u16, is_tls: bool) -> bool {
        self.hosts.iter().any(|rule| rule.matches(host, port) && (is_tls || rule.names_port()))
    }

    /// The variable with the placeholder.
    pub fn variable(&self) -> Option<&str> {
        if let SecretUse::Env { env } = &self.usage { Some(env) } else { None }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_NAME).collect()
}

fn is_variable(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !text.is_empty() && text.len() <= MAX_NAME && text.bytes().all(is_word) && !text.as_bytes()[0].is_ascii_digit()
}

fn is_field(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let lower = name.to_ascii_lowercase();
    let is_refused = REFUSED_FIELDS.contains(&lower.as_str()) || lower.starts_with("proxy-");
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(is_token) && !is_refused
}

fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(header: Option<&str>, format: Option<&str>, env: Option<&str>, value: &str) -> Result<Secret, SecretError> {
        let hosts = ["api.example.com".to_owned(), "api.example.com:8080".to_owned()];
        Secret::new("TOKEN", &hosts, header, format, env, SecretValue::new(value.to_owned()))
    }

    #[test]
    fn secret_has_one_use() {
        let of_header = secret(Some("Authorization"), Some("Bearer {}"), None, "hunter2hunter2").unwrap();
        assert_eq!(of_header.field(), Some(("authorization", "Bearer hunter2hunter2".to_owned())));
        let of_variable = secret(None, None, Some("API_KEY"), "hunter2hunter2").unwrap();
        assert_eq!((of_variable.field(), of_variable.description.variable()), (None, Some("API_KEY")));
        assert!(matches!(secret(None, None, None, "hunter2hunter2"), Err(SecretError::Usage { .. })));
        assert!(matches!(secret(Some("X"), None, Some("Y"), "hunter2hunter2"), Err(SecretError::Usage { .. })));
        assert!(matches!(secret(None, Some("{}"), Some("Y"), "hunter2hunter2"), Err(SecretError::Usage { .. })));
    }

    #[test]
    fn wrong_secrets_are_refused_without_their_values() {
        let field = |header| secret(Some(header), None, None, "hunter2hunter2");
        for header in ["Host", "content-length", "Proxy-Authorization", "X: y", "", "Ä", "Accept-Encoding"] {
            assert!(matches!(field(header), Err(SecretError::Header { .. })), "{header}");
        }
        for format in ["Bearer", "{}{}", "a\r\nX: {}", "ä{}"] {
            assert!(matches!(secret(Some("X"), Some(format), None, "hunter2hunter2"), Err(SecretError::Format { .. })));
        }
        for variable in ["", "1A", "A-B", "A=B"] {
            assert!(matches!(secret(None, None, Some(variable), "hunter2hunter2"), Err(SecretError::Variable { .. })));
        }
        for value in ["short", "hunter2\r\nX: hunter2", " hunter2 hunter2", "hünter2hünter2", &"x".repeat(MAX_VALUE + 1)] {
            let error = secret(Some("X"), None, None, value).unwrap_err();
            assert!(matches!(error, SecretError::Value { .. }) && !error.to_string().contains("hunter2"), "{value}");
        }
        let hosts = |hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            Secret::new("A", &hosts, Some("X"), None, None, SecretValue::new("hunter2hunter2".into()))
        };
        assert!(
            hosts(&[]).is_err() && hosts(&["*"]).is_err() && hosts(&["a.com"; 21]).is_err() && hosts(&["*.a.com"]).is_ok()
        );
        assert!(!format!("{:?}", hosts(&["a.com"])).contains("hunter2"));
        let name = Secret::new("a-b", &["a.com".to_owned()], Some("X"), None, None, SecretValue::default());
        assert_eq!(name, Err(SecretError::Name));
    }

    #[test]
    fn plain_requests_get_secrets_only_where_a_rule_names_the_port() {
        let description = secret(Some("X"), None, None, "hunter2hunter2").unwrap().description;
        let host = HostName::parse("api.example.com").unwrap();
        assert!(description.is_for(&host, 443, true) && !description.is_for(&host, 80, false));
        assert!(description.is_for(&host, 8080, false) && description.is_for(&host, 8080, true));
        assert!(!description.is_for(&HostName::parse("other.example.com").unwrap(), 443, true));
    }

    #[test]
    fn descriptions_round_trip_without_values() {
        let of_variable = secret(None, None, Some("Y"), "hunter2hunter2").unwrap();
        for secret in
            [secret(Some("X"), None, None, "hunter2hunter2").unwrap(), of_variable.clone(), of_variable.read_only()]
        {
            let json = serde_json::to_string(&secret.description).unwrap();
            assert!(!json.contains("hunter2"), "{json}");
            assert_eq!(serde_json::from_str::<SecretDescription>(&json).unwrap(), secret.description);
            let whole = serde_json::to_string(&secret).unwrap();
            assert_eq!(serde_json::from_str::<Secret>(&whole).unwrap(), secret);
        }
    }
}
