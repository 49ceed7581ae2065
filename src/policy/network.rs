//! What code in a sandbox may reach: the network policy of a session, and its decision by host name and port.
//!
//! Host names are compared in one spelling: lower case, punycode, without a dot at the end, and addresses in their usual notation. So
//! `EXAMPLE.com.` is `example.com`, and `0x7f.1` is `127.0.0.1`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use url::Host;

use super::Network;

/// The most rules of one policy.
pub const MAX_RULES: usize = 100;
/// The longest name of the domain name system, characters.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// The ports of a rule that names none.
const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// What code in a sandbox may reach. Except for `open`, the sandbox has no network: requests go through the manager's proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkPolicy {
    #[default]
    None,
    /// The package indexes that the operator has configured.
    Packages,
    /// The hosts of these rules, and no others.
    Allow(Vec<HostRule>),
    /// What the host reaches, but not the host itself.
    Open,
}

/// The policies by how much they permit, narrowest first; the ceiling of a server is one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkLevel {
    #[default]
    None,
    Packages,
    Allow,
    Open,
}

impl fmt::Display for NetworkLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Packages => "packages",
            Self::Allow => "allow",
            Self::Open => "open",
        })
    }
}

impl NetworkPolicy {
    /// A policy `allow` with these rules, each of them once.
    ///
    /// # Errors
    /// The first rule that is invalid, no rule, or more than [`MAX_RULES`].
    pub fn allowing<T: AsRef<str>>(rules: &[T]) -> Result<Self, PolicyError> {
        if rules.is_empty() {
            return Err(PolicyError::NoRules);
        }
        if rules.len() > MAX_RULES {
            return Err(PolicyError::TooManyRules { count: rules.len() });
        }
        let mut parsed: Vec<HostRule> = Vec::with_capacity(rules.len());
        for rule in rules {
            let rule: HostRule = rule.as_ref().parse()?;
            if !parsed.contains(&rule) {
                parsed.push(rule);
            }
        }
        Ok(Self::Allow(parsed))
    }

    pub fn level(&self) -> NetworkLevel {
        match self {
            Self::None => NetworkLevel::None,
            Self::Packages => NetworkLevel::Packages,
            Self::Allow(_) => NetworkLevel::Allow,
            Self::Open => NetworkLevel::Open,
        }
    }

    /// The network that the sandbox itself has.
    pub fn interface(&self) -> Network {
        if *self == Self::Open { Network::Open } else { Network::None }
    }

    /// Whether requests of the sandbox go through the manager's proxy.
    pub fn needs_proxy(&self) -> bool {
        matches!(self, Self::Packages | Self::Allow(_))
    }

    /// What code reaches, as a measure that is enforced; `None` for `open`, which restricts nothing.
    pub fn measure(&self) -> Option<String> {
        let through = "through the server's proxy alone";
        match self {
            Self::None => Some("no network".to_owned()),
            Self::Packages => Some(format!("network: package indexes, {through}")),
            Self::Allow(rules) => Some(format!("network: {} named hosts, {through}", rules.len())),
            Self::Open => None,
        }
    }

    /// The rules of `allow`.
    pub fn rules(&self) -> &[HostRule] {
        if let Self::Allow(rules) = self { rules } else { &[] }
    }

    /// Whether the proxy may connect to a host. `packages` are the rules of the policy of that name.
    pub fn allows(&self, host: &HostName, port: u16, packages: &[HostRule]) -> bool {
        self.proxy_rules(packages).iter().any(|rule| rule.matches(host, port))
    }

    /// Whether the proxy may pass on any bytes to a host, because a rule names the port. Otherwise it passes on what the usual ports are
    /// for: HTTP requests on 80, TLS on 443.
    pub fn allows_any_bytes(&self, host: &HostName, port: u16, packages: &[HostRule]) -> bool {
        self.proxy_rules(packages).iter().any(|rule| rule.names_port() && rule.matches(host, port))
    }

    fn proxy_rules<'a>(&'a self, packages: &'a [HostRule]) -> &'a [HostRule] {
        if *self == Self::Packages { packages } else { self.rules() }
    }
}

