//! A part of a stream's text, for who shows its two ends and is asked for more.

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::Problem;
use super::large::LIGHT;
use super::notebooks::blocking;
use super::{Api, Caller, CellInPath, InPath, Query};
use crate::manager::{EventRow, OutputEvent, TooHeavy, edited};

/// Bytes that one answer holds, at most.
const MOST: usize = 1 << 20;

/// Which bytes of it; both ends may be left out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    from: Option<u64>,
    to: Option<u64>,
}

/// The output in the path, by the index that its events name.
pub(super) struct OutputInPath(u64);

impl<S: Send + Sync> FromRequestParts<S> for OutputInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name = super::path_field(parts, state, "output").await?;
        name.parse().map(Self).map_err(|_| Problem::not_found("no_output", format!("an output has a number, not {name:?}")))
    }
}

pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    InPath(id): InPath,
    CellInPath(cell): CellInPath,
    OutputInPath(output): OutputInPath,
    Query(range): Query<Range>,
) -> Result<Json<Value>, Problem> {
    let look = async |most| {
        let found = api.keeper.cell_and_events(&id, caller.sees(), &cell, most).await?;
        found.ok_or_else(|| Problem::not_found("no_cell", format!("there is no cell {cell:?} in this session")))
    };
    // A part of much is made from all of it, so it waits its turn as all of it would.
    let (told, _turn) = match look(LIGHT).await?.1 {
        Ok(told) => (told, None),
        Err(TooHeavy { bytes }) => {
            let turn = api.large.make(bytes).await?;
            (look(u64::MAX).await?.1.unwrap_or_default(), turn)
        }
    };
    // Much takes a while to read: not on the threads that answer everybody.
    blocking(move || {
        let text = stream_of(&told, output).ok_or_else(|| {
            Problem::not_found("no_output", format!("there is no stream at index {output} among this cell's outputs"))
        })?;
        let (from, to) = part(&text, range.from, range.to)?;
        Ok(Json(json!({"from": from, "to": to, "total": text.len(), "text": &text[from..to]})))
    })
    .await?
}

/// The text of one of a cell's streams, from its events.
fn stream_of(events: &[EventRow], wanted: u64) -> Option<String> {
    let mut text: Option<String> = None;
    for event in events.iter().filter_map(OutputEvent::read) {
        match event {
            OutputEvent::Cleared => text = None,
            OutputEvent::Told { index, keep, output } if index == wanted => {
                let anew = || Some(output.get("text")?.as_str()?.to_owned());
                text = text.take().and_then(|text| edited(text, keep, &output)).or_else(anew);
            }
            OutputEvent::Told { .. } => {}
        }
    }
    text
}

/// The part that is asked for, as far as one answer goes, between whole characters.
fn part(text: &str, from: Option<u64>, to: Option<u64>) -> Result<(usize, usize), Problem> {
    let (from, to) = (from.unwrap_or(0), to.unwrap_or(u64::MAX));
    if from > to {
        return Err(Problem::bad_request("bad_range", format!("{from} comes after {to}")).field("from"));
    }
    let within = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(text.len());
    let from = text.floor_char_boundary(within(from));
    let to = text.floor_char_boundary(within(to).min(from + MOST));
    Ok((from, to.max(from)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Seq;

    fn event(kind: &str, body: &Value) -> EventRow {
        EventRow { seq: Seq(1), first: Seq(1), time: 0, cell: None, kind: kind.to_owned(), body: body.to_string() }
    }

    fn stream(index: u64, keep: u64, text: &str) -> EventRow {
        let output = json!({"output_type": "stream", "name": "stdout", "text": text});
        event("output.append", &json!({"index": index, "keep": keep, "output": output}))
    }

    #[test]
    fn a_streams_text_is_what_its_events_come_to() {
        let told = [stream(0, 0, "ab"), stream(1, 0, "other"), stream(0, 2, "cd"), stream(0, 3, "é")];
        assert_eq!(stream_of(&told, 0).as_deref(), Some("abcé"));
        assert_eq!(stream_of(&told, 1).as_deref(), Some("other"));
        assert_eq!(stream_of(&told, 2), None);
        let cleared = [stream(0, 0, "ab"), event("output.clear", &json!({})), stream(0, 0, "new")];
        assert_eq!(stream_of(&cleared, 0).as_deref(), Some("new"));
        let plot = json!({"index": 0, "output": {"output_type": "display_data", "data": {"text/plain": "x"}}});
        assert_eq!(stream_of(&[event("output.append", &plot)], 0), None, "a plot has no text of its own");
    }

    #[test]
    fn a_part_never_cuts_a_character_and_never_is_too_long() {
        let text = "aé€😀".repeat(200_000);
        assert_eq!(part(&text, None, None).unwrap_or_default(), (0, text.floor_char_boundary(MOST)));
        for from in 0..20 {
            for to in from..20 {
                let (from, to) = part(&text, Some(from), Some(to)).unwrap_or_default();
                assert!(from <= to && text.get(from..to).is_some());
            }
        }
        assert_eq!(part("abc", Some(9), None).unwrap_or_default(), (3, 3));
        assert_eq!(part("abc", Some(1), Some(u64::MAX)).unwrap_or_default(), (1, 3));
        assert!(part("abc", Some(2), Some(1)).is_err());
    }
}
