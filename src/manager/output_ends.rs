//! The beginning and the end of a cell's outputs, for readers that show no more. The events between them are not read.

use std::collections::HashMap;

use serde_json::Value;

use super::cell_outputs::{OutputEvent, fold_outputs, outputs_from_events};
use super::reader::SessionReader;
use crate::ids::SessionId;
use crate::render::summary::{ArtifactInfo, omission};
use crate::session::Cell;
use crate::store::{EventRow, StoreError};

/// Bytes of a cell's events that are read at each end.
const MAX_EVENT_BYTES: usize = 512 << 10;

impl SessionReader {
    /// The outputs of a cell's latest execution as nbformat objects, with our error if the kernel could not send one. Of long ones, the
    /// beginning and the end, with an [`omission`] between them.
    pub async fn output_ends(&self, id: &SessionId, cell: &Cell) -> Result<Vec<Value>, StoreError> {
        let (first, last, omitted) =
            self.store().ends_of_cell(id, &cell.id, cell.execution.first_seq, MAX_EVENT_BYTES).await?;
        let mut outputs = outputs_from_events(&first);
        if !last.is_empty() {
            outputs.push(omission(omitted));
            outputs.extend(fold_tail(&last));
        }
        outputs.extend(cell.execution.result.as_ref().and_then(|result| result.unsent_error()));
        Ok(outputs)
    }

    /// What is known of the artifacts of a session, by their hashes.
    pub async fn artifact_infos(&self, id: &SessionId) -> Result<HashMap<String, ArtifactInfo>, StoreError> {
        let rows = self.store().artifacts(id).await?.into_iter();
        Ok(rows
            .map(|row| {
                let pixels = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
                let size = pixels(row.width).zip(pixels(row.height));
                (row.sha256, ArtifactInfo { bytes: row.bytes.max(0).cast_unsigned(), size })
            })
            .collect())
    }
}

/// The outputs after the last events of a cell. `keep` of an edit counts from the beginning of the whole text. The known
/// text begins at the first of these edits, so offsets are rebased to that.
fn fold_tail(events: &[EventRow]) -> Vec<Value> {
    let mut starts = HashMap::new();
    fold_outputs(events.iter().filter_map(OutputEvent::parse).map(|event| rebase(event, &mut starts)))
}

/// `starts` holds the offset at which the known text of each stream begins, by the index of the output.
fn rebase(event: OutputEvent, starts: &mut HashMap<u64, usize>) -> OutputEvent {
    match event {
        OutputEvent::Clear => {
            starts.clear();
            OutputEvent::Clear
        }
        OutputEvent::Set { index, keep, output } => {
            // An output without `keep` is whole.
            let start = starts.entry(index).or_insert(keep.unwrap_or(0));
            // An edit may overwrite text before the known part.
            *start = keep.unwrap_or(0).min(*start);
            OutputEvent::Set { index, keep: keep.map(|keep| keep - *start), output }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ids::Seq;
    use crate::manager::cell_outputs::parse_body;
    use crate::store::EventKind;

    fn event(seq: u64, kind: EventKind, body: &Value) -> EventRow {
        EventRow { seq: Seq(seq), first: Seq(seq), time: 0, cell: Some("c".to_owned()), kind, body: body.to_string() }
    }

    fn edit(seq: u64, index: u64, keep: usize, text: &str) -> EventRow {
        let output = json!({"output_type": "stream", "name": "stdout", "text": text});
        event(seq, EventKind::OutputAppend, &json!({"index": index, "keep": keep, "output": output}))
    }

    fn text(outputs: &[Value], at: usize) -> &str {
        outputs[at]["text"].as_str().unwrap()
    }

    #[test]
    fn streams_begin_at_their_first_edit() {
        let plot = json!({"index": 2, "output": {"output_type": "display_data", "data": {"text/plain": "plot"}}});
        let outputs = fold_tail(&[
            edit(7, 0, 1000, "one\n"),
            edit(8, 1, 30, "error\n"),
            edit(9, 0, 1004, "two\n"),
            event(10, EventKind::OutputAppend, &plot),
            edit(11, 0, 1008, "50%"),
            edit(12, 0, 1008, "100%\n"),
        ]);
        assert_eq!((text(&outputs, 0), text(&outputs, 1)), ("one\ntwo\n100%\n", "error\n"));
        assert_eq!(outputs[2]["data"]["text/plain"], "plot");
        // A clear, and an edit that overwrites text before the known part.
        let outputs = fold_tail(&[
            edit(1, 0, 500, "old"),
            event(2, EventKind::OutputClear, &json!({})),
            edit(3, 0, 0, "new "),
            edit(4, 0, 4, "text"),
            edit(5, 1, 90, "far"),
            edit(6, 1, 40, "near "),
            edit(7, 1, 45, "and on"),
        ]);
        assert_eq!((text(&outputs, 0), text(&outputs, 1)), ("new text", "near and on"));
    }

    proptest! {
        #[test]
        fn tail_is_a_suffix_of_the_whole_text(pieces in prop::collection::vec(("[aä\n]{0,9}", 0usize..4), 1..30), cut in 0usize..30) {
            let (mut whole, mut events) = (String::new(), Vec::new());
            for (seq, (piece, back)) in pieces.iter().enumerate() {
                let keep = whole.floor_char_boundary(whole.len().saturating_sub(*back));
                events.push(edit(seq as u64, 0, keep, piece));
                whole.truncate(keep);
                whole.push_str(piece);
            }
            let end = events.split_off(cut % events.len());
            let first = parse_body(&end[0]).get("keep").and_then(Value::as_u64).unwrap();
            let from = end.iter().map(|event| parse_body(event)["keep"].as_u64().unwrap()).fold(first, u64::min);
            let outputs = fold_tail(&end);
            prop_assert_eq!(text(&outputs, 0), &whole[usize::try_from(from).unwrap()..]);
        }
    }
}