/// The name of a host or an IP address, in the spelling in which they are compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName {
    /// An IPv6 address is without brackets.
    text: String,
    is_address: bool,
}

impl HostName {
    /// Reads a host as it stands in a URL: IPv6 addresses in brackets.
    ///
    /// # Errors
    /// What is neither a name of the domain name system nor an address.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let bad = |why| PolicyError::Host { host: text.chars().take(80).collect(), why };
        if text.len() > 4 * MAX_NAME {
            return Err(bad("it is too long"));
        }
        // The parser would decode percent signs.
        if text.contains('%') {
            return Err(bad("it contains a percent sign"));
        }
        match Host::parse(text.strip_suffix('.').unwrap_or(text)) {
            Ok(Host::Ipv4(address)) => Ok(Self { text: address.to_string(), is_address: true }),
            Ok(Host::Ipv6(address)) => Ok(Self { text: address.to_string(), is_address: true }),
            Ok(Host::Domain(name)) => match fault_of(&name) {
                Some(why) => Err(bad(why)),
                None => Ok(Self { text: name, is_address: false }),
            },
            Err(_) => Err(bad("it is neither a name nor an address")),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is an IP address.
    pub fn is_address(&self) -> bool {
        self.is_address
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.contains(':') { write!(f, "[{}]", self.text) } else { f.write_str(&self.text) }
    }
}

/// Why an ASCII name is not one of the domain name system.
fn fault_of(name: &str) -> Option<&'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    if name.len() > MAX_NAME {
        return Some("it is longer than 253 characters");
    }
    if name.split('.').any(str::is_empty) {
        return Some("it has an empty part between dots");
    }
    if name.split('.').any(|label| label.len() > MAX_LABEL) {
        return Some("it has a part of more than 63 characters");
    }
    let is_label = |label: &str| label.bytes().all(is_allowed) && !label.starts_with('-') && !label.ends_with('-');
    if !name.split('.').all(is_label) {
        return Some("it has characters that names of hosts do not have");
    }
    None
}

/// A rule of a policy: `example.com`, `*.example.com` (all names below it, but not itself), `example.com:8443`. Without a port it holds for HTTP
/// on 80 and TLS on 443; with one, for any bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostRule {
    host: HostName,
    /// Whether it holds for all names below `host` instead.
    is_wildcard: bool,
    port: Option<u16>,
}

impl HostRule {
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Whether it holds for one port alone.
    pub fn names_port(&self) -> bool {
        self.port.is_some()
    }

    /// The ports for which it holds.
    pub fn ports(&self) -> Vec<u16> {
        self.port.map_or(DEFAULT_PORTS.to_vec(), |port| vec![port])
    }

    pub fn matches(&self, host: &HostName, port: u16) -> bool {
        let is_port = self.port.map_or(DEFAULT_PORTS.contains(&port), |own| own == port);
        let is_host = if self.is_wildcard {
            let above = host.text.strip_suffix(self.host.text.as_str());
            !host.is_address && above.is_some_and(|above| above.ends_with('.') && above.len() > 1)
        } else {
            *host == self.host
        };
        is_port && is_host
    }
}

impl FromStr for HostRule {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bad = |why| PolicyError::Host { host: text.chars().take(80).collect(), why };
        let (name, port) = split_port(text).map_err(bad)?;
        let (name, is_wildcard) = name.strip_prefix("*.").map_or((name, false), |name| (name, true));
        if name.contains('*') {
            return Err(bad("a star can only stand for the first part, as in *.example.com"));
        }
        if name.contains("://") || name.contains('/') {
            return Err(bad("it is a URL; name only the host, and the port if it is not 80 or 443"));
        }
        let host = HostName::parse(name)?;
        if is_wildcard && (host.is_address || !host.text.contains('.')) {
            return Err(bad("a star needs a domain with at least two parts, as in *.example.com"));
        }
        Ok(Self { host, is_wildcard, port })
    }
}

