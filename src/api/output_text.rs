//! A range of an output's text, for clients that show the beginning and the end of a long text and load the rest on demand.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::{IntoParams, ToSchema};

use super::error::Problem;
use super::notebooks::run_blocking;
use super::response_spool::MAX_SMALL;
use super::{Api, Caller, CellInPath, Query, SessionInPath, path_parameter};
use crate::manager::{EventRow, OutputEvent, OverByteLimit, apply_edit};
use crate::output::TextOffset;

/// The largest range of one response in bytes.
const MAX_RANGE: usize = 1 << 20;

/// A range of a text. Both ends are optional.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Range {
    /// The offset of the first byte or code unit.
    #[param(default = 0)]
    from: Option<u64>,
    /// The offset after the last byte. The default is as far as one response goes.
    to: Option<u64>,
    /// What offsets in the request count.
    #[param(inline, value_type = Option<OffsetUnit>)]
    unit: Option<String>,
    /// The media type of a text in a MIME bundle, for example `text/html`. Without it, the output must be a stream.
    mime: Option<String>,
}

/// What offsets count: bytes of UTF-8, or UTF-16 code units, as in JavaScript.
#[derive(Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case", default = "bytes")]
enum OffsetUnit {
    Bytes,
    Utf16,
}

impl OffsetUnit {
    fn parse(name: Option<&str>) -> Result<Self, Problem> {
        match name {
            None | Some("bytes") => Ok(Self::Bytes),
            Some("utf16") => Ok(Self::Utf16),
            Some(other) => {
                let detail = format!("{other:?} is not a unit of offsets; use bytes or utf16");
                Err(Problem::bad_request("bad_query", detail).field("unit"))
            }
        }
    }
}

/// A range of a text. Offsets are in bytes of UTF-8 and in UTF-16 code units.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "from": 0, "to": 6, "total": 1048576, "from_utf16": 0, "to_utf16": 6, "total_utf16": 1048576, "text": "line 1"
})))]
pub(super) struct TextRange {
    from: usize,
    to: usize,
    /// The length of the whole text.
    total: usize,
    from_utf16: usize,
    to_utf16: usize,
    total_utf16: usize,
    /// The text of the range.
    text: String,
}

/// The index of the output in the path, as events have it.
pub(super) struct OutputInPath(u64);

impl<S: Send + Sync> FromRequestParts<S> for OutputInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name = super::path_field(parts, state, "output").await?;
        name.parse()
            .map(Self)
            .map_err(|_| Problem::not_found("no_output", format!("{name:?} is not the index of an output")))
    }
}

impl IntoParams for OutputInPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![path_parameter("output", "The index of the output among the outputs of the cell, as events have it.")]
    }
}

/// Get a range of the text of an output
///
/// The text is that of a stream, or with `mime` a text of a MIME bundle.
/// A range has at most 1 MB and ends between characters.
#[utoipa::path(
    get, path = "/cells/{cell}/outputs/{output}/text", operation_id = "get_output_text", tag = "cells",
    params(SessionInPath, CellInPath, OutputInPath, Range),
    responses((status = 200, description = "The range", body = TextRange)),
)]
pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    CellInPath(cell): CellInPath,
    OutputInPath(output): OutputInPath,
    Query(range): Query<Range>,
) -> Result<Json<TextRange>, Problem> {
    let read = async |max_bytes| {
        let found = api.reader.cell_and_events(&id, &caller.access(), &cell, max_bytes).await?;
        found.ok_or_else(|| Problem::not_found("no_cell", format!("there is no cell {cell:?} in this session")))
    };
    // A range is computed from the whole text, so it needs the same permit.
    let (events, _permit) = match read(MAX_SMALL).await?.1 {
        Ok(events) => (events, None),
        Err(OverByteLimit { bytes }) => {
            let permit = api.spool.acquire(bytes).await?;
            (read(u64::MAX).await?.1.unwrap_or_default(), permit)
        }
    };
    run_blocking(move || {
        let text = match &range.mime {
            None => stream_text(&events, output),
            Some(mime) => bundle_text(&events, output, mime),
        };
        let text = text.ok_or_else(|| no_text(output, range.mime.as_deref()))?;
        let unit = OffsetUnit::parse(range.unit.as_deref())?;
        let in_bytes = |offset| if unit == OffsetUnit::Utf16 { utf16_to_bytes(&text, offset) } else { offset };
        let (from, to) = char_range(&text, range.from.map(in_bytes), range.to.map(in_bytes))?;
        Ok(Json(TextRange::new(&text, from, to)))
    })
    .await?
}

impl TextRange {
    fn new(text: &str, from: usize, to: usize) -> Self {
        let (start, range) = (TextOffset::of(&text[..from]), TextOffset::of(&text[from..to]));
        let (end, rest) = (start + range, TextOffset::of(&text[to..]));
        Self {
            from,
            to,
            total: text.len(),
            from_utf16: start.utf16,
            to_utf16: end.utf16,
            total_utf16: (end + rest).utf16,
            text: text[from..to].to_owned(),
        }
    }
}

/// The byte offset of a UTF-16 offset; one between the units of a character counts as its beginning.
fn utf16_to_bytes(text: &str, offset: u64) -> u64 {
    let mut units = 0;
    let found = text.char_indices().find(|(_, character)| {
        units += character.len_utf16() as u64;
        units > offset
    });
    // Beyond the text, the offset only has to stay beyond.
    found.map_or(offset.max(text.len() as u64), |(at, _)| at as u64)
}

