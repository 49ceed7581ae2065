//! Secrets in requests: given, or named if the operator has declared them. Answers never have their values.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use crate::policy::{MAX_SECRETS, NetworkPolicy, Secret, SecretDescription, SecretUse, SecretValue};

/// A secret that code uses and cannot read: the server's proxy puts its value into requests to its hosts. An empty object names a secret that
/// the operator has declared.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewSecret, examples(json!({"hosts": ["api.example.com"], "header": "Authorization", "format": "Bearer {}", "value": "of-the-api-a-long-one"})))]
pub(super) struct RequestedSecret {
    /// The hosts that get the value, as in `network`: over TLS, and in plain requests only where the port is named.
    #[serde(default)]
    hosts: Vec<String>,
    /// The header field that every request to them gets.
    header: Option<String>,
    /// The value of the field, with `{}` for the secret.
    #[schema(default = "{}")]
    format: Option<String>,
    /// Instead of a header: an environment variable with a placeholder, which is replaced in header fields of requests to the hosts.
    env: Option<String>,
    /// Give the value to requests that read alone: GET and HEAD.
    #[serde(default)]
    #[schema(default = false)]
    read_only: bool,
    /// 8 to 8192 printable ASCII characters.
    #[schema(value_type = Option<String>, min_length = 8, max_length = 8192)]
    value: Option<SecretValue>,
}

impl RequestedSecret {
    /// Whether it only names a secret.
    fn is_reference(&self) -> bool {
        matches!(self, Self { hosts, header: None, format: None, env: None, read_only: false, value: None } if hosts.is_empty())
    }
}

/// Checks the secrets of a sandbox with this environment and network.
pub(super) fn check(
    requested: HashMap<String, RequestedSecret>,
    declared: &[Secret],
    env: &HashMap<String, String>,
    network: &NetworkPolicy,
) -> Result<Vec<Secret>, Problem> {
    let bad = |detail: String| Problem::unprocessable("bad_secret", detail).field("secrets");
    if requested.len() > MAX_SECRETS {
        return Err(bad(format!("{} secrets are too many; at most {MAX_SECRETS} are possible", requested.len())));
    }
    if !requested.is_empty() && *network == NetworkPolicy::Open {
        return Err(bad("code with the network `open` connects by itself; name the hosts in `network` instead".to_owned()));
    }
    let mut secrets = Vec::with_capacity(requested.len());
    for (name, given) in requested {
        secrets.push(if given.is_reference() {
            find(&name, declared).map_err(bad)?
        } else {
            read(&name, given).map_err(bad)?
        });
    }
    let variables: Vec<&str> = secrets.iter().filter_map(|secret| secret.description.variable()).collect();
    let is_taken = |(at, variable): &(usize, &&str)| variables[..*at].contains(*variable) || env.contains_key(**variable);
    if let Some((_, variable)) = variables.iter().enumerate().find(is_taken) {
        return Err(bad(format!("the variable {variable} is given twice")));
    }
    secrets.sort_by(|one, other| one.description.name.cmp(&other.description.name));
    Ok(secrets)
}

fn find(name: &str, declared: &[Secret]) -> Result<Secret, String> {
    let found = declared.iter().find(|secret| secret.description.name == name);
    found.cloned().ok_or_else(|| {
        let names: Vec<&str> = declared.iter().map(|secret| secret.description.name.as_str()).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let name: String = name.chars().take(100).collect();
        format!(
            "the operator has declared no secret {name:?} (there is {known}); give `hosts`, `header` or `env`, and `value`"
        )
    })
}

fn read(name: &str, given: RequestedSecret) -> Result<Secret, String> {
    let RequestedSecret { hosts, header, format, env, read_only, value } = given;
    let secret = Secret::new(name, &hosts, header.as_deref(), format.as_deref(), env.as_deref(), value.unwrap_or_default());
    let secret = secret.map_err(|error| error.to_string())?;
    Ok(if read_only { secret.read_only() } else { secret })
}

/// A secret of a sandbox, without its value.
#[derive(Serialize, ToSchema)]
#[schema(as = Secret, examples(json!({"name": "API_TOKEN", "hosts": ["api.example.com"], "header": "authorization", "env": null, "read_only": false})))]
pub(in crate::api) struct SecretView {
    name: String,
    /// The hosts whose requests get it.
    hosts: Vec<String>,
    /// The header field that the proxy sets.
    #[schema(required)]
    header: Option<String>,
    /// The variable with the placeholder.
    #[schema(required)]
    env: Option<String>,
    /// Whether only requests that read get it.
    read_only: bool,
}

impl From<SecretDescription> for SecretView {
    fn from(SecretDescription { name, hosts, read_only, usage }: SecretDescription) -> Self {
        let (header, env) = match usage {
            SecretUse::Header { header, .. } => (Some(header), None),
            SecretUse::Env { env } => (None, Some(env)),
        };
        Self { name, hosts: hosts.iter().map(ToString::to_string).collect(), header, env, read_only }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(json: &str, network: &NetworkPolicy) -> Result<Vec<Secret>, String> {
        let requested = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let value = SecretValue::new("hunter2hunter2".to_owned());
        let declared = Secret::new("OURS", &["a.example".to_owned()], Some("X-Key"), None, None, value).unwrap();
        let env = HashMap::from([("TAKEN".to_owned(), String::new())]);
        check(requested, &[declared], &env, network)
            .map_err(|problem| serde_json::to_value(problem.view()).unwrap()["detail"].to_string())
    }

    #[test]
    fn secrets_are_given_or_named() {
        let none = NetworkPolicy::None;
        let given = r#"{"hosts": ["b.example"], "env": "B", "value": "hunter2hunter2"}"#;
        let secrets = checked(&format!(r#"{{"OURS": {{}}, "B": {given}}}"#), &none).unwrap();
        assert_eq!(secrets.iter().map(|secret| secret.description.name.as_str()).collect::<Vec<_>>(), ["B", "OURS"]);
        for (json, expected) in [
            (r#"{"THEIRS": {}}"#.to_owned(), "there is OURS"),
            (r#"{"A": {"hosts": ["b.example"], "env": "A"}}"#.to_owned(), "8 to 8192"),
            (format!(r#"{{"A": {given}, "B": {given}}}"#), "given twice"),
            (r#"{"A": {"hosts": ["b.example"], "env": "TAKEN", "value": "hunter2hunter2"}}"#.to_owned(), "given twice"),
            (r#"{"A": {"host": "b.example"}}"#.to_owned(), "unknown field"),
        ] {
            let error = checked(&json, &none).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{json}: {error}");
        }
        assert!(checked(&format!(r#"{{"A": {given}}}"#), &NetworkPolicy::Open).unwrap_err().contains("open"));
    }
}