/// Splits `host:port`. The colons of an IPv6 address are in brackets.
fn split_port(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    let end = text.rfind(']').map_or(0, |end| end + 1);
    match text[end..].rsplit_once(':') {
        None => Ok((text, None)),
        Some((before, port)) => {
            let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let port = Some(port).filter(|_| is_number).and_then(|port| port.parse().ok()).filter(|port| *port > 0);
            let port = port.ok_or("the port is not a number from 1 to 65535")?;
            Ok((&text[..end + before.len()], Some(port)))
        }
    }
}

/// Reads `host:port` of a request, in which the port may be missing.
///
/// # Errors
/// [`PolicyError::Host`], also for user names and passwords.
pub fn parse_authority(text: &str, default_port: Option<u16>) -> Result<(HostName, u16), PolicyError> {
    let bad = |why| PolicyError::Host { host: text.chars().take(80).collect(), why };
    let (host, port) = split_port(text).map_err(bad)?;
    let port = port.or(default_port).ok_or_else(|| bad("it has no port"))?;
    Ok((HostName::parse(host)?, port))
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.is_wildcard { "*." } else { "" };
        match self.port {
            Some(port) => write!(f, "{star}{}:{port}", self.host),
            None => write!(f, "{star}{}", self.host),
        }
    }
}

