//! Merges the events of finished text. A progress bar makes thousands of edits of one line, of which nobody needs more than the
//! last once the cell has ended; a flood of prints makes as many that only grow.
//!
//! Neighbouring edits of one stream become one event, with the last one's number, that says from which number on it stands for
//! them (`first_seq`): whoever counts sees no hole. It tells what to keep of the text before the first of them, so that it is
//! right for a reader who has seen any part of them: all of them kept that much.

use serde_json::{Map, Value, json};

use crate::ids::Seq;
use crate::store::EventRow;
use crate::wire::json as wire_json;

/// Bytes of text in one merged event.
const MAX_TEXT: usize = 256 << 10;

/// An edit of a stream's text: its first `keep` bytes stand, and `text` follows.
struct Edit {
    index: u64,
    name: String,
    keep: usize,
    text: String,
    /// The text only grows.
    grows: bool,
}

impl Edit {
    fn read(row: &EventRow) -> Option<Self> {
        let grows = match row.kind.as_str() {
            "output.append" => true,
            "output.update" => false,
            _ => return None,
        };
        let Ok(Value::Object(mut body)) = wire_json::parse_lenient(row.body.as_bytes()) else { return None };
        let keep = usize::try_from(body.get("keep")?.as_u64()?).ok()?;
        let index = body.get("index")?.as_u64()?;
        let output = body.get_mut("output")?.as_object_mut()?;
        let mut text = |key| match output.get_mut(key).map(Value::take) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        Some(Self { index, name: text("name")?, keep, text: text("text")?, grows })
    }

    /// Takes a later edit of the same text in. Gives it back where they cannot be one.
    fn join(&mut self, later: Self) -> Result<(), Self> {
        let stands = later.keep.checked_sub(self.keep);
        let fits = match stands {
            None => true,
            Some(stands) => self.text.is_char_boundary(stands) && stands + later.text.len() <= MAX_TEXT,
        };
        if self.index != later.index || self.name != later.name || !fits {
            return Err(later);
        }
        match stands {
            Some(stands) => {
                self.text.truncate(stands);
                self.text.push_str(&later.text);
            }
            None => (self.keep, self.text, self.grows) = (later.keep, later.text, false),
        }
        Ok(())
    }

    fn event(self, (first, last): (Seq, &EventRow)) -> EventRow {
        let output = json!({"output_type": "stream", "name": self.name, "text": self.text});
        let mut body = Map::new();
        body.insert("index".to_owned(), self.index.into());
        body.insert("keep".to_owned(), self.keep.into());
        body.insert("output".to_owned(), output);
        let kind = if self.grows { "output.append" } else { "output.update" }.to_owned();
        EventRow { first, kind, body: Value::Object(body).to_string(), ..last.clone() }
    }
}

