//! Packages that sandboxes get besides those of their kernel: what may be asked for, and what the operator permits.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most requirements of one set, and the longest of them in bytes. A pinned one has a hash for each file of its release.
const MAX_REQUIREMENTS: usize = 1000;
const MAX_REQUIREMENT: usize = 32 << 10;
/// The largest list of requirements, bytes.
const MAX_REQUIREMENTS_BYTES: usize = 512 << 10;
/// The largest lock, bytes.
pub const MAX_LOCK: usize = 4 << 20;

/// What a package set is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageRequest {
    /// As the package manager of the language reads them: `polars>=1`, `npm:chalk@5`, `data.table`. Sorted, each once.
    pub requirements: BTreeSet<String>,
    /// The content of a lock that an earlier set was exported with. Then it decides all versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
}

/// Why packages are not installed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PackageRequestError {
    #[error("{0:?} is an option; here are only packages. Indexes are settings of the server, and other files are not read")]
    Option(String),
    #[error("{0:?} is not a requirement: it is empty, too long, or has control characters")]
    Malformed(String),
    #[error("these are more than {MAX_REQUIREMENTS} requirements, or {} KB of them", MAX_REQUIREMENTS_BYTES >> 10)]
    TooMany,
    #[error("a lock decides all packages; leave the requirements out, or the lock")]
    LockAndRequirements,
    #[error("no package is named")]
    Empty,
}

impl PackageRequest {
    /// Reads packages that are named one by one, and the text of a `requirements.txt`.
    ///
    /// # Errors
    /// The first requirement that cannot be one.
    pub fn new(packages: &[String], requirements: Option<&str>) -> Result<Self, PackageRequestError> {
        let text = requirements.unwrap_or_default();
        if packages.len() > MAX_REQUIREMENTS || text.len() > MAX_LOCK {
            return Err(PackageRequestError::TooMany);
        }
        let lines = logical_lines(text);
        let named = packages.iter().map(|package| package.trim().to_owned());
        let (mut request, mut bytes) = (Self::default(), 0);
        for requirement in named.chain(lines) {
            check(&requirement)?;
            bytes += requirement.len();
            request.requirements.insert(requirement);
            if request.requirements.len() > MAX_REQUIREMENTS || bytes > MAX_REQUIREMENTS_BYTES {
                return Err(PackageRequestError::TooMany);
            }
        }
        match request.requirements.is_empty() {
            true => Err(PackageRequestError::Empty),
            false => Ok(request),
        }
    }

    /// A request for exactly the packages of a lock.
    ///
    /// # Errors
    /// If it is empty or too large.
    pub fn of_lock(lock: &str) -> Result<Self, PackageRequestError> {
        if lock.len() > MAX_LOCK {
            return Err(PackageRequestError::TooMany);
        }
        if lock.trim().is_empty() {
            return Err(PackageRequestError::Empty);
        }
        Ok(Self { requirements: BTreeSet::new(), lock: Some(lock.to_owned()) })
    }

    /// The requirements, one a line.
    pub fn text(&self) -> String {
        self.requirements.iter().flat_map(|requirement| [requirement.as_str(), "\n"]).collect()
    }
}

/// The requirements of a `requirements.txt`: lines that end with a backslash continue, and `#` begins a comment at the beginning of
/// a line or after white space.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut current = String::new();
    for line in text.lines() {
        let line = without_comment(line).trim();
        match line.strip_suffix('\\') {
            Some(begun) => {
                current.push_str(begun.trim_end());
                current.push(' ');
            }
            None => {
                current.push_str(line);
                lines.push(std::mem::take(&mut current));
            }
        }
    }
    lines.push(current);
    lines.iter().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn without_comment(line: &str) -> &str {
    let starts = |(at, _): &(usize, &str)| *at == 0 || line[..*at].ends_with(char::is_whitespace);
    line.match_indices('#').find(starts).map_or(line, |(at, _)| &line[..at])
}

