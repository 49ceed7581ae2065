//! The environment of programs in sandboxes: where the proxy is, which package indexes there are, and which certificates to trust.

use thiserror::Error;
use url::Url;

use crate::agent_protocol::EGRESS_PORT;
use crate::policy::HostRule;

/// Hosts of the indexes that programs use without configuration, by language. An index of the operator replaces those of its language.
const PYTHON: &[&str] = &["pypi.org", "files.pythonhosted.org"];
const NPM: &[&str] = &["registry.npmjs.org"];
const CRAN: &[&str] = &["cloud.r-project.org", "cran.r-project.org", "packagemanager.posit.co"];
const JULIA: &[&str] = &["pkg.julialang.org", "*.pkg.julialang.org"];
/// Of Deno, whose addresses are in its programs.
const DENO: &[&str] = &["jsr.io", "npm.jsr.io", "deno.land"];

/// Names that are not reached through the proxy: the sandbox itself.
const NO_PROXY: &str = "localhost,127.0.0.1,::1,cellkeep";
/// Variables with the path of a file of trusted certificates, by the programs that read them.
const CERTIFICATE_VARIABLES: &[&str] = &[
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "JULIA_SSL_CA_ROOTS_PATH",
    "AWS_CA_BUNDLE",
];

/// The package indexes of the operator, as URLs. Empty: the public ones of the language.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackageIndexes {
    /// In the order of their priority, as those of R.
    python: Vec<Url>,
    npm: Option<Url>,
    cran: Vec<Url>,
    julia: Option<Url>,
}

/// What is wrong with the URL of an index.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{url:?} cannot be a package index: {why}")]
pub struct IndexError {
    url: String,
    why: &'static str,
}

impl PackageIndexes {
    /// # Errors
    /// The first URL that is not one of http or https, or has a password in it, which every sandbox could read.
    pub fn new(python: &[String], npm: Option<&str>, cran: &[String], julia: Option<&str>) -> Result<Self, IndexError> {
        let one = |url: Option<&str>| url.map(parse_index).transpose();
        let all = |urls: &[String]| urls.iter().map(|url| parse_index(url)).collect::<Result<_, _>>();
        Ok(Self { python: all(python)?, npm: one(npm)?, cran: all(cran)?, julia: one(julia)? })
    }

    /// The hosts of the policy `packages`.
    pub fn hosts(&self) -> Vec<HostRule> {
        let npm: Vec<Url> = self.npm.iter().cloned().collect();
        let julia: Vec<Url> = self.julia.iter().cloned().collect();
        let by_language =
            [(&self.python[..], PYTHON), (&npm[..], NPM), (&self.cran[..], CRAN), (&julia[..], JULIA), (&[], DENO)];
        let names = by_language.into_iter().flat_map(|(indexes, public)| match indexes {
            [] => owned(public),
            // One of the public hosts links to files of the others.
            indexes => {
                indexes.iter().flat_map(|url| if is_of(url, public) { owned(public) } else { address(url) }).collect()
            }
        });
        names.filter_map(|name| name.parse().ok()).collect()
    }

