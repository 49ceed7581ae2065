//! Merges the events of finished text. A progress bar makes thousands of edits of one line, of which only the last matters
//! once the cell has ended; many prints make as many appends.
//!
//! Neighbouring edits of one stream become one event. It has the number of the last edit, and `first_seq` names the first
//! number that it stands for, so numbers have no gaps for subscribers. Its `keep` is the length of the text that all merged
//! edits left alone, so the event is correct for a subscriber that has seen any part of them.

use serde_json::{Map, Value, json};

use crate::ids::Seq;
use crate::output::TextOffset;
use crate::store::{EventKind, EventRow};
use crate::wire::json as wire_json;

/// The largest text of a merged event in bytes.
const MAX_TEXT: usize = 256 << 10;

/// An edit of a stream: its text before `keep` stays, and `text` follows.
struct Edit {
    index: u64,
    name: String,
    keep: TextOffset,
    text: String,
    /// The edit removes nothing.
    is_append: bool,
}

impl Edit {
    fn parse(row: &EventRow) -> Option<Self> {
        let is_append = match row.kind {
            EventKind::OutputAppend => true,
            EventKind::OutputUpdate => false,
            _ => return None,
        };
        let Ok(Value::Object(mut body)) = wire_json::parse_lenient(row.body.as_bytes()) else { return None };
        let offset = |key| usize::try_from(body.get(key)?.as_u64()?).ok();
        let keep = TextOffset { bytes: offset("keep")?, utf16: offset("keep_utf16")? };
        let index = body.get("index")?.as_u64()?;
        let output = body.get_mut("output")?.as_object_mut()?;
        let mut text = |key| match output.get_mut(key).map(Value::take) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        Some(Self { index, name: text("name")?, keep, text: text("text")?, is_append })
    }

    /// Merges the next edit of the same text into this one. Returns the edit if the two cannot be merged.
    fn merge(&mut self, later: Self) -> Result<(), Self> {
        let kept = later.keep.bytes.checked_sub(self.keep.bytes);
        let fits = match kept {
            None => true,
            Some(kept) => self.text.is_char_boundary(kept) && kept + later.text.len() <= MAX_TEXT,
        };
        if self.index != later.index || self.name != later.name || !fits {
            return Err(later);
        }
        match kept {
            Some(kept) => {
                self.text.truncate(kept);
                self.text.push_str(&later.text);
            }
            None => (self.keep, self.text, self.is_append) = (later.keep, later.text, false),
        }
        Ok(())
    }

    /// The merged event of the edits from number `first` to the event `last`.
    fn into_event(self, first: Seq, last: &EventRow) -> EventRow {
        let output = json!({"output_type": "stream", "name": self.name, "text": self.text});
        let mut body = Map::new();
        body.insert("index".to_owned(), self.index.into());
        body.insert("keep".to_owned(), self.keep.bytes.into());
        body.insert("keep_utf16".to_owned(), self.keep.utf16.into());
        body.insert("output".to_owned(), output);
        let kind = if self.is_append { EventKind::OutputAppend } else { EventKind::OutputUpdate };
        EventRow { first, kind, body: Value::Object(body).to_string(), ..last.clone() }
    }
}