fn check(requirement: &str) -> Result<(), PackageRequestError> {
    let shown = || requirement.chars().take(100).collect::<String>();
    if requirement.starts_with('-') {
        return Err(PackageRequestError::Option(shown()));
    }
    if requirement.is_empty() || requirement.len() > MAX_REQUIREMENT || requirement.chars().any(char::is_control) {
        return Err(PackageRequestError::Malformed(shown()));
    }
    Ok(())
}

/// What the operator permits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageRules {
    /// Names, also with `*` at the end. Empty: all.
    pub allowed: Vec<String>,
    pub denied: Vec<String>,
    /// The largest set, MB.
    pub max_mb: u64,
    /// The most of all sets together, MB. Beyond it, those go that were not used for longest.
    pub max_total_mb: u64,
    /// How long the installation of one set may take.
    pub build_seconds: u64,
}

impl Default for PackageRules {
    fn default() -> Self {
        Self { allowed: Vec::new(), denied: Vec::new(), max_mb: 2048, max_total_mb: 20 << 10, build_seconds: 600 }
    }
}

impl PackageRules {
    /// Whether a package of this name may be installed.
    pub fn permits(&self, name: &str) -> bool {
        let name = canonical(name);
        let is_in = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, &name));
        (self.allowed.is_empty() || is_in(&self.allowed)) && !is_in(&self.denied)
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let pattern = canonical(pattern);
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

/// A name as Python's indexes compare them (PEP 503). Those of other languages differ in more than this.
fn canonical(name: &str) -> String {
    let mut canonical = String::with_capacity(name.len());
    for letter in name.trim().chars() {
        match letter {
            '-' | '_' | '.' if canonical.ends_with('-') => {}
            '-' | '_' | '.' => canonical.push('-'),
            _ => canonical.extend(letter.to_lowercase()),
        }
    }
    canonical
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_read_as_pip_reads_them() {
        let text = "# tools\npolars>=1  # fast\n\nrequests==2.32 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nx@https://a/#egg=x\n";
        let request = PackageRequest::new(&["numpy ".to_owned(), "polars>=1".to_owned()], Some(text)).unwrap();
        let expected = ["numpy", "polars>=1", "requests==2.32 --hash=sha256:aa --hash=sha256:bb", "x@https://a/#egg=x"];
        assert_eq!(request.requirements.iter().map(String::as_str).collect::<Vec<_>>(), expected);
        assert_eq!(request.text().lines().count(), 4);
    }

    #[test]
    fn bad_requirements_are_refused() {
        let refused = |packages: &[&str], text| {
            let packages: Vec<String> = packages.iter().map(|package| (*package).to_owned()).collect();
            PackageRequest::new(&packages, text).unwrap_err()
        };
        assert!(matches!(refused(&[], Some("-r other.txt")), PackageRequestError::Option(_)));
        assert!(matches!(refused(&["--index-url=https://a"], None), PackageRequestError::Option(_)));
        assert!(matches!(refused(&["a\0b"], None), PackageRequestError::Malformed(_)));
        assert!(matches!(refused(&[" "], None), PackageRequestError::Malformed(_)));
        assert!(matches!(refused(&[&"x".repeat(MAX_REQUIREMENT + 1)], None), PackageRequestError::Malformed(_)));
        assert_eq!(refused(&[], Some("# nothing\n")), PackageRequestError::Empty);
        let many: String = (0..=MAX_REQUIREMENTS).map(|n| format!("p{n}\n")).collect();
        assert_eq!(refused(&[], Some(&many)), PackageRequestError::TooMany);
        assert_eq!(PackageRequest::of_lock(" \n").unwrap_err(), PackageRequestError::Empty);
    }

    #[test]
    fn rules_compare_canonical_names() {
        let patterns = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let rules = PackageRules { denied: patterns(&["Torch", "nvidia-*"]), ..PackageRules::default() };
        assert!(rules.permits("polars") && !rules.permits("torch") && !rules.permits("NVIDIA_cuda.runtime"));
        let rules = PackageRules { allowed: patterns(&["polars", "scikit_learn"]), ..PackageRules::default() };
        assert!(rules.permits("scikit-learn") && !rules.permits("polars2"));
    }
}