    /// The variables that name the indexes of the operator.
    pub fn variables(&self) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        let mut set = |name: &str, urls: &[&Url]| {
            if !urls.is_empty() {
                let text = urls.iter().map(|url| url.as_str()).collect::<Vec<_>>().join(" ");
                variables.push((name.to_owned(), text));
            }
        };
        let python: Vec<&Url> = self.python.iter().collect();
        if let [first, more @ ..] = &python[..] {
            set("PIP_INDEX_URL", &[first]);
            set("PIP_EXTRA_INDEX_URL", more);
        }
        // uv takes a package from the first index that has it, and the default index comes last.
        if let [before @ .., last] = &python[..] {
            set("UV_INDEX", before);
            set("UV_DEFAULT_INDEX", &[last]);
        }
        set("NPM_CONFIG_REGISTRY", self.npm.as_ref().as_slice());
        set("CELLKEEP_CRAN_MIRROR", &self.cran.iter().collect::<Vec<_>>());
        set("JULIA_PKG_SERVER", self.julia.as_ref().as_slice());
        variables
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The host of a URL, with the port if it has one.
fn address(url: &Url) -> Vec<String> {
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    url.host().map(|host| format!("{host}{port}")).into_iter().collect()
}

fn is_of(url: &Url, hosts: &[&str]) -> bool {
    url.port().is_none() && url.host_str().is_some_and(|host| hosts.contains(&host))
}

fn parse_index(text: &str) -> Result<Url, IndexError> {
    let bad = |why| IndexError { url: text.to_owned(), why };
    let url: Url = text.parse().map_err(|_| bad("it is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(bad("it must begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let why =
            "every sandbox could read the password in it. Declare a secret for its host, and name that in index-secrets";
        return Err(IndexError { url: "…".to_owned(), why });
    }
    Ok(url)
}

/// The variables of programs whose requests go through the proxy.
pub(super) fn proxy_variables() -> Vec<(String, String)> {
    let proxy = format!("http://127.0.0.1:{EGRESS_PORT}");
    let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].map(|name| (name, proxy.as_str()));
    let all = proxies.into_iter().chain([("NO_PROXY", NO_PROXY)]);
    let both_cases =
        all.flat_map(|(name, value)| [(name.to_owned(), value.to_owned()), (name.to_ascii_lowercase(), value.to_owned())]);
    both_cases.collect()
}

/// The variables of programs that trust the certificates of this file.
pub(super) fn certificate_variables(path: &str) -> Vec<(String, String)> {
    CERTIFICATE_VARIABLES.iter().map(|name| ((*name).to_owned(), path.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{HostName, NetworkPolicy};

    #[test]
    fn index_of_operator_replaces_public_one() {
        let reaches = |indexes: &PackageIndexes, host: &str, port| {
            NetworkPolicy::Packages.allows(&HostName::parse(host).unwrap(), port, &indexes.hosts())
        };
        let public = PackageIndexes::default();
        assert!(reaches(&public, "files.pythonhosted.org", 443) && reaches(&public, "us-east.pkg.julialang.org", 443));
        assert!(!reaches(&public, "example.com", 443) && !reaches(&public, "pypi.org", 8080));
        let own = PackageIndexes::new(&["http://Mirror.internal:8080/simple".to_owned()], None, &[], None).unwrap();
        assert!(reaches(&own, "mirror.internal", 8080) && !reaches(&own, "pypi.org", 443) && reaches(&own, "jsr.io", 443));
        let variables = [own.variables(), proxy_variables()].concat();
        for expected in [("PIP_INDEX_URL", "http://mirror.internal:8080/simple"), ("https_proxy", "http://127.0.0.1:3128")] {
            assert!(variables.contains(&(expected.0.to_owned(), expected.1.to_owned())), "{expected:?}");
        }
    }

    #[test]
    fn passwords_in_indexes_are_refused_and_not_repeated() {
        let url = "https://me:hunter2@a.com/simple".to_owned();
        let error = PackageIndexes::new(&[url], None, &[], None).unwrap_err().to_string();
        assert!(error.contains("password") && !error.contains("hunter2"), "{error}");
        assert!(PackageIndexes::new(&[], Some("ftp://a.com"), &[], None).is_err());
    }

    #[test]
    fn first_of_several_indexes_has_priority() {
        let urls = ["https://own.internal/simple", "https://pypi.org/simple"].map(str::to_owned);
        let indexes = PackageIndexes::new(&urls, None, &urls, None).unwrap();
        let variables = indexes.variables();
        for (name, expected) in [
            ("PIP_INDEX_URL", urls[0].as_str()),
            ("PIP_EXTRA_INDEX_URL", &urls[1]),
            ("UV_INDEX", &urls[0]),
            ("UV_DEFAULT_INDEX", &urls[1]),
            ("CELLKEEP_CRAN_MIRROR", "https://own.internal/simple https://pypi.org/simple"),
        ] {
            assert!(variables.contains(&(name.to_owned(), expected.to_owned())), "{name}");
        }
        let hosts = indexes.hosts();
        let reaches = |host: &str| NetworkPolicy::Packages.allows(&HostName::parse(host).unwrap(), 443, &hosts);
        assert!(reaches("own.internal") && reaches("files.pythonhosted.org") && !reaches("cran.r-project.org"));
    }
}