/// Merges the events of a cell, which are in order. Returns the merged events only, without those that stay unchanged.
pub(super) fn merge(rows: &[EventRow]) -> Vec<EventRow> {
    let mut merged = Vec::new();
    let mut open: Option<(Edit, Seq, &EventRow)> = None;
    for row in rows {
        let mut edit = Edit::parse(row);
        if let Some((merging, first, last)) = &mut open {
            let follows = last.seq.next() == row.first;
            match edit.take_if(|_| follows).map(|later| merging.merge(later)) {
                Some(Ok(())) => {
                    *last = row;
                    continue;
                }
                Some(Err(later)) => edit = Some(later),
                None => {}
            }
            if *first != last.first {
                merged.extend(open.take().map(|(edit, first, last)| edit.into_event(first, last)));
            }
        }
        open = edit.map(|edit| (edit, row.first, row));
    }
    merged.extend(
        open.filter(|(_, first, last)| *first != last.first).map(|(edit, first, last)| edit.into_event(first, last)),
    );
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(seq: u64, kind: EventKind, body: Value) -> EventRow {
        EventRow { seq: Seq(seq), first: Seq(seq), time: 1, cell: Some("c".to_owned()), kind, body: body.to_string() }
    }

    /// Applies an event to the texts of a subscriber.
    fn apply(texts: &mut Vec<String>, row: &EventRow) {
        let Some(edit) = Edit::parse(row) else { return };
        let index = usize::try_from(edit.index).unwrap();
        texts.resize(texts.len().max(index + 1), String::new());
        assert_eq!(TextOffset::of(&texts[index][..edit.keep.bytes]), edit.keep);
        texts[index].truncate(edit.keep.bytes);
        texts[index].push_str(&edit.text);
    }

    /// Events that edit two texts, with other events between them.
    fn history(steps: &[(u8, usize, String)]) -> Vec<EventRow> {
        let mut texts = [String::new(), String::new()];
        let mut rows = Vec::new();
        for (seq, (what, keep, text)) in (1..).zip(steps) {
            if *what == 0 {
                rows.push(row(seq, EventKind::Comm, json!({})));
                continue;
            }
            let index = usize::from(*what % 2);
            let all = &mut texts[index];
            let keep = if *what > 6 { all.floor_char_boundary(keep % (all.len() + 1)) } else { all.len() };
            let kind = if keep == all.len() { EventKind::OutputAppend } else { EventKind::OutputUpdate };
            all.truncate(keep);
            all.push_str(text);
            let output = json!({"output_type": "stream", "name": "stdout", "text": text});
            let keep_utf16 = TextOffset::of(&all[..keep]).utf16;
            rows.push(row(seq, kind, json!({"index": index, "keep": keep, "keep_utf16": keep_utf16, "output": output})));
        }
        rows
    }

    /// The rows of the store after merging.
    fn stored(rows: &[EventRow], merged: &[EventRow]) -> Vec<EventRow> {
        let covered = |row: &EventRow| merged.iter().any(|new| new.first <= row.seq && row.seq <= new.seq);
        let mut all: Vec<EventRow> = rows.iter().filter(|row| !covered(row)).chain(merged).cloned().collect();
        all.sort_by_key(|row| row.seq);
        all
    }

    proptest! {
        #[test]
        fn merged_events_give_every_subscriber_the_same_text(
            steps in prop::collection::vec((0u8..10, any::<usize>(), "[a-zé😀]{0,5}"), 0..60),
            seen in any::<prop::sample::Index>(),
        ) {
            let rows = history(&steps);
            let now = stored(&rows, &merge(&rows));
            let mut truth = Vec::new();
            rows.iter().for_each(|row| apply(&mut truth, row));
            // A subscriber that has seen some of the original events continues with the merged ones.
            let seen = if rows.is_empty() { 0 } else { seen.index(rows.len() + 1) };
            let mut texts = Vec::new();
            rows[..seen].iter().for_each(|row| apply(&mut texts, row));
            now.iter().filter(|row| row.seq.0 > seen as u64).for_each(|row| apply(&mut texts, row));
            prop_assert_eq!(texts, truth);
            // There are no gaps, and merging is idempotent.
            let mut next = Seq(1);
            for row in &now {
                prop_assert_eq!(row.first, next);
                next = row.seq.next();
            }
            prop_assert!(merge(&now).is_empty());
        }
    }

    #[test]
    fn progress_bar_becomes_one_event() {
        let output = |text: &str| json!({"output_type": "stream", "name": "stderr", "text": text});
        let mut rows = vec![row(1, EventKind::OutputAppend, json!({"index": 0, "output": output("0%")}))];
        rows.extend((2..100).map(|n| {
            let output = output(&format!("{n}%"));
            row(n, EventKind::OutputUpdate, json!({"index": 0, "keep": 0, "keep_utf16": 0, "output": output}))
        }));
        let merged = merge(&rows);
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].first, merged[0].seq, merged[0].kind), (Seq(2), Seq(99), EventKind::OutputUpdate));
        assert!(merged[0].body.contains("99%"));
    }

    #[test]
    fn malformed_bodies_are_not_merged() {
        for body in [json!({}), json!({"keep": -1}), json!({"index": 0, "keep": 1, "output": 3}), json!([])] {
            assert!(
                merge(&[row(1, EventKind::OutputAppend, body.clone()), row(2, EventKind::OutputAppend, body)]).is_empty()
            );
        }
    }
}
