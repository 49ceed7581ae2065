//! Conditional requests and ranges (RFC 9110): which part of a file a request gets, if any.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, header};

use crate::manager::FileStat;

/// A file that was changed less than this long ago may change again within one step of the system's clock, which nothing
/// shows. Its validator is weak.
const CLOCK_STEP: Duration = Duration::from_millis(100);
/// The last second of the year 9999, the latest time that a header can have.
const LATEST: u64 = 253_402_300_799;

/// What identifies the contents of a file.
#[derive(Clone, Debug)]
pub(super) struct Validators {
    /// The entity tag without quotes.
    tag: String,
    is_weak: bool,
    /// In seconds since 1970.
    modified: u64,
}

/// What a request gets of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    Whole,
    /// The bytes from the first to the last one.
    Part {
        first: u64,
        last: u64,
    },
    /// No byte is in the range that was asked for.
    Unsatisfiable,
    /// The client has the file.
    NotModified,
    /// The file is not the one that the client expects.
    PreconditionFailed,
}

impl Validators {
    pub fn new(stat: &FileStat, now: SystemTime) -> Self {
        let FileStat { size, inode, modified_ns, changed_ns } = *stat;
        let changed = UNIX_EPOCH + Duration::from_nanos(u64::try_from(changed_ns).unwrap_or(0));
        Self {
            tag: format!("{inode:x}-{size:x}-{modified_ns:x}-{changed_ns:x}"),
            is_weak: changed + CLOCK_STEP > now,
            modified: u64::try_from(modified_ns.div_euclid(1_000_000_000)).unwrap_or(0).min(LATEST),
        }
    }

    /// The value of `ETag`.
    pub fn etag(&self) -> String {
        format!("{}\"{}\"", if self.is_weak { "W/" } else { "" }, self.tag)
    }

    /// The value of `Last-Modified`.
    pub fn last_modified(&self) -> String {
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(self.modified))
    }

    /// Whether a list of entity tags has this one. A strong comparison needs strong tags at both sides.
    fn is_in(&self, tags: &str, strong: bool) -> bool {
        tags.trim() == "*"
            || tags.split(',').map(str::trim).any(|tag| {
                let (is_weak, tag) = tag.strip_prefix("W/").map_or((false, tag), |tag| (true, tag));
                tag.trim_matches('"') == self.tag && !(strong && (is_weak || self.is_weak))
            })
    }

    /// Whether the file was changed after a date. A date that cannot be read counts as absent.
    fn is_newer_than(&self, date: &str) -> Option<bool> {
        let since = httpdate::parse_http_date(date).ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(self.modified > since.as_secs())
    }

    /// Whether `If-Range` names exactly this file. A date never does: a file may change twice within its second, and programs set
    /// it as they like.
    fn matches_range_condition(&self, value: &str) -> bool {
        value.contains('"') && self.is_in(value, true)
    }

    /// Evaluates the headers of a request for a file of `size` bytes. `is_get`: ranges are defined for GET only.
    pub fn select(&self, headers: &HeaderMap, size: u64, is_get: bool) -> Selection {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let is_other = match (text(header::IF_MATCH), text(header::IF_UNMODIFIED_SINCE)) {
            (Some(tags), _) => !self.is_in(tags, true),
            (None, Some(date)) => self.is_newer_than(date) == Some(true),
            (None, None) => false,
        };
        if is_other {
            return Selection::PreconditionFailed;
        }
        let is_known = match (text(header::IF_NONE_MATCH), text(header::IF_MODIFIED_SINCE)) {
            (Some(tags), _) => self.is_in(tags, false),
            (None, Some(date)) => self.is_newer_than(date) == Some(false),
            (None, None) => false,
        };
        if is_known {
            return Selection::NotModified;
        }
        let is_same = text(header::IF_RANGE).is_none_or(|value| self.matches_range_condition(value));
        match text(header::RANGE).filter(|_| is_get && is_same && headers.get_all(header::RANGE).iter().count() == 1) {
            Some(range) => parse_range(range, size),
            None => Selection::Whole,
        }
    }
}