/// The text of a stream after these events.
fn stream_text(events: &[EventRow], index: u64) -> Option<String> {
    let mut text: Option<String> = None;
    for event in events.iter().filter_map(OutputEvent::parse) {
        match event {
            OutputEvent::Clear => text = None,
            OutputEvent::Set { index: at, keep, output } if at == index => {
                let whole_text = || Some(output.get("text")?.as_str()?.to_owned());
                text = text.take().and_then(|text| apply_edit(text, keep, &output)).or_else(whole_text);
            }
            OutputEvent::Set { .. } => {}
        }
    }
    text
}

/// The text of this media type of a MIME bundle after these events.
fn bundle_text(events: &[EventRow], index: u64, mime: &str) -> Option<String> {
    let mut bundle = None;
    for event in events.iter().filter_map(OutputEvent::parse) {
        match event {
            OutputEvent::Clear => bundle = None,
            OutputEvent::Set { index: at, output, .. } if at == index => bundle = Some(output),
            OutputEvent::Set { .. } => {}
        }
    }
    Some(bundle?.get("data")?.get(mime)?.as_str()?.to_owned())
}

fn no_text(output: u64, mime: Option<&str>) -> Problem {
    let what = match mime {
        None => "stream".to_owned(),
        Some(mime) => format!("output with a text of type {mime:?}"),
    };
    Problem::not_found("no_output", format!("there is no {what} at index {output} among this cell's outputs"))
}

/// The requested range, limited to one response and to whole characters.
fn char_range(text: &str, from: Option<u64>, to: Option<u64>) -> Result<(usize, usize), Problem> {
    let (from, to) = (from.unwrap_or(0), to.unwrap_or(u64::MAX));
    if from > to {
        return Err(Problem::bad_request("bad_range", format!("from ({from}) is greater than to ({to})")).field("from"));
    }
    let within = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let from = text.floor_char_boundary(within(from));
    let to = text.floor_char_boundary(within(to).min(from + MAX_RANGE));
    Ok((from, to.max(from)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::ids::Seq;
    use crate::manager::EventKind;

    fn event(kind: EventKind, body: &Value) -> EventRow {
        EventRow { seq: Seq(1), first: Seq(1), time: 0, cell: None, kind, body: body.to_string() }
    }

    fn stream(index: u64, keep: u64, text: &str) -> EventRow {
        let output = json!({"output_type": "stream", "name": "stdout", "text": text});
        event(EventKind::OutputAppend, &json!({"index": index, "keep": keep, "output": output}))
    }

    #[test]
    fn stream_text_is_folded_from_events() {
        let events = [stream(0, 0, "ab"), stream(1, 0, "other"), stream(0, 2, "cd"), stream(0, 3, "é")];
        assert_eq!(stream_text(&events, 0).as_deref(), Some("abcé"));
        assert_eq!(stream_text(&events, 1).as_deref(), Some("other"));
        assert_eq!(stream_text(&events, 2), None);
        let cleared = [stream(0, 0, "ab"), event(EventKind::OutputClear, &json!({})), stream(0, 0, "new")];
        assert_eq!(stream_text(&cleared, 0).as_deref(), Some("new"));
        let plot = json!({"index": 0, "output": {"output_type": "display_data", "data": {"text/plain": "x"}}});
        assert_eq!(stream_text(&[event(EventKind::OutputAppend, &plot)], 0), None, "a plot is not a stream");
    }

    #[test]
    fn bundle_text_is_the_latest_of_its_type() {
        let plot = |html: &str| {
            let output = json!({"output_type": "display_data", "data": {"text/html": html, "a/json": {"x": 1}}});
            event(EventKind::OutputUpdate, &json!({"index": 1, "output": output}))
        };
        let events = [stream(0, 0, "ab"), plot("old"), plot("new")];
        assert_eq!(bundle_text(&events, 1, "text/html").as_deref(), Some("new"));
        for (index, mime) in [(0, "text/html"), (1, "text/plain"), (1, "a/json"), (2, "text/html")] {
            assert_eq!(bundle_text(&events, index, mime), None, "{index} {mime}");
        }
    }

    #[test]
    fn offsets_are_given_in_both_units() {
        let text = "aé€😀z";
        for (utf16, bytes) in [(0, 0), (1, 1), (2, 3), (3, 6), (4, 6), (5, 10), (6, 11), (60, 60)] {
            assert_eq!(utf16_to_bytes(text, utf16), bytes, "{utf16}");
        }
        let range = TextRange::new(text, 3, 10);
        assert_eq!((range.from_utf16, range.to_utf16, range.total_utf16, range.text.as_str()), (2, 5, 6, "€😀"));
    }

    #[test]
    fn ranges_have_whole_characters_and_a_limit() {
        let text = "aé€😀".repeat(200_000);
        assert_eq!(char_range(&text, None, None).unwrap_or_default(), (0, text.floor_char_boundary(MAX_RANGE)));
        for from in 0..20 {
            for to in from..20 {
                let (from, to) = char_range(&text, Some(from), Some(to)).unwrap_or_default();
                assert!(from <= to && text.get(from..to).is_some());
            }
        }
        assert_eq!(char_range("abc", Some(9), None).unwrap_or_default(), (3, 3));
        assert_eq!(char_range("abc", Some(1), Some(u64::MAX)).unwrap_or_default(), (1, 3));
        assert!(char_range("abc", Some(2), Some(1)).is_err());
    }
}