/// The merged events of a cell's events, which are in order. Those that stay as they are are not among them.
pub(super) fn merge(rows: &[EventRow]) -> Vec<EventRow> {
    let mut merged = Vec::new();
    let mut open: Option<(Edit, Seq, &EventRow)> = None;
    for row in rows {
        let mut edit = Edit::read(row);
        if let Some((so_far, first, last)) = &mut open {
            let follows = last.seq.next() == row.first;
            match edit.take_if(|_| follows).map(|later| so_far.join(later)) {
                Some(Ok(())) => {
                    *last = row;
                    continue;
                }
                Some(Err(later)) => edit = Some(later),
                None => {}
            }
            if *first != last.first {
                merged.extend(open.take().map(|(edit, first, last)| edit.event((first, last))));
            }
        }
        open = edit.map(|edit| (edit, row.first, row));
    }
    merged.extend(open.filter(|(_, first, last)| *first != last.first).map(|(edit, first, last)| edit.event((first, last))));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(seq: u64, kind: &str, body: Value) -> EventRow {
        let (cell, kind) = (Some("c".to_owned()), kind.to_owned());
        EventRow { seq: Seq(seq), first: Seq(seq), time: 1, cell, kind, body: body.to_string() }
    }

    /// The text of each output after these events, for one who has these already.
    fn apply(texts: &mut Vec<String>, row: &EventRow) {
        let Some(edit) = Edit::read(row) else { return };
        let index = usize::try_from(edit.index).unwrap();
        texts.resize(texts.len().max(index + 1), String::new());
        texts[index].truncate(edit.keep);
        texts[index].push_str(&edit.text);
    }

    /// Events that edit two texts, with something else between now and then.
    fn history(steps: &[(u8, usize, String)]) -> Vec<EventRow> {
        let mut texts = [String::new(), String::new()];
        let mut rows = Vec::new();
        for (seq, (what, keep, text)) in (1..).zip(steps) {
            if *what == 0 {
                rows.push(row(seq, "comm", json!({})));
                continue;
            }
            let index = usize::from(*what % 2);
            let all = &mut texts[index];
            let keep = if *what > 6 { all.floor_char_boundary(keep % (all.len() + 1)) } else { all.len() };
            let kind = if keep == all.len() { "output.append" } else { "output.update" };
            all.truncate(keep);
            all.push_str(text);
            let output = json!({"output_type": "stream", "name": "stdout", "text": text});
            rows.push(row(seq, kind, json!({"index": index, "keep": keep, "output": output})));
        }
        rows
    }

    /// What the store holds after merging.
    fn stored(rows: &[EventRow], merged: &[EventRow]) -> Vec<EventRow> {
        let covered = |row: &EventRow| merged.iter().any(|new| new.first <= row.seq && row.seq <= new.seq);
        let mut all: Vec<EventRow> = rows.iter().filter(|row| !covered(row)).chain(merged).cloned().collect();
        all.sort_by_key(|row| row.seq);
        all
    }

    proptest! {
        #[test]
        fn any_reader_ends_with_the_same_text(
            steps in prop::collection::vec((0u8..10, any::<usize>(), "[a-zé]{0,5}"), 0..60),
            seen in any::<prop::sample::Index>(),
        ) {
            let rows = history(&steps);
            let now = stored(&rows, &merge(&rows));
            let mut truth = Vec::new();
            rows.iter().for_each(|row| apply(&mut truth, row));
            // A reader who had seen some of the events as they were goes on with what is there now.
            let seen = if rows.is_empty() { 0 } else { seen.index(rows.len() + 1) };
            let mut texts = Vec::new();
            rows[..seen].iter().for_each(|row| apply(&mut texts, row));
            now.iter().filter(|row| row.seq.0 > seen as u64).for_each(|row| apply(&mut texts, row));
            prop_assert_eq!(texts, truth);
            // No number is missing, and merging again changes nothing.
            let mut next = Seq(1);
            for row in &now {
                prop_assert_eq!(row.first, next);
                next = row.seq.next();
            }
            prop_assert!(merge(&now).is_empty());
        }
    }

    #[test]
    fn a_progress_bar_becomes_one_event() {
        let output = |text: &str| json!({"output_type": "stream", "name": "stderr", "text": text});
        let mut rows = vec![row(1, "output.append", json!({"index": 0, "output": output("0%")}))];
        rows.extend(
            (2..100).map(|n| row(n, "output.update", json!({"index": 0, "keep": 0, "output": output(&format!("{n}%"))}))),
        );
        let merged = merge(&rows);
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].first, merged[0].seq, merged[0].kind.as_str()), (Seq(2), Seq(99), "output.update"));
        assert!(merged[0].body.contains("99%"));
    }

    #[test]
    fn what_was_never_ours_stays_as_it_is() {
        for body in [json!({}), json!({"keep": -1}), json!({"index": 0, "keep": 1, "output": 3}), json!([])] {
            assert!(merge(&[row(1, "output.append", body.clone()), row(2, "output.append", body)]).is_empty());
        }
    }
}
