//! Text with terminal sequences: what is shown is bounded by what was written.
#![no_main]

use cellkeep::output::{strip_ansi, terminal_text};
use libfuzzer_sys::fuzz_target;

/// `ESC [ 999 G x` moves to the last column of a screen and writes there.
const MOST_FACTOR: usize = 40;

fuzz_target!(|text: &str| {
    let shown = terminal_text(text);
    assert!(shown.len() <= MOST_FACTOR * (text.len() + 16), "{} bytes from {}", shown.len(), text.len());
    assert!(strip_ansi(text).len() <= text.len());
    cellkeep::render::ansi::html(&shown, &mut String::new());
});
