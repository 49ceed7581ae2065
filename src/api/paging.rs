//! Lists in pages. A page has at most `limit` items, and `next_cursor` where the next one begins. Cursors name the last item of a
//! page and not a number of items, so items that come or go meanwhile are neither repeated nor hide others.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Problem;

/// The number of items of a page by default, and the largest one.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// Checks the `limit` of a query.
pub(super) fn limit(limit: Option<usize>) -> Result<usize, Problem> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if (1..=MAX_LIMIT).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::bad_request("bad_query", format!("limit must be 1 to {MAX_LIMIT}")).field("limit"))
}

/// Writes a position as a cursor, which clients do not read.
pub(super) fn cursor(position: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(position).unwrap_or_default())
}

/// Reads the `cursor` of a query.
pub(super) fn position<T: DeserializeOwned>(cursor: Option<&str>) -> Result<Option<T>, Problem> {
    let Some(cursor) = cursor else { return Ok(None) };
    let position = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|json| serde_json::from_slice(&json).ok());
    position.map(Some).ok_or_else(bad_cursor)
}

pub(super) fn bad_cursor() -> Problem {
    Problem::bad_request("bad_query", "cursor must be the next_cursor of an earlier page").field("cursor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_and_are_checked() {
        let place = (5_i64, "a/ä".to_owned());
        let text = cursor(&place);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')), "{text}");
        assert_eq!(position::<(i64, String)>(Some(&text)).unwrap(), Some(place));
        assert_eq!(position::<i64>(None).unwrap(), None);
        for wrong in ["", "!", "x", cursor(&"text").as_str()] {
            assert!(position::<(i64, String)>(Some(wrong)).is_err(), "{wrong}");
        }
        assert!(limit(Some(0)).is_err() && limit(Some(1001)).is_err());
    }
}
