//! The end of a flood: the last events of a cell, read without those before them. Pure.

use std::collections::HashMap;

use serde_json::Value;

use crate::manager::{EventRow, OutputEvent, outputs_told};

/// The outputs that a cell's last events come to. An edit of a stream says how many bytes of its whole text stand; here the text
/// begins only where the first of these edits does, so that each is told against that.
pub(super) fn outputs_of_end(events: &[EventRow]) -> Vec<Value> {
    let mut begins = HashMap::new();
    outputs_told(events.iter().filter_map(OutputEvent::read).map(|event| rebased(event, &mut begins)))
}

/// `begins`: where in its whole text each stream's known part begins, by its place in the cell's list.
fn rebased(event: OutputEvent, begins: &mut HashMap<u64, usize>) -> OutputEvent {
    match event {
        OutputEvent::Cleared => {
            begins.clear();
            OutputEvent::Cleared
        }
        OutputEvent::Told { index, keep, output } => {
            // What is told without is whole.
            let begin = begins.entry(index).or_insert(keep.unwrap_or(0));
            // What is known may be overwritten from before its beginning.
            *begin = keep.unwrap_or(0).min(*begin);
            OutputEvent::Told { index, keep: keep.map(|keep| keep - *begin), output }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ids::Seq;
    use crate::manager::read_body;

    fn event(seq: u64, kind: &str, body: &Value) -> EventRow {
        let (cell, kind) = (Some("c".to_owned()), kind.to_owned());
        EventRow { seq: Seq(seq), first: Seq(seq), time: 0, cell, kind, body: body.to_string() }
    }

    fn edit(seq: u64, index: u64, keep: usize, text: &str) -> EventRow {
        let output = json!({"output_type": "stream", "name": "stdout", "text": text});
        event(seq, "output.append", &json!({"index": index, "keep": keep, "output": output}))
    }

    fn text(outputs: &[Value], at: usize) -> &str {
        outputs[at]["text"].as_str().unwrap()
    }

    #[test]
    fn each_stream_begins_with_its_first_edit() {
        let plot = json!({"index": 2, "output": {"output_type": "display_data", "data": {"text/plain": "plot"}}});
        let outputs = outputs_of_end(&[
            edit(7, 0, 1000, "one\n"),
            edit(8, 1, 30, "error\n"),
            edit(9, 0, 1004, "two\n"),
            event(10, "output.append", &plot),
            edit(11, 0, 1008, "50%"),
            edit(12, 0, 1008, "100%\n"),
        ]);
        assert_eq!((text(&outputs, 0), text(&outputs, 1)), ("one\ntwo\n100%\n", "error\n"));
        assert_eq!(outputs[2]["data"]["text/plain"], "plot");
        // Cleared, and overwritten from before what is known.
        let outputs = outputs_of_end(&[
            edit(1, 0, 500, "old"),
            event(2, "output.clear", &json!({})),
            edit(3, 0, 0, "new "),
            edit(4, 0, 4, "text"),
            edit(5, 1, 90, "far"),
            edit(6, 1, 40, "near "),
            edit(7, 1, 45, "and on"),
        ]);
        assert_eq!((text(&outputs, 0), text(&outputs, 1)), ("new text", "near and on"));
    }

    proptest! {
        /// Wherever the reading begins, it comes to the end of what all events come to.
        #[test]
        fn the_end_is_the_end_of_the_whole(pieces in prop::collection::vec(("[aä\n]{0,9}", 0usize..4), 1..30), cut in 0usize..30) {
            let (mut whole, mut events) = (String::new(), Vec::new());
            for (seq, (piece, back)) in pieces.iter().enumerate() {
                let keep = whole.floor_char_boundary(whole.len().saturating_sub(*back));
                events.push(edit(seq as u64, 0, keep, piece));
                whole.truncate(keep);
                whole.push_str(piece);
            }
            let end = events.split_off(cut % events.len());
            let first = read_body(&end[0]).get("keep").and_then(Value::as_u64).unwrap();
            let from = end.iter().map(|event| read_body(event)["keep"].as_u64().unwrap()).fold(first, u64::min);
            let outputs = outputs_of_end(&end);
            prop_assert_eq!(text(&outputs, 0), &whole[usize::try_from(from).unwrap()..]);
        }
    }
}