impl TryFrom<String> for HostRule {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<HostRule> for String {
    fn from(rule: HostRule) -> Self {
        rule.to_string()
    }
}

/// What is wrong with a policy or a host.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    #[error("{host:?} is not a host that can be allowed: {why}")]
    Host { host: String, why: &'static str },
    #[error("`allow` names no host; use the network `none`")]
    NoRules,
    #[error("`allow` names {count} hosts, and at most {MAX_RULES} are possible")]
    TooManyRules { count: usize },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    fn rule(text: &str) -> HostRule {
        text.parse().unwrap()
    }

    #[test]
    fn names_have_one_spelling() {
        for (given, expected) in [
            ("PyPI.org", "pypi.org"),
            ("pypi.org.", "pypi.org"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("ｐｙｐｉ.org", "pypi.org"),
            ("localhost", "localhost"),
            ("_dmarc.example.com", "_dmarc.example.com"),
        ] {
            let name = host(given);
            assert_eq!((name.as_str(), name.is_address()), (expected, false), "{given}");
        }
        for (given, expected) in [
            ("127.0.0.1", "127.0.0.1"),
            ("0x7f.1", "127.0.0.1"),
            ("017700000001", "127.0.0.1"),
            ("2130706433", "127.0.0.1"),
            ("127.1.", "127.0.0.1"),
            ("１２７.0.0.1", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[0:0:0:0:0:ffff:7f00:1]", "[::ffff:127.0.0.1]"),
        ] {
            let name = host(given);
            assert_eq!((name.to_string().as_str(), name.is_address()), (expected, true), "{given}");
        }
    }

    #[test]
    fn meaningless_names_are_refused() {
        let (long, label) = (format!("{}.com", "a.".repeat(200)), format!("{}.com", "a".repeat(64)));
        let bad = [
            "",
            ".",
            "..",
            "a..b",
            ".com",
            "*",
            "*.*.com",
            "*.com",
            "a.*.com",
            "*example.com",
            "a b.com",
            "a/b",
            "https://a.com",
            "user@a.com",
            "a.com:",
            "a.com:0",
            "a.com:65536",
            "a.com:http",
            "a.com:+80",
            "%61.com",
            "[::1",
            "::1",
            "-a.com",
            "a-.com",
            "1.2.3.4.5",
            "256.1.1.1",
            "*.1.2.3.4",
            "*.[::1]",
            "a\0.com",
            "xn--a.com",
            "a\u{200b}\u{202e}.com:8",
            &long,
            &label,
        ];
        for text in bad {
            let parsed: Result<HostRule, _> = text.parse();
            assert!(parsed.is_err(), "{text:?} became {parsed:?}");
        }
        let error = "a..b".parse::<HostRule>().unwrap_err().to_string();
        assert_eq!(error, "\"a..b\" is not a host that can be allowed: it has an empty part between dots");
        assert!("x".repeat(300).parse::<HostRule>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn rules_match_names_and_ports() {
        assert!(rule("pypi.org").matches(&host("PYPI.org."), 443) && rule("pypi.org").matches(&host("pypi.org"), 80));
        assert!(!rule("pypi.org").matches(&host("pypi.org"), 22) && !rule("pypi.org").matches(&host("xpypi.org"), 443));
        let wildcard = rule("*.example.com");
        assert!(wildcard.matches(&host("a.example.com"), 443) && wildcard.matches(&host("a.b.example.com"), 443));
        for other in ["example.com", "badexample.com", "example.com.evil.org", "a.example.com.evil.org"] {
            assert!(!wildcard.matches(&host(other), 443), "{other}");
        }
        assert!(rule("a.com:8443").matches(&host("a.com"), 8443) && !rule("a.com:8443").matches(&host("a.com"), 443));
        assert!(rule("[::1]:81").matches(&host("[0::1]"), 81) && rule("127.0.0.1:81").matches(&host("0x7f.1"), 81));
    }

    #[test]
    fn policies_decide_by_their_rules() {
        let packages = [rule("pypi.org")];
        let allowed = |policy: &NetworkPolicy, name: &str| policy.allows(&host(name), 443, &packages);
        assert!(!allowed(&NetworkPolicy::None, "pypi.org") && allowed(&NetworkPolicy::Packages, "pypi.org"));
        let allow = NetworkPolicy::allowing(&["a.com", "A.com.", "*.b.com:443"]).unwrap();
        assert_eq!(serde_json::to_string(&allow).unwrap(), r#"{"allow":["a.com","*.b.com:443"]}"#);
        assert!(allowed(&allow, "a.com") && allowed(&allow, "x.b.com") && !allowed(&allow, "pypi.org"));
        assert_eq!(NetworkPolicy::allowing::<&str>(&[]), Err(PolicyError::NoRules));
        let any_bytes = |policy: &NetworkPolicy, name: &str| policy.allows_any_bytes(&host(name), 443, &packages);
        assert!(
            any_bytes(&allow, "x.b.com") && !any_bytes(&allow, "a.com") && !any_bytes(&NetworkPolicy::Packages, "pypi.org")
        );
        let many = vec!["a.com"; MAX_RULES + 1];
        assert_eq!(NetworkPolicy::allowing(&many), Err(PolicyError::TooManyRules { count: MAX_RULES + 1 }));
    }

    #[test]
    fn stored_policies_round_trip() {
        for (json, level) in [
            (r#""none""#, NetworkLevel::None),
            (r#""packages""#, NetworkLevel::Packages),
            (r#"{"allow":["a.com:8443"]}"#, NetworkLevel::Allow),
            (r#""open""#, NetworkLevel::Open),
        ] {
            let policy: NetworkPolicy = serde_json::from_str(json).unwrap();
            assert_eq!((serde_json::to_string(&policy).unwrap().as_str(), policy.level()), (json, level));
        }
        assert!(NetworkLevel::None < NetworkLevel::Packages && NetworkLevel::Allow < NetworkLevel::Open);
    }

    proptest! {
        #[test]
        fn spelling_of_a_name_is_stable(text in "\\PC{0,40}") {
            if let Ok(name) = HostName::parse(&text) {
                prop_assert_eq!(HostName::parse(&name.to_string()).unwrap(), name);
            }
        }

        #[test]
        fn rules_round_trip(text in "(\\*\\.)?[a-z0-9.-]{1,20}(:[0-9]{1,6})?") {
            if let Ok(rule) = text.parse::<HostRule>() {
                prop_assert_eq!(rule.to_string().parse::<HostRule>().unwrap(), rule);
            }
        }

        #[test]
        fn rules_never_match_other_domains(base in "[a-z]{1,8}\\.[a-z]{2,5}", other in "[a-z0-9.-]{1,30}", port in 1u16..) {
            let exact: HostRule = base.parse().unwrap();
            let wildcard: HostRule = format!("*.{base}").parse().unwrap();
            if let Ok(name) = HostName::parse(&other) {
                prop_assert_eq!(exact.matches(&name, port), name.as_str() == base && DEFAULT_PORTS.contains(&port));
                let is_below = name.as_str().ends_with(&format!(".{base}"));
                prop_assert_eq!(wildcard.matches(&name, port), is_below && DEFAULT_PORTS.contains(&port));
            }
        }
    }
}