/// Parses one range of bytes. Several ranges, other units and malformed ranges get the whole file, which the standard allows.
fn parse_range(range: &str, size: u64) -> Selection {
    // A number that is too large is beyond the end of any file.
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let parts = range.split_once('=').filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"));
    match parts.and_then(|(_, range)| range.trim().split_once('-')) {
        // The last bytes.
        Some(("", count)) => match number(count) {
            Some(0) => Selection::Unsatisfiable,
            Some(count) if size > 0 => Selection::Part { first: size.saturating_sub(count), last: size - 1 },
            _ => Selection::Whole,
        },
        Some((first, last)) => {
            let last = if last.is_empty() { Some(u64::MAX) } else { number(last) };
            match number(first).zip(last) {
                Some((first, last)) if first <= last && first < size => Selection::Part { first, last: last.min(size - 1) },
                Some((first, last)) if first <= last => Selection::Unsatisfiable,
                _ => Selection::Whole,
            }
        }
        None => Selection::Whole,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const NOW: SystemTime = UNIX_EPOCH;

    fn file(changed_ms: i64) -> Validators {
        let ns = changed_ms * 1_000_000;
        let stat = FileStat { size: 10, inode: 7, modified_ns: ns, changed_ns: ns };
        Validators::new(&stat, NOW + Duration::from_secs(1_000_000))
    }

    fn select(file: &Validators, headers: &[(HeaderName, &str)]) -> Selection {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        file.select(&headers.collect(), 10, true)
    }

    #[test]
    fn ranges_select_parts() {
        let part = |first, last| Selection::Part { first, last };
        for (range, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=2-5", part(2, 5)),
            ("Bytes = 2-5", part(2, 5)),
            ("bytes=2-", part(2, 9)),
            ("bytes=2-99", part(2, 9)),
            ("bytes=9-99999999999999999999999", part(9, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-99", part(0, 9)),
            ("bytes=10-", Selection::Unsatisfiable),
            ("bytes=99999999999999999999999-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=5-2", Selection::Whole),
            ("bytes=0-1,4-5", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=1-b", Selection::Whole),
            ("bytes=x-1", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("lines=1-2", Selection::Whole),
            ("bytes", Selection::Whole),
        ] {
            assert_eq!(select(&file(0), &[(header::RANGE, range)]), expected, "{range}");
        }
        assert_eq!(parse_range("bytes=-5", 0), Selection::Whole);
        assert_eq!(parse_range("bytes=0-", 0), Selection::Unsatisfiable);
    }

    #[test]
    fn range_conditions_need_the_same_file() {
        let (old, fresh) = (file(5_000), file(999_999_950));
        let part = Selection::Part { first: 1, last: 2 };
        let with = |file: &Validators, value: &str| select(file, &[(header::RANGE, "bytes=1-2"), (header::IF_RANGE, value)]);
        assert!(old.etag().starts_with('"') && fresh.etag().starts_with("W/\""));
        assert_eq!(with(&old, &old.etag()), part);
        assert_eq!(with(&old, &old.last_modified()), Selection::Whole, "its bytes may be others");
        assert_eq!(with(&old, "\"other\""), Selection::Whole);
        assert_eq!(with(&fresh, &fresh.etag()), Selection::Whole, "it may change without a sign");
    }

    #[test]
    fn known_files_are_not_sent() {
        let old = file(5_500);
        let (earlier, later) = (file(4_000).last_modified(), file(9_000).last_modified());
        let cases = [
            (vec![(header::IF_NONE_MATCH, old.etag())], Selection::NotModified),
            (vec![(header::IF_NONE_MATCH, format!("\"x\", W/{}", old.etag()))], Selection::NotModified),
            (vec![(header::IF_NONE_MATCH, "*".to_owned())], Selection::NotModified),
            (
                vec![(header::IF_NONE_MATCH, "\"x\"".to_owned()), (header::IF_MODIFIED_SINCE, later.clone())],
                Selection::Whole,
            ),
            (vec![(header::IF_MODIFIED_SINCE, old.last_modified())], Selection::NotModified),
            (vec![(header::IF_MODIFIED_SINCE, earlier.clone())], Selection::Whole),
            (vec![(header::IF_MODIFIED_SINCE, "yesterday".to_owned())], Selection::Whole),
            (vec![(header::IF_MATCH, "\"x\"".to_owned())], Selection::PreconditionFailed),
            (vec![(header::IF_MATCH, old.etag())], Selection::Whole),
            (vec![(header::IF_UNMODIFIED_SINCE, earlier)], Selection::PreconditionFailed),
            (vec![(header::IF_UNMODIFIED_SINCE, later)], Selection::Whole),
        ];
        for (headers, expected) in cases {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (name.clone(), value.as_str())).collect();
            assert_eq!(select(&old, &headers), expected, "{headers:?}");
        }
    }
}
