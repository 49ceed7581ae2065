//! The patterns of files that an execution leaves as artifacts.

use thiserror::Error;

/// The most patterns of one execution, and the longest one in bytes.
const MAX_PATTERNS: usize = 32;
const MAX_PATTERN: usize = 256;

/// Why patterns are refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadPattern {
    #[error("at most {MAX_PATTERNS} patterns are allowed")]
    TooMany,
    #[error("a pattern has at most {MAX_PATTERN} bytes")]
    TooLong,
    #[error("{0:?} is no pattern of files in the workspace; for example: *.csv, plots/*.png, output/")]
    Invalid(String),
}

/// Checks patterns such as `*.csv` (in any folder), `plots/*.png`, or `output/` for everything in that folder.
pub fn check_artifact_patterns(patterns: &[String]) -> Result<(), BadPattern> {
    if patterns.len() > MAX_PATTERNS {
        return Err(BadPattern::TooMany);
    }
    if patterns.iter().any(|pattern| pattern.len() > MAX_PATTERN) {
        return Err(BadPattern::TooLong);
    }
    let is_invalid = |pattern: &&String| {
        // Braces could stand for billions of alternatives.
        let is_reserved = pattern.starts_with(['/', '!']) || pattern.contains(['{', '}']);
        pattern.is_empty() || is_reserved || pattern.split('/').any(|part| part == "..")
    };
    match patterns.iter().find(is_invalid) {
        Some(pattern) => Err(BadPattern::Invalid(pattern.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stay_in_the_workspace() {
        let check = |pattern: &str| check_artifact_patterns(&[pattern.to_owned()]).is_ok();
        for good in ["*.csv", "output/", "a/**/b.*", "[ab]?.txt", "..a"] {
            assert!(check(good), "{good}");
        }
        for bad in ["", "/etc/*", "../x", "a/../b", "!a", "{a,b}.txt", &"x".repeat(257)] {
            assert!(!check(bad), "{bad}");
        }
        assert!(check_artifact_patterns(&vec!["a".to_owned(); 33]).is_err());
    }
}
