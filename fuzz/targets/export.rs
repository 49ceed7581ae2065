//! Exports of notebooks in every format: none is much longer than its notebook.
#![no_main]

use cellkeep::export::{ExportOptions, Format, export};
use cellkeep::notebook::Notebook;
use libfuzzer_sys::fuzz_target;

/// A page may be longer than its notebook by this factor, and by this many bytes (with the plotting libraries).
const MOST_FACTOR: usize = 40;
const MOST_BYTES: usize = 16 << 20;

fuzz_target!(|file: &[u8]| {
    let Ok(notebook) = Notebook::parse(file) else { return };
    for format in [Format::Html, Format::Markdown, Format::Script, Format::Ipynb] {
        let options = ExportOptions { inline_files: true, ..ExportOptions::default() };
        let length = export(&notebook, format, &options).body.len();
        assert!(length <= MOST_FACTOR * file.len() + MOST_BYTES, "{format:?}: {length} bytes from {}", file.len());
    }
});
