//! The colours and attributes at the cursor, which lines that are overwritten need.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most attributes at once; a real terminal has ten kinds.
const MAX_ATTRIBUTES: usize = 16;

/// The state that SGR sequences (`ESC [ … m`) have built up: the last parameters of each kind, as they were sent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct StyleState {
    attributes: Vec<(u16, String)>,
    sequence: Option<Arc<str>>,
}

impl StyleState {
    /// The one sequence that brings a plain terminal into this state; `None` for plain.
    pub(super) fn style(&self) -> &Option<Arc<str>> {
        &self.sequence
    }

    /// Applies the parameters of an SGR sequence, as `1;38;5;208`.
    pub(super) fn apply(&mut self, parameters: &str) {
        let mut codes = parameters.split(';');
        while let Some(code) = codes.next() {
            // The colon form keeps the subparameters of a colour together: 38:2::1:2:3.
            let number: u16 = code.split(':').next().unwrap_or_default().parse().unwrap_or(0);
            let mut words = code.to_owned();
            if matches!(number, 38 | 48 | 58) && !code.contains(':') {
                let more = match codes.next() {
                    Some("5") => Some(("5", 1)),
                    Some("2") => Some(("2", 3)),
                    _ => None,
                };
                let Some((kind, count)) = more else { continue };
                words = [code, kind].into_iter().chain(codes.by_ref().take(count)).collect::<Vec<_>>().join(";");
            }
            self.set(number, words);
        }
        let words: Vec<&str> = self.attributes.iter().map(|(_, words)| words.as_str()).collect();
        self.sequence = (!words.is_empty()).then(|| format!("\u{1b}[{}m", words.join(";")).into());
    }

    fn set(&mut self, number: u16, words: String) {
        if number == 0 {
            self.attributes.clear();
            return;
        }
        let (slot, off) = slot(number);
        // Bold and faint share the code that ends them, but may be on together.
        self.attributes.retain(|(old, text)| *old != slot || (slot == 1 && !off && *text != words));
        if !off {
            if self.attributes.len() == MAX_ATTRIBUTES {
                self.attributes.remove(0);
            }
            self.attributes.push((slot, words));
        }
    }
}

/// The kind of attribute that an SGR number sets, and whether it ends it.
fn slot(number: u16) -> (u16, bool) {
    match number {
        1 | 2 => (1, false),
        22 => (1, true),
        3 | 20 => (3, false),
        23 => (3, true),
        4 | 21 => (4, false),
        24 => (4, true),
        5 | 6 => (5, false),
        25 => (5, true),
        7..=9 => (number, false),
        27..=29 => (number - 20, true),
        30..=38 | 90..=97 => (38, false),
        39 => (38, true),
        40..=48 | 100..=107 => (48, false),
        49 => (48, true),
        53 => (53, false),
        55 => (53, true),
        58 => (58, false),
        59 => (58, true),
        other => (other, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(sequences: &[&str]) -> String {
        let mut state = StyleState::default();
        sequences.iter().for_each(|parameters| state.apply(parameters));
        state.style().as_deref().unwrap_or("plain").replace('\u{1b}', "E")
    }

    #[test]
    fn later_attribute_of_a_kind_wins() {
        assert_eq!(after(&["1;31", "32"]), "E[1;32m");
        assert_eq!(after(&["1;31", "39"]), "E[1m");
        assert_eq!(after(&["1", "2", "22"]), "plain");
        assert_eq!(after(&["1;31", ""]), "plain");
        assert_eq!(after(&["38;5;208", "48;2;1;2;3", "4"]), "E[38;5;208;48;2;1;2;3;4m");
        assert_eq!(after(&["38:2::1:2:3", "0;7"]), "E[7m");
        assert_eq!(after(&["38", "38;9", "x"]), "plain");
    }

    #[test]
    fn unknown_attributes_are_bounded() {
        let mut state = StyleState::default();
        (60..2000).for_each(|number| state.apply(&number.to_string()));
        assert_eq!(state.attributes.len(), MAX_ATTRIBUTES);
    }
}
