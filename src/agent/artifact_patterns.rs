//! Which files a pattern of artifacts means.

/// Whether a file matches one of the patterns, which have no braces. A pattern without `/` is compared with the name, any other
/// with the whole path. A pattern that ends in `/` matches everything in that folder.
pub(super) fn matches_any(patterns: &[String], path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    patterns.iter().any(|pattern| match pattern.strip_prefix("./").unwrap_or(pattern) {
        folder if folder.ends_with('/') => path.starts_with(folder) || fast_glob::glob_match(format!("{folder}**"), path),
        pattern if pattern.contains('/') => fast_glob::glob_match(pattern, path),
        pattern => fast_glob::glob_match(pattern, name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_paths_and_folders() {
        for (pattern, path, expected) in [
            ("*.csv", "a.csv", true),
            ("*.csv", "deep/er/a.csv", true),
            ("*.csv", "a.csv.gz", false),
            ("*.sv?", "plots/one.svg", true),
            ("out/*.csv", "out/a.csv", true),
            ("out/*.csv", "out/deep/a.csv", false),
            ("out/**/*.csv", "out/deep/er/a.csv", true),
            ("out/", "out/deep/a", true),
            ("./out/", "out/a", true),
            ("out/", "not/out/a", false),
            ("out/", "out", false),
            ("*/", "any/file", true),
            ("data[0-9].txt", "data7.txt", true),
            ("", "a", false),
        ] {
            assert_eq!(matches_any(&[pattern.to_owned()], path), expected, "{pattern} {path}");
        }
        assert!(!matches_any(&[], "a"));
    }

    #[test]
    fn hostile_pattern_ends_soon() {
        let pattern = format!("{}b", "*a".repeat(100));
        assert!(!matches_any(&[pattern, format!("{}b", "**/".repeat(80)), "[a-z]*".repeat(40) + "0"], &"a".repeat(4000)));
    }
}
